//! What may be asked of the directory through the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::record::{GroupSettings, NodeState, Override, Registration, ServiceSettings};
use crate::ids::{GroupName, LogIndex, NodeKey, RequestId, Revision, ServiceKey, SessionId, Term};

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
    /// The leader found these sessions lapsed. Void for each that showed life since, and void as a whole if
    /// the entry was not proposed in `term` (a deposed leader expires nobody).
    ExpireSessions {
        /// The proposing leader's term.
        term: Term,
        /// Whom, each with the sign of life the leader had seen.
        sessions: Vec<ExpiryFence>,
    },
    /// Registers nodes, all or none, in one revision.
    Register {
        /// Under which session; needed for ephemeral nodes.
        session: Option<SessionId>,
        /// Which.
        nodes: Vec<RegisterNode>,
    },
    /// Removes nodes, all or none, in one revision. Under a session: only those it owns. A node that is
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
