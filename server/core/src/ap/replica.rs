//! The replica: one server's records, its clock, and what they make of the view.
//!
//! Invariant: outside a call the view lists exactly what the records say ([`Replica::listed`]), as far as its groups
//! are known.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Key, Record, Seq, SessionSeed, SessionValue, Standing, Stored, Value};
use super::shown::{Moved, heard_again};
use super::stamp::{Clock, Stamp};
use super::table::{self, Bucket, Range, Table};
use crate::directory::{Applied, Command, Directory, LoggedRequest, Refusal, RevisionChanges, ServiceFate};
use crate::ids::{LogIndex, LogPosition, ServerId, SessionId, Term};
use crate::mutants::{Mutant, planted};

/// The term of everything that is applied to a view: nobody else writes to it, so there is only one.
pub const VIEW_TERM: Term = Term(1);

/// What a local write did.
#[derive(Debug)]
pub struct Written {
    /// For the caller and the watchers.
    pub applied: Applied,
    /// To be made durable before the caller is answered, and to be told to the others.
    pub stored: Vec<Stored>,
    /// Of a request that was carried out before: what it was about, as it is now. It is on this server's disk, but perhaps on
    /// no other.
    pub known: Vec<Arc<Record>>,
}

/// What hearing records did.
#[derive(Debug, Default)]
pub struct Merged {
    /// To be made durable.
    pub stored: Vec<Stored>,
    /// For the watchers.
    pub changes: Option<Arc<RevisionChanges>>,
    /// How many of the records were taken in, in their order; all of them unless one was refused.
    pub taken: usize,
    /// Why the next one was refused. Try it again when time has passed; tell an operator.
    pub refused: Option<FarFuture>,
}

/// What forgetting did.
#[derive(Debug, Default)]
pub struct Purged {
    /// To be deleted on disk.
    pub gone: Vec<Key>,
    /// To be made durable, and to be told to the others.
    pub stored: Vec<Stored>,
}

/// A stamp lies further ahead of this server's clock than is allowed: one of the two clocks is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a record of server {server} is {ahead_ms} ms ahead of this server's clock, at most {ahead_max_ms} are accepted"
)]
pub struct FarFuture {
    /// Whose stamp.
    pub server: ServerId,
    /// By how much.
    pub ahead_ms: u64,
    /// The bound.
    pub ahead_max_ms: u64,
}

impl FarFuture {
    /// Whether a stamp is credible at `now_ms` by this server's clock.
    ///
    /// # Errors
    /// It is not.
    pub fn check(stamp: Stamp, now_ms: u64, ahead_max_ms: u64) -> Result<(), Self> {
        let ahead_ms = stamp.millis.saturating_sub(now_ms);
        if ahead_ms <= ahead_max_ms {
            return Ok(());
        }
        Err(Self {
            server: stamp.server,
            ahead_ms,
            ahead_max_ms,
        })
    }
}

/// One server's records of all AP groups. The same view must be handed in every time, and nobody else may write to it.
#[derive(Clone, Debug)]
pub struct Replica {
    pub(super) server: ServerId,
    pub(super) table: Table,
    pub(super) clock: Clock,
    applied: u64,
    /// Dead records older than this are gone for good and are not taken in any more.
    horizon_ms: u64,
}

impl Replica {
    /// Without records. `floor` and `head`: the last stamp and number that this server may have given out in an
    /// earlier life; too high is harmless, too low loses writes.
    #[must_use]
    pub fn new(server: ServerId, floor: Stamp, head: Seq) -> Self {
        let mut table = Table::default();
        table.resume(head);
        Self {
            server,
            table,
            clock: Clock::new(server, floor),
            applied: 0,
            horizon_ms: 0,
        }
    }

    /// A record from this server's disk, with its number if this server wrote it, in any order. [`Self::impose_all`]
    /// follows.
    pub fn load(&mut self, record: Arc<Record>, seq: Option<Seq>) {
        self.clock.observe(record.stamp);
        self.table.put(&Stored::new(record, seq));
    }

    /// Brings the view to what the records say: after loading.
    pub fn impose_all(&self, view: &mut Directory) -> Option<Arc<RevisionChanges>> {
        let mut moved = Moved::default();
        self.table.records().for_each(|record| moved.note(record));
        self.impose(view, moved)
    }

