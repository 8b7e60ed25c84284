//! Whatever happens: random histories, and readers on other threads.

use rollcall_core::ids::{Revision, SessionId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::world::{World, follow, key, small, truth};
use crate::raft::AppliedHead;
use crate::watch::{Subscription, Target};
/// Random histories, readers of random speed, disconnects and resumes: every client's picture is the
/// directory's, and no guarantee is broken on the way ([`Client::take`] checks).
#[tokio::test]
async fn whatever_happens_pictures_end_up_equal() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut world = World::new(small(), 5 + random.below(60));
        let services = [
            key("a", "one"),
            key("a", "two"),
            key("a/b", "one"),
            key("c", "one"),
        ];
        let targets = [
            Target::Prefix(String::new()),
            Target::Prefix("a".into()),
            Target::Prefix("a/b".into()),
            Target::Service(services[0].clone()),
        ];
        let mut clients: Vec<(usize, Client)> = Vec::new();
        for _ in 0..400 {
            match random.below(14) {
                10 => {
                    let node = format!("e{}", random.below(9));
                    _ = world.join(&services[random.below(4)], &node);
                }
                11 => {
                    let open: Vec<SessionId> = {
                        let directory = world.directory.read();
                        directory.sessions().map(|session| session.id).collect()
                    };
                    let some = random.below(3) == 0;
                    let lapsed = open.iter().filter(|id| some || id.0 % 3 == 0);
                    world.lapse(&lapsed.copied().collect::<Vec<_>>());
                }
                12 => world.revive(),
                13 if random.below(2) == 0 => world.close_windows(),
                13 => world.confirm(&services[random.below(4)]),
                0..=3 => {
                    _ = world.put(
                        &services[random.below(4)],
                        &format!("n{}", random.below(5)),
                        random.below(9) as u16,
                    )
                }
                4 => _ = world.remove(&services[random.below(4)], &format!("n{}", random.below(5))),
                5 => {
                    let service = &services[random.below(4)];
                    (0..5).for_each(|node| _ = world.remove(service, &format!("n{node}")));
                    (0..9).for_each(|node| _ = world.remove(service, &format!("e{node}")));
                    world.delete(service);
                }
                6 => world.pull(),
                7 if clients.len() < 6 => {
                    let target = random.below(4);
                    let client = world.open();
                    client.follow(follow(1, targets[target].clone()));
                    clients.push((target, client));
                }
                8 if !clients.is_empty() => {
                    let at = random.below(clients.len());
                    clients[at].1.read();
                }
                9 if !clients.is_empty() => {
                    let at = random.below(clients.len());
                    let (target, old) = clients.swap_remove(at);
                    let mut client = world.open();
                    client.services = old.services.clone();
                    // Between the snapshots of a catch-up there is no revision to resume from.
                    let after = if old.resume == old.last {
                        Revision(old.resume)
                    } else {
                        Revision(0)
                    };
                    client.follow(Subscription {
                        after,
                        known: old.known(),
                        ..follow(1, targets[target].clone())
                    });
                    clients.push((target, client));
                }
                _ => _ = world.hub.bookmark(),
            }
        }
        world.pull();
        for (target, client) in &mut clients {
            client.read_all();
            assert_eq!(client.picture(), world.truth(&targets[*target]), "seed {seed}");
            kinds.extend(client.log.iter().copied());
        }
    }
    assert_eq!(
        kinds.len(),
        7,
        "every kind of frame should have come up: {kinds:?}"
    );
}

/// Readers, subscribers, the hub and a writer on threads of their own: the guarantees hold whoever is faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_on_other_threads_get_whole_revisions_in_order() {
    const WRITES: u16 = 3_000;
    let mut world = World::new(small(), 200);
    let (hub, directory) = (world.hub.clone(), world.directory.clone());
    let (head, applied) = watch::channel(AppliedHead::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(hub.clone().run(applied, stop.clone()));
    let targets = [
        Target::Prefix(String::new()),
        Target::Prefix("a".into()),
        Target::Service(key("a", "one")),
    ];
    let readers: Vec<_> = (0..6)
        .map(|reader| {
            let target = targets[reader % 3].clone();
            let (mut client, directory) = (world.open(), directory.clone());
            tokio::spawn(async move {
                client.follow(follow(1, target.clone()));
                loop {
                    let truth = truth(&directory, &target);
                    let done = directory.read().revision().0 >= u64::from(WRITES);
                    client.read_all();
                    if done && client.picture() == truth {
                        return;
                    }
                    tokio::time::sleep(std::time::Duration::from_micros(50 * reader as u64)).await;
                }
            })
        })
        .collect();
    let writing = tokio::task::spawn_blocking(move || {
        let services = [key("a", "one"), key("a/b", "two"), key("c", "three")];
        for write in 0..WRITES {
            let revision = world.put(
                &services[usize::from(write % 3)],
                &format!("n{}", write % 7),
                write,
            );
            head.send_replace(AppliedHead {
                revision,
                position: None,
            });
        }
        (world, head)
    });
    let kept = writing.await.unwrap();
    for reader in readers {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), reader).await;
        ended.expect("every reader ends up with the truth").unwrap();
    }
    stop.cancel();
    running.await.unwrap();
    drop(kept);
}

/// A small generator, so that a seed tells the whole story.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}
