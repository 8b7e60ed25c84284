//! The handle of replication: what the other shells hold.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use parking_lot::Mutex;
use rollcall_core::directory::{Directory, Limits, Outcome, Refusal, Request};
use rollcall_core::ids::{LogIndex, Revision, ServerId, SessionId, Term};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_proto::v1;
use rollcall_proto::v1::peer_server::PeerServer;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Raft;
use super::allegiance::confirm_by_word;
use super::checkpoint::Checkpoints;
use super::contract::{
    AppliedHead, Confirmed, DeskError, Freshness, LeaderDesk, Leadership, MemberInfo, MemberRole,
    MembershipError, NotLeader, ProposeError, RaftStatus, ReadError, RenewalVerdict, SessionDeadline,
    SharedDirectory,
};
use super::forward::{Call, Forwarder};
use super::freshness::{AgeProbe, LeaderRounds, RemoteRounds};
use super::network::{Links, MESSAGE_BYTES_MAX, Peers};
use super::options::{ReplicationOptions, StartError};
use super::peer::PeerDoor;
use super::proposer::{Proposal, Proposer};
use super::read_index::{Round, RoundError};
use super::solitude::Solitude;
use super::state_machine::{Parts, StateMachine};
use super::ticket::{Admitted, Answered, Attempt, Reply, Ticket};
use super::types::{PeerAddresses, TypeConfig, position};
use super::vote_gate::{Standing, VoteGate};
use super::{upkeep, wire};
use crate::store::{
    DataFolder, Identity, LogStore, OpenedLog, SnapshotStore, SpaceWatch, StoreError, divergence,
};

/// Largest encoded request (design section 11).
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of requests that wait here, for a leader, its answer or the log. Beyond it callers are told to come again: a
/// quorum that is away, or a slow disk, must not fill the memory.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 20;
/// Pause before an attempt that met no leader is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// What an overloaded caller is told to wait.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(100);
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
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) gate: Arc<VoteGate>,
    pub(super) peers: Arc<Peers>,
    /// Who holds this handle itself: it is kept elsewhere, or neither would ever be given back.
    pub(super) desk: OnceLock<Weak<dyn LeaderDesk>>,
    pub(super) stop: CancellationToken,
    /// Raft's own task has ended.
    ended: CancellationToken,
    pub(super) loaded: AtomicBool,
    pub(super) receiving: Arc<tokio::sync::Mutex<()>>,
    /// The latest term whose leader has sent a snapshot.
    pub(super) snapshot_term: watch::Sender<u64>,
    /// Told when a leader's stream of entries to this server has ended.
    pub(super) stream_ended: Arc<Notify>,
    /// For the bytes of requests under way.
    pub(super) room: Arc<Semaphore>,
    proposer: Proposer,
    forwarder: Forwarder,
    leader_rounds: LeaderRounds,
    pub(super) remote_rounds: RemoteRounds,
    age: Arc<AgeProbe>,
    folder: Mutex<Option<DataFolder>>,
}

/// What [`Consensus::initialize`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialized {
    /// This server has taken part before; nothing was to be done.
    Already,
    /// A new cluster begins.
    Started,
    /// The cluster runs already; this server catches up before it votes.
    Joining,
}

/// What an opened data folder gave.
struct Opened {
    folder: DataFolder,
    log: OpenedLog,
    snapshots: SnapshotStore,
    space: Arc<SpaceWatch>,
    /// Its state was found to differ from the leader's.
    differs: bool,
}

fn open(options: &ReplicationOptions) -> Result<Opened, StoreError> {
    let identity = Identity {
        cluster: options.cluster.clone(),
        server: options.server.0,
    };
    let folder = DataFolder::open(&options.data, &identity)?;
    let space = Arc::new(SpaceWatch::new(&options.data, options.disk_reserve));
    let log = LogStore::open(&options.data, space.clone())?;
    let differs = divergence::is_noted(&options.data)?;
    let snapshots = SnapshotStore::open(&options.data, log.purged.is_none())?;
    let snapshot = snapshots.current().and_then(|(meta, _)| meta.last_log_id);
    match log.purged {
        Some(purged) if snapshot.is_none_or(|snapshot| snapshot.index < purged.index) => {
            Err(StoreError::Gap {
                path: options.data.clone(),
                purged: purged.index,
                snapshot: snapshot.map_or_else(|| "nothing".into(), |snapshot| snapshot.to_string()),
            })
        }
        _ => Ok(Opened {
            folder,
            log,
            snapshots,
            space,
            differs,
        }),
    }
}