    /// Guards count what was heard until now as if it had been heard at once: after catching up with another server,
    /// whose records came in pieces.
    pub fn caught_up(&self, view: &mut Directory) -> Option<Arc<RevisionChanges>> {
        view.learn_guards_anew()
    }

    /// Carries out a local write. Definitions of groups and services, which belong to the Raft directory, and the
    /// opening of sessions ([`Self::claim`]) are refused.
    pub fn write(&mut self, view: &mut Directory, now_ms: u64, request: &LoggedRequest) -> Written {
        let command = &request.request().command;
        if let Some(refusal) = refuse_foreign(command) {
            return Written {
                applied: Applied {
                    result: Err(refusal),
                    changes: None,
                },
                stored: Vec::new(),
                known: Vec::new(),
            };
        }
        self.applied += 1;
        let at = LogPosition {
            term: VIEW_TERM,
            index: LogIndex(self.applied),
        };
        let applied = view.apply_logged(at, request);
        let mut stored = match &applied.changes {
            Some(changes) => self.write_down(view, now_ms, command, changes),
            None => Vec::new(),
        };
        let mut moved = heard_again(&stored);
        let mut known = Vec::new();
        match &applied.result {
            Ok(outcome) if outcome.repeated => known = self.said_by(command),
            Ok(_) => stored.extend(self.say_again(now_ms, command, &stored, &mut moved)),
            Err(_) => {}
        }
        for service in applied.changes.iter().flat_map(|changes| &changes.services) {
            if service.fate == ServiceFate::Created {
                moved.overrides.extend(self.table.overrides_of(&service.key));
            }
        }
        self.impose(view, moved);
        Written {
            applied,
            stored,
            known,
        }
    }

    /// This server vouches for the session from now on: as the first, in place of another, or again although it had
    /// lapsed, in which case its nodes are listed again. Nothing is written if it does already.
    ///
    /// # Errors
    /// The session was closed: it is dead.
    pub fn claim(&mut self, view: &mut Directory, now_ms: u64, seed: SessionSeed) -> Result<Merged, Refusal> {
        let session = seed.id;
        let claim = match self.session(session) {
            None => 1,
            Some(known) => match known.standing {
                Standing::Closed => return Err(Refusal::SessionNotFound { session }),
                Standing::Held if known.holder == self.server => return Ok(Merged::default()),
                Standing::Held | Standing::Lapsed { .. } => known.claim + 1,
            },
        };
        let value = SessionValue {
            secret_digest: seed.secret_digest,
            ttl_ms: seed.ttl_ms,
            client: seed.client,
            holder: self.server,
            claim,
            standing: Standing::Held,
        };
        let stamp = self.clock.stamp(now_ms);
        let stored = self.own(Key::Session(session), Value::Session(Box::new(value)), stamp);
        let mut moved = Moved::default();
        moved.sessions.insert(session);
        Ok(Merged {
            stored: vec![stored],
            changes: self.impose(view, moved),
            taken: 1,
            refused: None,
        })
    }

    /// Takes in what another server said, in one revision, as far as the stamps are credible. Records that are not
    /// sound, or dead for longer than is remembered, are passed over.
    pub fn merge(
        &mut self,
        view: &mut Directory,
        now_ms: u64,
        ahead_max_ms: u64,
        records: Vec<Record>,
    ) -> Merged {
        let mut merged = Merged::default();
        let mut moved = Moved::default();
        let mut forgotten = BTreeSet::new();
        for record in records {
            if let Err(far) = FarFuture::check(record.stamp, now_ms, ahead_max_ms) {
                merged.refused = Some(far);
                break;
            }
            merged.taken += 1;
            if !record.is_sound() || self.is_forgotten(&record, &mut forgotten) {
                continue;
            }
            self.clock.observe(record.stamp);
            merged.stored.extend(self.merge_one(record, &mut moved));
        }
        merged.changes = self.impose(view, moved);
        merged
    }

    fn is_forgotten(&self, record: &Record, forgotten: &mut BTreeSet<SessionId>) -> bool {
        let old = record.stamp.millis < self.horizon_ms && self.table.of(&record.key).is_none();
        match &record.key {
            Key::Session(id) if old && record.is_dead() => {
                forgotten.insert(*id);
                true
            }
            Key::Session(_) => false,
            Key::Node(_) | Key::Override(_) => {
                old && record.is_dead()
                    || table::session_of(record).is_some_and(|session| forgotten.contains(&session))
            }
        }
    }

