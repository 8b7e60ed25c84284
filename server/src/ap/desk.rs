//! The desk: the records, which sessions are judged here, and how far the others' logs are followed.
//!
//! Plain state under one lock. Locks are taken in one order, the desk, then the view, and held across no wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ap::{
    Bucket, FarFuture, Key, Record, Replica, Seq, SessionSeed, SessionValue, Stamp, Standing, Stored,
    THE_LOG, VIEW_TERM, Value,
};
use rollcall_core::directory::{Command, Directory, Limits, LoggedRequest, Outcome, Refusal, Request};
use rollcall_core::ids::{GroupName, RequestId, ServerId, SessionId};
use rollcall_core::session::Spread;

use super::contract::Introduction;
use super::retirement::FORGOTTEN_AFTER;
use super::rows::{self, Followed, Found, Life, Memory, Numbered};
use crate::raft::RenewalVerdict;
use crate::session::{Office, Word};
use crate::store::RowBatch;

/// Claims by heartbeats that may wait to be written. Beyond it their clients are told to ask again.
const CLAIMS_MAX: usize = 10_000;
/// Sessions that are taken on together get their full ttl, and up to so much more, so that they do not stay in
/// lockstep.
const RESTART_SPREAD: Duration = Duration::from_secs(1);

/// Whether this server knows what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Footing {
    /// It is new, or was away for too long: others must be asked before anything is shown or written.
    Unsure,
    /// It has what it had, or what the others have.
    Sure,
}

/// How an unsure server becomes sure. Until then what it had stays on its disk, whatever it has fetched besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolve {
    /// Nobody knows better: what it had counts.
    Keep,
    /// Another is sure, and has forgotten no end since this one was alive: what both had counts. All of the other's is
    /// fetched.
    TakeUp,
    /// Somebody knows better, and all that he has is fetched: what this one had is dropped, and its log begins anew.
    Drop {
        /// Before when the other may have forgotten what ended, if it says so.
        forgot_before_ms: Option<u64>,
    },
    /// Not of an unsure one: it missed a group's move, and has fetched what the others have.
    Fetched,
}

/// What came of hearing records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// How many were new here.
    pub(super) new: usize,
    /// Why the rest was not taken.
    pub(super) refused: Option<FarFuture>,
}

/// The time, read once for a piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Milliseconds since 1970.
    pub(super) wall_ms: u64,
}

/// The view, and what is to be written to disk before anybody is answered.
pub(super) struct Work<'a> {
    pub(super) view: &'a mut Directory,
    pub(super) rows: &'a mut RowBatch,
    pub(super) now: Now,
}

pub(super) struct Desk {
    server: ServerId,
    ahead_max_ms: u64,
    retention_ms: u64,
    pub(super) replica: Replica,
    pub(super) office: Office,
    footing: Footing,
    log: u64,
    alive_ms: u64,
    memory: Memory,
    /// Groups of which it may have a part only, as its disk is to say.
    missed: BTreeSet<String>,
    followed: BTreeMap<ServerId, Followed>,
    /// What was found on disk, until it is known whether it counts.
    set_aside: BTreeMap<Key, Numbered>,
    /// What an unsure server has fetched from others. It is on disk as well, but in place of nothing that was set aside.
    fetched: Replica,
    /// Since when.
    fetching_since_ms: Option<u64>,
    /// Every server that held a session in this life or the last.
    holders: BTreeSet<ServerId>,
    /// Sessions held here that were heard in this life of the server.
    heard: BTreeSet<SessionId>,
    /// Sessions taken over from servers that went, as long as nobody heard them.
    taken_over: BTreeMap<SessionId, ServerId>,
    /// Since when there may be sessions that came with a group from the log and that nobody has claimed.
    unclaimed_since: Option<Instant>,
    /// Sessions held elsewhere that were heard here: to be claimed.
    claims: BTreeSet<SessionId>,
    /// Since when this server is about to be removed from the cluster, or is removed; at the earliest since it was started.
    retired_at: Option<Instant>,
    /// The batch of writes under way, or the last one.
    pub(super) batch: u64,
    /// Grows when the view's groups may have changed.
    pub(super) groups_version: u64,
}

