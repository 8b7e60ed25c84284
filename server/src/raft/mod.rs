//! Replication: one Raft group that carries the whole directory.

mod contract;
pub mod types;
pub(crate) mod wire;

pub use contract::*;
