//! One revision under way: what it changed so far, for those who are to be told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::few::Few;
use super::outcome::{
    GuardChange, GuardEvent, NodeChange, RevisionChanges, ServiceChange, ServiceFate, SessionChange,
};
use super::record::{Override, ServiceSettings};
use super::sign::Sign;
use crate::guard::{Ending, GuardStatus, Ledger};
use crate::ids::{GroupName, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId};
use crate::storm::{Record, Scope};

/// The changes of one revision, in the making.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) revision: Revision,
    pub(super) services: Few<ServiceKey, ServiceDraft>,
    pub(super) sessions: Vec<SessionChange>,
    pub(super) guards: BTreeMap<ServiceKey, GuardDraft>,
    pub(super) groups: BTreeMap<GroupName, bool>,
    pub(super) overrides: Vec<(NodeKey, Option<Arc<Override>>)>,
    pub(super) storm: Option<Box<(Scope, Record)>>,
}

/// The changes of one service in it.
#[derive(Debug)]
pub(super) struct ServiceDraft {
    pub(super) fate: ServiceFate,
    pub(super) sign: Sign,
    pub(super) settings: Option<Box<ServiceSettings>>,
    /// In the order of the writes; of one node the last counts.
    pub(super) nodes: Vec<NodeChange>,
    pub(super) guard: Option<Box<GuardStatus>>,
}

/// What became of a service's removal guard in it.
#[derive(Debug)]
pub(super) struct GuardDraft {
    /// As it was before the revision.
    before: Ledger,
    ending: Option<Ending>,
    /// Author and reason of an operator's confirmation.
    confirmed: Option<(String, String)>,
    after: GuardStatus,
    is_news: bool,
}

impl Default for ServiceDraft {
    fn default() -> Self {
        Self {
            fate: ServiceFate::Kept,
            sign: Sign::default(),
            settings: None,
            nodes: Vec::new(),
            guard: None,
        }
    }
}

impl Draft {
    pub(super) fn of(revision: Revision) -> Self {
        Self {
            revision,
            services: Few::default(),
            sessions: Vec::new(),
            guards: BTreeMap::new(),
            groups: BTreeMap::new(),
            overrides: Vec::new(),
            storm: None,
        }
    }

    /// Most revisions tell of one session or of none, and very many are kept.
    pub(super) fn note_session(&mut self, change: SessionChange) {
        if self.sessions.is_empty() {
            self.sessions.reserve_exact(1);
        }
        self.sessions.push(change);
    }

    /// A service was written: whether its guard has something new to say.
    pub(super) fn note_guard(
        &mut self,
        key: &ServiceKey,
        before: Ledger,
        after: &Ledger,
        status: impl FnOnce() -> GuardStatus,
        ending: Option<Ending>,
    ) {
        if before.is_idle() && after.is_idle() && !self.guards.contains_key(key) {
            return;
        }
        let status = status();
        let guard = self.guards.entry(key.clone()).or_insert(GuardDraft {
            before,
            ending: None,
            confirmed: None,
            after: status,
            is_news: false,
        });
        guard.after = status;
        guard.ending = guard.ending.or(ending);
        guard.is_news = is_news(&guard.before, after);
    }

    /// An operator confirmed what the service's guard held.
    pub(super) fn note_confirmation(&mut self, key: &ServiceKey, author: &str, reason: &str) {
        if let Some(guard) = self.guards.get_mut(key) {
            guard.confirmed = Some((author.into(), reason.into()));
        }
    }

    pub(super) fn finish(self, request: RequestId) -> Arc<RevisionChanges> {
        let guards = self.guards.into_iter().filter(|(_, guard)| guard.is_news);
        let services = self.services.into_iter().map(|(key, service)| ServiceChange {
            key,
            fate: service.fate,
            sign: service.sign,
            settings: service.settings,
            nodes: in_order(service.nodes),
            guard: service.guard,
        });
        Arc::new(RevisionChanges {
            revision: self.revision,
            request,
            services: services.collect(),
            sessions: self.sessions,
            guards: guards.map(|(key, guard)| guard.finish(key)).collect(),
            groups: self.groups.into_iter().collect(),
            overrides: self.overrides,
            storm: self.storm,
        })
    }
}

/// The last change of each node, in the order of their ids.
fn in_order(mut nodes: Vec<NodeChange>) -> Vec<NodeChange> {
    if nodes.is_sorted_by(|one, next| id_of(one) < id_of(next)) {
        nodes.shrink_to_fit();
        return nodes;
    }
    // The sort is stable: of one node the last change stays last.
    nodes.sort_by(|one, next| id_of(one).cmp(id_of(next)));
    let mut last: Vec<NodeChange> = Vec::with_capacity(nodes.len());
    for node in nodes {
        match last.last_mut() {
            Some(before) if id_of(before) == id_of(&node) => *before = node,
            Some(_) | None => last.push(node),
        }
    }
    last
}

fn id_of(change: &NodeChange) -> &NodeId {
    match change {
        NodeChange::Put { node, .. } => &node.registration.id,
        NodeChange::Removed { id, .. } => id,
    }
}

impl GuardDraft {
    fn finish(self, service: ServiceKey) -> GuardChange {
        let engaged = (self.before.engaged().is_some(), self.after.engaged.is_some());
        let event = match (self.confirmed, self.ending, engaged) {
            (Some((author, reason)), _, _) => GuardEvent::Confirmed { author, reason },
            (None, _, (false, true)) => GuardEvent::Engaged,
            (None, Some(ending), (true, false)) => GuardEvent::Disengaged(ending),
            (None, _, _) => GuardEvent::Changed,
        };
        GuardChange {
            service,
            event,
            status: self.after,
        }
    }
}

/// Whether anybody wants to hear of it: nodes that merely join, leave or change are no news.
fn is_news(before: &Ledger, after: &Ledger) -> bool {
    let told = |ledger: &Ledger| {
        let window = ledger.window().map(|window| (window.began, window.removed));
        let hold = ledger
            .hold()
            .map(|hold| (hold.since, hold.overdue, hold.engaged.is_some()));
        (window, hold, ledger.held())
    };
    told(before) != told(after)
}

/// What carrying out a command did, besides writing.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// The revision it made; `None`: it changed nothing that is listed or watched.
    pub(super) draft: Option<Draft>,
    /// The session it opened.
    pub(super) session: Option<SessionId>,
    /// The sessions it was to end and did not.
    pub(super) voided: Vec<SessionId>,
}

impl Effect {
    pub(super) fn nothing() -> Self {
        Self::default()
    }

    pub(super) fn of(draft: Draft) -> Self {
        Self {
            draft: Some(draft),
            ..Self::default()
        }
    }
}
