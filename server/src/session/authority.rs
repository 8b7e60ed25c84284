//! The authority: which sessions have lapsed, as the leader judges it?
//!
//! Every server runs one; it holds office only while its server leads. Taking office it starts a countdown
//! for every session in the directory, a full ttl and one election timeout long; leaving it, it forgets
//! everything. What it finds lapsed it proposes to expire, and a session under such a proposal gets no other
//! answer until the log has decided.
//!
//! Without a quorum a leader can record no heartbeat, so it holds no silence against anyone: it judges nothing,
//! and when it hears its quorum again deadlines move by the time that it could hear nobody, or, if that was an election
//! timeout and more, it begins anew, as a new leader would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_core::directory::{Command, Directory, Request};
use rollcall_core::ids::{RequestId, ServerId, SessionId, Term};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_core::session::Spread;
use tokio_util::sync::CancellationToken;

use super::office::{Office, REST_MAX, TICK};
use super::word::Word;
use crate::pulse;
use crate::raft::{
    Consensus, LeaderDesk, Leadership, NotLeader, ProposeError, RenewalVerdict, SessionDeadline,
};

/// A pause from here on is worth a line in the log.
const PAUSE_WORTH_TELLING: Duration = Duration::from_millis(250);
/// How long one attempt at a proposal waits for its outcome.
const PROPOSAL_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between attempts.
const PROPOSAL_PAUSE: Duration = Duration::from_millis(250);
/// How long a leader may take to find its quorum for a report.
const CONFIRM_DEADLINE: Duration = Duration::from_millis(900);

/// What the authority is told by the configuration.
#[derive(Clone, Copy, Debug)]
pub struct AuthoritySettings {
    /// What a new leader adds to every ttl: a predecessor's clients may have been answered this much later.
    pub election_timeout: Duration,
    /// Over how long a new leader spreads the due times, so that sessions do not stay in lockstep.
    pub spread: Duration,
}

impl AuthoritySettings {
    /// How long a quorum's word counts here ([`Consensus::hears_quorum`]).
    fn lease(self) -> Duration {
        self.election_timeout / 2
    }

    /// What a new leader adds to every ttl.
    fn grant(self) -> Spread {
        Spread {
            extra: self.election_timeout,
            over: self.spread,
        }
    }
}

/// In which term words were found, and behind how many silences of the quorum.
#[derive(Clone, Copy, Debug)]
struct Found {
    term: Term,
    silences: u64,
}

/// When an authority looks at the clock next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Without office: not before it may take it.
    Never,
    /// Nothing is there to be judged: when something has changed.
    OnChange,
    /// At every tick.
    EveryTick,
}

/// Handle on this server's authority. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    consensus: Consensus,
    settings: AuthoritySettings,
    office: Arc<Mutex<Option<Office>>>,
}

