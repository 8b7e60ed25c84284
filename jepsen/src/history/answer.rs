//! Answers that are judged one by one, or a few together: batches, requests that are sent again, reads with an age.

use std::time::Duration;

use serde_json::{Value, json};

/// One line about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What a read showed of the nodes that are only ever written together.
    Batch {
        /// Which set of nodes.
        set: u64,
        /// Of each of them: what it carries and the revision at which it was written; `None`: it is not there.
        nodes: Vec<Option<(u64, u64)>>,
        /// When.
        time: Duration,
    },
    /// One of several answers to the same request.
    Repeat {
        /// The request, by what it writes.
        request: u64,
        /// At which revision it was applied.
        revision: u64,
        /// Whether it had been applied before.
        repeated: bool,
        /// When the answer came.
        time: Duration,
    },
    /// A write was acknowledged.
    Wrote {
        /// To which service, as `group/service`.
        service: String,
        /// At which revision.
        revision: u64,
        /// When the answer came.
        time: Duration,
    },
    /// A read of what one server has applied.
    Local {
        /// Which server.
        server: u64,
        /// When it was asked.
        sent: Duration,
        /// When it answered.
        end: Duration,
        /// What the caller was ready to take.
        max_age: Option<Duration>,
        /// The revision that the answer reflects, and the age that it claims to have at most, if it knows; `None`: it was
        /// refused as too old.
        answer: Option<(u64, Option<Duration>)>,
    },
}

impl Answer {
    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Batch { time, .. } | Self::Repeat { time, .. } | Self::Wrote { time, .. } => *time,
            Self::Local { sent, .. } => *sent,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        let mut line = match self {
            Self::Batch { set, nodes, .. } => json!({
                "type": "batch", "key": set,
                "nodes": nodes.iter().map(|of| of.map(|(value, revision)| json!([value, revision]))).collect::<Vec<_>>(),
            }),
            Self::Repeat {
                request,
                revision,
                repeated,
                ..
            } => json!({ "type": "repeat", "id": request, "rev": revision, "repeated": repeated }),
            Self::Wrote {
                service, revision, ..
            } => json!({ "type": "wrote", "key": service, "rev": revision }),
            Self::Local {
                server,
                end,
                max_age,
                answer,
                ..
            } => json!({
                "type": "local", "node": server, "end": ms(*end), "max_age": max_age.map(&ms),
                "rev": answer.map(|(revision, _)| revision), "age": answer.and_then(|(_, age)| age).map(&ms),
            }),
        };
        if let Some(line) = line.as_object_mut() {
            line.insert("time".into(), ms(self.time()));
        }
        line
    }
}
