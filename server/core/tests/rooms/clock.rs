//! The clock against a naive model, pauses and rests included.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rollcall_core::session::{Countdown, NotFound, Pace, Spread};

const TICK: Duration = Duration::from_millis(100);
const TOLERANCE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
enum Step {
    Start(u8, u64),
    TakeOver(u8, u64),
    Renew(u8),
    Forget(u8),
    /// Real time passes; nothing is told to the clock.
    Pass(u64),
    /// A tick.
    Tick,
    /// The end of a rest.
    Resume,
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..12;
    prop_oneof![
        2 => (key.clone(), 0u64..3_000).prop_map(|(key, ttl)| Step::Start(key, ttl)),
        1 => (key.clone(), 0u64..3_000).prop_map(|(key, ttl)| Step::TakeOver(key, ttl)),
        5 => key.clone().prop_map(Step::Renew),
        1 => key.prop_map(Step::Forget),
        6 => (0u64..200).prop_map(Step::Pass),
        1 => (0u64..20_000).prop_map(Step::Pass),
        8 => Just(Step::Tick),
        1 => Just(Step::Resume),
        6 => prop_oneof![Just(1_000usize), 0usize..3].prop_map(Step::Take),
    ]
}

/// What the clock means to be, done the slow way: every deadline in a map, judged time by its definition.
#[derive(Default)]
struct Model {
    real: Duration,
    ticked_at: Duration,
    judged: Duration,
    /// Of the time that was not judged, what was no pause.
    rested: Duration,
    leases: BTreeMap<u8, ModelLease>,
}

struct ModelLease {
    deadline: Duration,
    ttl: Duration,
    /// In real time, when it was last started or renewed.
    granted_at: Duration,
}

impl Model {
    fn now(&self) -> Duration {
        self.judged + (self.real - self.ticked_at).min(TICK + TOLERANCE)
    }

    fn tick(&mut self) {
        self.judged = self.now();
        self.ticked_at = self.real;
    }

    fn take(&mut self, max: usize) -> Vec<u8> {
        let now = self.now();
        let mut due: Vec<(Duration, u8)> = self
            .leases
            .iter()
            .filter(|(_, l)| l.deadline <= now)
            .map(|(key, l)| (l.deadline, *key))
            .collect();
        due.sort_unstable();
        due.truncate(max);
        due.into_iter().map(|(_, key)| key).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_clock_does_what_a_naive_one_does(steps in prop::collection::vec(step(), 1..200)) {
        let origin = origin();
        let pace = Pace { tick_interval: TICK, lateness_tolerance: TOLERANCE };
        let mut clock: Countdown<u8> = Countdown::new(origin, pace);
        let mut model = Model::default();
        for step in steps {
            let now = origin + model.real;
            match step {
                Step::Start(key, ttl) => {
                    let ttl = Duration::from_millis(ttl);
                    clock.start(key, ttl, now);
                    let lease = ModelLease { deadline: model.now() + ttl, ttl, granted_at: model.real };
                    model.leases.insert(key, lease);
                }
                Step::TakeOver(key, ttl) => {
                    let ttl = Duration::from_millis(ttl);
                    let spread = Spread { extra: TICK * 5, over: TICK * 10 };
                    clock.start_spread(key, ttl, spread, now);
                    let left = clock.remaining(&key, now).unwrap();
                    prop_assert!(left >= ttl + spread.extra && left < ttl + spread.extra + spread.over);
                    let lease = ModelLease { deadline: model.now() + left, ttl, granted_at: model.real };
                    model.leases.insert(key, lease);
                }
                Step::Renew(key) => {
                    let judged = model.now();
                    let real = model.real;
                    let expected = model.leases.get_mut(&key).map(|lease| {
                        lease.deadline = lease.deadline.max(judged + lease.ttl);
                        lease.granted_at = real;
                        lease.deadline - judged
                    });
                    prop_assert_eq!(clock.renew(&key, now), expected.ok_or(NotFound));
                }
                Step::Forget(key) => {
                    clock.forget(&key);
                    model.leases.remove(&key);
                }
                Step::Pass(milliseconds) => model.real += Duration::from_millis(milliseconds),
                Step::Tick => {
                    let before = model.now();
                    let elapsed = model.real - model.ticked_at;
                    model.tick();
                    let tick = clock.tick(now);
                    prop_assert_eq!(tick.lateness, elapsed.saturating_sub(TICK));
                    prop_assert_eq!(model.now(), before);
                    prop_assert_eq!(tick.shifted_total, model.real - model.judged - model.rested);
                }
                Step::Resume => {
                    let elapsed = model.real - model.ticked_at;
                    let judged = model.judged;
                    model.tick();
                    model.rested += elapsed - (model.judged - judged);
                    clock.resume(now);
                    prop_assert_eq!(clock.shifted_total(), model.real - model.judged - model.rested);
                }
                Step::Take(max) => {
                    let expected = model.take(max);
                    for key in &expected {
                        let lease = model.leases.remove(key).unwrap();
                        prop_assert!(model.real - lease.granted_at >= lease.ttl, "never early");
                    }
                    prop_assert_eq!(clock.take_lapsed(now, max), expected);
                }
            }
            prop_assert_eq!(clock.len(), model.leases.len());
            let now = origin + model.real;
            for (key, lease) in &model.leases {
                let left = lease.deadline.saturating_sub(model.now());
                prop_assert_eq!(clock.remaining(key, now), Some(left));
            }
            // Whatever is due is announced: the next deadline is never later than the first real one.
            let first = model.leases.values().map(|lease| lease.deadline).min();
            if let Some(first) = first {
                let real = origin + model.ticked_at + first.saturating_sub(model.judged);
                prop_assert!(clock.next_deadline().is_some_and(|next| next <= real));
            }
        }
    }
}

#[test]
fn sessions_that_come_and_go_leave_nothing_behind() {
    let origin = origin();
    let pace = Pace {
        tick_interval: TICK,
        lateness_tolerance: TICK,
    };
    let mut clock: Countdown<u64> = Countdown::new(origin, pace);
    for key in 0..100_000 {
        clock.start(key, Duration::from_secs(600), origin);
        clock.forget(&key);
    }
    assert!(clock.is_empty());
    assert!(
        clock.filed() <= 2_048,
        "{} entries for no countdown",
        clock.filed()
    );
}

#[test]
fn a_thousand_healthy_sessions_survive_a_pause_of_fifteen_seconds() {
    let origin = origin();
    let pace = Pace {
        tick_interval: TICK,
        lateness_tolerance: TICK,
    };
    let mut clock: Countdown<u64> = Countdown::new(origin, pace);
    let ttl = Duration::from_secs(10);
    (0..1_000).for_each(|key| clock.start(key, ttl, origin));
    let awake = origin + Duration::from_secs(15);
    let tick = clock.tick(awake);
    assert_eq!(tick.shifted, Duration::from_millis(14_800));
    assert_eq!(clock.take_lapsed(awake, usize::MAX), []);
    // Their heartbeats were waiting in the sockets.
    (0..1_000).for_each(|key| assert_eq!(clock.renew(&key, awake), Ok(ttl)));
}

#[expect(
    clippy::disallowed_methods,
    reason = "a starting point; nothing depends on its value"
)]
pub(crate) fn origin() -> Instant {
    Instant::now()
}
