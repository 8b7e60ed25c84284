//! One pending change for each service; newer replaces older.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A change that a newer one of the same service can be added to.
pub trait Coalesce {
    /// Becomes what both say together, the newer one last.
    fn absorb(&mut self, newer: Self);
}

/// Changes on their way out. `K` names the service.
///
/// A change waits at most `delay_max`, counted from the first that waits under its key, if [`Self::take_due`] is
/// called in time. At most `pending_max` keys wait; one more makes the oldest leave early.
#[derive(Clone, Debug)]
pub struct Coalescing<K, C> {
    pending_max: usize,
    pending: BTreeMap<K, (Instant, C)>,
    by_age: BTreeSet<(Instant, K)>,
    absorbed: u64,
}

impl<K: Clone + Ord, C: Coalesce> Coalescing<K, C> {
    /// Nothing waits. A `pending_max` of 0 counts as 1.
    #[must_use]
    pub fn new(pending_max: usize) -> Self {
        Self {
            pending_max: pending_max.max(1),
            pending: BTreeMap::new(),
            by_age: BTreeSet::new(),
            absorbed: 0,
        }
    }

    /// Keeps a change back. Returns the oldest pending one if there was no room.
    #[must_use = "what had no room must leave now"]
    pub fn hold(&mut self, key: K, change: C, now: Instant) -> Option<(K, C)> {
        if let Some((_, pending)) = self.pending.get_mut(&key) {
            pending.absorb(change);
            self.absorbed += 1;
            return None;
        }
        let oldest = if self.pending.len() >= self.pending_max {
            self.take_oldest()
        } else {
            None
        };
        self.by_age.insert((now, key.clone()));
        self.pending.insert(key, (now, change));
        oldest
    }

    /// Takes what has waited for `delay_max`, oldest first.
    pub fn take_due(&mut self, now: Instant, delay_max: Duration) -> Vec<(K, C)> {
        let mut due = Vec::new();
        while self
            .by_age
            .first()
            .is_some_and(|(since, _)| now.saturating_duration_since(*since) >= delay_max)
        {
            due.extend(self.take_oldest());
        }
        due
    }

    /// Takes one key's change: it must leave now.
    pub fn take(&mut self, key: &K) -> Option<C> {
        let (since, change) = self.pending.remove(key)?;
        self.by_age.remove(&(since, key.clone()));
        Some(change)
    }

    /// Takes everything, oldest first: the switch was turned off.
    pub fn take_all(&mut self) -> Vec<(K, C)> {
        std::iter::from_fn(|| self.take_oldest()).collect()
    }

    /// When [`Self::take_due`] has news; `None` while nothing waits.
    #[must_use]
    pub fn next_due(&self, delay_max: Duration) -> Option<Instant> {
        self.by_age.first().map(|(since, _)| *since + delay_max)
    }

    /// How many keys wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many changes became part of another one so far: frames that nobody had to be sent.
    #[must_use]
    pub fn absorbed(&self) -> u64 {
        self.absorbed
    }

    fn take_oldest(&mut self) -> Option<(K, C)> {
        let (_, key) = self.by_age.pop_first()?;
        let (_, change) = self.pending.remove(&key)?;
        Some((key, change))
    }
}
