//! The ledger of one service: what is listed, what lapsed away in this window, what is held.

use serde::{Deserialize, Serialize};

use super::settings::GuardSettings;
use crate::ids::Revision;
use crate::mutants::{Mutant, planted};

/// What the ledger knows of a node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Serving.
    Up,
    /// Lapsed and held.
    Suspect,
    /// Neither: draining, or down.
    Other,
}

/// What is to become of a tick's lapsed nodes of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of them may go.
    Remove,
    /// None of them; they become suspects.
    Hold(HoldReason),
}

/// By which rule nodes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HoldReason {
    /// More would leave in this window than the share allows.
    Share,
    /// The last node would leave.
    LastNode,
}

/// How an engagement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Enough nodes are up again, by return or by replacement.
    Recovered,
    /// No node is held any more, although not as many are up as were asked for.
    Cleared,
}

/// One service's account. Small and flat: it is copied with the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    listed: u32,
    up: u32,
    held: u32,
    window: Option<Window>,
    /// There is one exactly while nodes are held.
    hold: Option<Hold>,
}

/// What happened since the first removal by lapse. The leader says when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// When it began; its name.
    pub began: Revision,
    /// Nodes listed then.
    pub listed: u32,
    /// Nodes that joined since.
    pub joined: u32,
    /// Nodes that left by their own or an operator's word since.
    pub left: u32,
    /// Nodes that lapsed away since, those released included.
    pub removed: u32,
    /// Of them those that had been held before.
    pub released: u32,
}

/// Nodes that lapsed and are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// When the guard engaged; if it disengaged and nodes are left over: when it did.
    pub since: Revision,
    /// The leader's word that this was long enough: the nodes go at no more than the share per window. If the guard
    /// engaged again since, it is true of [`Self::older_than`] alone.
    pub overdue: bool,
    /// `None`: the guard is not engaged any more.
    pub engaged: Option<Engagement>,
}

/// The guard at work: nothing lapses away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engagement {
    /// Since when.
    pub since: Revision,
    /// By which rule.
    pub reason: HoldReason,
    /// How many lapsed: those held since, and those that went in the window before.
    pub lapsed: u32,
    /// Of how many: those that were not held already, and those that went in the window before.
    pub of: u32,
    /// Nodes that joined since: replacements, which do not raise what is asked for.
    pub joined: u32,
    /// Nodes that left by their own or an operator's word since.
    pub left: u32,
    /// Nodes that are not expected back: held ones that were let go since, and, once the window is over, those
    /// that went in it before.
    pub gone: u32,
}

impl Hold {
    /// By this it is known: when nodes came into it that had not been told of before.
    #[must_use]
    pub fn name(&self) -> Revision {
        let engaged = self.engaged.map(|engagement| engagement.since);
        engaged.map_or(self.since, |engaged| engaged.max(self.since))
    }

    /// The guard engaged again at this revision, while nodes were overdue that were held before. Those alone go, and are
    /// not of those that are waited for.
    #[must_use]
    pub fn older_than(&self) -> Option<Revision> {
        let engaged = self.engaged.map(|engagement| engagement.since);
        engaged.filter(|engaged| self.overdue && self.since < *engaged)
    }
}

impl Window {
    /// The nodes listed when it began, plus those that joined, less those that left by their own word.
    #[must_use]
    pub fn baseline(&self) -> u32 {
        (self.listed + self.joined).saturating_sub(self.left)
    }

    /// Nodes that lapsed away without having been held.
    fn gone(&self) -> u32 {
        self.removed.saturating_sub(self.released)
    }
}

impl Engagement {
    /// How many nodes the service is now expected to have. Joining does not raise it, or replacements would
    /// never be enough; leaving does not lower it before it has undone the joining, or one node that comes and
    /// goes would wear it down; and each window begins with what the last one left.
    #[must_use]
    pub fn strength(&self) -> u32 {
        let lost = self.left.saturating_sub(self.joined);
        self.of.saturating_sub(self.gone).saturating_sub(lost)
    }
}

/// What happened, as the directory tells it.
impl Ledger {
    /// A node was listed that was not.
    pub fn joined(&mut self, standing: Standing) {
        self.listed += 1;
        self.count(standing);
        if let Some(window) = &mut self.window {
            window.joined += 1;
        }
        if let Some(engagement) = self.engaged_mut() {
            engagement.joined += 1;
        }
    }

