//! A service whose providers fall silent together, and what its removal guard says.

use std::time::Duration;

use serde_json::{Value, json};

/// One line about a guarded service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guarding {
    /// It is guarded like this, in a group of this mode.
    Set {
        /// As `group/service`.
        service: String,
        /// Whether the group is AP: each server counts by itself.
        ap: bool,
        /// Of 10,000: how much may lapse away in a window.
        share: u32,
        /// How long a window lasts at least.
        window: Duration,
        /// Of its sessions.
        ttl: Duration,
        /// Whether all of its sessions are held by one server.
        one_holder: bool,
        /// When.
        time: Duration,
    },
    /// A node was registered, or may have been.
    Joined {
        /// Of which service.
        service: String,
        /// Which.
        id: String,
        /// When the request left.
        sent: Duration,
        /// When it was acknowledged.
        end: Option<Duration>,
    },
    /// Nodes ceased to be heard from, without a word.
    Silent {
        /// Of which service.
        service: String,
        /// Which.
        ids: Vec<String>,
        /// When.
        time: Duration,
    },
    /// A node was deregistered by word, or may have been.
    Left {
        /// From which service.
        service: String,
        /// Which.
        id: String,
        /// When the request left.
        sent: Duration,
        /// When it was acknowledged.
        end: Option<Duration>,
        /// The revision at which it went by this word. `None`, acknowledged: it had gone before.
        revision: Option<u64>,
    },
    /// A deregistration was refused for a reason that is no outage.
    Blocked {
        /// From which service.
        service: String,
        /// Which.
        id: String,
        /// What was said.
        why: String,
        /// When.
        time: Duration,
    },
    /// Whoever had fallen silent is to be heard again from now on.
    Returned {
        /// Of which service.
        service: String,
        /// When.
        time: Duration,
    },
    /// An operator confirmed that what is held is gone, or may have: who is silent leaves by word.
    Confirmed {
        /// Of which service.
        service: String,
        /// When the request left.
        sent: Duration,
    },
    /// What became of that.
    Answered {
        /// Of which service.
        service: String,
        /// Why not, if it was refused for a reason that is no outage.
        refused: Option<String>,
        /// When.
        time: Duration,
    },
    /// What one server lists.
    Listed {
        /// Of which service.
        service: String,
        /// Which server.
        server: u64,
        /// Which of its lives; 0 in CP groups.
        epoch: u64,
        /// When it was asked.
        sent: Duration,
        /// When it answered.
        end: Duration,
        /// Who is listed, suspects too.
        ids: Vec<String>,
        /// Who of them is a suspect.
        suspects: Vec<String>,
    },
    /// What one server says of the guard in the end, when so many nodes are up that it has to have disengaged.
    Said {
        /// Of which service.
        service: String,
        /// Which server.
        server: u64,
        /// When.
        time: Duration,
        /// Whether it holds back.
        engaged: bool,
        /// How many lapsed away in this window; `None`: no window is under way.
        removed: Option<u32>,
        /// The revision at which the service was like that.
        revision: u64,
    },
}

impl Guarding {
    /// The service that it is about.
    #[must_use]
    pub fn service(&self) -> &str {
        match self {
            Self::Set { service, .. }
            | Self::Joined { service, .. }
            | Self::Silent { service, .. }
            | Self::Left { service, .. }
            | Self::Blocked { service, .. }
            | Self::Returned { service, .. }
            | Self::Confirmed { service, .. }
            | Self::Answered { service, .. }
            | Self::Listed { service, .. }
            | Self::Said { service, .. } => service,
        }
    }

    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Joined { sent, .. }
            | Self::Left { sent, .. }
            | Self::Confirmed { sent, .. }
            | Self::Listed { sent, .. } => *sent,
            Self::Set { time, .. }
            | Self::Silent { time, .. }
            | Self::Returned { time, .. }
            | Self::Answered { time, .. }
            | Self::Blocked { time, .. }
            | Self::Said { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        let mut line = match self {
            Self::Set {
                ap,
                share,
                window,
                ttl,
                one_holder,
                ..
            } => json!({
                "ev": "set", "ap": ap, "share": f64::from(*share) / 10_000.0, "window": ms(*window),
                "one_holder": one_holder, "ttl": ms(*ttl),
            }),
            Self::Joined { id, end, .. } => json!({ "ev": "reg", "id": id, "end": end.map(&ms) }),
            Self::Silent { ids, .. } => json!({ "ev": "stop", "ids": ids }),
            Self::Left {
                id, end, revision, ..
            } => json!({ "ev": "dereg", "id": id, "end": end.map(&ms), "rev": revision }),
            Self::Blocked { id, why, .. } => json!({ "ev": "blocked", "id": id, "why": why }),
            Self::Returned { .. } => json!({ "ev": "return" }),
            Self::Confirmed { .. } => json!({ "ev": "confirm" }),
            Self::Answered { refused, .. } => json!({ "ev": "confirmed", "refused": refused }),
            Self::Listed {
                server,
                epoch,
                end,
                ids,
                suspects,
                ..
            } => json!({
                "ev": "view", "node": server, "epoch": epoch, "end": ms(*end), "ids": ids, "suspects": suspects,
            }),
            Self::Said {
                server,
                engaged,
                removed,
                revision,
                ..
            } => {
                json!({ "ev": "said", "node": server, "engaged": engaged, "removed": removed, "rev": revision })
            }
        };
        if let Some(line) = line.as_object_mut() {
            line.insert("type".into(), json!("guard"));
            line.insert("service".into(), json!(self.service()));
            line.insert("time".into(), ms(self.time()));
        }
        line
    }
}
