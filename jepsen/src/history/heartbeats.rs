//! Sessions as their clients lived them, and their nodes as others saw them.

use std::time::Duration;

use serde_json::{Value, json};

/// One line about a session. Spans run from before the request left to after the answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heartbeats {
    /// It was opened, with this ttl.
    Open {
        /// Which.
        session: u64,
        /// What was granted.
        ttl: Duration,
        /// When it was asked for.
        sent: Duration,
        /// When the answer came.
        end: Duration,
    },
    /// A heartbeat. `acknowledged`: true, false (the session was not found), or nobody knows.
    Beat {
        /// Which.
        session: u64,
        /// When it was sent.
        sent: Duration,
        /// When the answer came, if one did.
        end: Option<Duration>,
        /// What it said.
        acknowledged: Option<bool>,
    },
    /// The client stopped for good, without a word: its last possible heartbeat was before this.
    Stop {
        /// Which.
        session: u64,
        /// When.
        time: Duration,
    },
    /// A watcher was told of the session's node, for the first time.
    Seen {
        /// Which.
        session: u64,
        /// Its node.
        node: String,
        /// When the word arrived.
        time: Duration,
    },
    /// A watcher was told that the session's node is gone.
    Gone {
        /// Which.
        session: u64,
        /// Its node.
        node: String,
        /// When the word arrived.
        time: Duration,
    },
    /// A server was first seen to lead in this term: it grants everybody a full ttl and an election timeout.
    Leads {
        /// Which server.
        server: u64,
        /// In which term.
        term: u64,
        /// When it was seen.
        time: Duration,
    },
}

impl Heartbeats {
    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Open { sent, .. } | Self::Beat { sent, .. } => *sent,
            Self::Stop { time, .. }
            | Self::Seen { time, .. }
            | Self::Gone { time, .. }
            | Self::Leads { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        match self {
            Self::Open {
                session,
                ttl,
                sent,
                end,
            } => json!({
                "type": "session", "ev": "open", "id": session, "time": ms(*sent), "end": ms(*end), "ttl": ms(*ttl),
            }),
            Self::Beat {
                session,
                sent,
                end,
                acknowledged,
            } => json!({
                "type": "session", "ev": "beat", "id": session, "time": ms(*sent), "end": end.map(&ms),
                "ok": acknowledged,
            }),
            Self::Stop { session, time } => {
                json!({ "type": "session", "ev": "stop", "id": session, "time": ms(*time) })
            }
            Self::Seen { session, node, time } => json!({
                "type": "session", "ev": "seen", "id": session, "node": node, "time": ms(*time), "end": ms(*time),
            }),
            Self::Gone { session, node, time } => json!({
                "type": "session", "ev": "gone", "id": session, "node": node, "time": ms(*time), "end": ms(*time),
            }),
            Self::Leads { server, term, time } => {
                json!({ "type": "leader", "server": server, "term": term, "time": ms(*time) })
            }
        }
    }
}