impl Consensus {
    /// Opens the data folder and takes up what it holds. A first start then needs [`Self::initialize`], or a
    /// member that adds this server as a learner.
    ///
    /// The peer listener must be served with [`Self::peer_service`].
    ///
    /// # Errors
    /// The folder cannot be used, or the options contradict each other.
    pub async fn start(options: ReplicationOptions) -> Result<Self, StartError> {
        options.raft_config(true)?;
        let for_open = options.clone();
        let opened = crate::ground::spawn_blocking(move || open(&for_open)).await;
        let opened = opened.map_err(|error| StartError::invalid(error.to_string()))??;
        let log = opened.log.store.clone();
        let started = Self::start_opened(options, opened).await;
        if started.is_err() {
            log.abandon();
            log.close().await;
        }
        started
    }

    async fn start_opened(options: ReplicationOptions, opened: Opened) -> Result<Self, StartError> {
        let Opened {
            folder,
            log,
            snapshots,
            space,
            differs,
        } = opened;
        let stop = CancellationToken::new();
        let server = options.server.0;
        // Limits are replicated state: every server begins with the same and the log changes them.
        let directory = Directory::new(Limits::default()).with_change_log(options.change_log);
        let parts = Parts {
            directory: Arc::new(SharedDirectory::new(directory)),
            snapshots: Arc::new(snapshots),
            checkpoints: Arc::new(Checkpoints::new(options.compare_every)),
            space: space.clone(),
        };
        let (head_sender, head) = watch::channel(AppliedHead::default());
        let peers = Arc::new(Peers::new(options.cluster.clone(), server));
        let state_machine = StateMachine::new(parts.clone(), head_sender, options.change_log);

        let raft_failed = |reason: String| StartError::Raft {
            data: options.data.clone(),
            reason,
        };
        let config = Arc::new(options.raft_config(false)?);
        let ended = CancellationToken::new();
        let links = Links::new(peers.clone(), &ended);
        let raft = Raft::new(server, config, links, log.store.clone(), state_machine).await;
        let raft = raft.map_err(|error| raft_failed(error.to_string()))?;

        // The metrics are filled in only when Raft's own task has begun to run.
        let state =
            raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>());
        let voters = state.await.map_err(|error| raft_failed(error.to_string()))?;
        let alone = voters == [server];
        // A snapshot stands for the entries it covers, even if the log was not yet told so.
        let snapshot = parts.snapshots.current().and_then(|(meta, _)| meta.last_log_id);
        let forgot = log.mark.log > log.last.max(snapshot);
        if alone && forgot {
            let _ = raft.shutdown().await;
            let show =
                |id: Option<super::types::LogId>| id.map_or_else(|| "nothing".into(), |id| id.to_string());
            let (found, marked) = (show(log.last), show(log.mark.log));
            return Err(StoreError::Forgotten {
                path: options.data.clone(),
                found,
                marked,
            }
            .into());
        }
        if alone && log.mark.rejoining {
            // Nobody else could tell what it acknowledged; all there is, is here.
            let cleared = log.store.set_rejoining(false).await;
            cleared.map_err(|error| raft_failed(error.to_string()))?;
        }
        let standing = match () {
            () if alone => Standing::Whole,
            () if forgot || log.mark.rejoining => Standing::CatchingUp,
            () if log.pristine => Standing::Undecided,
            () => Standing::Whole,
        };
        if standing == Standing::CatchingUp {
            tracing::warn!(
                "RC-109: the disk forgot what this server acknowledged; it does not vote until it has caught up"
            );
        }
        let gate = Arc::new(VoteGate::new(standing, !alone && !log.pristine));
        if differs {
            gate.set_diverged();
            tracing::error!(
                "RC-110: this server's state was found to differ from the leader's and is not served; replace it"
            );
        }

