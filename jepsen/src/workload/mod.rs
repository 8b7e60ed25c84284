//! What runs while faults happen, and writes down what it asked for and what it was told.
//!
//! - [`registers`]: reads, writes and conditional writes of single records.
//! - [`heartbeats`]: sessions that keep alive, and stop without a word.
//! - [`followers`]: a watcher at each server, and writers of what they watch.
//! - [`ap`]: writers of a group that any server may write to.
//! - [`guard`]: services of which a share falls silent at once.
//! - [`mode_switch`]: a group that moves between modes under load.
//! - [`resumes`]: watchers that leave every few seconds and resume elsewhere.
//! - [`batches`]: sets of nodes that are only written together. [`retries`]: requests that are sent again.
//! - [`racers`]: heartbeats that race against the end of their session.
//! - [`ages`]: reads of what one server has, with its age.
//! - [`storm`]: hundreds of consumers that ask for full lists at once.
//! - [`takeover`]: nodes that one session takes over from another.
//!
//! They speak the wire contract directly, one attempt per call: no client library repairs what a server does wrong.

pub mod ages;
pub mod ap;
mod asking;
pub mod batches;
mod call;
mod door;
mod follower;
pub mod followers;
pub mod guard;
pub mod heartbeats;
pub mod mode_switch;
mod provider;
pub mod racers;
pub mod registers;
pub mod resumes;
pub mod retries;
pub mod storm;
pub mod takeover;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use door::put_group;

use crate::history::History;
use crate::seed::Seeded;

/// What a workload plays on.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The servers' client addresses, server 1 first.
    pub addresses: Vec<String>,
    /// Where everything is written down.
    pub history: History,
    /// When to end.
    pub stop: Stop,
    /// Decides everything that chance decides.
    pub seed: u64,
    /// How many clients.
    pub clients: u64,
    /// Of sessions.
    pub ttl: Duration,
}

impl Stage {
    /// Whether to go on.
    fn goes_on(&self) -> bool {
        !self.stop.is_stopped() && !self.history.is_full()
    }

    /// The servers by number, with their addresses.
    fn servers(&self) -> impl Iterator<Item = (u64, &String)> {
        (1..).zip(&self.addresses)
    }

    /// One of the servers.
    fn any_server(&self, random: &mut Seeded) -> (u64, String) {
        let index = usize::try_from(random.below(self.addresses.len() as u64)).unwrap_or(0);
        (
            index as u64 + 1,
            self.addresses.get(index).cloned().unwrap_or_default(),
        )
    }
}

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
