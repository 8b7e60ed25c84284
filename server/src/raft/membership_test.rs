//! Members change, and leadership is handed over.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use rollcall_core::ids::ServerId;
use tokio::time::Instant;

use super::MembershipError;
use super::servers_test::{Server, remove, soon, start, start_apart, steady_leader_of, write};

/// Servers are asked in vain if they are dead, though their log was as long.
#[tokio::test]
async fn leadership_goes_to_who_is_there_and_may_stand() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = start(folder.path(), 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leading = steady_leader_of(&servers).await;
    let leader = servers[leading].consensus.clone();
    let mut others = [1_u64, 2, 3].to_vec();
    others.retain(|id| *id != leading as u64 + 1);
    let [alive, dead] = others[..] else { unreachable!() };
    // Both have the same log.
    let matched = async || {
        let members = leader.members();
        let of = |id| {
            members
                .iter()
                .find(|member| member.server.0 == id)
                .unwrap()
                .matched
        };
        of(alive) == of(dead)
    };
    let until = soon();
    while !matched().await {
        assert!(Instant::now() < until, "their logs differ");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gone = servers.remove(dead as usize - 1);
    drop(gone.end().await);
    let there = &servers
        .iter()
        .find(|server| server.consensus.inner.options.server.0 == alive);
    let there = there.unwrap().consensus.clone();

    // It must not stand: it is not asked, by name or otherwise, and its leader goes on to lead.
    there.inner.gate.set_diverged();
    for to in [None, Some(ServerId(alive))] {
        let refused = leader.transfer_leadership(to, soon()).await;
        assert!(
            matches!(refused, Err(MembershipError::Unavailable { .. })),
            "{refused:?}"
        );
    }
    write(&leader, 2).await;

    // It may.
    let gate = &there.inner.gate;
    gate.clear_diverged();
    // A vote may come too late on a busy machine: it is asked for again, by whoever may stand.
    for server in [&leader, &there] {
        server.inner.raft.runtime_config().elect(true);
    }
    let until = soon();
    while !there.leadership().borrow().leading {
        if leader.leadership().borrow().leading {
            let deadline = Instant::now() + Duration::from_secs(5);
            let handed = leader.transfer_leadership(None, deadline).await;
            let refused = matches!(handed, Err(MembershipError::Invalid { .. }));
            assert!(!refused, "{handed:?}");
        }
        assert!(Instant::now() < until, "it does not take over");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    servers.into_iter().map(Server::kill).for_each(drop);
}

fn seek_election(servers: &[Server]) {
    for server in servers {
        server.consensus.inner.raft.runtime_config().elect(true);
    }
}

/// Lists of voters that count on a server.
fn lists(server: &Server) -> usize {
    let metrics = server.consensus.inner.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.get_joint_config().len()
}

#[tokio::test]
async fn a_promotion_whose_caller_hung_up_half_way_is_carried_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start_apart(folder.path(), 2, |_| {}, |routes| routes).await;
    let [first, second] = &servers[..] else {
        unreachable!()
    };
    let alone = [(ServerId(1), first.addresses.clone())].into();
    first.consensus.initialize(alone).await.unwrap();
    write(&first.consensus, 1).await;
    let addresses = second.addresses.clone();
    first
        .consensus
        .add_learner(ServerId(2), addresses, soon())
        .await
        .unwrap();

    let mut metrics = first.consensus.inner.raft.server_metrics();
    let joint = async {
        while lists(first) < 2 {
            metrics.changed().await.unwrap();
        }
    };
    tokio::select! {
        biased;
        () = joint => {}
        _ = first.consensus.promote(ServerId(2), soon()) => panic!("it was not seen half-way"),
    }
    // Told that it is under way, an operator asks again.
    let until = soon();
    while let Err(error) = first.consensus.promote(ServerId(2), soon()).await {
        let is_under_way = matches!(error, MembershipError::InProgress { .. });
        assert!(is_under_way && Instant::now() < until, "{error}");
        tokio::task::yield_now().await;
    }
    assert_eq!(lists(first), 1, "the change is half done and nobody says so");
    assert!(first.consensus.members().iter().all(|member| member.voter));
    servers.into_iter().map(Server::kill).for_each(drop);
}

/// With 3 dead, 1 and 2 are a majority of three and 1 alone none of two: who removes 2 by mistake keeps a cluster.
#[tokio::test]
async fn a_server_without_which_nothing_could_be_decided_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = start(folder.path(), 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leading = steady_leader_of(&servers).await;
    let leader = servers[leading].consensus.clone();
    let (alive, dead) = ((leading + 1) % 3, (leading + 2) % 3);
    let id = |index: usize| ServerId(index as u64 + 1);
    let gone = servers.remove(dead);
    drop(gone.end().await);
    let silent = async || {
        let members = leader.members();
        let dead = members.iter().find(|member| member.server == id(dead)).unwrap();
        dead.last_contact
            .is_none_or(|since| since > leader.inner.options.lease())
    };
    let until = soon();
    while !silent().await {
        assert!(Instant::now() < until, "it is not taken for silent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for leaving in [leading, alive] {
        let refused = leader.remove(id(leaving), false, soon()).await;
        let refused = refused.expect_err("the other one is alone").to_string();
        assert!(refused.contains("nothing could be decided"), "{refused}");
        assert!(leader.leadership().borrow().leading, "it leads on");
    }
    write(&leader, 2).await;
    remove(&leader, id(dead)).await;
    write(&leader, 3).await;
    servers.into_iter().map(Server::kill).for_each(drop);
}

/// Servers 1 and 2 have no room: neither hands over to the other.
#[tokio::test]
async fn a_leader_without_room_hands_over_to_one_that_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 3, |options| {
        if options.server != ServerId(3) {
            let disk = rustix::fs::statvfs(options.data.parent().unwrap()).unwrap();
            options.disk_reserve = disk.f_bavail * disk.f_frsize / 2 * 3;
        }
    })
    .await;
    let first = Some(ServerId(1));
    let leading = steady_leader_of(&servers).await;
    // A vote may come too late on a busy machine: then others are asked.
    seek_election(&servers);
    let by_order = servers[leading]
        .consensus
        .transfer_leadership(first, soon())
        .await;
    let refused = matches!(by_order, Err(MembershipError::Invalid { .. }));
    assert!(!refused, "{by_order:?}");
    for server in &servers {
        let mut leadership = server.consensus.leadership();
        let third = leadership.wait_for(|now| now.leader == Some(ServerId(3)));
        tokio::time::timeout_at(soon(), third).await.unwrap().unwrap();
    }
    write(&servers[0].consensus, 1).await;
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_leader_that_is_removed_has_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leading = steady_leader_of(&servers).await;
    let leader = &servers[leading].consensus;
    let own = ServerId(leading as u64 + 1);
    seek_election(&servers);
    remove(leader, own).await;
    let now = *leader.leadership().borrow();
    assert!(now.leader.is_some_and(|leader| leader != own), "{now:?}");
    let other = &servers[(leading + 1) % 3].consensus;
    write(other, 2).await;
    assert!(other.members().iter().all(|member| member.server != own));
    servers.into_iter().map(Server::kill).for_each(drop);
}
