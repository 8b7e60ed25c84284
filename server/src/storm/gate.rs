//! Full lists leave behind everything else: a few at a time, and no faster than is good for heartbeats; while the
//! switch is on, within the egress budget.
//!
//! A list costs this server thousands of times what a heartbeat does. Thousands of lists that may all be encoded now
//! would stand in the scheduler's queue before the next heartbeat; here they stand in a queue of their own. And those
//! that left faster than the line takes them would lie encoded in memory, fresh memory each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::mutants::{Mutant, planted};
use rollcall_core::storm::Budget;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Lists that may be encoded at a time.
const LISTS_AT_ONCE: usize = 4;
/// What leaves within so much of the budget's time may leave at once: timers are no finer.
const TOLERANCE: Duration = Duration::from_millis(5);
/// Longest time for which lists wait for answers to calls, which leave without asking: a few of them pass in it,
/// however many calls there are.
const CALLS_MAX: Duration = Duration::from_millis(50);

/// Where full lists, and watch streams that begin, wait for their turn.
pub(super) struct Gate {
    turns: Arc<Semaphore>,
    /// Bytes of lists while the switch is off.
    unrationed: Mutex<Budget>,
    /// And while it is on.
    rationed: Mutex<Budget>,
    /// Streams.
    opens: Mutex<Budget>,
    /// Where they wait.
    line: Semaphore,
    /// The switch is on.
    engaged: AtomicBool,
    /// It was, until a moment ago: who was told to wait is still served within the budget.
    after: Mutex<Option<Instant>>,
    /// Bytes of lists that wait here.
    waiting: AtomicU64,
}

/// What may leave, or begin, in a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Bytes of full lists while the switch is off; not below the next.
    pub(super) list_bytes: u64,
    /// And while it is on.
    pub(super) rationed_list_bytes: u64,
    /// Streams.
    pub(super) opens: u32,
}

/// Leave to encode and send a list; others wait while it is held.
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Counts what waits, also if the wait is given up.
struct Waiting<'a> {
    all: &'a AtomicU64,
    bytes: u64,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicU64, bytes: u64) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { all, bytes }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a list takes of a budget, and gives back if it is given up before its moment: it would cost everybody behind it.
struct Taken<'a> {
    budget: &'a Mutex<Budget>,
    bytes: u64,
    at: Instant,
    leaves: bool,
}

impl<'a> Taken<'a> {
    fn new(budget: &'a Mutex<Budget>, bytes: u64, now: Instant) -> Self {
        let at = budget.lock().take(bytes, now.into_std()).into();
        Self {
            budget,
            bytes,
            at,
            leaves: false,
        }
    }

    fn leaves(mut self) {
        self.leaves = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.leaves {
            self.budget.lock().give_back(self.bytes);
        }
    }
}

