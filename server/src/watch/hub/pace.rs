//! The pace: when what has changed leaves?
//!
//! One change leaves at once. Behind a round that many streams were told of the hub rests, and what changes meanwhile leaves
//! together: so telling takes a part of a processor, however fast changes come. While changes are coalesced they wait for
//! as long as the storm switch says. Neither waits for more than the log of changes retains, or a backlog bears.

use std::time::Duration;

use rollcall_core::directory::Passed;
use tokio::time::Instant;

use super::round::{BACKLOG_SHARE, REVISIONS_PER_MERGE, REVISIONS_PER_ROUND};
use crate::config::WatchConfig;

/// Behind a round the next one waits for so long for each stream that was told of something; telling it takes about a quarter
/// of that. So changes that come fast leave together, and telling of them takes a part of a processor, up to some 2,500
/// streams and as many revisions a second.
pub(super) const REST_PER_STREAM: Duration = Duration::from_micros(40);
/// Timers are no finer: who tells few does not rest.
pub(super) const REST_MIN: Duration = Duration::from_millis(1);
pub(super) const REST_MAX: Duration = Duration::from_millis(100);

/// What may wait: it takes no room, but what leaves together should not fill a stream's backlog, nor fall out of the log of
/// changes before.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    revisions: u64,
    /// While changes are coalesced.
    revisions_to_merge: u64,
    services: u64,
    bytes: u64,
    /// While changes are coalesced.
    bytes_to_merge: u64,
}

