//! The authority: which sessions have lapsed, as the leader judges it?
//!
//! Every server runs one; it holds office only while its server leads. Taking office it starts a countdown
//! for every session in the directory, a full ttl and one election timeout long; leaving it, it forgets
//! everything. What it finds lapsed it proposes to expire, and a session under such a proposal gets no other
//! answer until the log has decided.
//!
//! Without a quorum a leader can record no heartbeat, so it holds no silence against anyone: it judges nothing,
//! and when it hears its quorum again it begins anew, as a new leader would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_core::directory::{Command, Directory, ExpiryFence, Request, RevisionChanges, SessionChange};
use rollcall_core::ids::{NodeKey, RequestId, Revision, ServerId, SessionId, Term};
use rollcall_core::session::{Countdown, Pace, Spread};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::raft::{
    Consensus, LeaderDesk, Leadership, NotLeader, ProposeError, RenewalVerdict, SessionDeadline,
};

/// How often lapses are looked for.
const TICK: Duration = Duration::from_millis(50);
/// A tick later than this tolerance is put down to our own pause, and every deadline moves by it.
const PACE: Pace = Pace {
    tick_interval: TICK,
    lateness_tolerance: TICK,
};
/// A pause from here on is worth a line in the log.
const PAUSE_WORTH_TELLING: Duration = Duration::from_millis(250);
/// Most sessions in one expiry proposal: bounds the entry and the revision that watchers get.
const EXPIRIES_PER_PROPOSAL: usize = 500;
/// Most expiry proposals in flight, so that a mass lapse does not crowd out the clients' writes.
const PROPOSALS_MAX: usize = 4;
/// How long one attempt at an expiry proposal waits for its outcome.
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
    /// What a new leader adds to every ttl.
    fn grant(self) -> Spread {
        Spread {
            extra: self.election_timeout,
            over: self.spread,
        }
    }
}

/// Handle on this server's authority. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    consensus: Consensus,
    settings: AuthoritySettings,
    office: Arc<Mutex<Option<Office>>>,
}

/// What a leader knows, for one term.
struct Office {
    term: Term,
    /// Changes up to here are taken in.
    seen: Revision,
    sessions: Countdown<SessionId>,
    overrides: Countdown<NodeKey>,
    /// Lapsed, proposed to be expired, not decided yet.
    expiring: BTreeSet<SessionId>,
    /// Who last reported a session.
    holders: BTreeMap<SessionId, ServerId>,
    proposals: usize,
    /// Since when no heartbeat could be recorded, for lack of a quorum.
    deaf_since: Option<Instant>,
}

/// What one tick found.
struct Lapses {
    term: Term,
    sessions: Vec<ExpiryFence>,
    overrides: Vec<(NodeKey, Revision)>,
}

impl Office {
    fn take(term: Term, directory: &Directory, settings: AuthoritySettings, now: Instant) -> Self {
        let mut office = Self {
            term,
            seen: directory.revision(),
            sessions: Countdown::new(now, PACE),
            overrides: Countdown::new(now, PACE),
            expiring: BTreeSet::new(),
            holders: BTreeMap::new(),
            proposals: 0,
            deaf_since: None,
        };
        let spread = settings.grant();
        for session in directory.sessions() {
            office
                .sessions
                .start_spread(session.id, ttl(session.ttl_ms), spread, now);
        }
        for (key, over) in directory.timed_overrides() {
            office
                .overrides
                .start(key, Duration::from_millis(over.ttl_ms), now);
        }
        office
    }

    /// The quorum is heard again: whoever counts down gets what a new leader would grant.
    fn grant_anew(&mut self, directory: &Directory, settings: AuthoritySettings, now: Instant) {
        let spread = settings.grant();
        for session in directory.sessions() {
            if self.sessions.contains(&session.id) {
                self.sessions
                    .start_spread(session.id, ttl(session.ttl_ms), spread, now);
            }
        }
    }