impl Desk {
    /// Takes up what was found on disk. If that is too old to count it is set aside.
    pub(super) fn new(
        server: ServerId,
        (ahead_max, retention): (Duration, Duration),
        found: Found,
        view: &mut Directory,
        now: Now,
    ) -> Self {
        let (ahead_max_ms, retention_ms) = (milliseconds(ahead_max), milliseconds(retention));
        // A clock that is behind its own past does not tell for how long it was away.
        let is_recent = |life: &Life| {
            now.wall_ms.saturating_sub(life.alive_ms) <= retention_ms
                && life.alive_ms.saturating_sub(now.wall_ms) <= ahead_max_ms
        };
        let footing = match &found.life {
            Some(life) if is_recent(life) => Footing::Sure,
            Some(_) | None => Footing::Unsure,
        };
        let life = found.life.unwrap_or_else(|| Life {
            log: rand::random_range(1..=u64::MAX),
            head: Seq(0),
            latest: Stamp::default(),
            alive_ms: 0,
            followed: BTreeMap::new(),
        });
        // One that was alive for the last time then cannot have forgotten more.
        let memory = found.memory.unwrap_or(Memory {
            forgot_before_ms: life.alive_ms.saturating_sub(retention_ms),
            keeps_until_ms: 0,
        });
        let mut desk = Self {
            server,
            ahead_max_ms,
            retention_ms,
            replica: Replica::new(server, life.latest, life.head),
            office: Office::take_alone(VIEW_TERM, view, now.instant),
            footing,
            log: life.log,
            alive_ms: life.alive_ms,
            memory,
            missed: found.missed,
            followed: life.followed,
            set_aside: BTreeMap::new(),
            fetched: nothing_of(server),
            fetching_since_ms: None,
            holders: BTreeSet::new(),
            heard: BTreeSet::new(),
            taken_over: BTreeMap::new(),
            unclaimed_since: None,
            claims: BTreeSet::new(),
            retired_at: found.retired.then_some(now.instant),
            batch: 0,
            groups_version: 0,
        };
        match footing {
            Footing::Sure => desk.take_up(found.records.into_iter(), view, now),
            Footing::Unsure => {
                let records = found.records.into_iter();
                desk.set_aside = records.map(|found| (found.0.key.clone(), found)).collect();
            }
        }
        desk
    }

    fn take_up(&mut self, records: impl Iterator<Item = Numbered>, view: &mut Directory, now: Now) {
        for (record, seq) in records {
            if let Value::Session(session) = &record.value {
                self.note_holder(session, now.instant);
            }
            self.replica.load(record, seq);
        }
        self.replica.impose_all(view);
        self.judge_own(view, now);
    }

    fn judge_own(&mut self, view: &Directory, now: Now) {
        self.office.catch_up(view, now.instant);
        let grant = Spread {
            extra: Duration::ZERO,
            over: RESTART_SPREAD,
        };
        for session in self.replica.sessions_held_by(self.server) {
            self.office.take_on(session, view, grant, now.instant);
        }
    }

    /// The records that it has, or has gathered until now while it is unsure.
    pub(super) fn gathered(&self) -> &Replica {
        match self.footing {
            Footing::Sure => &self.replica,
            Footing::Unsure => &self.fetched,
        }
    }

    /// Groups of which there are records, or were when an unsure server was started.
    pub(super) fn recorded_groups(&self) -> BTreeSet<String> {
        let group_of = |key: &Key| match key {
            Key::Node(key) | Key::Override(key) => Some(key.service.group.to_string()),
            Key::Session(_) => None,
        };
        let digests = self.replica.group_digests().into_iter();
        let recorded = digests.map(|(name, _)| name);
        recorded
            .chain(self.set_aside.keys().filter_map(group_of))
            .collect()
    }

