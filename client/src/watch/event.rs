//! What watchers are told.

use std::sync::Arc;

use rollcall_proto::v1;

use crate::error::Error;
use crate::node::Node;
use crate::view::ServiceView;

/// Why a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemovalCause {
    /// By its own or an operator's word.
    Deregistered,
    /// Its session lapsed.
    Expired,
    /// Its session was closed.
    SessionClosed,
    /// The server did not say.
    Unknown,
}

/// A node that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedNode {
    /// Its id.
    pub id: String,
    /// Why.
    pub cause: RemovalCause,
    /// The incarnation that went.
    pub incarnation: u64,
}

impl From<&v1::RemovedNode> for RemovedNode {
    fn from(removed: &v1::RemovedNode) -> Self {
        let cause = match removed.cause() {
            v1::RemovalCause::Deregistered => RemovalCause::Deregistered,
            v1::RemovalCause::Expired => RemovalCause::Expired,
            v1::RemovalCause::SessionClosed => RemovalCause::SessionClosed,
            v1::RemovalCause::Unspecified => RemovalCause::Unknown,
        };
        Self {
            id: removed.id.clone(),
            cause,
            incarnation: removed.incarnation,
        }
    }
}

/// Something that a watch has to tell. Per service, revisions only grow; of groups in mode AP, while the stream
/// stays with one server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// A service as a whole: at the beginning, and wherever single changes are not known.
    Snapshot {
        /// The service.
        view: Arc<ServiceView>,
        /// The server could not send every change to this client in time.
        lagged: bool,
    },
    /// One revision's change to one service.
    Changed {
        /// The service afterwards.
        view: Arc<ServiceView>,
        /// Nodes that are new or different.
        put: Vec<Arc<Node>>,
        /// Nodes that are gone.
        removed: Vec<RemovedNode>,
    },
    /// The service's removal guard says something else: it engaged or disengaged, holds more or fewer nodes, or
    /// lets go of them, or a window began or is over. That only a count in it differs is told by the view alone.
    Guard {
        /// The service afterwards; [`ServiceView::guard`] is what it says.
        view: Arc<ServiceView>,
        /// What it said before.
        before: Option<v1::GuardStatus>,
    },
    /// The service itself was deleted, or does not exist.
    Gone {
        /// The service afterwards: empty.
        view: Arc<ServiceView>,
    },
    /// The subscription is live at a server.
    Live {
        /// The state's revision; of a group and below, that of its parts in mode CP.
        revision: u64,
        /// Every change since the interruption follows; otherwise what differed was sent as snapshots.
        resumed: bool,
        /// The server's id.
        server: u64,
    },
    /// The stream is lost; what is held stays, and another server is being looked for.
    Interrupted {
        /// What happened.
        reason: Arc<str>,
    },
    /// The server refuses the subscription. If that may pass, it is tried again. Or no server that is there lets us have
    /// a stream (an unknown token): they are asked again, and this is said once.
    Rejected {
        /// Why.
        error: Arc<Error>,
    },
    /// The reader was slow: changes were left out. This is the state now. If what was left out said how the
    /// subscription stands ([`Self::Live`], [`Self::Interrupted`] or [`Self::Rejected`]), the last of it follows.
    Lagged {
        /// All services of the watch.
        views: Vec<Arc<ServiceView>>,
    },
}
