//! The storm switch: full lists wait for their turn, changes for more of them.

use std::time::Duration;

use rollcall_core::directory::Sign;
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_core::storm::{Mode, Share};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::world::{World, follow, key};
use crate::config::{StormConfig, WatchConfig};
use crate::raft::AppliedHead;
use crate::watch::{KnownSigns, Subscription, Target};
/// One in ten thousand: whoever asks in a test has to wait.
fn nobody() -> Mode {
    Mode::On {
        share: Share::from_basis_points(1).unwrap(),
    }
}

fn everybody() -> Mode {
    Mode::On {
        share: Share::from_basis_points(10_000).unwrap(),
    }
}

#[tokio::test]
async fn who_has_another_list_waits_its_turn_and_keeps_what_it_has() {
    let mut world = World::new(WatchConfig::default(), 4);
    let key = key("a", "one");
    let target = Target::Service(key.clone());
    world.put(&key, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, target.clone()));
    client.read_all();
    let (known, resume) = (client.known(), Revision(client.resume));
    drop(client);
    world.set_storm(nobody());

    // An equal sign costs nothing and is no question.
    let mut client = world.open();
    let again = |id, known: &KnownSigns, after| Subscription {
        after,
        known: known.clone(),
        ..follow(id, target.clone())
    };
    assert!(!client.handle.must_wait(&again(1, &known, Revision(0))).await);
    // Nor is a resume from retained changes.
    world.put(&key, "n2", 1);
    assert!(!client.handle.must_wait(&again(1, &known, resume)).await);
    // A full list is one.
    assert!(client.handle.must_wait(&again(2, &known, Revision(0))).await);
    client.read_all();
    assert!(client.log.is_empty(), "{:?}", client.log);
    let keep = client.kept.pop().unwrap();
    assert!(keep.subscription == 2 && keep.retry_after_ms > 0, "{keep:?}");
    let status = world.storm.status();
    assert_eq!((status.served, status.kept), (0, 1));

    // A cold one passes through the bucket.
    let cold = follow(3, target.clone());
    assert!(!client.handle.must_wait(&cold).await);
    client.follow(cold);
    client.read_all();
    assert_eq!(client.picture(), world.truth(&target));

    // Switched off, nobody waits.
    world.set_storm(Mode::Off);
    assert!(!client.handle.must_wait(&again(4, &known, Revision(0))).await);
}

/// It would have lists instead.
#[tokio::test]
async fn who_resumes_behind_more_changes_than_fit_waits_its_turn() {
    let limits = WatchConfig {
        backlog_frames: 8,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 1_000);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    let resumed = Subscription {
        after: Revision(client.resume),
        known: client.known(),
        ..follow(1, Target::Service(one.clone()))
    };
    drop(client);
    world.set_storm(nobody());
    for (weight, waits) in [(2..6, false), (6..7, true)] {
        weight.for_each(|weight| _ = world.put(&one, "n1", weight));
        let client = world.open();
        assert_eq!(client.handle.must_wait(&resumed).await, waits);
    }
}

#[tokio::test]
async fn changes_of_a_round_leave_as_one_for_each_service() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let (one, other) = (key("a", "one"), key("a/b", "two"));
    let target = Target::Prefix("a".into());
    world.put(&one, "n1", 1);
    world.put(&other, "n1", 1);
    let mut client = world.open();
    client.merged = true;
    client.follow(follow(1, target.clone()));
    client.read_all();
    world.set_storm(everybody());
    world.pull();
    client.log.clear();
    for weight in 1..50 {
        world.put(&one, "n1", weight);
        world.put(&one, "n2", weight);
    }
    world.put(&other, "n3", 1);
    world.remove(&one, "n2");
    // It goes and comes back.
    world.remove(&other, "n1");
    world.remove(&other, "n3");
    world.delete(&other);
    world.put(&other, "n4", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log, ["delta", "gone", "delta"]);
    assert_eq!(client.picture(), world.truth(&target));
    assert!(world.storm.status().coalesced > 90);

    // Resuming behind what came last misses nothing.
    let resume = Revision(client.resume);
    world.put(&one, "n5", 1);
    client.handle.unsubscribe(1);
    client.follow(Subscription {
        after: resume,
        ..follow(2, target.clone())
    });
    client.read_all();
    assert_eq!(client.picture(), world.truth(&target));
}

