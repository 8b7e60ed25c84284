//! The removal guard's ledger against one that recounts everything from the history.

use proptest::prelude::*;
use rollcall_core::directory::{Command, ExpiryFence, Limits, Refusal};
use rollcall_core::guard::{Ending, GuardSettings, HoldReason, Ledger, Standing, Verdict};
use rollcall_core::ids::{LogIndex, Revision, SessionId, Term};

use crate::scene::{self, Scene};

fn settings() -> impl Strategy<Value = GuardSettings> {
    let share = prop::sample::select(vec![0, 1_000, 3_000, 3_333, 5_000, 9_999, 10_000]);
    (share, any::<bool>()).prop_map(|(share, keep_last)| GuardSettings {
        share,
        keep_last,
        ..GuardSettings::default()
    })
}

/// What befalls one service; numbers choose among the nodes there are.
#[derive(Clone, Debug)]
enum Event {
    Joins(bool),
    Leaves(usize),
    ChangesState(usize, bool),
    Lapse(usize, u32),
    Returns(usize),
    WindowOver,
    WrongWindowOver,
    HoldOver,
    WrongHoldOver,
    Settings(GuardSettings),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any::<bool>().prop_map(Event::Joins),
        2 => any::<usize>().prop_map(Event::Leaves),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(n, up)| Event::ChangesState(n, up)),
        5 => (1usize..5, prop::sample::select(vec![0u32, 0, 0, 1, 5])).prop_map(|(n, more)| Event::Lapse(n, more)),
        3 => any::<usize>().prop_map(Event::Returns),
        2 => Just(Event::WindowOver),
        1 => Just(Event::WrongWindowOver),
        1 => Just(Event::HoldOver),
        1 => Just(Event::WrongHoldOver),
        1 => settings().prop_map(Event::Settings),
    ]
}

/// One line of the history.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Joined,
    Left,
    /// `was_older`: it was overdue when the guard engaged.
    Struck {
        was_held: bool,
        was_older: bool,
    },
    Engaged {
        lapsed: u32,
        of: u32,
    },
    HeldMore(u32),
    Disengaged,
    WindowBegan {
        listed: u32,
    },
    WindowOver {
        gone: u32,
    },
}

/// The slow ledger: the nodes as they are, and all that happened; every number is counted when asked for.
#[derive(Default)]
struct Model {
    nodes: Vec<Standing>,
    history: Vec<Entry>,
}

impl Model {
    fn count(&self, standing: Standing) -> u32 {
        let same = self.nodes.iter().filter(|node| **node == standing);
        u32::try_from(same.count()).unwrap()
    }

    fn listed(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap()
    }

    fn living(&self) -> u32 {
        self.listed() - self.count(Standing::Suspect)
    }

    /// What happened since the window under way began, and how many were listed then.
    fn window(&self) -> Option<(u32, &[Entry])> {
        let last = self
            .history
            .iter()
            .rposition(|entry| matches!(entry, Entry::WindowBegan { .. } | Entry::WindowOver { .. }))?;
        match self.history[last] {
            Entry::WindowBegan { listed } => Some((listed, &self.history[last + 1..])),
            _ => None,
        }
    }

    /// What happened since the guard engaged, if it is engaged: of how many, and the entries.
    fn engaged(&self) -> Option<(u32, u32, &[Entry])> {
        let last = self
            .history
            .iter()
            .rposition(|entry| matches!(entry, Entry::Engaged { .. } | Entry::Disengaged))?;
        match self.history[last] {
            Entry::Engaged { lapsed, of } => Some((lapsed, of, &self.history[last + 1..])),
            _ => None,
        }
    }

    fn number(entries: &[Entry], wanted: impl Fn(&Entry) -> bool) -> u32 {
        u32::try_from(entries.iter().filter(|entry| wanted(entry)).count()).unwrap()
    }

    fn baseline(&self) -> u32 {
        self.window().map_or(self.listed(), |(listed, since)| {
            let joined = Self::number(since, |entry| *entry == Entry::Joined);
            let left = Self::number(since, |entry| *entry == Entry::Left);
            listed + joined - left
        })
    }

    fn removed(&self) -> u32 {
        self.window().map_or(0, |(_, since)| {
            Self::number(since, |entry| matches!(entry, Entry::Struck { .. }))
        })
    }

