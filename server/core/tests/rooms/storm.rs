//! The storm switch: what it promises, and transcripts.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rollcall_core::directory::{Command, Directory, Limits, Refusal};
use rollcall_core::ids::{GroupName, Revision};
use rollcall_core::storm::{
    Admission, Budget, ColdStart, Consumer, Judge, JudgeSettings, Mode, Modes, Pace, Pressure, Record, Scope,
    Share, StormSwitch, SwitchSettings,
};

use crate::scene::{self, Scene};
use crate::script::{Line, duration, play};

const EPOCH: Duration = Duration::from_secs(1);

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        3 => 100u16..=10_000,
        1 => prop::sample::select(vec![1_000, 2_500, 3_333, 5_000, 9_999, 10_000]),
    ]
    .prop_map(|basis_points| Share::from_basis_points(basis_points).unwrap())
}

fn switched_on(share: Share, set_at: u64, now: Instant) -> StormSwitch {
    // A bucket of one token an hour is no bucket.
    let settings = SwitchSettings {
        cold_per_s: 1,
        cold_burst: 1,
        ..SwitchSettings::default()
    };
    let mut modes = Modes::default();
    let record = Record {
        mode: Mode::On { share },
        set_at: Revision(set_at),
        ..Record::default()
    };
    modes.set(&Scope::Cluster, record);
    let mut switch = StormSwitch::new(settings, now);
    switch.set_modes(&modes);
    switch
}

