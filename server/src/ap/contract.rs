//! What the other shells meet of AP groups: answers, and how they stand.

use std::sync::Arc;
use std::time::Duration;

use rollcall_core::ap::SessionSeed;
use rollcall_core::directory::Outcome;
use rollcall_core::ids::ServerId;

/// The session under which somebody writes.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// What vouching for it takes.
    pub(crate) session: Arc<SessionSeed>,
    /// Its stream is here: this server is the one to vouch for it.
    pub(crate) attends: bool,
}

/// A write is on this server's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// What it did, in this server's view.
    pub outcome: Outcome,
    /// On how many servers' disks it is: 2 only if so many were asked for.
    pub acks: u32,
}

/// How AP groups stand on this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApStatus {
    /// Records kept, those that tell of an end included.
    pub records: u64,
    /// The name of this server's log.
    pub log: u64,
    /// How far it goes.
    pub head: u64,
    /// Sessions that this server holds.
    pub sessions_held: u64,
    /// The other servers' logs, by server.
    pub origins: Vec<OriginStatus>,
    /// How long ago this server last agreed with another on every group; `None`: never since its start.
    pub agreed: Option<Duration>,
    /// Whether what it has may be shown.
    pub loaded: bool,
}

/// How far another server's log is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginStatus {
    /// Whose.
    pub server: ServerId,
    /// The name of its log.
    pub log: u64,
    /// How far it goes, as it said last.
    pub head: u64,
    /// How far it is followed.
    pub followed: u64,
    /// Its clock is ahead by so much, and its records are not taken until it is not.
    pub ahead: Option<Duration>,
}
