//! Gathers proposals made at the leader into log entries.
//!
//! A few requests wait for nobody. Where many are under way, what arrives gathers while an entry is on its way to this
//! server's disk, which could not take it any sooner (the others' might), and while two are not applied yet: each entry
//! costs every server a sync and some wake-ups, whatever it carries. What is worth an entry of its own leaves at once. Some
//! entries may be in flight; under load one carries hundreds of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use rollcall_core::ids::Term;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::contract::Leadership;
use super::ticket::{Attempt, Reply, Ticket};
use super::types::{Batch, Callback, CommittedLeaderId, LogId, TypeConfig};
use super::{Raft, contract::NotLeader};
use crate::store::LogStore;

/// Proposals that may wait; beyond it callers are told to come again.
const QUEUE_MAX: usize = 16_384;
/// Requests of one entry.
const BATCH_REQUESTS_MAX: usize = 512;
/// An entry is closed when it has this many bytes.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Entries proposed and not yet applied.
const IN_FLIGHT_MAX: usize = 16;
/// Of what is not worth an entry of its own and waits for company so many may be in flight: one on its way to the disks and
/// one whose answers are on theirs.
const SMALL_IN_FLIGHT_MAX: usize = 2;
/// So many requests, or so many bytes of them, are worth an entry.
const WORTH_REQUESTS: usize = 64;
const WORTH_BYTES: usize = 32 << 10;
/// Fewer requests under way would have more of leaving at once than of company.
const CROWD: usize = 16;

/// One request on its way.
pub(crate) struct Proposal {
    /// Only if this server leads in this term.
    pub(crate) term: Option<Term>,
    pub(crate) deadline: Instant,
    pub(crate) ticket: Ticket,
    pub(crate) reply: Reply,
}

/// Hands proposals to the task that gathers them.
#[derive(Debug, Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Proposal>,
    traffic: Arc<Traffic>,
}

/// What is under way, and what waits.
#[derive(Debug)]
struct Traffic {
    in_flight: AtomicUsize,
    /// Requests of those in flight.
    carried: AtomicUsize,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Told when what waits may be due: enough of it has come, an entry is through; and by the log, for each sync.
    moved: Arc<Notify>,
}

impl Traffic {
    fn new(moved: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            moved,
        })
    }

    /// A proposal waits from here on.
    fn came(&self, bytes: usize) {
        let requests = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let worth = before < WORTH_BYTES && before + bytes >= WORTH_BYTES;
        if requests == WORTH_REQUESTS || worth {
            self.moved.notify_one();
        }
    }

    /// A proposal is taken, or was not let in.
    fn went(&self, bytes: usize) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether what waits is worth an entry of its own.
    fn is_worth_an_entry(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= WORTH_REQUESTS
            || self.waiting_bytes.load(Ordering::Relaxed) >= WORTH_BYTES
    }
}

/// When what waits leaves.
#[derive(Debug)]
struct Pace {
    traffic: Arc<Traffic>,
    /// The end of the log when the last entry left: it stands behind that.
    behind: Option<LogId>,
    /// About how many requests were under way at most when one of the last entries left; entry by entry, not with time.
    crowd: usize,
}

impl Pace {
    fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            traffic,
            behind: None,
            crowd: 0,
        }
    }

    /// Whether what waits should leave now. `flushed`: the last entry that is on this server's disk.
    fn is_due(&self, flushed: impl FnOnce() -> Option<LogId>) -> bool {
        match self.traffic.in_flight.load(Ordering::Acquire) {
            0 => true,
            in_flight @ 1..IN_FLIGHT_MAX => {
                self.crowd < CROWD
                    || self.traffic.is_worth_an_entry()
                    || (in_flight < SMALL_IN_FLIGHT_MAX && flushed() > self.behind)
            }
            _ => false,
        }
    }

    async fn wait_until_due(&self, flushed: impl Fn() -> Option<LogId>) {
        while !self.is_due(&flushed) {
            self.traffic.moved.notified().await;
        }
    }

    /// So many requests leave as one entry.
    fn depart(&mut self, requests: usize) -> InFlight {
        let traffic = self.traffic.clone();
        let carried = traffic.carried.fetch_add(requests, Ordering::Relaxed);
        self.crowd = (self.crowd - self.crowd / 8).max(carried + requests);
        traffic.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight { traffic, requests }
    }

    /// They were made an entry: it stands behind what was the end of the log before.
    fn entered(&mut self, behind: Option<LogId>) {
        self.behind = behind;
    }
}

/// An entry in flight, until it is dropped.
struct InFlight {
    traffic: Arc<Traffic>,
    requests: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.traffic.carried.fetch_sub(self.requests, Ordering::Relaxed);
        let before = self.traffic.in_flight.fetch_sub(1, Ordering::AcqRel);
        if [1, SMALL_IN_FLIGHT_MAX, IN_FLIGHT_MAX].contains(&before) {
            self.traffic.moved.notify_one();
        }
    }
}

