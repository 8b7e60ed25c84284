//! The replica: one server's records, its clock, and what they make of the view.
//!
//! Invariant: outside a call the view lists exactly what the records say ([`Replica::listed`]), as far as its groups
//! are known.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Key, NodeValue, Record, Seq, SessionSeed, SessionValue, Standing, Stored, Value};
use super::stamp::{Clock, Stamp};
use super::table::{self, Bucket, Range, Table};
use crate::directory::{
    Applied, Command, Directory, ImposedNode, ImposedSession, Imposition, Listed, Node, NodeChange,
    NodeState, Override, Refusal, RemovalCause, Request, RevisionChanges, ServiceFate, SessionChange,
};
use crate::ids::{LogIndex, LogPosition, NodeKey, RequestId, Revision, ServerId, SessionId, Term};

/// The term of everything that is applied to a view: nobody else writes to it, so there is only one.
pub const VIEW_TERM: Term = Term(1);

/// What a local write did.
#[derive(Debug)]
pub struct Written {
    /// For the caller and the watchers.
    pub applied: Applied,
    /// To be made durable before the caller is answered, and to be told to the others.
    pub stored: Vec<Stored>,
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

/// Which records moved, so that the view must be looked at.
#[derive(Default)]
struct Moved {
    sessions: BTreeSet<SessionId>,
    nodes: BTreeSet<NodeKey>,
    overrides: BTreeSet<NodeKey>,
}

/// One server's records of all AP groups. The same view must be handed in every time, and nobody else may write to it.
#[derive(Clone, Debug)]
pub struct Replica {
    server: ServerId,
    table: Table,
    clock: Clock,
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

    /// A record from this server's disk, in any order. [`Self::impose_all`] follows.
    pub fn load(&mut self, stored: Stored) {
        self.clock.observe(stored.record.stamp);
        self.table.put(stored.record, stored.seq);
    }

    /// Brings the view to what the records say: after loading.
    pub fn impose_all(&self, view: &mut Directory) -> Option<Arc<RevisionChanges>> {
        let mut moved = Moved::default();
        self.table.records().for_each(|record| moved.note(&record.key));
        self.impose(view, moved)
    }

