//! What happens to a session, for those who want to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::Error;
use crate::key::NodeKey;

/// Something that happened to a session. The session handles all but two of these: after [`Self::NodeRefused`] and
/// [`Self::NodesTaken`] the nodes named are **not** registered any more. Register them again once the reason is gone, or
/// end the process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Opened, for the first time.
    Opened {
        /// Its id.
        session: u64,
        /// Granted.
        ttl: Duration,
        /// Address of the server that holds the stream.
        server: String,
    },
    /// The stream broke, or a heartbeat was not answered in time, on it or by datagram. The nodes stay listed while the session is
    /// attached again within its ttl.
    Detached {
        /// Address of the server that held the stream.
        server: String,
        /// What happened.
        reason: String,
    },
    /// At a server again, within the ttl: the nodes stayed, watchers saw nothing.
    Reattached {
        /// Address of the server that holds the stream now.
        server: String,
    },
    /// The registry has forgotten the session, and its nodes with it; or it was one for AP groups alone at a server that
    /// is cut off, and is given up for one at a server that has a leader. A new one is being opened.
    Lost {
        /// The dead id.
        session: u64,
    },
    /// A new session took the place of the lost one.
    Reopened {
        /// Its id.
        session: u64,
        /// Address of the server that holds the stream.
        server: String,
    },
    /// All that was registered is registered again.
    Reregistered {
        /// How many nodes.
        nodes: usize,
    },
    /// A node could not be registered again; it is given up.
    NodeRefused {
        /// Which.
        node: NodeKey,
        /// Why.
        error: Arc<Error>,
    },
    /// Nodes that were registered under this session belong to another one, or to none, by somebody else's word. So do
    /// those of a lost session that another one has registered meanwhile. They are not registered again. Not of a node in an
    /// AP group that somebody took out: at the next attachment it is registered again, as one that the server has not heard
    /// of.
    NodesTaken {
        /// Which.
        nodes: Vec<NodeKey>,
    },
    /// The session ended by this client's word, or was given up while it was being closed.
    Closed,
    /// The reader was slow: so many events before the next one are lost.
    Missed {
        /// How many.
        events: u64,
    },
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionStatus {
    /// It is being opened for the first time.
    Opening,
    /// A server holds its stream, or hears its heartbeats by datagram.
    Attached {
        /// That server's address.
        server: String,
    },
    /// No server holds its stream at the moment; one is being looked for.
    Detached,
    /// A new session is being opened, or filled, after a loss.
    Restoring,
    /// It ended.
    Closed,
}

/// Events from the moment of the call on. A slow reader loses the oldest and is told so.
#[derive(Debug)]
pub struct SessionEvents {
    pub(super) receiver: broadcast::Receiver<SessionEvent>,
}

impl SessionEvents {
    /// The next event; `None`: the session has ended and all was read.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => Some(SessionEvent::Missed { events }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