    fn gone(&self) -> u32 {
        self.window().map_or(0, |(_, since)| {
            Self::number(since, |entry| {
                matches!(entry, Entry::Struck { was_held: false, .. })
            })
        })
    }

    /// How many the service is expected to have while the guard is engaged.
    fn strength(&self) -> Option<u32> {
        let (_, of, since) = self.engaged()?;
        let joined = Self::number(since, |entry| *entry == Entry::Joined);
        let left = Self::number(since, |entry| *entry == Entry::Left);
        let released = Self::number(since, |entry| {
            matches!(entry, Entry::Struck { was_older: false, .. })
        });
        let before: u32 = since
            .iter()
            .map(|entry| match entry {
                Entry::WindowOver { gone } => *gone,
                _ => 0,
            })
            .sum();
        Some(
            of.saturating_sub(released + before)
                .saturating_sub(left.saturating_sub(joined)),
        )
    }

    /// Whether `up` of `strength` are at least `1 - share` of it, and at least the one that is to be kept.
    fn is_recovered(&self, settings: &GuardSettings) -> Option<bool> {
        let strength = u64::from(self.strength()?);
        let up = u64::from(self.count(Standing::Up));
        let enough = up * 10_000 >= strength * u64::from(10_000 - settings.share);
        Some(enough && (!settings.keep_last || up > 0))
    }

