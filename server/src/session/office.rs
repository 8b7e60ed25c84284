//! The office: what a judge of silence knows of sessions, overrides and removal guards, for one term.
//!
//! Plain state that is handed the directory and the time. Two shells stand around it: [`super::Authority`], where
//! the leader judges every session of the replicated directory, and [`crate::ap`], where each server judges those
//! sessions of its view that it vouches for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rollcall_core::directory::{
    Command, Directory, ExpiryFence, RevisionChanges, RevivalFence, Service, SessionChange,
};
use rollcall_core::ids::{NodeKey, Revision, ServerId, ServiceKey, SessionId, Term};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_core::session::{Countdown, Pace, Spread};

use crate::raft::{RenewalVerdict, SessionDeadline};

/// How often lapses are looked for.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// A tick later than this tolerance is put down to our own pause, and every deadline moves by it.
const PACE: Pace = Pace {
    tick_interval: TICK,
    lateness_tolerance: TICK,
};
/// Most records in one command: bounds the entry and the revision that watchers get.
const WORDS_MAX: usize = 500;
/// Most commands in flight, so that a mass lapse does not crowd out the clients' writes. A tick takes as many
/// lapsed sessions as fit into them.
const PROPOSALS_MAX: usize = 4;
/// Most services named in one command as having more lapses to come; the directory's bound on a batch.
const FOLLOWING_MAX: usize = 1_000;

/// After so many looks in a row that found nothing to judge it rests: where much changes that is no concern of a judge,
/// each change would wake it.
const IDLE_LOOKS: u32 = 20;
/// Longest rest. Whoever gives it something to judge wakes it; this bounds what it costs if somebody forgets.
pub(crate) const REST_MAX: Duration = Duration::from_secs(1);

/// What a judge knows.
pub(crate) struct Office {
    pub(super) term: Term,
    /// Whose sessions these are.
    bench: Bench,
    /// Changes up to here are taken in.
    seen: Revision,
    sessions: Countdown<SessionId>,
    overrides: Countdown<NodeKey>,
    /// Windows of removal guards under way, by service and the revision at which they began.
    windows: Countdown<(ServiceKey, Revision)>,
    /// Held nodes, by service and the revision since which they are held.
    holds: Countdown<(ServiceKey, Revision)>,
    /// Lapsed, proposed to be expired, not decided yet.
    expiring: BTreeSet<SessionId>,
    /// Lapsed and held, heard from again: to be revived, or proposed to be.
    returning: BTreeMap<SessionId, Returning>,
    /// Who last reported a session.
    holders: BTreeMap<SessionId, ServerId>,
    proposals: usize,
    /// Nothing was left to judge: nobody ticks until there is.
    resting: bool,
    idle_for: Idle,
    /// Since when no heartbeat could be recorded, for lack of a quorum.
    pub(super) deaf_since: Option<Instant>,
}

/// For how many looks in a row nothing has been left to judge, all of them at one revision.
#[derive(Clone, Copy, Debug)]
struct Idle {
    looks: u32,
    revision: Revision,
}

/// Which sessions are judged here.
enum Bench {
    /// Every one that is in the directory.
    All,
    /// Those that were taken on.
    Only(BTreeSet<SessionId>),
}

