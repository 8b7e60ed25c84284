//! What a service's removal guard says, for people and for programs.

use std::time::Duration;

use rollcall_proto::v1 as wire;
use serde::Serialize;

use crate::units::percent;

/// How it is set, what was left out included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GuardSettings {
    pub(crate) share_basis_points: u32,
    pub(crate) window_ms: u64,
    pub(crate) keep_last: bool,
    pub(crate) hold_max_ms: u64,
}

impl From<Option<wire::GuardSettings>> for GuardSettings {
    fn from(settings: Option<wire::GuardSettings>) -> Self {
        let settings = settings.unwrap_or_default();
        // The defaults of the contract (types.proto).
        Self {
            share_basis_points: settings.share_basis_points.unwrap_or(3_000),
            window_ms: settings.window_ms.unwrap_or(600_000),
            keep_last: settings.keep_last.unwrap_or(true),
            hold_max_ms: settings.hold_max_ms.unwrap_or(86_400_000),
        }
    }
}

impl GuardSettings {
    /// `30% in 10m, the last stays, held for 1day`.
    pub(crate) fn text(&self) -> String {
        if self.share_basis_points >= 10_000 && !self.keep_last {
            return "off".into();
        }
        let time = |millis| humantime::format_duration(Duration::from_millis(millis)).to_string();
        let last = if self.keep_last {
            "the last stays"
        } else {
            "the last may go"
        };
        let held = match self.hold_max_ms {
            0 => "held without end".into(),
            millis => format!("held for {}", time(millis)),
        };
        format!(
            "{} in {}, {last}, {held}",
            percent(self.share_basis_points),
            time(self.window_ms)
        )
    }
}

/// Its word.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Guard {
    pub(crate) engaged: bool,
    pub(crate) engaged_since: u64,
    pub(crate) reason: &'static str,
    pub(crate) lapsed: u32,
    pub(crate) of: u32,
    pub(crate) needed: u32,
    pub(crate) listed: u32,
    pub(crate) up: u32,
    pub(crate) held: u32,
    pub(crate) held_since: u64,
    pub(crate) overdue: bool,
    pub(crate) window_began: u64,
    pub(crate) baseline: u32,
    pub(crate) removed: u32,
    pub(crate) allowed: u32,
}

impl From<wire::GuardStatus> for Guard {
    fn from(guard: wire::GuardStatus) -> Self {
        Self {
            engaged: guard.engaged,
            engaged_since: guard.engaged_since,
            reason: match guard.reason() {
                wire::GuardReason::Unspecified => "",
                wire::GuardReason::Share => "share",
                wire::GuardReason::LastNode => "last_node",
            },
            lapsed: guard.lapsed,
            of: guard.of,
            needed: guard.needed,
            listed: guard.listed,
            up: guard.up,
            held: guard.held,
            held_since: guard.held_since,
            overdue: guard.overdue,
            window_began: guard.window_began,
            baseline: guard.baseline,
            removed: guard.removed,
            allowed: guard.allowed,
        }
    }
}

/// Its word in a sentence: engaged or not, since when, how many of how many, why, and what ends it.
pub(crate) fn guard_text(guard: Option<&Guard>) -> String {
    let Some(guard) = guard else {
        return "not engaged, nothing lapsed away lately".into();
    };
    let mut text = if guard.engaged {
        let why = if guard.reason == "last_node" {
            "the last node stays".into()
        } else {
            format!("{} may go a window", guard.allowed)
        };
        format!(
            "engaged since revision {}: {} of {} lapsed, {why}; {} held, {} up, disengages when {} are up",
            guard.engaged_since, guard.lapsed, guard.of, guard.held, guard.up, guard.needed
        )
    } else {
        "not engaged".into()
    };
    if !guard.engaged && guard.held > 0 {
        text += &format!(
            "; {} left over since revision {} may return",
            guard.held, guard.held_since
        );
    }
    if guard.overdue {
        text += "; held long enough, they go as the share allows";
    }
    if guard.window_began > 0 {
        text += &format!(
            "; {} of {} lapsed away in the window since revision {}",
            guard.removed, guard.baseline, guard.window_began
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(guard: wire::GuardStatus) -> String {
        guard_text(Some(&guard.into()))
    }

    #[test]
    fn settings_that_were_left_out_are_the_defaults() {
        let text = |settings: Option<wire::GuardSettings>| GuardSettings::from(settings).text();
        assert_eq!(text(None), "30% in 10m, the last stays, held for 1day");
        let off = wire::GuardSettings {
            share_basis_points: Some(10_000),
            keep_last: Some(false),
            ..wire::GuardSettings::default()
        };
        assert_eq!(text(Some(off)), "off");
        let other = wire::GuardSettings {
            share_basis_points: Some(550),
            hold_max_ms: Some(0),
            ..wire::GuardSettings::default()
        };
        assert_eq!(text(Some(other)), "5.5% in 10m, the last stays, held without end");
    }

    #[test]
    fn every_state_reads_as_a_sentence() {
        assert_eq!(guard_text(None), "not engaged, nothing lapsed away lately");
        let engaged = wire::GuardStatus {
            engaged: true,
            engaged_since: 7,
            reason: wire::GuardReason::Share.into(),
            lapsed: 5,
            of: 10,
            needed: 7,
            listed: 10,
            up: 5,
            held: 5,
            held_since: 7,
            allowed: 3,
            ..wire::GuardStatus::default()
        };
        assert_eq!(
            text(engaged),
            "engaged since revision 7: 5 of 10 lapsed, 3 may go a window; 5 held, 5 up, disengages when 7 are up"
        );
        let last = wire::GuardStatus {
            reason: wire::GuardReason::LastNode.into(),
            overdue: true,
            ..engaged
        };
        assert!(text(last).contains("the last node stays; 5 held"));
        assert!(text(last).ends_with("held long enough, they go as the share allows"));
        let left_over = wire::GuardStatus {
            held: 2,
            held_since: 9,
            window_began: 8,
            removed: 1,
            baseline: 10,
            ..wire::GuardStatus::default()
        };
        assert_eq!(
            text(left_over),
            "not engaged; 2 left over since revision 9 may return; 1 of 10 lapsed away in the window since \
             revision 8"
        );
    }
}
