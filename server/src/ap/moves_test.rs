//! Groups that move, on three whole servers in this process.

use std::time::Duration;

use rollcall_core::ap::Bucket;
use rollcall_core::directory::{Command, Expected, GroupMode, GroupSettings, Override};
use rollcall_core::ids::{GroupName, NodeKey, Revision, ServerId};
use rollcall_proto::v1::ApPushRequest;
use rollcall_proto::v1::ap_server::Ap as _;
use tokio::time::Instant;

use super::cluster_test::{Cluster, deregister, eventually, listed, register, service, soon, write};
use super::{Ap, ApDoor};

/// A clock that is ahead by more than is believed.
const AHEAD_MS: i64 = 3_600_000;

async fn move_to(ap: &Ap, mode: GroupMode) {
    let moved = ap.move_group(&service().group, mode, soon()).await;
    assert!(moved.expect("it is moved").changed);
}

/// Defines another group; every server has taken that in.
async fn define(cluster: &Cluster, group: &str) {
    let group: GroupName = group.parse().expect("a good name");
    let settings = GroupSettings {
        mode: GroupMode::Ap,
        ..GroupSettings::default()
    };
    let command = Command::PutGroup {
        group: group.clone(),
        settings,
        expected: Expected::Any,
    };
    cluster.propose(command).await;
    for server in cluster.running() {
        let is_there = || server.ap().view().read().group(&group).is_some();
        eventually("it is defined", is_there).await;
    }
}

/// The clocks of the two that moved it are ahead of the third's, so this one can ask, and may take nothing: what it has
/// of the group stays incomplete for as long as the test wants.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_missed_a_move_shows_nothing_of_the_group_until_it_has_all_of_it() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let ids: Vec<String> = (0..20).map(|number| format!("n{number:02}")).collect();
    for id in &ids {
        write(cluster.ap(1), register(None, id)).await;
    }
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    cluster.wait_listed(&all).await;
    move_to(cluster.ap(1), GroupMode::Cp).await;
    for server in cluster.running() {
        let is_forgotten = || server.ap().status().records == 0;
        eventually("the records are forgotten", is_forgotten).await;
    }
    cluster.end(3).await;
    for id in [1, 2] {
        cluster.ap(id).shift_clock(AHEAD_MS);
    }
    let is_gone = || {
        cluster
            .ap(1)
            .inner
            .gone_since(ServerId(3), std::time::Instant::now())
    };
    eventually("the third is known to be gone", || is_gone().is_some()).await;
    move_to(cluster.ap(1), GroupMode::Ap).await;
    cluster.begin(3).await;

    let ap = cluster.ap(3);
    let is_there = || ap.view().read().group(&service().group).is_some();
    // As a door asks before it reads.
    let check = || {
        let shown = is_there() && ap.is_loaded();
        assert!(!shown || listed(ap) == all, "it shows {:?}", listed(ap));
        shown
    };
    eventually("the group is known to be here", || check() || is_there()).await;
    let asked = ap.inner.metrics.comparisons.get();
    let has_asked = || check() || ap.inner.metrics.comparisons.get() >= asked + 5;
    eventually("it has asked again and again", has_asked).await;
    assert!(!check(), "it had nothing to show");
    assert_eq!(ap.agreed(), None);
    ap.shift_clock(AHEAD_MS);
    eventually("all of it is shown", check).await;
    assert!(
        !ap.inner.misses_records(),
        "it is shown because it is here, not because time is up"
    );
    cluster.wait_listed(&all).await;
    cluster.stop().await;
}

