//! What a service remembers of nodes that left.
//!
//! A node id that comes back must get a higher incarnation than it ever had, or an old change could pass for a
//! new one. The memory is bounded: when it is full, the oldest tombstone is folded into a floor, above which
//! every id without a tombstone starts. So the promise holds without the memory; only the numbers get larger.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::outcome::RemovalCause;
use crate::ids::{Incarnation, NodeId, Revision};

/// A node that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The incarnation that left.
    pub incarnation: Incarnation,
    /// When.
    pub removed: Revision,
    /// Why.
    pub cause: RemovalCause,
}

/// The nodes that left one service, and the floor for those it forgot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Tombstones {
    by_id: BTreeMap<NodeId, Tombstone>,
    by_age: BTreeSet<(Revision, NodeId)>,
    floor: Incarnation,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    by_id: BTreeMap<NodeId, Tombstone>,
    floor: Incarnation,
}

impl From<Stored> for Tombstones {
    fn from(stored: Stored) -> Self {
        let by_age = stored
            .by_id
            .iter()
            .map(|(id, tombstone)| (tombstone.removed, id.clone()))
            .collect();
        Self {
            by_id: stored.by_id,
            by_age,
            floor: stored.floor,
        }
    }
}

impl From<Tombstones> for Stored {
    fn from(tombstones: Tombstones) -> Self {
        Self {
            by_id: tombstones.by_id,
            floor: tombstones.floor,
        }
    }
}

impl Tombstones {
    /// Of a new service: every incarnation lies above `floor`.
    #[must_use]
    pub(super) fn above(floor: Incarnation) -> Self {
        Self {
            floor,
            ..Self::default()
        }
    }

    /// The incarnation of an id that registers while it is not there.
    #[must_use]
    pub(super) fn next_incarnation(&self, id: &NodeId) -> Incarnation {
        Incarnation(self.last(id).0 + 1)
    }

    /// No incarnation of an id that is not there lay above this.
    #[must_use]
    pub(super) fn last(&self, id: &NodeId) -> Incarnation {
        let tombstone = self.by_id.get(id);
        tombstone.map_or(self.floor, |tombstone| tombstone.incarnation.max(self.floor))
    }

    /// Remembers a node that left; gives back what had to be forgotten for it.
    pub(super) fn bury(
        &mut self,
        id: NodeId,
        tombstone: Tombstone,
        tombstones_max: usize,
    ) -> Vec<(NodeId, Tombstone)> {
        self.by_age.insert((tombstone.removed, id.clone()));
        self.by_id.insert(id, tombstone);
        let mut forgotten = Vec::new();
        while self.by_id.len() > tombstones_max {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                break;
            };
            if let Some(tombstone) = self.by_id.remove(&oldest) {
                self.floor = self.floor.max(tombstone.incarnation);
                forgotten.push((oldest, tombstone));
            }
        }
        forgotten
    }

    /// Forgets a node that came back.
    pub(super) fn exhume(&mut self, id: &NodeId) -> Option<Tombstone> {
        let tombstone = self.by_id.remove(id)?;
        self.by_age.remove(&(tombstone.removed, id.clone()));
        Some(tombstone)
    }

    /// The highest incarnation of any node that left.
    #[must_use]
    pub(super) fn highest(&self) -> Incarnation {
        self.by_id
            .values()
            .map(|tombstone| tombstone.incarnation)
            .fold(self.floor, Incarnation::max)
    }

    /// Ids without a tombstone start above this.
    #[must_use]
    pub fn floor(&self) -> Incarnation {
        self.floor
    }

    /// What is remembered of `id`.
    #[must_use]
    pub fn of(&self, id: &NodeId) -> Option<&Tombstone> {
        self.by_id.get(id)
    }

    /// All that is remembered, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Tombstone)> {
        self.by_id.iter()
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