    /// A listed node has another state.
    pub fn changed(&mut self, from: Standing, to: Standing) {
        self.discount(from);
        self.count(to);
    }

    /// A node left by its own or an operator's word: never guarded, not counted as a removal.
    pub fn left(&mut self, standing: Standing) {
        self.listed = self.listed.saturating_sub(1);
        self.discount(standing);
        if let Some(window) = &mut self.window {
            window.left += 1;
        }
        if let Some(engagement) = self.engaged_mut() {
            engagement.left += 1;
        }
    }

    /// A node lapsed away at revision `at`, as [`Self::judge`] or [`Self::releasable`] allowed. The first one
    /// begins a window; a guard that is off keeps no account.
    pub fn struck(&mut self, settings: &GuardSettings, standing: Standing, at: Revision) {
        if self.window.is_none() && !settings.is_off() {
            self.window = Some(Window {
                began: at,
                listed: self.listed,
                joined: 0,
                left: 0,
                removed: 0,
                released: 0,
            });
        }
        let was_held = u32::from(standing == Standing::Suspect);
        if let Some(window) = &mut self.window {
            window.removed += 1;
            window.released += was_held;
        }
        let was_counted = self.hold.is_some_and(|hold| hold.older_than().is_none());
        if let Some(engagement) = self.engaged_mut().filter(|_| was_counted) {
            engagement.gone += was_held;
        }
        self.listed = self.listed.saturating_sub(1);
        self.discount(standing);
    }

    /// `lapsed` nodes are about to become suspects, at revision `at`. Their change of state follows.
    pub fn engage(&mut self, reason: HoldReason, lapsed: u32, at: Revision) {
        if let Some(engagement) = self.engaged_mut() {
            engagement.lapsed += lapsed;
            return;
        }
        self.engage_of(self.living(), reason, lapsed, at);
    }

    /// Nodes were put as others judged them: `lapsed` of them became suspects, and `joined` were not listed here. Those are
    /// no replacements: where it was judged they were listed already, and count for as many as there were.
    pub fn learn(&mut self, lapsed: u32, joined: u32, at: Revision) {
        if let Some(engagement) = self.engaged_mut() {
            engagement.lapsed += lapsed;
            engagement.of += joined;
            engagement.joined = engagement.joined.saturating_sub(joined);
        } else if lapsed > 0 {
            self.engage_of(self.living() + lapsed, HoldReason::Share, lapsed, at);
        }
    }

    /// All that is listed was listed together where it was judged, though it came here piece by piece: the guard engages as
    /// if it had come at once. What is overdue is not told anew.
    pub fn learn_anew(&mut self, at: Revision) {
        if self.hold.take_if(|hold| !hold.overdue).is_some() {
            self.engage_of(self.listed, HoldReason::Share, self.held, at);
        }
    }

    fn engage_of(&mut self, listed: u32, reason: HoldReason, lapsed: u32, at: Revision) {
        let gone = self.window.map_or(0, |window| window.gone());
        let engagement = Engagement {
            since: at,
            reason,
            lapsed: gone + lapsed,
            of: listed + gone,
            joined: 0,
            left: 0,
            gone: 0,
        };
        // What is overdue stays so: else one mass lapse a day would keep for ever what is dead.
        let overdue = self.hold.filter(|hold| hold.overdue);
        self.hold = Some(Hold {
            since: overdue.map_or(at, |hold| hold.since),
            overdue: overdue.is_some(),
            engaged: Some(engagement),
        });
    }

    /// The leader's word that the window which began then is over. Void (`false`) for any other.
    pub fn close_window(&mut self, began: Revision) -> bool {
        let Some(window) = self.window.filter(|window| window.began == began) else {
            return false;
        };
        self.window = None;
        if let Some(engagement) = self.engaged_mut() {
            engagement.gone += window.gone();
        }
        true
    }

