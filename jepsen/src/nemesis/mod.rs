//! Faults on a schedule that follows from a seed.
//!
//! - [`Kind`]: what can be done to a cluster.
//! - [`schedule`]: when what begins and ends; kinds overlap, and each has its turn.
//! - [`Nemesis`]: does it, writes it down, and undoes it.

mod director;
mod kind;
mod schedule;

pub use director::Nemesis;
pub use kind::Kind;
pub use schedule::{Planned, schedule};
