//! The doors: sizes, times and rates at which calls are refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// The doors: sizes, times and rates at which calls are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DoorsConfig {
    /// Largest request.
    pub request_bytes_max: usize,
    /// Largest answer and watch message. Clients must accept as much (the SDK does): a service of 5,000 nodes
    /// with full metadata takes about 22 MiB.
    pub message_bytes_max: usize,
    /// Most nodes, or signs, in one call.
    pub batch_max: usize,
    /// How long a write waits for its outcome if the caller names no time.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Longest time a caller may name.
    #[serde(with = "duration")]
    pub write_timeout_max: Duration,
    /// How long a read waits for the leader's confirmation, or for a revision to be applied.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// Most client connections.
    pub connections_max: usize,
    /// New connections a second from one address, over time.
    pub connections_per_second: u32,
    /// New connections from one address at once. Many clients behind one NAT share an address.
    pub connections_burst: u32,
    /// New sessions a second from one address, over time.
    pub sessions_per_second: u32,
    /// New sessions from one address at once.
    pub sessions_burst: u32,
    /// Most queries of one stream that wait, for the leader or for a revision. Beyond it they are refused; those that need not
    /// wait are answered all the same.
    pub queries_per_stream_max: usize,
    /// Most of them on all streams, besides one for each stream.
    pub queries_waiting_max: usize,
    /// HTTP/2 streams of one connection.
    pub streams_per_connection_max: u32,
    /// Largest header list, in bytes.
    pub header_bytes_max: u32,
    /// A silent connection is asked for a sign of life this often.
    #[serde(with = "duration")]
    pub keepalive_interval: Duration,
    /// And closed if none comes within this time.
    #[serde(with = "duration")]
    pub keepalive_timeout: Duration,
}

impl Default for DoorsConfig {
    fn default() -> Self {
        Self {
            request_bytes_max: 1 << 20,
            message_bytes_max: 32 << 20,
            batch_max: 1_000,
            write_timeout: Duration::from_secs(5),
            write_timeout_max: Duration::from_secs(60),
            read_timeout: Duration::from_secs(5),
            connections_max: 60_000,
            connections_per_second: 1_000,
            connections_burst: 10_000,
            sessions_per_second: 2_000,
            sessions_burst: 20_000,
            queries_per_stream_max: 256,
            queries_waiting_max: 65_536,
            streams_per_connection_max: 256,
            header_bytes_max: 16 << 10,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}
