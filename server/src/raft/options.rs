//! How replication is set up.

use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use rollcall_core::directory::ChangeLogBounds;
use rollcall_core::ids::ServerId;

use super::types::PeerAddresses;
use crate::store::StoreError;

/// Everything replication needs to know at start.
#[derive(Clone, Debug)]
pub struct ReplicationOptions {
    /// Name of the cluster; servers of another are refused.
    pub cluster: String,
    /// This server, at least 1, unique in the cluster.
    pub server: ServerId,
    /// Where the others reach this server.
    pub addresses: PeerAddresses,
    /// The data folder.
    pub data: PathBuf,
    /// Silence after which a follower seeks election, shortest and longest. The real value is drawn between.
    /// Too short: elections by hiccup; too long: writes wait that long after a leader's death.
    pub election_timeout: (Duration, Duration),
    /// How often the leader shows itself; at most a third of the shortest election timeout.
    pub heartbeat_interval: Duration,
    /// A snapshot is taken after so many log entries.
    pub snapshot_after_entries: u64,
    /// So many entries already in a snapshot stay in the log, for followers that were away shortly.
    pub log_keep_entries: u64,
    /// Below this much free space, in bytes, writes are refused.
    pub disk_reserve: u64,
    /// Replicas compare their state every so many entries; the same on all servers; 0: never.
    pub compare_every: u64,
    /// What is kept for watchers that resume.
    pub change_log: ChangeLogBounds,
}

impl ReplicationOptions {
    /// The defaults, for a server at `data`.
    #[must_use]
    pub fn new(cluster: &str, server: ServerId, addresses: PeerAddresses, data: PathBuf) -> Self {
        Self {
            cluster: cluster.to_owned(),
            server,
            addresses,
            data,
            election_timeout: (Duration::from_millis(500), Duration::from_secs(1)),
            heartbeat_interval: Duration::from_millis(100),
            snapshot_after_entries: 50_000,
            log_keep_entries: 10_000,
            disk_reserve: 64 << 20,
            compare_every: 1_024,
            change_log: ChangeLogBounds::default(),
        }
    }

    /// How long a leader may rely on a quorum's word. Followers grant no vote for as long after they heard it.
    pub(crate) fn lease(&self) -> Duration {
        self.election_timeout.1 / 2
    }

    /// How long a cluster goes on without a word of a leader before it counts as having none: an ordinary election is
    /// over by then.
    pub(crate) fn leaderless_after(&self) -> Duration {
        self.election_timeout.1 + self.lease()
    }

    /// A leader without a quorum is silent for so long and then shows itself for so long, again and again.
    pub(crate) fn probe_turn(&self) -> Duration {
        2 * self.lease()
    }

    /// Raft waits a lease and then an election timeout after the leader's last word; here both halves of our
    /// election timeout.
    pub(crate) fn raft_config(&self, elect: bool) -> Result<Config, StartError> {
        let (min, max) = self.election_timeout;
        if self.server.0 == 0 {
            return Err(StartError::invalid("the server id is 0, it must be at least 1"));
        }
        if self.heartbeat_interval * 3 > min {
            return Err(StartError::invalid(format!(
                "the heartbeat interval {:?} is more than a third of the shortest election timeout {min:?}",
                self.heartbeat_interval
            )));
        }
        let config = Config {
            cluster_name: self.cluster.clone(),
            heartbeat_interval: milliseconds(self.heartbeat_interval),
            election_timeout_min: milliseconds(min / 2),
            election_timeout_max: milliseconds(max / 2),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after_entries.max(1)),
            max_in_snapshot_log_to_keep: self.log_keep_entries,
            purge_batch_size: (self.snapshot_after_entries / 10).clamp(1, 1_024),
            replication_lag_threshold: self
                .snapshot_after_entries
                .saturating_add(self.log_keep_entries)
                .max(5_000),
            max_payload_entries: 4_096,
            api_channel_size: Some(4_096),
            notification_channel_size: Some(8_192),
            enable_elect: elect,
            // A restarted leader must be elected again: its state may be behind what it had acknowledged.
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true),
            // A follower that lost the end of its log is given it again; it withholds its vote until then.
            allow_log_reversion: Some(true),
            // A leader that is heard but hears nobody falls silent, so that another can be elected.
            quorum_loss_probe_interval: Some(milliseconds(self.probe_turn())),
            removed_leader_step_down: StepDownPolicy::After(200),
            ..Config::default()
        };
        config
            .validate()
            .map_err(|error| StartError::invalid(error.to_string()))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Why replication did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used; the message says what to do.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Correct the configuration.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// Raft could not take up what the folder holds.
    #[error("replication cannot start from {}: {reason}", data.display())]
    Raft {
        /// The data folder.
        data: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl StartError {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }
}
