//! Nodes of a group that any server may write to, as clients wrote them and as servers and watchers showed them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// One line about a group whose records merge. Spans run from before the request left to after the answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ap {
    /// A node was registered or changed (`value`), or deregistered (none), or may have been. What surely changed nothing
    /// is not written down.
    Write {
        /// In which group.
        group: String,
        /// Which node.
        id: String,
        /// What it carries from now on; `None`: it is gone.
        value: Option<u64>,
        /// Of the session that it lives with, if it does.
        ttl: Option<Duration>,
        /// The server that was asked.
        server: u64,
        /// When the request left.
        sent: Duration,
        /// When it was acknowledged; `None`: nobody knows whether it happened.
        end: Option<Duration>,
        /// On how many servers' disks it is, as the answer said.
        acks: u32,
    },
    /// A heartbeat of the session that the node lives with was acknowledged.
    Beat {
        /// In which group.
        group: String,
        /// Which node.
        id: String,
        /// When the request left.
        sent: Duration,
        /// When the answer came.
        end: Duration,
    },
    /// Its heartbeats ended, or its session was not found any more.
    Stop {
        /// In which group.
        group: String,
        /// Which node.
        id: String,
        /// When.
        time: Duration,
    },
    /// Nobody writes any more, and all faults have ended.
    Heal {
        /// In which group.
        group: String,
        /// When.
        time: Duration,
    },
    /// The group was moved between modes.
    Moved {
        /// Which group.
        group: String,
        /// Whether any server may write to it from now on.
        ap: bool,
        /// When the answer came.
        time: Duration,
    },
    /// What one server showed of the group.
    View {
        /// Of which group.
        group: String,
        /// Which server.
        server: u64,
        /// Which of its lives.
        epoch: u64,
        /// When it was asked.
        sent: Duration,
        /// When it answered.
        end: Duration,
        /// What each node carried.
        nodes: BTreeMap<String, u64>,
        /// Its digest of them.
        sign: (u64, u64),
    },
    /// A watcher was told that a node is gone.
    Removed {
        /// From which group.
        group: String,
        /// The server that told it.
        server: u64,
        /// Which node.
        id: String,
        /// When the word came.
        time: Duration,
    },
}

impl Ap {
    /// The group that it is about.
    #[must_use]
    pub fn group(&self) -> &str {
        match self {
            Self::Write { group, .. }
            | Self::Beat { group, .. }
            | Self::Stop { group, .. }
            | Self::Heal { group, .. }
            | Self::Moved { group, .. }
            | Self::View { group, .. }
            | Self::Removed { group, .. } => group,
        }
    }

    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Write { sent, .. } | Self::Beat { sent, .. } | Self::View { sent, .. } => *sent,
            Self::Stop { time, .. }
            | Self::Heal { time, .. }
            | Self::Moved { time, .. }
            | Self::Removed { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        let mut line = match self {
            Self::Write {
                id,
                value,
                ttl,
                server,
                sent,
                end,
                acks,
                ..
            } => json!({
                "ev": if value.is_some() { "reg" } else { "dereg" }, "id": id, "value": value, "node": server,
                "ttl": ttl.map(&ms), "time": ms(*sent), "end": end.map(&ms), "acks": acks,
            }),
            Self::Beat { id, sent, end, .. } => {
                json!({ "ev": "beat", "id": id, "time": ms(*sent), "end": ms(*end) })
            }
            Self::Stop { id, time, .. } => json!({ "ev": "stop", "id": id, "time": ms(*time) }),
            Self::Heal { time, .. } => json!({ "ev": "heal", "time": ms(*time) }),
            Self::Moved { ap, time, .. } => json!({ "ev": "moved", "ap": ap, "time": ms(*time) }),
            Self::View {
                server,
                epoch,
                sent,
                end,
                nodes,
                sign,
                ..
            } => json!({
                "ev": "view", "node": server, "epoch": epoch, "time": ms(*sent), "end": ms(*end),
                "ids": nodes.keys().collect::<Vec<_>>(), "values": nodes.values().collect::<Vec<_>>(),
                "sign": format!("{:016x}{:016x}", sign.0, sign.1),
            }),
            Self::Removed { server, id, time, .. } => {
                json!({ "ev": "removed", "node": server, "id": id, "time": ms(*time) })
            }
        };
        if let Some(line) = line.as_object_mut() {
            line.insert("type".into(), json!("ap"));
            line.insert("group".into(), json!(self.group()));
        }
        line
    }
}