    /// Those of which it has all, as far as it knew when it was started.
    pub(super) fn known_groups(&self) -> BTreeSet<String> {
        let mut known = self.recorded_groups();
        known.retain(|group| !self.missed.contains(group));
        known
    }

    /// Also after it is started anew. `all`: there are no others from before.
    pub(super) fn remember_missed(&mut self, missed: BTreeSet<String>, all: bool) {
        if all {
            self.missed.clear();
        }
        self.missed.extend(missed);
    }

    /// What other servers may have of it. What an unsure one had may not count, nor what it has fetched until now: that is for
    /// nobody.
    pub(super) fn told(&self) -> Option<&Replica> {
        match self.footing {
            Footing::Sure => Some(&self.replica),
            Footing::Unsure => None,
        }
    }

    pub(super) fn footing(&self) -> Footing {
        self.footing
    }

    /// From now on nothing is acknowledged: it could be on this server alone when that is removed.
    pub(super) fn retire(&mut self, now: Instant) {
        self.retired_at = Some(now);
    }

    /// It is not removed after all.
    pub(super) fn stay(&mut self) {
        self.retired_at = None;
    }

    /// Another server says that this one is a member.
    pub(super) fn stay_if_forgotten(&mut self, now: Instant) {
        self.retired_at
            .take_if(|retired_at| now.saturating_duration_since(*retired_at) >= FORGOTTEN_AFTER);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired_at.is_some()
    }

    /// The name of this server's log.
    pub(super) fn log(&self) -> u64 {
        self.log
    }

    /// How far it goes.
    pub(super) fn head(&self) -> Followed {
        Followed {
            log: self.log,
            through: self.replica.head(),
        }
    }

    pub(super) fn followed(&self, server: ServerId) -> Followed {
        self.followed.get(&server).copied().unwrap_or_default()
    }

    /// Every server that may hold a session.
    pub(super) fn holders(&self) -> impl Iterator<Item = ServerId> {
        self.holders.iter().copied()
    }

    /// Whether a session lives, or lapsed and has nodes held; `here`: and this server is the one that hears it.
    pub(super) fn knows(&self, id: SessionId, here: bool) -> bool {
        let held_here =
            |session: &SessionValue| session.holder == self.server && session.standing == Standing::Held;
        let session = self.replica.session(id);
        session.is_some_and(|session| session.is_alive() && (!here || held_here(session)))
    }

    /// Makes whoever is about to write known to records; whom its stream's coming here brought is vouched for here.
    pub(super) fn introduce(&mut self, work: &mut Work<'_>, who: &Introduction) -> Result<(), Refusal> {
        match self.knows(who.session.id, who.attends) {
            true => Ok(()),
            false => self.claim(work, vec![SessionSeed::clone(&who.session)]),
        }
    }

    /// A local write, and the records that another server must have before it is on two disks.
    pub(super) fn write(
        &mut self,
        work: &mut Work<'_>,
        request: &LoggedRequest,
    ) -> Result<(Outcome, Vec<Arc<Record>>), Refusal> {
        let written = self.replica.write(work.view, work.now.wall_ms, request);
        self.keep(work, &written.stored);
        let stored = written.stored.into_iter().map(|stored| stored.record);
        let records = stored.chain(written.known).collect();
        written.applied.result.map(|outcome| (outcome, records))
    }

