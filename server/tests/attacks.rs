//! What an enemy, or bad luck, may try: each was tried by hand first, and most broke something.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use rollcall_client::{Session, SessionStatus};
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{Follower, GROUP, cluster, fleet};

const TTL: Duration = Duration::from_secs(3);
const SESSIONS: usize = 20;

/// The leader stays awake, records nothing for lack of a quorum, and must not hold that silence against its
/// clients when the quorum is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_paused_beyond_the_ttl_strikes_off_nobody() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let fleet = fleet(&addresses, "feed", SESSIONS, 1, TTL).await;
    let before: Vec<u64> = fleet.iter().map(Session::id).collect();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let leader_at = cluster.server(leader).address().to_owned();
    let follower = Follower::start(&[leader_at], "feed", 0);
    follower.wait_nodes("feed", SESSIONS).await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.server(*id).pause().await.unwrap();
    }
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    for id in &others {
        cluster.server(*id).resume().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    eventually("every provider attached", WAIT_MAX, || async {
        let attached = |session: &Session| matches!(session.status(), SessionStatus::Attached { .. });
        fleet.iter().all(attached).then_some(())
    })
    .await
    .unwrap();
    // What a wrong expiry would need to show.
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    let revision = cluster.wait_converged(WAIT_MAX).await.unwrap();
    for server in cluster.servers() {
        let view = local_view(server.address(), GROUP, "feed", revision)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(view.nodes.len(), SESSIONS, "nodes at server {}", server.id());
    }
    assert_eq!(follower.removals(), 0, "removals told");
    let after: Vec<u64> = fleet.iter().map(Session::id).collect();
    assert_eq!(after, before, "sessions, before and after");
}
