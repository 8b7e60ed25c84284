//! What the guard has to say for itself.

use super::ledger::{HoldReason, Ledger};
use super::settings::GuardSettings;
use crate::ids::Revision;

/// A service's guard as operators, metrics and watchers see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardStatus {
    /// Nodes of the service, suspects included.
    pub listed: u32,
    /// Of them up.
    pub up: u32,
    /// Of them suspect: lapsed and held.
    pub held: u32,
    /// When the window under way began; `None`: nothing lapsed away lately.
    pub window: Option<Revision>,
    /// What the share is taken of: the nodes listed when the window began, plus those that joined, less those
    /// that left by their own word. Without a window: the nodes listed.
    pub baseline: u32,
    /// How many lapsed away in this window.
    pub removed: u32,
    /// How many may.
    pub allowed: u32,
    /// Why nothing lapses away at present; `None`: the guard is not engaged.
    pub engaged: Option<EngagedStatus>,
    /// Since when the held nodes are held, or, if the guard is not engaged any more, since when they are left
    /// over; `None`: none are.
    pub held_since: Option<Revision>,
    /// Their time is over, or that of those held before the guard engaged again: these go at no more than the share
    /// per window.
    pub overdue: bool,
}

/// Why a guard is engaged: `lapsed` of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngagedStatus {
    /// Since when.
    pub since: Revision,
    /// By which rule.
    pub reason: HoldReason,
    /// How many lapsed: those held since, and those that went in the window before.
    pub lapsed: u32,
    /// Of how many.
    pub of: u32,
    /// It disengages by itself when so many are up.
    pub needed: u32,
}

impl GuardStatus {
    /// Whether it has nothing to say: no window is under way, nothing is held.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.window.is_none() && self.held_since.is_none()
    }
}

impl Ledger {
    /// What is to be shown of it.
    #[must_use]
    pub fn status(&self, settings: &GuardSettings) -> GuardStatus {
        let window = self.window();
        let baseline = self.baseline();
        GuardStatus {
            listed: self.listed(),
            up: self.up(),
            held: self.held(),
            window: window.map(|window| window.began),
            baseline,
            removed: window.map_or(0, |window| window.removed),
            allowed: settings.allowed(baseline),
            engaged: self.engaged().map(|engagement| EngagedStatus {
                since: engagement.since,
                reason: engagement.reason,
                lapsed: engagement.lapsed,
                of: engagement.of,
                needed: settings.needed(engagement.strength()),
            }),
            held_since: self.hold().map(|hold| hold.name()),
            overdue: self.hold().is_some_and(|hold| hold.overdue),
        }
    }
}
