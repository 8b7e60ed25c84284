//! So much a second: when may this much leave?
//!
//! Like [`super::ColdStart`] kept as one moment, but nobody is turned away: whoever takes is told its moment, and
//! those are in the order of taking.

use std::time::{Duration, Instant};

/// In any span `w` at most `rate x (w + tolerance)`, and one amount more, may leave.
#[derive(Clone, Debug)]
pub struct Budget {
    per_second: u64,
    tolerance: Duration,
    /// When everything taken has left, at this rate.
    spent_until: Option<Instant>,
}

impl Budget {
    /// Nothing is taken yet. A rate of 0 counts as 1. What is taken within `tolerance` of time may leave at once.
    #[must_use]
    pub fn new(per_second: u64, tolerance: Duration) -> Self {
        Self {
            per_second: per_second.max(1),
            tolerance,
            spent_until: None,
        }
    }

    /// Takes an amount; it may leave at the moment returned, which is now or later.
    pub fn take(&mut self, amount: u64, now: Instant) -> Instant {
        let from = self.spent_until.map_or(now, |until| until.max(now));
        self.spent_until = Some(from + self.time_of(amount));
        from.checked_sub(self.tolerance).map_or(now, |at| at.max(now))
    }

    /// Gives back an amount that was taken and does not leave. Whoever has taken since then keeps its moment.
    pub fn give_back(&mut self, amount: u64) {
        let time = self.time_of(amount);
        self.spent_until = self.spent_until.and_then(|until| until.checked_sub(time));
    }

    /// Notes an amount that has left without asking: those who ask wait for it, but for no more than `at_most` of
    /// it in all.
    pub fn note(&mut self, amount: u64, at_most: Duration, now: Instant) {
        let from = self.spent_until.map_or(now, |until| until.max(now));
        let until = (from + self.time_of(amount)).min(now + at_most);
        self.spent_until = Some(until.max(from));
    }

    fn time_of(&self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
