//! The handle of replication: what the other shells hold.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::AppendEntriesRequest;
use openraft::type_config::alias::WatchReceiverOf;
use parking_lot::Mutex;
use rollcall_core::ids::{Revision, ServerId, Term};
use rollcall_proto::v1::peer_server::PeerServer;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Raft;
use super::checkpoint::Checkpoints;
use super::contract::{AppliedHead, Heir, LeaderDesk, Leadership, MemberInfo, RaftStatus, SharedDirectory};
use super::heard::{Heard, Word};
use super::network::{MESSAGE_BYTES_MAX, Peers};
use super::options::ReplicationOptions;
use super::peer::PeerDoor;
use super::reads::{AgeProbe, LeaderRounds, RemoteRounds};
use super::solitude::Solitude;
use super::types::{TypeConfig, position};
use super::vote_gate::VoteGate;
use super::writes::{Forwarder, Proposer};
use crate::store::{DataFolder, LogStore, SnapshotStore, SpaceWatch};

/// Pause before an attempt that met no leader is repeated.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// What an overloaded caller is told to wait.
pub(super) const OVERLOAD_PAUSE: Duration = Duration::from_millis(100);
/// How long a stopping leader waits for a successor.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Replication of this server. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: ReplicationOptions,
    pub(super) raft: Raft,
    pub(super) log: LogStore,
    pub(super) space: Arc<SpaceWatch>,
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) directory: Arc<SharedDirectory>,
    pub(super) head: watch::Receiver<AppliedHead>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) solitude: Solitude,
    pub(super) heard: Heard,
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) gate: Arc<VoteGate>,
    pub(super) peers: Arc<Peers>,
    /// Who holds this handle itself: it is kept elsewhere, or neither would ever be given back.
    pub(super) desk: OnceLock<Weak<dyn LeaderDesk>>,
    /// The same.
    pub(super) heir: OnceLock<Weak<dyn Heir>>,
    /// Held while a server is being removed by order of this one.
    pub(super) removing: tokio::sync::Mutex<()>,
    pub(super) stop: CancellationToken,
    /// Raft's own task has ended.
    pub(super) ended: CancellationToken,
    pub(super) loaded: AtomicBool,
    pub(super) receiving: Arc<tokio::sync::Mutex<()>>,
    /// The latest term whose leader has sent a snapshot.
    pub(super) snapshot_term: watch::Sender<u64>,
    /// Told when a leader's stream of entries to this server has ended.
    pub(super) stream_ended: Arc<Notify>,
    /// For the bytes of requests under way.
    pub(super) room: Arc<Semaphore>,
    pub(super) proposer: Proposer,
    pub(super) forwarder: Forwarder,
    pub(super) leader_rounds: LeaderRounds,
    pub(super) remote_rounds: RemoteRounds,
    pub(super) age: Arc<AgeProbe>,
    pub(super) folder: Mutex<Option<DataFolder>>,
}

impl Consensus {
    /// The replicated state of this server.
    #[must_use]
    pub fn directory(&self) -> &Arc<SharedDirectory> {
        &self.inner.directory
    }

    /// For a leader: whether a quorum has answered it within the last lease, half the longest election timeout.
    /// Costs a look, asks nobody. Without a quorum nothing can be recorded or confirmed here.
    #[must_use]
    pub fn hears_quorum(&self) -> bool {
        self.inner.quorum_heard_within(self.inner.options.lease())
    }

    /// Whether a leader is there, as far as can be told from here: who leads hears a quorum, everybody else hears whom a
    /// quorum elected. An ordinary election does not change it. Costs a look, asks nobody.
    #[must_use]
    pub fn hears_leader(&self) -> bool {
        let inner = &self.inner;
        let bound = inner.options.leaderless_after();
        let leads = inner.leads() && inner.quorum_heard_within(bound);
        leads || inner.heard.is_within(bound, Instant::now())
    }

    /// Whether the directory stands at this revision or behind it.
    #[must_use]
    pub fn has_applied(&self, revision: Revision) -> bool {
        self.inner.head.borrow().revision >= revision
    }

    /// How far the log is applied; changes after each apply.
    #[must_use]
    pub fn applied_head(&self) -> watch::Receiver<AppliedHead> {
        self.inner.head.clone()
    }

    /// The term, as far as this server knows.
    #[must_use]
    pub fn term(&self) -> Term {
        self.inner.leadership.borrow().term
    }

    /// Whether its state differs from the leader's, so that it must serve nothing.
    #[must_use]
    pub fn is_diverged(&self) -> bool {
        self.inner.gate.is_diverged()
    }

