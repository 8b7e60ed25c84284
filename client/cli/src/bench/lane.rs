//! One connection's share of the load: which call is due when, and what each answer took. Told the time, it
//! never asks for it.
//!
//! Open loop: call `k` is due at `first + k * every`. It is sent then, or as soon afterwards as there is room,
//! and its latency counts from when it was due. The due times do not depend on answers, so calls that a stalled
//! server kept waiting are all in the figures.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::report::Tally;

/// A call that leaves so long after it was due is late. Above the resolution of timers, so that an idle machine
/// is never late.
pub(crate) const LATE_AFTER: Duration = Duration::from_millis(2);

/// When calls are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Whenever there is room.
    Closed,
    /// On a schedule, counted from the lane's start.
    Open {
        /// The first one.
        first: Duration,
        /// The distance between two.
        every: Duration,
    },
}

/// A call that may leave now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    /// Its number on this lane, from 0.
    pub(crate) call: u64,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    due: Instant,
    sent: Instant,
}

/// One connection's share of the load.
#[derive(Debug)]
pub(crate) struct Lane {
    start: Instant,
    pace: Pace,
    count: Option<u64>,
    /// No call is due from here on.
    end: Option<Instant>,
    in_flight_max: usize,
    patience: Duration,
    sent: u64,
    under_way: HashMap<u64, UnderWay>,
    stopped: bool,
    /// When the last call that this lane will send had left.
    finished_sending_at: Option<Instant>,
    last_answer_at: Instant,
    tally: Tally,
}

impl Lane {
    /// A lane that begins at `start`. `patience` bounds the wait for the last answers, and for the last late
    /// sends.
    pub(crate) fn new(
        start: Instant,
        pace: Pace,
        count: Option<u64>,
        sending_time: Option<Duration>,
        in_flight_max: usize,
        patience: Duration,
    ) -> Self {
        Self {
            start,
            pace,
            count,
            end: sending_time.map(|time| start + time),
            in_flight_max,
            patience,
            sent: 0,
            under_way: HashMap::new(),
            stopped: false,
            finished_sending_at: None,
            last_answer_at: start,
            tally: Tally::new(),
        }
    }

    /// How many calls it will send, if that is known.
    #[cfg(test)]
    pub(crate) fn share(&self) -> Option<u64> {
        self.count
    }