        let leadership = watch::Sender::new(Leadership::default());
        let inner = Arc::new(Inner {
            proposer: Proposer::start(
                raft.clone(),
                log.store.clone(),
                leadership.subscribe(),
                stop.clone(),
            ),
            forwarder: Forwarder::new(peers.clone(), stop.clone()),
            leader_rounds: LeaderRounds::start(&raft, &peers, options.lease(), &stop),
            remote_rounds: RemoteRounds::start(&raft, &gate, &peers, &leadership.subscribe(), &stop),
            age: Arc::default(),
            folder: Mutex::new(Some(folder)),
            log: log.store,
            space,
            snapshots: parts.snapshots,
            directory: parts.directory,
            checkpoints: parts.checkpoints,
            head,
            leadership,
            solitude: Solitude::default(),
            gate,
            peers,
            desk: OnceLock::new(),
            stop,
            ended,
            loaded: AtomicBool::new(false),
            receiving: Arc::default(),
            snapshot_term: watch::Sender::default(),
            stream_ended: Arc::default(),
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            raft,
            options,
        });
        upkeep::start(&inner);
        Ok(Self { inner })
    }

    /// Begins a new cluster of `members`, or finds that there is one. Every server of the list calls it on
    /// each start with the same list; it waits until a majority of the list can be asked, so that a server
    /// whose folder was lost does not begin a second cluster.
    ///
    /// # Errors
    /// This server is not in the list, or stops.
    pub async fn initialize(
        &self,
        members: BTreeMap<ServerId, PeerAddresses>,
    ) -> Result<Initialized, StartError> {
        let inner = &self.inner;
        if !members.contains_key(&inner.options.server) {
            return Err(StartError::invalid(format!(
                "server {} is not among the initial members",
                inner.options.server
            )));
        }
        loop {
            match inner.gate.standing() {
                Standing::Whole => return Ok(Initialized::Already),
                Standing::CatchingUp => return Ok(Initialized::Joining),
                Standing::Undecided => {}
            }
            let undecided = |error: std::io::Error| inner.raft_error(error.to_string());
            match inner.survey(&members).await {
                Survey::New => {
                    if inner.decide(Standing::Whole).await.map_err(undecided)? {
                        break;
                    }
                }
                Survey::Running => {
                    inner.join_running().await.map_err(undecided)?;
                }
                Survey::TooFew => tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    () = inner.stop.cancelled() => return Err(StartError::invalid("this server is stopping")),
                },
            }
        }
        let nodes: BTreeMap<u64, PeerAddresses> =
            members.into_iter().map(|(id, node)| (id.0, node)).collect();
        match inner.raft.initialize(nodes).await {
            Ok(()) => Ok(Initialized::Started),
            // Another member was faster and has sent us its log.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(Initialized::Already),
            Err(error) => Err(inner.raft_error(error.to_string())),
        }
    }

    /// Has a request applied, wherever the leader is. Retries by itself while it is sure that nothing was
    /// applied, until `deadline`.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose(&self, request: Request, deadline: Instant) -> Result<Outcome, ProposeError> {
        let encoded = encode(&request)?;
        drop(request);
        // Also while no leader is known: what waits is bounded by its bytes.
        let Some(mut admitted) = self.inner.admit(encoded) else {
            return result_of(Attempt::Overloaded);
        };
        let mut leadership: Option<watch::Receiver<Leadership>> = None;
        loop {
            let (attempt, again) = self.inner.attempt(admitted, deadline).await;
            let now = Instant::now();
            let over = now >= deadline || self.inner.stop.is_cancelled() || self.inner.gate.is_diverged();
            match again {
                Some(again) if !over => admitted = again,
                Some(_) | None => return result_of(attempt),
            }
            // The first time it only begins to listen, and looks again at once: most requests never wait here.
            match &mut leadership {
                None => leadership = Some(self.inner.leadership.subscribe()),
                Some(leadership) => {
                    let pause = deadline.min(now + RETRY_PAUSE);
                    let _ = tokio::time::timeout_at(pause, leadership.changed()).await;
                }
            }
        }
    }

    /// Has a request applied only if this server leads in `term`; never forwarded, tried once.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose_in_term(
        &self,
        term: Term,
        request: Request,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        // The leader's own: few, and never refused for want of room.
        let admitted = Admitted::new(encode(&request)?, None);
        result_of(self.inner.attempt_here(admitted, Some(term), deadline).await.0)
    }

    /// Waits until the local directory reflects every write acknowledged before the call, on any server.
    /// Concurrent calls share rounds.
    ///
    /// # Errors
    /// No leader confirmed in time, too many wait, or this server must not serve.
    pub async fn confirm(&self, mode: Freshness, deadline: Instant) -> Result<Confirmed, ReadError> {
        self.inner.confirm(mode, deadline).await
    }

    /// For a leader: waits until a quorum has confirmed, after this call began, that it leads, and until its
    /// directory reflects everything acknowledged before.
    ///
    /// # Errors
    /// It does not lead, or could not find out before `deadline`.
    pub async fn confirm_leadership(&self, deadline: Instant) -> Result<Term, NotLeader> {
        let inner = &self.inner;
        let not_leader = || NotLeader {
            leader: inner.leadership.borrow().leader,
        };
        let round = tokio::time::timeout_at(deadline, inner.leader_rounds.linearizable.ask()).await;
        let confirmed = round.map_err(|_| not_leader())?.map_err(|_| not_leader())?;
        inner
            .wait_applied(confirmed.index, deadline)
            .await
            .map_err(|_| not_leader())?;
        Ok(confirmed.term)
    }

    /// The replicated state of this server.
    #[must_use]
    pub fn directory(&self) -> &Arc<SharedDirectory> {
        &self.inner.directory
    }

    /// For a leader: whether a quorum has answered it within the last lease, half the longest election timeout.
    /// Costs a look, asks nobody. Without a quorum nothing can be recorded or confirmed here.
    #[must_use]
    pub fn hears_quorum(&self) -> bool {
        let inner = &self.inner;
        let metrics = inner.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.membership().voter_ids();
        voters.all(|voter| voter == inner.options.server.0)
            || metrics
                .last_quorum_acked
                .is_some_and(|acked| acked.into_inner().elapsed() < inner.options.lease())
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

    /// An upper bound on how far the local state lags the leader's, measured from when this server sent its
    /// last answered probe. Probes run while someone asks; `None`: none was answered yet.
    #[must_use]
    pub fn local_age(&self) -> Option<Duration> {
        self.inner.age.ask()
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

    /// Names who answers renewals when this server leads, as long as the caller keeps it. To be called once, before the peers
    /// are served.
    pub fn set_desk(&self, desk: &Arc<dyn LeaderDesk>) {
        if self.inner.desk.set(Arc::downgrade(desk)).is_err() {
            tracing::warn!("a leader's desk was set before; the first stays");
        }
    }

    /// Tells the leader which sessions were heard from, in ascending order.
    ///
    /// # Errors
    /// Nothing is acknowledged; report again.
    pub async fn report_renewals(
        &self,
        sessions: Vec<SessionId>,
        deadline: Instant,
    ) -> Result<RenewalVerdict, DeskError> {
        let inner = &self.inner;
        if inner.leads() {
            return inner.record_renewals(inner.options.server, sessions).await;
        }
        let report = |leader| v1::RenewalReport {
            cluster: inner.options.cluster.clone(),
            from: inner.options.server.0,
            to: leader,
            held: sessions.len() as u64,
            sessions: wire::encode_sessions(&sessions),
        };
        let answer = inner
            .ask_leader(deadline, |mut client, leader| {
                let report = report(leader);
                async move { client.report_renewals(report).await }
            })
            .await?;
        match answer.error {
            Some(error) => Err(DeskError::NoLeader {
                reason: error.message,
            }),
            None => Ok(RenewalVerdict {
                not_found: answer.not_found.into_iter().map(SessionId).collect(),
                undecided: answer.undecided.into_iter().map(SessionId).collect(),
            }),
        }
    }

    /// The same at once, without a question to anybody: `None` unless this server leads and is the cluster.
    pub(crate) fn report_renewals_alone(&self, sessions: &[SessionId]) -> Option<RenewalVerdict> {
        let inner = &self.inner;
        if !inner.solitude.is_certain() {
            return None;
        }
        let desk = inner.desk.get().and_then(Weak::upgrade)?;
        desk.record_alone(inner.options.server, sessions)
    }

    /// When these sessions lapse, by the leader's word.
    ///
    /// # Errors
    /// The leader did not answer.
    pub async fn session_deadlines(
        &self,
        sessions: Vec<SessionId>,
        deadline: Instant,
    ) -> Result<Vec<SessionDeadline>, DeskError> {
        let inner = &self.inner;
        if inner.leads() {
            return inner.deadlines(&sessions);
        }
        let sessions: Vec<u64> = sessions.into_iter().map(|session| session.0).collect();
        let question = v1::leader_question::Question::Deadlines(v1::SessionDeadlines { sessions });
        let answer = inner.ask_question(question, deadline).await?;
        match answer.error {
            Some(error) => Err(DeskError::NoLeader {
                reason: error.message,
            }),
            None => Ok(answer.deadlines.into_iter().map(deadline_of).collect()),
        }
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

enum Survey {
    /// A majority of the initial members has nothing.
    New,
    /// A member belongs to a running cluster.
    Running,
    /// Too few can be asked.
    TooFew,
}

impl Inner {
    fn raft_error(&self, reason: String) -> StartError {
        StartError::Raft {
            data: self.options.data.clone(),
            reason,
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.leadership.borrow().leader == Some(self.options.server)
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

    /// Settles what a server with an empty folder is; whether this call did. To catch up is recorded first: after a
    /// restart half-way the folder is not empty any more.
    async fn decide(&self, standing: Standing) -> std::io::Result<bool> {
        let (gate, log) = (self.gate.clone(), self.log.clone());
        let decide = move || {
            gate.decide(standing, || match standing {
                Standing::CatchingUp => log.write_rejoining(true),
                Standing::Undecided | Standing::Whole => log.write_rejoining(false),
            })
        };
        crate::ground::spawn_blocking(decide)
            .await
            .map_err(std::io::Error::other)?
    }

    /// The cluster runs: what this server has once acknowledged there, if it has, an empty folder cannot tell.
    /// To be awaited before anything is taken from a leader.
    pub(super) async fn join_running(&self) -> std::io::Result<()> {
        if self.gate.standing() == Standing::Undecided && self.decide(Standing::CatchingUp).await? {
            tracing::warn!(
                "RC-109: the cluster runs already but this folder is new; not voting until caught up"
            );
        }
        Ok(())
    }

    async fn survey(&self, members: &BTreeMap<ServerId, PeerAddresses>) -> Survey {
        let others = members.iter().filter(|(id, _)| **id != self.options.server);
        let asked = others.map(|(id, node)| upkeep::probe(&self.peers, id.0, &node.peer_address));
        let answers: Vec<_> = futures_util::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect();
        if answers.iter().any(|answer| answer.in_operation) {
            Survey::Running
        } else if (answers.len() + 1) * 2 > members.len() {
            Survey::New
        } else {
            Survey::TooFew
        }
    }

    /// One attempt, here or at the leader.
    async fn attempt(&self, admitted: Admitted, deadline: Instant) -> Answered {
        let leader = self.leadership.borrow().leader;
        match leader {
            Some(leader) if leader == self.options.server => {
                self.attempt_here(admitted, None, deadline).await
            }
            Some(leader) => match self.address_of(leader.0) {
                Some(address) => self.attempt_at(leader.0, &address, admitted, deadline).await,
                None => not_proposed(format!("the address of leader {leader} is not known"), admitted),
            },
            None => not_proposed("no leader is known", admitted),
        }
    }

    /// One attempt at this server, which must lead.
    pub(super) async fn attempt_here(
        &self,
        admitted: Admitted,
        term: Option<Term>,
        deadline: Instant,
    ) -> Answered {
        match self.may_propose() {
            Ok(()) => {}
            Err(Attempt::NotProposed(reason)) => return not_proposed(reason, admitted),
            Err(refused) => return (refused, None),
        }
        await_attempt(deadline, admitted, |ticket, reply| {
            self.submit(Proposal {
                term,
                deadline,
                ticket: Some(ticket),
                reply,
            });
        })
        .await
    }

    /// Whether proposals are taken here; if not, what becomes of one.
    pub(super) fn may_propose(&self) -> Result<(), Attempt> {
        if self.gate.is_diverged() {
            Err(Attempt::NotProposed(ReadError::Diverged.to_string()))
        } else if !self.leads() {
            Err(Attempt::NotProposed("this server does not lead".into()))
        } else if self.space.is_full() {
            Err(Attempt::DiskFull)
        } else {
            Ok(())
        }
    }

    /// Queues a proposal; the answer comes through its reply.
    pub(super) fn submit(&self, proposal: Proposal) {
        self.proposer.submit(proposal);
    }

    /// Takes room for a request; `None`: too much is under way already.
    pub(super) fn admit(&self, request: Bytes) -> Option<Admitted> {
        let bytes = u32::try_from(request.len()).ok()?;
        let room = self.room.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Admitted::new(request, Some(room)))
    }

    async fn attempt_at(
        &self,
        leader: u64,
        address: &str,
        admitted: Admitted,
        deadline: Instant,
    ) -> Answered {
        if self.gate.is_diverged() {
            return not_proposed(ReadError::Diverged.to_string(), admitted);
        }
        await_attempt(deadline, admitted, |ticket, reply| {
            self.forwarder.submit(
                leader,
                address,
                Call {
                    deadline,
                    ticket,
                    reply,
                },
            );
        })
        .await
    }

    pub(super) async fn confirm(&self, mode: Freshness, deadline: Instant) -> Result<Confirmed, ReadError> {
        let mut leadership = self.leadership.subscribe();
        loop {
            if self.gate.is_diverged() {
                return Err(ReadError::Diverged);
            }
            let round = tokio::time::timeout_at(deadline, self.round(mode)).await;
            let reason = match round {
                Ok(Ok(confirmed)) => {
                    self.wait_applied(confirmed.index, deadline).await?;
                    return Ok(confirmed);
                }
                Ok(Err(RoundError::Overloaded)) => {
                    return Err(ReadError::Overloaded {
                        retry_after: OVERLOAD_PAUSE,
                    });
                }
                Ok(Err(RoundError::NotLeader)) => "no leader is known".into(),
                Ok(Err(RoundError::Failed(reason))) => reason,
                Err(_) => "no answer before the deadline".into(),
            };
            let now = Instant::now();
            if now >= deadline || self.stop.is_cancelled() {
                return Err(ReadError::Unavailable { reason });
            }
            let _ = tokio::time::timeout_at(deadline.min(now + RETRY_PAUSE), leadership.changed()).await;
        }
    }

    async fn round(&self, mode: Freshness) -> Round<Confirmed> {
        let trusts_itself = planted(Mutant::EndlessLease) && mode == Freshness::Leased && self.leads();
        if planted(Mutant::StaleRead) || trusts_itself {
            return Ok(Confirmed {
                term: Term::default(),
                index: LogIndex::default(),
            });
        }
        match self.leads() {
            true => self.leader_rounds.ask(mode).await,
            false => self.remote_rounds.ask(mode).await,
        }
    }

    /// A round for another server, which follows this one in a term, if it said so: this one must lead.
    pub(super) async fn leader_round(
        &self,
        leased: bool,
        follower: u64,
        following: Option<Term>,
    ) -> Round<Confirmed> {
        if let Some(term) = following
            && let Some(confirmed) = confirm_by_word(&self.raft, follower, term).await
        {
            return Ok(confirmed);
        }
        self.leader_rounds
            .ask(if leased {
                Freshness::Leased
            } else {
                Freshness::Linearizable
            })
            .await
    }

    /// A round asked of the leader over the network.
    pub(super) async fn remote_round(&self) -> Round<Confirmed> {
        self.remote_rounds.ask(Freshness::Linearizable).await
    }

    async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), ReadError> {
        if self.head.borrow().covers(index) {
            return Ok(());
        }
        let mut head = self.head.clone();
        match tokio::time::timeout_at(deadline, head.wait_for(|head| head.covers(index))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Unavailable {
                reason: "replication has ended".into(),
            }),
            Err(_) => Err(ReadError::Unavailable {
                reason: format!("this server has not applied entry {index} yet"),
            }),
        }
    }

    pub(super) fn address_of(&self, server: u64) -> Option<String> {
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.get_node(&server).map(|node| node.peer_address.clone())
    }

    pub(super) async fn record_renewals(
        &self,
        from: ServerId,
        sessions: Vec<SessionId>,
    ) -> Result<RenewalVerdict, DeskError> {
        let desk = self
            .desk
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| DeskError::NoLeader {
                reason: "the leader is starting".into(),
            })?;
        let verdict = desk.record_renewals(from, sessions).await;
        verdict.map_err(|error| DeskError::NoLeader {
            reason: error.to_string(),
        })
    }

    pub(super) fn deadlines(&self, sessions: &[SessionId]) -> Result<Vec<SessionDeadline>, DeskError> {
        let desk = self
            .desk
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| DeskError::NoLeader {
                reason: "the leader is starting".into(),
            })?;
        Ok(desk.deadlines(sessions))
    }

    /// One call to whoever leads.
    pub(super) async fn ask_leader<T, F, Fut>(&self, deadline: Instant, call: F) -> Result<T, DeskError>
    where
        F: FnOnce(v1::peer_client::PeerClient<rollcall_proto::upgrade::Channel>, u64) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let leader = self
            .leadership
            .borrow()
            .leader
            .filter(|leader| *leader != self.options.server);
        let leader = leader.ok_or_else(|| DeskError::NoLeader {
            reason: "no leader is known".into(),
        })?;
        let address = self.address_of(leader.0).ok_or_else(|| DeskError::NoLeader {
            reason: format!("the address of leader {leader} is not known"),
        })?;
        let unreachable = |reason: String| DeskError::Unreachable { reason };
        let client = self
            .peers
            .client(leader.0, &address)
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = tokio::time::timeout_at(deadline, call(client, leader.0)).await;
        let answer = answer.map_err(|_| unreachable("no answer before the deadline".into()))?;
        Ok(answer
            .map_err(|status| unreachable(status.message().to_owned()))?
            .into_inner())
    }

    pub(super) async fn ask_question(
        &self,
        question: v1::leader_question::Question,
        deadline: Instant,
    ) -> Result<v1::LeaderAnswer, DeskError> {
        self.ask_leader(deadline, |mut client, leader| {
            let question = v1::LeaderQuestion {
                cluster: self.options.cluster.clone(),
                from: self.options.server.0,
                to: leader,
                question: Some(question),
            };
            async move { client.ask_leader(question).await }
        })
        .await
    }

    fn status(&self) -> RaftStatus {
        let stopped = self.stop_reason();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<&super::types::LogId>| id.map(|id| LogIndex(id.index));
        RaftStatus {
            server: self.options.server,
            role: role_of(metrics.state),
            leadership: *self.leadership.borrow(),
            last_log_index: metrics.last_log_index.map(LogIndex),
            committed_index: index(metrics.local_committed.as_ref()),
            applied: *self.head.borrow(),
            snapshot_index: index(metrics.snapshot.as_ref()),
            purged_index: index(metrics.purged.as_ref()),
            loaded: self.loaded.load(Ordering::Acquire),
            disk_full: self.space.is_full(),
            vote_withheld: self.gate.is_withheld(),
            diverged: self.gate.is_diverged(),
            stopped,
        }
    }

    pub(super) fn age(&self) -> Arc<AgeProbe> {
        self.age.clone()
    }

    pub(super) fn metrics(&self) -> WatchReceiverOf<TypeConfig, openraft::RaftMetrics<TypeConfig>> {
        self.raft.metrics()
    }

    pub(super) fn members(&self) -> Vec<MemberInfo> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let own = role_of(metrics.state);
        let member = |(id, node): (&u64, &PeerAddresses)| {
            let voter = voters.contains(id);
            let role = match () {
                () if *id == self.options.server.0 => own,
                () if metrics.current_leader == Some(*id) => MemberRole::Leader,
                () if voter => MemberRole::Follower,
                () => MemberRole::Learner,
            };
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id))
                .and_then(|matched| *matched);
            let heard = metrics
                .heartbeat
                .as_ref()
                .and_then(|all| all.get(id))
                .and_then(|heard| *heard);
            MemberInfo {
                server: ServerId(*id),
                addresses: node.clone(),
                voter,
                role,
                matched: matched.map(|matched| LogIndex(matched.index)),
                last_contact: heard.map(|heard| heard.into_inner().elapsed()),
            }
        };
        membership.nodes().map(member).collect()
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