    /// Takes in what was committed since the last look.
    fn catch_up(&mut self, directory: &Directory, now: Instant) {
        if directory.revision() == self.seen {
            return;
        }
        match directory.changes().range(self.seen, usize::MAX) {
            Ok(changes) => changes.iter().for_each(|changes| self.learn(changes, now)),
            Err(_) => self.compare(directory, now),
        }
        self.seen = directory.revision();
    }

    fn learn(&mut self, changes: &RevisionChanges, now: Instant) {
        for change in &changes.sessions {
            match *change {
                SessionChange::Opened { session, ttl_ms } => {
                    self.sessions.start(session, ttl(ttl_ms), now);
                }
                SessionChange::Ended { session, .. } => self.forget(session),
            }
        }
        for (key, over) in &changes.overrides {
            match over {
                Some(over) => self
                    .overrides
                    .start(key.clone(), Duration::from_millis(over.ttl_ms), now),
                None => self.overrides.forget(key),
            }
        }
    }

    /// The change log no longer reaches back to what was seen: compare with the state instead. What is gone
    /// from it stays counted until it lapses, and is forgotten then.
    fn compare(&mut self, directory: &Directory, now: Instant) {
        for session in directory.sessions() {
            if !self.sessions.contains(&session.id) && !self.expiring.contains(&session.id) {
                self.sessions.start(session.id, ttl(session.ttl_ms), now);
            }
        }
        for (key, over) in directory.timed_overrides() {
            if !self.overrides.contains(&key) {
                self.overrides.start(key, Duration::from_millis(over.ttl_ms), now);
            }
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.sessions.forget(&session);
        self.holders.remove(&session);
    }

    fn renew(
        &mut self,
        from: ServerId,
        sessions: &[SessionId],
        directory: &Directory,
        now: Instant,
    ) -> RenewalVerdict {
        let mut verdict = RenewalVerdict::default();
        for &session in sessions {
            if self.expiring.contains(&session) {
                verdict.undecided.push(session);
            } else if let Some(found) = directory.session(session) {
                if self.sessions.renew(&session, now).is_err() {
                    self.sessions.start(session, ttl(found.ttl_ms), now);
                }
                self.holders.insert(session, from);
            } else {
                self.forget(session);
                verdict.not_found.push(session);
            }
        }
        verdict
    }

    /// The sessions and overrides whose time is up. From here on the sessions are undecided.
    fn take_lapses(&mut self, directory: &Directory, now: Instant) -> Lapses {
        let mut lapses = Lapses {
            term: self.term,
            sessions: Vec::new(),
            overrides: Vec::new(),
        };
        if self.proposals >= PROPOSALS_MAX {
            return lapses;
        }
        for id in self.sessions.take_lapsed(now, EXPIRIES_PER_PROPOSAL) {
            self.holders.remove(&id);
            if let Some(session) = directory.session(id) {
                lapses.sessions.push(ExpiryFence {
                    session: id,
                    last_renewal: session.last_renewal,
                });
                self.expiring.insert(id);
            }
        }
        for key in self.overrides.take_lapsed(now, EXPIRIES_PER_PROPOSAL) {
            let over = directory
                .service(&key.service)
                .and_then(|service| service.overrides.get(&key.node));
            if let Some(over) = over {
                lapses.overrides.push((key, over.set_at));
            }
        }
        lapses
    }

    /// These lapses are not proposed: the quorum was not heard when they were found, so nobody could be.
    fn withdraw(&mut self, fences: &[ExpiryFence], directory: &Directory, now: Instant) {
        self.settle(fences, directory, now);
        self.deaf_since.get_or_insert(now);
    }

    /// The log has decided: these sessions are either gone, or had moved and count down anew.
    fn settle(&mut self, fences: &[ExpiryFence], directory: &Directory, now: Instant) {
        for fence in fences {
            self.expiring.remove(&fence.session);
            if let Some(session) = directory.session(fence.session) {
                self.sessions.start(session.id, ttl(session.ttl_ms), now);
            }
        }
    }
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
        self.office
            .lock()
            .as_ref()
            .map_or((0, 0), |office| (office.sessions.len(), office.expiring.len()))
    }

