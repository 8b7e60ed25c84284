//! What a session has registered, and would register again.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_proto::v1::GroupMode;

use super::departures::Departures;
use crate::key::NodeKey;
use crate::node::{Entry, Expected, NodeKind, NodeUpdate, Registration};
use crate::registry::Written;

#[derive(Debug, Default)]
pub(super) struct Roll {
    nodes: BTreeMap<NodeKey, Registered>,
    /// Asked to go, and not known to be gone: under a lost session they may still be listed.
    leaving: BTreeMap<NodeKey, Registered>,
    departures: Departures,
    /// How often a node was taken off.
    strikes: u64,
    /// The revision as of which the registry last said what the session owns.
    owned_as_of: u64,
    #[cfg(test)]
    pub(super) lookups: std::cell::Cell<usize>,
}

#[derive(Debug)]
struct Registered {
    registration: Registration,
    /// Of our last applied write to it.
    revision: u64,
    /// On which side it was written: in mode ap the revision is one server's own.
    mode: GroupMode,
}

/// What the registry did not name among a session's nodes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Unowned {
    /// Somebody else has them now, or somebody took them out; or their group has moved, and the server has not taken it
    /// over yet.
    pub(super) contested: Vec<Entry>,
    /// In AP groups, where a server may not have heard of them yet: to be registered again, unless they are somebody else's.
    pub(super) missing: Vec<Entry>,
}

impl Roll {
    pub(super) fn enter(&mut self, entry: &Entry, written: &Written) {
        let registered = Registered {
            registration: entry.registration.clone(),
            revision: written.revision,
            mode: written.mode,
        };
        self.leaving.remove(&entry.key());
        // One that was asked for while it was on its way out had not departed then.
        self.departures.forget(&entry.key());
        self.nodes.insert(entry.key(), registered);
    }

    pub(super) fn update(&mut self, update: &NodeUpdate, written: &Written) {
        if let Some(registered) = self.nodes.get_mut(&update.key) {
            registered.registration.apply(update);
            registered.revision = written.revision;
            registered.mode = written.mode;
        }
    }

    /// It is gone, or somebody else's.
    pub(super) fn strike(&mut self, key: &NodeKey) {
        self.leaving.remove(key);
        self.strikes += u64::from(self.nodes.remove(key).is_some());
    }

    /// It was taken out by our word.
    pub(super) fn depart(&mut self, key: &NodeKey, mode: GroupMode) {
        self.strike(key);
        if mode == GroupMode::Cp {
            self.departures.remember(key);
        }
    }

    /// It is to be registered: from now on it may be listed.
    pub(super) fn expect(&mut self, key: &NodeKey) {
        self.departures.forget(key);
    }

    /// Those among these that were taken out of CP groups by our word.
    pub(super) fn departed(&self, owned: &BTreeSet<NodeKey>) -> Vec<NodeKey> {
        self.departures.among(owned)
    }

    /// It is to go. What no session owns goes by its caller's word alone.
    pub(super) fn dismiss(&mut self, key: &NodeKey) {
        let Some(registered) = self.nodes.remove(key) else {
            return;
        };
        self.strikes += 1;
        if !registered.is_unowned_by_nature() {
            self.leaving.insert(key.clone(), registered);
        }
    }

    pub(super) fn dismiss_all(&mut self) {
        let nodes = std::mem::take(&mut self.nodes).into_iter();
        self.strikes += nodes.len() as u64;
        self.leaving
            .extend(nodes.filter(|(_, registered)| !registered.is_unowned_by_nature()));
    }

    /// Nobody sees to it any more that it goes.
    pub(super) fn forget(&mut self, key: &NodeKey) {
        self.leaving.remove(key);
    }

    /// Of one mode, what was asked to go and is not known to be gone.
    pub(super) fn leaving(&self, mode: GroupMode) -> Vec<Entry> {
        self.leaving
            .iter()
            .filter(|(_, registered)| registered.mode == mode)
            .map(|(key, registered)| registered.entry(key, Expected::Absent))
            .collect()
    }

