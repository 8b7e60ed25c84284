//! Registering again what was registered.

use std::collections::BTreeSet;
use std::sync::Arc;

use rollcall_proto::v1;

use super::joining::OUTGOING_SPARE;
use super::writes::{Pending, Purpose, Step};
use super::{Attendance, Link};
use crate::error::Error;
use crate::key::{NodeKey, RequestId};
use crate::node::{Entry, Removal};
use crate::registry::Written;
use crate::session::event::{SessionEvent, SessionStatus};
use crate::session::operation::Operation;

/// Nodes of one call when registering again: far below the servers' bounds on nodes and bytes of a request.
pub(super) const RESTORE_BATCH: usize = 100;

impl Attendance {
    /// Registers again all that was registered, and parts with what was asked to go meanwhile.
    pub(super) fn restore(&mut self) {
        for mode in [v1::GroupMode::Ap, v1::GroupMode::Cp] {
            let entries = self.shared.roll.lock().entries(mode);
            for batch in entries.chunks(RESTORE_BATCH) {
                self.registered_again = true;
                self.shared.status.send_replace(SessionStatus::Restoring);
                self.add_restore(batch.to_vec());
            }
            let leaving = self.shared.roll.lock().leaving(mode);
            self.part_with(leaving);
        }
    }

    pub(super) fn add_restore(&mut self, entries: Vec<Entry>) {
        self.add_pending(
            Operation::Register(entries),
            RequestId::random(),
            0,
            Purpose::Restore(Step::Write),
        );
    }

    /// The server names none of these as ours, where it should: before they are let go it is asked whose they are.
    pub(super) fn contest(&mut self, entries: Vec<Entry>) {
        let call = self.next_call;
        self.add_restore(entries);
        if let Some(pending) = self.pending.get_mut(&call) {
            pending.purpose = Purpose::Restore(Step::Ask);
            pending.contested = true;
        }
    }

    /// What was asked to go since then is not registered again, but parted with.
    pub(super) fn take_back_restores(&mut self) {
        let closing = self.closing.is_some();
        let roll = self.shared.roll.lock();
        let (mut struck, mut empty) = (Vec::new(), Vec::new());
        for (call, pending) in &mut self.pending {
            if !pending.may_be_taken_back(closing) || pending.looked_through_at == Some(roll.strikes()) {
                continue;
            }
            let Operation::Register(entries) = &mut pending.operation else {
                continue;
            };
            pending.looked_through_at = Some(roll.strikes());
            let left_out: Vec<Entry> = entries
                .extract_if(.., |entry| !roll.names(&entry.key()))
                .collect();
            if left_out.is_empty() {
                continue;
            }
            pending.request_id = RequestId::random();
            if entries.is_empty() {
                empty.push(*call);
            }
            struck.push(left_out);
        }
        drop(roll);
        for call in &empty {
            self.pending.remove(call);
        }
        for entries in struck {
            self.part_with(entries);
        }
        if !empty.is_empty() {
            self.end_restoring();
        }
    }

    /// These were asked to go while they were registered again. Whatever is asked of them next comes behind this.
    pub(super) fn take_out_again(&mut self, nodes: Vec<NodeKey>) {
        if nodes.is_empty() || self.closing.is_some() {
            // They go with the session.
            return;
        }
        let removals = nodes.into_iter().map(Removal::from).collect();
        let purpose = Purpose::Restore(Step::Write);
        self.add_pending(Operation::Deregister(removals), RequestId::random(), 0, purpose);
    }

    /// Callers' writes and heartbeats find room on the stream, however much is to be registered again.
    pub(super) fn has_room_for_restores(&self) -> bool {
        let others = self.config.writes_in_flight_max + OUTGOING_SPARE / 2;
        matches!(&self.link, Link::Up(up) if up.outgoing.capacity() > others)
    }

    pub(super) fn restoring_nodes(&self) -> Vec<NodeKey> {
        let restoring = self.pending.values().filter(|pending| pending.is_restore());
        restoring.flat_map(|pending| pending.operation.keys()).collect()
    }

    /// Groups of which nodes are being registered again.
    fn restoring_groups(&self) -> BTreeSet<&str> {
        #[cfg(test)]
        self.groups_gathered.set(self.groups_gathered.get() + 1);
        let restores = self.pending.values().filter(|pending| pending.is_restore());
        restores.flat_map(|pending| pending.operation.groups()).collect()
    }

    /// The same, where it is asked for: gathering them takes a look at all that is registered again.
    pub(super) fn restoring_groups_if(&self, asked: impl Fn(&Pending) -> bool) -> BTreeSet<&str> {
        if self.pending.values().any(asked) {
            self.restoring_groups()
        } else {
            BTreeSet::new()
        }
    }

    pub(super) fn is_restoring(&self) -> bool {
        self.pending.values().any(Pending::is_restore)
    }

    pub(super) fn on_restored(&mut self, operation: Operation, answer: Result<Written, Error>) {
        self.registered_again |= matches!(operation, Operation::Register(_));
        if let Err(error) = answer {
            match operation {
                Operation::Register(entries) => self.on_restore_refused(entries, error),
                Operation::Deregister(removals) => self.on_taking_out_refused(removals),
                Operation::Update(_) => {}
            }
        }
        self.end_restoring();
    }

    fn on_restore_refused(&mut self, mut entries: Vec<Entry>, error: Error) {
        if entries.len() > 1 {
            // One of them is refused: find it.
            let rest = entries.split_off(entries.len() / 2);
            self.add_restore(entries);
            self.add_restore(rest);
            return;
        }
        let Some(node) = entries.first().map(Entry::key) else {
            return;
        };
        if !self.shared.roll.lock().names(&node) {
            return self.part_with(entries);
        }
        tracing::warn!(%node, %error, "a node could not be registered again");
        self.shared.roll.lock().strike(&node);
        self.tell(SessionEvent::NodeRefused {
            node,
            error: Arc::new(error),
        });
    }

    fn on_taking_out_refused(&mut self, mut removals: Vec<Removal>) {
        let node = |removal: Removal| removal.key;
        if removals.len() > 1 {
            // One of them is refused: find it.
            let rest = removals.split_off(removals.len() / 2);
            self.take_out_again(removals.into_iter().map(node).collect());
            self.take_out_again(rest.into_iter().map(node).collect());
        } else {
            removals
                .iter()
                .for_each(|removal| self.shared.roll.lock().forget(&removal.key));
        }
    }

    /// One call less is under way that registers again. The last one ends it.
    pub(super) fn end_restoring(&mut self) {
        if self.is_restoring() {
            return;
        }
        self.restores_refused = 0;
        let nodes = self.shared.roll.lock().len();
        if let Link::Up(up) = &self.link {
            self.shared.status.send_replace(SessionStatus::Attached {
                server: up.endpoint.address.clone(),
            });
        }
        if std::mem::take(&mut self.registered_again) && self.closing.is_none() {
            self.tell(SessionEvent::Reregistered { nodes });
        }
    }
}
