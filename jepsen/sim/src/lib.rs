//! Whole clusters of real servers, with clients, in one process, on simulated time, network and disk.
//!
//! What runs is the server as it is shipped: Raft, sessions, gossip, watches, doors with their HTTP/2, on tokio. Below
//! it, a part of the C library is replaced (`boundary.rs`, `c/world.c`): clocks, randomness, sockets. Each host has a
//! runtime of its own, which runs until it waits; then the world goes to the next moment at which something happens. Everything that happens follows from a seed.
//!
//! - [`run()`]: runs a seed.
//! - [`campaign()`]: runs many, on several threads.
//! - [`shrink()`]: finds a smaller plan of faults that still fails.

mod boundary;
mod campaign;
mod disk;
mod host;
mod invariants;
mod load;
mod network;
mod run;
mod schedule;
mod server;
mod shrink;
mod time;
mod trace;
mod world;

pub use campaign::{Totals, campaign};
pub use run::{Findings, Options, run};
pub use shrink::{Smaller, shrink};
