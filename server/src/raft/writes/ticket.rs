//! A proposal between its caller and the queue: whether it has left, decided once, so that a caller whose time is up
//! learns which it is, surely not applied or unknown; and where its answer goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use rollcall_core::directory::{Outcome, Refusal};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

const WAITING: u8 = 0;
const SENT: u8 = 1;
const CANCELLED: u8 = 2;

/// Shared by the caller and the queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket {
    state: Arc<AtomicU8>,
}

impl Ticket {
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

/// A request, with the room that it takes up among those under way.
#[derive(Debug)]
pub(crate) struct Admitted {
    request: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Admitted {
    /// `room`: `None` for the server's own, which are few.
    pub(crate) fn new(request: Bytes, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { request, _room: room }
    }
}

/// Where the answer to a proposal goes. The request and its room stay here until it is known what became of it, not with the
/// caller: one that never looks at its answer takes nobody's room. Only what was surely not proposed comes back to it.
#[derive(Debug)]
pub(crate) struct Reply {
    to: To,
    admitted: Admitted,
}

#[derive(Debug)]
enum To {
    Caller(oneshot::Sender<Answered>),
    Line(Place),
}

/// What became of the attempt with this number.
pub(crate) type Numbered = (u64, Attempt);

/// A place among the answers of a line. It is answered once, whatever happens.
#[derive(Debug)]
struct Place(Option<(u64, mpsc::UnboundedSender<Numbered>)>);

impl Place {
    fn answer(&mut self, attempt: Attempt) {
        if let Some((number, answers)) = self.0.take() {
            let _line_has_ended = answers.send((number, attempt));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answer(Attempt::Unknown("replication ended before the answer".into()));
    }
}

/// What became of an attempt; what was surely not proposed comes back, to be tried again.
pub(crate) type Answered = (Attempt, Option<Admitted>);

impl Reply {
    /// A place for the answer to a request.
    pub(crate) fn to(admitted: Admitted) -> (Self, oneshot::Receiver<Answered>) {
        let (to, answered) = oneshot::channel();
        let to = To::Caller(to);
        (Self { to, admitted }, answered)
    }

    /// A place for the answer to a line's request of this number. What was surely not proposed does not come back: its caller
    /// is elsewhere.
    pub(crate) fn on_line(number: u64, answers: mpsc::UnboundedSender<Numbered>, admitted: Admitted) -> Self {
        let to = To::Line(Place(Some((number, answers))));
        Self { to, admitted }
    }

    /// The request, encoded.
    pub(crate) fn request(&self) -> &Bytes {
        &self.admitted.request
    }

    /// Answers; it does not matter whether somebody waits for it.
    pub(crate) fn send(self, attempt: Attempt) {
        match self.to {
            To::Caller(caller) => {
                let again = matches!(attempt, Attempt::NotProposed(_)).then_some(self.admitted);
                let _nobody_waits = caller.send((attempt, again));
            }
            To::Line(mut place) => place.answer(attempt),
        }
    }
}

#[cfg(test)]
mod tests {

    use tokio::sync::Semaphore;

    use super::super::attempt::WAITING_BYTES_MAX;
    use super::*;
    use crate::raft::servers_test::{Server, put_group, soon, start, steady_leader_of, write};

    #[test]
    fn a_ticket_is_decided_once() {
        let ticket = Ticket::default();
        assert!(ticket.try_send());
        assert!(!ticket.try_cancel());
        let ticket = Ticket::default();
        assert!(ticket.clone().try_cancel());
        assert!(!ticket.try_send());
    }

    #[tokio::test]
    async fn room_is_free_once_it_is_answered_and_comes_back_with_what_is_tried_again() {
        let room = Arc::new(Semaphore::new(10));
        let admitted = || {
            let taken = room.clone().try_acquire_many_owned(3).unwrap();
            Admitted::new(Bytes::from_static(b"one"), Some(taken))
        };
        let (reply, unread) = Reply::to(admitted());
        assert_eq!(room.available_permits(), 7);
        reply.send(Attempt::Unknown(String::new()));
        assert_eq!(room.available_permits(), 10, "though nobody has read the answer");
        drop(unread);

        let (reply, answered) = Reply::to(admitted());
        reply.send(Attempt::NotProposed(String::new()));
        assert_eq!(room.available_permits(), 7);
        let (_, again) = answered.await.unwrap();
        assert_eq!(Reply::to(again.unwrap()).0.request(), "one");
        assert_eq!(room.available_permits(), 10);
    }

    #[test]
    fn a_place_on_a_line_is_answered_once_whatever_happens() {
        let room = Arc::new(Semaphore::new(2));
        let (answers, mut answered) = mpsc::unbounded_channel();
        let place = |number| {
            let taken = room.clone().try_acquire_owned().unwrap();
            let admitted = Admitted::new(Bytes::from_static(b"one"), Some(taken));
            Reply::on_line(number, answers.clone(), admitted)
        };
        let (first, second) = (place(1), place(2));
        first.send(Attempt::NotProposed("full".into()));
        assert!(matches!(answered.try_recv(), Ok((1, Attempt::NotProposed(_)))));
        assert_eq!(room.available_permits(), 1, "it does not come back here");
        drop(second);
        assert!(matches!(answered.try_recv(), Ok((2, Attempt::Unknown(_)))));
        assert_eq!(room.available_permits(), 2);
        assert!(answered.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_caller_that_does_not_look_at_its_answer_keeps_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let servers = start(folder.path(), 3, |_| {}).await;
        let leader = steady_leader_of(&servers).await;
        // So that each knows its leader.
        for server in &servers {
            write(&server.consensus, 9).await;
        }
        let mut number = 100;
        for at in [leader, (leader + 1) % 3] {
            let consensus = &servers[at].consensus;
            let room = || consensus.inner.room.available_permits();
            let mut applied = consensus.applied_head();
            let (before, proposed) = loop {
                let before = applied.borrow_and_update().revision;
                number += 1;
                assert!(number < 120, "no write takes room while it is under way");
                let mut proposed = Box::pin(consensus.propose(put_group(number), soon()));
                assert!(futures_util::poll!(proposed.as_mut()).is_pending());
                // Where this thread stood still, it may be answered by now.
                if room() < WAITING_BYTES_MAX {
                    break (before, proposed);
                }
                proposed.await.unwrap();
            };
            let written = applied.wait_for(|head| head.revision > before);
            tokio::time::timeout_at(soon(), written).await.unwrap().unwrap();
            // A follower may hear of the write before it hears of the answer.
            let free = async {
                while room() < WAITING_BYTES_MAX {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout_at(soon(), free).await.unwrap();
            proposed.await.unwrap();
        }
        servers.into_iter().map(Server::kill).for_each(drop);
    }
}
