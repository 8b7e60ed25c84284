//! How a log entry lies in the store: checksum (crc32 of the rest, little endian), then the entry as
//! [`wire`](crate::raft::wire) writes it. Keys are the index, big endian, so that their order is the log's.

use bytes::{BufMut, Bytes};

use crate::raft::types::Entry;
use crate::raft::wire::{self, WireError};

/// Why a stored record is not the entry it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the key of an entry has {0} bytes instead of 8")]
    Key(usize),
    #[error("entry {index} is cut short")]
    CutShort { index: u64 },
    #[error("the checksum of entry {index} does not match")]
    Checksum { index: u64 },
    #[error("entry {index} is unreadable: {source}")]
    Entry { index: u64, source: WireError },
    #[error("entry {index} says of itself that it is entry {found}")]
    Index { index: u64, found: u64 },
}

pub(crate) fn key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

pub(crate) fn index_of(key: &[u8]) -> Result<u64, RecordError> {
    key.try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| RecordError::Key(key.len()))
}

/// Writes the record over what is in `out`.
pub(crate) fn encode_into(entry: &Entry, out: &mut Vec<u8>) {
    out.clear();
    out.reserve(4 + wire::entry_size(entry));
    out.put_u32_le(0);
    wire::put_entry(entry, out);
    let crc = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(entry, &mut out);
    out
}

pub(crate) fn decode(index: u64, value: &[u8]) -> Result<Entry, RecordError> {
    let (crc, body) = value
        .split_first_chunk::<4>()
        .ok_or(RecordError::CutShort { index })?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(RecordError::Checksum { index });
    }
    let entry =
        wire::entry(Bytes::copy_from_slice(body)).map_err(|source| RecordError::Entry { index, source })?;
    match entry.log_id.index {
        found if found == index => Ok(entry),
        found => Err(RecordError::Index { index, found }),
    }
}
