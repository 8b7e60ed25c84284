//! The storm switch: how a server handles it. How it is set is replicated: `rollcall storm set`.

use std::time::Duration;

use rollcall_core::storm::{JudgeSettings, SwitchSettings};
use serde::{Deserialize, Serialize};

use super::duration;

/// The storm switch: how a server handles it. The same on all servers, or clients that move are surprised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StormConfig {
    /// While the switch is on, full lists are given to one share of the consumers after the other, an epoch each.
    /// Shorter serves sooner; clients whose round trip is longer than half of it may miss their turn.
    #[serde(with = "duration")]
    pub epoch: Duration,
    /// Consumers that hold no list at all are admitted besides: so many a second over time.
    pub cold_per_second: u32,
    /// And so many at once.
    pub cold_burst: u32,
    /// While the switch is on, changes wait so long for more of their service, and leave as one.
    #[serde(with = "duration")]
    pub delay_max: Duration,
    /// Watch streams that may begin in a second, whatever the switch says: thousands that begin at once would keep
    /// heartbeats waiting. Too few, and consumers come back slowly after a failure.
    pub opens_per_second: u32,
    /// Bytes of full lists that may leave in a second, whatever the switch says, and at least
    /// `egress_bytes_per_second`: what this server can send and still answer heartbeats in time. A gigabit by default;
    /// raise it where there are more than a few processors.
    pub lists_bytes_per_second: u64,
    /// What this server may send, in bytes a second: above it for `engage_after`, `auto` engages, and while the
    /// switch is on full lists leave no faster. Well below what the line carries; half of a gigabit line by default.
    pub egress_bytes_per_second: u64,
    /// Changes applied a second, likewise.
    pub changes_per_second: u64,
    /// How late tasks run, likewise: a sign of a starved CPU.
    #[serde(with = "duration")]
    pub scheduling_lag: Duration,
    /// `auto` lets go when all three are below this many percent of their marks for `disengage_after`.
    pub low_percent: u8,
    /// See `egress_bytes_per_second`.
    #[serde(with = "duration")]
    pub engage_after: Duration,
    /// See `low_percent`.
    #[serde(with = "duration")]
    pub disengage_after: Duration,
    /// Once engaged, `auto` stays so at least this long, and so changes at most twice in it.
    #[serde(with = "duration")]
    pub hold: Duration,
}

impl Default for StormConfig {
    fn default() -> Self {
        let switch = SwitchSettings::default();
        let judge = switch.judge;
        Self {
            epoch: switch.epoch,
            cold_per_second: switch.cold_per_s,
            cold_burst: switch.cold_burst,
            delay_max: switch.delay_max,
            opens_per_second: 10_000,
            lists_bytes_per_second: 128 << 20,
            egress_bytes_per_second: judge.egress_bytes_per_s_max,
            changes_per_second: judge.changes_per_s_max,
            scheduling_lag: judge.scheduling_lag_max,
            low_percent: judge.low_percent,
            engage_after: judge.engage_after,
            disengage_after: judge.disengage_after,
            hold: judge.hold,
        }
    }
}

impl StormConfig {
    /// The same for the room that decides.
    #[must_use]
    pub fn switch_settings(&self) -> SwitchSettings {
        SwitchSettings {
            epoch: self.epoch,
            cold_per_s: self.cold_per_second,
            cold_burst: self.cold_burst,
            delay_max: self.delay_max,
            judge: JudgeSettings {
                egress_bytes_per_s_max: self.egress_bytes_per_second,
                changes_per_s_max: self.changes_per_second,
                scheduling_lag_max: self.scheduling_lag,
                low_percent: self.low_percent,
                engage_after: self.engage_after,
                disengage_after: self.disengage_after,
                hold: self.hold,
            },
        }
    }
}
