//! Faults on a schedule that follows from a seed.
//!
//! - [`Kind`]: what can be done to a cluster.
//! - [`schedule`]: when what begins and ends; kinds overlap, and each has its turn.
//! - [`Nemesis`]: does it, writes it down with what was seen of it from outside, and undoes it.
//!
//! Each kind is a `Deed`: `network` (cuts and bad links, of servers and of clients), `process` (pauses, kills, restarts,
//! upgrades, leadership), `members`, `resize`, `storage` (power, disks; `damage`, `sync_errors`) and `scarcity` (processor, memory, descriptors,
//! clocks). A fault that was not seen to bite is counted as such: a run in which nothing bit proves nothing.

mod damage;
mod deed;
mod director;
mod kind;
mod members;
mod network;
mod process;
mod resize;
mod scarcity;
mod schedule;
mod storage;
mod sync_errors;

pub use director::{Nemesis, Tally};
pub use kind::Kind;
pub(crate) use resize::BY as RESIZED_BY;
pub use schedule::{Planned, schedule};
