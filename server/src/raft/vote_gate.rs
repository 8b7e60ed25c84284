//! When this server may vote and seek election.
//!
//! Not while it does not know what it acknowledged, be it that its disk forgot entries or that its folder is empty;
//! not once its state differs from the leader's; and not for one lease after a restart: before it, it may have
//! told a leader that no other would be elected within the lease.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

/// What a server knows of what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its folder is empty. It is a founder, or new to a cluster that runs, or its folder was lost: it takes part in
    /// nothing until that is found out.
    Undecided,
    /// Its folder is new to a cluster that runs, or its disk forgot entries. It does not vote until it has caught up.
    CatchingUp,
    /// It knows all.
    Whole,
}

#[derive(Debug)]
pub(crate) struct VoteGate {
    standing: watch::Sender<Standing>,
    deciding: Mutex<()>,
    resting: AtomicBool,
    diverged: AtomicBool,
}

impl VoteGate {
    pub(crate) fn new(standing: Standing, resting: bool) -> Self {
        Self {
            standing: watch::Sender::new(standing),
            deciding: Mutex::default(),
            resting: AtomicBool::new(resting),
            diverged: AtomicBool::new(false),
        }
    }

    pub(crate) fn may_vote(&self) -> Result<(), &'static str> {
        match self.standing() {
            Standing::Undecided => {
                Err("this server is new, it does not vote until it knows whether its cluster runs")
            }
            Standing::CatchingUp => {
                Err("this server does not know what it acknowledged, it does not vote until it has caught up")
            }
            Standing::Whole if self.is_diverged() => {
                Err("this server's state differs from the leader's, it does not vote")
            }
            Standing::Whole if self.is_resting() => Err("this server has just started, it votes in a moment"),
            Standing::Whole => Ok(()),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub(crate) fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether it may have forgotten a vote, so that its word counts for nothing.
    pub(crate) fn is_withheld(&self) -> bool {
        self.standing() != Standing::Whole
    }

    /// Ends [`Standing::Undecided`], for once and all, when `note` has recorded why; whether this call did. Blocks.
    pub(crate) fn decide(
        &self,
        standing: Standing,
        note: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let _one_at_a_time = self.deciding.lock();
        if self.standing() != Standing::Undecided {
            return Ok(false);
        }
        note()?;
        self.standing.send_replace(standing);
        Ok(true)
    }

    pub(crate) fn caught_up(&self) {
        self.standing.send_replace(Standing::Whole);
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Acquire)
    }

    pub(crate) fn rested(&self) {
        self.resting.store(false, Ordering::Release);
    }

    pub(crate) fn is_diverged(&self) -> bool {
        self.diverged.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn clear_diverged(&self) {
        self.diverged.store(false, Ordering::Release);
    }

    pub(crate) fn set_diverged(&self) {
        self.diverged.store(true, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn withhold(&self) {
        self.standing.send_replace(Standing::CatchingUp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_recorded_is_not_decided_and_what_is_decided_stays() {
        let gate = VoteGate::new(Standing::Undecided, false);
        assert!(gate.may_vote().is_err() && gate.is_withheld());
        let full = || Err(io::ErrorKind::StorageFull.into());
        assert!(gate.decide(Standing::CatchingUp, full).is_err());
        assert_eq!(gate.standing(), Standing::Undecided);
        assert!(gate.decide(Standing::CatchingUp, || Ok(())).unwrap());
        assert!(!gate.decide(Standing::Whole, || Ok(())).unwrap());
        assert!(gate.may_vote().is_err() && gate.is_withheld());
        gate.caught_up();
        assert!(gate.may_vote().is_ok() && !gate.is_withheld());
    }
}