    /// No more than the share, but one always.
    fn fits(settings: &GuardSettings, removed: u32, baseline: u32) -> bool {
        removed <= 1 || u64::from(removed) * 10_000 <= u64::from(baseline) * u64::from(settings.share)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_ledger_counts_as_one_that_remembers_everything(
        mut settings in settings(),
        nodes in 0u32..30,
        events in prop::collection::vec(event(), 1..80),
    ) {
        let (mut ledger, mut model) = (Ledger::default(), Model::default());
        for _ in 0..nodes {
            ledger.joined(Standing::Up);
            model.nodes.push(Standing::Up);
        }
        for (n, event) in events.into_iter().enumerate() {
            let at = Revision(n as u64 + 1);
            let mut held_now = false;
            match event {
                Event::Joins(up) => {
                    let standing = if up { Standing::Up } else { Standing::Other };
                    ledger.joined(standing);
                    model.nodes.push(standing);
                    model.history.push(Entry::Joined);
                }
                Event::Leaves(n) if !model.nodes.is_empty() => {
                    let standing = model.nodes.swap_remove(n % model.nodes.len());
                    ledger.left(standing);
                    model.history.push(Entry::Left);
                }
                Event::ChangesState(n, up) if !model.nodes.is_empty() => {
                    let n = n % model.nodes.len();
                    let to = if up { Standing::Up } else { Standing::Other };
                    if model.nodes[n] != Standing::Suspect {
                        ledger.changed(model.nodes[n], to);
                        model.nodes[n] = to;
                    }
                }
                Event::Lapse(count, following) => {
                    let living = model.nodes.iter().enumerate().filter(|(_, node)| **node != Standing::Suspect);
                    let lapsed: Vec<usize> = living.map(|(n, _)| n).take(count).collect();
                    if lapsed.is_empty() {
                        continue;
                    }
                    held_now = lapse(&mut ledger, &mut model, &settings, &lapsed, following, at)?;
                }
                Event::Returns(n) => {
                    let suspects = model.nodes.iter().enumerate().filter(|(_, node)| **node == Standing::Suspect);
                    let suspects: Vec<usize> = suspects.map(|(n, _)| n).collect();
                    if let Some(n) = suspects.get(n % suspects.len().max(1)) {
                        ledger.changed(Standing::Suspect, Standing::Up);
                        model.nodes[*n] = Standing::Up;
                    }
                }
                Event::WindowOver => {
                    if let Some(began) = ledger.window().map(|window| window.began) {
                        let gone = model.gone();
                        prop_assert!(ledger.close_window(began));
                        prop_assert!(!ledger.close_window(began), "the second word is void");
                        model.history.push(Entry::WindowOver { gone });
                        release(&mut ledger, &mut model, &settings, at)?;
                    }
                }
                Event::WrongWindowOver => prop_assert!(!ledger.close_window(at)),
                Event::HoldOver => {
                    if let Some(hold) = ledger.hold().copied() {
                        prop_assert_eq!(ledger.end_hold(hold.since), !hold.overdue);
                        prop_assert!(!ledger.end_hold(hold.since), "the second word is void");
                        release(&mut ledger, &mut model, &settings, at)?;
                    }
                }
                Event::WrongHoldOver => prop_assert!(!ledger.end_hold(at)),
                Event::Settings(new) => settings = new,
                Event::Leaves(_) | Event::ChangesState(..) => continue,
            }
            if !held_now {
                settle(&mut ledger, &mut model, &settings, at)?;
            }
            compare(&ledger, &model, &settings)?;
        }
    }
}

/// Judges and carries out; whether they were held.
fn lapse(
    ledger: &mut Ledger,
    model: &mut Model,
    settings: &GuardSettings,
    lapsed: &[usize],
    following: u32,
    at: Revision,
) -> Result<bool, TestCaseError> {
    let count = u32::try_from(lapsed.len()).unwrap();
    let all = (count + following).min(model.living());
    let last = settings.keep_last && all == model.living();
    let fits = Model::fits(settings, model.removed() + all, model.baseline());
    match ledger.judge(settings, count, following) {
        Verdict::Remove => {
            prop_assert!(model.engaged().is_none() && fits && !last);
            if model.window().is_none() && !settings.is_off() {
                model.history.push(Entry::WindowBegan {
                    listed: model.listed(),
                });
            }
            for n in lapsed.iter().rev() {
                ledger.struck(settings, model.nodes.remove(*n), at);
                model.history.push(Entry::Struck {
                    was_held: false,
                    was_older: false,
                });
            }
            Ok(false)
        }
        Verdict::Hold(reason) => {
            if model.engaged().is_some() {
                model.history.push(Entry::HeldMore(count));
            } else {
                prop_assert!(!fits || last);
                prop_assert_eq!(reason == HoldReason::Share, !fits);
                let gone = model.gone();
                let (lapsed, of) = (gone + count, gone + model.living());
                model.history.push(Entry::Engaged { lapsed, of });
            }
            ledger.engage(reason, count, at);
            for n in lapsed {
                ledger.changed(model.nodes[*n], Standing::Suspect);
                model.nodes[*n] = Standing::Suspect;
            }
            Ok(true)
        }
    }
}

/// Lets go what may go now; never more than the share, never the last.
fn release(
    ledger: &mut Ledger,
    model: &mut Model,
    settings: &GuardSettings,
    at: Revision,
) -> Result<(), TestCaseError> {
    let may = ledger.releasable(settings);
    if may > 0 {
        prop_assert!(ledger.hold().is_some_and(|hold| hold.overdue));
        prop_assert!(Model::fits(settings, model.removed() + may, model.baseline()));
        prop_assert!(!settings.keep_last || may < model.listed());
        if model.window().is_none() && !settings.is_off() {
            model.history.push(Entry::WindowBegan {
                listed: model.listed(),
            });
        }
    }
    let was_older = ledger.hold().is_some_and(|hold| hold.older_than().is_some());
    for _ in 0..may {
        let suspect = model
            .nodes
            .iter()
            .position(|node| *node == Standing::Suspect)
            .unwrap();
        ledger.struck(settings, model.nodes.remove(suspect), at);
        model.history.push(Entry::Struck {
            was_held: true,
            was_older,
        });
    }
    Ok(())
}

fn settle(
    ledger: &mut Ledger,
    model: &mut Model,
    settings: &GuardSettings,
    at: Revision,
) -> Result<(), TestCaseError> {
    let recovered = model.is_recovered(settings);
    let ended = recovered == Some(true) || model.count(Standing::Suspect) == 0;
    let expected = match recovered {
        Some(true) => Some(Ending::Recovered),
        Some(false) if ended => Some(Ending::Cleared),
        Some(false) | None => None,
    };
    prop_assert_eq!(ledger.settle(settings, at), expected);
    if expected.is_some() {
        model.history.push(Entry::Disengaged);
    }
    Ok(())
}

fn compare(ledger: &Ledger, model: &Model, settings: &GuardSettings) -> Result<(), TestCaseError> {
    let status = ledger.status(settings);
    let counted = (
        model.listed(),
        model.count(Standing::Up),
        model.count(Standing::Suspect),
    );
    prop_assert_eq!((status.listed, status.up, status.held), counted);
    prop_assert_eq!(
        (status.baseline, status.removed),
        (model.baseline(), model.removed())
    );
    prop_assert_eq!(status.window.is_some(), model.window().is_some());
    prop_assert_eq!(
        status.held_since.is_some(),
        status.held > 0,
        "held nodes are held by a hold"
    );
    let engaged = model.engaged().map(|(lapsed, of, since)| {
        let more: u32 = since
            .iter()
            .map(|entry| {
                if let Entry::HeldMore(more) = entry {
                    *more
                } else {
                    0
                }
            })
            .sum();
        (lapsed + more, of)
    });
    prop_assert_eq!(
        status.engaged.map(|engaged| (engaged.lapsed, engaged.of)),
        engaged
    );
    if let Some(engaged) = status.engaged {
        let enough = model.count(Standing::Up) >= engaged.needed;
        prop_assert_eq!(Some(enough), model.is_recovered(settings));
    }
    Ok(())
}

#[test]
fn shares_are_rounded_in_favour_of_staying() {
    let with = |share| GuardSettings {
        share,
        ..GuardSettings::default()
    };
    let table = [
        // share, baseline, allowed, needed
        (3_000, 0, 1, 1),
        (3_000, 1, 1, 1),
        (3_000, 3, 1, 3),
        (3_000, 4, 1, 3),
        (3_000, 9, 2, 7),
        (3_000, 10, 3, 7),
        (3_000, 5_000, 1_500, 3_500),
        (0, 100, 1, 100),
        (10_000, 100, 100, 1),
        (3_333, 3, 1, 3),
        (10_000, u32::MAX, u32::MAX, 1),
    ];
    for (share, of, allowed, needed) in table {
        let settings = with(share);
        assert_eq!(
            (settings.allowed(of), settings.needed(of)),
            (allowed, needed),
            "{share} of {of}"
        );
    }
    let off = GuardSettings::off();
    assert!(off.is_off() && off.check().is_ok());
    assert_eq!((off.allowed(7), off.needed(7)), (7, 0));
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let mut scene = Scene::new(Limits::default());
    let mut refusal = |change: &dyn Fn(&mut GuardSettings)| {
        let mut guard = GuardSettings::default();
        change(&mut guard);
        scene.refused(scene::put_group_with("prod", guard)).to_string()
    };
    let field = "settings.defaults.guard";
    assert_eq!(
        refusal(&|guard| guard.share = 10_001),
        format!("{field}.share: is 10001, must be 0 to 10000")
    );
    assert!(refusal(&|guard| guard.window_ms = 999).starts_with(&format!("{field}.window_ms: is 999")));
    assert!(refusal(&|guard| guard.window_ms = 86_400_001).contains("must be 1000 to 86400000"));
    assert!(refusal(&|guard| guard.hold_max_ms = u64::MAX).contains("hold_max_ms"));
}

#[test]
fn words_about_guards_are_refused_when_malformed() {
    let mut scene = Scene::new(Limits::default());
    let confirm = |service: &str, reason: &str| Command::ConfirmRemoval {
        service: scene::service(service),
        since: None,
        author: "ann".into(),
        reason: reason.into(),
    };
    assert!(matches!(
        scene.refused(confirm("prod/none", "")),
        Refusal::ServiceNotFound { .. }
    ));
    scene.done(scene::register(1, &["prod/feed/a:80"]));
    assert!(matches!(
        scene.refused(confirm("prod/feed", &"x".repeat(257))),
        Refusal::TooLarge { .. }
    ));
    let term = Term(1);
    for empty in [
        Command::ReviveSessions {
            term,
            sessions: vec![],
        },
        Command::CloseGuardWindows {
            term,
            windows: vec![],
        },
        Command::ReleaseHeld { term, holds: vec![] },
    ] {
        assert!(matches!(scene.refused(empty), Refusal::Invalid { .. }));
    }
    let following = (0..1_001)
        .map(|n| (scene::service(&format!("prod/s{n}")), 1))
        .collect();
    let fence = ExpiryFence {
        session: SessionId(1),
        last_renewal: LogIndex(0),
    };
    let expire = Command::ExpireSessions {
        term,
        sessions: vec![fence],
        following,
    };
    assert!(matches!(scene.refused(expire), Refusal::TooLarge { .. }));
}