    /// The judge's word. Sessions that somebody else claimed meanwhile are not his to judge any more, nor are those that came
    /// back from there and count down anew; and nobody judges by a part of what there is: what is not said is counted
    /// down again.
    pub(super) fn say(&mut self, work: &mut Work<'_>, word: &Word) {
        if self.footing == Footing::Unsure {
            return;
        }
        let mut command = word.command(VIEW_TERM);
        if let Command::ExpireSessions { sessions, .. } = &mut command {
            sessions.retain(|fence| self.office.is_expiring(fence.session));
            if sessions.is_empty() {
                return;
            }
        }
        let request = Request {
            id: RequestId(rand::random()),
            command,
        };
        let (request, _) = LoggedRequest::of(request);
        if let Err(refusal) = self.write(work, &request) {
            tracing::warn!(%refusal, "a judgement was refused");
        }
    }

    /// From now on this server vouches for these sessions; for those that are closed nobody can.
    pub(super) fn claim(&mut self, work: &mut Work<'_>, seeds: Vec<SessionSeed>) -> Result<(), Refusal> {
        let mut refused = Ok(());
        let mut stored = Vec::new();
        for seed in seeds {
            self.claims.remove(&seed.id);
            match self.replica.claim(work.view, work.now.wall_ms, seed) {
                Ok(claimed) => stored.extend(claimed.stored),
                Err(refusal) => refused = Err(refusal),
            }
        }
        self.keep(work, &stored);
        refused
    }

    /// Takes over sessions that a server left, as far as they are still its own.
    pub(super) fn take_over(
        &mut self,
        work: &mut Work<'_>,
        from: ServerId,
        seeds: Vec<SessionSeed>,
    ) -> usize {
        let still_left = |seed: &SessionSeed| {
            let session = self.replica.session(seed.id);
            session.is_some_and(|session| session.holder == from && session.standing == Standing::Held)
        };
        let seeds: Vec<SessionSeed> = seeds.into_iter().filter(still_left).collect();
        let ids: Vec<SessionId> = seeds.iter().map(|seed| seed.id).collect();
        if let Err(refusal) = self.claim(work, seeds) {
            tracing::debug!(%refusal, "a session was not taken over");
        }
        self.taken_over.extend(ids.iter().map(|id| (*id, from)));
        ids.len()
    }

    /// A server is back whose sessions were taken over here. It may have heard them all the time: those that were
    /// not heard here get their full ttl again, in which it can say so.
    pub(super) fn regrant(&mut self, from: ServerId, view: &Directory, now: Instant) -> usize {
        let taken = self.taken_over.extract_if(.., |_, holder| *holder == from);
        let ids: Vec<SessionId> = taken.map(|(id, _)| id).collect();
        self.office.catch_up(view, now);
        for id in &ids {
            if self.office.is_counting(*id) {
                self.office.give_up(*id);
                self.office.take_on(*id, view, FULL_TTL, now);
            }
        }
        ids.len()
    }

    /// Records from another server. `followed`: with them its log is followed so far, if all are taken.
    pub(super) fn hear(
        &mut self,
        work: &mut Work<'_>,
        records: Vec<Record>,
        followed: Option<(ServerId, Followed)>,
    ) -> Heard {
        if self.footing == Footing::Unsure {
            return self.gather(work, records);
        }
        let counted = self.counted_here(&records);
        let merged = self
            .replica
            .merge(work.view, work.now.wall_ms, self.ahead_max_ms, records);
        let mut stored = merged.stored;
        let new = stored.len();
        for id in counted {
            stored.extend(self.contradict(work, id));
        }
        self.keep(work, &stored);
        if merged.refused.is_none()
            && let Some((server, followed)) = followed
            && self.followed(server) != followed
        {
            self.followed.insert(server, followed);
            self.put_life(work.rows);
        }
        Heard {
            new,
            refused: merged.refused,
        }
    }

    /// While nobody knows whether what was set aside counts, nothing takes its place, nor is it shown with anything.
    fn gather(&mut self, work: &mut Work<'_>, records: Vec<Record>) -> Heard {
        let mut nowhere = Directory::new(Limits::default());
        let merged = self
            .fetched
            .merge(&mut nowhere, work.now.wall_ms, self.ahead_max_ms, records);
        for stored in &merged.stored {
            if !self.set_aside.contains_key(&stored.record.key) {
                rows::put_record(work.rows, stored);
            }
        }
        Heard {
            new: merged.stored.len(),
            refused: merged.refused,
        }
    }

