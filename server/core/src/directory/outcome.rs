//! What became of a request, and what watchers are to be told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::{GroupMode, Node, Override, ServiceSettings};
use super::sign::Sign;
use crate::guard::{Ending, GuardStatus};
use crate::ids::{
    GroupName, Incarnation, NameError, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId,
};
use crate::storm::{Record, Scope};

/// A request was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Revision of the change; where nothing changed, the directory's revision at that moment.
    pub revision: Revision,
    /// Whether anything changed.
    pub changed: bool,
    /// The request id had been applied before; this is what was answered then.
    pub repeated: bool,
    /// The session that was opened.
    pub session: Option<SessionId>,
    /// Of an expiry: the sessions for which it was void, because they had moved, had lapsed before or were gone
    /// already. Of a revival: those that had not lapsed then, or are gone.
    pub voided: Vec<SessionId>,
}

/// A request was refused; nothing changed. Phrased by the caller's next move.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Create it, or correct the name.
    #[error("group {group} was not found")]
    GroupNotFound {
        /// Which.
        group: GroupName,
    },
    /// Create it, correct the name, or turn on auto_create in the group.
    #[error("service {key} was not found")]
    ServiceNotFound {
        /// Which.
        key: ServiceKey,
    },
    /// It is not registered.
    #[error("node {key} was not found")]
    NodeNotFound {
        /// Which.
        key: NodeKey,
    },
    /// Open a new session, then register again.
    #[error("session {session} was not found")]
    SessionNotFound {
        /// Which.
        session: SessionId,
    },
    /// Read again, then retry with the revision you saw.
    #[error("{subject} is at revision {current}, expected {expected}")]
    RevisionMismatch {
        /// The record.
        subject: String,
        /// What the caller expected.
        expected: Revision,
        /// What it is.
        current: Revision,
    },
    /// It exists, and the caller expected it not to.
    #[error("{subject} exists already, at revision {current}")]
    AlreadyExists {
        /// The record.
        subject: String,
        /// Its revision.
        current: Revision,
    },
    /// Empty it first.
    #[error("{subject} still has {children}")]
    NotEmpty {
        /// The record.
        subject: String,
        /// How many of what.
        children: String,
    },
    /// Another session owns the node; it took it over, or always had it.
    #[error("node {key} belongs to another session")]
    NotOwner {
        /// Which.
        key: NodeKey,
    },
    /// Make a new request id: this one was used for something else.
    #[error("request id {id} was used before for another request")]
    RequestIdReused {
        /// Which.
        id: RequestId,
    },
    /// Send less at once, or make it smaller.
    #[error("{what} is {size}, at most {size_max} is allowed")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        size: u64,
        /// The bound.
        size_max: u64,
    },
    /// A quota is used up.
    #[error("{subject} may have at most {quota} {of}")]
    QuotaExceeded {
        /// Whose quota.
        subject: String,
        /// How many.
        quota: u32,
        /// Of what.
        of: String,
    },
    /// Correct the name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Correct the argument.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which field.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Try again in a moment: nothing may change in it until it has moved.
    #[error(
        "group {group} is on its way from one mode to the other, and takes no writes until it has arrived"
    )]
    Moving {
        /// Which.
        group: GroupName,
    },
    /// Nodes of this group are written elsewhere: look at its mode again, and take the write there.
    #[error("group {group} is in mode {mode}, and its nodes are not written here")]
    OtherMode {
        /// Which.
        group: GroupName,
        /// The mode that it has.
        mode: GroupMode,
    },
}

/// What applying one request did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// For the caller.
    pub result: Result<Outcome, Refusal>,
    /// For the watchers and the session authority; also kept in the change log.
    pub changes: Option<Arc<RevisionChanges>>,
}