    async fn judge(self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leadership = self.consensus.leadership();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let now = Instant::now();
            let leading = leading_term(*leadership.borrow_and_update());
            if let Some(lapses) = self.tick(leading, now) {
                self.propose(lapses);
            }
        }
    }

    /// One look at the clock: takes or leaves office, takes in changes, finds lapses.
    fn tick(&self, leading: Option<Term>, now: Instant) -> Option<Lapses> {
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
        if held.as_ref().is_none_or(|office| office.term != term) {
            let office = Office::take(term, &directory, self.settings, now);
            tracing::info!(
                term = term.0,
                sessions = office.sessions.len(),
                "took office: every session has a full ttl"
            );
            *held = Some(office);
        }
        let office = held.as_mut()?;
        if !self.consensus.hears_quorum() {
            office.deaf_since.get_or_insert(now);
            return None;
        }
        let tick = office.sessions.tick(now);
        office.overrides.tick(now);
        if let Some(since) = office.deaf_since.take() {
            office.grant_anew(&directory, self.settings, now);
            let deaf_ms = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                deaf_ms,
                "this leader had lost its quorum and could hear nobody; every session has a full ttl again"
            );
        } else if tick.shifted >= PAUSE_WORTH_TELLING {
            let late_ms = u64::try_from(tick.lateness.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                late_ms,
                "this server slept; every session's deadline moves by as much"
            );
        }
        office.catch_up(&directory, now);
        let lapses = office.take_lapses(&directory, now);
        let found = usize::from(!lapses.sessions.is_empty()) + usize::from(!lapses.overrides.is_empty());
        office.proposals += found;
        (found > 0).then_some(lapses)
    }

    fn propose(&self, lapses: Lapses) {
        let Lapses {
            term,
            sessions,
            overrides,
        } = lapses;
        if !overrides.is_empty() {
            let authority = self.clone();
            let command = Command::ExpireOverrides { term, overrides };
            tokio::spawn(async move {
                authority.propose_until_decided(term, command).await;
                authority.with_office(term, |_, _| {});
            });
        }
        if !sessions.is_empty() {
            let authority = self.clone();
            let command = Command::ExpireSessions {
                term,
                sessions: sessions.clone(),
            };
            tokio::spawn(async move {
                if !authority.is_heard(term).await {
                    authority.with_office(term, |office, directory| {
                        office.withdraw(&sessions, directory, Instant::now())
                    });
                    return;
                }
                authority.propose_until_decided(term, command).await;
                authority.with_office(term, |office, directory| {
                    office.settle(&sessions, directory, Instant::now())
                });
            });
        }
    }

    /// Whether a quorum still follows this term's leader, asked just now.
    async fn is_heard(&self, term: Term) -> bool {
        let deadline = tokio::time::Instant::now() + CONFIRM_DEADLINE;
        self.consensus.confirm_leadership(deadline).await == Ok(term)
    }

    /// Proposes until the log has decided or the term is over. Repeats are harmless: what moved is void, and
    /// what is gone is gone.
    async fn propose_until_decided(&self, term: Term, command: Command) {
        while self
            .office
            .lock()
            .as_ref()
            .is_some_and(|office| office.term == term)
        {
            let request = Request {
                id: RequestId(rand::random()),
                command: command.clone(),
            };
            let deadline = tokio::time::Instant::now() + PROPOSAL_DEADLINE;
            match self.consensus.propose_in_term(term, request, deadline).await {
                Ok(outcome) => {
                    tracing::debug!(
                        revision = outcome.revision.0,
                        voided = outcome.voided.len(),
                        "expiry decided"
                    );
                    return;
                }
                Err(ProposeError::Refused(refusal)) => {
                    tracing::warn!(%refusal, "an expiry was refused");
                    return;
                }
                Err(undecided) => {
                    tracing::debug!(reason = %undecided, "expiry not decided yet");
                    tokio::time::sleep(PROPOSAL_PAUSE).await;
                }
            }
        }
    }

    /// Ends one proposal of this term, if the term is still ours.
    fn with_office(&self, term: Term, settle: impl FnOnce(&mut Office, &Directory)) {
        let mut held = self.office.lock();
        if let Some(office) = held.as_mut().filter(|office| office.term == term) {
            office.proposals -= 1;
            settle(office, &self.consensus.directory().read());
        }
    }
}

