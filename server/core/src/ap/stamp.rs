//! Stamps: when something was written, in an order that respects cause and effect.

use serde::{Deserialize, Serialize};

use crate::ids::ServerId;
use crate::mutants::{Mutant, planted};

/// The moment of a write by a hybrid logical clock. Totally ordered; no server gives one out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970, by the wall clock of some server that the writer had heard of.
    pub millis: u64,
    /// Tells writes of one millisecond apart.
    pub counter: u16,
    /// Who wrote.
    pub server: ServerId,
}

/// Gives out stamps, each behind everything that its server has written or seen.
#[derive(Clone, Debug)]
pub struct Clock {
    server: ServerId,
    millis: u64,
    counter: u16,
}

impl Clock {
    /// A clock behind `floor`: what the server may have given out or seen in an earlier life.
    #[must_use]
    pub fn new(server: ServerId, floor: Stamp) -> Self {
        Self {
            server,
            millis: floor.millis,
            counter: floor.counter,
        }
    }

    /// The stamp of a write at `now_ms` by the wall clock, which may go back.
    pub fn stamp(&mut self, now_ms: u64) -> Stamp {
        if now_ms > self.millis || planted(Mutant::WallClockWins) {
            (self.millis, self.counter) = (now_ms, 0);
        } else if let Some(counter) = self.counter.checked_add(1) {
            self.counter = counter;
        } else {
            (self.millis, self.counter) = (self.millis + 1, 0);
        }
        self.latest()
    }

    /// Something was heard: what is written from here on lies behind it.
    pub fn observe(&mut self, heard: Stamp) {
        if (heard.millis, heard.counter) > (self.millis, self.counter) {
            (self.millis, self.counter) = (heard.millis, heard.counter);
        }
    }

    /// The last stamp given out or heard.
    #[must_use]
    pub fn latest(&self) -> Stamp {
        Stamp {
            millis: self.millis,
            counter: self.counter,
            server: self.server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_while_the_wall_clock_stands_still_or_goes_back() {
        let mut clock = Clock::new(ServerId(1), Stamp::default());
        let mut last = clock.stamp(1_000);
        for now_ms in [1_000, 999, 0, 1_000, 1_001, 1_001, 500] {
            let stamp = clock.stamp(now_ms);
            assert!(stamp > last);
            last = stamp;
        }
        assert_eq!(last.millis, 1_001);
    }

    #[test]
    fn a_counter_that_runs_over_takes_the_next_millisecond() {
        let floor = Stamp {
            millis: 7,
            counter: u16::MAX,
            server: ServerId(2),
        };
        let stamp = Clock::new(ServerId(1), floor).stamp(7);
        assert_eq!((stamp.millis, stamp.counter), (8, 0));
    }

    #[test]
    fn what_is_written_after_hearing_something_lies_behind_it() {
        let heard = Stamp {
            millis: 5_000,
            counter: 3,
            server: ServerId(9),
        };
        let mut clock = Clock::new(ServerId(1), Stamp::default());
        clock.observe(heard);
        assert!(clock.stamp(10) > heard);
    }
}
