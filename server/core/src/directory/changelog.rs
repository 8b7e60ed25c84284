//! The last changes, for readers that pull from a position of their own.
//!
//! Bounded by revisions and by bytes; what falls out moves the floor up, and a reader that fell below it reads
//! the state instead. Not part of the snapshot: a server that starts from one has floor and head at its revision.

use std::collections::VecDeque;
use std::sync::Arc;

use super::outcome::{NodeChange, RevisionChanges};
use super::record::{Node, Override};
use crate::ids::Revision;

/// How much a change log keeps. A matter of this server alone: replicas may differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLogBounds {
    /// Most revisions. Default 10,000.
    pub revisions_max: usize,
    /// Most bytes, by estimate. Default 32 MiB. The newest revision is kept even if it alone has more.
    pub bytes_max: usize,
}

impl Default for ChangeLogBounds {
    fn default() -> Self {
        Self {
            revisions_max: 10_000,
            bytes_max: 32 << 20,
        }
    }
}

/// The reader is too far behind: read the state, then go on behind its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {after} is outside the retained changes, which are those behind {floor} up to {head}")]
pub struct BelowFloor {
    /// Where the reader was.
    pub after: Revision,
    /// Readers at or above this can go on.
    pub floor: Revision,
    /// The newest revision.
    pub head: Revision,
}

/// A bounded ring of the last revisions' changes.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    bounds: ChangeLogBounds,
    floor: Revision,
    changes: VecDeque<Kept>,
    bytes: usize,
    passed: Passed,
}

/// What has gone through a log of changes since it began. Two looks tell how much came between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Changes of a service: one for each service that a revision changed.
    pub services: u64,
    /// By the estimate of [`ChangeLog::bytes`].
    pub bytes: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    changes: Arc<RevisionChanges>,
    /// As it was when they came: to look at what lies in no cache any more costs more than all the rest of a change.
    weight: usize,
}

impl ChangeLog {
    pub(super) fn starting_at(revision: Revision, bounds: ChangeLogBounds) -> Self {
        Self {
            bounds,
            floor: revision,
            changes: VecDeque::new(),
            bytes: 0,
            passed: Passed::default(),
        }
    }

    pub(super) fn push(&mut self, changes: Arc<RevisionChanges>) {
        debug_assert_eq!(changes.revision, self.head().next());
        let weight = weight(&changes);
        self.bytes += weight;
        self.passed.services += changes.services.len() as u64;
        self.passed.bytes += weight as u64;
        self.changes.push_back(Kept { changes, weight });
        self.trim();
    }

    pub(super) fn bound(&mut self, bounds: ChangeLogBounds) {
        self.bounds = bounds;
        self.trim();
    }

    fn trim(&mut self) {
        while self.changes.len() > 1
            && (self.changes.len() > self.bounds.revisions_max || self.bytes > self.bounds.bytes_max)
        {
            if let Some(oldest) = self.changes.pop_front() {
                self.bytes -= oldest.weight;
                self.floor = self.floor.next();
            }
        }
    }

    /// The newest revision; equal to the directory's.
    #[must_use]
    pub fn head(&self) -> Revision {
        let newest = self.changes.back();
        newest.map_or(self.floor, |newest| newest.changes.revision)
    }

    /// A reader that has seen everything up to this revision, or a later one, can go on from here.
    #[must_use]
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// How many revisions are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Estimate of the memory held, in bytes; nodes shared with the state are counted here too.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All that was ever kept here.
    #[must_use]
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// The changes behind revision `after`, oldest first, at most `max`; none if `after` is the head.
    ///
    /// # Errors
    ///
    /// [`BelowFloor`] if changes behind `after` are no longer kept, or if `after` lies above the head (the
    /// reader comes from another history): read the state and go on behind its revision.
    pub fn range(&self, after: Revision, max: usize) -> Result<Vec<Arc<RevisionChanges>>, BelowFloor> {
        if after < self.floor || after > self.head() {
            return Err(BelowFloor {
                after,
                floor: self.floor,
                head: self.head(),
            });
        }
        let skip = usize::try_from(after.0 - self.floor.0).unwrap_or(usize::MAX);
        let wanted = self.changes.iter().skip(skip).take(max);
        Ok(wanted.map(|kept| kept.changes.clone()).collect())
    }
}

/// Estimate of a revision's memory, in bytes.
fn weight(changes: &RevisionChanges) -> usize {
    let nodes = changes
        .services
        .iter()
        .flat_map(|service| &service.nodes)
        .map(|change| match change {
            NodeChange::Put { node, over } => node_weight(node) + over.as_deref().map_or(0, override_weight),
            NodeChange::Removed { id, .. } => 64 + id.as_str().len(),
        });
    let settings = changes.services.iter().map(|service| {
        240 + service
            .settings
            .as_ref()
            .map_or(0, |settings| settings.metadata.weight())
    });
    let overrides = changes
        .overrides
        .iter()
        .map(|(_, over)| 96 + over.as_deref().map_or(0, override_weight));
    128 + nodes.sum::<usize>()
        + settings.sum::<usize>()
        + overrides.sum::<usize>()
        + 32 * changes.sessions.len()
        + 192 * changes.guards.len()
        + 64 * changes.groups.len()
        + changes
            .storm
            .as_deref()
            .map_or(0, |(_, record)| 192 + record.author.len() + record.reason.len())
}

fn node_weight(node: &Node) -> usize {
    let registration = &node.registration;
    208 + registration.id.as_str().len()
        + registration.addresses.weight()
        + registration.labels.weight()
        + registration.metadata.weight()
}

fn override_weight(over: &Override) -> usize {
    128 + over.reason.len() + over.author.len() + over.labels.weight()
}
