//! Rounds, piece by piece.

use std::pin::pin;

use rollcall_core::ids::Revision;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::round::REVISIONS_PER_ROUND;
use super::world::{World, follow, key};
use crate::config::WatchConfig;
use crate::raft::AppliedHead;
use crate::watch::Target;

/// One word that something has changed is enough, however much it is.
#[tokio::test]
async fn round_follows_round_until_all_has_left() {
    let mut world = World::new(WatchConfig::default(), 10_000);
    let key = key("a", "one");
    world.put(&key, "n", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key.clone())));
    client.read_all();
    let (applied, following) = watch::channel(AppliedHead::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(following, stop.clone()));
    let changes = 3 * REVISIONS_PER_ROUND;
    let mut revision = Revision(0);
    for weight in 0..changes {
        revision = world.put(&key, "n", u16::try_from(weight).unwrap());
    }
    applied.send_replace(AppliedHead {
        revision,
        position: None,
    });
    while client.deltas() < changes {
        client.read_until_delta().await;
    }
    stop.cancel();
    running.await.unwrap();
}
/// Whoever is told of one change while the next is being offered finds that, and cannot take it yet; and nobody tells him again.
#[tokio::test]
async fn a_change_that_comes_while_its_reader_looks_is_not_left_lying() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let key = key("a", "one");
    world.put(&key, "n", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key.clone())));
    client.read_all();
    let before = client.deltas();
    let settled = world.hub.settled();
    let revisions = [world.put(&key, "n", 2), world.put(&key, "n", 3)];
    let inner = world.hub.inner.clone();
    let changes = inner.directory.read().changes().range(settled, 2).unwrap();
    {
        let mut state = inner.state.lock();
        inner.offer(&mut state, &changes[0]);
        inner.settle(&mut state, revisions[0]);
        let told = std::mem::take(&mut state.woken);
        inner.offer(&mut state, &changes[1]);
        assert_eq!((told.len(), state.woken.len()), (1, 0));
    }
    client.read_until_delta().await;
    assert_eq!(client.deltas(), before + 1);
    {
        let mut next = pin!(client.read_until_delta());
        let early = futures_util::poll!(&mut next);
        assert!(early.is_pending(), "it is not offered whole");
        inner.settle(&mut inner.state.lock(), revisions[1]);
        next.await;
    }
    assert_eq!(client.deltas(), before + 2);
}

/// A piece is a part of what fits into a message: several together still do.
#[tokio::test]
async fn revisions_in_a_piece_are_bounded_by_their_bytes() {
    let limits = WatchConfig {
        response_bytes: 800,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 1_000);
    let one = key("a", "one");
    world.put(&one, "n", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    for weight in 2..32 {
        world.put(&one, "n", weight);
    }
    world.pull();
    let backlog = client.handle.shared.backlog.lock();
    let (items, (frames, bytes)) = (backlog.items(), backlog.waiting());
    assert_eq!(frames, 30);
    assert!(items > bytes / 400, "{bytes} bytes in {items} pieces");
    assert!(items < frames, "they are pieces");
}

/// Revisions in a row of one service wait as one piece, bounded like any other; where something else happened in between,
/// they do not.
#[tokio::test]
async fn revisions_of_one_service_are_told_in_one_piece() {
    let limits = WatchConfig {
        backlog_frames: 16,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 1_000);
    let (one, other) = (key("a", "one"), key("a", "two"));
    world.put(&one, "n", 1);
    world.put(&other, "n", 1);
    let all = Target::Prefix("a".into());
    let mut of_one = world.open();
    of_one.follow(follow(1, Target::Service(one.clone())));
    // Twice: what it follows in two ways it is told once.
    of_one.follow(follow(2, all.clone()));
    let mut of_all = world.open();
    of_all.follow(follow(1, all.clone()));
    for client in [&mut of_one, &mut of_all] {
        client.read_all();
        client.log.clear();
    }
    for weight in 2..12 {
        world.put(&one, "n", weight);
    }
    world.put(&other, "n", 2);
    world.put(&one, "n", 20);
    world.pull();
    let items = of_all.handle.shared.backlog.lock().items();
    assert_eq!(items, 5, "ten by four, and two");
    for client in [&mut of_one, &mut of_all] {
        assert_eq!(client.handle.shared.backlog.lock().waiting().0, 12);
        client.read_all();
        assert_eq!(client.log, ["delta"; 12]);
        assert_eq!(client.picture(), world.truth(&all));
        client.log.clear();
    }
    // What does not fit becomes state.
    for weight in 100..120 {
        world.put(&one, "n", weight);
    }
    world.pull();
    of_all.read_all();
    assert_eq!(of_all.log, ["lagged", "bookmark"]);
    assert_eq!(of_all.picture(), world.truth(&all));
}