    /// What was asked to go is gone.
    pub(super) fn has_left(&self) -> bool {
        self.leaving.is_empty()
    }

    /// While it is the same, all are named that were named before.
    pub(super) fn strikes(&self) -> u64 {
        self.strikes
    }

    pub(super) fn names(&self, key: &NodeKey) -> bool {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        self.nodes.contains_key(key)
    }

    pub(super) fn keys(&self) -> Vec<NodeKey> {
        self.nodes.keys().cloned().collect()
    }

    /// Those of one mode.
    pub(super) fn keys_in(&self, mode: GroupMode) -> Vec<NodeKey> {
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, registered)| registered.mode == mode);
        nodes.map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All of it of one mode, to be registered again: one call serves one mode. Conditions held once; they are not asked
    /// again. But what is there by now may be somebody else's.
    pub(super) fn entries(&self, mode: GroupMode) -> Vec<Entry> {
        self.nodes
            .iter()
            .filter(|(_, registered)| registered.mode == mode)
            .map(|(key, registered)| registered.entry(key, registered.expected()))
            .collect()
    }

    /// The registry said what the session owns: in CP groups as of `revision`, if it knows the session there. What we
    /// registered and do not own is ours no longer; or the answer is from before our write, or our write was lost with the
    /// servers' disks, which is for them to say: see [`Self::was_lost_by`].
    pub(super) fn reconcile(&mut self, owned: &BTreeSet<NodeKey>, revision: Option<u64>) -> Unowned {
        self.owned_as_of = revision.unwrap_or_default();
        let mut unowned = Unowned::default();
        for (key, registered) in &self.nodes {
            if owned.contains(key) || registered.is_unowned_by_nature() {
                continue;
            }
            if registered.mode == GroupMode::Ap {
                unowned.missing.push(registered.entry(key, Expected::Absent));
            } else if revision.is_some() {
                unowned.contested.push(registered.entry(key, Expected::Absent));
            }
        }
        unowned
    }

    /// Whether it was written in a CP group behind what the registry last said of the session, which says nothing of it.
    pub(super) fn is_newer_than_said(&self, key: &NodeKey) -> bool {
        self.is_newer_than(key, self.owned_as_of)
    }

    /// Whether servers whose last revision this is have lost our write: they were set back to a copy from before it.
    pub(super) fn was_lost_by(&self, key: &NodeKey, head: u64) -> bool {
        self.is_newer_than(key, head)
    }

    fn is_newer_than(&self, key: &NodeKey, revision: u64) -> bool {
        let registered = self.nodes.get(key);
        registered.is_some_and(|one| one.mode != GroupMode::Ap && one.revision > revision)
    }
}

impl Registered {
    fn entry(&self, key: &NodeKey, expected: Expected) -> Entry {
        Entry {
            service: key.service.clone(),
            registration: self.registration.clone(),
            expected,
        }
    }

    fn expected(&self) -> Expected {
        if self.is_unowned_by_nature() {
            Expected::Any
        } else {
            Expected::Absent
        }
    }

