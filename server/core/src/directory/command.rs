//! What may be asked of the directory through the log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::fields::{GroupField, ServiceField};
use super::limits::Limits;
use super::record::{GroupMode, GroupSettings, NodeKind, NodeState, Override, Registration, ServiceSettings};
use crate::ids::{
    GroupName, Incarnation, LogIndex, NodeKey, RequestId, Revision, ServiceKey, SessionId, Term,
};
use crate::storm::{Mode, Scope};

/// One write: a command and the name under which it is applied at most once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its globally unique name.
    pub id: RequestId,
    /// What to do.
    pub command: Command,
}

/// A condition on the record to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// None.
    #[default]
    Any,
    /// It must not exist.
    Absent,
    /// Of a node: it must exist, last modified at exactly this revision. Of a group or service: it must exist
    /// and its settings must not have changed after this revision, at which the caller saw them.
    Revision(Revision),
}

/// Everything that changes the directory. Variants are only ever added at the end: logs outlive servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Creates a group, or replaces its settings.
    PutGroup {
        /// Which.
        group: GroupName,
        /// Its settings.
        settings: GroupSettings,
        /// Condition on the group.
        expected: Expected,
    },
    /// Deletes a group without services.
    DeleteGroup {
        /// Which.
        group: GroupName,
        /// Condition on the group.
        expected: Expected,
    },
    /// Creates a service, or replaces its settings.
    PutService {
        /// Which.
        key: ServiceKey,
        /// `None`: the group's defaults for a new service; one that is there keeps its own.
        settings: Option<ServiceSettings>,
        /// Condition on the service.
        expected: Expected,
    },
    /// Deletes a service without nodes, its overrides included.
    DeleteService {
        /// Which.
        key: ServiceKey,
        /// Condition on the service.
        expected: Expected,
    },
    /// Opens a session; its id is given by apply.
    OpenSession {
        /// SHA-256 of the secret.
        secret_digest: [u8; 32],
        /// Granted, in milliseconds.
        ttl_ms: u32,
        /// A name for people.
        client: String,
    },
    /// Ends a session by its own or an operator's word; its nodes leave.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// The leader found these sessions lapsed. Void for each that showed life since or lapsed already, and void
    /// as a whole if the entry was not proposed in `term` (a deposed leader expires nobody). Each service's
    /// guard judges the nodes of all of them together: they leave, or become suspects. A session of which
    /// nodes are held stays, lapsed; the others end.
    ExpireSessions {
        /// The proposing leader's term.
        term: Term,
        /// Whom, each with the sign of life the leader had seen.
        sessions: Vec<ExpiryFence>,
        /// A tick that found more sessions than one command takes is cut: how many more nodes of which service
        /// lapsed in the same tick and follow in later commands, so that the guard judges the whole tick. A
        /// service without any is left out; at most `batch_max` services, the largest numbers.
        following: Vec<(ServiceKey, u32)>,
    },
    /// Registers nodes, all or none, in one revision.
    Register {
        /// Under which session; needed for ephemeral nodes.
        session: Option<SessionId>,
        /// Which.
        nodes: Vec<RegisterNode>,
    },
    /// Removes nodes, all or none, in one revision. Under a session: its own, and those of nobody. A node that is
    /// already gone is no error unless a revision is expected.
    Deregister {
        /// Under which session; `None`: an operator's word.
        session: Option<SessionId>,
        /// Which.
        nodes: Vec<DeregisterNode>,
    },
    /// Changes registered nodes, all or none, in one revision.
    Update {
        /// Under which session; `None`: an operator's word.
        session: Option<SessionId>,
        /// Which.
        nodes: Vec<UpdateNode>,
    },
    /// Lays an operator's word over a node id, replacing an earlier one.
    SetOverride {
        /// Which node; it need not be registered now, its service must exist.
        key: NodeKey,
        /// What.
        over: Override,
    },
    /// Takes it away again.
    ClearOverride {
        /// Which.
        key: NodeKey,
    },
    /// The leader found these overrides past their ttl. Void for each that was set anew since.
    ExpireOverrides {
        /// The proposing leader's term.
        term: Term,
        /// Which, each with the revision at which it was set.
        overrides: Vec<(NodeKey, Revision)>,
    },
    /// Replaces the limits of the cluster.
    SetLimits {
        /// The new ones.
        limits: Limits,
    },
    /// The leader heard from sessions that had lapsed and of which nodes are held: they go on, and their
    /// suspects are what they were before. Void for each that was revived meanwhile or ended, and as a whole if
    /// the entry was not proposed in `term`.
    ReviveSessions {
        /// The proposing leader's term.
        term: Term,
        /// Whom, each with the revision at which it lapsed.
        sessions: Vec<RevivalFence>,
    },
    /// The leader's clock says that these windows of removal guards are over. Void for each service that is
    /// in another window, and as a whole if the entry was not proposed in `term`. Held nodes whose time is over
    /// ([`Self::ReleaseHeld`]) go on leaving, as many as the share of the next window allows.
    CloseGuardWindows {
        /// The proposing leader's term.
        term: Term,
        /// Of which services, each with the revision at which the window began.
        windows: Vec<(ServiceKey, Revision)>,
    },
    /// The leader's clock says that these services' suspects were held long enough: `hold_max` since the guard
    /// engaged, or the sessions' ttl since it disengaged and left some over. They go, longest held first, at no
    /// more than the share per window. Void for each service whose hold began at another revision, and as a
    /// whole if the entry was not proposed in `term`.
    ReleaseHeld {
        /// The proposing leader's term.
        term: Term,
        /// Of which services, each with the revision at which the hold began.
        holds: Vec<(ServiceKey, Revision)>,
    },
    /// An operator confirms that a service's held nodes are gone: all of them leave, the last one too, in one
    /// revision, and the guard disengages. Counted as left by an operator's word, not as lapsed.
    ConfirmRemoval {
        /// Of which service.
        service: ServiceKey,
        /// The revision at which the hold that the operator saw began; `None`: whatever is held.
        since: Option<Revision>,
        /// For people: who.
        author: String,
        /// For people: why.
        reason: String,
    },
    /// Sets the heartbeat-storm switch of the cluster or of a group that is there, replacing an earlier record.
    /// A group's [`Mode::Inherited`] takes its record away, whether the group is still there or not.
    SetStorm {
        /// Whose.
        scope: Scope,
        /// To what.
        mode: Mode,
        /// For people: who.
        author: String,
        /// For people: why.
        reason: String,
    },
    /// Begins to move a group to the other mode: from here on nothing is written to it. Nothing happens if it is
    /// there, or on its way there.
    BeginMove {
        /// Which.
        group: GroupName,
        /// Where to.
        to: GroupMode,
        /// Milliseconds since 1970: the stamp of its records if it goes to gossip.
        stamp_ms: u64,
    },
    /// Nodes of a group that moves here, with their sessions and overrides; at most `batch_max` of each.
    AdoptNodes {
        /// Which group.
        group: GroupName,
        /// The revision at which its move began.
        since: Revision,
        /// Sessions that own any of the nodes.
        sessions: Vec<AdoptedSession>,
        /// Its nodes.
        nodes: Vec<AdoptedNode>,
        /// What operators said of its nodes.
        overrides: Vec<(NodeKey, Override)>,
    },
    /// Ends a move: the group has arrived, or stays what it was.
    EndMove {
        /// Which group.
        group: GroupName,
        /// The revision at which its move began.
        since: Revision,
        /// It has arrived.
        done: bool,
    },
    /// Writes some settings of a group, and leaves the others as they are. A group that is not there is created,
    /// with the defaults for them.
    ChangeGroup {
        /// Which.
        group: GroupName,
        /// Holds the settings to write; what else it says is nothing.
        settings: GroupSettings,
        /// Those to write.
        fields: BTreeSet<GroupField>,
        /// Condition on the group.
        expected: Expected,
    },
    /// The same of a service; a new one has its group's defaults for what is not named.
    ChangeService {
        /// Which.
        key: ServiceKey,
        /// Holds the settings to write; what else it says is nothing.
        settings: ServiceSettings,
        /// Those to write.
        fields: BTreeSet<ServiceField>,
        /// Condition on the service.
        expected: Expected,
    },
}

