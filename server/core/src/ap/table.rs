//! The table: every record this server holds, the numbers of its own, and digests of all by bucket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::record::{Key, Record, Seq, Stored, Value};
use crate::ids::{NodeId, NodeKey, ServiceKey, SessionId};

/// So many bytes of records are kept as they travel, which is what one answer to a follower holds; others are encoded anew for
/// each who asks for them.
const RECENT_BYTES_MAX: usize = 1 << 20;

/// A set of records that is compared and repaired as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Bucket {
    /// Sessions whose id has this low byte.
    Sessions(u8),
    /// Nodes and overrides of a service.
    Service(ServiceKey),
}

/// A piece of a server's own log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Records, in the order in which they were written; before them the sessions that they name, as far as the log does not
    /// tell of those until then.
    pub records: Vec<Arc<Record>>,
    /// Their bytes, as far as they were kept.
    kept: Vec<Option<Bytes>>,
    /// Who has these, and what was asked behind, has everything up to here.
    pub through: Seq,
    /// Whether more follow.
    pub more: bool,
}

impl Range {
    /// What [`Record::encode`] makes of each.
    pub fn encoded(&self) -> impl Iterator<Item = Bytes> {
        let pairs = self.records.iter().zip(&self.kept);
        pairs.map(|(record, kept)| kept.clone().unwrap_or_else(|| record.encode()))
    }
}

/// The sessions before a piece of the log may have so many times its bytes, or be one: a session that lapsed names all of its
/// nodes that are held, and would else be told again with each of them.
const SESSIONS_BEFORE: usize = 4;

/// Sessions that nodes of a piece name, and that the log does not tell of before them.
type Untold = BTreeMap<SessionId, Stored>;

/// A record of this server's own log, and how many bytes it has.
#[derive(Clone, Debug)]
struct Logged {
    record: Arc<Record>,
    size: u32,
}

#[derive(Clone, Debug)]
struct Entry {
    record: Arc<Record>,
    seq: Option<Seq>,
    /// Of its bytes: what it adds to its bucket's digest.
    hash: u128,
}

/// The bytes of what was written last, for all who follow.
#[derive(Clone, Debug, Default)]
struct Recent {
    /// In the order of their numbers.
    encoded: VecDeque<(Seq, Bytes)>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, seq: Seq, bytes: &Bytes) {
        // From disk they come in any order.
        if self.encoded.back().is_some_and(|(last, _)| *last >= seq) {
            return;
        }
        self.bytes += bytes.len();
        self.encoded.push_back((seq, bytes.clone()));
        while self.bytes > RECENT_BYTES_MAX
            && let Some((_, oldest)) = self.encoded.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    fn of(&self, seq: Seq) -> Option<&Bytes> {
        let at = self.encoded.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(&self.encoded[at].1)
    }
}

/// What is known of a service.
#[derive(Clone, Debug, Default)]
struct Shelf {
    nodes: BTreeMap<NodeId, Entry>,
    overrides: BTreeMap<NodeId, Entry>,
    /// Of all of it.
    digest: u128,
}

impl Shelf {
    /// Those of this kind, and the id of the one; none of what is not on a shelf.
    fn part_of<'a>(&mut self, key: &'a Key) -> Option<(&mut BTreeMap<NodeId, Entry>, &'a NodeId)> {
        match key {
            Key::Node(key) => Some((&mut self.nodes, &key.node)),
            Key::Override(key) => Some((&mut self.overrides, &key.node)),
            Key::Session(_) => None,
        }
    }

    fn swap_in(&mut self, key: &Key, entry: Entry) -> Option<Entry> {
        self.digest = self.digest.wrapping_add(entry.hash);
        let (part, node) = self.part_of(key)?;
        let before = match part.get_mut(node) {
            Some(there) => Some(std::mem::replace(there, entry)),
            None => part.insert(node.clone(), entry),
        };
        self.digest = self
            .digest
            .wrapping_sub(before.as_ref().map_or(0, |before| before.hash));
        before
    }

    fn take_out(&mut self, key: &Key) -> Option<Entry> {
        let (part, node) = self.part_of(key)?;
        let entry = part.remove(node)?;
        self.digest = self.digest.wrapping_sub(entry.hash);
        Some(entry)
    }
}