fn warm(client: &str, asked_at: Instant) -> Consumer<'_> {
    Consumer {
        client: client.as_bytes(),
        cold: false,
        asked_at,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whoever_asks_when_told_is_served_within_the_promised_epochs(
        share in share(),
        set_at in 0u64..1_000,
        client in "[a-z]{1,12}",
        asked_ms in 0u64..1_000_000,
    ) {
        let origin = origin();
        let mut switch = switched_on(share, set_at, origin);
        let asked = origin + Duration::from_millis(asked_ms);
        let group = scene::group("prod");
        if let Admission::KeepCache { retry_at } = switch.ask(&group, warm(&client, asked), asked) {
            prop_assert!(retry_at > asked);
            prop_assert!(retry_at < asked + EPOCH * u32::from(share.epochs()));
            prop_assert_eq!(switch.ask(&group, warm(&client, retry_at), retry_at), Admission::Serve);
            // A late one still has half of its epoch.
            let late = retry_at + EPOCH / 2 - Duration::from_nanos(1);
            prop_assert_eq!(switch.ask(&group, warm(&client, late), late), Admission::Serve);
        }
    }

    #[test]
    fn whoever_is_kept_waiting_does_not_miss_its_turn(
        share in share(),
        client in "[a-z]{1,12}",
        asked_ms in 0u64..1_000_000,
        waited_ms in 0u64..20_000,
    ) {
        let origin = origin();
        let mut switch = switched_on(share, 7, origin);
        let asked = origin + Duration::from_millis(asked_ms);
        let now = asked + Duration::from_millis(waited_ms);
        let group = scene::group("prod");
        let at_once = switch.ask(&group, warm(&client, asked), asked);
        let expected = match at_once {
            Admission::KeepCache { retry_at } if retry_at > now => at_once,
            Admission::KeepCache { .. } | Admission::Serve => Admission::Serve,
        };
        prop_assert_eq!(switch.ask(&group, warm(&client, asked), now), expected);
    }

    #[test]
    fn any_epochs_in_a_row_hold_one_turn_of_every_client(share in share(), first in 0u64..100_000) {
        let origin = origin();
        let mut switch = switched_on(share, 7, origin);
        let group = scene::group("prod");
        let epochs = u64::from(share.epochs());
        for client in 0..20 {
            let client = format!("client-{client}");
            let turns = (first..first + epochs)
                .filter(|epoch| {
                    let now = origin + EPOCH * u32::try_from(*epoch).unwrap();
                    switch.ask(&group, warm(&client, now), now) == Admission::Serve
                })
                .count();
            prop_assert_eq!(turns, 1);
        }
    }

    #[test]
    fn no_epoch_serves_more_than_the_share(share in (500u16..=10_000), set_at in 0u64..1_000) {
        let share = Share::from_basis_points(share).unwrap();
        let origin = origin();
        let mut switch = switched_on(share, set_at, origin);
        let group = scene::group("prod");
        let clients = 4_000u64;
        let expected = clients / u64::from(share.epochs());
        // The rounding is in the consumers' disfavour: 1 / ceil(1 / share) is never above the share.
        prop_assert!(10_000 <= u64::from(share.epochs()) * u64::from(share.basis_points()));
        for epoch in 0..u32::from(share.epochs()) {
            let now = origin + EPOCH * epoch;
            let served = (0..clients)
                .filter(|client| {
                    switch.ask(&group, warm(&format!("c{client}"), now), now) == Admission::Serve
                })
                .count() as u64;
            // A hash deals like dice: six standard deviations.
            let luck = 6 * expected.isqrt();
            prop_assert!(served <= expected + luck, "{served} of {expected} and {luck}");
        }
    }

    #[test]
    fn a_bucket_never_gives_more_than_its_rate_and_burst(
        per_second in 1u32..500,
        burst in 1u32..100,
        gaps in prop::collection::vec(0u64..50, 1..400),
    ) {
        let mut now = origin();
        let mut bucket = ColdStart::new(per_second, burst);
        let mut taken = Vec::new();
        for gap in gaps {
            now += Duration::from_millis(gap);
            if bucket.try_take(now) {
                taken.push(now);
            }
        }
        for (first, from) in taken.iter().enumerate() {
            for (last, to) in taken.iter().enumerate().skip(first) {
                let span = u64::try_from((*to - *from).as_nanos()).unwrap();
                let most = u64::from(burst) + span * u64::from(per_second) / 1_000_000_000;
                prop_assert!((last - first + 1) as u64 <= most, "{} in {span} ns", last - first + 1);
            }
        }
    }

    #[test]
    fn engagement_changes_at_most_twice_in_a_minute(
        readings in prop::collection::vec((0u64..400, 100u64..3_000), 1..400),
        engage_ms in 0u64..5_000,
        disengage_ms in 0u64..20_000,
    ) {
        let settings = JudgeSettings {
            egress_bytes_per_s_max: 100,
            engage_after: Duration::from_millis(engage_ms),
            disengage_after: Duration::from_millis(disengage_ms),
            ..JudgeSettings::default()
        };
        let mut now = origin();
        let mut judge = Judge::new(settings, now);
        let mut flips: Vec<Instant> = Vec::new();
        let mut above_since = None;
        for (egress, gap) in readings {
            now += Duration::from_millis(gap);
            above_since = (egress > 100).then(|| above_since.unwrap_or(now));
            let pressure = Pressure { egress_bytes_per_s: egress, ..Pressure::default() };
            if judge.read(pressure, now).is_some() {
                flips.push(now);
            }
            // Engaging is never put off.
            if above_since.is_some_and(|since| now - since >= settings.engage_after) {
                prop_assert!(judge.engagement().engaged);
            }
        }
        for three in flips.windows(3) {
            prop_assert!(three[2] - three[0] >= Duration::from_secs(60));
        }
    }

    #[test]
    fn what_leaves_keeps_to_the_budget_and_to_its_order(
        takes in prop::collection::vec((0u64..3_000, 0u64..2_000), 1..200),
    ) {
        let (per_second, tolerance) = (1_000, Duration::from_millis(20));
        let mut budget = Budget::new(per_second, tolerance);
        let mut now = origin();
        let mut left: Vec<(Instant, u64)> = Vec::new();
        for (amount, gap) in takes {
            now += Duration::from_millis(gap);
            let at = budget.take(amount, now);
            prop_assert!(at >= now && left.last().is_none_or(|(last, _)| at >= *last));
            left.push((at, amount));
        }
        // In any span, all but the last amount fit the rate and the tolerance.
        for (first, (from, _)) in left.iter().enumerate() {
            let mut sum = 0;
            for (at, amount) in &left[first..] {
                let span = *at - *from + tolerance + Duration::from_millis(1);
                let most = u128::from(per_second) * span.as_micros() / 1_000_000;
                prop_assert!(u128::from(sum) <= most + 1, "{sum} in {span:?}");
                sum += amount;
            }
        }
    }
}

#[test]
fn what_left_without_asking_is_waited_for_a_while() {
    let now = origin();
    let second = Duration::from_secs(1);
    let mut budget = Budget::new(1_000, Duration::ZERO);
    budget.note(500, second, now);
    assert_eq!(budget.take(1_000, now), now + second / 2);
    // What was taken stands, however little may be noted.
    budget.note(1_000_000, second, now);
    assert_eq!(budget.take(1, now), now + second * 3 / 2);
    let later = now + second * 10;
    budget.note(1_000_000, second, later);
    assert_eq!(budget.take(1, later), later + second);
}