impl Proposer {
    pub(crate) fn start(
        raft: Raft,
        log: LogStore,
        leadership: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE_MAX);
        let traffic = Traffic::new(log.synced());
        let task = Task {
            raft,
            log,
            leadership,
        };
        let pace = Pace::new(traffic.clone());
        tokio::spawn(stop.run_until_cancelled_owned(task.run(proposals, pace)));
        Self { queue, traffic }
    }

    /// Queues a proposal; the answer comes through its reply.
    pub(crate) fn submit(&self, proposal: Proposal) {
        let bytes = proposal.reply.request().len();
        // Before it can be taken: what is taken is counted out.
        self.traffic.came(bytes);
        let (proposal, attempt) = match self.queue.try_send(proposal) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(proposal)) => (proposal, Attempt::Overloaded),
            Err(mpsc::error::TrySendError::Closed(proposal)) => {
                (proposal, Attempt::NotProposed("this server is stopping".into()))
            }
        };
        self.traffic.went(bytes);
        proposal.reply.send(attempt);
    }
}

struct Task {
    raft: Raft,
    log: LogStore,
    leadership: watch::Receiver<Leadership>,
}

impl Task {
    async fn run(self, mut proposals: mpsc::Receiver<Proposal>, mut pace: Pace) {
        let mut leadership = self.leadership.clone();
        while let Some(first) = proposals.recv().await {
            loop {
                tokio::select! {
                    () = pace.wait_until_due(|| self.log.flushed()) => break,
                    changed = leadership.changed() => {
                        // Then they are to be refused, and not for the disk to hold back.
                        let leads = leading_term(&leadership.borrow_and_update(), *self.raft.node_id()).is_ok();
                        if changed.is_err() || !leads {
                            break;
                        }
                    }
                }
            }
            let log_end = self.log.last();
            let mut bytes = first.reply.request().len();
            let mut batch = vec![first];
            while batch.len() < BATCH_REQUESTS_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(next) = proposals.try_recv() else { break };
                bytes += next.reply.request().len();
                batch.push(next);
            }
            batch
                .iter()
                .for_each(|proposal| pace.traffic.went(proposal.reply.request().len()));
            let entry = pace.depart(batch.len());
            if self.propose(batch, entry).await {
                pace.entered(log_end);
            }
        }
    }

    /// Whether an entry was made of it.
    async fn propose(&self, batch: Vec<Proposal>, entry: InFlight) -> bool {
        let term = match leading_term(&self.leadership.borrow(), *self.raft.node_id()) {
            Ok(term) => term,
            Err(not_leader) => {
                for proposal in batch {
                    proposal.reply.send(Attempt::NotProposed(not_leader.to_string()));
                }
                return false;
            }
        };
        let now = Instant::now();
        let mut requests = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for proposal in batch {
            let refused = if proposal.deadline <= now {
                Some("the deadline passed before it was proposed".to_owned())
            } else if proposal.term.is_some_and(|wanted| wanted != term) {
                Some(format!("this server leads in term {term}, not in the wanted one"))
            } else if !proposal.ticket.try_send() {
                Some("the caller gave up".to_owned())
            } else {
                None
            };
            match refused {
                Some(reason) => proposal.reply.send(Attempt::NotProposed(reason)),
                None => {
                    requests.push(proposal.reply.request().clone());
                    replies.push(proposal.reply);
                }
            }
        }
        if requests.is_empty() {
            return false;
        }
        let responder = Callback::new(move |result| {
            drop(entry);
            answer(replies, result);
        });
        let write = self
            .raft
            .write(Batch::from_requests(&requests))
            .responder(responder);
        // The term is checked again where the entry is appended, so no entry of ours enters a later term.
        if let Err(fatal) = write.with_leader(CommittedLeaderId::new(term.0)).await {
            tracing::debug!(%fatal, "proposal not taken");
        }
        true
    }
}

fn leading_term(leadership: &Leadership, server: u64) -> Result<Term, NotLeader> {
    match leadership.leader {
        Some(leader) if leader.0 == server => Ok(leadership.term),
        leader => Err(NotLeader { leader }),
    }
}