/// The third went on alone while the others moved the group and were off for so long that it knows better than they do, but of
/// that group: it was the only one to be asked, and they dropped the group with all else.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_stays_whose_move_was_missed_by_the_only_server_that_went_on() {
    let retention = Duration::from_secs(12);
    let mut cluster = Cluster::start(3, |config| config.ap.tombstone_retention = retention).await;
    for id in ["a", "b"] {
        write(cluster.ap(1), register(None, id)).await;
    }
    cluster.wait_listed(&["a", "b"]).await;
    // An empty one that moved leaves no trace: whoever is started anew misses it.
    define(&cluster, "empty").await;
    let empty: GroupName = "empty".parse().expect("a good name");
    for mode in [GroupMode::Cp, GroupMode::Ap] {
        let moved = cluster.ap(1).move_group(&empty, mode, soon()).await;
        assert!(moved.expect("it is moved").changed);
    }
    move_to(cluster.ap(1), GroupMode::Cp).await;
    for server in cluster.running() {
        let is_forgotten = || server.ap().status().records == 0;
        eventually("the records are forgotten", is_forgotten).await;
    }
    cluster.end(3).await;
    move_to(cluster.ap(1), GroupMode::Ap).await;
    for id in [1, 2] {
        let shows = || listed(cluster.ap(id)) == ["a", "b"];
        eventually("it has moved", shows).await;
        cluster.end(id).await;
    }
    let ended_at = Instant::now();
    cluster.begin(3).await;
    let third = cluster.ap(3);
    eventually("it goes on alone", || third.inner.is_sure()).await;
    let now_ms = || third.inner.now().wall_ms;
    let began_ms = now_ms();
    let forgets = || {
        let desk = third.inner.desk.lock();
        desk.forgot_before_ms() > began_ms && ended_at.elapsed() > retention
    };
    eventually("it has outlived the others", forgets).await;
    for id in [1, 2] {
        cluster.begin(id).await;
    }
    cluster.wait_listed(&["a", "b"]).await;
    cluster.stop().await;
}

async fn wait_nothing_missed(cluster: &Cluster) {
    for server in cluster.running() {
        let view = server.ap().view();
        let is_there = || {
            let view = view.read();
            let group = view.group(&service().group);
            group.is_some_and(|group| group.moving.is_none() && group.settings.mode == GroupMode::Ap)
        };
        eventually("the group is there", is_there).await;
        eventually("nothing is missed", || !server.ap().inner.misses_records()).await;
    }
}

/// Nobody has anything to take over, so nobody waits for anybody; nor when they are all started anew, and no disk tells
/// that there was a group.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_group_that_moves_is_missed_by_nobody() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for mode in [GroupMode::Cp, GroupMode::Ap] {
        move_to(cluster.ap(1), mode).await;
    }
    wait_nothing_missed(&cluster).await;
    for id in 1..=3 {
        cluster.end(id).await;
    }
    for id in 1..=3 {
        cluster.begin(id).await;
    }
    wait_nothing_missed(&cluster).await;
    cluster.stop().await;
}

/// Each has what others miss; nobody misses the same as all others. So none may wait until another misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_miss_different_groups_do_not_wait_for_each_other() {
    let cluster = Cluster::start(3, |_| {}).await;
    define(&cluster, "other").await;
    let other: GroupName = "other".parse().expect("a good name");
    for server in cluster.running() {
        let ap = server.ap();
        let agrees = || !ap.inner.misses_records() && ap.inner.is_sure();
        eventually("it knows all", agrees).await;
    }
    for (id, group) in [(1, &other), (2, &service().group), (3, &service().group)] {
        let inner = &cluster.ap(id).inner;
        let followed = inner.followed.load(std::sync::atomic::Ordering::Acquire);
        inner.note_missed(std::slice::from_ref(group), Revision(followed));
    }
    wait_nothing_missed(&cluster).await;
    cluster.stop().await;
}

/// It has a part of the group by then, which must not pass for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_anew_while_it_misses_a_group_misses_it_still() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(1), register(None, "a")).await;
    cluster.wait_listed(&["a"]).await;
    for mode in [GroupMode::Cp, GroupMode::Ap] {
        move_to(cluster.ap(1), mode).await;
    }
    cluster.wait_listed(&["a"]).await;
    wait_nothing_missed(&cluster).await;
    let mute = |cluster: &Cluster, muted| {
        for id in [1, 2] {
            let mute = &cluster.ap(id).inner.mute;
            mute.compare.store(muted, std::sync::atomic::Ordering::Release);
        }
    };
    mute(&cluster, true);
    let inner = &cluster.ap(3).inner;
    let followed = inner.followed.load(std::sync::atomic::Ordering::Acquire);
    inner.note_missed(&[service().group], Revision(followed));
    cluster.end(3).await;
    cluster.begin(3).await;
    eventually("it knows that it misses something", || {
        cluster.ap(3).inner.misses_records()
    })
    .await;
    mute(&cluster, false);
    wait_nothing_missed(&cluster).await;
    cluster.wait_listed(&["a"]).await;
    cluster.stop().await;
}