    /// The leader's word that the nodes held since then were held long enough. Void (`false`) for any other,
    /// and if it was said before.
    pub fn end_hold(&mut self, since: Revision) -> bool {
        match &mut self.hold {
            Some(hold) if hold.since == since && !hold.overdue => {
                hold.overdue = true;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Disengages if the time has come: to be called once after the events of a revision, unless some of them
    /// were lapses that were held.
    pub fn settle(&mut self, settings: &GuardSettings, at: Revision) -> Option<Ending> {
        let unblocked = self.window.is_none() && self.releasable(settings) > 0;
        let hold = self.hold.as_mut()?;
        let recovered = hold
            .engaged
            .map(|engagement| self.up >= settings.needed(engagement.strength()));
        if self.held == 0 {
            self.hold = None;
        } else if recovered == Some(true) {
            *hold = Hold {
                since: at,
                overdue: false,
                engaged: None,
            };
        } else if unblocked {
            // What was kept because it was the last is not the last any more, or all that was overdue is gone and the
            // rest is younger, and no window's end will say so: the leader counts once more.
            hold.since = at;
            hold.overdue = false;
            return None;
        } else {
            return None;
        }
        recovered.map(|recovered| {
            if recovered {
                Ending::Recovered
            } else {
                Ending::Cleared
            }
        })
    }

    fn count(&mut self, standing: Standing) {
        match standing {
            Standing::Up => self.up += 1,
            Standing::Suspect => self.held += 1,
            Standing::Other => {}
        }
    }

    fn discount(&mut self, standing: Standing) {
        match standing {
            Standing::Up => self.up = self.up.saturating_sub(1),
            Standing::Suspect => self.held = self.held.saturating_sub(1),
            Standing::Other => {}
        }
    }

    fn engaged_mut(&mut self) -> Option<&mut Engagement> {
        self.hold.as_mut()?.engaged.as_mut()
    }
}

/// What follows from it.
impl Ledger {
    /// Whether `lapsed` nodes, none of them a suspect, may be struck off. `following` more of the same tick
    /// will be asked about later: they are judged together, so that all go or none.
    #[must_use]
    pub fn judge(&self, settings: &GuardSettings, lapsed: u32, following: u32) -> Verdict {
        if let Some(engagement) = self.engaged() {
            return Verdict::Hold(engagement.reason);
        }
        // The leader counted what follows a moment ago; some may have left by their own word meanwhile.
        let lapsed = lapsed.saturating_add(following).min(self.living());
        let removed = self.window.map_or(0, |window| window.removed);
        let over = removed.saturating_add(lapsed) > settings.allowed(self.baseline());
        if over && !planted(Mutant::GuardWithoutShare) {
            Verdict::Hold(HoldReason::Share)
        } else if settings.keep_last && lapsed >= self.living() {
            Verdict::Hold(HoldReason::LastNode)
        } else {
            Verdict::Remove
        }
    }

    /// How many of the held nodes may go now: none before the leader's word, then no more than the share per
    /// window.
    #[must_use]
    pub fn releasable(&self, settings: &GuardSettings) -> u32 {
        if !self.hold.is_some_and(|hold| hold.overdue) {
            return 0;
        }
        let removed = self.window.map_or(0, |window| window.removed);
        let share = settings.allowed(self.baseline()).saturating_sub(removed);
        let kept = u32::from(settings.keep_last);
        self.held.min(share).min(self.listed.saturating_sub(kept))
    }

    /// What the share is taken of: the window's baseline, or the nodes listed if there is no window.
    #[must_use]
    pub fn baseline(&self) -> u32 {
        self.window.map_or(self.listed, |window| window.baseline())
    }

    /// Nodes listed, suspects included.
    #[must_use]
    pub fn listed(&self) -> u32 {
        self.listed
    }

    /// Nodes up.
    #[must_use]
    pub fn up(&self) -> u32 {
        self.up
    }

    /// Suspects.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The window under way.
    #[must_use]
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// The nodes held; there is one exactly while there are any.
    #[must_use]
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// The guard at work.
    #[must_use]
    pub fn engaged(&self) -> Option<&Engagement> {
        self.hold.as_ref()?.engaged.as_ref()
    }

    /// Whether there is nothing to count down for: no window under way, no nodes held.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.window.is_none() && self.hold.is_none()
    }

    /// Listed and not suspect.
    fn living(&self) -> u32 {
        self.listed.saturating_sub(self.held)
    }
}