/// All records. Invariant: `log`, `nodes_of` and the digests say what the entries say.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    services: BTreeMap<ServiceKey, Shelf>,
    sessions: BTreeMap<SessionId, Entry>,
    /// Of the sessions whose ids have this low byte; none if there are none.
    session_digests: BTreeMap<u8, u128>,
    /// Nodes by the session that their records name.
    nodes_of: BTreeMap<SessionId, BTreeSet<NodeKey>>,
    log: BTreeMap<Seq, Logged>,
    recent: Recent,
    head: Seq,
    len: usize,
}

/// The bucket of a session, by its low byte.
fn low_byte(id: SessionId) -> u8 {
    id.0.to_le_bytes()[0]
}

impl Table {
    pub(super) fn of(&self, key: &Key) -> Option<&Arc<Record>> {
        self.entry(key).map(|entry| &entry.record)
    }

    pub(super) fn of_node(&self, key: &NodeKey) -> Option<&Arc<Record>> {
        let entry = self.services.get(&key.service)?.nodes.get(&key.node);
        entry.map(|entry| &entry.record)
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        match key {
            Key::Node(key) => self.services.get(&key.service)?.nodes.get(&key.node),
            Key::Override(key) => self.services.get(&key.service)?.overrides.get(&key.node),
            Key::Session(id) => self.sessions.get(id),
        }
    }

    /// Puts a record in place of what there was, under a number if this server wrote it.
    pub(super) fn put(&mut self, stored: &Stored) {
        let Stored { record, seq, bytes } = stored;
        let entry = Entry {
            record: record.clone(),
            seq: *seq,
            hash: xxh3_128(bytes),
        };
        let before = self.swap_in(&record.key, entry);
        match &before {
            None => self.len += 1,
            Some(Entry { seq: Some(seq), .. }) => _ = self.log.remove(seq),
            Some(Entry { seq: None, .. }) => {}
        }
        if let Some(seq) = *seq {
            let logged = Logged {
                record: record.clone(),
                size: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            };
            self.log.insert(seq, logged);
            self.recent.push(seq, bytes);
            self.head = self.head.max(seq);
        }
        if let Key::Node(key) = &record.key {
            let owner_before = before.and_then(|before| session_of(&before.record));
            self.change_owner(key, owner_before, session_of(record));
        }
    }

