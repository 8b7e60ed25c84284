//! The whole replicated state as bytes.
//!
//! Layout: magic (8 bytes), format (2), length of the body (8), body in postcard, xxh3-128 of everything before
//! (16); numbers little endian. Records of the storm switch follow the body's fields if any was ever set or something
//! stands behind them: the sessions that lost nodes, if there are any. The change log is not part of it. After reading, signs, counts and the state digest are computed anew from the
//! records and compared with what the writer had, so that a snapshot which does not add up is refused here and
//! not noticed later as a replica that differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::changelog::{ChangeLog, ChangeLogBounds};
use super::departed::Departed;
use super::digest::{self, StateDigest};
use super::limits::Limits;
use super::owned::OwnedNodes;
use super::record::{Group, GroupMode, NodeState, Service, Session};
use super::requests::{Remembered, RequestTable};
use super::session_table::SessionTable;
use super::sign::Sign;
use super::state::{Directory, Totals};
use crate::guard::Ledger;
use crate::ids::{GroupName, Incarnation, LogIndex, RequestId, Revision, SessionId};
use crate::storm::{Modes, Scope};

const MAGIC: &[u8; 8] = b"ROLLCALL";
/// The format this version writes, and the only one it reads.
pub const SNAPSHOT_FORMAT: u16 = 1;
const HEAD_BYTES: usize = 18;
const CHECKSUM_BYTES: usize = 16;

/// Bytes that are no snapshot this version can start from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Shorter than it says it is, or than any snapshot: fetch it again, or use an older one.
    #[error("snapshot is cut off: has {bytes} bytes, needs {needed}")]
    CutOff {
        /// How many bytes there are.
        bytes: usize,
        /// How many there should be, at least.
        needed: u64,
    },
    /// Longer than it says it is: not what the writer wrote.
    #[error("snapshot has {trailing} bytes behind its end")]
    TrailingBytes {
        /// How many too many.
        trailing: usize,
    },
    /// Some other file.
    #[error("not a snapshot: it begins with {found:02x?}, not with {MAGIC:02x?}")]
    NotASnapshot {
        /// Its first bytes.
        found: [u8; 8],
    },
    /// Written by another version: upgrade this server, or restore a snapshot of its own version.
    #[error("snapshot has format {found}, this version reads format {SNAPSHOT_FORMAT}")]
    UnknownFormat {
        /// Its format.
        found: u16,
    },
    /// Damaged on disk or on the way: fetch it again, or use an older one.
    #[error("snapshot is damaged: checksum {computed:032x}, expected {stored:032x}")]
    Damaged {
        /// What it should be.
        stored: u128,
        /// What it is.
        computed: u128,
    },
    /// The checksum is right, the records are not: a defect of the writer. Restore an older one and report it.
    #[error("snapshot is malformed: {problem}")]
    Malformed {
        /// What the decoder met.
        problem: String,
    },
    /// The records do not add up to what the writer said: a defect of the writer. Restore an older one and
    /// report it.
    #[error("snapshot is inconsistent: {what} is {computed}, the writer had {stored}")]
    Inconsistent {
        /// What does not add up.
        what: String,
        /// What the writer had.
        stored: String,
        /// What the records give.
        computed: String,
    },
}

/// Written field by field in this order; read likewise.
#[derive(Serialize, Deserialize)]
struct Body {
    limits: Limits,
    revision: Revision,
    last_session: SessionId,
    incarnation_floor: Incarnation,
    state_hash: u128,
    groups: Arc<BTreeMap<GroupName, Arc<Group>>>,
    sessions: Vec<StoredSession>,
    requests: Vec<(RequestId, Remembered)>,
}

/// Without its nodes: each of them names its session.
#[derive(Serialize, Deserialize)]
struct StoredSession {
    id: SessionId,
    secret_digest: [u8; 32],
    ttl_ms: u32,
    client: String,
    opened: Revision,
    last_renewal: LogIndex,
    lapsed: Option<Revision>,
}

