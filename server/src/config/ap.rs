//! Groups in AP mode: kept alike by gossip, written and read at any server at any time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Groups in AP mode: kept alike by gossip, written and read at any server at any time. The same on all servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApConfig {
    /// How long it is remembered that a node was deregistered or a session closed. A server that was away for
    /// longer begins anew, from the others. Longer than any partition you expect: when one outlasts it while both
    /// sides run, a persistent node that was deregistered on one side comes back. Costs some hundred bytes for each
    /// of them.
    #[serde(with = "duration")]
    pub tombstone_retention: Duration,
    /// Records whose time is further ahead of this server's clock are not taken until it catches up: a wild clock
    /// delays its own server's news and wins over nobody. Well above the precision of your time service.
    #[serde(with = "duration")]
    pub clock_skew_max: Duration,
    /// Most records that this server keeps, those included that tell of an end. Beyond, new nodes, overrides and
    /// sessions are refused here; nodes that are known come and go, for which an eighth more may be sessions. A record
    /// takes some hundred bytes of memory, and of disk.
    pub records_max: u32,
    /// How often this server compares its records with those of one other. Shorter repairs sooner what messages did
    /// not bring; each time costs a digest for every AP group.
    #[serde(with = "duration")]
    pub repair_interval: Duration,
}

impl Default for ApConfig {
    fn default() -> Self {
        Self {
            tombstone_retention: Duration::from_secs(3_600),
            clock_skew_max: Duration::from_millis(500),
            records_max: 4_000_000,
            repair_interval: Duration::from_millis(1_500),
        }
    }
}
