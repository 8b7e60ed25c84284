//! Which requests were applied already, so that a repeat changes nothing.
//!
//! A window, not an archive: the last so many successes ([`super::Limits::requests_max`]), oldest forgotten
//! first. A request that is repeated later than that is applied anew. Refusals are not remembered: they changed
//! nothing, and a retry may well succeed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::digest::{StateDigest, record_hash};
use super::outcome::{Outcome, Refusal};
use crate::ids::RequestId;

/// The table is cut into this many parts, each copied by itself when a clone is held.
const SHARDS: usize = 256;
/// So many request ids share one part of the queue.
const CHUNK: usize = 512;

/// What was answered to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Hash of the encoded command.
    pub(super) fingerprint: u128,
    /// With `repeated` not set.
    pub(super) outcome: Outcome,
}

/// The last requests, by id and in the order of their application.
#[derive(Clone, Debug)]
pub(super) struct RequestTable {
    shards: Vec<Arc<BTreeMap<RequestId, Remembered>>>,
    /// Oldest first. Every chunk but the last is full; `skipped` ids at the front are forgotten already.
    order: VecDeque<Arc<Vec<RequestId>>>,
    skipped: usize,
    len: usize,
}

impl Default for RequestTable {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS],
            order: VecDeque::new(),
            skipped: 0,
            len: 0,
        }
    }
}

impl RequestTable {
    /// What to answer if `id` was applied before.
    pub(super) fn recall(&self, id: RequestId, fingerprint: u128) -> Option<Result<Outcome, Refusal>> {
        let remembered = self.shards[shard_of(id)].get(&id)?;
        if remembered.fingerprint != fingerprint {
            return Some(Err(Refusal::RequestIdReused { id }));
        }
        Some(Ok(Outcome {
            repeated: true,
            ..remembered.outcome.clone()
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
        digest.add(of_request(id, &remembered));
        Arc::make_mut(&mut self.shards[shard_of(id)]).insert(id, remembered);
        match self.order.back_mut() {
            Some(chunk) if chunk.len() < CHUNK => Arc::make_mut(chunk).push(id),
            Some(_) | None => self.order.push_back(Arc::new(vec![id])),
        }
        self.len += 1;
        self.forget_beyond(requests_max, digest);
    }

    /// Forgets the oldest until at most `requests_max` are left.
    pub(super) fn forget_beyond(&mut self, requests_max: usize, digest: &mut StateDigest) {
        while self.len > requests_max {
            let Some(front) = self.order.front() else { break };
            let oldest = front[self.skipped];
            self.skipped += 1;
            if self.skipped == front.len() {
                self.order.pop_front();
                self.skipped = 0;
            }
            self.len -= 1;
            if let Some(forgotten) = Arc::make_mut(&mut self.shards[shard_of(oldest)]).remove(&oldest) {
                digest.take(of_request(oldest, &forgotten));
            }
        }
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestId, &Remembered)> {
        self.order
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip(self.skipped)
            .filter_map(|id| {
                self.shards[shard_of(*id)]
                    .get(id)
                    .map(|remembered| (*id, remembered))
            })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.shards[shard_of(id)].contains_key(&id)
    }
}

fn of_request(id: RequestId, remembered: &Remembered) -> u128 {
    record_hash(7, &(id, remembered))
}

/// Ids may be counters, so their bits are mixed first.
fn shard_of(id: RequestId) -> usize {
    usize::from(xxh3_128(&id.0.to_le_bytes()).to_le_bytes()[0])
}
