//! Watches: what a slow reader may cost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Watches: what a slow reader may cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Most streams on this server; more are refused, and clients go to another.
    pub streams_max: usize,
    /// Most subscriptions of one stream.
    pub subscriptions_max: usize,
    /// Most frames that wait for one stream. A stream that falls further behind gets the current state of what
    /// changed instead of the history. Higher keeps histories whole for slower readers, and costs memory.
    pub backlog_frames: usize,
    /// Most bytes that wait for one stream. See `backlog_frames`.
    pub backlog_bytes: usize,
    /// Everything that is ready goes out in one message of about this size; a single revision or a single
    /// service is never split, so one message may be larger (up to `doors.message_bytes_max`).
    pub response_bytes: usize,
    /// Streams hear how far they have come at least this often, when anything changed anywhere; and once in four such
    /// intervals when nothing did, while this server is in touch with its leader.
    #[serde(with = "duration")]
    pub bookmark_interval: Duration,
    /// How long a subscription behind a revision that this server has not applied yet waits for it.
    #[serde(with = "duration")]
    pub catch_up_wait: Duration,
    /// Most revisions kept for readers that resume; a reader further behind gets the current state of what
    /// differs.
    pub retained_revisions: usize,
    /// Most bytes of them.
    pub retained_bytes: usize,
    /// Encoded services kept for the next reader, in bytes.
    pub view_cache_bytes: usize,
    /// Encoded changes kept for resuming readers, in bytes.
    pub frame_cache_bytes: usize,
    /// Most bytes of messages larger than `response_bytes` that may be on their way to readers at once. Readers
    /// of huge services wait for each other beyond it, so that stopped readers cannot exhaust memory.
    pub large_bytes_max: usize,
    /// A reader that has not taken such a message for this long is cut off, so that others get their turn.
    #[serde(with = "duration")]
    pub stall_max: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            streams_max: 10_000,
            subscriptions_max: 4_096,
            backlog_frames: 1_024,
            backlog_bytes: 4 << 20,
            response_bytes: 256 << 10,
            bookmark_interval: Duration::from_secs(5),
            catch_up_wait: Duration::from_secs(2),
            retained_revisions: 10_000,
            retained_bytes: 32 << 20,
            view_cache_bytes: 64 << 20,
            frame_cache_bytes: 32 << 20,
            large_bytes_max: 256 << 20,
            stall_max: Duration::from_secs(30),
        }
    }
}
