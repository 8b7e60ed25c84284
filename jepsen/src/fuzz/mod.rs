//! Bad packets against the gossip ports of running servers, while everything else is watched.
//!
//! - [`attack`]: throws packets at a bounded rate and judges what came of it; [`Report`] tells.
//! - [`Stand`]: servers of one's own to throw at, each behind a [`Relay`] that records what members say.
//! - `wire` speaks the packet format a second time, from its description; `shot` makes the bad packets and knows
//!   what each should be dropped for; `witness` looks at members, counters and memory; `load` keeps sessions.
//!
//! Invariant: nothing is asked of a server's code. What a packet should be dropped for is said before it leaves.

mod attack;
mod load;
mod relay;
mod report;
mod shot;
mod stand;
mod wire;
mod witness;

pub use attack::{Plan, Target, attack};
pub use relay::Relay;
pub use report::{Latencies, Report, ServerReport};
pub use shot::{Class, Tally};
pub use stand::{Stand, StandOptions};
pub use wire::{KeyError, read_key};
