//! The office: what a judge of silence knows of sessions, overrides and removal guards, for one term.
//!
//! Plain state that is handed the directory and the time. Two shells stand around it: [`super::Authority`], where
//! the leader judges every session of the replicated directory, and [`crate::ap`], where each server judges those
//! sessions of its view that it vouches for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rollcall_core::directory::{
    Directory, ExpiryFence, Override, RevisionChanges, RevivalFence, Service, SessionChange,
};
use rollcall_core::ids::{NodeKey, Revision, ServerId, ServiceKey, SessionId, Term};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_core::session::{Countdown, Pace, Spread};

use super::word::Word;
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
    /// Which setting of each the countdown is for.
    overrides_set_at: BTreeMap<NodeKey, Revision>,
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
    /// How often the quorum fell silent.
    pub(super) silences: u64,
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
            overrides_set_at: BTreeMap::new(),
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
            silences: 0,
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

    /// Whether it lapsed by this office's word, which is not decided yet.
    pub(crate) fn is_expiring(&self, session: SessionId) -> bool {
        self.expiring.contains(&session)
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

    /// The quorum is not heard any more.
    pub(super) fn fall_silent(&mut self, now: Instant) {
        if self.deaf_since.is_none() {
            self.deaf_since = Some(now);
            self.silences += 1;
        }
    }

    /// The quorum is heard again. Nobody could be heard in the lease before that was noticed, nor since the last tick. If
    /// that was less than `short` ago, deadlines move by all of it, and heartbeats that were not answered are being sent
    /// again. After a longer silence clients may have gone to look for another server, and everybody begins anew. Whether
    /// it was that long.
    pub(super) fn hear_again(
        &mut self,
        (lease, short): (Duration, Duration),
        directory: &Directory,
        grant: Spread,
        now: Instant,
    ) -> bool {
        self.deaf_since = None;
        let long = !self.resting && self.sessions.since_tick(now) >= short;
        if !long {
            // Before the tick, for which nothing of the silence is left; and with what ticks went on while it was not noticed.
            self.sessions.stand_still(now, lease + TICK * 3);
            self.restart_overdue(directory, now);
        }
        self.tick(now);
        if long {
            self.grant_anew(directory, grant, now);
        }
        long
    }

    /// Who was due before the silence, and waited to be told of: they begin anew, like those of whom a word was withdrawn.
    fn restart_overdue(&mut self, directory: &Directory, now: Instant) {
        for id in self.sessions.take_lapsed(now, usize::MAX) {
            if let Some(session) = directory.session(id).filter(|session| session.lapsed.is_none()) {
                self.sessions.start(id, ttl(session.ttl_ms), now);
            }
        }
    }

    /// Whoever counts down gets what a new leader would grant.
    fn grant_anew(&mut self, directory: &Directory, grant: Spread, now: Instant) {
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
                Some(over) => self.watch_override(key.clone(), over, now),
                None => {
                    self.overrides.forget(key);
                    self.overrides_set_at.remove(key);
                }
            }
        }
        let guards = changes.guards.iter().map(|change| &change.service);
        let set = changes.services.iter().filter(|change| change.settings.is_some());
        for key in guards.chain(set.map(|change| &change.key)) {
            if let Some(service) = directory.service(key) {
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
        let is_held = |session: &SessionId| {
            let session = directory.session(*session);
            session.is_some_and(|session| session.lapsed.is_some())
        };
        self.returning.retain(|session, _| is_held(session));
        self.compare_services(directory, now);
    }

    fn compare_services(&mut self, directory: &Directory, now: Instant) {
        for (key, over) in directory.timed_overrides() {
            if self.overrides_set_at.get(&key) != Some(&over.set_at) {
                self.watch_override(key, over, now);
            }
        }
        for service in directory.guarded_services() {
            self.watch_guard(service, directory, now);
            if let (true, Some(window)) = (planted(Mutant::GuardForgets), service.guard_status().window) {
                self.windows
                    .start((service.key.clone(), window), Duration::ZERO, now);
            }
        }
    }

    /// Counts down for an override that was set to end by itself.
    fn watch_override(&mut self, key: NodeKey, over: &Override, now: Instant) {
        self.overrides_set_at.insert(key.clone(), over.set_at);
        self.overrides.start(key, Duration::from_millis(over.ttl_ms), now);
    }

    /// Counts down for a guard's window and hold, once for each, as long as an operator says now. What ended meanwhile says
    /// nothing when its time comes.
    fn watch_guard(&mut self, service: &Service, directory: &Directory, now: Instant) {
        let (status, settings) = (service.guard_status(), service.settings.guard);
        if let Some(began) = status.window {
            let window = Duration::from_millis(settings.window_ms);
            count_once(&mut self.windows, (service.key.clone(), began), window, now);
        }
        let Some(since) = status.held_since.filter(|_| !status.overdue) else {
            return;
        };
        let key = (service.key.clone(), since);
        match (status.engaged, settings.hold_max_ms) {
            (Some(_), 0) => self.holds.forget(&key),
            (Some(_), hold_max_ms) => {
                count_once(&mut self.holds, key, Duration::from_millis(hold_max_ms), now);
            }
            // Left over when the guard disengaged: one more ttl to return in.
            (None, _) if !self.holds.contains(&key) => {
                let held_for = ttl(directory.held_ttl_ms(&service.key).unwrap_or(0));
                self.holds.start(key, held_for, now);
            }
            (None, _) => {}
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.sessions.forget(&session);
        self.returning.remove(&session);
        self.holders.remove(&session);
    }

    /// Records signs of life. A session that had lapsed and is held is undecided until the log has revived it. One of which
    /// nodes went is not found, though others are held: its client is to register them all again, which takes those over.
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
            } else if found.lost_nodes {
                self.returning.remove(&session);
                verdict.not_found.push(session);
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
            let set_at = self.overrides_set_at.remove(&key);
            // One that was set since ends in its own time.
            if let Some(over) = over.filter(|over| Some(over.set_at) == set_at) {
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

    /// This word was not said: the quorum was not heard when it was found, behind so many silences, so nobody could be.
    pub(super) fn withdraw(&mut self, word: &Word, silences: u64, directory: &Directory, now: Instant) {
        self.settle(word, directory, now);
        // If it was heard again since, that silence is over.
        if silences == self.silences {
            self.fall_silent(now);
        }
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
                        self.watch_override(key.clone(), over, now);
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

/// Starts a countdown, or lets the one that is under way last as long as is said now.
fn count_once(
    countdown: &mut Countdown<(ServiceKey, Revision)>,
    key: (ServiceKey, Revision),
    lasts: Duration,
    now: Instant,
) {
    if countdown.contains(&key) {
        countdown.change_ttl(&key, lasts);
    } else {
        countdown.start(key, lasts, now);
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
#[path = "office_test.rs"]
mod tests;