#[tokio::test]
async fn changes_wait_for_more_but_not_for_ever() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let key = key("a", "one");
    world.put(&key, "n1", 1);
    world.set_storm(everybody());
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key.clone())));
    client.read_all();
    client.log.clear();
    let head = AppliedHead::default();
    let (applied, following) = watch::channel(head);
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(following, stop.clone()));
    let began = Instant::now();
    for weight in 2..5 {
        let revision = world.put(&key, "n1", weight);
        applied.send_replace(AppliedHead { revision, ..head });
        tokio::task::yield_now().await;
        client.read_all();
        assert_eq!(client.deltas(), 0);
    }
    client.read_until_delta().await;
    let waited = began.elapsed();
    let delay_max = StormConfig::default().delay_max;
    assert!(waited >= delay_max && waited < delay_max * 10, "{waited:?}");
    assert_eq!(client.deltas(), 1);
    // Off: at once.
    world.set_storm(Mode::Off);
    let revision = world.put(&key, "n1", 9);
    let began = Instant::now();
    applied.send_replace(AppliedHead { revision, ..head });
    client.read_until_delta().await;
    assert!(began.elapsed() < delay_max, "{:?}", began.elapsed());
    assert_eq!(client.deltas(), 2);
    stop.cancel();
    running.await.unwrap();
}

/// It waits for changes to leave for as long as it takes until everyone has had a turn.
#[tokio::test]
async fn whoever_waits_for_a_round_does_not_miss_its_turn_meanwhile() {
    let epoch = Duration::from_millis(100);
    let storm = StormConfig {
        epoch,
        delay_max: epoch * 2,
        ..StormConfig::default()
    };
    let mut world = World::with_storm(WatchConfig::default(), 1_000, &storm);
    let keys = ["one", "two", "three"].map(|service| key("a", service));
    for key in &keys {
        world.put(key, "n1", 1);
    }
    world.pull();
    world.set_storm(Mode::On {
        share: Share::from_basis_points(5_000).unwrap(),
    });
    // It does not leave.
    world.put(&key("c", "busy"), "n1", 1);
    let other = keys.iter().map(|key| (key.clone(), Sign::default()));
    let other = KnownSigns::new(other.collect());
    let asking = (0..16).map(|number| {
        let client = world.open();
        client.handle.name_consumer(&format!("consumer {number}"));
        let (keys, other) = (&keys, &other);
        async move {
            let mut waits = Vec::new();
            // One behind the other, as a stream asks.
            for (id, key) in (1..).zip(keys) {
                let asked = Subscription {
                    known: other.clone(),
                    ..follow(id, Target::Service(key.clone()))
                };
                waits.push(client.handle.must_wait(&asked).await);
            }
            assert_eq!(waits, [false; 3], "consumer {number}");
        }
    });
    futures_util::future::join_all(asking).await;
    assert_eq!(world.storm.status().served, 16 * 3);
}

/// A client with many services does not wait for a round with each of them, though something changes before each.
#[tokio::test]
async fn subscriptions_in_a_row_wait_for_one_round() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let keys: Vec<ServiceKey> = (1..=50).map(|n| key("a", &format!("s{n}"))).collect();
    for key in &keys {
        world.put(key, "n1", 1);
    }
    let known = world.truth(&Target::Prefix("a".into())).into_iter();
    let known = KnownSigns::new(known.map(|(key, (sign, ..))| (key, sign)).collect());
    let client = world.open();
    world.set_storm(everybody());
    let head = AppliedHead::default();
    let (applied, following) = watch::channel(head);
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(following, stop.clone()));
    let beginning = async {
        for (number, service) in (1..).zip(&keys) {
            let revision = world.put(&key("c", "busy"), "n1", number);
            applied.send_replace(AppliedHead { revision, ..head });
            let again = Subscription {
                known: known.clone(),
                ..follow(number.into(), Target::Service(service.clone()))
            };
            assert!(!client.handle.must_wait(&again).await);
            client.handle.subscribe(again).unwrap();
        }
    };
    let bound = StormConfig::default().delay_max * 3;
    let begun = tokio::time::timeout(bound, beginning).await;
    assert!(begun.is_ok(), "they should all have begun within {bound:?}");
    stop.cancel();
    running.await.unwrap();
}