    /// From a server that has forgotten so much something is about to be fetched, or was. Whether what was fetched since
    /// the first time counts: of what ended since then, and is forgotten there, nobody tells. If not it begins again, as if
    /// this server had been started anew.
    pub(super) fn goes_on_fetching(&mut self, forgot_before_ms: Option<u64>, now_ms: u64) -> bool {
        let forgot_ms = forgot_before_ms.unwrap_or(now_ms.saturating_sub(self.retention_ms));
        let goes_on = self
            .fetching_since_ms
            .is_none_or(|since_ms| since_ms >= forgot_ms);
        if !goes_on {
            for record in self.take_fetched() {
                let key = record.key.clone();
                self.set_aside.entry(key).or_insert((record, None));
            }
            self.fetching_since_ms = None;
        }
        self.fetching_since_ms.get_or_insert(now_ms);
        goes_on
    }

    fn take_fetched(&mut self) -> Vec<Arc<Record>> {
        let fetched = std::mem::replace(&mut self.fetched, nothing_of(self.server));
        let mut records = Vec::with_capacity(fetched.len());
        for (group, _) in fetched.group_digests() {
            for (bucket, _) in fetched.bucket_digests(&group) {
                let mut found = fetched.bucket(&bucket);
                // Those stand in buckets of their own.
                let is_service = matches!(bucket, Bucket::Service(_));
                found.retain(|record| !is_service || !matches!(record.key, Key::Session(_)));
                records.extend(found);
            }
        }
        records
    }

    /// Sessions that others found lapsed while this server heard them within their ttl.
    fn counted_here(&self, records: &[Record]) -> Vec<SessionId> {
        let lapsed = records
            .iter()
            .filter_map(|record| match (&record.key, &record.value) {
                (Key::Session(id), Value::Session(session)) => {
                    matches!(session.standing, Standing::Lapsed { .. }).then_some(*id)
                }
                _ => None,
            });
        lapsed
            .filter(|id| self.heard.contains(id) && self.office.is_counting(*id))
            .collect()
    }

    /// Whoever found it lapsed did not hear what was heard here: this server vouches for it again, in the same
    /// breath, so that no reader misses its nodes.
    fn contradict(&mut self, work: &mut Work<'_>, id: SessionId) -> Vec<Stored> {
        let seed = self
            .replica
            .session(id)
            .and_then(|session| match session.standing {
                Standing::Lapsed { .. } => Some(seed(id, session)),
                Standing::Held | Standing::Closed => None,
            });
        let claimed = seed.and_then(|seed| self.replica.claim(work.view, work.now.wall_ms, seed).ok());
        claimed.map_or_else(Vec::new, |claimed| claimed.stored)
    }

    /// Definitions of the replicated directory. Returns those that the view could not follow.
    pub(super) fn define(&mut self, work: &mut Work<'_>, commands: Vec<Command>) -> Vec<Command> {
        let mut refused = Vec::new();
        for command in commands {
            let of_service = matches!(
                command,
                Command::PutService { .. } | Command::DeleteService { .. }
            );
            self.groups_version += u64::from(!of_service);
            if let Err(refusal) = self.replica.define(work.view, &command) {
                tracing::debug!(%refusal, "a definition is not followed yet");
                refused.push(command);
            }
        }
        self.office.catch_up(work.view, work.now.instant);
        refused
    }

    /// Takes over what the replicated directory lists of a group that moves here, if the move's stamp is credible.
    pub(super) fn adopt(
        &mut self,
        work: &mut Work<'_>,
        from: &Directory,
        group: &GroupName,
        stamp_ms: u64,
    ) -> Result<(), FarFuture> {
        let clock = (work.now.wall_ms, self.ahead_max_ms);
        let adopted = self.replica.adopt(work.view, clock, from, group, stamp_ms)?;
        self.keep(work, &adopted.stored);
        Ok(())
    }

