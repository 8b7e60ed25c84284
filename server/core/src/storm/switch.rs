//! The switch itself: what was set, how it is pressed, whose turn it is.

use std::time::{Duration, Instant};

use super::cold_start::ColdStart;
use super::judge::{Engagement, Flip, Judge, JudgeSettings, Pressure};
use super::mode::{Mode, Modes, Record, Share};
use super::rotation::{Rotation, Turn};
use crate::ids::GroupName;

/// How one server handles its switch; the same on all of them, or clients that move are surprised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchSettings {
    /// Length of an epoch. Shorter serves sooner and in smaller bites; below a round trip clients miss their turn.
    pub epoch: Duration,
    /// Cold consumers admitted a second, besides those whose turn it is.
    pub cold_per_s: u32,
    /// And at once after a quiet time.
    pub cold_burst: u32,
    /// How long a change may wait for the next one of its service.
    pub delay_max: Duration,
    /// When `auto` engages.
    pub judge: JudgeSettings,
}

impl Default for SwitchSettings {
    fn default() -> Self {
        Self {
            epoch: Duration::from_secs(1),
            cold_per_s: 50,
            cold_burst: 100,
            delay_max: Duration::from_millis(500),
            judge: JudgeSettings::default(),
        }
    }
}

/// Who asks for a full list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer<'a> {
    /// What it calls itself; the same whenever it asks again.
    pub client: &'a [u8],
    /// It holds no list, not even an old one.
    pub cold: bool,
    /// Since when it asks; it may have been kept waiting, and its turn is not to pass meanwhile.
    pub asked_at: Instant,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It gets the list.
    Serve,
    /// It lives on what it has, and asks again then.
    KeepCache {
        /// When.
        retry_at: Instant,
    },
}

/// How changes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each by itself, at once.
    AtOnce,
    /// One for each service, at most so old.
    Coalesced {
        /// How old.
        delay_max: Duration,
    },
}

/// One server's switch.
#[derive(Clone, Debug)]
pub struct StormSwitch {
    settings: SwitchSettings,
    modes: Modes,
    judge: Judge,
    rotation: Rotation,
    cold: ColdStart,
}

impl StormSwitch {
    /// A switch that is off everywhere. Epochs are counted from `now`.
    #[must_use]
    pub fn new(settings: SwitchSettings, now: Instant) -> Self {
        Self {
            settings,
            modes: Modes::default(),
            judge: Judge::new(settings.judge, now),
            rotation: Rotation::new(now, settings.epoch),
            cold: ColdStart::new(settings.cold_per_s, settings.cold_burst),
        }
    }

    /// What the operator set. Whoever was told to keep its cache asks again at its moment, so turning the switch
    /// off sets no second storm off: those moments are spread over a round.
    pub fn set_modes(&mut self, modes: &Modes) {
        if self.modes != *modes {
            self.modes = modes.clone();
        }
    }

    /// What the operator set.
    #[must_use]
    pub fn modes(&self) -> &Modes {
        &self.modes
    }

    /// Takes a reading of the pressure; says whether `auto` engaged or let go by it.
    pub fn read(&mut self, pressure: Pressure, now: Instant) -> Option<Flip> {
        self.judge.read(pressure, now)
    }

    /// What `auto` holds, in whichever scope it is set.
    #[must_use]
    pub fn engagement(&self) -> Engagement {
        self.judge.engagement()
    }

    /// May this consumer have full lists of all these groups now? The record with the smallest share decides, once:
    /// under several records a consumer has several turns, which might never come together.
    pub fn ask_for<'a>(
        &mut self,
        groups: impl IntoIterator<Item = &'a GroupName>,
        consumer: Consumer<'_>,
        now: Instant,
    ) -> Admission {
        let strictest = groups.into_iter().min_by_key(|group| {
            self.engaged_by(self.modes.holding_for(group))
                .map_or(u16::MAX, Share::basis_points)
        });
        strictest.map_or(Admission::Serve, |group| self.ask(group, consumer, now))
    }

    /// May this consumer have a full list of this group's now? Only of lists whose sign differs from what the
    /// consumer knows: an equal sign costs nothing and is no question.
    pub fn ask(&mut self, group: &GroupName, consumer: Consumer<'_>, now: Instant) -> Admission {
        let record = self.modes.holding_for(group);
        let Some(share) = self.engaged_by(record) else {
            return Admission::Serve;
        };
        let asked_at = consumer.asked_at.min(now);
        match self
            .rotation
            .turn(consumer.client, record.set_at.0, share, asked_at)
        {
            Turn::Now => Admission::Serve,
            // It came while the consumer was kept waiting.
            Turn::At(turn_at) if turn_at <= now => Admission::Serve,
            Turn::At(_) if consumer.cold && self.cold.try_take(now) => Admission::Serve,
            Turn::At(retry_at) => Admission::KeepCache { retry_at },
        }
    }

    /// How this group's changes leave.
    #[must_use]
    pub fn pace(&self, group: &GroupName) -> Pace {
        match self.engaged_by(self.modes.holding_for(group)) {
            None => Pace::AtOnce,
            Some(_) => Pace::Coalesced {
                delay_max: self.settings.delay_max,
            },
        }
    }

    /// Whether it is engaged for a group.
    #[must_use]
    pub fn engaged(&self, group: &GroupName) -> bool {
        self.engaged_by(self.modes.holding_for(group)).is_some()
    }

    /// Whether it is engaged for anything.
    #[must_use]
    pub fn engaged_anywhere(&self) -> bool {
        self.round_engaged().is_some()
    }

    /// The longest time in which it serves everyone of some group for which it is engaged now.
    #[must_use]
    pub fn round_engaged(&self) -> Option<Duration> {
        std::iter::once(self.modes.cluster())
            .chain(self.modes.groups().map(|(_, record)| record))
            .filter_map(|record| self.engaged_by(record))
            .map(|share| self.round(share))
            .max()
    }

    /// In how much time everyone who asks is served while it is engaged with this share.
    #[must_use]
    pub fn round(&self, share: Share) -> Duration {
        self.rotation.round(share)
    }

    /// With which share.
    fn engaged_by(&self, record: &Record) -> Option<Share> {
        match record.mode {
            Mode::Off | Mode::Inherited => None,
            Mode::On { share } => Some(share),
            Mode::Auto { share } => self.judge.engagement().engaged.then_some(share),
        }
    }
}
