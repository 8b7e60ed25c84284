//! A paused registry does not strike off healthy nodes: SIGSTOP for longer than the ttl, with a thousand of them.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rollcall_client::v1::ErrorCode;
use rollcall_client::{Entry, NodeKind, Registration, ServiceKey, Session, SessionStatus, WriteOptions};
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually, one_clean_of};
use support::{Follower, GROUP, Stage, cluster, fleet};

/// Short, so that the tests are, but much longer than this machine stands still when it is busy, which may lapse sessions
/// rightly; `ROLLCALL_TEST_TTL_SECONDS=10` repeats what was measured of other registries.
static TTL: LazyLock<Duration> = LazyLock::new(|| {
    let seconds = std::env::var("ROLLCALL_TEST_TTL_SECONDS").map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(6))
});
/// Longer than the ttl.
static PAUSE: LazyLock<Duration> = LazyLock::new(|| *TTL + Duration::from_secs(2));
/// What a wrong expiry would need to show: a whole ttl and the usual lateness.
static AFTERMATH: LazyLock<Duration> = LazyLock::new(|| *TTL + LATE_MAX);

/// How late an expiry may come: a tick, a commit, a watch, and a machine that is busy with other tests.
const LATE_MAX: Duration = Duration::from_secs(2);

const SESSIONS: usize = 100;
const NODES_EACH: u16 = 10;
const NODES: usize = SESSIONS * NODES_EACH as usize;

struct Stand {
    cluster: Stage,
    fleet: Vec<Session>,
    ids: Vec<u64>,
    followers: Vec<Follower>,
}

async fn stand(servers: u64) -> Stand {
    let cluster = cluster(servers).await;
    let addresses = cluster.addresses();
    let fleet = fleet(&addresses, "feed", SESSIONS, NODES_EACH, *TTL).await;
    // Each watches at one server only, so that every server's own judgement is seen.
    let followers = addresses
        .iter()
        .map(|address| Follower::start(std::slice::from_ref(address), "feed", 0));
    let followers: Vec<_> = followers.collect();
    for follower in &followers {
        follower.wait_nodes("feed", NODES).await;
    }
    let ids = fleet.iter().map(Session::id).collect();
    Stand {
        cluster,
        fleet,
        ids,
        followers,
    }
}

impl Stand {
    /// Stops these servers for longer than the ttl and wakes them.
    async fn pause(&mut self, servers: &[u64]) {
        for id in servers {
            self.cluster.server(*id).pause().await.unwrap();
        }
        tokio::time::sleep(*PAUSE).await;
        for id in servers {
            self.cluster.server(*id).resume().unwrap();
        }
        self.cluster.wait_ready(WAIT_MAX).await.unwrap();
        eventually("every provider attached", WAIT_MAX, || async {
            let attached = |session: &Session| matches!(session.status(), SessionStatus::Attached { .. });
            self.fleet.iter().all(attached).then_some(())
        })
        .await
        .unwrap();
    }

