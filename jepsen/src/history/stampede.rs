//! Many consumers that ask for full lists at once, and what left the servers.

use std::time::Duration;

use serde_json::{Value, json};

/// One line about a stampede.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stampede {
    /// The switch was set, on every server, before this moment.
    Switch {
        /// On or off.
        on: bool,
        /// How much of the consumers is served in an epoch, of 10,000.
        share: u32,
        /// How long an epoch lasts.
        epoch: Duration,
        /// What may leave a server in a second, in bytes.
        budget: u64,
        /// When it was set everywhere.
        time: Duration,
    },
    /// All consumers of a service resubscribe, with lists that are not current.
    Begins {
        /// How many.
        consumers: u64,
        /// How long one list is.
        bytes: u64,
        /// When.
        time: Duration,
    },
    /// A consumer was told to wait.
    Kept {
        /// Who.
        consumer: String,
        /// For how long.
        retry: Duration,
        /// When.
        time: Duration,
    },
    /// A consumer was given a full list.
    Listed {
        /// Who.
        consumer: String,
        /// By which server.
        server: u64,
        /// When.
        time: Duration,
    },
    /// A consumer is current, for the first time since the stampede began.
    Current {
        /// Who.
        consumer: String,
        /// When.
        time: Duration,
    },
    /// What a server has sent to clients since the start of the network, counted outside of it.
    Egress {
        /// Which server.
        server: u64,
        /// Bytes, all in all.
        bytes: u64,
        /// When it was counted.
        time: Duration,
    },
    /// A heartbeat, a registration or a deregistration was answered (`shed`: as being too much).
    Vital {
        /// What.
        what: String,
        /// Whether it was turned away because of the load.
        shed: bool,
        /// When.
        time: Duration,
    },
}

impl Stampede {
    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Switch { time, .. }
            | Self::Begins { time, .. }
            | Self::Kept { time, .. }
            | Self::Listed { time, .. }
            | Self::Current { time, .. }
            | Self::Egress { time, .. }
            | Self::Vital { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        let mut line = match self {
            Self::Switch {
                on,
                share,
                epoch,
                budget,
                ..
            } => json!({
                "ev": "switch", "on": on, "share": f64::from(*share) / 10_000.0, "epoch": ms(*epoch), "budget": budget,
            }),
            Self::Begins { consumers, bytes, .. } => {
                json!({ "ev": "begins", "consumers": consumers, "bytes": bytes })
            }
            Self::Kept { consumer, retry, .. } => {
                json!({ "ev": "kept", "id": consumer, "retry": ms(*retry) })
            }
            Self::Listed { consumer, server, .. } => {
                json!({ "ev": "listed", "id": consumer, "node": server })
            }
            Self::Current { consumer, .. } => json!({ "ev": "current", "id": consumer }),
            Self::Egress { server, bytes, .. } => json!({ "ev": "egress", "node": server, "bytes": bytes }),
            Self::Vital { what, shed, .. } => json!({ "ev": "vital", "what": what, "shed": shed }),
        };
        if let Some(line) = line.as_object_mut() {
            line.insert("type".into(), json!("storm"));
            line.insert("time".into(), ms(self.time()));
        }
        line
    }
}
