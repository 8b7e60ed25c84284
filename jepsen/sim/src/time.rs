//! Simulated time: nanoseconds since the world began.

use std::time::Duration;

/// A moment.
pub(crate) type Moment = u64;

pub(crate) const MICROSECOND: u64 = 1_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) fn nanoseconds(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

/// What comes when: the earliest first, and of one moment in the order in which it was put in.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    items: std::collections::BTreeMap<(Moment, u64), T>,
    next: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            items: std::collections::BTreeMap::new(),
            next: 0,
        }
    }
}

impl<T> Agenda<T> {
    pub(crate) fn put(&mut self, at: Moment, item: T) {
        self.items.insert((at, self.next), item);
        self.next += 1;
    }

    pub(crate) fn first_at(&self) -> Option<Moment> {
        self.items.first_key_value().map(|((at, _), _)| *at)
    }

    /// What is due at `now`.
    pub(crate) fn take(&mut self, now: Moment) -> Option<T> {
        self.first_at().filter(|at| *at <= now)?;
        self.items.pop_first().map(|(_, item)| item)
    }
}