    /// Waits for what all that may have set in motion: no node left, not even for a moment; no session was replaced.
    async fn assert_nobody_was_struck_off(&mut self) {
        tokio::time::sleep(*AFTERMATH).await;
        let revision = self.cluster.wait_converged(WAIT_MAX).await.unwrap();
        for server in self.cluster.servers() {
            let view = local_view(server.address(), GROUP, "feed", revision)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(view.nodes.len(), NODES, "nodes at server {}", server.id());
            assert!(
                view.nodes
                    .iter()
                    .all(|node| node.incarnation == view.nodes[0].incarnation)
            );
        }
        for follower in &self.followers {
            follower.wait_nodes("feed", NODES).await;
            assert_eq!(follower.removals(), 0, "removals told");
        }
        let ids: Vec<u64> = self.fleet.iter().map(Session::id).collect();
        assert_eq!(ids, self.ids, "sessions, before and after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_paused_beyond_the_ttl_strikes_off_nobody() {
    let mut stand = stand(1).await;
    stand.pause(&[1]).await;
    stand.assert_nobody_was_struck_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_paused_beyond_the_ttl_strikes_off_nobody() {
    let mut stand = stand(3).await;
    let leader = stand.cluster.leader(WAIT_MAX).await.unwrap();
    stand.pause(&[leader]).await;
    stand.assert_nobody_was_struck_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_follower_paused_beyond_the_ttl_strikes_off_nobody() {
    let mut stand = stand(3).await;
    let leader = stand.cluster.leader(WAIT_MAX).await.unwrap();
    for follower in stand.cluster.ids().into_iter().filter(|id| *id != leader) {
        stand.pause(&[follower]).await;
    }
    stand.assert_nobody_was_struck_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_paused_at_once_beyond_the_ttl_strike_off_nobody() {
    let mut stand = stand(3).await;
    let all = stand.cluster.ids();
    stand.pause(&all).await;
    stand.assert_nobody_was_struck_off().await;
}

/// A node that stays, since the removal guard never lets the last one of a service lapse away.
async fn anchor(addresses: &[String]) {
    let registry = rollcall_client::connect(addresses).unwrap();
    let anchor = Registration::new("http", "127.0.0.1", 9).kind(NodeKind::Persistent);
    let entry = Entry::new(ServiceKey::new(GROUP, "feed"), anchor);
    registry
        .register_persistent(&[entry], WriteOptions::default())
        .await
        .unwrap();
}

/// The counterpart: whoever is really silent goes, not before its ttl, and soon after.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_provider_is_struck_off_after_its_ttl_and_not_before() {
    one_clean_of(3, falls_silent).await;
}

async fn falls_silent() -> Result<(), String> {
    let cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let mut provider = Attending::open(&addresses[1], *TTL).await.unwrap();
    assert_eq!(provider.ttl, *TTL);
    provider.register(GROUP, "feed", "silent").await.unwrap();
    anchor(&addresses).await;
    let follower = Follower::start(&addresses[..1], "feed", 0);
    follower.wait_nodes("feed", 2).await;

    let renewed_at = Instant::now();
    assert!(provider.renew().await.unwrap());
    follower.wait_nodes("feed", 1).await;
    let after = renewed_at.elapsed();
    assert!(
        after >= *TTL,
        "struck off {after:?} after a heartbeat was sent, the ttl is {:?}",
        *TTL
    );
    assert!(
        !provider.renew().await.unwrap(),
        "a heartbeat was acknowledged after the expiry"
    );
    let again = Attending::attach(&addresses[2], provider.session, &provider.secret)
        .await
        .unwrap();
    assert_eq!(again.unwrap_err().code(), ErrorCode::SessionNotFound);
    // A leader that is elected meanwhile grants a whole ttl anew.
    in_time(after, *TTL + LATE_MAX)
}

fn in_time(after: Duration, bound: Duration) -> Result<(), String> {
    if after < bound {
        Ok(())
    } else {
        Err(format!("struck off after {after:?}, not within {bound:?}"))
    }
}

/// A pause moves deadlines, it does not abolish them.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_provider_is_struck_off_after_a_pause_too() {
    one_clean_of(3, falls_silent_before_a_pause).await;
}

async fn falls_silent_before_a_pause() -> Result<(), String> {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let mut provider = Attending::open(&addresses[0], *TTL).await.unwrap();
    provider.register(GROUP, "feed", "silent").await.unwrap();
    anchor(&addresses).await;
    let follower = Follower::start(&addresses[2..], "feed", 0);
    follower.wait_nodes("feed", 2).await;
    for server in cluster.servers_mut() {
        server.pause().await.unwrap();
    }
    tokio::time::sleep(*PAUSE).await;
    let resumed_at = Instant::now();
    for server in cluster.servers_mut() {
        server.resume().unwrap();
    }
    follower.wait_nodes("feed", 1).await;
    // At most: an election, a full ttl under the new leader, an election timeout more, and the usual lateness.
    in_time(resumed_at.elapsed(), *TTL + 3 * LATE_MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_to_any_server_with_its_secret_and_watchers_see_nothing() {
    let cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let mut provider = Attending::open(&addresses[0], *TTL).await.unwrap();
    provider.register(GROUP, "feed", "mover").await.unwrap();
    let follower = Follower::start(&addresses[1..2], "feed", 0);
    follower.wait_nodes("feed", 1).await;

    let mut wrong = provider.secret.clone();
    wrong[0] ^= 1;
    let foreign = Attending::attach(&addresses[1], provider.session, &wrong)
        .await
        .unwrap();
    assert_eq!(foreign.unwrap_err().code(), ErrorCode::SessionForeign);
    let (session, secret) = (provider.session, provider.secret.clone());
    drop(provider);
    let from = Instant::now();
    for turn in 0.. {
        let moved = Attending::attach(&addresses[turn % 3], session, &secret)
            .await
            .unwrap();
        assert!(moved.unwrap().renew().await.unwrap());
        if from.elapsed() > *TTL * 2 {
            break;
        }
        tokio::time::sleep(*TTL / 4).await;
    }
    assert_eq!(follower.removals(), 0);
    follower.wait_nodes("feed", 1).await;
}
