//! Whether this server hears a leader that leads.
//!
//! Raft remembers who was elected last, not whether he still speaks: where nobody can be elected in his place, it names
//! him without end. So his appends are noted here as they come; heartbeats are appends without entries.
//!
//! Not each of them is a sign that somebody leads. A leader that lost its quorum goes on sending entries that nobody
//! commits, and shows itself now and then (`quorum_loss_probe_interval` in the options), as long as it is silent in
//! between. So entries count only if something more is committed by them; and who was silent for about as long and
//! shows itself in the same term, with nothing new committed, is believed again when it has spoken for longer than such a
//! leader does.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// One append, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    pub(super) term: u64,
    /// How many entries are committed by it.
    pub(super) committed: u64,
    /// It brings no entries.
    pub(super) empty: bool,
}

#[derive(Debug)]
pub(super) struct Heard {
    /// How long a leader that lost its quorum is silent before it shows itself, and then shows itself.
    turn: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    term: u64,
    committed: u64,
    spoke_at: Option<Instant>,
    /// Since when it speaks again that may have lost its quorum.
    doubted_since: Option<Instant>,
    believed_at: Option<Instant>,
}

impl Heard {
    pub(super) fn new(turn: Duration) -> Self {
        Self {
            turn,
            known: Mutex::default(),
        }
    }

    /// The leader spoke.
    pub(super) fn note(&self, word: Word, now: Instant) {
        let mut known = self.known.lock();
        let news = word.term > known.term || word.committed > known.committed;
        if !news && !word.empty {
            return;
        }
        known.term = known.term.max(word.term);
        known.committed = known.committed.max(word.committed);
        // A quarter is left to what delays messages.
        let was_silent = |at: Instant| now.duration_since(at) > self.turn * 3 / 4;
        if news {
            known.doubted_since = None;
        } else if known.spoke_at.is_some_and(was_silent) {
            known.doubted_since = Some(now);
        }
        known.spoke_at = Some(now);
        let on_trial = |since: Instant| now.duration_since(since) <= self.turn * 5 / 4;
        if !known.doubted_since.is_some_and(on_trial) {
            known.doubted_since = None;
            known.believed_at = Some(now);
        }
    }

    /// This server leads from now on, or no longer: either way there was an election just now.
    pub(super) fn note_election(&self, now: Instant) {
        let mut known = self.known.lock();
        known.doubted_since = None;
        known.spoke_at = Some(now);
        known.believed_at = Some(now);
    }

    /// Whether somebody led so lately.
    pub(super) fn is_within(&self, bound: Duration, now: Instant) -> bool {
        let believed_at = self.known.lock().believed_at;
        believed_at.is_some_and(|at| now.duration_since(at) < bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_secs(1);
    const BOUND: Duration = Duration::from_millis(1_500);
    const BEAT: Duration = Duration::from_millis(100);

    struct Ear {
        heard: Heard,
        now: Instant,
    }

    impl Ear {
        fn new() -> Self {
            Self {
                heard: Heard::new(TURN),
                now: Instant::now(),
            }
        }

        fn says(&self, term: u64, committed: u64, empty: bool) {
            let word = Word {
                term,
                committed,
                empty,
            };
            self.heard.note(word, self.now);
        }

        /// So many heartbeats, the first at once. Whether a leader was heard at any moment.
        fn beats(&mut self, term: u64, committed: u64, count: u32) -> bool {
            (0..count).fold(false, |ever, _| {
                self.says(term, committed, true);
                let hears = self.hears();
                self.now += BEAT;
                ever || hears
            })
        }

        fn hears(&self) -> bool {
            self.heard.is_within(BOUND, self.now)
        }
    }

    #[test]
    fn who_never_heard_a_leader_hears_none() {
        assert!(!Ear::new().hears());
    }

    #[test]
    fn an_idle_leader_is_heard_until_its_heartbeats_end_for_so_long() {
        let mut ear = Ear::new();
        for _ in 0..1_000 {
            ear.beats(1, 7, 1);
            assert!(ear.hears());
        }
        ear.now += BOUND - 2 * BEAT;
        assert!(ear.hears(), "an election takes as long");
        ear.now += 2 * BEAT;
        assert!(!ear.hears());
        ear.says(2, 7, true);
        assert!(ear.hears(), "elected by a quorum");
    }

    #[test]
    fn a_leader_that_shows_itself_now_and_then_is_not_believed() {
        let mut ear = Ear::new();
        assert!(ear.beats(1, 7, 15));
        ear.now += TURN;
        ear.beats(1, 7, 10);
        for _ in 0..20 {
            ear.now += TURN;
            assert!(!ear.beats(1, 7, 10));
        }
        assert!(ear.beats(1, 7, 20), "it has its quorum again");
    }

    #[test]
    fn who_commits_is_believed_after_any_silence() {
        let mut ear = Ear::new();
        ear.beats(1, 7, 2);
        ear.now += 10 * BOUND;
        ear.says(1, 7, true);
        assert!(!ear.hears());
        ear.says(1, 8, false);
        assert!(ear.hears());
    }

    #[test]
    fn entries_that_nobody_commits_are_no_sign_of_a_leader() {
        let mut ear = Ear::new();
        ear.beats(1, 7, 2);
        for _ in 0..30 {
            ear.says(1, 7, false);
            ear.now += BEAT;
        }
        assert!(!ear.hears());
    }

    #[test]
    fn who_was_elected_or_replaced_just_now_has_heard_of_a_leader() {
        let mut ear = Ear::new();
        ear.now += 10 * BOUND;
        ear.heard.note_election(ear.now);
        assert!(ear.hears());
        ear.now += BOUND;
        assert!(!ear.hears());
    }
}