fn ttl(ttl_ms: u32) -> Duration {
    Duration::from_millis(ttl_ms.into())
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
        let term = self.consensus.confirm_leadership(deadline).await?;
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

    fn deadlines(&self, sessions: &[SessionId]) -> Vec<SessionDeadline> {
        let now = Instant::now();
        let held = self.office.lock();
        let Some(office) = held.as_ref() else {
            return Vec::new();
        };
        let deadline = |session: &SessionId| {
            office
                .sessions
                .remaining(session, now)
                .map(|lapses_in| SessionDeadline {
                    session: *session,
                    lapses_in,
                    holder: office.holders.get(session).copied(),
                })
        };
        sessions.iter().filter_map(deadline).collect()
    }
}

#[cfg(test)]
mod tests {
    use rollcall_core::directory::Limits;
    use rollcall_core::ids::{LogIndex, LogPosition};

    use super::*;

    const HERE: ServerId = ServerId(1);
    const TTL: Duration = Duration::from_secs(10);
    const SETTINGS: AuthoritySettings = AuthoritySettings {
        election_timeout: Duration::from_secs(1),
        spread: Duration::ZERO,
    };

    /// A directory and the log that made it.
    struct Log {
        directory: Directory,
        at: LogPosition,
    }

    impl Log {
        fn with_sessions(count: u64) -> Self {
            let mut log = Self {
                directory: Directory::new(Limits::default()),
                at: LogPosition::default(),
            };
            (0..count).for_each(|_| log.open());
            log
        }

        fn open(&mut self) {
            self.apply(Command::OpenSession {
                secret_digest: [0; 32],
                ttl_ms: 10_000,
                client: "test".into(),
            });
        }

        fn apply(&mut self, command: Command) {
            self.at = LogPosition {
                term: Term(1),
                index: LogIndex(self.at.index.0 + 1),
            };
            let request = Request {
                id: RequestId(self.at.index.0.into()),
                command,
            };
            self.directory.apply(self.at, &request).result.expect("applied");
        }

        fn office(&self, now: Instant) -> Office {
            Office::take(Term(1), &self.directory, SETTINGS, now)
        }
    }

    /// Ticks in time up to `until`, collecting what lapses.
    fn run(office: &mut Office, directory: &Directory, from: Instant, until: Duration) -> Vec<ExpiryFence> {
        let mut lapsed = Vec::new();
        let mut now = from;
        while now < from + until {
            now += TICK;
            office.sessions.tick(now);
            office.catch_up(directory, now);
            lapsed.extend(office.take_lapses(directory, now).sessions);
        }
        lapsed
    }

    #[test]
    fn a_new_leader_grants_a_full_ttl_and_one_election_timeout() {
        let log = Log::with_sessions(1);
        let start = Instant::now();
        let mut office = log.office(start);
        assert_eq!(
            run(
                &mut office,
                &log.directory,
                start,
                TTL + SETTINGS.election_timeout - TICK
            ),
            []
        );
        let later = start + TTL + SETTINGS.election_timeout - TICK;
        assert_eq!(run(&mut office, &log.directory, later, TICK * 2).len(), 1);
    }

    #[test]
    fn a_pause_of_this_server_moves_every_deadline() {
        let log = Log::with_sessions(3);
        let start = Instant::now();
        let mut office = log.office(start);
        let resumed = start + TTL * 3;
        office.sessions.tick(resumed);
        assert_eq!(office.take_lapses(&log.directory, resumed).sessions, []);
        assert_eq!(run(&mut office, &log.directory, resumed, TTL).len(), 0);
        assert_eq!(
            run(
                &mut office,
                &log.directory,
                resumed + TTL,
                SETTINGS.election_timeout * 2
            )
            .len(),
            3
        );
    }

