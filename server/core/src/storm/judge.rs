//! When the automatic switch engages, when it lets go, and why.
//!
//! Engaged by one reading above its high mark for a while; let go when all are below their low marks for a while,
//! and never before `hold` has passed. So engaging is never put off, and there are at most two changes in any
//! `hold`: an engagement and the disengagement before it, or the one after.

use std::fmt;
use std::time::{Duration, Instant};

/// How hard this server is pressed, measured by its shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes a second that leave for clients.
    pub egress_bytes_per_s: u64,
    /// Changes a second that are applied.
    pub changes_per_s: u64,
    /// How late a task runs that should have run.
    pub scheduling_lag: Duration,
}

/// Which of the readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Bytes a second.
    Egress,
    /// Changes a second.
    Changes,
    /// Milliseconds.
    Lag,
}

/// When to engage and when to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgeSettings {
    /// High mark: the budget of this server's uplink, in bytes a second.
    pub egress_bytes_per_s_max: u64,
    /// High mark, in changes a second.
    pub changes_per_s_max: u64,
    /// High mark.
    pub scheduling_lag_max: Duration,
    /// Low marks, in percent of the high ones; 100 and more count as 99.
    pub low_percent: u8,
    /// Engages when a reading has been above its high mark for so long.
    pub engage_after: Duration,
    /// Lets go when all readings have been below their low marks for so long.
    pub disengage_after: Duration,
    /// Never lets go earlier than this after engaging.
    pub hold: Duration,
}

impl Default for JudgeSettings {
    fn default() -> Self {
        Self {
            egress_bytes_per_s_max: 64 << 20,
            changes_per_s_max: 20_000,
            scheduling_lag_max: Duration::from_millis(200),
            low_percent: 50,
            engage_after: Duration::from_millis(500),
            disengage_after: Duration::from_secs(10),
            hold: Duration::from_secs(60),
        }
    }
}

/// The reading that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing was read yet.
    Quiet,
    /// It was too high.
    Above {
        /// Which.
        reading: Reading,
        /// Its value when it decided.
        value: u64,
        /// Its high mark.
        mark: u64,
        /// For how long.
        lasted: Duration,
    },
    /// All were low.
    Below {
        /// In percent of the high marks.
        low_percent: u8,
        /// For how long.
        lasted: Duration,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quiet => f.write_str("no pressure since this server started"),
            Self::Above {
                reading,
                value,
                mark,
                lasted,
            } => {
                let (what, unit) = match reading {
                    Reading::Egress => ("egress", "bytes/s"),
                    Reading::Changes => ("changes", "a second"),
                    Reading::Lag => ("scheduling lag", "ms"),
                };
                write!(
                    f,
                    "{what} of {value} {unit}, above the mark of {mark} {unit} for {lasted:?}"
                )
            }
            Self::Below { low_percent, lasted } => {
                write!(
                    f,
                    "every reading below {low_percent} % of its mark for {lasted:?}"
                )
            }
        }
    }
}

/// Engaged or not, since when, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Engagement {
    /// Whether.
    pub engaged: bool,
    /// Since when.
    pub since: Instant,
    /// Why.
    pub why: Why,
}

/// The engagement changed. Worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    /// To what.
    pub to: Engagement,
}

/// Judges pressure.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: JudgeSettings,
    engagement: Engagement,
    above_since: Option<Instant>,
    below_since: Option<Instant>,
}

impl Judge {
    /// Not engaged.
    #[must_use]
    pub fn new(settings: JudgeSettings, now: Instant) -> Self {
        let settings = JudgeSettings {
            low_percent: settings.low_percent.min(99),
            ..settings
        };
        Self {
            settings,
            engagement: Engagement {
                engaged: false,
                since: now,
                why: Why::Quiet,
            },
            above_since: None,
            below_since: None,
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn engagement(&self) -> Engagement {
        self.engagement
    }

    /// Takes a reading, whenever there is one: several times a second.
    pub fn read(&mut self, pressure: Pressure, now: Instant) -> Option<Flip> {
        let above = self.settings.first_above(pressure);
        let below = self.settings.all_below(pressure);
        self.above_since = above.and(Some(self.above_since.unwrap_or(now)));
        self.below_since = below.then(|| self.below_since.unwrap_or(now));
        if self.engagement.engaged {
            self.let_go(now)
        } else {
            self.engage(above, now)
        }
    }

    fn engage(&mut self, above: Option<(Reading, u64, u64)>, now: Instant) -> Option<Flip> {
        let (reading, value, mark) = above?;
        let lasted = now.saturating_duration_since(self.above_since?);
        if lasted < self.settings.engage_after {
            return None;
        }
        Some(self.flip(
            true,
            Why::Above {
                reading,
                value,
                mark,
                lasted,
            },
            now,
        ))
    }

    fn let_go(&mut self, now: Instant) -> Option<Flip> {
        let lasted = now.saturating_duration_since(self.below_since?);
        let engaged_for = now.saturating_duration_since(self.engagement.since);
        if lasted < self.settings.disengage_after || engaged_for < self.settings.hold {
            return None;
        }
        let low_percent = self.settings.low_percent;
        Some(self.flip(false, Why::Below { low_percent, lasted }, now))
    }

    fn flip(&mut self, engaged: bool, why: Why, now: Instant) -> Flip {
        self.engagement = Engagement {
            engaged,
            since: now,
            why,
        };
        Flip { to: self.engagement }
    }
}

impl JudgeSettings {
    /// The readings with their high marks.
    fn marks(&self, pressure: Pressure) -> [(Reading, u64, u64); 3] {
        let millis = |lag: Duration| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        [
            (
                Reading::Egress,
                pressure.egress_bytes_per_s,
                self.egress_bytes_per_s_max,
            ),
            (Reading::Changes, pressure.changes_per_s, self.changes_per_s_max),
            (
                Reading::Lag,
                millis(pressure.scheduling_lag),
                millis(self.scheduling_lag_max),
            ),
        ]
    }

    /// The first reading above its high mark.
    fn first_above(&self, pressure: Pressure) -> Option<(Reading, u64, u64)> {
        self.marks(pressure)
            .into_iter()
            .find(|(_, value, mark)| value > mark)
    }

    fn all_below(&self, pressure: Pressure) -> bool {
        let low = u128::from(self.low_percent);
        self.marks(pressure)
            .into_iter()
            .all(|(_, value, mark)| u128::from(value) * 100 <= u128::from(mark) * low)
    }
}
