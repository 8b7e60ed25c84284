//! Real processes under real faults.
//!
//! - [`Cluster`]: servers that know each other, each with a data folder, three ports and a log file; on loopback, or
//!   each on a host of its own ([`crate::net`]).
//! - [`Process`]: any child process, its signals and its end. [`panics_in`]: what logs tell of panics.
//! - [`Timeline`]: what happened when, for people and as JSON.
//! - [`eventually`]: waiting for a condition, with a bound. [`one_clean_of`]: what a machine that stalls may spoil.
//! - [`attending`]: a provider that does only what it is told; [`crowd`]: many of them, who live and die at once.
//! - [`reading`]: what one particular server holds; [`watching`]: what it tells its watchers.
//! - [`Disk`], [`WallClock`], [`ControlGroup`]: a disk that fills up, hangs, loses power; a clock that can be set; less
//!   of the processor or of memory.
//! - [`Operator`]: whoever takes servers in and out and moves leadership.
//! - [`binary`] and [`ports`]: where the program is, and where it may listen.
//!
//! Invariant: whatever the lab started is gone when its handle is dropped, also when it was paused.

pub mod attending;
pub mod binary;
mod clock;
mod cluster;
mod control_group;
pub mod crowd;
mod disk;
mod leading;
mod operator;
mod panics;
pub mod ports;
mod process;
pub mod reading;
mod server;
mod timeline;
mod wait;
pub mod watching;

pub use clock::WallClock;
pub use cluster::{Cluster, ClusterOptions};
pub use control_group::{ControlGroup, Controller};
pub use disk::Disk;
pub use leading::{Leading, Led};
pub use operator::Operator;
pub use panics::panics_in;
pub use process::Process;
pub(crate) use server::status_of;
pub use server::{CLIENT_PORT, Endpoints, HTTP_PORT, PEER_PORT, Server};
pub use timeline::{Event, Timeline};
pub use wait::{NotInTime, WAIT_MAX, eventually, one_clean_of};