    #[test]
    fn a_leader_that_lost_its_quorum_begins_anew() {
        let log = Log::with_sessions(3);
        let start = Instant::now();
        let mut office = log.office(start);
        let almost = TTL + SETTINGS.election_timeout - TICK;
        assert_eq!(run(&mut office, &log.directory, start, almost), []);
        let again = start + almost + TTL;
        office.sessions.tick(again);
        office.grant_anew(&log.directory, SETTINGS, again);
        assert_eq!(run(&mut office, &log.directory, again, almost), []);
        assert_eq!(
            run(&mut office, &log.directory, again + almost, TICK * 2).len(),
            3
        );
    }

    #[test]
    fn lapses_found_without_a_quorum_are_withdrawn() {
        let log = Log::with_sessions(1);
        let start = Instant::now();
        let mut office = log.office(start);
        let fences = run(&mut office, &log.directory, start, TTL * 2);
        assert_eq!(fences.len(), 1);
        let now = start + TTL * 2;
        office.withdraw(&fences, &log.directory, now);
        assert_eq!(office.deaf_since, Some(now));
        let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
        assert_eq!(verdict, RenewalVerdict::default());
    }

    #[test]
    fn a_renewal_while_the_expiry_is_under_way_waits_for_the_log() {
        let mut log = Log::with_sessions(1);
        let start = Instant::now();
        let mut office = log.office(start);
        let fences = run(&mut office, &log.directory, start, TTL * 2);
        let now = start + TTL * 2;
        let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
        assert_eq!(verdict.undecided, [SessionId(1)]);
        log.apply(Command::ExpireSessions {
            term: Term(1),
            sessions: fences.clone(),
        });
        office.settle(&fences, &log.directory, now);
        let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
        assert_eq!(verdict.not_found, [SessionId(1)]);
    }

    #[test]
    fn a_void_expiry_counts_down_anew() {
        let log = Log::with_sessions(1);
        let start = Instant::now();
        let mut office = log.office(start);
        let fences = run(&mut office, &log.directory, start, TTL * 2);
        let now = start + TTL * 2;
        office.settle(&fences, &log.directory, now);
        assert_eq!(
            office.renew(HERE, &[SessionId(1)], &log.directory, now),
            RenewalVerdict::default()
        );
        assert_eq!(run(&mut office, &log.directory, now, TTL - TICK), []);
    }

    #[test]
    fn a_closed_session_is_not_renewed_even_if_nobody_told_the_clock() {
        let mut log = Log::with_sessions(2);
        let now = Instant::now();
        let mut office = log.office(now);
        log.apply(Command::CloseSession {
            session: SessionId(1),
        });
        let verdict = office.renew(HERE, &[SessionId(1), SessionId(2)], &log.directory, now);
        assert_eq!(verdict.not_found, [SessionId(1)]);
        assert!(office.sessions.contains(&SessionId(2)));
    }

    #[test]
    fn sessions_opened_after_the_office_was_taken_count_down_too() {
        let mut log = Log::with_sessions(0);
        let now = Instant::now();
        let mut office = log.office(now);
        log.open();
        office.catch_up(&log.directory, now);
        assert_eq!(office.sessions.remaining(&SessionId(1), now), Some(TTL));
        log.apply(Command::CloseSession {
            session: SessionId(1),
        });
        office.catch_up(&log.directory, now);
        assert!(office.sessions.is_empty());
    }

    #[test]
    fn a_mass_lapse_is_proposed_in_bounded_pieces() {
        let log = Log::with_sessions(EXPIRIES_PER_PROPOSAL as u64 * 2 + 1);
        let start = Instant::now();
        let mut office = log.office(start);
        let later = start + TTL * 2;
        let mut now = start;
        while now < later {
            now += TICK;
            office.sessions.tick(now);
        }
        let mut pieces = Vec::new();
        for _ in 0..3 {
            pieces.push(office.take_lapses(&log.directory, later).sessions.len());
        }
        assert_eq!(pieces, [EXPIRIES_PER_PROPOSAL, EXPIRIES_PER_PROPOSAL, 1]);
        office.proposals = PROPOSALS_MAX;
        assert_eq!(office.take_lapses(&log.directory, later).sessions, []);
    }
}