    /// Who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Whether this server has caught up with what the cluster had committed when it started. Until then it
    /// must not answer from its state.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.inner.loaded.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn set_loaded(&self, loaded: bool) {
        self.inner.loaded.store(loaded, Ordering::Release);
    }

    /// How replication does.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        self.inner.status()
    }

    /// The members, as far as this server knows.
    #[must_use]
    pub fn members(&self) -> Vec<MemberInfo> {
        self.inner.members()
    }

    /// The gRPC service for the peer listener, and for no other. Serve it with TCP_NODELAY: with Nagle's
    /// algorithm many an append waits 40 ms for a delayed acknowledgement.
    #[must_use]
    pub fn peer_service(&self) -> PeerServer<PeerDoor> {
        PeerServer::new(PeerDoor::new(self.inner.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The disk on which other shells keep rows of their own, beside the log.
    pub(crate) fn store(&self) -> &LogStore {
        &self.inner.log
    }

    /// Where everything of this server lies.
    pub(crate) fn data_folder(&self) -> &std::path::Path {
        &self.inner.options.data
    }

    /// Whether writes are to be refused for lack of space.
    pub(crate) fn disk_is_full(&self) -> bool {
        self.inner.space.is_full()
    }

    /// Connections to the other servers.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.inner.peers
    }

    /// Waits until replication has ended, by [`Self::shutdown`] or by a failure, and says why. After a failure
    /// the process must stop: nothing more can be made durable.
    pub async fn stopped(&self) -> String {
        // Not by the metrics, which change with every message: whoever waited there would be woken for each.
        let mut fault = self.inner.log.fault();
        loop {
            if let Some(reason) = self.inner.stop_reason() {
                return reason;
            }
            tokio::select! {
                () = self.inner.ended.cancelled() => {
                    return self.inner.stop_reason().unwrap_or_else(|| "replication was shut down".into());
                },
                _ = fault.changed() => {}
            }
        }
    }

    /// Ends in order: hands leadership over first, so that nobody waits for an election.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        let others = inner
            .raft
            .voter_ids()
            .any(|voter| voter != inner.options.server.0);
        if inner.leads() && others {
            let handed = inner.transfer(None, Instant::now() + HANDOVER_TIMEOUT).await;
            if let Err(error) = handed {
                tracing::warn!(%error, "leadership not handed over");
            }
        }
        self.halt().await;
    }

    /// Ends at once. What was acknowledged is on disk.
    pub async fn halt(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.log.abandon();
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "replication did not end in order");
        }
        inner.log.close().await;
        inner.folder.lock().take();
    }
}

impl Inner {
    pub(super) fn leads(&self) -> bool {
        self.leadership.borrow().leader == Some(self.options.server)
    }

    fn quorum_heard_within(&self, bound: Duration) -> bool {
        let metrics = self.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.membership().voter_ids();
        voters.all(|voter| voter == self.options.server.0)
            || metrics
                .last_quorum_acked
                .is_some_and(|acked| acked.into_inner().elapsed() < bound)
    }

    /// An append has come, which is not refused for what it is.
    pub(super) fn hear(&self, append: &AppendEntriesRequest<TypeConfig>) {
        let term = append.vote.leader_id.term;
        // A former leader's is refused.
        if term < self.leadership.borrow().term.0 {
            return;
        }
        let committed = append.leader_commit.as_ref().map_or(0, |last| last.index + 1);
        let empty = append.entries.is_empty();
        let word = Word {
            term,
            committed,
            empty,
        };
        self.heard.note(word, Instant::now());
    }

    pub(super) fn stop_reason(&self) -> Option<String> {
        if let Some(fault) = self.log.fault().borrow().clone() {
            return Some(fault);
        }
        self.raft
            .metrics()
            .borrow_watched()
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string)
    }

    pub(super) fn address_of(&self, server: u64) -> Option<String> {
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.get_node(&server).map(|node| node.peer_address.clone())
    }

    pub(super) fn metrics(&self) -> WatchReceiverOf<TypeConfig, openraft::RaftMetrics<TypeConfig>> {
        self.raft.metrics()
    }

    /// Whether this server leads nobody but itself, by an entry that is committed: whoever would lead after it needs its
    /// vote.
    pub(super) fn is_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.committed_membership_config.log_id() == metrics.membership_config.log_id();
        committed && leads_only_itself(&metrics)
    }

    /// Whether anything can come of Raft's ticks, of which there are fifty a second. Who leads nobody but itself has
    /// nobody to show itself to, and no silence to notice.
    pub(super) fn needs_ticks(&self) -> bool {
        let metrics = self.raft.server_metrics();
        !leads_only_itself(&metrics.borrow_watched())
    }

    /// Recomputes who leads; tells those who watch only if it changed.
    pub(super) fn refresh_leadership(&self) {
        let fresh = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let term = metrics.vote.leader_id.term;
            let applied = self.raft.data_metrics().borrow_watched().last_applied;
            let applied = self.head.borrow().position.max(applied.as_ref().map(position));
            let leads = metrics.state == ServerState::Leader;
            Leadership {
                term: Term(term),
                leader: metrics.current_leader.map(ServerId),
                leading: leads && applied.is_some_and(|applied| applied.term.0 == term),
            }
        };
        self.leadership.send_if_modified(|current| {
            let changed = *current != fresh;
            let led = current.leader == Some(self.options.server);
            if led != (fresh.leader == Some(self.options.server)) {
                self.heard.note_election(Instant::now());
            }
            *current = fresh;
            changed
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn leads_only_itself(metrics: &RaftServerMetrics<TypeConfig>) -> bool {
    let mut members = metrics.membership_config.nodes();
    metrics.state == ServerState::Leader && members.all(|(id, _)| *id == metrics.id)
}