fn answer(replies: Vec<Reply>, result: ClientWriteResult<TypeConfig>) {
    let same_for_all = |replies: Vec<Reply>, attempt: &dyn Fn() -> Attempt| {
        for reply in replies {
            reply.send(attempt());
        }
    };
    match result {
        Ok(response) if response.data.0.len() == replies.len() => {
            for (reply, result) in replies.into_iter().zip(response.data.0) {
                reply.send(Attempt::Applied(result));
            }
        }
        Ok(_) => same_for_all(replies, &|| {
            Attempt::Unknown("the entry was applied without results".into())
        }),
        Err(ClientWriteError::LogEntryDiscarded(_)) => {
            same_for_all(replies, &|| {
                Attempt::Unknown("the leader changed before it was committed".into())
            });
        }
        Err(
            error @ (ClientWriteError::ForwardToLeader(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)),
        ) => same_for_all(replies, &|| Attempt::NotProposed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::super::types::log_id;
    use super::*;

    const BUSY: fn() -> Option<LogId> = || None;

    fn flushed(index: u64) -> impl FnOnce() -> Option<LogId> {
        move || Some(log_id(1, index))
    }

    /// A pace that has seen a crowd, with an entry under way behind the log's entry 7.
    fn crowded(moved: Arc<Notify>) -> (Pace, InFlight) {
        let mut pace = Pace::new(Traffic::new(moved));
        let entry = pace.depart(CROWD);
        pace.entered(Some(log_id(1, 7)));
        (pace, entry)
    }

    #[test]
    fn what_is_not_worth_an_entry_waits_for_the_disk() {
        let (mut pace, entry) = crowded(Arc::default());
        let traffic = pace.traffic.clone();
        (1..WORTH_REQUESTS).for_each(|_| traffic.came(1));
        assert!(!pace.is_due(BUSY));
        assert!(!pace.is_due(flushed(7)), "the entry stands behind that");
        assert!(pace.is_due(flushed(8)), "the disk is free");
        traffic.came(1);
        assert!(pace.is_due(BUSY), "so many requests are worth it");
        traffic.went(1);
        assert!(!pace.is_due(BUSY));
        traffic.came(WORTH_BYTES);
        traffic.went(1);
        assert!(pace.is_due(BUSY), "and so are so many bytes");
        let mut in_flight = vec![entry];
        in_flight.extend((1..IN_FLIGHT_MAX).map(|_| pace.depart(1)));
        assert!(!pace.is_due(flushed(8)), "but nothing leaves beyond the bound");
        in_flight.pop();
        assert!(pace.is_due(BUSY));
        traffic.went(WORTH_BYTES);
        in_flight.clear();
        assert_eq!(traffic.carried.load(Ordering::Relaxed), 0);
        assert!(pace.is_due(BUSY), "with none in flight nothing waits");
    }

    #[test]
    fn of_what_is_not_worth_an_entry_two_are_in_flight() {
        let (mut pace, _entry) = crowded(Arc::default());
        let traffic = pace.traffic.clone();
        traffic.came(1);
        assert!(pace.is_due(flushed(8)));
        let second = pace.depart(1);
        assert!(!pace.is_due(flushed(8)), "though the disk is free");
        (1..WORTH_REQUESTS).for_each(|_| traffic.came(1));
        assert!(pace.is_due(flushed(8)), "what is worth an entry waits for none");
        traffic.went(1);
        assert!(!pace.is_due(flushed(8)));
        drop(second);
        assert!(pace.is_due(flushed(8)), "one is through");
    }

    #[test]
    fn few_wait_for_nobody_and_a_crowd_is_not_forgotten_with_its_last_entry() {
        let mut pace = Pace::new(Traffic::new(Arc::default()));
        let few = pace.depart(CROWD - 1);
        assert!(pace.is_due(BUSY), "they have nothing of company");
        let one_more = pace.depart(1);
        assert!(!pace.is_due(BUSY), "of all under way together");
        drop((few, one_more));
        let alone = pace.depart(1);
        assert!(pace.is_due(BUSY), "there are just too few");
        drop((alone, pace.depart(10 * CROWD)));
        let mut entries = 0;
        loop {
            let _alone = pace.depart(1);
            entries += 1;
            if pace.is_due(BUSY) {
                break;
            }
        }
        assert!((8..=32).contains(&entries), "forgotten after {entries} entries");
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_disk_the_end_of_an_entry_and_by_what_is_worth_one() {
        let disk = Arc::new(Notify::new());
        let (mut pace, entry) = crowded(disk.clone());
        let traffic = pace.traffic.clone();
        let on_disk = Arc::new(Mutex::new(None));
        let due = |pace: Pace| {
            let on_disk = on_disk.clone();
            tokio::spawn(async move {
                let due = pace.wait_until_due(|| *on_disk.lock());
                let due = tokio::time::timeout(Duration::from_secs(10), due).await;
                due.expect("it is woken");
                pace
            })
        };
        let waiting = due(pace);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "an entry is on its way to the disk");
        *on_disk.lock() = flushed(8)();
        disk.notify_one();
        pace = waiting.await.unwrap();
        let second = pace.depart(1);
        let waiting = due(pace);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "two are not applied");
        drop(second);
        pace = waiting.await.unwrap();
        *on_disk.lock() = None;
        let waiting = due(pace);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(entry);
        pace = waiting.await.unwrap();
        let _entry = pace.depart(CROWD);
        let waiting = due(pace);
        tokio::task::yield_now().await;
        (1..WORTH_REQUESTS).for_each(|_| traffic.came(1));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "what waits is not worth an entry");
        traffic.came(1);
        waiting.await.unwrap();
    }
}