/// The node is not there, and no other: there is nothing that a sign would tell. When it comes back the operator's word holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_override_of_a_node_that_is_away_moves_with_a_group_that_lists_nothing() {
    let cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(1), register(None, "away")).await;
    cluster.wait_listed(&["away"]).await;
    for server in cluster.running() {
        let defines = || {
            server
                .consensus()
                .directory()
                .read()
                .service(&service())
                .is_some()
        };
        eventually("the service is defined", defines).await;
    }
    write(cluster.ap(1), deregister("away")).await;
    cluster.wait_listed(&[]).await;
    move_to(cluster.ap(1), GroupMode::Cp).await;
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    let key = NodeKey {
        service: service(),
        node: "away".parse().expect("a good id"),
    };
    cluster.propose(Command::SetOverride { key, over }).await;
    move_to(cluster.ap(1), GroupMode::Ap).await;
    for server in cluster.running() {
        let says = || {
            let view = server.ap().view().read();
            let service = view.service(&service());
            let mut overrides = service.into_iter().flat_map(|service| service.overrides.values());
            overrides.any(|over| over.disabled == Some(true))
        };
        eventually("the operator's word has moved", says).await;
    }
    cluster.stop().await;
}

fn begin_move(to: GroupMode) -> Command {
    Command::BeginMove {
        group: service().group,
        to,
        stamp_ms: 1,
    }
}

fn is_moving(cluster: &Cluster) -> bool {
    let first = cluster.running().next().expect("one runs");
    let directory = first.consensus().directory().read();
    let group = directory.group(&service().group);
    group.is_some_and(|group| group.moving.is_some())
}

/// As after a coordinator that was killed: the group is frozen, and nobody is at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_nobody_coordinates_is_taken_back_soon() {
    let cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(1), register(None, "a")).await;
    cluster.wait_listed(&["a"]).await;
    cluster.propose(begin_move(GroupMode::Cp)).await;
    eventually("the group moves", || is_moving(&cluster)).await;
    // Well before two minutes.
    eventually("it is taken back", || !is_moving(&cluster)).await;
    let ap = cluster.ap(1);
    let is_still = || {
        let view = ap.view().read();
        let group = view.group(&service().group);
        group.is_some_and(|group| group.moving.is_none() && group.settings.mode == GroupMode::Ap)
    };
    eventually("the view follows", is_still).await;
    write(cluster.ap(1), register(None, "b")).await;
    cluster.wait_listed(&["a", "b"]).await;
    cluster.stop().await;
}

/// It waits for a server that is down, which lasts longer than it takes to notice that nobody is at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_somebody_coordinates_is_left_to_him() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let deadline = Instant::now() + Duration::from_secs(8);
    // It goes on with a move that has begun, for the last one waits in vain.
    cluster.propose(begin_move(GroupMode::Cp)).await;
    cluster.end(3).await;
    let group = service().group;
    let mut moving = Box::pin(cluster.ap(1).move_group(&group, GroupMode::Cp, deadline));
    eventually("the group moves", || is_moving(&cluster)).await;
    let moved = loop {
        tokio::select! {
            moved = &mut moving => break moved,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                let late = Instant::now() >= deadline;
                assert!(late || is_moving(&cluster), "it was taken back");
            }
        }
    };
    drop(moving);
    let refused = moved.expect_err("one is missing").to_string();
    assert!(refused.contains("server 3"), "{refused}");
    assert!(Instant::now() >= deadline, "{refused}");
    eventually("it is taken back", || !is_moving(&cluster)).await;
    cluster.stop().await;
}

