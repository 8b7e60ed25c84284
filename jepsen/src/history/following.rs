//! What watchers were told, stream by stream.

use std::time::Duration;

use serde_json::{Value, json};

/// A node as a watcher was told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// What it carries.
    pub value: u64,
    /// Its owner; 0: none.
    pub session: u64,
    /// How often it changed hands, or came anew.
    pub incarnation: u64,
    /// Whether the removal guard holds it.
    pub suspect: bool,
}

/// One line about a watcher of one service. A watcher has one stream after the other; its name stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Following {
    /// It subscribed, behind this revision (0: from the current state).
    Open {
        /// Its name.
        watch: String,
        /// What it follows, as `group/service`.
        service: String,
        /// Which server.
        server: u64,
        /// Behind which revision.
        from: u64,
        /// When.
        time: Duration,
    },
    /// It was told of changes, or of the whole state.
    Event {
        /// Its name.
        watch: String,
        /// At which revision.
        revision: u64,
        /// The whole state instead of a change: `put` is all there is.
        whole: bool,
        /// The nodes that are there now, and like this.
        put: Vec<Shown>,
        /// The nodes that are gone.
        removed: Vec<String>,
        /// When it came.
        time: Duration,
    },
    /// It was told that nothing else concerns it up to this revision.
    Bookmark {
        /// Its name.
        watch: String,
        /// Up to which revision.
        revision: u64,
        /// When it came.
        time: Duration,
    },
    /// It was told nothing any more, and left.
    Silent {
        /// Its name.
        watch: String,
        /// By which server.
        server: u64,
        /// When it was told something last, or subscribed.
        since: Duration,
        /// Everything up to this revision had been told.
        told: u64,
        /// When it left.
        time: Duration,
    },
    /// Its stream ended.
    Close {
        /// Its name.
        watch: String,
        /// When.
        time: Duration,
    },
}

impl Following {
    /// Whose word it is.
    #[must_use]
    pub fn watch(&self) -> &str {
        match self {
            Self::Open { watch, .. }
            | Self::Event { watch, .. }
            | Self::Bookmark { watch, .. }
            | Self::Silent { watch, .. }
            | Self::Close { watch, .. } => watch,
        }
    }

    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Open { time, .. }
            | Self::Event { time, .. }
            | Self::Bookmark { time, .. }
            | Self::Silent { time, .. }
            | Self::Close { time, .. } => *time,
        }
    }

    pub(super) fn to_json(&self, ms: impl Fn(Duration) -> Value) -> Value {
        match self {
            Self::Open {
                watch,
                service,
                server,
                from,
                time,
            } => json!({
                "type": "watch-open", "watch": watch, "key": service, "node": server, "from": from, "time": ms(*time),
            }),
            Self::Event {
                watch,
                revision,
                whole,
                put,
                removed,
                time,
            } => json!({
                "type": "event", "watch": watch, "rev": revision, "whole": whole, "time": ms(*time), "removed": removed,
                "put": put.iter().map(|of| json!([of.id, of.value, of.session, of.incarnation, of.suspect]))
                    .collect::<Vec<_>>(),
            }),
            Self::Bookmark {
                watch,
                revision,
                time,
            } => json!({ "type": "bookmark", "watch": watch, "rev": revision, "time": ms(*time) }),
            Self::Silent {
                watch,
                server,
                since,
                told,
                time,
            } => json!({
                "type": "watch-silent", "watch": watch, "node": server, "rev": told, "since": ms(*since),
                "time": ms(*time),
            }),
            Self::Close { watch, time } => {
                json!({ "type": "watch-close", "watch": watch, "time": ms(*time) })
            }
        }
    }
}
