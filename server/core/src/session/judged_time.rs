//! The time by which deadlines are judged: real time, less what this process slept through.
//!
//! A server that slept never blames its clients (design section 2, rule 8). It ticks at a known interval; a
//! tick that comes late shows that nothing was heard in between, so judged time advances by no more than one
//! tick and the tolerance, however long the gap was. Every deadline thereby moves by the lateness, in O(1).
//!
//! Invariant: judged time never runs faster than real time, and never backwards. So a countdown that ends in
//! judged time has lasted at least as long in real time.

use std::time::{Duration, Instant};

use crate::mutants::{Mutant, planted};

/// How a clock expects to be ticked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The shell means to tick this often.
    pub tick_interval: Duration,
    /// Lateness of one tick that is not held to be a pause. Judged time advances at most by the interval and
    /// this per tick: too small, and a busy server judges late; too large, and that much of each pause is held
    /// against the clients. As large as the interval is a good choice.
    pub lateness_tolerance: Duration,
}

/// What a tick found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// How much later than its interval it came; zero if it was in time.
    pub lateness: Duration,
    /// By how much this tick moved every deadline. Worth a log line if it is not zero.
    pub shifted: Duration,
    /// By how much all ticks together did.
    pub shifted_total: Duration,
}

/// Real time in, judged time out. Judged moments are counted from the clock's start.
#[derive(Clone, Debug)]
pub struct JudgedTime {
    pace: Pace,
    ticked_at: Instant,
    judged: Duration,
    shifted_total: Duration,
}

impl JudgedTime {
    /// Starts at zero, as if it had just been ticked.
    #[must_use]
    pub fn starting_at(now: Instant, pace: Pace) -> Self {
        Self {
            pace,
            ticked_at: now,
            judged: Duration::ZERO,
            shifted_total: Duration::ZERO,
        }
    }

    /// Moves on to `now`, by at most one interval and the tolerance.
    pub fn tick(&mut self, now: Instant) -> Tick {
        let elapsed = self.since_tick(now);
        let advance = elapsed.min(self.allowance());
        let shifted = elapsed - advance;
        self.ticked_at = self.ticked_at.max(now);
        self.judged += advance;
        self.shifted_total += shifted;
        let lateness = elapsed.saturating_sub(self.pace.tick_interval);
        Tick {
            lateness,
            shifted,
            shifted_total: self.shifted_total,
        }
    }

    /// Goes on at `now` after a time in which nothing was judged and no tick was meant to come: none of it is held to
    /// be a pause. Judged time moves on as by a tick.
    pub fn resume(&mut self, now: Instant) {
        let elapsed = self.since_tick(now);
        self.judged += elapsed.min(self.allowance());
        self.ticked_at = self.ticked_at.max(now);
    }

    /// How long ago the last tick was.
    #[must_use]
    pub fn since_tick(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.ticked_at)
    }

    /// Stands still for so long from `now` on: every deadline moves by as much, or by what is missing if it stands still
    /// already.
    pub fn stand_still(&mut self, now: Instant, time: Duration) {
        let until = now + time;
        self.shifted_total += until.saturating_duration_since(self.ticked_at);
        self.ticked_at = self.ticked_at.max(until);
    }

    /// The judged moment at `now`, as far as the last tick lets it go.
    #[must_use]
    pub fn at(&self, now: Instant) -> Duration {
        self.judged
            + now
                .saturating_duration_since(self.ticked_at)
                .min(self.allowance())
    }

    /// The earliest real moment at which `judged` may be reached. If it is more than one tick away, ticks must
    /// come in between.
    #[must_use]
    pub fn real(&self, judged: Duration) -> Instant {
        self.ticked_at + judged.saturating_sub(self.judged)
    }

    /// By how much all ticks together moved every deadline.
    #[must_use]
    pub fn shifted_total(&self) -> Duration {
        self.shifted_total
    }

    fn allowance(&self) -> Duration {
        if planted(Mutant::BlameForPause) {
            return Duration::MAX;
        }
        self.pace.tick_interval + self.pace.lateness_tolerance
    }
}