impl Bench {
    fn judges(&self, session: SessionId) -> bool {
        match self {
            Self::All => true,
            Self::Only(sessions) => sessions.contains(&session),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returning {
    Heard,
    Proposed,
}

/// Something the judge has to say, through the log or to its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// These sessions lapsed; so many more nodes of which service lapsed in the same tick.
    Lapsed(Vec<ExpiryFence>, Vec<(ServiceKey, u32)>),
    /// These sessions had lapsed, and are heard from again.
    Heard(Vec<RevivalFence>),
    /// These overrides have outlived their ttl.
    Outlived(Vec<(NodeKey, Revision)>),
    /// These windows of removal guards are over.
    Over(Vec<(ServiceKey, Revision)>),
    /// These nodes were held long enough.
    HeldEnough(Vec<(ServiceKey, Revision)>),
}

impl Word {
    /// Whether somebody goes by it, so that it is said only while a quorum listens.
    pub(super) fn strikes_off(&self) -> bool {
        matches!(self, Self::Lapsed(..) | Self::HeldEnough(_))
    }

    pub(crate) fn command(&self, term: Term) -> Command {
        match self.clone() {
            Self::Lapsed(sessions, following) => Command::ExpireSessions {
                term,
                sessions,
                following,
            },
            Self::Heard(sessions) => Command::ReviveSessions { term, sessions },
            Self::Outlived(overrides) => Command::ExpireOverrides { term, overrides },
            Self::Over(windows) => Command::CloseGuardWindows { term, windows },
            Self::HeldEnough(holds) => Command::ReleaseHeld { term, holds },
        }
    }
}

impl Office {
    /// Takes office over every session of the directory.
    pub(super) fn take(term: Term, directory: &Directory, grant: Spread, now: Instant) -> Self {
        let mut office = Self::with_bench(term, Bench::All, directory, now);
        for session in directory.sessions().filter(|session| session.lapsed.is_none()) {
            office
                .sessions
                .start_spread(session.id, ttl(session.ttl_ms), grant, now);
        }
        office
    }

    /// Takes office over no session yet: see [`Self::take_on`].
    pub(crate) fn take_alone(term: Term, directory: &Directory, now: Instant) -> Self {
        Self::with_bench(term, Bench::Only(BTreeSet::new()), directory, now)
    }

    fn with_bench(term: Term, bench: Bench, directory: &Directory, now: Instant) -> Self {
        let mut office = Self {
            term,
            bench,
            seen: directory.revision(),
            sessions: Countdown::new(now, PACE),
            overrides: Countdown::new(now, PACE),
            windows: Countdown::new(now, PACE),
            holds: Countdown::new(now, PACE),
            expiring: BTreeSet::new(),
            returning: BTreeMap::new(),
            holders: BTreeMap::new(),
            proposals: 0,
            resting: false,
            idle_for: Idle {
                looks: 0,
                revision: directory.revision(),
            },
            deaf_since: None,
        };
        office.compare_services(directory, now);
        office
    }

    /// From now on this session is judged here. If it was not before it gets its full ttl and what `grant` adds,
    /// unless it has lapsed.
    pub(crate) fn take_on(&mut self, session: SessionId, directory: &Directory, grant: Spread, now: Instant) {
        if let Bench::Only(sessions) = &mut self.bench
            && sessions.insert(session)
            && let Some(found) = directory.session(session).filter(|found| found.lapsed.is_none())
        {
            self.sessions.start_spread(session, ttl(found.ttl_ms), grant, now);
        }
    }

    /// From now on somebody else judges this session, or nobody needs to.
    pub(crate) fn give_up(&mut self, session: SessionId) {
        if let Bench::Only(sessions) = &mut self.bench {
            sessions.remove(&session);
        }
        self.expiring.remove(&session);
        self.forget(session);
    }

    /// Whether this session's time runs here and is not over.
    pub(crate) fn is_counting(&self, session: SessionId) -> bool {
        self.sessions.contains(&session)
    }

    /// Sessions counted down, and sessions whose expiry is not decided yet.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.sessions.len(), self.expiring.len())
    }

    /// Whether there is nothing to judge, and will be nothing before the directory has changed: no session, nothing that
    /// counts down, no word under way.
    pub(crate) fn is_idle(&self, directory: &Directory) -> bool {
        directory.revision() == self.seen
            && self.is_empty()
            && match &self.bench {
                Bench::All => directory.totals().sessions == 0,
                Bench::Only(sessions) => sessions.is_empty(),
            }
    }

    fn is_empty(&self) -> bool {
        self.proposals == 0
            && self.sessions.is_empty()
            && self.overrides.is_empty()
            && self.windows.is_empty()
            && self.holds.is_empty()
            && self.expiring.is_empty()
            && self.returning.is_empty()
    }

    /// To be asked after each look. When nothing has been left to judge for a while, ticks may cease until the directory
    /// changes: the next one, however late, shows no pause. What begins to count down meanwhile lasts at least as long
    /// as it should.
    pub(crate) fn rest_if_idle(&mut self, directory: &Directory) {
        let Idle { looks, revision } = self.idle_for;
        let looks = if self.is_idle(directory) && revision == self.seen {
            looks.saturating_add(1)
        } else {
            0
        };
        self.idle_for = Idle {
            looks,
            revision: self.seen,
        };
        self.resting = looks >= IDLE_LOOKS;
    }

    /// Whether it rests: nobody needs to tick.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Tells the clocks that this server is awake; by how much every deadline was moved.
    pub(crate) fn tick(&mut self, now: Instant) -> Duration {
        if std::mem::take(&mut self.resting) {
            self.overrides.resume(now);
            self.windows.resume(now);
            self.holds.resume(now);
            self.sessions.resume(now);
            return Duration::ZERO;
        }
        self.overrides.tick(now);
        self.windows.tick(now);
        self.holds.tick(now);
        self.sessions.tick(now).shifted
    }

    /// The quorum is heard again: whoever counts down gets what a new leader would grant.
    pub(super) fn grant_anew(&mut self, directory: &Directory, grant: Spread, now: Instant) {
        for session in directory.sessions() {
            if self.sessions.contains(&session.id) {
                self.sessions
                    .start_spread(session.id, ttl(session.ttl_ms), grant, now);
            }
        }
    }

    /// Takes in what was committed since the last look.
    pub(crate) fn catch_up(&mut self, directory: &Directory, now: Instant) {
        if directory.revision() == self.seen {
            return;
        }
        match directory.changes().range(self.seen, usize::MAX) {
            Ok(changes) => changes
                .iter()
                .for_each(|changes| self.learn(changes, directory, now)),
            Err(_) => self.compare(directory, now),
        }
        self.seen = directory.revision();
    }

    fn learn(&mut self, changes: &RevisionChanges, directory: &Directory, now: Instant) {
        for change in &changes.sessions {
            match *change {
                SessionChange::Opened { session, ttl_ms }
                | SessionChange::Revived { session, ttl_ms, .. } => {
                    self.returning.remove(&session);
                    if self.bench.judges(session) {
                        self.sessions.start(session, ttl(ttl_ms), now);
                    }
                }
                SessionChange::Ended { session, .. } => {
                    if let Bench::Only(sessions) = &mut self.bench {
                        sessions.remove(&session);
                    }
                    self.forget(session);
                }
                SessionChange::Lapsed { session, .. } => self.sessions.forget(&session),
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
        for change in &changes.guards {
            if let Some(service) = directory.service(&change.service) {
                self.watch_guard(service, directory, now);
            }
        }
    }

    /// The change log no longer reaches back to what was seen: compare with the state instead. What is gone
    /// from it stays counted until it lapses, and is forgotten then.
    fn compare(&mut self, directory: &Directory, now: Instant) {
        for session in directory.sessions() {
            if session.lapsed.is_some() {
                self.sessions.forget(&session.id);
            } else if self.bench.judges(session.id)
                && !self.sessions.contains(&session.id)
                && !self.expiring.contains(&session.id)
            {
                self.sessions.start(session.id, ttl(session.ttl_ms), now);
            }
        }
        self.compare_services(directory, now);
    }

    fn compare_services(&mut self, directory: &Directory, now: Instant) {
        for (key, over) in directory.timed_overrides() {
            if !self.overrides.contains(&key) {
                self.overrides.start(key, Duration::from_millis(over.ttl_ms), now);
            }
        }
        for service in directory.guarded_services() {
            if let (true, Some(window)) = (planted(Mutant::GuardForgets), service.guard_status().window) {
                self.windows
                    .start((service.key.clone(), window), Duration::ZERO, now);
            }
            self.watch_guard(service, directory, now);
        }
    }

    /// Counts down for a guard's window and hold, once for each. What ended meanwhile says nothing when its
    /// time comes.
    fn watch_guard(&mut self, service: &Service, directory: &Directory, now: Instant) {
        let (status, settings) = (service.guard_status(), service.settings.guard);
        if let Some(began) = status.window {
            let key = (service.key.clone(), began);
            if !self.windows.contains(&key) {
                self.windows
                    .start(key, Duration::from_millis(settings.window_ms), now);
            }
        }
        let Some(since) = status.held_since.filter(|_| !status.overdue) else {
            return;
        };
        let key = (service.key.clone(), since);
        if !self.holds.contains(&key) {
            let held_for = match (status.engaged, settings.hold_max_ms) {
                (Some(_), 0) => return,
                (Some(_), hold_max_ms) => Duration::from_millis(hold_max_ms),
                // Left over when the guard disengaged: one more ttl to return in.
                (None, _) => ttl(directory.held_ttl_ms(&service.key).unwrap_or(0)),
            };
            self.holds.start(key, held_for, now);
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.sessions.forget(&session);
        self.returning.remove(&session);
        self.holders.remove(&session);
    }

    /// Records signs of life. A session that had lapsed and is held is undecided until the log has revived it.
    pub(crate) fn renew(
        &mut self,
        from: ServerId,
        sessions: &[SessionId],
        directory: &Directory,
        now: Instant,
    ) -> RenewalVerdict {
        let mut verdict = RenewalVerdict::default();
        for &session in sessions {
            let Some(found) = directory.session(session) else {
                if self.expiring.contains(&session) {
                    verdict.undecided.push(session);
                } else {
                    self.forget(session);
                    verdict.not_found.push(session);
                }
                continue;
            };
            if self.expiring.contains(&session) && !planted(Mutant::LateHeartbeat) {
                verdict.undecided.push(session);
            } else if found.lapsed.is_some() {
                self.returning.entry(session).or_insert(Returning::Heard);
                verdict.undecided.push(session);
            } else {
                if !planted(Mutant::UnrecordedHeartbeat) && self.sessions.renew(&session, now).is_err() {
                    self.sessions.start(session, ttl(found.ttl_ms), now);
                }
                self.holders.insert(session, from);
            }
        }
        verdict
    }

    /// What is to be said now. From here on the sessions in it are undecided.
    pub(crate) fn take_words(&mut self, directory: &Directory, now: Instant) -> Vec<Word> {
        let room = PROPOSALS_MAX.saturating_sub(self.proposals);
        let mut words = Vec::new();
        words.extend(self.take_returning(directory));
        if room > 0 {
            self.take_lapsed(room, directory, now, &mut words);
            words.extend(self.take_outlived(directory, now));
            words.extend(self.take_windows(directory, now));
            words.extend(self.take_holds(directory, now));
        }
        self.proposals += words.len();
        words
    }

    /// Those heard from again; not bounded by what else is under way, since they are alive.
    fn take_returning(&mut self, directory: &Directory) -> Option<Word> {
        let mut fences = Vec::new();
        for (session, state) in &mut self.returning {
            let lapsed = directory.session(*session).and_then(|found| found.lapsed);
            if let (Returning::Heard, Some(lapsed)) = (*state, lapsed) {
                *state = Returning::Proposed;
                fences.push(RevivalFence {
                    session: *session,
                    lapsed,
                });
                if fences.len() == WORDS_MAX {
                    break;
                }
            }
        }
        (!fences.is_empty()).then_some(Word::Heard(fences))
    }

    fn take_lapsed(&mut self, room: usize, directory: &Directory, now: Instant, words: &mut Vec<Word>) {
        let mut fences = Vec::new();
        for id in self.sessions.take_lapsed(now, WORDS_MAX * room) {
            self.holders.remove(&id);
            if let Some(session) = directory.session(id).filter(|session| session.lapsed.is_none()) {
                fences.push(ExpiryFence {
                    session: id,
                    last_renewal: session.last_renewal,
                });
                self.expiring.insert(id);
            }
        }
        let mut rest = fences.as_slice();
        while let Some((piece, later)) = rest.split_at_checked(rest.len().min(WORDS_MAX)) {
            if piece.is_empty() {
                break;
            }
            words.push(Word::Lapsed(piece.to_vec(), following(later, directory)));
            rest = later;
        }
    }

    fn take_outlived(&mut self, directory: &Directory, now: Instant) -> Option<Word> {
        let mut outlived = Vec::new();
        for key in self.overrides.take_lapsed(now, WORDS_MAX) {
            let over = directory
                .service(&key.service)
                .and_then(|service| service.overrides.get(&key.node));
            if let Some(over) = over {
                outlived.push((key, over.set_at));
            }
        }
        (!outlived.is_empty()).then_some(Word::Outlived(outlived))
    }

    fn take_windows(&mut self, directory: &Directory, now: Instant) -> Option<Word> {
        let mut over = self.windows.take_lapsed(now, WORDS_MAX);
        over.retain(|(key, began)| {
            let status = directory.service(key).map(|service| service.guard_status());
            status.is_some_and(|status| status.window == Some(*began))
        });
        (!over.is_empty()).then_some(Word::Over(over))
    }

    fn take_holds(&mut self, directory: &Directory, now: Instant) -> Option<Word> {
        let mut enough = self.holds.take_lapsed(now, WORDS_MAX);
        enough.retain(|(key, since)| {
            let status = directory.service(key).map(|service| service.guard_status());
            status.is_some_and(|status| status.held_since == Some(*since) && !status.overdue)
        });
        (!enough.is_empty()).then_some(Word::HeldEnough(enough))
    }

    /// This word was not said: the quorum was not heard when it was found, so nobody could be.
    pub(super) fn withdraw(&mut self, word: &Word, directory: &Directory, now: Instant) {
        self.settle(word, directory, now);
        self.deaf_since.get_or_insert(now);
    }

    /// The log has decided, or never will. Of the sessions in it those that are there count down (anew, if
    /// they had moved) unless they are held; what else was left undone counts down again.
    pub(crate) fn settle(&mut self, word: &Word, directory: &Directory, now: Instant) {
        self.proposals = self.proposals.saturating_sub(1);
        match word {
            Word::Lapsed(fences, _) => {
                for fence in fences {
                    self.expiring.remove(&fence.session);
                    let found = directory.session(fence.session);
                    let found = found.filter(|session| session.lapsed.is_none());
                    if let Some(session) = found.filter(|session| self.bench.judges(session.id)) {
                        self.sessions.start(session.id, ttl(session.ttl_ms), now);
                    }
                }
            }
            // Heard from again if it is still alive, and proposed again then.
            Word::Heard(fences) => {
                for fence in fences {
                    self.returning.remove(&fence.session);
                }
            }
            Word::Over(services) | Word::HeldEnough(services) => {
                for (key, _) in services {
                    if let Some(service) = directory.service(key) {
                        self.watch_guard(service, directory, now);
                    }
                }
            }
            Word::Outlived(overrides) => {
                for (key, _) in overrides {
                    let over = directory
                        .service(&key.service)
                        .and_then(|service| service.overrides.get(&key.node));
                    if let Some(over) = over.filter(|over| over.ttl_ms > 0)
                        && !self.overrides.contains(key)
                    {
                        self.overrides
                            .start(key.clone(), Duration::from_millis(over.ttl_ms), now);
                    }
                }
            }
        }
    }

    pub(crate) fn deadline(&self, session: SessionId, now: Instant) -> Option<SessionDeadline> {
        let lapses_in = self.sessions.remaining(&session, now)?;
        Some(SessionDeadline {
            session,
            lapses_in,
            holder: self.holders.get(&session).copied(),
        })
    }
}

/// How many nodes of which service these sessions own, the largest numbers if there are too many.
fn following(fences: &[ExpiryFence], directory: &Directory) -> Vec<(ServiceKey, u32)> {
    let mut counts: BTreeMap<&ServiceKey, u32> = BTreeMap::new();
    for session in fences.iter().filter_map(|fence| directory.session(fence.session)) {
        for (service, ids) in session.nodes.by_service() {
            *counts.entry(service).or_default() += u32::try_from(ids.len()).unwrap_or(u32::MAX);
        }
    }
    let mut counts: Vec<_> = counts
        .into_iter()
        .map(|(key, count)| (key.clone(), count))
        .collect();
    if counts.len() > FOLLOWING_MAX {
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts.truncate(FOLLOWING_MAX);
        counts.sort();
    }
    counts
}

fn ttl(ttl_ms: u32) -> Duration {
    Duration::from_millis(ttl_ms.into())
}

#[cfg(test)]
mod tests {
    use rollcall_core::directory::{
        Address, Expected, GroupSettings, Labels, Limits, NodeState, RegisterNode, Registration, Request,
    };
    use rollcall_core::ids::{LogIndex, LogPosition, RequestId};

    use super::*;

    const HERE: ServerId = ServerId(1);
    const TTL: Duration = Duration::from_secs(10);
    const GRANT: Spread = Spread {
        extra: Duration::from_secs(1),
        over: Duration::ZERO,
    };

    fn feed() -> ServiceKey {
        ServiceKey {
            group: "test".parse().expect("a good name"),
            service: "feed".parse().expect("a good name"),
        }
    }

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

        /// One node of `test/feed` for each session, in their order.
        fn register_one_each(&mut self, count: u64) {
            let settings = GroupSettings {
                auto_create: true,
                ..GroupSettings::default()
            };
            let group = feed().group;
            self.apply(Command::PutGroup {
                group,
                settings,
                expected: Expected::Any,
            });
            for session in 1..=count {
                let registration = Registration {
                    id: format!("node-{session:06}").parse().expect("a good name"),
                    addresses: vec![Address {
                        name: "http".into(),
                        host: "127.0.0.1".into(),
                        port: 80,
                    }]
                    .into(),
                    weight: 100,
                    labels: Labels::new(),
                    metadata: Labels::new(),
                    kind: None,
                    state: NodeState::Up,
                };
                self.apply(Command::Register {
                    session: Some(SessionId(session)),
                    nodes: vec![RegisterNode {
                        key: feed(),
                        registration,
                        expected: Expected::Any,
                    }],
                });
            }
        }

        fn states(&self) -> Vec<NodeState> {
            let service = self.directory.service(&feed()).expect("there");
            service.nodes.values().map(|node| node.state).collect()
        }

        fn office(&self, now: Instant) -> Office {
            Office::take(Term(1), &self.directory, GRANT, now)
        }
    }

    /// Ticks in time for so long, collecting what is to be said.
    fn words(office: &mut Office, directory: &Directory, from: Instant, until: Duration) -> Vec<Word> {
        let mut words = Vec::new();
        let mut now = from;
        while now < from + until {
            now += TICK;
            office.tick(now);
            office.catch_up(directory, now);
            words.extend(office.take_words(directory, now));
        }
        words
    }

    /// The same; those that lapse.
    fn run(office: &mut Office, directory: &Directory, from: Instant, until: Duration) -> Vec<ExpiryFence> {
        words(office, directory, from, until)
            .into_iter()
            .flat_map(|word| match word {
                Word::Lapsed(fences, _) => fences,
                other => panic!("nothing but lapses was expected, not {other:?}"),
            })
            .collect()
    }

    fn lapsed(fences: &[ExpiryFence]) -> Word {
        Word::Lapsed(fences.to_vec(), Vec::new())
    }

    #[test]
    fn a_new_leader_grants_a_full_ttl_and_one_election_timeout() {
        let log = Log::with_sessions(1);
        let start = Instant::now();
        let mut office = log.office(start);
        assert_eq!(
            run(&mut office, &log.directory, start, TTL + GRANT.extra - TICK),
            []
        );
        let later = start + TTL + GRANT.extra - TICK;
        assert_eq!(run(&mut office, &log.directory, later, TICK * 2).len(), 1);
    }

    #[test]
    fn a_pause_of_this_server_moves_every_deadline() {
        let log = Log::with_sessions(3);
        let start = Instant::now();
        let mut office = log.office(start);
        let resumed = start + TTL * 3;
        office.tick(resumed);
        assert_eq!(office.take_words(&log.directory, resumed), []);
        assert_eq!(run(&mut office, &log.directory, resumed, TTL).len(), 0);
        assert_eq!(
            run(&mut office, &log.directory, resumed + TTL, GRANT.extra * 2).len(),
            3
        );
    }

    #[test]
    fn a_leader_that_lost_its_quorum_begins_anew() {
        let log = Log::with_sessions(3);
        let start = Instant::now();
        let mut office = log.office(start);
        let almost = TTL + GRANT.extra - TICK;
        assert_eq!(run(&mut office, &log.directory, start, almost), []);
        let again = start + almost + TTL;
        office.tick(again);
        office.grant_anew(&log.directory, GRANT, again);
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
        office.withdraw(&lapsed(&fences), &log.directory, now);
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
            following: Vec::new(),
        });
        office.settle(&lapsed(&fences), &log.directory, now);
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
        office.settle(&lapsed(&fences), &log.directory, now);
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
        let count = WORDS_MAX * PROPOSALS_MAX + 1;
        let mut log = Log::with_sessions(count as u64);
        log.register_one_each(count as u64);
        let start = Instant::now();
        let mut office = log.office(start);
        let later = start + TTL * 2;
        let mut now = start;
        while now < later {
            now += TICK;
            office.tick(now);
        }
        let said = office.take_words(&log.directory, later);
        let pieces: Vec<_> = said
            .iter()
            .map(|word| match word {
                Word::Lapsed(fences, following) => {
                    (fences.len(), following.first().map_or(0, |(_, count)| *count))
                }
                other => panic!("nothing but lapses was expected, not {other:?}"),
            })
            .collect();
        assert_eq!(pieces, [(500, 1_500), (500, 1_000), (500, 500), (500, 0)]);
        assert_eq!(office.take_words(&log.directory, later), []);
        office.settle(&said[0], &log.directory, later);
        assert_eq!(office.take_words(&log.directory, later).len(), 1);
    }

    /// Three of three lapse: the guard holds them all. One is heard from and revived; the others stay held, and
    /// nothing counts down for them.
    #[test]
    fn a_held_session_is_undecided_until_the_log_has_revived_it() {
        let mut log = Log::with_sessions(3);
        log.register_one_each(3);
        let start = Instant::now();
        let mut office = log.office(start);
        let fences = run(&mut office, &log.directory, start, TTL * 2);
        let mut now = start + TTL * 2;
        log.apply(lapsed(&fences).command(Term(1)));
        office.catch_up(&log.directory, now);
        office.settle(&lapsed(&fences), &log.directory, now);
        assert_eq!(office.counts(), (0, 0));
        assert_eq!(log.states(), [NodeState::Suspect; 3]);

        let heard = SessionId(2);
        let verdict = office.renew(HERE, &[heard], &log.directory, now);
        assert_eq!(verdict.undecided, [heard]);
        now += TICK;
        office.tick(now);
        let said = office.take_words(&log.directory, now);
        let [word @ Word::Heard(_)] = said.as_slice() else {
            panic!("a revival was expected, not {said:?}");
        };
        log.apply(word.command(Term(1)));
        office.catch_up(&log.directory, now);
        office.settle(word, &log.directory, now);
        assert_eq!(
            log.states(),
            [NodeState::Suspect, NodeState::Up, NodeState::Suspect]
        );
        assert_eq!(
            office.renew(HERE, &[heard], &log.directory, now),
            RenewalVerdict::default()
        );
        assert_eq!(office.counts(), (1, 0));
    }

    /// Without sessions nobody needs to tick. One that is opened meanwhile lasts its full ttl, however long the rest was,
    /// and the rest is no pause.
    #[test]
    fn a_rest_is_no_pause_and_shortens_nothing() {
        let mut log = Log::with_sessions(0);
        let start = Instant::now();
        let mut office = log.office(start);
        let mut now = start;
        for _ in 0..IDLE_LOOKS {
            assert!(!office.is_resting());
            now += TICK;
            office.tick(now);
            assert_eq!(office.take_words(&log.directory, now), []);
            office.rest_if_idle(&log.directory);
        }
        assert!(office.is_resting() && office.is_idle(&log.directory));

        let opened = now + TTL * 10;
        log.open();
        assert!(!office.is_idle(&log.directory));
        office.catch_up(&log.directory, opened);
        let woken = opened + TICK;
        assert_eq!(office.tick(woken), Duration::ZERO, "no pause");
        office.rest_if_idle(&log.directory);
        assert!(!office.is_resting());
        let mut now = woken;
        while now < opened + TTL - TICK {
            now += TICK;
            assert_eq!(office.tick(now), Duration::ZERO);
            assert_eq!(office.take_words(&log.directory, now), []);
        }
        let late = office.tick(now + TTL);
        assert!(late >= TTL - TICK * 2, "{late:?}: a pause is one again");
        let lapsed = run(&mut office, &log.directory, now + TTL, TICK * 5);
        assert_eq!(lapsed.len(), 1);
    }

    /// A window that began is closed when its time is over, and by a new leader after its full time again.
    #[test]
    fn the_window_of_a_guard_is_closed_when_its_time_is_over() {
        let mut log = Log::with_sessions(4);
        log.register_one_each(4);
        let start = Instant::now();
        let mut office = log.office(start);
        for alive in 0..8 {
            let now = start + TTL / 2 * alive;
            office.tick(now);
            let verdict = office.renew(
                HERE,
                &[SessionId(2), SessionId(3), SessionId(4)],
                &log.directory,
                now,
            );
            assert_eq!(verdict, RenewalVerdict::default());
            for word in words(&mut office, &log.directory, now, TTL / 2) {
                log.apply(word.command(Term(1)));
                office.catch_up(&log.directory, now);
                office.settle(&word, &log.directory, now);
            }
        }
        assert_eq!(log.states().len(), 3, "one of four may go");
        let later = start + TTL * 4;
        let mut successor = log.office(later);
        let until = Duration::from_millis(600_000) + TICK;
        let mut over = None;
        let mut now = later;
        while now < later + until {
            now += TICK;
            successor.tick(now);
            let _ = successor.renew(
                HERE,
                &[SessionId(2), SessionId(3), SessionId(4)],
                &log.directory,
                now,
            );
            over = over.or(successor
                .take_words(&log.directory, now)
                .pop()
                .map(|word| (word, now)));
        }
        let (word, at) = over.expect("the window was closed");
        assert!(
            matches!(&word, Word::Over(windows) if windows.len() == 1),
            "{word:?}"
        );
        assert!(at >= later + Duration::from_millis(600_000));
        log.apply(word.command(Term(1)));
        let service = log.directory.service(&feed()).expect("there");
        assert_eq!(service.guard_status().window, None);
    }
}