    /// Persistent and static nodes are never owned by a session.
    fn is_unowned_by_nature(&self) -> bool {
        matches!(
            self.registration.kind,
            Some(NodeKind::Persistent | NodeKind::Static)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ServiceKey;

    fn entry(port: u16) -> Entry {
        Entry::new(ServiceKey::new("g", "s"), Registration::new("http", "h", port))
    }

    fn written(revision: u64, mode: GroupMode) -> Written {
        Written {
            revision,
            repeated: false,
            changed: true,
            server: 1,
            mode,
            epoch: 0,
            acks: 0,
        }
    }

    #[test]
    fn what_the_registry_does_not_name_in_a_cp_group_is_contested() {
        let mut roll = Roll::default();
        for (port, revision) in [(1, 5), (2, 6), (3, 9)] {
            roll.enter(&entry(port), &written(revision, GroupMode::Cp));
        }
        let owned = BTreeSet::from([entry(1).key()]);
        let unowned = roll.reconcile(&owned, Some(8));
        let contested: Vec<NodeKey> = unowned.contested.iter().map(Entry::key).collect();
        assert_eq!(contested, vec![entry(2).key(), entry(3).key()]);
        assert!(roll.is_newer_than_said(&entry(3).key()), "of it nothing was said");
        assert!(!roll.is_newer_than_said(&entry(2).key()));
        assert_eq!(roll.reconcile(&owned, None), Unowned::default());
    }

    #[test]
    fn what_a_server_has_not_heard_of_in_an_ap_group_is_registered_again_unless_it_is_somebody_elses() {
        let mut roll = Roll::default();
        roll.enter(&entry(1), &written(700, GroupMode::Ap));
        roll.enter(&entry(2), &written(5, GroupMode::Ap));
        roll.enter(&entry(3), &written(5, GroupMode::Cp));
        let owned = BTreeSet::from([entry(1).key(), entry(3).key()]);
        let unowned = roll.reconcile(&owned, Some(8));
        assert_eq!(unowned.contested, vec![]);
        let missing: Vec<_> = unowned
            .missing
            .iter()
            .map(|entry| (entry.key(), entry.expected))
            .collect();
        assert_eq!(missing, vec![(entry(2).key(), Expected::Absent)]);
        assert_eq!(roll.len(), 3);
    }

    #[test]
    fn one_call_restores_one_mode() {
        let mut roll = Roll::default();
        roll.enter(&entry(1), &written(5, GroupMode::Ap));
        roll.enter(&entry(2), &written(5, GroupMode::Cp));
        let static_node = Registration::new("http", "h", 3).kind(NodeKind::Static);
        let static_entry = Entry::new(ServiceKey::new("g", "s"), static_node);
        roll.enter(&static_entry, &written(5, GroupMode::Cp));
        let expected = |entry: &Entry| entry.expected;
        let of_cp: Vec<Expected> = roll.entries(GroupMode::Cp).iter().map(expected).collect();
        assert_eq!(
            of_cp,
            [Expected::Absent, Expected::Any],
            "a static one is nobody's"
        );
        roll.strike(&static_entry.key());
        let ports = |mode| roll.entries(mode).iter().map(Entry::key).collect::<Vec<_>>();
        assert_eq!(ports(GroupMode::Ap), vec![entry(1).key()]);
        assert_eq!(ports(GroupMode::Cp), vec![entry(2).key()]);
    }

    #[test]
    fn what_is_asked_to_go_is_remembered_until_it_is_gone() {
        let mut roll = Roll::default();
        let leaving = |roll: &Roll, mode| roll.leaving(mode).iter().map(Entry::key).collect::<Vec<_>>();
        roll.enter(&entry(1), &written(5, GroupMode::Ap));
        roll.enter(&entry(2), &written(5, GroupMode::Cp));
        let static_node = Registration::new("http", "h", 3).kind(NodeKind::Static);
        let static_entry = Entry::new(ServiceKey::new("g", "s"), static_node);
        roll.enter(&static_entry, &written(5, GroupMode::Cp));
        roll.dismiss(&entry(1).key());
        assert_eq!((roll.len(), roll.strikes()), (2, 1));
        assert_eq!(leaving(&roll, GroupMode::Ap), [entry(1).key()]);
        roll.dismiss_all();
        assert_eq!((roll.len(), roll.strikes()), (0, 3));
        assert_eq!(
            leaving(&roll, GroupMode::Cp),
            [entry(2).key()],
            "a static one stays"
        );
        roll.enter(&entry(1), &written(6, GroupMode::Ap));
        roll.strike(&entry(2).key());
        assert!(roll.has_left());
    }

    #[test]
    fn an_update_changes_what_would_be_registered_again() {
        let mut roll = Roll::default();
        roll.enter(&entry(1), &written(5, GroupMode::Cp));
        roll.update(
            &NodeUpdate::new(entry(1).key()).weight(3),
            &written(6, GroupMode::Cp),
        );
        roll.update(
            &NodeUpdate::new(entry(2).key()).weight(3),
            &written(7, GroupMode::Cp),
        );
        let entries = roll.entries(GroupMode::Cp);
        assert_eq!((entries.len(), entries[0].registration.weight), (1, 3));
    }
}
