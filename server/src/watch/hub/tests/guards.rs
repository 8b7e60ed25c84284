//! What removal guards say.

use prost::Message;
use rollcall_core::ids::{Revision, SessionId};
use rollcall_proto::v1;

use super::client::Client;
use super::world::{World, follow, key};
use crate::config::WatchConfig;
use crate::watch::{Subscription, Target};
#[tokio::test]
async fn what_a_guard_says_reaches_watchers_also_when_no_node_changes() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    let sessions: Vec<SessionId> = (0..10).map(|n| world.join(&one, &format!("n{n}"))).collect();
    let target = Target::Service(one.clone());
    let (mut client, mut other) = (world.open(), world.open());
    client.follow(follow(1, target.clone()));
    other.follow(follow(1, target.clone()));
    let guard = |client: &Client| client.services[&one].guard;
    let said = |world: &World| {
        let service = world.directory.read().service(&one).cloned().unwrap();
        let bytes = world.hub.view(&service);
        v1::ServiceView::decode(bytes).unwrap().guard
    };
    client.read_all();
    assert_eq!((guard(&client), said(&world)), (None, None));

    // Two of ten may go: a window begins.
    world.lapse(&sessions[..2]);
    world.pull();
    client.read_all();
    let window = guard(&client).expect("a window is under way");
    assert_eq!((window.removed, window.engaged), (2, false));
    assert_eq!(said(&world), Some(window));

    // Of the rest five lapse at once: held. And one joins: its counts are told too.
    world.lapse(&sessions[2..7]);
    world.join(&one, "n10");
    world.pull();
    client.read_all();
    let engaged = guard(&client).unwrap();
    assert!(engaged.engaged && engaged.engaged_since > 0, "{engaged:?}");
    assert_eq!((engaged.held, engaged.up, engaged.listed), (5, 4, 9));
    assert_eq!(said(&world), Some(engaged));
    assert_eq!(client.picture(), world.truth(&target));

    // The window ends: no node changes, the sign stays, and yet everyone learns of it; the cached view as well.
    let sign = client.services[&one].sign;
    let resume = Revision(client.resume);
    world.close_windows();
    world.pull();
    client.read_all();
    assert_eq!(guard(&client).unwrap().window_began, 0);
    assert_eq!(client.services[&one].sign, sign);
    assert_eq!(said(&world), guard(&client));
    // Who resumes gets it too, from retained changes or by its equal sign.
    let held = |guard| {
        let mut held = client.services.clone();
        held.get_mut(&one).unwrap().guard = guard;
        held
    };
    for (after, log) in [(resume, &["delta", "resumed"][..]), (Revision(0), &["current"])] {
        let mut again = world.open();
        again.services = held(Some(engaged));
        again.follow(Subscription {
            after,
            known: client.known(),
            ..follow(1, target.clone())
        });
        again.read_all();
        assert_eq!(again.log, log);
        assert_eq!(again.picture(), world.truth(&target));
    }

    // An operator confirms: nothing is left to say, and a laggard's snapshot says nothing either.
    world.confirm(&one);
    for client in [&mut client, &mut other] {
        world.pull();
        client.read_all();
        assert_eq!(guard(client), None);
        assert_eq!(client.picture(), world.truth(&target));
    }
    assert_eq!(said(&world), None);
}