    /// Forgets the records of a group that does not live by them.
    pub(super) fn forget(&mut self, work: &mut Work<'_>, group: &GroupName) {
        for key in self.replica.forget_group(group) {
            rows::remove_record(work.rows, &key);
        }
        self.office.catch_up(work.view, work.now.instant);
    }

    /// No end since then was forgotten here.
    pub(super) fn forgot_before_ms(&self) -> u64 {
        self.memory.forgot_before_ms
    }

    /// Whether a server that forgot so much knows better than this one, which is unsure: of what ended since this one was
    /// alive, and that it still takes to be there. Of one that does not say it is assumed.
    pub(super) fn is_outlived(&self, forgot_before_ms: Option<u64>) -> bool {
        forgot_before_ms.is_none_or(|forgot_before_ms| forgot_before_ms > self.alive_ms)
    }

    /// Whether one that is sure knows better. It does than one that was never alive on this disk, and has nothing to take up.
    pub(super) fn is_outlived_by_sure(&self, forgot_before_ms: Option<u64>) -> bool {
        self.alive_ms == 0 || self.is_outlived(forgot_before_ms)
    }

    /// Until when no end is forgotten here: what servers that come back later must hear of.
    pub(super) fn keeps_until_ms(&self) -> u64 {
        self.memory.keeps_until_ms
    }

    /// Whether it does that now. One that asks for longer than anybody may has a clock that is not to be believed.
    pub(super) fn keeps_ends(&self, now_ms: u64) -> bool {
        self.memory.keeps_until_ms > now_ms && self.may_keep_until(self.memory.keeps_until_ms, now_ms)
    }

    fn may_keep_until(&self, until_ms: u64, now_ms: u64) -> bool {
        until_ms.saturating_sub(now_ms) <= self.retention_ms.saturating_add(self.ahead_max_ms)
    }

    /// Forgets no end for as long as they are kept.
    pub(super) fn keep_ends(&mut self, now_ms: u64) {
        self.keep_ends_until(now_ms.saturating_add(self.retention_ms), now_ms);
    }

    /// Another server does so: all do, so that they go on having the same.
    pub(super) fn keep_ends_until(&mut self, until_ms: u64, now_ms: u64) {
        let before_ms = self.memory.keeps_until_ms;
        let is_longer = until_ms > before_ms || !self.may_keep_until(before_ms, now_ms);
        if is_longer && self.may_keep_until(until_ms, now_ms) {
            self.memory.keeps_until_ms = until_ms;
        }
    }

    /// Forgets what has been dead for long enough, unless somebody may come back who must hear of it.
    pub(super) fn purge(&mut self, work: &mut Work<'_>) -> usize {
        if self.footing == Footing::Unsure {
            return 0;
        }
        if self.keeps_ends(work.now.wall_ms) {
            self.replica.take_in_all();
            self.mark_alive(work);
            return 0;
        }
        let purged = self.replica.purge(work.now.wall_ms, self.retention_ms);
        // What was forgotten does not come back with a longer retention.
        let forgot_ms = self.memory.forgot_before_ms.min(work.now.wall_ms);
        self.memory.forgot_before_ms = forgot_ms.max(self.replica.horizon_ms());
        for key in &purged.gone {
            rows::remove_record(work.rows, key);
        }
        self.keep(work, &purged.stored);
        self.mark_alive(work);
        purged.gone.len()
    }

    /// Writes down that this server is alive, so that its next life knows for how long it was not.
    pub(super) fn mark_alive(&mut self, work: &mut Work<'_>) {
        if self.footing == Footing::Sure {
            self.alive_ms = work.now.wall_ms;
            self.put_life(work.rows);
        }
    }

