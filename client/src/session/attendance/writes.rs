//! Writes: each is sent again, on whatever stream there is, until it is answered or nobody waits any more.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use rollcall_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::{Attendance, Lease, Link, Write};
use crate::backoff::Backoff;
use crate::error::Error;
use crate::key::{NodeKey, RequestId};
use crate::registry::{Written, give_up, wire_options};
use crate::session::operation::Operation;

/// After so many sessions under which a write was not taken its caller is told.
const SESSIONS_REFUSED_MAX: u32 = 2;

/// A write that waits for its answer.
pub(super) struct Pending {
    pub(super) operation: Operation,
    pub(super) request_id: RequestId,
    pub(super) acks: u32,
    /// Sessions under which it was not taken.
    pub(super) sessions_refused: u32,
    pub(super) purpose: Purpose,
    /// On the present stream, since then.
    pub(super) sent_at: Option<Instant>,
    /// Some attempt may have been applied, or may yet be.
    pub(super) outcome_unknown: bool,
    /// Since then the present server puts it off, for want of a leader.
    pub(super) refused_since: Option<Instant>,
    /// Asked to wait before it is sent again.
    pub(super) not_before: Option<Instant>,
    pub(super) pause: Backoff,
    /// Digests of its nodes, in order, and the calls of a caller's earlier writes to one of them.
    pub(super) nodes: Vec<u64>,
    pub(super) behind: Vec<u64>,
    /// How often in a row it was to be asked whose its nodes are.
    pub(super) doubts: u32,
    /// The server does not name its nodes as ours: it is not to be sent before it was asked whose they are.
    pub(super) contested: bool,
    /// Its nodes were asked to go: it takes over what is listed under a lost session, so that it can be taken out.
    pub(super) parting: bool,
    /// How often a node had been struck off the roll when its nodes were last looked up there.
    pub(super) looked_through_at: Option<u64>,
}

impl Pending {
    pub(super) fn is_restore(&self) -> bool {
        matches!(self.purpose, Purpose::Restore(_))
    }

    /// Not on its way, and not asked to wait.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.sent_at.is_none() && self.not_before.is_none_or(|at| at <= now)
    }

    /// Its nodes are still to be looked up on the roll. A call that may have been applied must stay what it was, and is
    /// put right when it is answered; unless the session closes, and with it goes what it has. One of whose nodes an
    /// answer is on its way stays too.
    pub(super) fn may_be_taken_back(&self, closing: bool) -> bool {
        let settled = matches!(self.purpose, Purpose::Restore(Step::Write | Step::Ask));
        let unapplied = self.sent_at.is_none() && (closing || !self.outcome_unknown);
        settled && unapplied && !self.parting
    }

    /// While nodes of a group are being registered again, other writes to it wait; and no write overtakes an earlier
    /// one to the same node.
    pub(super) fn may_go(&self, restoring: &BTreeSet<&str>, pending: &BTreeMap<u64, Pending>) -> bool {
        let in_turn = || self.behind.iter().all(|call| !pending.contains_key(call));
        let unopposed = || restoring.is_empty() || self.operation.groups().is_disjoint(restoring);
        self.is_restore() || (in_turn() && unopposed())
    }

    /// Nobody waits for it, and it surely has not been applied.
    fn is_abandoned(&self) -> bool {
        match &self.purpose {
            // What was to go is off the roll, and nobody else would take it out.
            Purpose::Caller { .. } if matches!(self.operation, Operation::Deregister(_)) => false,
            Purpose::Caller { reply, .. } => {
                reply.is_closed() && self.sent_at.is_none() && !self.outcome_unknown
            }
            Purpose::Restore(_) => false,
        }
    }

    fn shares_a_node_with(&self, nodes: &[u64]) -> bool {
        let (few, many) = if nodes.len() < self.nodes.len() {
            (nodes, &self.nodes[..])
        } else {
            (&self.nodes[..], nodes)
        };
        few.iter().any(|node| many.binary_search(node).is_ok())
    }
}

/// Two nodes of one digest merely wait for each other.
fn digests(operation: &Operation) -> Vec<u64> {
    let digest = |node| {
        let mut hasher = DefaultHasher::new();
        Hash::hash(node, &mut hasher);
        hasher.finish()
    };
    let mut digests: Vec<u64> = operation.keys().iter().map(digest).collect();
    digests.sort_unstable();
    digests
}

pub(super) enum Purpose {
    /// A caller waits until then.
    Caller {
        deadline: Instant,
        reply: oneshot::Sender<Result<Written, Error>>,
        _place: OwnedSemaphorePermit,
    },
    /// Registers again what was registered.
    Restore(Step),
}

/// What is to be done next to register again what was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write,
    /// Something is there: ask whose it is.
    Ask,
    /// The answer is waited for.
    Asked,
}

/// A refusal that may not be one a little later, or under another session.
fn may_be_waited_for(error: &Error) -> bool {
    error.is_transient() || matches!(error, Error::SessionNotFound { .. })
}