    pub(super) fn merge_one(&mut self, record: Record, moved: &mut Moved) -> Option<Stored> {
        let known = self.table.of(&record.key);
        let record = match known {
            Some(known) if planted(Mutant::Resurrect) && known.is_dead() && !record.is_dead() => record,
            None => record,
            Some(known) => {
                let owner = table::session_of(known);
                let after = known.grown(record)?;
                // A lapsed session may lose the node on which it hung.
                moved.owners.extend(owner);
                after
            }
        };
        moved.note(&record);
        // What supersedes a record of this server's own log is no part of that log.
        let stored = Stored::new(record.into(), None);
        self.table.put(&stored);
        Some(stored)
    }

    /// Follows a definition of the Raft directory: a group, a service, limits, the storm switch. A group that is new
    /// here shows at once what the records say of it.
    ///
    /// # Errors
    /// The view's refusal: a group or service that still has something cannot go.
    pub fn define(
        &mut self,
        view: &mut Directory,
        command: &Command,
    ) -> Result<Option<Arc<RevisionChanges>>, Refusal> {
        self.applied += 1;
        let at = LogPosition {
            term: VIEW_TERM,
            index: LogIndex(self.applied),
        };
        let mut moved = Moved::default();
        match command {
            Command::PutGroup { group, .. } if view.group(group).is_none() => {
                let records = self.table.records_of_group(group.as_str());
                records.for_each(|record| moved.note(record));
            }
            Command::PutService { key, .. } if view.service(key).is_none() => {
                moved.overrides.extend(self.table.overrides_of(key));
            }
            _ => {}
        }
        let applied = view.apply_definition(at, command);
        applied.result?;
        Ok(self.impose(view, moved).or(applied.changes))
    }

    /// Forgets what has been dead for longer than `retention_ms`, with all that only it explains. To be asked now
    /// and then by every server with the same retention: it rounds time so that they forget at the same moments.
    pub fn purge(&mut self, now_ms: u64, retention_ms: u64) -> Purged {
        let round = (retention_ms / 16).max(1);
        self.horizon_ms = (now_ms / round * round).saturating_sub(retention_ms);
        let horizon_ms = self.horizon_ms;
        let is_old = |record: &Record| record.stamp.millis < horizon_ms;
        let mut gone: BTreeSet<Key> = BTreeSet::new();
        for record in self.table.records() {
            if is_old(record) && record.is_dead() {
                gone.insert(record.key.clone());
                if let Key::Session(id) = record.key {
                    gone.extend(self.table.nodes_of(id).cloned().map(Key::Node));
                }
            }
            // Nobody has vouched for it for twice as long.
            let orphaned = table::session_of(record).is_some_and(|session| self.session(session).is_none());
            if orphaned && record.stamp.millis < self.horizon_ms.saturating_sub(retention_ms) {
                gone.insert(record.key.clone());
            }
        }
        gone.iter().for_each(|key| self.table.remove(key));
        let spent = self.spent(is_old);
        let mut purged = Purged {
            gone: gone.into_iter().collect(),
            stored: Vec::new(),
        };
        for (key, value) in spent {
            let stamp = self.clock.stamp(now_ms);
            purged.stored.push(self.own(key, value, stamp));
        }
        purged
    }

    /// Before which moment what was dead may be forgotten, by the last [`Self::purge`].
    #[must_use]
    pub fn horizon_ms(&self) -> u64 {
        self.horizon_ms
    }

    /// Until it forgets again, what is dead is taken in however old it is.
    pub fn take_in_all(&mut self) {
        self.horizon_ms = 0;
    }