    /// Others were asked.
    pub(super) fn resolve(&mut self, work: &mut Work<'_>, resolve: Resolve) {
        let is_for = match resolve {
            Resolve::Keep | Resolve::TakeUp | Resolve::Drop { .. } => Footing::Unsure,
            Resolve::Fetched => Footing::Sure,
        };
        if self.footing != is_for {
            return;
        }
        let (had, fetched) = (self.set_aside.len(), self.fetched.len());
        match resolve {
            Resolve::Keep | Resolve::TakeUp => {
                tracing::info!(
                    had,
                    fetched,
                    "AP groups: taken up what was on disk; nobody knows better"
                );
                self.take_up_both(work);
                self.keep_ends(work.now.wall_ms);
            }
            Resolve::Drop { forgot_before_ms } => {
                tracing::info!(
                    had,
                    fetched,
                    "AP groups: this server was away for longer than ap.tombstone_retention, or is new; it begins anew"
                );
                self.take_up_fetched(work);
                self.log = rand::random_range(1..=u64::MAX);
                self.followed = BTreeMap::new();
                let longest_ago_ms = work.now.wall_ms.saturating_sub(self.retention_ms);
                self.memory.forgot_before_ms = forgot_before_ms.unwrap_or(longest_ago_ms);
            }
            Resolve::Fetched => {
                tracing::info!(records = self.replica.len(), "AP groups: fetched from the others");
            }
        }
        self.footing = Footing::Sure;
        // What came in pieces, perhaps a part from a server that went.
        self.replica.caught_up(work.view);
        self.office.catch_up(work.view, work.now.instant);
        self.mark_alive(work);
    }

    /// What was set aside, and what was fetched, which is on disk as far as it takes no place of that.
    fn take_up_both(&mut self, work: &mut Work<'_>) {
        let had = std::mem::take(&mut self.set_aside);
        let fetched = self.take_fetched().into_iter();
        let fetched = fetched.map(Arc::unwrap_or_clone).collect();
        self.take_up(had.values().cloned(), work.view, work.now);
        // All of it was credible when it came.
        let merged = self.replica.merge(work.view, work.now.wall_ms, u64::MAX, fetched);
        for stored in &merged.stored {
            if had.contains_key(&stored.record.key) {
                rows::put_record(work.rows, stored);
            }
            if let Value::Session(session) = &stored.record.value {
                self.note_holder(session, work.now.instant);
                if let Key::Session(id) = stored.record.key
                    && session.holder != self.server
                {
                    self.office.give_up(id);
                }
            }
        }
        self.judge_own(work.view, work.now);
    }

    /// What was fetched, in place of what was set aside.
    fn take_up_fetched(&mut self, work: &mut Work<'_>) {
        let fetched = self.take_fetched().into_iter();
        self.take_up(fetched.map(|record| (record, None)), work.view, work.now);
        for (key, (record, seq)) in std::mem::take(&mut self.set_aside) {
            match self.replica.stored(&key) {
                None => rows::remove_record(work.rows, &key),
                Some(stored) if seq.is_some() || stored.record != record => {
                    rows::put_record(work.rows, &stored);
                }
                Some(_) => {}
            }
        }
    }

    /// To be asked at the end of a batch: what must be known in the next life.
    pub(super) fn put_life(&self, rows: &mut RowBatch) {
        let life = Life {
            log: self.log,
            head: self.replica.head(),
            latest: self.replica.latest(),
            alive_ms: self.alive_ms,
            followed: self.followed.clone(),
        };
        rows::put_life(rows, &life, self.memory, &self.missed, self.is_retired());
    }

