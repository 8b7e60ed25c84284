//! Which requests were applied already, so that a repeat changes nothing.
//!
//! A window, not an archive: the last so many successes ([`super::Limits::requests_max`]), oldest forgotten
//! first. A request that is repeated later than that is applied anew. Refusals are not remembered: they changed
//! nothing, and a retry may well succeed.
//!
//! There are a hundred thousand of them, so each is a plain record in a queue, and 8 bytes in an index: part of the
//! id's hash, and the record's number. The index is ordered by hash and id, so that ids of one hash, made on purpose,
//! are found as fast as others.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::digest::StateDigest;
use super::outcome::{Outcome, Refusal};
use crate::ids::{RequestId, Revision, SessionId};

/// The index is cut into this many parts, each copied by itself when a clone is held.
const SHARDS: usize = 256;
/// So many records share one part of the queue.
const CHUNK: usize = 512;

/// What was answered to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Hash of the encoded command.
    pub(super) fingerprint: u128,
    /// With `repeated` not set.
    pub(super) outcome: Outcome,
}

impl Remembered {
    /// Whether the table can keep it as it is. What apply says it can; bytes from elsewhere may say anything.
    pub(super) fn is_plausible(&self) -> bool {
        let Outcome {
            revision,
            changed: _,
            repeated,
            session,
            voided: _,
        } = &self.outcome;
        !repeated && *session != Some(SessionId::default()) && revision.0 <= u64::MAX >> 1
    }
}

/// The last requests, by id and in the order of their application.
#[derive(Clone, Debug)]
pub(super) struct RequestTable {
    /// Oldest first. Every chunk but the last is full; `skipped` records at the front are forgotten already.
    order: VecDeque<Arc<Vec<Record>>>,
    skipped: usize,
    len: usize,
    /// The number of the first record of the first chunk. Numbers go round.
    first: u32,
    shards: Vec<Arc<Vec<Place>>>,
    /// Of the few outcomes that name any: the sessions for which a command was void, by number of the record.
    voided: Arc<BTreeMap<u32, Vec<SessionId>>>,
}

/// What is kept of a request.
#[derive(Clone, Copy, Debug)]
struct Record {
    id: RequestId,
    fingerprint: u128,
    /// Twice the revision, and one if the request changed anything.
    revision: u64,
    /// 0: none was opened.
    session: SessionId,
}

/// Where the record of an id is.
#[derive(Clone, Copy, Debug)]
struct Place {
    tag: u32,
    number: u32,
}

impl Default for RequestTable {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            skipped: 0,
            len: 0,
            first: 0,
            shards: vec![Arc::default(); SHARDS],
            voided: Arc::default(),
        }
    }
}

impl RequestTable {
    /// What to answer if `id` was applied before.
    pub(super) fn recall(&self, id: RequestId, fingerprint: u128) -> Option<Result<Outcome, Refusal>> {
        let number = self.number_of(id)?;
        let record = self.record(number);
        if record.fingerprint != fingerprint {
            return Some(Err(Refusal::RequestIdReused { id }));
        }
        Some(Ok(Outcome {
            repeated: true,
            ..self.outcome(number, record)
        }))
    }

    /// Remembers an applied request that is not in the table, forgetting the oldest beyond `requests_max`.
    pub(super) fn remember(
        &mut self,
        id: RequestId,
        remembered: Remembered,
        requests_max: usize,
        digest: &mut StateDigest,
    ) {
        let Remembered { fingerprint, outcome } = remembered;
        let record = Record {
            id,
            fingerprint,
            revision: outcome.revision.0 << 1 | u64::from(outcome.changed),
            session: outcome.session.unwrap_or_default(),
        };
        digest.add(hash(&record, &outcome.voided));
        let number = self.push(record);
        if !outcome.voided.is_empty() {
            Arc::make_mut(&mut self.voided).insert(number, outcome.voided);
        }
        let (shard, tag) = shard_of(id);
        if let Err(place) = self.search(shard, tag, id) {
            let shard = Arc::make_mut(&mut self.shards[shard]);
            if shard.len() == shard.capacity() {
                // They stay as many as they are: doubling would leave half of it empty.
                shard.reserve_exact(8 + shard.len() / 8);
            }
            shard.insert(place, Place { tag, number });
        }
        self.len += 1;
        self.forget_beyond(requests_max, digest);
    }