impl Bounds {
    fn of(limits: &WatchConfig) -> Self {
        let retained = limits.retained_revisions / 2;
        Self {
            revisions: REVISIONS_PER_ROUND.min(retained) as u64,
            revisions_to_merge: REVISIONS_PER_MERGE.min(retained) as u64,
            services: (limits.backlog_frames / BACKLOG_SHARE) as u64,
            bytes: (limits.backlog_bytes.min(limits.retained_bytes) / BACKLOG_SHARE) as u64,
            bytes_to_merge: (limits.retained_bytes / 2) as u64,
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Pace {
    bounds: Bounds,
    /// Before that no round begins behind the last one, unless too much waits for it.
    rested_at: Instant,
    /// What had gone through the log of changes before the last round: of that, all has left.
    since: Passed,
    leave_at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limits: &WatchConfig, now: Instant) -> Self {
        Self {
            bounds: Bounds::of(limits),
            rested_at: now,
            since: Passed::default(),
            leave_at: None,
        }
    }

    /// Something has changed, and so many revisions wait by now. Whether they leave now; else they do at [`Self::leave_at`].
    /// `coalescing`: for how long changes wait for more, if they are coalesced. `passed`: what has gone through the log of
    /// changes.
    pub(super) fn handle_change(
        &mut self,
        now: Instant,
        revisions: u64,
        coalescing: Option<Duration>,
        passed: impl FnOnce() -> Passed,
    ) -> bool {
        let until = match coalescing {
            Some(delay_max) => self.may_merge(revisions, passed()).then(|| now + delay_max),
            None => (self.rested_at > now && self.may_rest(revisions, passed())).then_some(self.rested_at),
        };
        match until {
            Some(until) => {
                self.leave_at.get_or_insert(until);
                false
            }
            None => true,
        }
    }

    /// When changes that wait leave.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        self.leave_at
    }

    /// All there was has left, and so many streams were told of it. `since`: what had gone through the log of changes before.
    pub(super) fn on_round(&mut self, told: usize, since: Passed, now: Instant) {
        *self = Self {
            bounds: self.bounds,
            rested_at: now + rest(told),
            since,
            leave_at: None,
        };
    }

    /// So many streams were told something else.
    pub(super) fn on_bookmarks(&mut self, told: usize, now: Instant) {
        self.rested_at = self.rested_at.max(now + rest(told));
    }

    fn may_rest(&self, revisions: u64, passed: Passed) -> bool {
        self.waiting(passed).is_some_and(|waiting| {
            revisions <= self.bounds.revisions
                && waiting.services <= self.bounds.services
                && waiting.bytes <= self.bounds.bytes
        })
    }

    /// What falls out of the log of changes before it is merged is merged no more: everybody would begin with full lists.
    fn may_merge(&self, revisions: u64, passed: Passed) -> bool {
        let waiting = self.waiting(passed);
        revisions <= self.bounds.revisions_to_merge
            && waiting.is_some_and(|waiting| waiting.bytes <= self.bounds.bytes_to_merge)
    }

    /// What went through the log of changes since the last round. `None`: the directory is another one by now, with a log that
    /// begins anew.
    fn waiting(&self, passed: Passed) -> Option<Passed> {
        Some(Passed {
            services: passed.services.checked_sub(self.since.services)?,
            bytes: passed.bytes.checked_sub(self.since.bytes)?,
        })
    }
}

/// How long the hub rests from telling so many streams.
fn rest(told: usize) -> Duration {
    let told = u32::try_from(told).unwrap_or(u32::MAX);
    let rest = REST_PER_STREAM.saturating_mul(told).min(REST_MAX);
    if rest < REST_MIN { Duration::ZERO } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 1_000;
    const SOON: Duration = Duration::from_millis(5);

    fn passed(services: u64, bytes: u64) -> Passed {
        Passed { services, bytes }
    }

    /// A pace that was just told of a round.
    fn behind(told: usize, limits: &WatchConfig) -> (Pace, Instant) {
        let now = Instant::now();
        let mut pace = Pace::new(limits, now);
        pace.on_round(told, passed(100, 10_000), now);
        (pace, now)
    }

    fn one_more() -> Passed {
        passed(101, 10_100)
    }

    #[test]
    fn one_change_leaves_at_once_and_those_close_behind_it_together() {
        let limits = WatchConfig::default();
        let now = Instant::now();
        let mut pace = Pace::new(&limits, now);
        assert!(
            pace.handle_change(now, 1, None, one_more),
            "there was no round yet"
        );
        pace.on_round(MANY, passed(100, 10_000), now);
        let rested = now + REST_PER_STREAM * 1_000;
        for waiting in 1..5 {
            let soon = now + SOON * u32::try_from(waiting).unwrap();
            assert!(!pace.handle_change(soon, waiting, None, one_more));
            assert_eq!(pace.leave_at(), Some(rested), "however many follow");
        }
        pace.on_round(MANY, passed(104, 10_400), rested);
        assert_eq!(pace.leave_at(), None);
        let later = rested + REST_PER_STREAM * 1_000;
        assert!(
            pace.handle_change(later, 1, None, || passed(105, 10_500)),
            "it has rested"
        );
    }

    #[test]
    fn who_tells_few_does_not_rest_and_nobody_rests_for_long() {
        let limits = WatchConfig::default();
        let few = usize::try_from(REST_MIN.as_micros() / REST_PER_STREAM.as_micros()).unwrap();
        for (told, rests) in [
            (0, Duration::ZERO),
            (few - 1, Duration::ZERO),
            (few, REST_MIN),
            (2_500, REST_MAX),
            (usize::MAX, REST_MAX),
        ] {
            let (mut pace, now) = behind(told, &limits);
            assert!(pace.handle_change(now + rests, 1, None, one_more), "{told}");
            if rests > Duration::ZERO {
                let early = now + rests - Duration::from_micros(1);
                assert!(!pace.handle_change(early, 1, None, one_more), "{told}");
            }
        }
    }

    #[test]
    fn telling_bookmarks_is_work_as_well_and_shortens_no_rest() {
        let (mut pace, now) = behind(MANY, &WatchConfig::default());
        pace.on_bookmarks(0, now);
        assert!(!pace.handle_change(now + SOON, 1, None, one_more));
        let (mut pace, now) = behind(0, &WatchConfig::default());
        pace.on_bookmarks(MANY, now);
        assert!(!pace.handle_change(now + SOON, 1, None, one_more));
    }

    #[test]
    fn what_waits_is_bounded_by_what_a_backlog_bears_and_the_log_retains() {
        let limits = WatchConfig {
            retained_revisions: 100,
            backlog_frames: 40,
            backlog_bytes: 4_000,
            retained_bytes: 8_000,
            ..WatchConfig::default()
        };
        let leaves = |limits: &WatchConfig, revisions: u64, services: u64, bytes: u64| {
            let (mut pace, now) = behind(MANY, limits);
            pace.handle_change(now, revisions, None, || passed(100 + services, 10_000 + bytes))
        };
        assert!(!leaves(&limits, 50, 10, 1_000));
        assert!(leaves(&limits, 51, 10, 1_000));
        assert!(leaves(&limits, 50, 11, 1_000));
        assert!(leaves(&limits, 50, 10, 1_001));
        let little_retained = WatchConfig {
            retained_bytes: 2_000,
            ..limits.clone()
        };
        assert!(leaves(&little_retained, 50, 10, 501));
        let everything = WatchConfig {
            retained_revisions: usize::MAX,
            ..limits
        };
        let a_round = REVISIONS_PER_ROUND as u64;
        assert!(!leaves(&everything, a_round, 10, 1_000));
        assert!(leaves(&everything, a_round + 1, 10, 1_000));
    }

    #[test]
    fn a_log_that_begins_anew_is_not_waited_for() {
        let (mut pace, now) = behind(MANY, &WatchConfig::default());
        assert!(pace.handle_change(now, 1, None, || passed(1, 100)));
    }

    #[test]
    fn coalesced_changes_wait_from_the_first_of_them_and_for_no_more_than_is_retained() {
        let limits = WatchConfig {
            retained_revisions: 100,
            ..WatchConfig::default()
        };
        let delay_max = Some(SOON);
        let (mut pace, now) = behind(0, &limits);
        assert!(!pace.handle_change(now, 1, delay_max, one_more));
        assert!(!pace.handle_change(now + SOON / 2, 50, delay_max, one_more));
        assert_eq!(pace.leave_at(), Some(now + SOON));
        assert!(pace.handle_change(now + SOON / 2, 51, delay_max, one_more));
        let everything = WatchConfig {
            retained_revisions: usize::MAX,
            ..limits
        };
        let (mut pace, now) = behind(0, &everything);
        let at_once = REVISIONS_PER_MERGE as u64;
        assert!(!pace.handle_change(now, at_once, delay_max, one_more));
        assert!(pace.handle_change(now, at_once + 1, delay_max, one_more));
        // Half of the bytes that are retained.
        assert!(!pace.handle_change(now, 1, delay_max, || passed(101, 10_000 + (16 << 20))));
        assert!(pace.handle_change(now, 1, delay_max, || passed(101, 10_001 + (16 << 20))));
        assert!(
            pace.handle_change(now, 1, delay_max, || passed(1, 100)),
            "another log"
        );
        // Switched off, what waits leaves with the next change.
        assert!(pace.handle_change(now, 1, None, one_more));
    }
}
