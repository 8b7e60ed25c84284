//! Whether a proposal has left, decided once, so that a caller whose time is up learns which it is: surely not
//! applied, or unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rollcall_core::directory::{Outcome, Refusal};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

const WAITING: u8 = 0;
const SENT: u8 = 1;
const CANCELLED: u8 = 2;

/// Shared by the caller and the queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket {
    state: Arc<AtomicU8>,
    /// Room for the request's bytes, given back when caller and queue have both let go of them.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Ticket {
    /// A ticket for a request that takes up this room.
    pub(crate) fn holding(room: OwnedSemaphorePermit) -> Self {
        Self {
            state: Arc::default(),
            _room: Some(Arc::new(room)),
        }
    }

    /// The queue is about to send; `false`: the caller has given up, do not.
    pub(crate) fn try_send(&self) -> bool {
        self.decide(SENT)
    }

    /// The caller gives up; `false`: too late, it may be applied.
    pub(crate) fn try_cancel(&self) -> bool {
        self.decide(CANCELLED)
    }

    fn decide(&self, to: u8) -> bool {
        self.state
            .compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// What became of one attempt to propose.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Applied; this is the directory's answer.
    Applied(Result<Outcome, Refusal>),
    /// Surely not applied; try again, perhaps elsewhere.
    NotProposed(String),
    /// Surely not applied; the leader has no room.
    DiskFull,
    /// Surely not applied; too much is under way.
    Overloaded,
    /// It may have been applied.
    Unknown(String),
}

pub(crate) type Reply = oneshot::Sender<Attempt>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_decided_once() {
        let ticket = Ticket::default();
        assert!(ticket.try_send());
        assert!(!ticket.try_cancel());
        let ticket = Ticket::default();
        assert!(ticket.clone().try_cancel());
        assert!(!ticket.try_send());
    }
}