fn role_of(state: ServerState) -> MemberRole {
    match state {
        ServerState::Leader => MemberRole::Leader,
        ServerState::Follower => MemberRole::Follower,
        ServerState::Candidate => MemberRole::Candidate,
        ServerState::Learner | ServerState::Shutdown => MemberRole::Learner,
    }
}

fn encode(request: &Request) -> Result<Bytes, ProposeError> {
    let bytes = request.encode();
    match bytes.len() <= REQUEST_BYTES_MAX {
        true => Ok(bytes),
        false => Err(ProposeError::Refused(Refusal::TooLarge {
            what: "request".into(),
            size: bytes.len() as u64,
            size_max: REQUEST_BYTES_MAX as u64,
        })),
    }
}

fn result_of(attempt: Attempt) -> Result<Outcome, ProposeError> {
    match attempt {
        Attempt::Applied(result) => Ok(result?),
        Attempt::NotProposed(reason) => Err(ProposeError::Unavailable { reason }),
        Attempt::DiskFull => Err(ProposeError::DiskFull),
        Attempt::Overloaded => Err(ProposeError::Overloaded {
            retry_after: OVERLOAD_PAUSE,
        }),
        Attempt::Unknown(reason) => Err(ProposeError::Unknown { reason }),
    }
}

fn not_proposed(reason: impl Into<String>, admitted: Admitted) -> Answered {
    (Attempt::NotProposed(reason.into()), Some(admitted))
}

