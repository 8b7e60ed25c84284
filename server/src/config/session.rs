//! Sessions: how long a silent client is believed, and how many one stream may carry.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Sessions: how long a silent client is believed, and how many one stream may carry. The same on every server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Shortest ttl granted; a client that asks for less gets this. Below two seconds, a pause of the client's
    /// runtime or one lost packet strikes off healthy nodes.
    #[serde(with = "duration")]
    pub ttl_min: Duration,
    /// For clients that ask for none.
    #[serde(with = "duration")]
    pub ttl_default: Duration,
    /// Longest ttl granted. A dead client's nodes may be listed this long.
    #[serde(with = "duration")]
    pub ttl_max: Duration,
    /// Most sessions attached to one stream; more are refused.
    pub per_stream_max: usize,
    /// Most writes of one stream in flight. Beyond, the server stops reading the stream until answers are out.
    pub in_flight_max: usize,
    /// When this server closes, its clients are told to move at moments spread over this long.
    #[serde(with = "duration")]
    pub move_spread: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            ttl_min: Duration::from_secs(2),
            ttl_default: Duration::from_secs(15),
            ttl_max: Duration::from_secs(600),
            per_stream_max: 10_000,
            in_flight_max: 256,
            move_spread: Duration::from_secs(1),
        }
    }
}