impl Gate {
    pub(super) fn new(rates: Rates) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(LISTS_AT_ONCE)),
            unrationed: Mutex::new(Budget::new(
                rates.list_bytes.max(rates.rationed_list_bytes),
                TOLERANCE,
            )),
            rationed: Mutex::new(Budget::new(rates.rationed_list_bytes, TOLERANCE)),
            opens: Mutex::new(Budget::new(rates.opens.into(), TOLERANCE)),
            line: Semaphore::new(1),
            engaged: AtomicBool::new(false),
            after: Mutex::new(None),
            waiting: AtomicU64::new(0),
        }
    }

    /// The switch engaged (`round`: in how much time it serves everyone) or let go.
    pub(super) fn set(&self, round: Option<Duration>, before: Option<Duration>) {
        self.engaged.store(round.is_some(), Ordering::Release);
        *self.after.lock() = match (round, before) {
            (None, Some(before)) => Some(Instant::now() + before),
            (None, None) => return,
            (Some(_), _) => None,
        };
    }

    /// Waits for the turn of a message with so many bytes of full lists.
    pub(super) async fn list(&self, bytes: usize) -> Turn {
        let bytes = bytes as u64;
        let waiting = Waiting::new(&self.waiting, bytes);
        let permit = self.turns.clone().acquire_owned().await.ok();
        let now = Instant::now();
        let taken = Taken::new(self.budget(), bytes, now);
        if taken.at > now && !planted(Mutant::StormUnrationed) {
            tokio::time::sleep_until(taken.at).await;
        }
        taken.leaves();
        drop(waiting);
        Turn { _permit: permit }
    }

    /// A list has left as the answer to a call, whose caller was given a turn.
    pub(super) fn note_call(&self, bytes: usize) {
        if self.rations() {
            let now = Instant::now().into_std();
            self.rationed.lock().note(bytes as u64, CALLS_MAX, now);
        }
    }

    /// Waits for a stream's turn to begin.
    pub(super) async fn open(&self) {
        // Whoever is first has taken its turn, and nobody else: those who give up behind it leave nothing behind.
        let _first = self.line.acquire().await;
        let now = Instant::now();
        let at = self.opens.lock().take(1, now.into_std()).into();
        if at > now {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Bytes of lists that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn budget(&self) -> &Mutex<Budget> {
        if self.rations() {
            &self.rationed
        } else {
            &self.unrationed
        }
    }

    fn rations(&self) -> bool {
        if self.engaged.load(Ordering::Acquire) {
            return true;
        }
        let mut after = self.after.lock();
        match *after {
            Some(until) if Instant::now() < until => true,
            Some(_) => {
                *after = None;
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Two hundred megabytes of lists a second, two while the switch is on, and a thousand streams.
    fn gate() -> Gate {
        Gate::new(Rates {
            list_bytes: 200_000_000,
            rationed_list_bytes: 2_000_000,
            opens: 1_000,
        })
    }

    /// In how much time so many lists of 20,000 bytes pass: 0.1 ms each, or 10 ms.
    async fn passing(gate: &Gate, lists: usize) -> Duration {
        let began = Instant::now();
        let passes = (0..lists).map(|_| async { drop(gate.list(20_000).await) });
        futures_util::future::join_all(passes).await;
        began.elapsed()
    }

    #[tokio::test]
    async fn lists_keep_to_the_budget_while_the_switch_is_on_and_for_a_round_after_it() {
        let gate = gate();
        // Longer than this takes on a machine that is busy, which may delay some of the lists, too.
        let round = MS * 4_000;
        let mut off = Duration::MAX;
        for _ in 0..3 {
            off = off.min(passing(&gate, 30).await);
        }
        gate.set(Some(round), None);
        // The first leaves at once.
        let on = passing(&gate, 31).await;
        assert!(
            on >= MS * 300 - TOLERANCE * 2 && on > off,
            "{on:?}, and {off:?} before"
        );
        gate.set(None, Some(round));
        let after = passing(&gate, 30).await;
        assert!(after >= MS * 300 - TOLERANCE * 2, "{after:?}");
        assert!(gate.rations());
        tokio::time::sleep(round).await;
        assert!(!gate.rations());
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_waits_no_longer() {
        let gate = gate();
        gate.set(Some(MS * 1_000), None);
        // Ten seconds' worth.
        drop(gate.list(20_000_000).await);
        let given_up = tokio::time::timeout(MS * 10, gate.list(20_000)).await;
        assert!(given_up.is_err());
        assert_eq!(gate.waiting(), 0);
    }

    /// Lists that nobody got leave the budget to those that somebody will.
    #[tokio::test]
    async fn who_gives_up_has_spent_nothing() {
        let gate = gate();
        gate.set(Some(MS * 1_000), None);
        // A second, for which all that follow wait.
        drop(gate.list(2_000_000).await);
        let given_up = (0..100).map(|_| tokio::time::timeout(MS, gate.list(2_000_000)));
        let given_up = futures_util::future::join_all(given_up).await;
        assert!(given_up.iter().all(Result::is_err), "a second's worth each");
        let another = tokio::time::timeout(MS * 20_000, gate.list(1)).await;
        assert!(another.is_ok(), "it waits for lists that nobody got");
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test]
    async fn calls_are_not_kept_waiting_but_lists_wait_for_them_a_while() {
        let gate = gate();
        gate.set(Some(MS * 1_000), None);
        for _ in 0..1_000 {
            // A minute's worth, and more.
            gate.note_call(200_000_000);
        }
        let began = Instant::now();
        let passed = tokio::time::timeout(CALLS_MAX * 100, gate.list(1)).await;
        assert!(
            passed.is_ok() && began.elapsed() > CALLS_MAX / 2,
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn however_many_calls_leave_lists_have_their_turn() {
        let gate = gate();
        gate.set(Some(MS * 1_000), None);
        // Before the list comes, too: it would leave at once.
        gate.note_call(200_000_000);
        let calls = async {
            loop {
                gate.note_call(200_000_000);
                tokio::time::sleep(MS).await;
            }
        };
        let passed = tokio::time::timeout(CALLS_MAX * 100, gate.list(1));
        tokio::select! {
            passed = passed => assert!(passed.is_ok(), "it waits for each call anew"),
            () = calls => {}
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_the_turns_of_streams_that_were_given_up() {
        let gate = gate();
        let open = || tokio::time::timeout(MS, gate.open());
        let given_up = futures_util::future::join_all((0..60_000).map(|_| open())).await;
        assert!(given_up.iter().any(Result::is_err), "a minute's worth");
        let began = Instant::now();
        let another = tokio::time::timeout(MS * 20_000, gate.open()).await;
        assert!(another.is_ok(), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn streams_begin_at_their_rate() {
        let gate = gate();
        let began = Instant::now();
        futures_util::future::join_all((0..301).map(|_| gate.open())).await;
        assert!(
            began.elapsed() >= MS * 300 - TOLERANCE * 2,
            "{:?}",
            began.elapsed()
        );
    }
}
