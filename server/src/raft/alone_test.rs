//! Who leads nobody but itself does without Raft's ticks, and without anybody's word for a heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::async_runtime::watch::WatchReceiver as _;
use rollcall_core::directory::{Command, Request};
use rollcall_core::ids::{RequestId, ServerId, SessionId};
use tokio_util::sync::CancellationToken;

use super::servers_test::{Server, leader_of, remove, soon, start, start_apart, steady_leader_of, write};
use super::types::PeerAddresses;
use super::vote_gate::Standing;
use super::{Consensus, Freshness, LeaderDesk};
use crate::session::{Authority, AuthoritySettings, Haste, Holder, RenewOutcome};

/// Opens a session.
async fn open(consensus: &Consensus) -> SessionId {
    let command = Command::OpenSession {
        secret_digest: [0; 32],
        ttl_ms: 10_000,
        client: "test".into(),
    };
    let request = Request {
        id: RequestId(1_000),
        command,
    };
    consensus.propose(request, soon()).await.unwrap();
    let directory = consensus.directory().read();
    directory.sessions().next().unwrap().id
}

/// What this server answers without waiting for anything; nothing, if it has to.
fn answered_at_once(holder: &Holder, session: SessionId) -> Option<RenewOutcome> {
    let answer = holder.renew(vec![session], Haste::None).now_or_never();
    answer.map(|outcome| outcome.unwrap())
}

/// A server's judge, and who passes heartbeats on to it.
struct Bench {
    consensus: Consensus,
    holder: Holder,
    _desk: Arc<dyn LeaderDesk>,
}

impl Bench {
    fn of(server: &Server, stop: &CancellationToken) -> Self {
        let consensus = server.consensus.clone();
        let settings = AuthoritySettings {
            election_timeout: Duration::from_secs(1),
            spread: Duration::ZERO,
        };
        let desk: Arc<dyn LeaderDesk> = Arc::new(Authority::start(consensus.clone(), settings, stop.clone()));
        consensus.set_desk(&desk);
        Self {
            holder: Holder::start(consensus.clone(), stop.clone()),
            consensus,
            _desk: desk,
        }
    }

    /// The committed members, as far as this server shows them.
    fn members(&self) -> BTreeSet<u64> {
        let metrics = self.consensus.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.committed_membership_config.nodes();
        members.map(|(id, _)| *id).collect()
    }

    fn is_the_cluster(&self) -> bool {
        self.members() == BTreeSet::from([self.consensus.inner.options.server.0])
    }

    /// Whether it renews a session without asking anybody; it may if it is the whole cluster.
    fn renews_at_once(&self, session: SessionId) -> bool {
        let may = self.is_the_cluster();
        let answer = answered_at_once(&self.holder, session);
        let may = may || self.is_the_cluster();
        assert!(
            may || answer.is_none(),
            "it asks nobody among {:?}",
            self.members()
        );
        answer.is_some_and(|outcome| outcome == renewed(session))
    }

    /// The authority takes office a moment after its server leads, and changes are seen a moment after they were made.
    async fn wait_until(&self, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout_at(soon(), waiting)
            .await
            .expect("it holds soon");
    }
}

fn renewed(session: SessionId) -> RenewOutcome {
    RenewOutcome {
        renewed: vec![session],
        not_found: Vec::new(),
    }
}

/// Renews a session again and again while `change` is under way.
async fn meanwhile<T>(
    benches: &BTreeMap<u64, Bench>,
    session: SessionId,
    change: impl Future<Output = T>,
) -> T {
    let mut change = std::pin::pin!(change);
    loop {
        for bench in benches.values() {
            bench.renews_at_once(session);
        }
        if let Ok(changed) = tokio::time::timeout(Duration::from_micros(100), &mut change).await {
            return changed;
        }
    }
}

/// Nobody renews a session without asking, and everybody does by asking.
async fn all_ask(benches: &BTreeMap<u64, Bench>, session: SessionId) {
    for _ in 0..20 {
        for bench in benches.values() {
            assert!(!bench.renews_at_once(session), "among {:?}", bench.members());
            let outcome = bench.holder.renew(vec![session], Haste::AtOnce);
            let outcome = tokio::time::timeout_at(soon(), outcome).await;
            assert_eq!(outcome.expect("it is answered").unwrap(), renewed(session));
        }
    }
}

