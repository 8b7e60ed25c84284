//! The session clock and the removal guard.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rollcall_core::guard::{GuardSettings, Ledger, Standing};
use rollcall_core::ids::SessionId;
use rollcall_core::session::{Pace, SessionClock};

use crate::Case;

const SESSIONS: u64 = 10_000;
const TTL: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(50);
/// Lapsed sessions that are taken at a time.
const TAKEN: usize = 100;

pub(super) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("session/renew", 20_000, renew),
        case("session/a tick of 10,000 that renew every 5 s", 2_000, tick),
        case("session/lapse of 100", SESSIONS / TAKEN as u64, lapse),
        case("guard/judge", 10_000, judge),
    ]
}

fn clock() -> (SessionClock, Instant) {
    let now = Instant::now();
    let pace = Pace {
        tick_interval: TICK,
        lateness_tolerance: TICK,
    };
    let mut clock = SessionClock::new(now, pace);
    (0..SESSIONS).for_each(|session| clock.start(SessionId(session), TTL, now));
    (clock, now)
}

fn renew() -> Box<dyn FnMut()> {
    let (mut clock, now) = clock();
    let mut next = 0;
    Box::new(move || {
        next = (next + 7_919) % SESSIONS;
        let _left = black_box(clock.renew(&SessionId(next), now));
    })
}

/// As a leader does it all day: a tick, the renewals that came since the last one, and a look who lapsed.
fn tick() -> Box<dyn FnMut()> {
    let (mut clock, mut now) = clock();
    let mut next = 0;
    Box::new(move || {
        now += TICK;
        clock.tick(now);
        for _ in 0..SESSIONS / 100 {
            next = (next + 1) % SESSIONS;
            let renewed = clock.renew(&SessionId(next), now);
            assert!(renewed.is_ok(), "it renews every 5 s");
        }
        assert!(black_box(clock.take_lapsed(now, TAKEN)).is_empty());
    })
}

fn lapse() -> Box<dyn FnMut()> {
    let (mut clock, mut now) = clock();
    for _ in 0..=TTL.as_millis() / TICK.as_millis() {
        now += TICK;
        clock.tick(now);
    }
    Box::new(move || {
        assert_eq!(black_box(clock.take_lapsed(now, TAKEN)).len(), TAKEN);
    })
}

fn judge() -> Box<dyn FnMut()> {
    let settings = GuardSettings::default();
    let mut ledger = Ledger::default();
    (0..100).for_each(|_| ledger.joined(Standing::Up));
    Box::new(move || {
        black_box(black_box(&ledger).judge(black_box(&settings), 20, 5));
    })
}
