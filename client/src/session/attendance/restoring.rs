//! Registering again what was registered.

use std::collections::BTreeSet;
use std::sync::Arc;

use rollcall_proto::v1;
use tokio::time::Instant;

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
    /// Registers again all that was registered.
    pub(super) fn restore(&mut self) {
        for mode in [v1::GroupMode::Ap, v1::GroupMode::Cp] {
            let entries = self.shared.roll.lock().entries(mode);
            for batch in entries.chunks(RESTORE_BATCH) {
                self.registered_again = true;
                self.shared.status.send_replace(SessionStatus::Restoring);
                self.add_restore(batch.to_vec());
            }
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

    /// What was asked to go since then is not registered again.
    pub(super) fn take_back_restores(&mut self, now: Instant) {
        let roll = self.shared.roll.lock();
        let mut empty = Vec::new();
        for (call, pending) in &mut self.pending {
            // One that may have been applied must stay what it was, and is put right when it is answered. So must one
            // of whose nodes an answer is on its way.
            let settled = matches!(pending.purpose, Purpose::Restore(Step::Write | Step::Ask));
            if !settled || !pending.is_due(now) || pending.outcome_unknown {
                continue;
            }
            let Operation::Register(entries) = &mut pending.operation else {
                continue;
            };
            let before = entries.len();
            entries.retain(|entry| roll.names(&entry.key()));
            if entries.len() < before {
                pending.request_id = RequestId::random();
            }
            if entries.is_empty() {
                empty.push(*call);
            }
        }
        drop(roll);
        for call in empty {
            self.pending.remove(&call);
            self.end_restoring();
        }
    }

    /// These were asked to go while they were registered again. Whatever is asked of them next comes behind this.
    pub(super) fn take_out_again(&mut self, nodes: Vec<NodeKey>) {
        if nodes.is_empty() {
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
    pub(super) fn restoring_groups(&self) -> BTreeSet<&str> {
        let restores = self.pending.values().filter(|pending| pending.is_restore());
        restores.flat_map(|pending| pending.operation.groups()).collect()
    }

    pub(super) fn is_restoring(&self) -> bool {
        self.pending.values().any(Pending::is_restore)
    }

    pub(super) fn on_restored(&mut self, operation: Operation, answer: Result<Written, Error>) {
        self.registered_again = true;
        if let (Err(error), Operation::Register(mut entries)) = (answer, operation) {
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
            tracing::warn!(%node, %error, "a node could not be registered again");
            self.shared.roll.lock().strike(&node);
            self.tell(SessionEvent::NodeRefused {
                node,
                error: Arc::new(error),
            });
        }
        self.end_restoring();
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
        if std::mem::take(&mut self.registered_again) {
            self.tell(SessionEvent::Reregistered { nodes });
        }
    }
}