impl Directory {
    /// The state as bytes; the same state gives the same bytes on every server. Takes time and memory in
    /// proportion to the state: call it on a clone, outside of any lock.
    #[must_use]
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let body = Body {
            limits: self.limits.clone(),
            revision: self.revision,
            last_session: self.last_session,
            incarnation_floor: self.incarnation_floor,
            state_hash: self.state_hash(),
            groups: Arc::clone(&self.groups),
            sessions: self
                .sessions
                .iter()
                .map(|session| StoredSession::of(session))
                .collect(),
            requests: self.requests.iter().collect(),
        };
        let mut bytes = Vec::with_capacity(64 * 1024);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut bytes = postcard::to_extend(&body, bytes).expect("plain records always encode");
        let bereft = self.sessions.iter().filter(|session| session.lost_nodes);
        let bereft: Vec<SessionId> = bereft.map(|session| session.id).collect();
        if *self.storm != Modes::default() || !bereft.is_empty() {
            bytes = postcard::to_extend(&*self.storm, bytes).expect("plain records always encode");
        }
        if !bereft.is_empty() {
            bytes = postcard::to_extend(&bereft, bytes).expect("plain records always encode");
        }
        let length = (bytes.len() - HEAD_BYTES) as u64;
        bytes[10..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        let checksum = xxh3_128(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode_snapshot`] wrote. The change log starts empty, with floor and head at the
    /// snapshot's revision.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] says what is wrong; nothing was changed.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let body = checked_body(bytes)?;
        let malformed_by = |error: postcard::Error| malformed(error.to_string());
        let (body, rest) = postcard::take_from_bytes::<Body>(body).map_err(malformed_by)?;
        let (storm, rest) = match rest {
            [] => (Modes::default(), rest),
            rest => postcard::take_from_bytes::<Modes>(rest).map_err(malformed_by)?,
        };
        let (bereft, rest) = match rest {
            [] => (Vec::new(), rest),
            rest => postcard::take_from_bytes::<Vec<SessionId>>(rest).map_err(malformed_by)?,
        };
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes left over", rest.len())));
        }
        body.restore(storm, bereft)
    }
}

/// The body of a snapshot whose frame is right.
fn checked_body(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let cut_off = |needed: u64| SnapshotError::CutOff {
        bytes: bytes.len(),
        needed,
    };
    let least = (HEAD_BYTES + CHECKSUM_BYTES) as u64;
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(cut_off(least))?;
    if magic != MAGIC {
        return Err(SnapshotError::NotASnapshot { found: *magic });
    }
    let (format, rest) = rest.split_first_chunk::<2>().ok_or(cut_off(least))?;
    let format = u16::from_le_bytes(*format);
    if format != SNAPSHOT_FORMAT {
        return Err(SnapshotError::UnknownFormat { found: format });
    }
    let (length, rest) = rest.split_first_chunk::<8>().ok_or(cut_off(least))?;
    let length = u64::from_le_bytes(*length);
    let needed = length.saturating_add(least);
    let length = usize::try_from(length).map_err(|_| cut_off(needed))?;
    let (body, rest) = rest.split_at_checked(length).ok_or(cut_off(needed))?;
    let (stored, rest) = rest
        .split_first_chunk::<CHECKSUM_BYTES>()
        .ok_or(cut_off(needed))?;
    if !rest.is_empty() {
        return Err(SnapshotError::TrailingBytes { trailing: rest.len() });
    }
    let stored = u128::from_le_bytes(*stored);
    let computed = xxh3_128(&bytes[..HEAD_BYTES + length]);
    if stored != computed {
        return Err(SnapshotError::Damaged { stored, computed });
    }
    Ok(body)
}

impl StoredSession {
    fn of(session: &Session) -> Self {
        Self {
            id: session.id,
            secret_digest: session.secret_digest,
            ttl_ms: session.ttl_ms,
            client: session.client.clone(),
            opened: session.opened,
            last_renewal: session.last_renewal,
            lapsed: session.lapsed,
        }
    }

    fn restore(self, lost_nodes: bool) -> Session {
        Session {
            id: self.id,
            secret_digest: self.secret_digest,
            ttl_ms: self.ttl_ms,
            client: self.client,
            opened: self.opened,
            last_renewal: self.last_renewal,
            lapsed: self.lapsed,
            lost_nodes,
            nodes: OwnedNodes::default(),
        }
    }
}

impl Body {
    fn restore(self, storm: Modes, bereft: Vec<SessionId>) -> Result<Directory, SnapshotError> {
        let mut bereft: BTreeSet<SessionId> = bereft.into_iter().collect();
        let mut directory = Directory {
            limits: self.limits,
            serving: GroupMode::default(),
            revision: self.revision,
            groups: self.groups,
            sessions: SessionTable::default(),
            departed: Departed::default(),
            last_session: self.last_session,
            incarnation_floor: self.incarnation_floor,
            requests: RequestTable::default(),
            storm: Arc::default(),
            digest: StateDigest::starting_at(self.revision),
            totals: Totals::default(),
            changes: ChangeLog::starting_at(self.revision, ChangeLogBounds::default()),
        };
        for session in self.sessions {
            let id = session.id;
            let given_out = id.is_gossiped() || id <= directory.last_session;
            if !given_out || directory.sessions.of(id).is_some() {
                return Err(malformed(format!(
                    "session {id} is there twice, or was never given out"
                )));
            }
            let session = session.restore(bereft.remove(&id));
            directory.digest.add(digest::of_session(&session));
            directory.sessions.insert_counted(session);
        }
        if let Some(id) = bereft.first() {
            return Err(malformed(format!("session {id}, which lost nodes, is missing")));
        }
        for (id, remembered) in self.requests {
            if directory.requests.contains(id) {
                return Err(malformed(format!("request {id} is there twice")));
            }
            if !remembered.is_plausible() {
                return Err(malformed(format!(
                    "what is remembered of request {id} was never answered"
                )));
            }
            directory
                .requests
                .remember(id, remembered, usize::MAX, &mut directory.digest);
        }
        directory.take_in_storm(storm);
        let groups = Arc::clone(&directory.groups);
        for (name, group) in groups.iter() {
            directory.take_in_group(name, group)?;
        }
        agree(
            || "the state hash".into(),
            &Sign(self.state_hash),
            &Sign(directory.state_hash()),
        )?;
        Ok(directory)
    }
}

impl Directory {
    fn take_in_storm(&mut self, storm: Modes) {
        self.digest
            .add(digest::of_storm(&Scope::Cluster, storm.cluster()));
        for (group, record) in storm.groups() {
            self.digest
                .add(digest::of_storm(&Scope::Group(group.clone()), record));
        }
        self.storm = Arc::new(storm);
    }

    /// Counts a group of a snapshot in, and checks that it adds up.
    fn take_in_group(&mut self, name: &GroupName, group: &Group) -> Result<(), SnapshotError> {
        agree(|| "the name of a group".into(), name, &group.name)?;
        let mut sign = Sign::default();
        let mut nodes = 0;
        for (service_name, service) in &group.services {
            agree(|| "the group of a service".into(), name, &service.key.group)?;
            agree(
                || "the name of a service".into(),
                service_name,
                &service.key.service,
            )?;
            self.take_in_service(service)?;
            sign = sign.plus(Sign::of_service(service_name, service.sign));
            nodes += service.nodes.len() as u64;
        }
        agree(|| format!("the sign of group {name}"), &group.sign, &sign)?;
        agree(
            || format!("the number of nodes of group {name}"),
            &group.nodes,
            &nodes,
        )?;
        self.digest.add(digest::of_group(group));
        Ok(())
    }

    fn take_in_service(&mut self, service: &Service) -> Result<(), SnapshotError> {
        let key = &service.key;
        let mut sign = Sign::default();
        let mut room = Vec::new();
        for (id, node) in &service.nodes {
            agree(|| "the id of a node".into(), id, &node.registration.id)?;
            let over = service.overrides.get(id).map(AsRef::as_ref);
            let (shown, hash) = digest::of_node(&mut room, key, node, over);
            sign = sign.plus(shown);
            self.digest.add(hash);
            let Some(owner) = node.session() else { continue };
            if self.sessions.of(owner).is_none() {
                return Err(malformed(format!(
                    "session {owner}, which owns node {key}/{id}, is missing"
                )));
            }
            self.sessions.give_nodes(owner, key, [id].into_iter());
        }
        for (id, over) in &service.overrides {
            self.digest.add(digest::of_override(key, id, over));
        }
        for (id, tombstone) in service.tombstones.iter() {
            self.digest.add(digest::of_tombstone(key, id, tombstone));
        }
        self.check_guard(service)?;
        agree(|| format!("the sign of service {key}"), &service.sign, &sign)?;
        self.digest.add(digest::of_service(service));
        self.totals.services += 1;
        self.totals.note_ledger(&Ledger::default(), &service.guard);
        self.totals.nodes += service.nodes.len() as u64;
        self.totals.overrides += service.overrides.len() as u64;
        Ok(())
    }
}

impl Directory {
    /// Suspects are those nodes whose session lapsed, and the guard has counted right.
    fn check_guard(&self, service: &Service) -> Result<(), SnapshotError> {
        let key = &service.key;
        let (mut up, mut held) = (0, 0);
        for (id, node) in &service.nodes {
            let owner = node.session().and_then(|owner| self.sessions.of(owner));
            let lapsed = owner.is_some_and(|session| session.lapsed.is_some());
            let suspect = node.state == NodeState::Suspect;
            agree(
                || format!("whether node {key}/{id} is suspect"),
                &suspect,
                &lapsed,
            )?;
            up += u32::from(node.state == NodeState::Up);
            held += u32::from(suspect);
        }
        let guard = &service.guard;
        let listed = u32::try_from(service.nodes.len()).unwrap_or(u32::MAX);
        agree(
            || format!("the guard's count of nodes of service {key}"),
            &guard.listed(),
            &listed,
        )?;
        agree(
            || format!("the guard's count of up nodes of service {key}"),
            &guard.up(),
            &up,
        )?;
        agree(
            || format!("the guard's count of held nodes of service {key}"),
            &guard.held(),
            &held,
        )?;
        agree(
            || format!("whether service {key} holds nodes"),
            &guard.hold().is_some(),
            &(held > 0),
        )
    }
}

fn malformed(problem: String) -> SnapshotError {
    SnapshotError::Malformed { problem }
}

fn agree<T: PartialEq + fmt::Display>(
    what: impl FnOnce() -> String,
    stored: &T,
    computed: &T,
) -> Result<(), SnapshotError> {
    if stored == computed {
        return Ok(());
    }
    Err(SnapshotError::Inconsistent {
        what: what(),
        stored: stored.to_string(),
        computed: computed.to_string(),
    })
}
