//! Gathers proposals made at the leader into log entries, at the pace of [`Pace`]: some entries may be in flight, and under load
//! one carries hundreds of requests.

use std::sync::Arc;

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use rollcall_core::ids::Term;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pace::{InFlight, Pace, Traffic};
use super::ticket::{Attempt, Reply, Ticket};
use crate::raft::Raft;
use crate::raft::contract::Leadership;
use crate::raft::contract::NotLeader;
use crate::raft::types::{Batch, Callback, CommittedLeaderId, TypeConfig};
use crate::store::LogStore;

/// Proposals that may wait; beyond it callers are told to come again.
const QUEUE_MAX: usize = 16_384;
/// Requests of one entry.
const BATCH_REQUESTS_MAX: usize = 512;
/// An entry is closed when it has this many bytes.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Where others are about to propose so many turns of the scheduler pass before an entry leaves, and they come along.
const TURNS_FOR_COMPANY: usize = 2;

/// One request on its way.
pub(crate) struct Proposal {
    /// Only if this server leads in this term.
    pub(crate) term: Option<Term>,
    pub(crate) deadline: Instant,
    /// `None`: nobody can take it back.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) reply: Reply,
}

/// Hands proposals to the task that gathers them.
#[derive(Debug, Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Proposal>,
    traffic: Arc<Traffic>,
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
            traffic: traffic.clone(),
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
    traffic: Arc<Traffic>,
}

impl Task {
    async fn run(self, mut proposals: mpsc::Receiver<Proposal>, mut pace: Pace) {
        let mut leadership = self.leadership.clone();
        while let Some(first) = proposals.recv().await {
            // Without leadership they are to be refused, and not for the disk to hold back.
            while leading_term(&leadership.borrow_and_update(), *self.raft.node_id()).is_ok() {
                tokio::select! {
                    () = pace.wait_until_due(|| self.log.flushed()) => break,
                    changed = leadership.changed() => if changed.is_err() {
                        break;
                    }
                }
            }
            if pace.expects_company() {
                for _ in 0..TURNS_FOR_COMPANY {
                    tokio::task::yield_now().await;
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
                .for_each(|proposal| self.traffic.went(proposal.reply.request().len()));
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
            } else if proposal.ticket.as_ref().is_some_and(|ticket| !ticket.try_send()) {
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
