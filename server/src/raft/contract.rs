//! What the other shells meet of replication: questions, answers and refusals.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rollcall_core::directory::{Directory, Refusal};
use rollcall_core::ids::{LogIndex, LogPosition, Revision, ServerId, SessionId, Term};
use tokio::time::Instant;

use super::types::PeerAddresses;

/// The replicated directory of this server: the lock is held for an apply or a look, never across a wait.
#[derive(Debug)]
pub struct SharedDirectory {
    directory: RwLock<Directory>,
    /// The entry at which it stands. Changed by who holds the lock for writing.
    position: Mutex<Option<LogPosition>>,
}

impl SharedDirectory {
    pub(crate) fn new(directory: Directory) -> Self {
        Self {
            directory: RwLock::new(directory),
            position: Mutex::default(),
        }
    }

    /// Locks for reading. Clone the `Arc`s you need and leave.
    pub fn read(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read()
    }

    /// The same, unless somebody writes.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, Directory>> {
        self.directory.try_read()
    }

    /// As [`Self::read`], with the entry at which this very state stands: what [`AppliedHead`] says may trail it.
    pub(crate) fn read_placed(&self) -> (RwLockReadGuard<'_, Directory>, Option<LogPosition>) {
        let directory = self.directory.read();
        let position = *self.position.lock();
        (directory, position)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory.write()
    }

    /// Says where the state stands that is being written.
    pub(crate) fn place(&self, _writing: &RwLockWriteGuard<'_, Directory>, position: Option<LogPosition>) {
        *self.position.lock() = position;
    }
}

/// How far this server has applied the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedHead {
    /// The directory's revision.
    pub revision: Revision,
    /// The last entry applied; `None` before the first (the first entry of a log has index 0).
    pub position: Option<LogPosition>,
}

impl AppliedHead {
    /// Whether everything up to `index` has been applied.
    #[must_use]
    pub fn covers(&self, index: LogIndex) -> bool {
        self.position.is_some_and(|position| position.index >= index)
    }
}

/// Who leads, as far as this server knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term this server is in.
    pub term: Term,
    /// The leader of that term.
    pub leader: Option<ServerId>,
    /// This server leads and has applied the first entry of its term: its directory holds every write ever
    /// acknowledged.
    pub leading: bool,
}

/// Why a proposal got no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The directory said no; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Surely not applied. Retry, here or elsewhere.
    #[error("not proposed: {reason}")]
    Unavailable {
        /// For people.
        reason: String,
    },
    /// Surely not applied: too much is under way already. Retry after a pause.
    #[error("too many proposals are under way, retry in {retry_after:?}")]
    Overloaded {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Surely not applied: the leader's disk is nearly full. Retry when an operator has made room.
    #[error("not proposed: the leader's disk is full (RC-111)")]
    DiskFull,
    /// It may have been applied, or may yet be. Retry with the same request id, which is safe.
    #[error("outcome unknown: {reason}")]
    Unknown {
        /// For people.
        reason: String,
    },
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The leader asks a quorum whether it still leads.
    Linearizable,
    /// The leader rests on its lease, a quorum's word of at most half an election timeout ago; without one it
    /// asks the quorum.
    Leased,
}

/// The local directory reflects everything acknowledged before the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The term of the leader that confirmed.
    pub term: Term,
    /// The log position it confirmed; applied here.
    pub index: LogIndex,
}

/// Why a read could not be confirmed. Nothing was read; a retry is safe.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No leader could confirm before the deadline. Retry, here or elsewhere, or read with less freshness.
    #[error("no leader confirmed the read: {reason}")]
    Unavailable {
        /// For people.
        reason: String,
    },
    /// Too many reads wait. Retry after a pause.
    #[error("too many reads wait, retry in {retry_after:?}")]
    Overloaded {
        /// How long to wait.
        retry_after: Duration,
    },
    /// This server's state differs from the leader's; it serves nothing until it is rebuilt. Ask another.
    #[error("this server's state differs from the leader's and is not served (RC-110)")]
    Diverged,
}

/// This server does not lead, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this server does not lead")]
pub struct NotLeader {
    /// Who does, if known.
    pub leader: Option<ServerId>,
}

/// What the leader made of a report of renewals. Sessions in neither list were renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenewalVerdict {
    /// These do not exist (any more).
    pub not_found: Vec<SessionId>,
    /// An expiry of these is under way; ask again.
    pub undecided: Vec<SessionId>,
}

