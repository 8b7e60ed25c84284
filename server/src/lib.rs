//! The Rollcall server: shells around the rooms of `rollcall-core`, each touching one part of the world.

pub mod access;
pub mod ap;
pub mod config;
pub mod datagram;
mod descriptors;
pub mod gossip;
pub mod ground;
pub mod grpc;
pub mod guard;
pub mod http;
mod pulse;
pub mod raft;
pub mod server;
pub mod session;
pub mod store;
pub mod storm;
pub mod telemetry;
pub mod watch;