    /// When call number `sent` is due; `None`: there is no such call.
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.stopped || self.count.is_some_and(|count| self.sent >= count) {
            return None;
        }
        let due = match self.pace {
            Pace::Closed => now.max(self.start),
            Pace::Open { first, every } => {
                self.start + first + Duration::from_secs_f64(every.as_secs_f64() * self.sent as f64)
            }
        };
        self.end.is_none_or(|end| due < end).then_some(due)
    }

    /// How many calls of the schedule were due by `now`.
    fn scheduled_until(&self, now: Instant) -> u64 {
        let Pace::Open { first, every } = self.pace else {
            return self.sent;
        };
        let within = |time: Duration| time.saturating_sub(first).as_secs_f64() / every.as_secs_f64();
        let since_start = now.saturating_duration_since(self.start);
        let mut calls = if since_start >= first {
            within(since_start).floor() as u64 + 1
        } else {
            0
        };
        if let Some(end) = self.end {
            // No call is due at the end itself.
            calls = calls.min(within(end.duration_since(self.start)).ceil() as u64);
        }
        calls.min(self.count.unwrap_or(u64::MAX))
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < self.in_flight_max
    }

    /// Whether [`Self::take_due`] would give a call.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.has_room() && self.due(now).is_some_and(|due| due <= now)
    }

    /// The next call, if it may leave now. It counts as sent.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Departure> {
        if !self.has_room() {
            return None;
        }
        let due = self.due(now).filter(|due| *due <= now)?;
        let call = self.sent;
        self.sent += 1;
        self.under_way.insert(call, UnderWay { due, sent: now });
        let lateness = now.duration_since(due);
        if lateness > LATE_AFTER {
            self.tally.late(lateness);
        }
        Some(Departure { call })
    }

    /// When something will happen by the clock alone: a call is due, or patience ends. `None`: only an answer
    /// can change anything.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let due = if self.has_room() { self.due(now) } else { None };
        let deadline = self.deadline();
        match (due, deadline) {
            (Some(due), Some(deadline)) => Some(due.min(deadline)),
            (one, other) => one.or(other),
        }
    }

    /// When the lane gives up on what is missing.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sending_ends = match (self.finished_sending_at, self.end) {
            (Some(at), Some(end)) => Some(at.min(end)),
            (one, other) => one.or(other),
        };
        sending_ends.map(|at| at + self.patience)
    }

    /// Takes the answer to a call in. `items` is what it did: nodes registered, sessions renewed. An answer to a
    /// call that is not under way (a second one, or one after the end) counts as nothing.
    pub(crate) fn on_answer(&mut self, call: u64, result: Result<u64, String>, now: Instant) {
        let Some(under_way) = self.under_way.remove(&call) else {
            return;
        };
        self.last_answer_at = now;
        match result {
            Ok(items) => self.tally.answered(
                now.duration_since(under_way.due),
                now.duration_since(under_way.sent),
                items,
            ),
            Err(label) => self.tally.failed(label),
        }
    }

    /// No further call leaves; those under way are waited for.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether everything was sent and answered, or patience is at its end.
    pub(crate) fn is_done(&mut self, now: Instant) -> bool {
        let sent_all = self.due(now).is_none();
        if sent_all && self.finished_sending_at.is_none() {
            self.finished_sending_at = Some(now);
        }
        (sent_all && self.under_way.is_empty()) || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// The connection is gone: what was under way failed, and so does what was still to be sent.
    pub(crate) fn break_off(&mut self, label: &str) {
        for _ in 0..self.under_way.len() {
            self.tally.failed(label.to_owned());
        }
        self.under_way.clear();
        self.tally.broken_off += 1;
        self.stopped = true;
    }

    /// What came of it. Calls still under way are unanswered; scheduled calls that never left are unsent.
    pub(crate) fn into_tally(mut self, now: Instant) -> Tally {
        self.tally.unanswered += self.under_way.len() as u64;
        self.tally.sent = self.sent;
        if !self.stopped {
            self.tally.unsent = self.scheduled_until(now).saturating_sub(self.sent);
        }
        let heard_anything = self.tally.answered > 0 || !self.tally.errors.is_empty();
        let until = if heard_anything { self.last_answer_at } else { now };
        self.tally.elapsed = until.duration_since(self.start);
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn open(start: Instant, every_ms: u64, count: Option<u64>, time: Option<Duration>, room: usize) -> Lane {
        let pace = Pace::Open {
            first: Duration::ZERO,
            every: MS * u32::try_from(every_ms).unwrap(),
        };
        Lane::new(start, pace, count, time, room, Duration::from_secs(5))
    }

    #[test]
    fn a_closed_lane_keeps_its_calls_under_way() {
        let start = Instant::now();
        let mut lane = Lane::new(start, Pace::Closed, Some(3), None, 2, MS);
        assert_eq!(lane.take_due(start), Some(Departure { call: 0 }));
        assert_eq!(lane.take_due(start), Some(Departure { call: 1 }));
        assert_eq!(lane.take_due(start), None);
        lane.on_answer(0, Ok(1), start + MS);
        assert_eq!(lane.take_due(start + MS), Some(Departure { call: 2 }));
        lane.on_answer(1, Ok(1), start + MS * 2);
        lane.on_answer(2, Ok(1), start + MS * 2);
        assert_eq!(lane.take_due(start + MS * 2), None);
        assert!(lane.is_done(start + MS * 2));
        let tally = lane.into_tally(start + MS * 3);
        assert_eq!((tally.sent, tally.answered, tally.late), (3, 3, 0));
        assert_eq!(tally.elapsed, MS * 2);
    }

    #[test]
    fn an_open_lane_sends_on_time_and_not_before() {
        let start = Instant::now();
        let mut lane = open(start, 10, Some(2), None, 100);
        assert!(lane.take_due(start).is_some());
        assert!(lane.take_due(start + MS * 9).is_none());
        assert_eq!(lane.next_wake(start), Some(start + MS * 10));
        assert!(lane.take_due(start + MS * 10).is_some());
        assert_eq!(lane.into_tally(start + MS * 10).late, 0);
    }

    /// A call a millisecond; the server sleeps for a second and then answers everything at once.
    #[test]
    fn a_stalled_server_cannot_hide_the_calls_it_kept_waiting() {
        let start = Instant::now();
        let mut lane = open(start, 1, Some(1_000), None, 1);
        assert!(lane.take_due(start).is_some());
        assert!(lane.take_due(start + MS * 500).is_none(), "no room");
        // Awake again: from now on each call is answered at once.
        let awake = start + MS * 1_000;
        lane.on_answer(0, Ok(1), awake);
        while let Some(departure) = lane.take_due(awake) {
            lane.on_answer(departure.call, Ok(1), awake);
        }
        assert!(lane.is_done(awake));
        let tally = lane.into_tally(awake);
        assert_eq!((tally.sent, tally.answered), (1_000, 1_000));
        // All but those due in the last two milliseconds left late; none of them looks fast.
        assert_eq!(tally.late, 997);
        let median = tally.latency.value_at_quantile(0.5);
        assert!((490_000_000..=510_000_000).contains(&median), "{median}");
        let from_sending = tally.service.value_at_quantile(0.5);
        assert!(
            from_sending < 1_000_000,
            "what a careless bench would have shown: {from_sending}"
        );
    }

    #[test]
    fn the_schedule_does_not_slip_after_a_late_send() {
        let start = Instant::now();
        let mut lane = open(start, 10, Some(4), None, 100);
        assert!(lane.take_due(start).is_some());
        // Nobody looked for 25 ms: two calls are overdue and leave together, the fourth is due at 30 ms still.
        let late = start + MS * 25;
        assert!(lane.take_due(late).is_some());
        assert!(lane.take_due(late).is_some());
        assert!(lane.take_due(late).is_none());
        assert_eq!(lane.next_wake(late), Some(start + MS * 30));
        let tally = lane.into_tally(late);
        assert_eq!(tally.late, 2);
        assert_eq!(tally.late_max, MS * 15);
        assert_eq!(tally.unsent, 0, "the fourth was not due yet");
    }

    #[test]
    fn patience_ends_and_what_is_missing_is_counted() {
        let start = Instant::now();
        let mut lane = open(start, 10, None, Some(MS * 40), 2);
        assert!(lane.take_due(start + MS * 10).is_some());
        assert!(lane.take_due(start + MS * 10).is_some());
        assert!(!lane.is_done(start + MS * 50), "two more are due, and no room");
        let gone = start + MS * 40 + Duration::from_secs(5);
        assert!(lane.is_done(gone));
        let tally = lane.into_tally(gone);
        assert_eq!(
            (tally.sent, tally.answered, tally.unanswered, tally.unsent),
            (2, 0, 2, 2)
        );
    }

    #[test]
    fn an_answer_counts_once() {
        let start = Instant::now();
        let mut lane = Lane::new(start, Pace::Closed, Some(1), None, 1, MS);
        lane.take_due(start);
        lane.on_answer(0, Err("overloaded".into()), start);
        lane.on_answer(0, Ok(1), start);
        lane.on_answer(9, Ok(1), start);
        let tally = lane.into_tally(start);
        assert_eq!((tally.answered, tally.errors["overloaded"]), (0, 1));
    }

    #[test]
    fn a_broken_connection_fails_what_was_under_way() {
        let start = Instant::now();
        let mut lane = Lane::new(start, Pace::Closed, Some(10), None, 3, MS);
        while lane.take_due(start).is_some() {}
        lane.break_off("unreachable");
        assert!(lane.is_done(start));
        let tally = lane.into_tally(start);
        assert_eq!(
            (tally.sent, tally.errors["unreachable"], tally.unanswered),
            (3, 3, 0)
        );
    }

    #[test]
    fn stopping_early_is_not_unsent() {
        let start = Instant::now();
        let mut lane = open(start, 1, Some(100), None, 100);
        lane.take_due(start);
        lane.stop();
        lane.on_answer(0, Ok(1), start + MS);
        assert!(lane.is_done(start + MS * 50));
        assert_eq!(lane.into_tally(start + MS * 50).unsent, 0);
    }
}
