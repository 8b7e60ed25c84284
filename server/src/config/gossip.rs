//! Gossip: how the servers look after each other.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Gossip: how the servers look after each other. The same on every server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// Off: this server neither listens nor speaks. The replicated directory does without; what runs by gossip
    /// does not.
    pub enabled: bool,
    /// How fast a dead server is noticed: `local` (one machine, about 2 s), `lan` (one datacenter, about 7 s) or
    /// `wan` (several, about 20 s). Too fast for the network, and healthy servers are suspected.
    pub preset: GossipPreset,
    /// Whom to ask to be let in, `host:port` each. Empty: the members of the cluster, at their peer host and,
    /// unless `listen.gossip` is set, their peer port.
    pub seeds: Vec<String>,
    /// A file with 32 bytes in base64 a line: the first key seals every packet, each opens. To rotate, add the new
    /// key behind the old one on every server, then swap the two, then remove the old one, restarting servers one
    /// by one at each step. Without it packets are plain: keep the port off networks that others can reach.
    pub key_file: Option<PathBuf>,
    /// Most servers that are kept in mind, those down included. Beyond, new ones are not let in.
    pub members_max: usize,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            preset: GossipPreset::Lan,
            seeds: Vec::new(),
            key_file: None,
            members_max: 256,
        }
    }
}

/// Timeouts that fit together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GossipPreset {
    /// Servers of one machine.
    Local,
    /// Servers of one datacenter.
    #[default]
    Lan,
    /// Servers of several datacenters.
    Wan,
}