    /// Carries out a local write. Definitions of groups and services, which belong to the Raft directory, and the
    /// opening of sessions ([`Self::claim`]) are refused.
    pub fn write(&mut self, view: &mut Directory, now_ms: u64, request: &Request) -> Written {
        if let Some(refusal) = refuse_foreign(&request.command) {
            return Written {
                applied: Applied {
                    result: Err(refusal),
                    changes: None,
                },
                stored: Vec::new(),
            };
        }
        self.applied += 1;
        let at = LogPosition {
            term: VIEW_TERM,
            index: LogIndex(self.applied),
        };
        let applied = view.apply(at, request);
        let stored = match &applied.changes {
            Some(changes) => self.write_down(view, now_ms, &request.command, changes),
            None => Vec::new(),
        };
        let mut moved = heard_again(&stored);
        for service in applied.changes.iter().flat_map(|changes| &changes.services) {
            if service.fate == ServiceFate::Created {
                moved.overrides.extend(self.table.overrides_of(&service.key));
            }
        }
        self.impose(view, moved);
        Written { applied, stored }
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
            let ahead_ms = record.stamp.millis.saturating_sub(now_ms);
            if ahead_ms > ahead_max_ms {
                merged.refused = Some(FarFuture {
                    server: record.stamp.server,
                    ahead_ms,
                    ahead_max_ms,
                });
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

    fn merge_one(&mut self, record: Record, moved: &mut Moved) -> Option<Stored> {
        let record = match self.table.of(&record.key) {
            None => record,
            Some(known) => {
                let after = known.merged(&record);
                if after == **known {
                    return None;
                }
                // A lapsed session may lose the node on which it hung.
                moved.sessions.extend(table::session_of(known));
                after
            }
        };
        moved.note(&record.key);
        let record = Arc::new(record);
        // What supersedes a record of this server's own log is no part of that log.
        self.table.put(record.clone(), None);
        Some(Stored { record, seq: None })
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
        let request = Request {
            id: RequestId(u128::MAX - u128::from(self.applied)),
            command: command.clone(),
        };
        let mut moved = Moved::default();
        match command {
            Command::PutGroup { group, .. } if view.group(group).is_none() => {
                let records = self.table.records_of_group(group.as_str());
                records.for_each(|record| moved.note(&record.key));
            }
            Command::PutService { key, .. } if view.service(key).is_none() => {
                moved.overrides.extend(self.table.overrides_of(key));
            }
            _ => {}
        }
        let applied = view.apply(at, &request);
        applied.result?;
        Ok(self.impose(view, moved).or(applied.changes))
    }

    /// Forgets what has been dead for longer than `retention_ms`, with all that only it explains. To be asked now
    /// and then by every server with the same retention: it rounds time so that they forget at the same moments.
    pub fn purge(&mut self, now_ms: u64, retention_ms: u64) -> Vec<Key> {
        let round = (retention_ms / 16).max(1);
        self.horizon_ms = (now_ms / round * round).saturating_sub(retention_ms);
        let is_old = |record: &Record| record.stamp.millis < self.horizon_ms;
        let mut gone: BTreeSet<Key> = BTreeSet::new();
        for record in self.table.records() {
            if record.is_dead() && is_old(record) {
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
        gone.into_iter().collect()
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

    fn own(&mut self, key: Key, value: Value, stamp: Stamp) -> Stored {
        let record = Arc::new(Record { key, value, stamp });
        let seq = Some(self.table.next_seq());
        self.table.put(record.clone(), seq);
        Stored { record, seq }
    }
}

/// From the view to records.
impl Replica {
    /// What a command changed in the view, as records. What follows from a session's record is not written again.
    fn write_down(
        &mut self,
        view: &Directory,
        now_ms: u64,
        command: &Command,
        changes: &RevisionChanges,
    ) -> Vec<Stored> {
        let stamp = self.clock.stamp(now_ms);
        let mut values: Vec<(Key, Value)> = Vec::new();
        let mut touched: BTreeSet<SessionId> = changes.sessions.iter().map(session_in).collect();
        for service in &changes.services {
            for change in &service.nodes {
                let id = match change {
                    NodeChange::Put { node, .. } => &node.registration.id,
                    NodeChange::Removed { id, .. } => id,
                };
                let key = Key::Node(NodeKey {
                    service: service.key.clone(),
                    node: id.clone(),
                });
                touched.extend(self.table.of(&key).and_then(|record| table::session_of(record)));
                values.extend(self.node_value(&key, change).map(|value| (key, value)));
            }
        }
        values.extend(override_keys(command).filter_map(|key| self.override_value(view, key)));
        // Sessions first: whoever hears of a node has heard who vouches for it.
        let sessions = touched
            .into_iter()
            .filter_map(|id| Some((Key::Session(id), self.session_value(view, command, id)?)))
            .collect::<Vec<_>>();
        sessions
            .into_iter()
            .chain(values)
            .map(|(key, value)| self.own(key, value, stamp))
            .collect()
    }

    fn node_value(&self, key: &Key, change: &NodeChange) -> Option<Value> {
        let known = match self.table.of(key).map(|record| &record.value) {
            Some(Value::Node(value)) => value.as_deref(),
            _ => None,
        };
        match change {
            NodeChange::Put { node, .. } => {
                let said = NodeValue {
                    registration: node.registration.clone(),
                    kind: node.kind,
                    session: node.session,
                    incarnation: node.incarnation,
                };
                (known != Some(&said)).then(|| Value::Node(Some(Box::new(said))))
            }
            NodeChange::Removed {
                cause: RemovalCause::Deregistered,
                ..
            } => known.map(|_| Value::Node(None)),
            // Its session's record says so.
            NodeChange::Removed { .. } => None,
        }
    }

    fn override_value(&self, view: &Directory, key: NodeKey) -> Option<(Key, Value)> {
        let over = view
            .service(&key.service)
            .and_then(|service| service.overrides.get(&key.node));
        let said = over.map(|over| {
            Box::new(Override {
                set_at: Revision(0),
                ..Override::clone(over)
            })
        });
        let key = Key::Override(key);
        let known = match self.table.of(&key).map(|record| &record.value) {
            Some(Value::Override(value)) => value.clone(),
            _ => None,
        };
        // One with a ttl that is set again begins anew, though it says the same.
        let again = said.as_ref().is_some_and(|over| over.ttl_ms > 0);
        (again || known != said).then_some((key, Value::Override(said)))
    }

    fn session_value(&self, view: &Directory, command: &Command, id: SessionId) -> Option<Value> {
        let known = self.session(id)?;
        let mut said = known.clone();
        said.standing = match view.session(id) {
            Some(session) if session.lapsed.is_some() => Standing::Lapsed {
                held: session.nodes.clone(),
            },
            Some(_) => Standing::Held,
            None => match command {
                Command::CloseSession { .. }
                | Command::ConfirmRemoval { .. }
                | Command::Deregister { .. } => Standing::Closed,
                _ => Standing::Lapsed { held: Vec::new() },
            },
        };
        if said.standing == known.standing {
            return None;
        }
        if said.standing == Standing::Held {
            said.claim += 1;
            said.holder = self.server;
        }
        Some(Value::Session(Box::new(said)))
    }
}

/// From records to the view.
impl Replica {
    fn impose(&self, view: &mut Directory, mut moved: Moved) -> Option<Arc<RevisionChanges>> {
        let mut imposition = Imposition::default();
        // A node's session must be there before it is.
        let named = moved.nodes.iter().filter_map(|key| self.node(key)?.session);
        moved.sessions.extend(named.collect::<Vec<_>>());
        for id in &moved.sessions {
            moved.nodes.extend(self.table.nodes_of(*id).cloned());
            let Some(session) = self.session(*id) else {
                continue;
            };
            let lapsed = match &session.standing {
                Standing::Held => false,
                Standing::Lapsed { .. } if self.holds_any(*id, session) => true,
                Standing::Lapsed { .. } => {
                    imposition.ended.push((*id, RemovalCause::Expired));
                    continue;
                }
                Standing::Closed => {
                    imposition.ended.push((*id, RemovalCause::SessionClosed));
                    continue;
                }
            };
            imposition.sessions.push(ImposedSession {
                id: *id,
                secret_digest: session.secret_digest,
                ttl_ms: session.ttl_ms,
                client: session.client.clone(),
                lapsed,
            });
        }
        // A service that comes with its first node finds what operators said of its nodes before.
        let new: BTreeSet<_> = moved.nodes.iter().map(|key| &key.service).collect();
        for service in new.into_iter().filter(|service| view.service(service).is_none()) {
            moved.overrides.extend(self.table.overrides_of(service));
        }
        for key in moved.nodes {
            let listed = self.listed(&key);
            imposition.nodes.push(ImposedNode { key, listed });
        }
        for key in moved.overrides {
            let over = match self
                .table
                .of(&Key::Override(key.clone()))
                .map(|record| &record.value)
            {
                Some(Value::Override(over)) => over.as_deref().cloned(),
                _ => None,
            };
            imposition.overrides.push((key, over));
        }
        view.impose(imposition)
    }

    fn node(&self, key: &NodeKey) -> Option<&NodeValue> {
        match &self.table.of(&Key::Node(key.clone()))?.value {
            Value::Node(value) => value.as_deref(),
            Value::Override(_) | Value::Session(_) => None,
        }
    }

    fn holds_any(&self, id: SessionId, session: &SessionValue) -> bool {
        let Standing::Lapsed { held } = &session.standing else {
            return false;
        };
        held.iter()
            .any(|key| self.node(key).is_some_and(|node| node.session == Some(id)))
    }

    /// How a node is listed, or why it is not.
    fn listed(&self, key: &NodeKey) -> Result<Listed, RemovalCause> {
        let node = self.node(key).ok_or(RemovalCause::Deregistered)?;
        let state = match node.session {
            None => node.registration.state,
            Some(id) => {
                // Nobody vouches for what nobody has heard of.
                let session = self.session(id).ok_or(RemovalCause::Expired)?;
                match &session.standing {
                    Standing::Held => node.registration.state,
                    Standing::Lapsed { held } if held.binary_search(key).is_ok() => NodeState::Suspect,
                    Standing::Lapsed { .. } => return Err(RemovalCause::Expired),
                    Standing::Closed => return Err(RemovalCause::SessionClosed),
                }
            }
        };
        Ok(Listed {
            registration: node.registration.clone(),
            kind: node.kind,
            session: node.session,
            incarnation: node.incarnation,
            state,
        })
    }

    /// Whether the view lists exactly what the records say of the groups it has: for tests and for doubt.
    #[must_use]
    pub fn is_shown_by(&self, view: &Directory) -> bool {
        let known = |key: &NodeKey| view.group(&key.service.group).is_some();
        let mut listed = 0;
        let all_right = self.table.records().all(|record| match &record.key {
            Key::Node(key) if known(key) => match (self.listed(key), view.node(key)) {
                (Ok(said), Some(node)) => {
                    listed += 1;
                    shows(&said, node)
                }
                (Err(_), None) => true,
                (Ok(_), None) | (Err(_), Some(_)) => false,
            },
            Key::Node(_) | Key::Override(_) | Key::Session(_) => true,
        });
        all_right && listed == view.totals().nodes
    }
}

impl Moved {
    fn note(&mut self, key: &Key) {
        match key {
            Key::Node(key) => _ = self.nodes.insert(key.clone()),
            Key::Override(key) => _ = self.overrides.insert(key.clone()),
            Key::Session(id) => _ = self.sessions.insert(*id),
        }
    }
}

fn shows(said: &Listed, node: &Node) -> bool {
    said.state == node.state && said.session == node.session && said.registration == node.registration
}

/// Sessions that are held now. Those that had lapsed bring back also what the guard had let go: whoever is heard from
/// takes itself to be registered.
fn heard_again(stored: &[Stored]) -> Moved {
    let mut moved = Moved::default();
    for stored in stored {
        if let (Key::Session(id), Value::Session(session)) = (&stored.record.key, &stored.record.value)
            && session.standing == Standing::Held
        {
            moved.sessions.insert(*id);
        }
    }
    moved
}

fn session_in(change: &SessionChange) -> SessionId {
    match *change {
        SessionChange::Opened { session, .. }
        | SessionChange::Ended { session, .. }
        | SessionChange::Lapsed { session, .. }
        | SessionChange::Revived { session, .. } => session,
    }
}

/// The overrides that a command may have changed.
fn override_keys(command: &Command) -> impl Iterator<Item = NodeKey> {
    let keys = match command {
        Command::SetOverride { key, .. } | Command::ClearOverride { key } => vec![key.clone()],
        Command::ExpireOverrides { overrides, .. } => overrides.iter().map(|(key, _)| key.clone()).collect(),
        _ => Vec::new(),
    };
    keys.into_iter()
}

fn refuse_foreign(command: &Command) -> Option<Refusal> {
    let what = match command {
        Command::PutGroup { .. }
        | Command::DeleteGroup { .. }
        | Command::PutService { .. }
        | Command::DeleteService { .. }
        | Command::SetLimits { .. }
        | Command::SetStorm { .. } => "a definition, which belongs to the Raft directory",
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