    /// What changed goes to disk, and to the judge.
    fn keep(&mut self, work: &mut Work<'_>, stored: &[Stored]) {
        for stored in stored {
            rows::put_record(work.rows, stored);
            // Others follow this server's log by its numbers: one that was told must not come to mean something else.
            work.rows.sync |= stored.seq.is_some();
        }
        let now = work.now.instant;
        self.office.catch_up(work.view, now);
        for stored in stored {
            if let (Key::Session(id), Value::Session(session)) = (&stored.record.key, &stored.record.value) {
                self.note_holder(session, now);
                if session.holder == self.server && session.is_alive() {
                    self.office.take_on(*id, work.view, FULL_TTL, now);
                } else {
                    self.heard.remove(id);
                    self.taken_over.remove(id);
                    self.office.give_up(*id);
                }
            }
        }
    }

    fn note_holder(&mut self, session: &SessionValue, now: Instant) {
        self.holders.insert(session.holder);
        if session.holder == THE_LOG && session.standing == Standing::Held {
            self.unclaimed_since.get_or_insert(now);
        }
    }

    /// Whether sessions came from the log at least so long ago and may still be held by nobody.
    pub(super) fn has_unclaimed(&mut self, least: Duration, now: Instant) -> bool {
        let waits = |since: Instant| now.saturating_duration_since(since) >= least;
        if !self.unclaimed_since.is_some_and(waits) {
            return false;
        }
        let found = !self.left_by(THE_LOG, |_| true).is_empty();
        if !found {
            self.unclaimed_since = None;
        }
        found
    }

    /// Signs of life. A session that is held elsewhere but heard here is claimed, and undecided until then; so is one that
    /// lapsed here and is not shown any more, because what it held has moved to the log or went to others.
    pub(super) fn renew(&mut self, sessions: &[SessionId], view: &Directory, now: Instant) -> RenewalVerdict {
        let mut verdict = RenewalVerdict::default();
        let mut held = Vec::with_capacity(sessions.len());
        for &id in sessions {
            let judged_here = |session: &SessionValue| {
                session.holder == self.server
                    && session.is_alive()
                    && (session.standing == Standing::Held || view.session(id).is_some())
            };
            match self.replica.session(id) {
                Some(session) if judged_here(session) => held.push(id),
                Some(session)
                    if session.is_alive()
                        || session.holder != self.server && session.standing != Standing::Closed =>
                {
                    if self.claims.len() < CLAIMS_MAX {
                        self.claims.insert(id);
                    }
                    verdict.undecided.push(id);
                }
                Some(_) | None => verdict.not_found.push(id),
            }
        }
        self.office.catch_up(view, now);
        let of_held = self.office.renew(self.server, &held, view, now);
        for id in held {
            self.taken_over.remove(&id);
            self.heard.insert(id);
        }
        verdict.not_found.extend(of_held.not_found);
        verdict.undecided.extend(of_held.undecided);
        verdict
    }

    /// Sessions heard here that are to be claimed; they are asked for once.
    pub(super) fn take_claims(&mut self, max: usize) -> Vec<SessionSeed> {
        let mut seeds = Vec::new();
        while seeds.len() < max
            && let Some(id) = self.claims.pop_first()
        {
            seeds.extend(self.replica.session(id).map(|session| seed(id, session)));
        }
        seeds
    }

    /// The sessions that another server vouched for when it was last heard of.
    pub(super) fn left_by(
        &self,
        server: ServerId,
        mut mine: impl FnMut(SessionId) -> bool,
    ) -> Vec<SessionSeed> {
        let ids = self.replica.sessions_held_by(server).into_iter();
        ids.filter_map(|id| {
            let session = self.replica.session(id)?;
            (session.standing == Standing::Held && mine(id)).then(|| seed(id, session))
        })
        .collect()
    }
}

const FULL_TTL: Spread = Spread {
    extra: Duration::ZERO,
    over: Duration::ZERO,
};

fn nothing_of(server: ServerId) -> Replica {
    Replica::new(server, Stamp::default(), Seq(0))
}

fn seed(id: SessionId, session: &SessionValue) -> SessionSeed {
    SessionSeed {
        id,
        secret_digest: session.secret_digest,
        ttl_ms: session.ttl_ms,
        client: session.client.clone(),
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
