//! Heartbeats by datagram: whether, and how much of them.

use serde::{Deserialize, Serialize};

/// Heartbeats by datagram (UDP), for clients that would rather not keep a connection. Those who cannot use them stay on
/// their streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatagramConfig {
    /// Off: nothing listens, and clients are told so.
    pub enabled: bool,
    /// Heartbeats a second from one address, over time. Many clients behind one NAT, or one sidecar, share an address;
    /// who sends forged ones is cut off much earlier.
    pub beats_per_second: u32,
    /// Heartbeats from one address at once.
    pub beats_burst: u32,
    /// Most heartbeats that wait for the leader; beyond, they are dropped, and their clients send them again.
    pub waiting_max: usize,
    /// How much the system keeps until it is read, in bytes: some 700 for each datagram. Without the right to exceed
    /// `net.core.rmem_max` it is cut to that.
    pub receive_buffer_bytes: usize,
}

impl Default for DatagramConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            beats_per_second: 100_000,
            beats_burst: 200_000,
            waiting_max: 65_536,
            receive_buffer_bytes: 8 << 20,
        }
    }
}
