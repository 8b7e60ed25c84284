//! The gRPC doors for clients: decode and check, call a handle, encode. No rule of the registry lives here.

mod address_limiter;
mod admission;
mod attend;
mod cluster;
pub(crate) mod convert;
mod discover;
mod doors;
mod fields;
mod gossip;
mod lease;
mod listener;
mod metrics;
mod modes;
mod moves;
mod oversize;
mod read;
mod registry;
mod rehearsal;
mod sessions;
mod shared_body;
mod speaker;
mod status;
mod storm;
mod unattended;
mod upgraded;
mod watch;
mod whole;
mod write;

pub use doors::{Doors, DoorsParts};
pub use listener::ListenError;
pub(crate) use listener::{Connection, Gate, bind};
pub use metrics::DoorsMetrics;
pub(crate) use unattended::Unattended;
pub(crate) use upgraded::UpgradedStreams;
