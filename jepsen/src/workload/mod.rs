//! What runs while faults happen, and writes down what it asked for and what it was told.
//!
//! - [`registers`]: reads, writes and conditional writes of single records.
//! - [`heartbeats`]: sessions that keep alive, and stop without a word.
//! - [`followers`]: a watcher at each server, and writers of what they watch.
//!
//! They speak the wire contract directly, one attempt per call: no client library repairs what a server does wrong.

mod door;
pub mod followers;
pub mod heartbeats;
pub mod registers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use door::put_group;

/// Tells workloads to end. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends them: each finishes what it is doing.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they are to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
