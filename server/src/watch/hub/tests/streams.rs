//! Streams that come, lag, hoard, end.

use std::time::Duration;

use futures_util::FutureExt;
use prost::Message;
use rollcall_core::directory::GroupMode;
use rollcall_core::ids::Revision;
use rollcall_proto::v1::{self, watch_frame::Frame};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::world::{World, follow, key, small};
use crate::config::{StormConfig, WatchConfig};
use crate::watch::{Convergence, KnownSigns, StreamEnd, Subscription, Target};

#[tokio::test]
async fn nothing_begins_on_a_stream_that_has_ended() {
    let mut world = World::new(small(), 100);
    let one = key("a", "one");
    let put = world.put(&one, "n1", 1);
    let client = world.open();
    let handle = client.handle.clone();
    drop(client);
    handle.subscribe(follow(1, Target::Service(one.clone()))).unwrap();
    assert_eq!(world.hub.convergence(&[one], put).subscribers, 0);
    assert!(handle.shared.backlog.lock().subscriptions.is_empty());
}

#[tokio::test]
async fn who_asks_for_lists_and_reads_none_is_asked_to_read_first() {
    let mut world = World::new(WatchConfig::default(), 100);
    let everything = Target::Prefix(String::new());
    for service in 0..200 {
        world.put(&key("a", &format!("s{service}")), "n1", 1);
    }
    let mut client = world.open();
    let may_ask = |client: &Client| client.handle.has_been_read().now_or_never().is_some();
    let mut asked = 0;
    while asked < 100 && may_ask(&client) {
        asked += 1;
        client.follow(follow(asked, everything.clone()));
    }
    assert!((10..60).contains(&asked), "{asked} lists of 200 services wait");
    // It waits in a task; whoever reads lets it go on.
    let handle = client.handle.clone();
    let waiting = tokio::spawn(async move { handle.has_been_read().await });
    tokio::task::yield_now().await;
    client.read_all();
    let went_on = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    went_on.expect("told").unwrap();
    assert_eq!(client.picture(), world.truth(&everything));

    // Those that start anew together share one list.
    client.handle.shared.backlog.lock().owe_all();
    world.hub.catch_up(&client.handle.shared);
    assert_eq!(client.handle.shared.backlog.lock().lists(), 1);
}

/// Each state that waits is another one, which nobody else keeps.
#[tokio::test]
async fn who_asks_for_a_large_service_again_and_again_and_reads_nothing_is_asked_to_read_first() {
    let mut world = World::new(WatchConfig::default(), 10_000);
    let one = key("a", "one");
    for node in 0..640 {
        world.put(&one, &format!("n{node}"), 1);
    }
    let mut client = world.open();
    let mut asked = 0;
    while asked < 2_000 && client.handle.has_been_read().now_or_never().is_some() {
        asked += 1;
        world.put(&one, "n0", 1 + asked as u16);
        client.follow(follow(asked, Target::Service(one.clone())));
        client.handle.unsubscribe(asked);
    }
    assert!((500..1_000).contains(&asked), "{asked} states of 640 nodes wait");
    client.read_all();
    assert!(client.handle.has_been_read().now_or_never().is_some());
}

/// The client names it to the next server, which must not say of what it has not heard of that it is gone.
#[tokio::test]
async fn who_starts_anew_is_told_by_which_revision_it_was_sent_here() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    let client = world.open();
    client.follow(Subscription {
        directory: Revision(9),
        ..follow(1, Target::Service(one.clone()))
    });
    let shared = client.handle.shared.clone();
    shared.backlog.lock().owe_all();
    world.hub.catch_up(&shared);
    let started = shared.backlog.lock().sent_by();
    assert_eq!(started, [Revision(9)]);
}

/// Behind one list the next waits for hours.
fn slow() -> StormConfig {
    StormConfig {
        lists_bytes_per_second: 1,
        egress_bytes_per_second: 1,
        ..StormConfig::default()
    }
}

/// One who follows a service of so many nodes, whose list will wait for hours.
async fn waiting_for_a_list(limits: WatchConfig, nodes: u16) -> (World, Client) {
    let mut world = World::with_storm(limits, 100, &slow());
    let one = key("a", "one");
    for node in 0..nodes {
        world.put(&one, &format!("n{node}"), 1);
    }
    drop(world.storm.list_turn(10_000).await);
    let client = world.open();
    client.follow(follow(1, Target::Service(one)));
    (world, client)
}

