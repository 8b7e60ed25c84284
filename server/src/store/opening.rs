//! What a log folder holds when it is opened: every entry is looked at once.

use std::path::Path;

use bytes::Bytes;
use rollcall_core::mutants::{Mutant, planted};

use super::engine::Engine;
use super::error::StoreError;
use super::record;
use crate::ground::Family;
use crate::raft::types::{LogId, Vote};
use crate::raft::wire;

pub(crate) const KEY_VOTE: &[u8] = b"vote";
pub(crate) const KEY_PURGED: &[u8] = b"purged";
pub(crate) const KEY_COMMITTED: &[u8] = b"committed";

/// What a log folder holds.
pub(super) struct Found {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) last: Option<LogId>,
}

impl Found {
    pub(super) fn read(engine: &Engine, path: &Path) -> Result<Self, StoreError> {
        let damaged = |problem: String| StoreError::LogDamaged {
            path: path.to_owned(),
            problem,
        };
        let value = |key: &[u8]| -> Result<Option<Bytes>, StoreError> {
            let found = engine
                .value(Family::Meta, key)
                .map_err(|error| damaged(error.to_string()))?;
            Ok(found.map(Bytes::from))
        };
        let log_id = |key: &[u8]| -> Result<Option<LogId>, StoreError> {
            let Some(bytes) = value(key)? else { return Ok(None) };
            wire::decode_log_id(bytes)
                .map_err(|error| damaged(format!("its record {:?}: {error}", String::from_utf8_lossy(key))))
        };
        let purged = log_id(KEY_PURGED)?;
        let committed = log_id(KEY_COMMITTED)?;
        let vote = value(KEY_VOTE)?
            .map(|bytes| wire::decode_vote(bytes).map_err(|error| damaged(format!("its vote: {error}"))))
            .transpose()?;
        let last = match check_entries(engine, purged).map_err(damaged)? {
            Some(last) if planted(Mutant::ForgetTail) => {
                Some(LogId::new(last.leader_id, last.index.saturating_sub(5))).max(purged)
            }
            last => last,
        };
        Ok(Self {
            vote,
            purged,
            committed,
            last,
        })
    }
}

/// Reads the whole log: no holes, no damaged record, terms never fall. Returns its last entry.
fn check_entries(engine: &Engine, purged: Option<LogId>) -> Result<Option<LogId>, String> {
    let mut last = purged;
    let entries = engine
        .rows_from(Family::Log, &[])
        .map_err(|error| error.to_string())?;
    for item in entries {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let index = record::index_of(&key).map_err(|error| error.to_string())?;
        let expected = last.map_or(0, |last| last.index + 1);
        if index != expected {
            return Err(format!("entry {expected} is missing, entry {index} comes next"));
        }
        let entry = record::decode(index, &value).map_err(|error| error.to_string())?;
        if last.is_some_and(|last| entry.log_id <= last) {
            return Err(format!("entry {} follows an entry of a later term", entry.log_id));
        }
        last = Some(entry.log_id);
    }
    Ok(last)
}
