//! How a server starts: opens its folder, settles what it is worth, and founds a cluster or finds one.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::errors::{InitializeError, RaftError};
use parking_lot::Mutex;
use rollcall_core::directory::{Directory, Limits};
use rollcall_core::ids::ServerId;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::checkpoint::Checkpoints;
use super::consensus::{Consensus, Inner};
use super::contract::{AppliedHead, Leadership, SharedDirectory};
use super::heard::Heard;
use super::network::{Links, Peers};
use super::options::{ReplicationOptions, StartError};
use super::reads::{LeaderRounds, RemoteRounds};
use super::solitude::Solitude;
use super::state_machine::{Parts, StateMachine};
use super::types::PeerAddresses;
use super::vote_gate::{Standing, VoteGate};
use super::writes::{Forwarder, Proposer, WAITING_BYTES_MAX};
use super::{Raft, upkeep};
use crate::store::{
    DataFolder, Identity, LogStore, OpenedLog, SnapshotStore, SpaceWatch, StoreError, divergence,
};

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
        // Who once began to rejoin has heard another lead: what it has of the log since may end before the others joined it.
        let heard_a_leader = log.mark.rejoining && log.mark_read;
        let alone = voters == [server] && !heard_a_leader;
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
        if forgot && !log.mark.rejoining {
            // The mark trails what was acknowledged: only a leader knows how much more there was, also after another start.
            let noted = log.store.set_rejoining(true).await;
            noted.map_err(|error| raft_failed(error.to_string()))?;
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
            heard: Heard::new(options.probe_turn()),
            gate,
            peers,
            desk: OnceLock::new(),
            heir: OnceLock::new(),
            removing: tokio::sync::Mutex::default(),
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
}
