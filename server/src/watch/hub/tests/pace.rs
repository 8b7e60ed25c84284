//! The hub rests behind a round that many were told of.

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::pace::{REST_MAX, REST_MIN, REST_PER_STREAM};
use super::client::Client;
use super::world::{World, follow, key};
use crate::config::WatchConfig;
use crate::raft::AppliedHead;
use crate::watch::Target;
/// One change leaves at once; those that follow it closely leave together, when the hub has rested from telling the first.
#[tokio::test]
async fn changes_close_behind_one_another_leave_together() {
    const WATCHERS: u32 = 2_000;
    let mut world = World::new(WatchConfig::default(), 10_000);
    let key = key("a", "one");
    world.put(&key, "n", 1);
    let mut clients: Vec<_> = (0..WATCHERS).map(|_| world.open()).collect();
    for client in &mut clients {
        client.follow(follow(1, Target::Service(key.clone())));
        client.read_all();
    }
    let (applied, following) = watch::channel(AppliedHead::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(following, stop.clone()));
    let mut weight = 1;
    let mut change = |world: &mut World| {
        weight += 1;
        let revision = world.put(&key, "n", weight);
        applied.send_replace(AppliedHead {
            revision,
            position: None,
        });
        revision
    };
    let rest = REST_PER_STREAM * WATCHERS;
    assert!(rest > REST_MIN && rest < REST_MAX);
    for changes in [10, 200] {
        let began = Instant::now();
        let first = change(&mut world);
        clients[0].read_until_delta().await;
        assert_eq!(world.hub.settled(), first);
        let before = clients[0].deltas();
        for _ in 0..changes {
            change(&mut world);
            tokio::task::yield_now().await;
        }
        let told = world.hub.settled();
        assert!(told == first || began.elapsed() > rest, "the hub rests");
        while clients[0].deltas() < before + changes {
            clients[0].read_until_delta().await;
        }
        assert!(began.elapsed() > rest, "{:?}", began.elapsed());
        clients.iter_mut().for_each(Client::read_all);
        assert!(clients.iter().all(|client| client.deltas() == before + changes));
        tokio::time::sleep(REST_MAX).await;
    }
    stop.cancel();
    running.await.unwrap();
}