async fn await_attempt(
    deadline: Instant,
    admitted: Admitted,
    submit: impl FnOnce(Ticket, Reply),
) -> Answered {
    let (reply, answered) = Reply::to(admitted);
    let ticket = Ticket::default();
    submit(ticket.clone(), reply);
    let attempt = match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(answered)) => return answered,
        Ok(Err(_)) => Attempt::Unknown("replication ended before the answer".into()),
        Err(_) if ticket.try_cancel() => {
            Attempt::NotProposed("the deadline passed before it was proposed".into())
        }
        Err(_) => Attempt::Unknown("no answer before the deadline".into()),
    };
    (attempt, None)
}

fn deadline_of(deadline: v1::SessionDeadline) -> SessionDeadline {
    SessionDeadline {
        session: SessionId(deadline.session),
        lapses_in: Duration::from_millis(deadline.lapses_in_ms),
        holder: (deadline.holder != 0).then_some(ServerId(deadline.holder)),
    }
}

impl Consensus {
    /// Adds a server without a vote. It must be running, with an empty folder and `join` set.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(
        &self,
        server: ServerId,
        addresses: PeerAddresses,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        self.inner
            .order(
                super::membership::Order::AddLearner(server.0, addresses),
                deadline,
            )
            .await
    }

    /// Gives a learner a vote once it has caught up and may use it.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn promote(&self, server: ServerId, deadline: Instant) -> Result<(), MembershipError> {
        self.inner
            .order(super::membership::Order::Promote(server.0), deadline)
            .await
    }

    /// Removes a member; the leader hands over first.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove(&self, server: ServerId, deadline: Instant) -> Result<(), MembershipError> {
        self.inner
            .order(super::membership::Order::Remove(server.0), deadline)
            .await
    }

    /// Hands leadership to a voter that answers and may stand for election; `None`: of those heard from lately, the one
    /// with the longest log.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn transfer_leadership(
        &self,
        to: Option<ServerId>,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        self.inner
            .order(super::membership::Order::Transfer(to.map(|to| to.0)), deadline)
            .await
    }

    /// Takes a snapshot on this server now, and waits for it.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn take_snapshot(&self) -> Result<(), MembershipError> {
        self.inner.take_snapshot().await
    }
}