/// Everything that one revision changed. Ten thousand of them are kept, so what is rare has no room of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionChanges {
    /// Which.
    pub revision: Revision,
    /// By which request.
    pub request: RequestId,
    /// Per service, in the order of their keys.
    pub services: Vec<ServiceChange>,
    /// Sessions that came, went, lapsed or were revived.
    pub sessions: Vec<SessionChange>,
    /// Services whose removal guard has something new to say, in the order of their keys. Those of deleted
    /// services are not told.
    pub guards: Vec<GuardChange>,
    /// Groups whose settings were put (`true`) or that were deleted (`false`).
    pub groups: Vec<(GroupName, bool)>,
    /// Overrides with a ttl that came (with it) or overrides that went (`None`).
    pub overrides: Vec<(NodeKey, Option<Arc<Override>>)>,
    /// The switch of a scope that was set, and how.
    pub storm: Option<Box<(Scope, Record)>>,
}

/// What one revision changed in one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// Which.
    pub key: ServiceKey,
    /// Whether the service came, stayed or went.
    pub fate: ServiceFate,
    /// Its sign afterwards.
    pub sign: Sign,
    /// Its settings, if they changed.
    pub settings: Option<Box<ServiceSettings>>,
    /// Its nodes that changed, in the order of their ids.
    pub nodes: Vec<NodeChange>,
    /// What its removal guard says, if that is something else than before, be it only another count. If it is
    /// idle, it has nothing to say any more.
    pub guard: Option<Box<GuardStatus>>,
}

/// What happened to a service as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceFate {
    /// It is new.
    Created,
    /// It was there and is there.
    Kept,
    /// It was deleted.
    Deleted,
}

/// What happened to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// It is there, and like this.
    Put {
        /// The lower layer.
        node: Arc<Node>,
        /// The upper layer, if there is one.
        over: Option<Arc<Override>>,
    },
    /// It is gone.
    Removed {
        /// Which.
        id: NodeId,
        /// Its last incarnation.
        incarnation: Incarnation,
        /// Why.
        cause: RemovalCause,
    },
}

/// Why a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemovalCause {
    /// By its own or an operator's word.
    Deregistered,
    /// Its session lapsed, and the guard let it go.
    Expired,
    /// Its session was closed.
    SessionClosed,
}

/// A service's removal guard has something new to say: it engaged or disengaged, holds more or fewer nodes,
/// removed some, or a window began or is over. Nodes that merely join or leave are no news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardChange {
    /// Of which service.
    pub service: ServiceKey,
    /// What happened.
    pub event: GuardEvent,
    /// What it says now. Count down for [`GuardStatus::window`], and for [`GuardStatus::held_since`] unless
    /// `overdue`, whenever one of them is another than before.
    pub status: GuardStatus,
}

/// What happened to a removal guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardEvent {
    /// Nothing lapses away from now on.
    Engaged,
    /// Nodes may lapse away again, by itself.
    Disengaged(Ending),
    /// An operator confirmed the removal of what was held.
    Confirmed {
        /// Who.
        author: String,
        /// Why.
        reason: String,
    },
    /// Engaged as before, or not engaged as before.
    Changed,
}

/// A session came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// Start its countdown.
    Opened {
        /// Which.
        session: SessionId,
        /// Granted, in milliseconds.
        ttl_ms: u32,
    },
    /// Forget it.
    Ended {
        /// Which.
        session: SessionId,
        /// How.
        cause: RemovalCause,
    },
    /// It lapsed and some of its nodes are held: nothing counts down for it, but it may be heard from.
    Lapsed {
        /// Which.
        session: SessionId,
        /// How many of its nodes are held.
        held: usize,
    },
    /// It was heard from again: start its countdown.
    Revived {
        /// Which.
        session: SessionId,
        /// Granted, in milliseconds.
        ttl_ms: u32,
        /// How many of its nodes were held.
        held: usize,
    },
}

impl SessionChange {
    /// Which session it is about.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match *self {
            Self::Opened { session, .. }
            | Self::Ended { session, .. }
            | Self::Lapsed { session, .. }
            | Self::Revived { session, .. } => session,
        }
    }
}