impl Attendance {
    pub(super) fn on_answer(&mut self, call: u64, answer: Result<Written, Error>) {
        if self
            .closing
            .as_ref()
            .is_some_and(|closing| closing.call.is_some_and(|(said, _)| said == call))
        {
            return self.on_close_answer(answer);
        }
        let Some(pending) = self.pending.get_mut(&call) else {
            return;
        };
        let young = self.lease.as_ref().is_some_and(Lease::is_young);
        match answer {
            Ok(written) => self.finish(call, Ok(written)),
            Err(error) if self.closing.is_some() && pending.is_restore() && may_be_waited_for(&error) => {
                self.refuse_while_closing(call, error);
            }
            Err(error @ Error::SessionNotFound { .. })
                if pending.sessions_refused >= SESSIONS_REFUSED_MAX
                    || (pending.is_restore() && young && self.restores_refused >= SESSIONS_REFUSED_MAX) =>
            {
                // Not the sessions are at fault: one for AP groups alone cannot write to a CP group, say.
                self.finish(call, Err(error));
            }
            Err(error @ Error::SessionNotFound { .. }) if self.closing.is_some() => {
                // Perhaps for this group alone. Whether the session is to be ended is asked of it itself.
                self.finish(call, Err(error));
            }
            Err(Error::SessionNotFound { .. }) => {
                pending.sent_at = None;
                pending.sessions_refused += 1;
                if pending.is_restore() && young {
                    self.restores_refused += 1;
                    self.full_wanted = true;
                }
                self.lose();
            }
            Err(Error::SessionForeign { .. }) => {
                pending.sent_at = None;
                self.detach("the server does not hold the session");
            }
            Err(error) if self.doubt(call, &error) => self.last_error = Some(error),
            Err(error) => {
                let Some(pending) = self.pending.get_mut(&call) else {
                    return;
                };
                pending.outcome_unknown |= matches!(error, Error::OutcomeUnknown { .. });
                let restoring = pending.is_restore();
                // A caller hears of a full disk at once; what was registered before waits for space.
                let again = match &error {
                    Error::DiskFull { .. } => restoring,
                    error => error.is_transient(),
                };
                if !again {
                    return self.finish(call, Err(error));
                }
                let asked = match &error {
                    Error::Overloaded { retry_after, .. } => *retry_after,
                    _ => Duration::ZERO,
                };
                let leaderless = matches!(error, Error::Unavailable { .. } | Error::OutcomeUnknown { .. });
                let sent_at = pending.sent_at.take();
                pending.not_before = Some(Instant::now() + asked.max(pending.pause.next_delay()));
                self.last_error = Some(error);
                if leaderless {
                    self.look_elsewhere(call, sent_at);
                } else {
                    pending.refused_since = None;
                }
            }
        }
    }

    pub(super) fn on_write(&mut self, write: Write) {
        write.operation.on_asked(&mut self.shared.roll.lock());
        let purpose = Purpose::Caller {
            deadline: write.deadline,
            reply: write.reply,
            _place: write.place,
        };
        self.add_pending(write.operation, write.request_id, write.acks, purpose);
    }

    pub(super) fn add_pending(
        &mut self,
        operation: Operation,
        request_id: RequestId,
        acks: u32,
        purpose: Purpose,
    ) {
        let call = self.take_call();
        let pause = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let nodes = digests(&operation);
        let ordered = matches!(purpose, Purpose::Caller { .. });
        let others = self
            .pending
            .iter()
            .filter(|(_, other)| ordered && !other.is_restore());
        let behind = others.filter(|(_, other)| other.shares_a_node_with(&nodes));
        let behind = behind.map(|(call, _)| *call).collect();
        let pending = Pending {
            operation,
            request_id,
            acks,
            sessions_refused: 0,
            purpose,
            sent_at: None,
            outcome_unknown: false,
            refused_since: None,
            not_before: None,
            pause,
            nodes,
            behind,
            doubts: 0,
            contested: false,
            parting: false,
            looked_through_at: None,
        };
        self.pending.insert(call, pending);
    }

    /// What callers are registering: it may be there already, though nobody has said so.
    pub(super) fn nodes_asked_for(&self) -> BTreeSet<NodeKey> {
        let callers = self.pending.values().filter(|pending| !pending.is_restore());
        let registering = callers.filter(|pending| matches!(pending.operation, Operation::Register(_)));
        registering.flat_map(|pending| pending.operation.keys()).collect()
    }

