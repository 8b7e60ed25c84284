//! Changes of several revisions as one for each service; newer replaces older.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_core::directory::{NodeChange, RevisionChanges, ServiceChange, ServiceFate};
use rollcall_core::ids::{NodeId, Revision, ServiceKey};

/// What some revisions did, a service at a time.
pub(crate) struct Merged {
    /// By the revision of each service's last change, then by key.
    pub(crate) services: Vec<(Revision, ServiceChange)>,
    /// How many changes became part of a later one.
    pub(crate) absorbed: u64,
}

struct Pending {
    revision: Revision,
    /// It went before it came back: both are told.
    went: Option<Revision>,
    /// Without its nodes.
    change: ServiceChange,
    nodes: BTreeMap<NodeId, NodeChange>,
}

impl Merged {
    /// Of revisions in their order.
    pub(crate) fn of(revisions: &[Arc<RevisionChanges>]) -> Self {
        let mut pending: BTreeMap<&ServiceKey, Pending> = BTreeMap::new();
        let mut absorbed = 0;
        for changes in revisions {
            for change in &changes.services {
                match pending.get_mut(&change.key) {
                    Some(before) => {
                        absorbed += 1;
                        before.absorb(change, changes.revision);
                    }
                    None => _ = pending.insert(&change.key, Pending::of(change, changes.revision)),
                }
            }
        }
        let mut services: Vec<_> = pending.into_values().flat_map(Pending::finish).collect();
        services.sort_by(|(one, a), (other, b)| (one, &a.key).cmp(&(other, &b.key)));
        Self { services, absorbed }
    }
}

impl Pending {
    fn of(change: &ServiceChange, revision: Revision) -> Self {
        let mut pending = Self {
            revision,
            went: None,
            change: ServiceChange {
                nodes: Vec::new(),
                ..change.clone()
            },
            nodes: BTreeMap::new(),
        };
        pending.add_nodes(change);
        pending
    }

    fn absorb(&mut self, newer: &ServiceChange, revision: Revision) {
        if newer.fate != ServiceFate::Kept {
            // A service that went, or came back, has nothing to do with the one before.
            let went = match self.change.fate {
                ServiceFate::Deleted => Some(self.revision),
                ServiceFate::Created | ServiceFate::Kept => None,
            };
            *self = Self::of(newer, revision);
            self.went = went.filter(|_| newer.fate == ServiceFate::Created);
            return;
        }
        self.revision = revision;
        self.change.sign = newer.sign;
        if newer.settings.is_some() {
            self.change.settings.clone_from(&newer.settings);
        }
        if newer.guard.is_some() {
            self.change.guard.clone_from(&newer.guard);
        }
        self.add_nodes(newer);
    }

    fn add_nodes(&mut self, change: &ServiceChange) {
        for node in &change.nodes {
            let id = match node {
                NodeChange::Put { node, .. } => &node.registration.id,
                NodeChange::Removed { id, .. } => id,
            };
            self.nodes.insert(id.clone(), node.clone());
        }
    }

    fn finish(self) -> impl Iterator<Item = (Revision, ServiceChange)> {
        let went = self.went.map(|revision| {
            let gone = ServiceChange {
                fate: ServiceFate::Deleted,
                settings: None,
                ..self.change.clone()
            };
            (revision, gone)
        });
        let nodes = self.nodes.into_values().collect();
        went.into_iter().chain(std::iter::once((
            self.revision,
            ServiceChange { nodes, ..self.change },
        )))
    }
}
