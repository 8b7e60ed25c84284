//! Servers that are removed, on whole servers in this process that are told of each other's records by comparisons alone, and
//! compare only when they were just started.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_core::ids::ServerId;
use tokio::time::Instant;

use super::cluster_test::{Cluster, eventually, listed, register, soon, write};
use super::rows::Found;
use crate::raft::{MembershipError, ProposeError};
use crate::server::Server;

/// Three servers of which the third has acknowledged what nobody else has heard.
async fn with_a_secret() -> Cluster {
    let cluster = Cluster::start(3, |config| {
        config.gossip.enabled = false;
        config.ap.repair_interval = Duration::from_secs(3_600);
    })
    .await;
    for id in [1, 2, 3] {
        let ap = cluster.ap(id);
        let agrees = || {
            ap.inner.returned.notify_one();
            ap.has_agreed()
        };
        eventually("it has agreed", agrees).await;
        ap.inner.mute.pull.store(true, Ordering::Release);
    }
    // One comparison more may come.
    mute(&cluster, true);
    write(cluster.ap(3), register(None, "secret")).await;
    for id in [1, 2] {
        assert!(listed(cluster.ap(id)).is_empty());
    }
    cluster
}

fn mute(cluster: &Cluster, muted: bool) {
    cluster.ap(3).inner.mute.compare.store(muted, Ordering::Release);
}

/// By order of whoever leads, as long as that is another.
async fn remove(cluster: &Cluster, lost: bool) -> Result<(), MembershipError> {
    let until = soon();
    loop {
        let leads = |server: &&Server| server.consensus().leadership().borrow().leading;
        let leader = cluster.running().find(leads).map(Server::consensus);
        let decided = match leader {
            Some(leader) if leader.status().server == ServerId(3) => {
                _ = leader.transfer_leadership(Some(ServerId(1)), soon()).await;
                None
            }
            Some(leader) => Some(leader.remove(ServerId(3), lost, soon()).await),
            None => None,
        };
        // What a change of the leader did not decide may be done all the same.
        let is_gone = || {
            let leader = cluster.running().find(leads);
            leader.is_some_and(|leader| {
                let members = leader.consensus().members();
                members.iter().all(|member| member.server != ServerId(3))
            })
        };
        match decided {
            Some(Err(_)) if is_gone() => return Ok(()),
            None
            | Some(Err(
                MembershipError::Unavailable { .. }
                | MembershipError::InProgress { .. }
                | MembershipError::Unknown { .. },
            )) => {
                assert!(Instant::now() < until, "nobody decides: {decided:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Some(decided) => return decided,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_acknowledged_alone_is_elsewhere_before_it_is_removed() {
    let cluster = with_a_secret().await;
    mute(&cluster, false);
    remove(&cluster, false).await.expect("it is removed");
    let knows = |id| listed(cluster.ap(id)) == ["secret"];
    assert!(knows(1) || knows(2), "whoever leads has it");
    let refused = cluster.ap(3).write(register(None, "late"), 1, soon()).await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. })),
        "nobody would hear of it: {refused:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_which_not_all_is_fetched_stays_and_goes_on() {
    let cluster = with_a_secret().await;
    cluster.ap(3).inner.mute.fetch.store(true, Ordering::Release);
    mute(&cluster, false);
    let refused = remove(&cluster, false).await;
    let Err(MembershipError::Invalid { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("could be fetched") && reason.contains("--lost"),
        "{reason}"
    );
    let first = cluster.running().next().expect("one runs");
    assert_eq!(first.consensus().members().len(), 3);
    let ap = cluster.ap(3);
    eventually("it goes on", || !ap.inner.desk.lock().is_retired()).await;
    write(ap, register(None, "late")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_removed_by_somebody_who_says_that_it_is_lost() {
    let mut cluster = with_a_secret().await;
    cluster.end(3).await;
    let refused = remove(&cluster, false).await;
    let Err(MembershipError::Invalid { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("does not answer") && reason.contains("--lost"),
        "{reason}"
    );
    remove(&cluster, true).await.expect("it is removed");
    cluster.stop().await;
}

async fn refused(cluster: &Cluster) {
    let refused = cluster.ap(3).write(register(None, "late"), 1, soon()).await;
    let Err(ProposeError::Unavailable { reason }) = refused else {
        panic!("nobody would hear of it: {refused:?}");
    };
    assert!(reason.contains("removed"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_removed_takes_no_writes_when_it_is_started_anew() {
    let mut cluster = with_a_secret().await;
    mute(&cluster, false);
    remove(&cluster, false).await.expect("it is removed");
    // Before it ends in good order.
    let found = Found::read(cluster.ap(3).inner.consensus.store()).expect("it can be read");
    assert!(found.retired);
    cluster.end(3).await;
    // Nobody can tell it.
    for id in [1, 2] {
        cluster.ap(id).inner.mute.compare.store(true, Ordering::Release);
    }
    cluster.begin(3).await;
    refused(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_removed_while_it_was_away_takes_no_writes_any_more() {
    let mut cluster = with_a_secret().await;
    cluster.end(3).await;
    remove(&cluster, true).await.expect("it is removed");
    cluster.begin(3).await;
    let inner = &cluster.ap(3).inner;
    eventually("it is told", || inner.desk.lock().is_retired()).await;
    refused(&cluster).await;
    cluster.stop().await;
}

/// What it vouched for is judged by others at once, also if they were started since.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_removed_is_gone_for_those_who_never_heard_of_it() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.end(3).await;
    remove(&cluster, true).await.expect("it is removed");
    for id in [1, 2] {
        cluster.end(id).await;
    }
    for id in [1, 2] {
        cluster.begin(id).await;
    }
    for id in [1, 2] {
        let inner = &cluster.ap(id).inner;
        eventually("it knows who is a member", || inner.consensus.is_loaded()).await;
        let now = std::time::Instant::now();
        assert!(inner.gone_since(ServerId(3), now).is_some());
        assert_eq!(inner.gone_since(ServerId(3 - id), now), None);
    }
    cluster.stop().await;
}

/// Whoever was to remove it has gone meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_removal_is_forgotten_goes_on() {
    let cluster = with_a_secret().await;
    let long_ago = std::time::Instant::now().checked_sub(Duration::from_secs(59));
    let inner = &cluster.ap(3).inner;
    inner
        .desk
        .lock()
        .retire(long_ago.expect("the machine runs for longer"));
    let refused = cluster.ap(3).write(register(None, "late"), 1, soon()).await;
    assert!(refused.is_err(), "{refused:?}");
    let goes_on = || {
        inner.returned.notify_one();
        !inner.desk.lock().is_retired()
    };
    eventually("it goes on", goes_on).await;
    write(cluster.ap(3), register(None, "late")).await;
    cluster.stop().await;
}
