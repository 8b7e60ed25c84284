//! A write's way: tried here or at the leader, and again while it is sure that nothing was applied.

use bytes::Bytes;
use rollcall_core::directory::{Outcome, Refusal, Request};
use rollcall_core::ids::Term;
use tokio::sync::watch;
use tokio::time::Instant;

use super::forward::Call;
use super::proposer::Proposal;
use super::ticket::{Admitted, Answered, Attempt, Reply, Ticket};
use crate::raft::consensus::{Consensus, Inner, OVERLOAD_PAUSE, RETRY_PAUSE};
use crate::raft::contract::{Leadership, ProposeError, ReadError};

/// Largest encoded request (design section 11).
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of requests that wait here, for a leader, its answer or the log. Beyond it callers are told to come again: a
/// quorum that is away, or a slow disk, must not fill the memory.
pub(in crate::raft) const WAITING_BYTES_MAX: usize = 64 << 20;

impl Consensus {
    /// Has a request applied, wherever the leader is. Retries by itself while it is sure that nothing was
    /// applied, until `deadline`.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose(&self, request: Request, deadline: Instant) -> Result<Outcome, ProposeError> {
        let encoded = encode(&request)?;
        drop(request);
        // Also while no leader is known: what waits is bounded by its bytes.
        let Some(mut admitted) = self.inner.admit(encoded) else {
            return result_of(Attempt::Overloaded);
        };
        let mut leadership: Option<watch::Receiver<Leadership>> = None;
        loop {
            let (attempt, again) = self.inner.attempt(admitted, deadline).await;
            let now = Instant::now();
            let over = now >= deadline || self.inner.stop.is_cancelled() || self.inner.gate.is_diverged();
            match again {
                Some(again) if !over => admitted = again,
                Some(_) | None => return result_of(attempt),
            }
            // The first time it only begins to listen, and looks again at once: most requests never wait here.
            match &mut leadership {
                None => leadership = Some(self.inner.leadership.subscribe()),
                Some(leadership) => {
                    let pause = deadline.min(now + RETRY_PAUSE);
                    let _ = tokio::time::timeout_at(pause, leadership.changed()).await;
                }
            }
        }
    }

    /// Has a request applied only if this server leads in `term`; never forwarded, tried once.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose_in_term(
        &self,
        term: Term,
        request: Request,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        // The leader's own: few, and never refused for want of room.
        let admitted = Admitted::new(encode(&request)?, None);
        result_of(self.inner.attempt_here(admitted, Some(term), deadline).await.0)
    }
}

impl Inner {
    /// One attempt, here or at the leader.
    async fn attempt(&self, admitted: Admitted, deadline: Instant) -> Answered {
        let leader = self.leadership.borrow().leader;
        match leader {
            Some(leader) if leader == self.options.server => {
                self.attempt_here(admitted, None, deadline).await
            }
            Some(leader) => match self.address_of(leader.0) {
                Some(address) => self.attempt_at(leader.0, &address, admitted, deadline).await,
                None => not_proposed(format!("the address of leader {leader} is not known"), admitted),
            },
            None => not_proposed("no leader is known", admitted),
        }
    }

    /// One attempt at this server, which must lead.
    pub(in crate::raft) async fn attempt_here(
        &self,
        admitted: Admitted,
        term: Option<Term>,
        deadline: Instant,
    ) -> Answered {
        match self.may_propose() {
            Ok(()) => {}
            Err(Attempt::NotProposed(reason)) => return not_proposed(reason, admitted),
            Err(refused) => return (refused, None),
        }
        await_attempt(deadline, admitted, |ticket, reply| {
            self.submit(Proposal {
                term,
                deadline,
                ticket: Some(ticket),
                reply,
            });
        })
        .await
    }

    /// Whether proposals are taken here; if not, what becomes of one.
    pub(in crate::raft) fn may_propose(&self) -> Result<(), Attempt> {
        if self.gate.is_diverged() {
            Err(Attempt::NotProposed(ReadError::Diverged.to_string()))
        } else if !self.leads() {
            Err(Attempt::NotProposed("this server does not lead".into()))
        } else if self.space.is_full() {
            Err(Attempt::DiskFull)
        } else {
            Ok(())
        }
    }

    /// Queues a proposal; the answer comes through its reply.
    pub(in crate::raft) fn submit(&self, proposal: Proposal) {
        self.proposer.submit(proposal);
    }

    /// Takes room for a request; `None`: too much is under way already.
    pub(in crate::raft) fn admit(&self, request: Bytes) -> Option<Admitted> {
        let bytes = u32::try_from(request.len()).ok()?;
        let room = self.room.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Admitted::new(request, Some(room)))
    }

    async fn attempt_at(
        &self,
        leader: u64,
        address: &str,
        admitted: Admitted,
        deadline: Instant,
    ) -> Answered {
        if self.gate.is_diverged() {
            return not_proposed(ReadError::Diverged.to_string(), admitted);
        }
        await_attempt(deadline, admitted, |ticket, reply| {
            self.forwarder.submit(
                leader,
                address,
                Call {
                    deadline,
                    ticket,
                    reply,
                },
            );
        })
        .await
    }
}

fn encode(request: &Request) -> Result<Bytes, ProposeError> {
    let bytes = request.encode();
    match bytes.len() <= REQUEST_BYTES_MAX {
        true => Ok(bytes),
        false => Err(ProposeError::Refused(Refusal::TooLarge {
            what: "request".into(),
            size: bytes.len() as u64,
            size_max: REQUEST_BYTES_MAX as u64,
        })),
    }
}

fn result_of(attempt: Attempt) -> Result<Outcome, ProposeError> {
    match attempt {
        Attempt::Applied(result) => Ok(result?),
        Attempt::NotProposed(reason) => Err(ProposeError::Unavailable { reason }),
        Attempt::DiskFull => Err(ProposeError::DiskFull),
        Attempt::Overloaded => Err(ProposeError::Overloaded {
            retry_after: OVERLOAD_PAUSE,
        }),
        Attempt::Unknown(reason) => Err(ProposeError::Unknown { reason }),
    }
}

fn not_proposed(reason: impl Into<String>, admitted: Admitted) -> Answered {
    (Attempt::NotProposed(reason.into()), Some(admitted))
}

async fn await_attempt(
    deadline: Instant,
    admitted: Admitted,
    submit: impl FnOnce(Ticket, Reply),
) -> Answered {
    let (reply, answered) = Reply::to(admitted);
    let ticket = Ticket::default();
    submit(ticket.clone(), reply);
    let attempt = match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(answered)) => return answered,
        Ok(Err(_)) => Attempt::Unknown("replication ended before the answer".into()),
        Err(_) if ticket.try_cancel() => {
            Attempt::NotProposed("the deadline passed before it was proposed".into())
        }
        Err(_) => Attempt::Unknown("no answer before the deadline".into()),
    };
    (attempt, None)
}
