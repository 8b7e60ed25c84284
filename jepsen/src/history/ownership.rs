//! Nodes that go from one session to the next.

use std::time::Duration;

use serde_json::{Value, json};

/// One line about a node that is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// A session registered the node, or may have.
    Claimed {
        /// Of which service, as `group/service`.
        service: String,
        /// Which node.
        node: String,
        /// Who.
        session: u64,
        /// Its ttl.
        ttl: Duration,
        /// When the request left.
        sent: Duration,
        /// When it was acknowledged.
        end: Option<Duration>,
        /// At which revision; 0: not acknowledged.
        revision: u64,
    },
    /// A heartbeat of a session. `acknowledged`: true, false (the session was not found), or nobody knows.
    Beat {
        /// Whose.
        session: u64,
        /// When it was sent.
        sent: Duration,
        /// What the answer said.
        acknowledged: Option<bool>,
    },
    /// A session's heartbeats end, without a word.
    Stop {
        /// Whose.
        session: u64,
        /// When.
        time: Duration,
    },
    /// What a linearizable read showed while its last owner was alive.
    Owned {
        /// Of which service.
        service: String,
        /// Which node.
        node: String,
        /// Its owner; `None`: it is not there.
        session: Option<u64>,
        /// When it was asked for.
        sent: Duration,
        /// When the answer came.
        end: Duration,
    },
}

impl Ownership {
    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Claimed { sent, .. } | Self::Beat { sent, .. } | Self::Owned { sent, .. } => *sent,
            Self::Stop { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        let mut line = match self {
            Self::Claimed {
                service,
                node,
                session,
                ttl,
                end,
                revision,
                ..
            } => json!({
                "ev": "claim", "key": service, "node": node, "id": session, "ttl": ms(*ttl), "end": end.map(&ms),
                "rev": (*revision > 0).then_some(*revision),
            }),
            Self::Beat {
                session,
                acknowledged,
                ..
            } => json!({ "ev": "beat", "id": session, "ok": acknowledged }),
            Self::Stop { session, .. } => json!({ "ev": "stop", "id": session }),
            Self::Owned {
                service,
                node,
                session,
                end,
                ..
            } => json!({ "ev": "owned", "key": service, "node": node, "id": session, "end": ms(*end) }),
        };
        if let Some(line) = line.as_object_mut() {
            line.insert("type".into(), json!("takeover"));
            line.insert("time".into(), ms(self.time()));
        }
        line
    }
}
