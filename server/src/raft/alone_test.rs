//! Who leads nobody but itself does without Raft's ticks, and without anybody's word for a heartbeat.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rollcall_core::directory::{Command, Request};
use rollcall_core::ids::{RequestId, ServerId, SessionId};
use tokio_util::sync::CancellationToken;

use super::servers_test::{Server, leader_of, soon, start, write};
use super::types::PeerAddresses;
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

#[tokio::test]
async fn heartbeats_are_answered_at_once_until_others_are_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 1, |_| {}).await;
    let (alone, stop) = (&servers[0].consensus, CancellationToken::new());
    let settings = AuthoritySettings {
        election_timeout: Duration::from_secs(1),
        spread: Duration::ZERO,
    };
    let desk: Arc<dyn LeaderDesk> = Arc::new(Authority::start(alone.clone(), settings, stop.clone()));
    alone.set_desk(&desk);
    let holder = Holder::start(alone.clone(), stop.clone());
    let session = open(alone).await;
    let renewed = RenewOutcome {
        renewed: vec![session],
        not_found: Vec::new(),
    };
    // The authority takes office a moment after this server leads.
    while answered_at_once(&holder, session) != Some(renewed.clone()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stranger = SessionId(77);
    assert_eq!(answered_at_once(&holder, stranger), None);
    let outcome = holder.renew(vec![stranger], Haste::None).await.unwrap();
    assert_eq!(outcome.not_found, [stranger]);

    let other = PeerAddresses {
        peer_address: "127.0.0.1:1".into(),
        ..PeerAddresses::default()
    };
    alone.add_learner(ServerId(2), other, soon()).await.unwrap();
    // Whatever raft's metrics, which are a moment late, show.
    alone.inner.solitude.note(true);
    assert_eq!(answered_at_once(&holder, session), None);
    let outcome = holder.renew(vec![session], Haste::None).await.unwrap();
    assert_eq!(outcome, renewed);
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