impl Authority {
    /// Starts judging; the task ends with `shutdown`.
    #[must_use]
    pub fn start(consensus: Consensus, settings: AuthoritySettings, shutdown: CancellationToken) -> Self {
        let authority = Self {
            consensus,
            settings,
            office: Arc::default(),
        };
        let judge = authority.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(judge.judge()).await });
        authority
    }

    /// Sessions counted down and sessions whose expiry is not decided yet; zeros without office.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.office.lock().as_ref().map_or((0, 0), Office::counts)
    }

    async fn judge(self) {
        let mut ticks = pulse::ticks(TICK);
        let mut leadership = self.consensus.leadership();
        let mut applied = self.consensus.applied_head();
        // Whoever leads already is looked at like one that begins to.
        leadership.mark_changed();
        loop {
            let look = self.next_look();
            let ended = tokio::select! {
                _ = ticks.tick(), if look == Look::EveryTick => false,
                changed = applied.changed(), if look == Look::OnChange => changed.is_err(),
                () = pulse::pause(REST_MAX), if look == Look::OnChange => false,
                changed = leadership.changed() => changed.is_err(),
            };
            if ended {
                // Raft has ended, and nobody looks at the clock any more.
                *self.office.lock() = None;
                return;
            }
            let now = Instant::now();
            // Before the look: what is applied behind it ends a rest that begins with it.
            applied.mark_unchanged();
            let leading = leading_term(*leadership.borrow_and_update());
            if let Some((found, words)) = self.tick(leading, now) {
                tokio::spawn(self.clone().say_all(found, words));
            }
        }
    }

    fn next_look(&self) -> Look {
        match self.office.lock().as_ref() {
            None => Look::Never,
            // Who hears nobody looks out for the moment at which it hears again.
            Some(office) if office.is_resting() && office.deaf_since.is_none() => Look::OnChange,
            Some(_) => Look::EveryTick,
        }
    }

    /// One look at the clock: takes or leaves office, takes in changes, finds what is to be said.
    fn tick(&self, leading: Option<Term>, now: Instant) -> Option<(Found, Vec<Word>)> {
        let mut held = self.office.lock();
        let Some(term) = leading else {
            if let Some(left) = held.take() {
                tracing::info!(
                    term = left.term.0,
                    "left office: another server judges the sessions"
                );
            }
            return None;
        };
        let directory = self.consensus.directory().read();
        let grant = self.settings.grant();
        if held.as_ref().is_none_or(|office| office.term != term) {
            let office = Office::take(term, &directory, grant, now);
            tracing::info!(
                term = term.0,
                sessions = office.counts().0,
                "took office: every session has a full ttl"
            );
            *held = Some(office);
        }
        let office = held.as_mut()?;
        if !self.consensus.hears_quorum() && !planted(Mutant::DeposedExpiry) {
            office.fall_silent(now);
            return None;
        }
        if let Some(since) = office.deaf_since {
            let bounds = (self.settings.lease(), self.settings.election_timeout);
            let deaf_ms = milliseconds(now - since);
            if office.hear_again(bounds, &directory, grant, now) {
                tracing::warn!(
                    deaf_ms,
                    "this leader had lost its quorum and could hear nobody; every session has a full ttl again"
                );
            } else {
                tracing::warn!(
                    deaf_ms,
                    "this leader had lost its quorum for a moment; every session's deadline moves by more than that"
                );
            }
        } else {
            let shifted = office.tick(now);
            if shifted >= PAUSE_WORTH_TELLING {
                tracing::warn!(
                    late_ms = milliseconds(shifted),
                    "this server slept; every session's deadline moves by as much"
                );
            }
        }
        office.catch_up(&directory, now);
        let words = office.take_words(&directory, now);
        office.rest_if_idle(&directory);
        let found = Found {
            term,
            silences: office.silences,
        };
        (!words.is_empty()).then_some((found, words))
    }

    /// Says one tick's words, in their order: a guard that judges the first lapses is told how many follow.
    async fn say_all(self, found: Found, words: Vec<Word>) {
        for word in words {
            self.say(found, word).await;
        }
    }

    /// Says something through the log, and takes note of what became of it.
    async fn say(&self, found: Found, word: Word) {
        let term = found.term;
        if word.strikes_off() && !planted(Mutant::DeposedExpiry) && !self.is_heard(found).await {
            self.with_office(term, |office, directory| {
                office.withdraw(&word, found.silences, directory, Instant::now())
            });
            return;
        }
        self.propose_until_decided(term, word.command(term)).await;
        self.with_office(term, |office, directory| {
            office.catch_up(directory, Instant::now());
            office.settle(&word, directory, Instant::now());
        });
    }

    /// Whether a quorum still follows this term's leader, asked just now, and was not silent since the word was found: who
    /// could not be heard meanwhile is not struck off when the answer comes at last.
    async fn is_heard(&self, found: Found) -> bool {
        let deadline = tokio::time::Instant::now() + CONFIRM_DEADLINE;
        let confirmed = self.consensus.confirm_leadership(deadline).await;
        let stands = |office: &Office| office.term == found.term && office.silences == found.silences;
        confirmed == Ok(found.term) && self.office.lock().as_ref().is_some_and(stands)
    }

    /// Proposes until the log has decided or the term is over. Repeats are harmless: what moved is void, and
    /// what is gone is gone.
    async fn propose_until_decided(&self, term: Term, command: Command) {
        while self
            .office
            .lock()
            .as_ref()
            .is_some_and(|office| office.term == term)
            || planted(Mutant::DeposedExpiry)
        {
            let request = Request {
                id: RequestId(rand::random()),
                command: command.clone(),
            };
            let deadline = tokio::time::Instant::now() + PROPOSAL_DEADLINE;
            let proposed = match planted(Mutant::DeposedExpiry) {
                true => self.consensus.propose(request, deadline).await,
                false => self.consensus.propose_in_term(term, request, deadline).await,
            };
            match proposed {
                Ok(outcome) => {
                    tracing::debug!(
                        revision = outcome.revision.0,
                        voided = outcome.voided.len(),
                        "said through the log"
                    );
                    return;
                }
                Err(ProposeError::Refused(refusal)) => {
                    tracing::warn!(%refusal, "the leader's word was refused");
                    return;
                }
                Err(undecided) => {
                    tracing::debug!(reason = %undecided, "the leader's word is not decided yet");
                    tokio::time::sleep(PROPOSAL_PAUSE).await;
                }
            }
        }
    }

    /// Ends one proposal of this term, if the term is still ours.
    fn with_office(&self, term: Term, settle: impl FnOnce(&mut Office, &Directory)) {
        let mut held = self.office.lock();
        if let Some(office) = held.as_mut().filter(|office| office.term == term) {
            settle(office, &self.consensus.directory().read());
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn leading_term(leadership: Leadership) -> Option<Term> {
    leadership.leading.then_some(leadership.term)
}

#[tonic::async_trait]
impl LeaderDesk for Authority {
    /// The quorum is asked after the report came and before anything is answered: a leader that was deposed
    /// meanwhile gives no verdict, and one that comes later starts its full ttl later than this report.
    async fn record_renewals(
        &self,
        from: ServerId,
        sessions: Vec<SessionId>,
    ) -> Result<RenewalVerdict, NotLeader> {
        let deadline = tokio::time::Instant::now() + CONFIRM_DEADLINE;
        let term = match planted(Mutant::DeposedHeartbeat) {
            true => self.consensus.leadership().borrow().term,
            false => self.consensus.confirm_leadership(deadline).await?,
        };
        let now = Instant::now();
        let mut held = self.office.lock();
        let office = held
            .as_mut()
            .filter(|office| office.term == term)
            .ok_or(NotLeader { leader: None })?;
        let directory = self.consensus.directory().read();
        office.catch_up(&directory, now);
        Ok(office.renew(from, &sessions, &directory, now))
    }

    fn record_alone(&self, from: ServerId, sessions: &[SessionId]) -> Option<RenewalVerdict> {
        let term = leading_term(*self.consensus.leadership().borrow())?;
        let now = Instant::now();
        // Where many want it at once, one report for all of them is less work than a queue for the lock.
        let mut held = self.office.try_lock()?;
        let office = held.as_mut().filter(|office| office.term == term)?;
        let directory = self.consensus.directory().read();
        office.catch_up(&directory, now);
        Some(office.renew(from, sessions, &directory, now))
    }

    fn deadlines(&self, sessions: &[SessionId]) -> Vec<SessionDeadline> {
        let now = Instant::now();
        let held = self.office.lock();
        let Some(office) = held.as_ref() else {
            return Vec::new();
        };
        sessions
            .iter()
            .filter_map(|session| office.deadline(*session, now))
            .collect()
    }
}
