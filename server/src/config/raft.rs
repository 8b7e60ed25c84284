//! Replication: how quickly a dead leader is noticed, and how much log is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Replication: how quickly a dead leader is noticed, and how much log is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// How often the leader shows its followers that it lives. Lower finds failures sooner and costs packets;
    /// three of them must fit into `election_timeout_min`.
    #[serde(with = "duration")]
    pub heartbeat_interval: Duration,
    /// A follower that hears nothing stands for election after a random time between this and
    /// `election_timeout_max`. Too low and a slow disk or a busy CPU unseats healthy leaders; across
    /// datacenters take at least ten round trips.
    #[serde(with = "duration")]
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`. The wider the gap, the rarer split votes. A leader's silence costs writes about
    /// this long; the end of its process, which its followers can tell, little more than half. The same on every server: leased
    /// reads count on others to keep a lease of half of it, and may be stale while servers differ by more than a factor of two.
    #[serde(with = "duration")]
    pub election_timeout_max: Duration,
    /// Log entries between two snapshots. Fewer shorten restarts and cost disk writes.
    pub snapshot_after_entries: u64,
    /// Log entries kept behind a snapshot, so that a follower which was away briefly needs no snapshot.
    pub log_keep_entries: u64,
    /// Servers compare a hash of their state every so many log entries, and one that differs stops serving; 0:
    /// never. The same on every server.
    pub compare_every: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(1_000),
            snapshot_after_entries: 50_000,
            log_keep_entries: 10_000,
            compare_every: 1_024,
        }
    }
}
