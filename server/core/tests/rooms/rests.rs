//! Whoever rests while nothing counts down comes to the same verdicts as whoever looks at every tick.

use std::time::Duration;

use proptest::prelude::*;
use rollcall_core::session::{Countdown, JudgedTime, Pace};

use super::clock::origin;

const TICK: Duration = Duration::from_millis(50);
const PACE: Pace = Pace {
    tick_interval: TICK,
    lateness_tolerance: TICK,
};

/// What a judge has heard when it looks.
#[derive(Clone, Debug)]
enum Heard {
    Nothing,
    Start(u8, Duration),
    Renew(u8),
    Forget(u8),
}

fn ttl() -> impl Strategy<Value = Duration> {
    (0u64..1_500).prop_map(Duration::from_millis)
}

/// Now and then something, long stretches of nothing.
fn heard() -> impl Strategy<Value = Heard> {
    let key = 0u8..4;
    prop_oneof![
        30 => Just(Heard::Nothing),
        2 => (key.clone(), ttl()).prop_map(|(key, ttl)| Heard::Start(key, ttl)),
        2 => key.clone().prop_map(Heard::Renew),
        1 => key.prop_map(Heard::Forget),
    ]
}

/// How long it is until the next look: mostly a tick, more or less; at times this server sleeps.
fn gap() -> impl Strategy<Value = Duration> {
    prop_oneof![
        20 => Just(TICK),
        10 => (0u64..=100).prop_map(Duration::from_millis),
        1 => (0u64..5_000).prop_map(Duration::from_millis),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn who_rests_judges_as_who_looks_at_every_tick(
        looks in prop::collection::vec((gap(), heard()), 1..400),
        idle_looks in 1usize..20,
    ) {
        let mut now = origin();
        let mut ticking: Countdown<u8> = Countdown::new(now, PACE);
        let mut resting: Countdown<u8> = Countdown::new(now, PACE);
        let mut idle_for = 0;
        for (gap, heard) in looks {
            now += gap;
            let shifted = ticking.tick(now).shifted;
            let is_resting = idle_for >= idle_looks;
            if is_resting && matches!(heard, Heard::Nothing) {
                prop_assert_eq!(ticking.take_lapsed(now, usize::MAX), []);
                continue;
            }
            if is_resting {
                resting.resume(now);
            } else {
                prop_assert_eq!(resting.tick(now).shifted, shifted, "a rest was held to be a pause, or a pause was not");
            }
            match heard {
                Heard::Nothing => {}
                Heard::Start(key, ttl) => {
                    ticking.start(key, ttl, now);
                    resting.start(key, ttl, now);
                }
                Heard::Renew(key) => prop_assert_eq!(resting.renew(&key, now), ticking.renew(&key, now)),
                Heard::Forget(key) => {
                    ticking.forget(&key);
                    resting.forget(&key);
                }
            }
            for key in 0..4 {
                prop_assert_eq!(resting.remaining(&key, now), ticking.remaining(&key, now));
            }
            prop_assert_eq!(resting.take_lapsed(now, usize::MAX), ticking.take_lapsed(now, usize::MAX));
            idle_for = if resting.is_empty() { idle_for + 1 } else { 0 };
        }
    }

    /// What begins to count down between the last look of a rest and the one that ends it lasts its whole ttl, and longer
    /// by no more than it took to end the rest.
    #[test]
    fn what_begins_while_a_judge_rests_lasts_its_ttl(
        rest in (0u64..100_000).prop_map(Duration::from_millis),
        ttl in ttl(),
        renewed in prop::option::of(0u64..3_000).prop_map(|after| after.map(Duration::from_millis)),
        woken in (0u64..3_000).prop_map(Duration::from_millis),
        gaps in prop::collection::vec(gap(), 1..50),
    ) {
        let origin = origin();
        let mut clock: Countdown<u8> = Countdown::new(origin, PACE);
        let begun = origin + rest;
        clock.start(0, ttl, begun);
        let renewed = renewed.filter(|after| *after <= woken).map(|after| begun + after);
        if let Some(at) = renewed {
            prop_assert!(clock.renew(&0, at).is_ok());
        }
        let woken = begun + woken;
        clock.resume(woken);
        prop_assert_eq!(clock.shifted_total(), Duration::ZERO);
        let granted = renewed.unwrap_or(begun);
        let left = clock.remaining(&0, woken).unwrap();
        prop_assert!(left <= ttl, "it would last longer than if it began now");
        prop_assert!(woken + left >= granted + ttl, "it would last less than its ttl");
        let (mut now, mut awake) = (woken, JudgedTime::starting_at(woken, PACE));
        for gap in gaps {
            let lapsed = clock.take_lapsed(now, usize::MAX);
            prop_assert_eq!(lapsed.is_empty(), awake.at(now) < left);
            if !lapsed.is_empty() {
                prop_assert!(now >= granted + ttl);
                break;
            }
            now += gap;
            clock.tick(now);
            awake.tick(now);
        }
    }

    /// Whatever it is told: judged time never turns back, and never outruns real time.
    #[test]
    fn judged_time_never_outruns_real_time(
        steps in prop::collection::vec((gap(), any::<bool>(), any::<bool>()), 1..200),
    ) {
        let mut now = origin();
        let mut time = JudgedTime::starting_at(now, PACE);
        for (gap, is_told, rests) in steps {
            let (before, later) = (time.at(now), now + gap);
            now = later;
            let judged = time.at(now);
            prop_assert!(judged >= before && judged - before <= gap);
            if is_told {
                let shifted = time.shifted_total();
                if rests {
                    time.resume(now);
                    prop_assert_eq!(time.shifted_total(), shifted, "a rest is no pause");
                } else {
                    time.tick(now);
                }
                prop_assert_eq!(time.at(now), judged, "being told moves nothing");
            }
        }
    }
}