#[tokio::test]
async fn who_is_told_to_end_waits_for_no_list_any_more() {
    let (world, mut client) = waiting_for_a_list(WatchConfig::default(), 1).await;
    let mut next = Box::pin(client.stream.next());
    assert!(
        futures_util::poll!(&mut next).is_pending(),
        "it waits for its turn"
    );
    world.hub.close(&[], 0);
    let said = tokio::time::timeout(Duration::from_secs(60), next).await;
    let frames = said.expect("at once").unwrap().unwrap().frames;
    let frames: Vec<_> = frames
        .into_iter()
        .map(|frame| v1::WatchFrame::decode(frame).unwrap().frame.unwrap())
        .collect();
    assert!(matches!(frames.as_slice(), [Frame::MoveOn(_)]), "{frames:?}");
}

#[tokio::test]
async fn a_reader_is_not_cut_off_for_what_waits_here() {
    let limits = WatchConfig {
        stall_max: Duration::ZERO,
        ..small()
    };
    let (world, mut client) = waiting_for_a_list(limits, 20).await;
    {
        let mut next = Box::pin(client.stream.next());
        assert!(
            futures_util::poll!(&mut next).is_pending(),
            "it waits for its turn"
        );
        world.hub.bookmark();
    }
    assert!(!client.handle.shared.cut.is_cancelled());
}

#[tokio::test]
async fn a_laggard_gets_the_current_state_once_and_costs_a_bounded_backlog() {
    let mut world = World::new(small(), 10_000);
    let (one, two) = (key("a", "one"), key("a", "two"));
    let mut slow = world.open();
    let mut quick = world.open();
    for client in [&slow, &quick] {
        client.follow(follow(1, Target::Prefix("a".into())));
    }
    slow.read_all();
    quick.read_all();
    for weight in 0..500 {
        world.put(&one, "n1", weight);
        world.put(&two, "n1", weight);
        world.pull();
        quick.read_all();
        let (frames, _) = slow.handle.shared.backlog.lock().waiting();
        assert!(frames <= 8, "{frames} frames wait");
    }
    assert_eq!(quick.log.len(), 1_001, "the laggard cost another its changes");
    slow.read_all();
    assert_eq!(slow.log, ["current", "lagged", "lagged", "bookmark"]);
    assert_eq!(slow.picture(), world.truth(&Target::Prefix("a".into())));
    // And from here on changes again.
    world.put(&one, "n2", 1);
    world.pull();
    slow.read_all();
    assert_eq!(slow.log.last(), Some(&"delta"));
}

