//! What a session has registered, and would register again.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::NodeKey;
use crate::node::{Entry, Expected, NodeUpdate, Registration};

#[derive(Debug, Default)]
pub(super) struct Roll {
    nodes: BTreeMap<NodeKey, Registered>,
}

#[derive(Debug)]
struct Registered {
    registration: Registration,
    /// Of our last applied write to it.
    revision: u64,
}

impl Roll {
    pub(super) fn enter(&mut self, entry: &Entry, revision: u64) {
        let registered = Registered {
            registration: entry.registration.clone(),
            revision,
        };
        self.nodes.insert(entry.key(), registered);
    }

    pub(super) fn update(&mut self, update: &NodeUpdate, revision: u64) {
        if let Some(registered) = self.nodes.get_mut(&update.key) {
            registered.registration.apply(update);
            registered.revision = revision;
        }
    }

    pub(super) fn strike(&mut self, key: &NodeKey) {
        self.nodes.remove(key);
    }

    pub(super) fn keys(&self) -> Vec<NodeKey> {
        self.nodes.keys().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All of it, to be registered again. Conditions held once; they are not asked again.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.nodes
            .iter()
            .map(|(key, registered)| Entry {
                service: key.service.clone(),
                registration: registered.registration.clone(),
                expected: Expected::Any,
            })
            .collect()
    }

    /// The registry said, as of `revision`, what the session owns. What we registered before that and do not own
    /// is somebody else's now: it is struck off, and returned. (An answer from before our write says nothing.)
    pub(super) fn reconcile(&mut self, owned: &BTreeSet<NodeKey>, revision: u64) -> Vec<NodeKey> {
        let taken: Vec<NodeKey> = self
            .nodes
            .iter()
            .filter(|(key, registered)| registered.revision <= revision && !owned.contains(*key))
            // Persistent and static nodes are never owned by a session.
            .filter(|(_, registered)| {
                !matches!(
                    registered.registration.kind,
                    Some(crate::NodeKind::Persistent | crate::NodeKind::Static)
                )
            })
            .map(|(key, _)| key.clone())
            .collect();
        taken.iter().for_each(|key| self.strike(key));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ServiceKey;

    fn entry(port: u16) -> Entry {
        Entry::new(ServiceKey::new("g", "s"), Registration::new("http", "h", port))
    }

    #[test]
    fn only_what_the_registry_surely_gave_away_is_struck_off() {
        let mut roll = Roll::default();
        roll.enter(&entry(1), 5);
        roll.enter(&entry(2), 6);
        roll.enter(&entry(3), 9);
        let owned = BTreeSet::from([entry(1).key()]);
        assert_eq!(
            roll.reconcile(&owned, 8),
            vec![entry(2).key()],
            "3 is newer than the answer"
        );
        assert_eq!(roll.keys(), vec![entry(1).key(), entry(3).key()]);
    }

    #[test]
    fn an_update_changes_what_would_be_registered_again() {
        let mut roll = Roll::default();
        roll.enter(&entry(1), 5);
        roll.update(&NodeUpdate::new(entry(1).key()).weight(3), 6);
        roll.update(&NodeUpdate::new(entry(2).key()).weight(3), 7);
        let entries = roll.entries();
        assert_eq!((entries.len(), entries[0].registration.weight), (1, 3));
    }
}