#[tokio::test]
async fn who_has_let_others_in_asks_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start_apart(folder.path(), 3, |_| {}, |routes| routes).await;
    let (first, stop) = (&servers[0].consensus, CancellationToken::new());
    let alone = BTreeMap::from([(ServerId(1), servers[0].addresses.clone())]);
    first.initialize(alone).await.unwrap();
    let mut benches = BTreeMap::from([(1, Bench::of(&servers[0], &stop))]);
    let session = open(first).await;
    benches[&1]
        .wait_until(|bench| bench.renews_at_once(session))
        .await;
    for id in [2, 3] {
        let server = &servers[id as usize - 1];
        benches.insert(id, Bench::of(server, &stop));
        let joining = async {
            let addresses = server.addresses.clone();
            first.add_learner(ServerId(id), addresses, soon()).await.unwrap();
            let mut standing = server.consensus.inner.gate.watch_standing();
            let whole = standing.wait_for(|standing| *standing == Standing::Whole);
            tokio::time::timeout_at(soon(), whole).await.unwrap().unwrap();
            // The first leads throughout, however long it is kept from it.
            server.consensus.inner.raft.runtime_config().elect(false);
            first.promote(ServerId(id), soon()).await.unwrap();
        };
        meanwhile(&benches, session, joining).await;
        all_ask(&benches, session).await;
    }
    // It cannot know whether somebody it let in leads others, until it begins anew.
    for id in [3, 2] {
        let leaving = remove(first, ServerId(id));
        meanwhile(&benches, session, leaving).await;
        benches.remove(&id);
        benches[&1]
            .wait_until(|bench| !bench.members().contains(&id))
            .await;
        all_ask(&benches, session).await;
    }
    assert!(benches[&1].is_the_cluster());
    stop.cancel();
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn who_is_left_alone_asks_until_that_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = start(folder.path(), 3, |_| {}).await;
    let stop = CancellationToken::new();
    // A leader that nobody takes for silent, however busy the machine is.
    let leader = steady_leader_of(&servers).await;
    let last = servers.swap_remove(leader);
    let bench = |server: &Server| (server.consensus.inner.options.server.0, Bench::of(server, &stop));
    let mut benches: BTreeMap<u64, Bench> = servers.iter().chain([&last]).map(bench).collect();
    let session = open(&last.consensus).await;
    all_ask(&benches, session).await;
    // One has ended, and one is there to the end.
    let others: Vec<u64> = servers
        .iter()
        .map(|server| server.consensus.inner.options.server.0)
        .collect();
    benches.remove(&others[0]);
    drop(servers.remove(0).kill());
    for id in others {
        all_ask(&benches, session).await;
        let leaving = remove(&last.consensus, ServerId(id));
        meanwhile(&benches, session, leaving).await;
        benches.remove(&id);
    }
    let (_, bench) = benches.pop_first().unwrap();
    bench.wait_until(|bench| bench.renews_at_once(session)).await;
    assert!(bench.is_the_cluster());
    stop.cancel();
    servers.into_iter().chain([last]).map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn heartbeats_are_answered_at_once_until_others_are_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 1, |_| {}).await;
    let (alone, stop) = (&servers[0].consensus, CancellationToken::new());
    let bench = Bench::of(&servers[0], &stop);
    let holder = &bench.holder;
    let session = open(alone).await;
    bench.wait_until(|bench| bench.renews_at_once(session)).await;
    let stranger = SessionId(77);
    assert_eq!(answered_at_once(holder, stranger), None);
    let outcome = holder.renew(vec![stranger], Haste::None).await.unwrap();
    assert_eq!(outcome.not_found, [stranger]);

    let other = PeerAddresses {
        peer_address: "127.0.0.1:1".into(),
        ..PeerAddresses::default()
    };
    alone.add_learner(ServerId(2), other, soon()).await.unwrap();
    // Whatever raft's metrics, which are a moment late, show.
    alone.inner.solitude.note(true);
    assert_eq!(answered_at_once(holder, session), None);
    let outcome = holder.renew(vec![session], Haste::None).await.unwrap();
    assert_eq!(outcome, renewed(session));
    stop.cancel();
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_server_alone_needs_no_ticks_and_serves_without() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 1, |_| {}).await;
    let alone = &servers[0].consensus;
    write(alone, 1).await;
    assert!(!alone.inner.needs_ticks());
    // Longer than any lease or election timeout.
    tokio::time::sleep(Duration::from_secs(2)).await;
    write(alone, 2).await;
    for freshness in [Freshness::Linearizable, Freshness::Leased] {
        alone.confirm(freshness, soon()).await.unwrap();
    }
    assert!(alone.hears_quorum() && alone.leadership().borrow().leading);
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_server_among_others_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 3, |_| {}).await;
    leader_of(&servers).await;
    assert!(servers.iter().all(|server| server.consensus.inner.needs_ticks()));
    let alone = |server: &Server| server.consensus.inner.solitude.is_certain();
    assert!(!servers.iter().any(alone));
    servers.into_iter().map(Server::kill).for_each(drop);
}
