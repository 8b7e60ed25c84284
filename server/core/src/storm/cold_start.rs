//! A token bucket for consumers that have nothing to live on.
//!
//! Kept as one moment, the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371): no counter
//! to refill, and no rounding that adds up.

use std::time::{Duration, Instant};

/// Admits so many a second, and a burst after a quiet time: in any span `w` at most `burst + w x rate`.
#[derive(Clone, Debug)]
pub struct ColdStart {
    interval: Duration,
    tolerance: Duration,
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl ColdStart {
    /// A full bucket. `per_second` and `burst` of 0 count as 1.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let nanos = 1_000_000_000u64.div_ceil(u64::from(per_second.max(1)));
        let interval = Duration::from_nanos(nanos);
        Self {
            interval,
            tolerance: interval.saturating_mul(burst.max(1) - 1),
            full_at: None,
        }
    }

    /// Takes a token, if there is one.
    pub fn try_take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at.saturating_duration_since(now) > self.tolerance {
            return false;
        }
        self.full_at = Some(full_at + self.interval);
        true
    }
}