/// When a session lapses, by the leader's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionDeadline {
    /// Which.
    pub session: SessionId,
    /// From now.
    pub lapses_in: Duration,
    /// The server that last reported it.
    pub holder: Option<ServerId>,
}

/// Why a question to the leader's desk got no answer. Nothing was renewed; ask again.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// No leader is known, or it no longer leads.
    #[error("no leader: {reason}")]
    NoLeader {
        /// For people.
        reason: String,
    },
    /// The leader could not be reached, or did not answer in time. It may have recorded the report.
    #[error("the leader did not answer: {reason}")]
    Unreachable {
        /// For people.
        reason: String,
    },
}

/// Takes over, at the leader, what a server that is to be removed has acknowledged outside the log.
#[tonic::async_trait]
pub trait Heir: Send + Sync + 'static {
    /// From now on that server acknowledges nothing that is not in the log, and what it did is on this server's disk. `lost`:
    /// if it does not answer, so be it.
    ///
    /// # Errors
    /// It must not be removed: something would be lost. It stays as it was.
    async fn inherit(
        self: Arc<Self>,
        server: ServerId,
        lost: bool,
        deadline: Instant,
    ) -> Result<(), MembershipError>;

    /// It is not removed after all.
    async fn let_stay(self: Arc<Self>, server: ServerId);
}

/// What the peer listener hands to the session authority when this server leads.
#[tonic::async_trait]
pub trait LeaderDesk: Send + Sync + 'static {
    /// Records signs of life and, with the leadership confirmed after they came, says what became of them.
    async fn record_renewals(
        &self,
        from: ServerId,
        sessions: Vec<SessionId>,
    ) -> Result<RenewalVerdict, NotLeader>;

    /// The same at once, where this server leads nobody but itself and its leadership needs no confirmation. `None`: it
    /// cannot.
    fn record_alone(&self, _from: ServerId, _sessions: &[SessionId]) -> Option<RenewalVerdict> {
        None
    }

    /// When these sessions lapse; those unknown are left out.
    fn deadlines(&self, sessions: &[SessionId]) -> Vec<SessionDeadline>;
}

/// What a server is in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// It leads.
    Leader,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows without a vote.
    Learner,
}

/// One member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Which server.
    pub server: ServerId,
    /// Where it is reached.
    pub addresses: PeerAddresses,
    /// Whether it counts for quorums.
    pub voter: bool,
    /// What it is, as far as this server knows.
    pub role: MemberRole,
    /// How much of the leader's log it has; known to the leader only.
    pub matched: Option<LogIndex>,
    /// When the leader last heard from it; known to the leader only.
    pub last_contact: Option<Duration>,
}

/// How replication does on this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This server.
    pub server: ServerId,
    /// What it is.
    pub role: MemberRole,
    /// Its term and leader.
    pub leadership: Leadership,
    /// Last entry in its log.
    pub last_log_index: Option<LogIndex>,
    /// Last entry it knows to be committed.
    pub committed_index: Option<LogIndex>,
    /// Last entry applied, and the revision.
    pub applied: AppliedHead,
    /// Last entry in its snapshot.
    pub snapshot_index: Option<LogIndex>,
    /// Last entry purged from its log.
    pub purged_index: Option<LogIndex>,
    /// It has caught up with what the cluster had committed when it started.
    pub loaded: bool,
    /// Free space is below the reserve.
    pub disk_full: bool,
    /// Its disk forgot what it had acknowledged; it does not vote until it has caught up.
    pub vote_withheld: bool,
    /// Its state differs from the leader's; it serves nothing.
    pub diverged: bool,
    /// Why replication stopped, if it did.
    pub stopped: Option<String>,
}

/// Why the membership did not change as asked.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Correct the request.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Wait for the other change, then retry.
    #[error("another membership change is under way: {reason}")]
    InProgress {
        /// For people.
        reason: String,
    },
    /// Surely not changed. Retry.
    #[error("the membership was not changed: {reason}")]
    Unavailable {
        /// For people.
        reason: String,
    },
    /// Look at the members, then retry if needed.
    #[error("the membership change's outcome is unknown: {reason}")]
    Unknown {
        /// For people.
        reason: String,
    },
}
