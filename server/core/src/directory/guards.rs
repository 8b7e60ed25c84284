//! Commands on removal guards: the leader's word that time passed, and the operator's that nodes are gone.

use super::draft::{Draft, Effect};
use super::outcome::{Refusal, RemovalCause};
use super::record::{Node, NodeState, Service};
use super::rules;
use super::state::Directory;
use crate::ids::{LogPosition, NodeId, NodeKey, Revision, ServiceKey, Term};

impl Directory {
    pub(super) fn on_close_guard_windows(
        &mut self,
        at: LogPosition,
        term: Term,
        windows: &[(ServiceKey, Revision)],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "windows", windows.len())?;
        let stands =
            |service: &Service, began| service.guard.window().is_some_and(|window| window.began == began);
        let mut draft = self.draft();
        for (key, began) in windows {
            let found = self.service(key).is_some_and(|service| stands(service, *began));
            if at.term == term && found && !self.is_moving(key) {
                self.write_guard(&mut draft, key, |ledger, _, _| {
                    ledger.close_window(*began);
                    None
                });
                self.release(&mut draft, key);
            }
        }
        Ok(effect_of(draft))
    }

    pub(super) fn on_release_held(
        &mut self,
        at: LogPosition,
        term: Term,
        holds: &[(ServiceKey, Revision)],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "holds", holds.len())?;
        let stands = |service: &Service, since| {
            let hold = service.guard.hold();
            hold.is_some_and(|hold| hold.since == since && !hold.overdue)
        };
        let mut draft = self.draft();
        for (key, since) in holds {
            let found = self.service(key).is_some_and(|service| stands(service, *since));
            if at.term == term && found && !self.is_moving(key) {
                self.write_guard(&mut draft, key, |ledger, _, _| {
                    ledger.end_hold(*since);
                    None
                });
                self.release(&mut draft, key);
            }
        }
        Ok(effect_of(draft))
    }

    pub(super) fn on_confirm_removal(
        &mut self,
        key: &ServiceKey,
        since: Option<Revision>,
        author: &str,
        reason: &str,
    ) -> Result<Effect, Refusal> {
        rules::text(&self.limits, "author", author)?;
        rules::text(&self.limits, "reason", reason)?;
        let service = self.require_writable_service(key)?;
        let Some(hold) = service.guard.hold() else {
            return Ok(Effect::nothing());
        };
        if let Some(expected) = since
            && expected != hold.name()
        {
            return Err(Refusal::RevisionMismatch {
                subject: format!("the hold of service {key}"),
                expected,
                current: hold.name(),
            });
        }
        let held = suspects(service).map(|node| node.registration.id.clone());
        let held: Vec<NodeId> = held.collect();
        let mut draft = self.draft();
        self.let_go(&mut draft, key, held, RemovalCause::Deregistered);
        draft.note_confirmation(key, author, reason);
        Ok(Effect::of(draft))
    }

    /// Lets go as many held nodes as may go now, those first that are held the longest.
    fn release(&mut self, draft: &mut Draft, key: &ServiceKey) {
        let Some(service) = self.service(key) else { return };
        let count = service.guard.releasable(&service.settings.guard) as usize;
        if count > 0 {
            let mut held: Vec<(Revision, &NodeId)> = self.overdue(service).collect();
            held.sort_unstable();
            let going = held.into_iter().take(count).map(|(_, id)| id.clone()).collect();
            self.let_go(draft, key, going, RemovalCause::Expired);
        }
        self.write_guard(draft, key, |ledger, settings, at| ledger.settle(settings, at));
    }

    /// The suspects whose time is over, if that of any is, each with when it was found silent. Later held ones have a time
    /// of their own. An operator's word on a node is none on its session.
    fn overdue<'a>(&self, service: &'a Service) -> impl Iterator<Item = (Revision, &'a NodeId)> {
        let older_than = service.guard.hold().and_then(|hold| hold.older_than());
        let silent = suspects(service).map(|node| {
            let owner = node.session().and_then(|id| self.session(id));
            let lapsed = owner.and_then(|session| session.lapsed);
            (lapsed.unwrap_or(node.modified), &node.registration.id)
        });
        silent.filter(move |(lapsed, _)| older_than.is_none_or(|engaged| *lapsed < engaged))
    }

    /// Removes held nodes, and ends the sessions of which nothing is left.
    fn let_go(&mut self, draft: &mut Draft, key: &ServiceKey, going: Vec<NodeId>, cause: RemovalCause) {
        for id in &going {
            let node = NodeKey {
                service: key.clone(),
                node: id.clone(),
            };
            if let Some(owner) = self.node(&node).and_then(|node| node.session()) {
                self.lose_node(owner, key, id);
                self.end_if_spent(draft, owner);
            }
        }
        self.remove_nodes(draft, [(key.clone(), going)], cause);
    }
}

fn suspects(service: &Service) -> impl Iterator<Item = &Node> {
    let nodes = service.nodes.values().map(AsRef::as_ref);
    nodes.filter(|node| node.state == NodeState::Suspect)
}

/// The leader's word that was void for every service makes no revision.
fn effect_of(draft: Draft) -> Effect {
    if draft.guards.is_empty() {
        Effect::nothing()
    } else {
        Effect::of(draft)
    }
}
