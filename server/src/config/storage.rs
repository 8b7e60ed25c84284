//! Where the server keeps its data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the server keeps its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Folder of the log, the vote and the snapshots; created if it is not there. One server, one folder: it
    /// remembers its cluster and server id and refuses others. Put it on a disk that syncs quickly, for every
    /// acknowledged write waits for it.
    pub data: PathBuf,
    /// Below this much free space, in bytes, writes are refused; reads and heartbeats go on, and writes resume
    /// by themselves when space returns. Large enough for a snapshot and some log.
    pub reserve_bytes: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./rollcall-data"),
            reserve_bytes: 64 << 20,
        }
    }
}
