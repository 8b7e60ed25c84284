//! What was asked to go may still be listed under a session that was lost: a removal guard holds it, or only another
//! group's nodes were lost. A new session may not take it out before it has taken it over; so it is asked whose each
//! is, and what is ours under a lost session is taken over, and then taken out. What is not listed is not registered.

use tokio::time::Instant;

use super::Attendance;
use super::ownership::Listed;
use super::restoring::RESTORE_BATCH;
use super::writes::{Pending, Purpose, Step};
use crate::error::Error;
use crate::node::{Entry, Expected};
use crate::registry::Written;
use crate::session::operation::Operation;

impl Attendance {
    /// Sees to it that these go, which are in groups of one mode. Where no session was lost, the caller's own word is enough.
    pub(super) fn part_with(&mut self, entries: Vec<Entry>) {
        if self.lost.is_empty() {
            return;
        }
        for batch in entries.chunks(RESTORE_BATCH) {
            self.add_parting(batch.to_vec(), Step::Ask, 0);
        }
    }

    fn add_parting(&mut self, entries: Vec<Entry>, step: Step, doubts: u32) {
        let call = self.next_call;
        self.add_restore(entries);
        if let Some(pending) = self.pending.get_mut(&call) {
            pending.purpose = Purpose::Restore(step);
            pending.parting = true;
            pending.doubts = doubts;
        }
    }

    /// It was said how these are listed, which were asked to go.
    pub(super) fn on_leaving_listed(&mut self, leaving: Vec<(Entry, Listed)>, doubts: u32) {
        let own = self.lease.as_ref().map(|lease| lease.session);
        let (mut over, mut out) = (Vec::new(), Vec::new());
        for (entry, listed) in leaving {
            match listed {
                Listed::Under { session, .. } if Some(session) == own => out.push(entry.key()),
                Listed::Under { session, revision } if self.lost.contains(&session) => {
                    over.push(entry.expected(Expected::Revision(revision)));
                }
                Listed::Under { .. } | Listed::Not { .. } => self.shared.roll.lock().forget(&entry.key()),
            }
        }
        if !over.is_empty() {
            self.add_parting(over, Step::Write, doubts);
        }
        self.take_out_again(out);
    }

    /// It was taken over, and is being taken out; or it was refused.
    pub(super) fn on_parted(&mut self, operation: Operation, answer: Result<Written, Error>) {
        if let (Err(error), Operation::Register(entries)) = (answer, operation) {
            self.on_parting_refused(entries, error);
        }
        self.end_restoring();
    }

    /// What was asked to go could not be taken over, or it was not said whose it is.
    fn on_parting_refused(&mut self, mut entries: Vec<Entry>, error: Error) {
        if entries.len() > 1 {
            // One of them is refused: find it.
            let rest = entries.split_off(entries.len() / 2);
            self.add_parting(entries, Step::Ask, 0);
            self.add_parting(rest, Step::Ask, 0);
            return;
        }
        for node in entries.iter().map(Entry::key) {
            tracing::warn!(%node, %error, "a node that was asked to go may stay listed");
            if self.closing.is_none() {
                // Else another session would ask about it anew, if this one is lost before it is closed.
                self.shared.roll.lock().forget(&node);
            }
        }
        self.note_left_behind(error);
    }

    /// The session closes, and a restoring call was refused for a while: it has no other. What was not asked about yet
    /// is; what was to be taken over is left behind.
    pub(super) fn refuse_while_closing(&mut self, call: u64, error: Error) {
        let Some(pending) = self.pending.get_mut(&call) else {
            return;
        };
        pending.sent_at = None;
        if pending.parting && matches!(error, Error::SessionNotFound { .. }) {
            // One for AP groups alone, say.
            self.full_wanted = true;
            self.lose();
        } else if pending.parting || !matches!(pending.operation, Operation::Register(_)) {
            self.leave_behind(call, error);
        } else {
            // It is looked through, and parted with.
            pending.not_before = None;
        }
    }

    /// The session that closes is to be closed in time, whatever is still to be taken over.
    pub(super) fn leave_behind_at(&mut self, now: Instant) {
        if self.leave_behind_wakes_at().is_none_or(|at| at > now) {
            return;
        }
        let restores = self.pending.iter().filter(|(_, pending)| pending.is_restore());
        for call in restores.map(|(call, _)| *call).collect::<Vec<_>>() {
            let message = "it was not known in time whose its nodes are".into();
            self.leave_behind(call, Error::DeadlineExceeded { message });
        }
        self.give_up_writes("the session is being closed");
    }

    pub(super) fn leave_behind_wakes_at(&self) -> Option<Instant> {
        let closing = self.closing.as_ref().filter(|_| !self.pending.is_empty());
        closing.map(|closing| closing.last_word_at)
    }

    fn leave_behind(&mut self, call: u64, error: Error) {
        let registers = |pending: &Pending| matches!(pending.operation, Operation::Register(_));
        if self.pending.remove(&call).as_ref().is_some_and(registers) {
            self.note_left_behind(error);
        }
        self.end_restoring();
    }

    fn note_left_behind(&mut self, error: Error) {
        if let Some(closing) = &mut self.closing
            && !self.lost.is_empty()
        {
            closing.left_behind.get_or_insert(error);
        }
    }
}
