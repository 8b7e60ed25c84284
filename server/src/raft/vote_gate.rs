//! When this server may vote and seek election.
//!
//! Not while its disk has forgotten entries it acknowledged, not while it does not know what it acknowledged,
//! not once its state differs from the leader's, and not for one lease after a restart: before it, it may have
//! told a leader that no other would be elected within the lease.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct VoteGate {
    catching_up: watch::Sender<bool>,
    resting: AtomicBool,
    diverged: AtomicBool,
}

impl VoteGate {
    pub(crate) fn new(catching_up: bool, resting: bool) -> Self {
        Self {
            catching_up: watch::Sender::new(catching_up),
            resting: AtomicBool::new(resting),
            diverged: AtomicBool::new(false),
        }
    }

    pub(crate) fn may_vote(&self) -> Result<(), &'static str> {
        if self.is_catching_up() {
            Err("this server's disk forgot what it acknowledged, it does not vote until it has caught up")
        } else if self.is_diverged() {
            Err("this server's state differs from the leader's, it does not vote")
        } else if self.resting.load(Ordering::Acquire) {
            Err("this server has just started, it votes in a moment")
        } else {
            Ok(())
        }
    }

    pub(crate) fn is_catching_up(&self) -> bool {
        *self.catching_up.borrow()
    }

    pub(crate) fn set_catching_up(&self, catching_up: bool) {
        self.catching_up.send_replace(catching_up);
    }

    pub(crate) fn watch_catching_up(&self) -> watch::Receiver<bool> {
        self.catching_up.subscribe()
    }

    pub(crate) fn rested(&self) {
        self.resting.store(false, Ordering::Release);
    }

    pub(crate) fn is_diverged(&self) -> bool {
        self.diverged.load(Ordering::Acquire)
    }

    /// Whether this is news.
    pub(crate) fn set_diverged(&self) -> bool {
        !self.diverged.swap(true, Ordering::AcqRel)
    }
}