#[tokio::test]
async fn a_hub_that_fell_below_the_changes_starts_everyone_from_state() {
    let mut world = World::new(WatchConfig::default(), 4);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    world.put(&key("a", "two"), "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Prefix("a".into())));
    client.read_all();
    for weight in 0..50 {
        world.put(&one, "n1", weight);
    }
    world.pull();
    client.read_all();
    assert_eq!(
        client.log,
        [
            "snapshot", "snapshot", "current", "lagged", "lagged", "current", "bookmark"
        ]
    );
    assert_eq!(client.picture(), world.truth(&Target::Prefix("a".into())));
}

#[tokio::test]
async fn streams_are_bounded_and_make_room_when_they_end() {
    let world = World::new(
        WatchConfig {
            streams_max: 1,
            ..small()
        },
        100,
    );
    let client = world.open();
    client.follow(follow(1, Target::Prefix(String::new())));
    assert!(
        world
            .hub
            .open("", v1::ResponseHeader::default(), CancellationToken::new())
            .is_err()
    );
    drop(client);
    assert_eq!(world.hub.streams(), 0);
    world.open();
}

#[tokio::test]
async fn a_client_that_asks_without_reading_is_sent_away() {
    let world = World::new(
        WatchConfig {
            subscriptions_max: 4,
            ..small()
        },
        100,
    );
    let mut client = world.open();
    for _ in 0..200 {
        client.handle.reject(1, v1::Error::default());
    }
    assert!(matches!(
        client.stream.next().await,
        Some(Err(StreamEnd::Unread { .. }))
    ));
    assert!(client.stream.next().await.is_none());
}

#[tokio::test]
async fn closing_tells_every_stream_where_to_go_and_when() {
    let world = World::new(small(), 100);
    let mut first = world.open();
    let mut second = world.open();
    let servers = ["a:1".to_owned(), "b:1".to_owned()];
    world.hub.close(&servers, 1_000);
    // They are few, so they need not be spread over the whole second.
    for (client, after_ms, server) in [(&mut first, 0, "a:1"), (&mut second, 2, "b:1")] {
        let response = client.stream.next().await.unwrap().unwrap();
        let frame = v1::WatchFrame::decode(response.frames[0].clone()).unwrap().frame;
        let Some(Frame::MoveOn(advice)) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!((advice.after_ms, advice.servers[0].as_str()), (after_ms, server));
        assert!(client.stream.next().await.is_none());
    }
}

#[tokio::test]
async fn convergence_counts_acknowledgements() {
    let mut world = World::new(small(), 100);
    let one = key("a", "one");
    let revision = world.put(&one, "n1", 1);
    let two = key("a", "two");
    let keys = [one.clone(), two];
    let (first, second) = (world.open(), world.open());
    first.handle.name("first");
    second.handle.name("second");
    first.follow(follow(1, Target::Service(one.clone())));
    second.follow(follow(1, Target::Prefix("a".into())));
    second.follow(follow(2, Target::Service(one.clone())));
    let behind = |name: &str| (name.to_owned(), Revision(0), GroupMode::Cp);
    assert_eq!(
        world.hub.convergence(&keys, revision),
        Convergence {
            subscribers: 2,
            current: 0,
            oldest: Some(Revision(0)),
            behind: vec![behind("first"), behind("second")],
        }
    );
    first.handle.ack(revision);
    let half = world.hub.convergence(&keys, revision);
    assert_eq!(
        (half.current, half.behind.as_slice()),
        (1, &[behind("second")][..])
    );
    assert!(!half.complete());
    second.handle.ack(revision);
    assert!(world.hub.convergence(&keys, revision).complete());
    assert_eq!(
        world.hub.convergence(&[key("b", "one")], revision),
        Convergence::default()
    );
}

#[tokio::test]
async fn large_services_wait_for_their_turn_and_a_reader_that_hoards_one_is_cut_off() {
    let limits = WatchConfig {
        response_bytes: 100,
        large_bytes_max: 500,
        stall_max: Default::default(),
        ..small()
    };
    let mut world = World::new(limits, 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    world.put(&one, "n2", 1);
    let (mut first, mut second) = (world.open(), world.open());
    first.follow(follow(1, Target::Service(one.clone())));
    second.follow(follow(1, Target::Service(one.clone())));
    assert!(first.read());
    assert!(!second.read(), "there is room for one at a time");
    world.hub.bookmark();
    assert!(first.handle.shared.cut.is_cancelled() && !second.handle.shared.cut.is_cancelled());
    drop(first);
    second.read_all();
    assert_eq!(second.log, ["snapshot", "current", "bookmark"]);
}

/// Who holds every list already is told the names alone.
#[tokio::test]
async fn many_names_wait_for_their_turn_like_a_list_and_few_do_not() {
    let mut world = World::with_storm(small(), 100, &slow());
    for number in 0..40 {
        world.put(&key("a", &format!("service-{number}")), "n1", 1);
    }
    world.put(&key("c", "one"), "n1", 1);
    drop(world.storm.list_turn(10_000).await);
    let begins_at_once = |prefix: &str| {
        let target = Target::Prefix(prefix.into());
        let known = world.truth(&target).into_iter();
        let mut client = world.open();
        client.follow(Subscription {
            known: KnownSigns::new(known.map(|(key, (sign, ..))| (key, sign)).collect()),
            ..follow(1, target)
        });
        tokio::task::unconstrained(client.stream.next())
            .now_or_never()
            .is_some()
    };
    assert!(begins_at_once("c"));
    assert!(!begins_at_once("a"));
}

#[tokio::test]
async fn a_bookmark_says_only_what_was_sent_before_it() {
    let mut world = World::new(small(), 100);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key("a", "one"))));
    client.read_all();
    let head = world.put(&key("c", "elsewhere"), "n1", 1);
    world.pull();
    world.hub.bookmark();
    client.read_all();
    assert_eq!(client.resume, head.0);
    world.hub.bookmark();
    assert!(!client.read(), "nothing new, nothing said");
}