    /// What was there under the key goes out; the digests follow.
    fn swap_in(&mut self, key: &Key, entry: Entry) -> Option<Entry> {
        match key {
            // Looked for first: most are there, and a name that is not needed need not be counted.
            Key::Node(NodeKey { service, .. }) | Key::Override(NodeKey { service, .. }) => {
                match self.services.get_mut(service) {
                    Some(shelf) => shelf.swap_in(key, entry),
                    None => {
                        let shelf = self.services.entry(service.clone()).or_default();
                        shelf.swap_in(key, entry)
                    }
                }
            }
            Key::Session(id) => {
                let digest = self.session_digests.entry(low_byte(*id)).or_default();
                *digest = digest.wrapping_add(entry.hash);
                let before = self.sessions.insert(*id, entry);
                *digest = digest.wrapping_sub(before.as_ref().map_or(0, |before| before.hash));
                before
            }
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        let Some(entry) = self.take_out(key) else { return };
        self.len -= 1;
        if let Some(seq) = entry.seq {
            self.log.remove(&seq);
        }
        if let Key::Node(key) = key {
            self.change_owner(key, session_of(&entry.record), None);
        }
    }

    /// What is there under the key goes out; the digests follow, and whatever is empty goes with it.
    fn take_out(&mut self, key: &Key) -> Option<Entry> {
        match key {
            Key::Node(NodeKey { service, .. }) | Key::Override(NodeKey { service, .. }) => {
                let shelf = self.services.get_mut(service)?;
                let entry = shelf.take_out(key)?;
                if shelf.nodes.is_empty() && shelf.overrides.is_empty() {
                    self.services.remove(service);
                }
                Some(entry)
            }
            Key::Session(id) => {
                let entry = self.sessions.remove(id)?;
                let low = low_byte(*id);
                if let Some(digest) = self.session_digests.get_mut(&low) {
                    *digest = digest.wrapping_sub(entry.hash);
                    if *digest == 0 {
                        self.session_digests.remove(&low);
                    }
                }
                Some(entry)
            }
        }
    }

    /// A node's record names another session than the one before it did.
    fn change_owner(&mut self, key: &NodeKey, before: Option<SessionId>, after: Option<SessionId>) {
        if before == after {
            return;
        }
        if let Some(before) = before
            && let Some(nodes) = self.nodes_of.get_mut(&before)
        {
            nodes.remove(key);
            if nodes.is_empty() {
                self.nodes_of.remove(&before);
            }
        }
        if let Some(after) = after {
            self.nodes_of.entry(after).or_default().insert(key.clone());
        }
    }

    /// Numbers up to here were given out in an earlier life, whether their records are still here or not.
    pub(super) fn resume(&mut self, head: Seq) {
        self.head = self.head.max(head);
    }

    /// The number of the next record that this server writes.
    pub(super) fn next_seq(&self) -> Seq {
        Seq(self.head.0 + 1)
    }

    /// Nodes whose records name this session, listed or not.
    pub(super) fn nodes_of(&self, session: SessionId) -> impl Iterator<Item = &NodeKey> {
        self.nodes_of.get(&session).into_iter().flatten()
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.sessions.values().map(|entry| &entry.record)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        let of_services = self
            .services
            .values()
            .flat_map(|shelf| shelf.nodes.values().chain(shelf.overrides.values()));
        self.sessions
            .values()
            .chain(of_services)
            .map(|entry| &entry.record)
    }

    /// All records of a group's services.
    pub(super) fn records_of_group(&self, group: &str) -> impl Iterator<Item = &Arc<Record>> {
        self.services
            .iter()
            .filter(move |(key, _)| key.group.as_str() == group)
            .flat_map(|(_, shelf)| shelf.nodes.values().chain(shelf.overrides.values()))
            .map(|entry| &entry.record)
    }

    /// Node ids of a service of which operators said something.
    pub(super) fn overrides_of(&self, service: &ServiceKey) -> impl Iterator<Item = NodeKey> {
        let shelf = self.services.get(service).into_iter();
        shelf
            .flat_map(|shelf| shelf.overrides.keys())
            .map(|node| NodeKey {
                service: service.clone(),
                node: node.clone(),
            })
    }

    pub(super) fn stored(&self, key: &Key) -> Option<Stored> {
        let entry = self.entry(key)?;
        Some(Stored::new(entry.record.clone(), entry.seq))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn head(&self) -> Seq {
        self.head
    }

    pub(super) fn range(&self, after: Seq, bytes_max: usize) -> Range {
        let mut range = Range {
            through: after,
            ..Range::default()
        };
        let (mut bytes, mut before, mut untold) = (0, 0, Untold::default());
        let before_max = bytes_max.saturating_mul(SESSIONS_BEFORE);
        for (seq, Logged { record, size }) in self.log.range(Seq(after.0.saturating_add(1))..) {
            let session = session_of(record).and_then(|id| Some((id, self.untold(&untold, id, *seq)?)));
            let adds = session.as_ref().map_or(0, |(_, session)| session.bytes.len());
            if bytes >= bytes_max || (before > 0 && adds > 0 && before + adds > before_max) {
                range.more = true;
                break;
            }
            bytes += *size as usize;
            before += adds;
            untold.extend(session);
            range.records.push(record.clone());
            range.kept.push(self.recent.of(*seq).cloned());
            range.through = *seq;
        }
        untold.retain(|_, session| session.seq.is_none_or(|seq| seq > range.through));
        let sessions = untold
            .into_values()
            .map(|session| (session.record, Some(session.bytes)));
        let (records, kept): (Vec<_>, Vec<_>) = sessions.unzip();
        range.records.splice(..0, records);
        range.kept.splice(..0, kept);
        if !range.more {
            // What was written between and is superseded need not be waited for.
            range.through = range.through.max(self.head);
        }
        range
    }

    /// Whoever hears of a node must have heard who vouches for it, though that may be another server's word by now, or stand
    /// further behind in the log: the session, if it is to be told too.
    fn untold(&self, untold: &Untold, id: SessionId, at: Seq) -> Option<Stored> {
        let entry = self.sessions.get(&id)?;
        let is_told = entry.seq.is_some_and(|seq| seq < at) || untold.contains_key(&id);
        (!is_told).then(|| Stored::new(entry.record.clone(), entry.seq))
    }

    pub(super) fn group_digests(&self) -> Vec<(String, u128)> {
        let mut groups: BTreeMap<&str, u128> = BTreeMap::new();
        for (low, digest) in &self.session_digests {
            let sessions = groups.entry("").or_default();
            *sessions = sessions.wrapping_add(named(&Bucket::Sessions(*low), *digest));
        }
        for (key, shelf) in &self.services {
            let group = groups.entry(key.group.as_str()).or_default();
            *group = group.wrapping_add(named(&Bucket::Service(key.clone()), shelf.digest));
        }
        groups
            .into_iter()
            .map(|(name, digest)| (name.to_owned(), digest))
            .collect()
    }

    /// That of one group; 0 if it has no records.
    pub(super) fn group_digest(&self, group: &str) -> u128 {
        let buckets = self.bucket_digests(group).into_iter();
        buckets.fold(0, |sum, (bucket, digest)| {
            sum.wrapping_add(named(&bucket, digest))
        })
    }

    pub(super) fn bucket_digests(&self, group: &str) -> Vec<(Bucket, u128)> {
        // Sessions belong to no group.
        let sessions = self.session_digests.iter().filter(|_| group.is_empty());
        let sessions = sessions.map(|(low, digest)| (Bucket::Sessions(*low), *digest));
        let services = self.services.iter();
        let services = services
            .filter(|(key, _)| key.group.as_str() == group)
            .map(|(key, shelf)| (Bucket::Service(key.clone()), shelf.digest));
        sessions.chain(services).collect()
    }

    /// A bucket's records; those of a service behind the sessions that they name.
    pub(super) fn bucket(&self, bucket: &Bucket) -> Vec<Arc<Record>> {
        match bucket {
            Bucket::Sessions(low) => self
                .sessions
                .iter()
                .filter(|(id, _)| low_byte(**id) == *low)
                .map(|(_, entry)| entry.record.clone())
                .collect(),
            Bucket::Service(key) => {
                let Some(shelf) = self.services.get(key) else {
                    return Vec::new();
                };
                let named: BTreeSet<SessionId> = shelf
                    .nodes
                    .values()
                    .filter_map(|entry| session_of(&entry.record))
                    .collect();
                let sessions = named.iter().filter_map(|id| self.sessions.get(id));
                sessions
                    .chain(shelf.nodes.values())
                    .chain(shelf.overrides.values())
                    .map(|entry| entry.record.clone())
                    .collect()
            }
        }
    }
}

/// The session that a node's record names.
pub(super) fn session_of(record: &Record) -> Option<SessionId> {
    match &record.value {
        Value::Node(Some(node)) => node.session,
        Value::Node(None) | Value::Override(_) | Value::Session(_) => None,
    }
}

/// A bucket's share of its group's digest.
fn named(bucket: &Bucket, digest: u128) -> u128 {
    let bytes =
        postcard::to_extend(&(bucket, digest), Vec::with_capacity(64)).expect("plain records always encode");
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ap::Stamp;

    fn numbered(seq: u64) -> Stored {
        let key = NodeKey {
            service: ServiceKey {
                group: "edge".parse().unwrap(),
                service: "feed".parse().unwrap(),
            },
            node: format!("n{seq}").parse().unwrap(),
        };
        let record = Record {
            key: Key::Node(key),
            value: Value::Node(None),
            stamp: Stamp {
                millis: seq,
                ..Stamp::default()
            },
        };
        Stored::new(record.into(), Some(Seq(seq)))
    }

    #[test]
    fn a_piece_of_the_log_is_the_same_whether_its_bytes_were_kept_or_not() {
        const RECORDS: u64 = 60_000;
        for upwards in [true, false] {
            let mut table = Table::default();
            (1..=RECORDS).for_each(|seq| table.put(&numbered(if upwards { seq } else { RECORDS + 1 - seq })));
            assert!(table.recent.bytes <= RECENT_BYTES_MAX);
            table.put(&Stored {
                seq: None,
                ..numbered(RECORDS)
            });
            let range = table.range(Seq(0), usize::MAX);
            let expected: Vec<Bytes> = (1..RECORDS).map(|seq| numbered(seq).bytes).collect();
            assert!(range.encoded().eq(expected), "upwards: {upwards}");
            assert!(range.kept.iter().any(Option::is_none), "not all are kept");
            assert_eq!(range.kept.iter().any(Option::is_some), upwards);
            assert_eq!(range.through, Seq(RECORDS));
        }
    }
}