/// A session that comes with the nodes of a group that moves here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedSession {
    /// Its id, which it keeps.
    pub id: SessionId,
    /// SHA-256 of its secret.
    pub secret_digest: [u8; 32],
    /// Granted, in milliseconds.
    pub ttl_ms: u32,
    /// A name for people.
    pub client: String,
    /// It had lapsed, and what comes of it are suspects.
    pub lapsed: bool,
}

/// A node of a group that moves here, as it was listed there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedNode {
    /// Which.
    pub key: NodeKey,
    /// What its registrant said.
    pub registration: Registration,
    /// Resolved kind.
    pub kind: NodeKind,
    /// The session it lives with, which comes with it or is here already.
    pub session: Option<SessionId>,
    /// How often it was registered anew.
    pub incarnation: Incarnation,
    /// As it was listed.
    pub state: NodeState,
}

/// A session to expire, void if it moved (design section 2, rule 7). Session ids are never used twice, so the
/// id stands for the incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryFence {
    /// Which.
    pub session: SessionId,
    /// Its last committed sign of life when the leader judged it.
    pub last_renewal: LogIndex,
}

/// A lapsed session to revive, void if it is not the same lapse any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevivalFence {
    /// Which.
    pub session: SessionId,
    /// When it lapsed ([`super::Session::lapsed`]).
    pub lapsed: Revision,
}

/// One node of a [`Command::Register`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterNode {
    /// Into which service.
    pub key: ServiceKey,
    /// What the registrant says.
    pub registration: Registration,
    /// Condition on the node.
    pub expected: Expected,
}

/// One node of a [`Command::Deregister`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeregisterNode {
    /// Which.
    pub key: NodeKey,
    /// Condition on the node.
    pub expected: Expected,
}

/// One node of a [`Command::Update`]. Only what is set changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateNode {
    /// Which.
    pub key: NodeKey,
    /// Condition on the node.
    pub expected: Expected,
    /// New weight.
    pub weight: Option<u16>,
    /// New state: up, draining or down.
    pub state: Option<NodeState>,
    /// Labels to set, or to remove (`None`).
    pub labels: BTreeMap<String, Option<String>>,
    /// Metadata to set, or to remove (`None`).
    pub metadata: BTreeMap<String, Option<String>>,
}