#[test]
fn a_share_is_between_nothing_and_all() {
    for wrong in [0, 10_001, u16::MAX] {
        assert!(Share::from_basis_points(wrong).is_err());
    }
    let shown = |basis_points| Share::from_basis_points(basis_points).unwrap().to_string();
    assert_eq!(
        [1, 10, 250, 1_000, 10_000].map(shown),
        ["0.01 %", "0.1 %", "2.5 %", "10 %", "100 %"]
    );
    assert_eq!(
        [1, 3_333, 3_334, 10_000].map(|share| Share::from_basis_points(share).unwrap().epochs()),
        [10_000, 4, 3, 1]
    );
}

fn set_storm(scope: &Scope, mode: Mode) -> Command {
    Command::SetStorm {
        scope: scope.clone(),
        mode,
        author: "ann".into(),
        reason: "the network flaps".into(),
    }
}

#[test]
fn the_switch_is_part_of_the_replicated_state() {
    let mut scene = Scene::new(Limits::default());
    let untouched = scene.directory.state_hash();
    let share = Share::default();
    let before = scene.directory.revision();
    let prod = Scope::Group(scene::group("prod"));
    let steps = [
        (Scope::Cluster, Mode::Auto { share }),
        (prod.clone(), Mode::On { share }),
        (Scope::Cluster, Mode::On { share }),
    ];
    for (n, (scope, mode)) in steps.into_iter().enumerate() {
        let hash = scene.directory.state_hash();
        let applied = scene.apply(set_storm(&scope, mode));
        let changes = applied.changes.unwrap();
        assert_eq!(changes.revision.0, before.0 + n as u64 + 1);
        let (told, record) = *changes.storm.clone().unwrap();
        assert_eq!(
            (told, record.mode, record.set_at),
            (scope, mode, changes.revision)
        );
        assert_eq!(
            (record.author.as_str(), record.reason.as_str()),
            ("ann", "the network flaps")
        );
        assert_ne!(scene.directory.state_hash(), hash);
        let bytes = scene.directory.encode_snapshot();
        let read = Directory::decode_snapshot(&bytes).unwrap();
        assert_eq!(read.storm(), scene.directory.storm());
        assert_eq!(read.state_hash(), scene.directory.state_hash());
        assert_eq!(read.encode_snapshot(), bytes);
    }
    let modes = scene.directory.storm();
    assert_eq!(
        modes.holding_for(&scene::group("prod/feed")).set_at.0,
        before.0 + 2
    );
    assert_eq!(modes.holding_for(&scene::group("test")).set_at.0, before.0 + 3);
    // Taken away, a group's record leaves no trace; once more is no change.
    scene.done(set_storm(&prod, Mode::Inherited));
    assert_eq!(scene.directory.storm().of(&prod), None);
    let revision = scene.directory.revision();
    scene.done(set_storm(&prod, Mode::Inherited));
    assert_eq!(scene.directory.revision(), revision);
    assert_ne!(scene.directory.state_hash(), untouched);
}