/// A group takes writes for as long as a member is waited for, and nobody moves it whose caller has gone.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_frozen_for_a_member_that_is_away() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.end(3).await;
    let (group, deadline) = (service().group, Instant::now() + Duration::from_secs(60));
    {
        let moving = cluster.ap(1).move_group(&group, GroupMode::Cp, deadline);
        tokio::pin!(moving);
        for id in ["a", "b", "c", "d", "e"] {
            tokio::select! {
                moved = &mut moving => panic!("{moved:?}"),
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
            assert!(!is_moving(&cluster), "it waits for server 3");
            write(cluster.ap(1), register(None, id)).await;
        }
    }
    let late = Instant::now() + Duration::from_secs(2);
    let moved = cluster.ap(1).move_group(&group, GroupMode::Cp, late).await;
    let refused = moved.expect_err("one is missing").to_string();
    assert!(
        refused.contains("not begun") && refused.contains("server 3"),
        "{refused}"
    );
    cluster.begin(3).await;
    cluster.wait_listed(&["a", "b", "c", "d", "e"]).await;
    assert!(!is_moving(&cluster));
    move_to(cluster.ap(1), GroupMode::Cp).await;
    cluster.stop().await;
}

/// What a server has applied before it has caught up is the past. Seed 804 of the lab: a server that joined came by an
/// earlier move of the group in the log, took over what was in it then, and brought deregistered nodes back to life.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_not_caught_up_takes_nothing_over() {
    let cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(1), register(None, "a")).await;
    cluster.wait_listed(&["a"]).await;
    move_to(cluster.ap(1), GroupMode::Cp).await;
    let is_empty = |id| cluster.ap(id).status().records == 0;
    for id in [1, 2, 3] {
        eventually("the records are forgotten", || is_empty(id)).await;
    }
    let set_loaded = |loaded| {
        let servers = cluster.running();
        servers.for_each(|server| server.consensus().set_loaded(loaded));
    };
    set_loaded(false);
    cluster.propose(begin_move(GroupMode::Ap)).await;
    for id in [1, 2, 3] {
        let follows = || {
            let view = cluster.ap(id).view().read();
            let group = view.group(&service().group);
            group.is_some_and(|group| group.moving.is_some())
        };
        eventually("it is seen to move", follows).await;
    }
    // They look for groups to take over behind each look at what is defined: whoever sees the second has done so behind the
    // first.
    for group in ["first", "second"] {
        define(&cluster, group).await;
    }
    assert!([1, 2, 3].into_iter().all(is_empty));
    set_loaded(true);
    // Goes on with the move, or begins another if nobody was at the first for too long.
    let group = service().group;
    let moved = cluster.ap(1).move_group(&group, GroupMode::Ap, soon()).await;
    moved.expect("it is moved");
    cluster.wait_listed(&["a"]).await;
    cluster.stop().await;
}

/// It was cut off while the group came to gossip, and has not heard of that yet: it takes what others wrote of it since for
/// remains, and forgets it at its next look.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_no_second_disk_for_a_group_that_it_does_not_know() {
    let cluster = Cluster::start(2, |_| {}).await;
    write(cluster.ap(2), register(None, "a")).await;
    cluster.wait_listed(&["a"]).await;
    let records = {
        let desk = cluster.ap(2).inner.desk.lock();
        let records = desk.replica.bucket(&Bucket::Service(service()));
        records.iter().map(|record| record.encode()).collect::<Vec<_>>()
    };
    let push = || {
        let inner = &cluster.ap(1).inner;
        let pushed = ApPushRequest {
            cluster: inner.consensus.peers().cluster().to_owned(),
            from: 2,
            to: 1,
            records: records.clone(),
        };
        let door = ApDoor::new(inner.clone());
        async move { door.push(tonic::Request::new(pushed)).await }
    };
    push().await.expect("the group is there");
    move_to(cluster.ap(1), GroupMode::Cp).await;
    let is_gone = || cluster.ap(1).view().read().group(&service().group).is_none();
    eventually("the group is gone", is_gone).await;
    let refused = push().await.expect_err("it would be forgotten");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    move_to(cluster.ap(1), GroupMode::Ap).await;
    eventually("the group is there again", || !is_gone()).await;
    push().await.expect("it is there");
    cluster.stop().await;
}