    pub(super) fn send_pending(&mut self, now: Instant) {
        let (Link::Up(_), Some(lease)) = (&self.link, &self.lease) else {
            return;
        };
        let session = lease.session;
        self.take_back_restores();
        let callers_due = |pending: &Pending| !pending.is_restore() && pending.is_due(now);
        let restoring = self.restoring_groups_if(callers_due);
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.is_due(now) && pending.may_go(&restoring, &self.pending))
            .filter(|(_, pending)| !matches!(pending.purpose, Purpose::Restore(Step::Ask | Step::Asked)))
            .map(|(call, _)| *call)
            .collect();
        for call in due {
            let Some(pending) = self.pending.get(&call) else {
                continue;
            };
            if pending.is_restore() && !self.has_room_for_restores() {
                // An answer makes room: it need not wake us before.
                if let Some(pending) = self.pending.get_mut(&call) {
                    pending.not_before = None;
                }
                continue;
            }
            let left = match &pending.purpose {
                Purpose::Caller { deadline, .. } => deadline.saturating_duration_since(now),
                Purpose::Restore(_) => self.config.attempt_timeout,
            };
            let budget = left.min(self.config.attempt_timeout);
            let options = wire_options(pending.request_id, budget, pending.acks);
            let request = Some(pending.operation.to_wire(options));
            let request = v1::SessionRequest {
                call,
                session,
                request,
            };
            if !self.send(request) {
                return;
            }
            if let Some(pending) = self.pending.get_mut(&call) {
                pending.sent_at = Some(now);
                pending.not_before = None;
            }
        }
    }

    /// When the stream's oldest unanswered write should have been answered. A server answers *unknown* before
    /// that; one that says nothing is paused, or cut off.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        let writes = self.pending.values().filter_map(|pending| pending.sent_at);
        let closing = self
            .closing
            .as_ref()
            .and_then(|closing| closing.call)
            .map(|(_, at)| at);
        writes
            .chain(closing)
            .min()
            .map(|at| at + self.config.attempt_timeout)
    }

    pub(super) fn leave_if_silent(&mut self, now: Instant) {
        if let Link::Up(up) = &self.link
            && self.silent_at().is_some_and(|at| at <= now)
        {
            up.endpoint.failed();
            self.detach("a write was not answered in time");
        }
    }

    /// Writes that nobody waits for do not go any more: what is asked for later must not be undone by them.
    pub(super) fn forget_abandoned(&mut self) {
        self.pending.retain(|_, pending| !pending.is_abandoned());
    }

    pub(super) fn expire_writes(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(
                |(_, pending)| matches!(pending.purpose, Purpose::Caller { deadline, .. } if deadline <= now),
            )
            .map(|(call, _)| *call)
            .collect();
        for call in due {
            let Some(pending) = self.pending.get(&call) else {
                continue;
            };
            let error = if pending.sent_at.is_some() || pending.outcome_unknown {
                Error::OutcomeUnknown {
                    request_id: pending.request_id,
                    message: "no answer before the deadline".into(),
                }
            } else {
                Error::Unavailable {
                    message: "no server took the write before the deadline".into(),
                }
            };
            self.finish(call, Err(error));
        }
    }

    pub(super) fn finish(&mut self, call: u64, answer: Result<Written, Error>) {
        let Some(pending) = self.pending.remove(&call) else {
            return;
        };
        match &answer {
            Ok(written) => self.on_applied(&pending, written),
            Err(error) => self.on_not_applied(&pending, error),
        }
        if answer.is_ok() {
            self.note_taken();
        }
        self.quiet_since = Instant::now();
        match pending.purpose {
            Purpose::Caller { reply, .. } => {
                let answer =
                    answer.map_err(|error| give_up(Some(pending.request_id), pending.outcome_unknown, error));
                let is_unknown = matches!(&answer, Err(Error::OutcomeUnknown { .. }));
                self.registered_perhaps |= is_unknown && matches!(pending.operation, Operation::Register(_));
                // A caller that went away wants no answer.
                let _ = reply.send(answer);
            }
            Purpose::Restore(_) if pending.parting => self.on_parted(pending.operation, answer),
            Purpose::Restore(_) => self.on_restored(pending.operation, answer),
        }
    }

    fn on_applied(&mut self, pending: &Pending, written: &Written) {
        let mut roll = self.shared.roll.lock();
        let mut out = match pending.operation {
            Operation::Register(_) if pending.is_restore() => pending.operation.keys(),
            Operation::Register(_) | Operation::Deregister(_) | Operation::Update(_) => Vec::new(),
        };
        out.retain(|node| !roll.names(node));
        pending.operation.on_applied(written, &mut roll);
        out.iter().for_each(|node| roll.dismiss(node));
        if self.closing.is_some() {
            roll.dismiss_all();
        }
        drop(roll);
        self.take_out_again(out);
    }

    /// Whoever asked for nodes to go knows that they may stay; while some are registered again it is seen to. So it is of
    /// those of which nobody has decided, if the session turns out to be lost.
    fn on_not_applied(&mut self, pending: &Pending, error: &Error) {
        let seen_to = self.lease.is_none() || self.closing.is_some() || self.is_restoring();
        if !pending.is_restore() && !seen_to && !may_be_waited_for(error) {
            let mut roll = self.shared.roll.lock();
            pending.operation.on_given_up(&mut roll);
        }
    }
}
