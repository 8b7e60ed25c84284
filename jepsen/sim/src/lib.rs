//! Whole clusters of real servers, with clients, in one process, on simulated time, network and disk.
//!
//! What runs is the server as it is shipped: Raft, sessions, gossip, watches, doors with their HTTP/2, on tokio. Below
//! it, a part of the C library is replaced (`boundary.rs`, `c/world.c`): clocks, randomness, sockets. Each host has a
//! runtime of its own, which runs until it waits; then the world goes to the next moment at which something happens. Everything that happens follows from a seed.
//!
//! - [`run()`]: runs a seed here; [`Alone`]: runs one in a process of its own.
//! - [`campaign()`]: runs many; [`Totals`]: what they came to; [`Results`]: keeps it in a file.
//! - [`shrink()`]: finds a smaller plan of faults that still fails.
//! - [`mutants`]: seeks bugs that were planted on purpose.

mod alone;
mod boundary;
mod campaign;
mod disk;
mod findings;
mod host;
mod invariants;
mod load;
pub mod mutants;
mod network;
mod options;
mod panics;
mod results;
mod run;
mod schedule;
mod server;
mod setting;
mod shrink;
mod time;
mod trace;
mod words;
mod world;

pub use alone::{Alone, REFUSED};
pub use campaign::{Totals, campaign, missing};
pub use findings::{Findings, Judged, Violation};
pub use options::Options;
pub use results::Results;
pub use run::run;
pub use shrink::{Smaller, shrink};