    /// Forgets the oldest until at most `requests_max` are left.
    pub(super) fn forget_beyond(&mut self, requests_max: usize, digest: &mut StateDigest) {
        while self.len > requests_max {
            let Some(front) = self.order.front() else { break };
            let oldest = front[self.skipped];
            let number = self.first.wrapping_add(self.skipped as u32);
            let (shard, tag) = shard_of(oldest.id);
            if let Ok(place) = self.search(shard, tag, oldest.id) {
                Arc::make_mut(&mut self.shards[shard]).remove(place);
            }
            let voided = match self.voided.contains_key(&number) {
                true => Arc::make_mut(&mut self.voided).remove(&number),
                false => None,
            };
            digest.take(hash(&oldest, &voided.unwrap_or_default()));
            self.len -= 1;
            self.skipped += 1;
            if self.skipped == CHUNK {
                self.order.pop_front();
                self.first = self.first.wrapping_add(CHUNK as u32);
                self.skipped = 0;
            }
        }
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestId, Remembered)> {
        let records = self.order.iter().flat_map(|chunk| chunk.iter());
        let numbered = records.enumerate().skip(self.skipped);
        numbered.map(|(index, record)| {
            let number = self.first.wrapping_add(index as u32);
            let remembered = Remembered {
                fingerprint: record.fingerprint,
                outcome: self.outcome(number, record),
            };
            (record.id, remembered)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.number_of(id).is_some()
    }

    /// The record's number.
    fn push(&mut self, record: Record) -> u32 {
        if self.order.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.order.push_back(Arc::default());
        }
        let full = (self.order.len() - 1) * CHUNK;
        let chunk = self
            .order
            .back_mut()
            .expect("one was put there if there was none");
        let chunk = Arc::make_mut(chunk);
        if chunk.len() == chunk.capacity() {
            chunk.reserve_exact(CHUNK - chunk.len());
        }
        chunk.push(record);
        self.first.wrapping_add((full + chunk.len() - 1) as u32)
    }

    fn number_of(&self, id: RequestId) -> Option<u32> {
        let (shard, tag) = shard_of(id);
        let place = self.search(shard, tag, id).ok()?;
        Some(self.shards[shard][place].number)
    }

    /// Where an id is in its shard, or belongs. Tags are as good as evenly spread, so one tells about where to look, and
    /// from there it goes outwards in doubled steps: for one or two lines of memory, and never for more than twice
    /// the steps of a binary search.
    fn search(&self, shard: usize, tag: u32, id: RequestId) -> Result<usize, usize> {
        let places: &[Place] = &self.shards[shard];
        let order = |place: &Place| {
            let tags = place.tag.cmp(&tag);
            tags.then_with(|| self.record(place.number).id.cmp(&id))
        };
        let guess = ((u64::from(tag) * places.len() as u64) >> 32) as usize;
        let (mut low, mut high, mut step) = (guess, guess, 1);
        while low > 0 && order(&places[low - 1]).is_ge() {
            high = low;
            low = low.saturating_sub(step);
            step *= 2;
        }
        while let Some(place) = places.get(high) {
            match order(place) {
                Ordering::Less => low = high + 1,
                Ordering::Equal => return Ok(high),
                Ordering::Greater => break,
            }
            high = (high + step).min(places.len());
            step *= 2;
        }
        let found = places[low..high].binary_search_by(order);
        found.map(|place| low + place).map_err(|place| low + place)
    }

    fn record(&self, number: u32) -> &Record {
        let index = number.wrapping_sub(self.first) as usize;
        &self.order[index / CHUNK][index % CHUNK]
    }

    fn outcome(&self, number: u32, record: &Record) -> Outcome {
        Outcome {
            revision: Revision(record.revision >> 1),
            changed: record.revision & 1 == 1,
            repeated: false,
            session: (record.session != SessionId::default()).then_some(record.session),
            voided: self.voided.get(&number).cloned().unwrap_or_default(),
        }
    }
}

/// What a record adds to the state's digest.
fn hash(record: &Record, voided: &[SessionId]) -> u128 {
    const TAG: u8 = 7;
    let mut bytes = [TAG; 49];
    bytes[1..17].copy_from_slice(&record.id.0.to_le_bytes());
    bytes[17..33].copy_from_slice(&record.fingerprint.to_le_bytes());
    bytes[33..41].copy_from_slice(&record.revision.to_le_bytes());
    bytes[41..].copy_from_slice(&record.session.0.to_le_bytes());
    if voided.is_empty() {
        return xxh3_128(&bytes);
    }
    let voided = voided.iter().flat_map(|session| session.0.to_le_bytes());
    xxh3_128(&bytes.into_iter().chain(voided).collect::<Vec<u8>>())
}

/// Ids may be counters, so their bits are mixed first.
fn shard_of(id: RequestId) -> (usize, u32) {
    let hash = xxh3_64(&id.0.to_le_bytes());
    ((hash >> 56) as usize, hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(n: u64) -> Remembered {
        Remembered {
            fingerprint: u128::from(n) << 70,
            outcome: Outcome {
                revision: Revision(n),
                changed: !n.is_multiple_of(3),
                repeated: false,
                session: (n.is_multiple_of(5) && n > 0).then_some(SessionId(n)),
                voided: (0..n % 4 / 3).map(SessionId).collect(),
            },
        }
    }

    #[test]
    fn the_last_ones_are_remembered_as_they_were_and_older_ones_are_not() {
        let (mut table, mut digest) = (RequestTable::default(), StateDigest::default());
        let max = 3 * CHUNK + 7;
        for n in 0..10 * CHUNK as u64 {
            table.remember(RequestId(u128::from(n)), remembered(n), max, &mut digest);
            let held = table.clone();
            let forgotten = (n + 1).checked_sub(max as u64 + 1);
            if let Some(forgotten) = forgotten {
                assert!(!held.contains(RequestId(u128::from(forgotten))));
            }
            let oldest = forgotten.map_or(0, |forgotten| forgotten + 1);
            for known in [oldest, (oldest + n) / 2, n] {
                let id = RequestId(u128::from(known));
                let expected = Outcome {
                    repeated: true,
                    ..remembered(known).outcome
                };
                let recalled = table.recall(id, remembered(known).fingerprint);
                assert_eq!(recalled, Some(Ok(expected)), "{known} of {n}");
                let other = table.recall(id, 1);
                assert_eq!(other, Some(Err(Refusal::RequestIdReused { id })));
            }
        }
        let first = 10 * CHUNK as u64 - max as u64;
        let listed = table.iter().map(|(id, kept)| (id.0 as u64, kept));
        assert!(listed.eq((first..10 * CHUNK as u64).map(|n| (n, remembered(n)))));
        table.forget_beyond(0, &mut digest);
        assert_eq!((table.len(), table.iter().count()), (0, 0));
        assert_eq!(digest.sum(), 0, "what was counted in was counted out");
        assert!(table.shards.iter().all(|shard| shard.is_empty()));
        assert!(table.voided.is_empty());
    }

    /// Tags may be anything: somebody may choose ids so that they are all alike.
    #[test]
    fn every_place_is_found_however_the_tags_lie() {
        let ids = |n: usize| RequestId(n as u128 * 2);
        let spreads: [fn(u32) -> u32; 4] = [|_| 7, |n| n, |n| u32::MAX - n, |n| n.wrapping_mul(0x9E37_79B9)];
        for (spread, len) in spreads
            .iter()
            .flat_map(|spread| [0, 1, 2, 3, 50, 400].map(|len| (spread, len)))
        {
            let mut table = RequestTable::default();
            let mut places: Vec<(u32, RequestId)> = (0..len).map(|n| (spread(n as u32), ids(n))).collect();
            places.sort_unstable();
            for (at, (tag, id)) in places.iter().enumerate() {
                let number = table.push(Record {
                    id: *id,
                    fingerprint: 0,
                    revision: 0,
                    session: SessionId(0),
                });
                assert_eq!(number as usize, at);
                Arc::make_mut(&mut table.shards[3]).push(Place { tag: *tag, number });
            }
            for (at, (tag, id)) in places.iter().enumerate() {
                assert_eq!(table.search(3, *tag, *id), Ok(at));
                let behind = RequestId(id.0 + 1);
                assert_eq!(table.search(3, *tag, behind), Err(at + 1));
            }
            for tag in [0, 1, 7, 1 << 31, u32::MAX] {
                let id = RequestId(1);
                let place = places.partition_point(|place| *place < (tag, id));
                assert_eq!(table.search(3, tag, id), Err(place));
            }
        }
    }

    #[test]
    fn numbers_go_round() {
        let (mut table, mut digest) = (RequestTable::default(), StateDigest::default());
        table.first = u32::MAX - 700;
        for n in 0..4 * CHUNK as u64 {
            table.remember(RequestId(u128::from(n)), remembered(n), 1_000, &mut digest);
            assert!(table.contains(RequestId(u128::from(n))));
        }
        assert_eq!(table.iter().count(), 1_000);
    }
}
