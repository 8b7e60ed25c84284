//! The wire contract of Rollcall: messages and services generated from `rollcall/v1/*.proto`, and the
//! datagrams of [`heartbeat`], the connections of [`upgrade`]. No logic of a registry.

/// Version 1 of the contract.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("rollcall.v1");

    pub use crate::shared::{QueryResponse, WatchResponse};
}

pub mod codec;
pub mod heartbeat;
mod metadata;
pub mod prefix;
pub mod shared;
pub mod upgrade;

pub use metadata::metadata_hash;

/// The compiled file descriptors, for reflection and breaking-change checks.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