    /// Sessions that lapsed and hold nothing any more, for others took their nodes over: their records, saying so. Forgotten
    /// they would be fetched back from servers that forget later, and who came back would begin at the first claim.
    fn spent(&self, is_old: impl Fn(&Record) -> bool) -> Vec<(Key, Value)> {
        let old = self
            .table
            .sessions()
            .filter(|record| is_old(record) && !record.is_dead());
        let spent = old.filter_map(|record| match (&record.key, &record.value) {
            (Key::Session(id), Value::Session(session))
                if matches!(session.standing, Standing::Lapsed { .. }) && !self.holds_any(*id, session) =>
            {
                let said = SessionValue {
                    standing: Standing::Lapsed { held: Vec::new() },
                    ..SessionValue::clone(session)
                };
                Some((record.key.clone(), Value::Session(Box::new(said))))
            }
            _ => None,
        });
        spent.collect()
    }

    /// The number of the last record in this server's own log.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.table.head()
    }

    /// The records behind number `after` of this server's own log, up to about so many bytes, at least one.
    #[must_use]
    pub fn range(&self, after: Seq, bytes_max: usize) -> Range {
        self.table.range(after, bytes_max.max(1))
    }

    /// A digest of all records of each group; those of sessions, which belong to none, under the empty name.
    #[must_use]
    pub fn group_digests(&self) -> Vec<(String, u128)> {
        self.table.group_digests()
    }

    /// That of one group; 0 if it has no records.
    #[must_use]
    pub fn group_digest(&self, group: &str) -> u128 {
        self.table.group_digest(group)
    }

    /// The digests of a group's buckets, in their order.
    #[must_use]
    pub fn bucket_digests(&self, group: &str) -> Vec<(Bucket, u128)> {
        self.table.bucket_digests(group)
    }

    /// A bucket's records; those of a service behind the sessions that its nodes name.
    #[must_use]
    pub fn bucket(&self, bucket: &Bucket) -> Vec<Arc<Record>> {
        self.table.bucket(bucket)
    }

    /// What is known of a session, closed ones included.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&SessionValue> {
        match &self.table.of(&Key::Session(id))?.value {
            Value::Session(session) => Some(session),
            Value::Node(_) | Value::Override(_) => None,
        }
    }

    /// The sessions for which this server vouches, or did last, and of which something may be listed.
    #[must_use]
    pub fn sessions_held_by(&self, server: ServerId) -> Vec<SessionId> {
        self.table
            .sessions()
            .filter_map(|record| match (&record.key, &record.value) {
                (Key::Session(id), Value::Session(session)) => {
                    (session.holder == server && session.is_alive()).then_some(*id)
                }
                _ => None,
            })
            .collect()
    }

    /// One record.
    #[must_use]
    pub fn record(&self, key: &Key) -> Option<&Arc<Record>> {
        self.table.of(key)
    }

    /// One record, with its number.
    #[must_use]
    pub fn stored(&self, key: &Key) -> Option<Stored> {
        self.table.stored(key)
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// The last stamp given out or heard.
    #[must_use]
    pub fn latest(&self) -> Stamp {
        self.clock.latest()
    }

    pub(super) fn own(&mut self, key: Key, value: Value, stamp: Stamp) -> Stored {
        let record = Arc::new(Record { key, value, stamp });
        let stored = Stored::new(record, Some(self.table.next_seq()));
        self.table.put(&stored);
        stored
    }
}

fn refuse_foreign(command: &Command) -> Option<Refusal> {
    let what = match command {
        Command::PutGroup { .. }
        | Command::ChangeGroup { .. }
        | Command::ChangeService { .. }
        | Command::DeleteGroup { .. }
        | Command::PutService { .. }
        | Command::DeleteService { .. }
        | Command::SetLimits { .. }
        | Command::SetStorm { .. }
        | Command::BeginMove { .. }
        | Command::AdoptNodes { .. }
        | Command::EndMove { .. } => "a definition, which belongs to the Raft directory",
        Command::OpenSession { .. } => "the opening of a session, which is claimed instead",
        Command::CloseSession { .. }
        | Command::ExpireSessions { .. }
        | Command::Register { .. }
        | Command::Deregister { .. }
        | Command::Update { .. }
        | Command::SetOverride { .. }
        | Command::ClearOverride { .. }
        | Command::ExpireOverrides { .. }
        | Command::ReviveSessions { .. }
        | Command::CloseGuardWindows { .. }
        | Command::ReleaseHeld { .. }
        | Command::ConfirmRemoval { .. } => return None,
    };
    Some(Refusal::Invalid {
        field: "command".into(),
        problem: format!("is {what}"),
    })
}