#[test]
fn a_switch_that_cannot_be_is_refused() {
    let limits = Limits {
        groups_max: 1,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    let refused = |scene: &mut Scene, scope: &Scope, mode| {
        let hash = scene.directory.state_hash();
        let refusal = scene.refused(set_storm(scope, mode));
        assert_eq!(scene.directory.state_hash(), hash);
        refusal
    };
    let nowhere = Scope::Group(scene::group("nowhere"));
    let refusal = refused(&mut scene, &nowhere, Mode::Off);
    assert!(matches!(refusal, Refusal::GroupNotFound { .. }), "{refusal}");
    let refusal = refused(&mut scene, &nowhere, Mode::Inherited);
    assert!(matches!(refusal, Refusal::GroupNotFound { .. }), "{refusal}");
    let refusal = refused(&mut scene, &Scope::Cluster, Mode::Inherited);
    assert!(matches!(refusal, Refusal::Invalid { .. }), "{refusal}");
    let wordy = Command::SetStorm {
        scope: Scope::Cluster,
        mode: Mode::Off,
        author: String::new(),
        reason: "x".repeat(257),
    };
    let refusal = scene.refused(wordy);
    assert!(matches!(refusal, Refusal::TooLarge { .. }), "{refusal}");
    // The record of a group that was deleted keeps its place until it is taken away.
    let prod = Scope::Group(scene::group("prod"));
    scene.done(set_storm(&prod, Mode::Off));
    scene.done(Command::DeleteGroup {
        group: scene::group("prod"),
        expected: rollcall_core::directory::Expected::Any,
    });
    scene.done(scene::put_group("test"));
    let test = Scope::Group(scene::group("test"));
    let refusal = refused(&mut scene, &test, Mode::Off);
    assert!(matches!(refusal, Refusal::QuotaExceeded { .. }), "{refusal}");
    scene.done(set_storm(&prod, Mode::Inherited));
    scene.done(set_storm(&test, Mode::Off));
}

#[test]
fn storm_transcripts() {
    play("storm", || {
        let mut player = StormPlayer::new();
        move |line: &Line<'_>| player.run(line)
    });
}

struct StormPlayer {
    switch: StormSwitch,
    modes: Modes,
    revision: u64,
    origin: Instant,
    now: Instant,
}

impl StormPlayer {
    fn new() -> Self {
        let now = origin();
        let settings = SwitchSettings {
            cold_per_s: 2,
            cold_burst: 3,
            judge: JudgeSettings {
                egress_bytes_per_s_max: 1_000_000,
                changes_per_s_max: 1_000,
                engage_after: Duration::from_secs(2),
                ..JudgeSettings::default()
            },
            ..SwitchSettings::default()
        };
        Self {
            switch: StormSwitch::new(settings, now),
            modes: Modes::default(),
            revision: 0,
            origin: now,
            now,
        }
    }

    fn run(&mut self, line: &Line<'_>) -> String {
        match line.verb {
            "set" => self.set(line),
            "advance" => {
                self.now += duration(line.places[0]);
                format!("at {:?}", self.now - self.origin)
            }
            "ask" => self.ask(line),
            "crowd" => self.crowd(line),
            "read" => self.read(line),
            "pace" => match self.switch.pace(&place(line)) {
                Pace::AtOnce => "each change at once".into(),
                Pace::Coalesced { delay_max } => format!("one change a service, at most {delay_max:?} old"),
            },
            verb => panic!("unknown verb {verb:?}"),
        }
    }

    fn set(&mut self, line: &Line<'_>) -> String {
        let share = line.number("share").map_or(Share::default(), |share| {
            Share::from_basis_points(u16::try_from(share).unwrap()).unwrap()
        });
        let mode = match line.places[0] {
            "off" => Mode::Off,
            "on" => Mode::On { share },
            "auto" => Mode::Auto { share },
            "inherited" => Mode::Inherited,
            mode => panic!("unknown mode {mode:?}"),
        };
        let scope = line
            .options
            .get("group")
            .map_or(Scope::Cluster, |group| Scope::Group(scene::group(group)));
        self.revision += 1;
        let record = Record {
            mode,
            set_at: Revision(self.revision),
            ..Record::default()
        };
        self.modes.set(&scope, record);
        self.switch.set_modes(&self.modes);
        format!("{scope}: {mode}")
    }

    fn ask(&mut self, line: &Line<'_>) -> String {
        let consumer = Consumer {
            client: line.places[0].as_bytes(),
            cold: line.places.contains(&"cold"),
            asked_at: self.now,
        };
        match self.switch.ask(&place(line), consumer, self.now) {
            Admission::Serve => "serve".into(),
            Admission::KeepCache { retry_at } => {
                format!("keep cache, ask again at {:?}", retry_at - self.origin)
            }
        }
    }

    fn crowd(&mut self, line: &Line<'_>) -> String {
        let size = line.number("size").expect("size=");
        let cold = line.places.contains(&"cold");
        let served = (0..size)
            .filter(|client| {
                let client = format!("crowd-{client}");
                let consumer = Consumer {
                    client: client.as_bytes(),
                    cold,
                    asked_at: self.now,
                };
                self.switch.ask(&place(line), consumer, self.now) == Admission::Serve
            })
            .count();
        format!("{served} of {size} served")
    }

    fn read(&mut self, line: &Line<'_>) -> String {
        let pressure = Pressure {
            egress_bytes_per_s: line.number("egress").unwrap_or_default(),
            changes_per_s: line.number("changes").unwrap_or_default(),
            scheduling_lag: line.duration("lag").unwrap_or_default(),
        };
        // Once a second, as often as asked.
        let mut text = String::new();
        for _ in 0..line.number("times").unwrap_or(1) {
            self.now += Duration::from_secs(1);
            if let Some(flip) = self.switch.read(pressure, self.now) {
                let what = if flip.to.engaged { "engages" } else { "lets go" };
                let _ = writeln!(text, "{:?}: {what}: {}", self.now - self.origin, flip.to.why);
            }
        }
        if text.is_empty() {
            let engaged = self.switch.engagement().engaged;
            return format!("stays {}", if engaged { "engaged" } else { "disengaged" });
        }
        text
    }
}

fn place(line: &Line<'_>) -> GroupName {
    scene::group(line.options.get("group").copied().unwrap_or("prod"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a starting point; nothing depends on its value"
)]
fn origin() -> Instant {
    Instant::now()
}
