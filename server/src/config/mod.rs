//! Configuration: a TOML file, then the environment, then flags, each over the one before.
//!
//! A component's settings stand in a file of its own, with their defaults; a field's comment is its manual.
//! Nothing outside this module reads the environment. Relations between fields are checked once, at start, and
//! a complaint names the field and its value.

mod ap;
mod check;
mod cluster;
mod datagram;
mod doors;
mod duration;
mod file;
mod flags;
mod gossip;
mod listen;
mod log;
mod raft;
mod session;
mod storage;
mod storm;
mod tokens;
mod watch;

pub use ap::ApConfig;
pub use cluster::{ClusterConfig, MemberConfig};
pub use datagram::DatagramConfig;
pub use doors::DoorsConfig;
pub use file::{Config, ConfigError};
pub use flags::{Flags, Preset};
pub use gossip::{GossipConfig, GossipPreset};
pub use listen::ListenConfig;
pub use log::{LogConfig, LogFormat};
pub use raft::RaftConfig;
pub use session::SessionConfig;
pub use storage::StorageConfig;
pub use storm::StormConfig;
pub use tokens::TokensConfig;
pub use watch::WatchConfig;
