//! Encodings of log entries and of the messages between servers.
//!
//! An entry has one encoding, for the log and for the wire: version, kind, term, index, payload. The payload
//! of a batch is the batch's own bytes, copied once and never re-encoded. All other parts are postcard. Every
//! message begins with [`VERSION`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use rollcall_core::ids::SessionId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Batch, Entry, LogId, MalformedBatch, SnapshotMeta, TypeConfig, Vote, log_id};

/// Version of these encodings.
pub(crate) const VERSION: u8 = 1;

const KIND_BLANK: u8 = 0;
const KIND_BATCH: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;
/// version, kind, term, index
const ENTRY_HEAD: usize = 1 + 1 + 8 + 8;

/// Bytes from disk or network that could not be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("unknown version {found}, this server writes {VERSION}")]
    Version { found: u8 },
    #[error("unknown entry kind {found}")]
    Kind { found: u8 },
    #[error("cut short: {have} bytes, at least {need} are needed")]
    CutShort { have: usize, need: usize },
    #[error(transparent)]
    Batch(#[from] MalformedBatch),
    #[error("malformed: {0}")]
    Malformed(#[from] postcard::Error),
}

/// The size of an entry's encoding, for bounds.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    ENTRY_HEAD
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(batch) => batch.body().len(),
            // An upper estimate will do: addresses are short and members few.
            EntryPayload::Membership(membership) => 64 + 256 * membership.nodes().count(),
        }
}

/// Appends an entry's encoding to `out`.
pub(crate) fn put_entry(entry: &Entry, out: &mut impl BufMut) {
    out.put_u8(VERSION);
    let kind = match &entry.payload {
        EntryPayload::Blank => KIND_BLANK,
        EntryPayload::Normal(_) => KIND_BATCH,
        EntryPayload::Membership(_) => KIND_MEMBERSHIP,
    };
    out.put_u8(kind);
    out.put_u64_le(entry.log_id.leader_id.term);
    out.put_u64_le(entry.log_id.index);
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Normal(batch) => out.put_slice(batch.body()),
        EntryPayload::Membership(membership) => out.put_slice(&encode_plain(membership)),
    }
}

/// Reads an entry from its whole encoding, sharing its memory.
pub(crate) fn entry(mut bytes: Bytes) -> Result<Entry, WireError> {
    if bytes.len() < ENTRY_HEAD {
        return Err(WireError::CutShort {
            have: bytes.len(),
            need: ENTRY_HEAD,
        });
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(WireError::Version { found: version });
    }
    let kind = bytes.get_u8();
    let term = bytes.get_u64_le();
    let index = bytes.get_u64_le();
    let payload = match kind {
        KIND_BLANK => EntryPayload::Blank,
        KIND_BATCH => EntryPayload::Normal(Batch::from_body(bytes)?),
        KIND_MEMBERSHIP => EntryPayload::Membership(postcard::from_bytes(&bytes)?),
        found => return Err(WireError::Kind { found }),
    };
    Ok(Entry {
        log_id: log_id(term, index),
        payload,
    })
}

/// Encodes an append: version, length and bytes of the postcard head, then each entry behind its length.
pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let head = encode_plain(&(&request.vote, &request.prev_log_id, &request.leader_commit));
    let entries: usize = request.entries.iter().map(|entry| 4 + entry_size(entry)).sum();
    let mut out = BytesMut::with_capacity(1 + 4 + head.len() + entries);
    out.put_u8(VERSION);
    out.put_u32_le(head.len() as u32);
    out.put_slice(&head);
    for entry in &request.entries {
        let length_at = out.len();
        out.put_u32_le(0);
        put_entry(entry, &mut out);
        let length = (out.len() - length_at - 4) as u32;
        out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
    out.freeze()
}

/// Reads an append; its batches share the message's memory.
pub(crate) fn decode_append(mut bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    take_version(&mut bytes)?;
    let head = take_block(&mut bytes)?;
    let (vote, prev_log_id, leader_commit): (Vote, Option<LogId>, Option<LogId>) =
        postcard::from_bytes(&head)?;
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        entries.push(entry(take_block(&mut bytes)?)?);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

fn take_version(bytes: &mut Bytes) -> Result<(), WireError> {
    match bytes.is_empty() {
        true => Err(WireError::CutShort { have: 0, need: 1 }),
        false => match bytes.get_u8() {
            VERSION => Ok(()),
            found => Err(WireError::Version { found }),
        },
    }
}

fn take_block(bytes: &mut Bytes) -> Result<Bytes, WireError> {
    if bytes.len() < 4 {
        return Err(WireError::CutShort {
            have: bytes.len(),
            need: 4,
        });
    }
    let length = bytes.get_u32_le() as usize;
    if bytes.len() < length {
        return Err(WireError::CutShort {
            have: bytes.len(),
            need: length,
        });
    }
    Ok(bytes.split_to(length))
}

fn encode_plain(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("these types have no part that postcard refuses")
}

fn encode(value: &impl Serialize) -> Bytes {
    let mut out = vec![VERSION];
    out.extend(encode_plain(value));
    out.into()
}

fn decode<T: DeserializeOwned>(mut bytes: Bytes) -> Result<T, WireError> {
    take_version(&mut bytes)?;
    Ok(postcard::from_bytes(&bytes)?)
}

/// Encodes the answer to one append.
pub(crate) fn encode_appended(result: &StreamAppendResult<TypeConfig>) -> Bytes {
    let wire: Result<&Option<LogId>, Result<&LogId, &Vote>> = match result {
        Ok(matching) => Ok(matching),
        Err(StreamAppendError::Conflict(at)) => Err(Ok(at)),
        Err(StreamAppendError::HigherVote(vote)) => Err(Err(vote)),
    };
    encode(&wire)
}

/// Reads the answer to one append.
pub(crate) fn decode_appended(bytes: Bytes) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    let wire: Result<Option<LogId>, Result<LogId, Vote>> = decode(bytes)?;
    Ok(wire.map_err(|refusal| match refusal {
        Ok(at) => StreamAppendError::Conflict(at),
        Err(vote) => StreamAppendError::HigherVote(vote),
    }))
}

macro_rules! message {
    ($encode:ident, $decode:ident, $type:ty) => {
        pub(crate) fn $encode(message: &$type) -> Bytes {
            encode(message)
        }

        pub(crate) fn $decode(bytes: Bytes) -> Result<$type, WireError> {
            decode(bytes)
        }
    };
}

message!(encode_vote_request, decode_vote_request, VoteRequest<TypeConfig>);
message!(
    encode_vote_response,
    decode_vote_response,
    VoteResponse<TypeConfig>
);
message!(
    encode_transfer,
    decode_transfer,
    TransferLeaderRequest<TypeConfig>
);
message!(
    encode_transferred,
    decode_transferred,
    TransferLeaderResponse<TypeConfig>
);
message!(encode_installed, decode_installed, SnapshotResponse<TypeConfig>);
message!(encode_snapshot_head, decode_snapshot_head, (Vote, SnapshotMeta));
message!(encode_snapshot_meta, decode_snapshot_meta, SnapshotMeta);
message!(encode_vote, decode_vote, Vote);
message!(encode_log_id, decode_log_id, Option<LogId>);

/// Encodes ascending session ids: each the varint of its distance from the one before.
pub(crate) fn encode_sessions(sessions: &[SessionId]) -> Bytes {
    let mut out = Vec::with_capacity(sessions.len() * 2);
    let mut before = 0;
    for session in sessions {
        let mut distance = session.0.saturating_sub(before);
        before = session.0;
        while distance >= 0x80 {
            out.push(distance as u8 | 0x80);
            distance >>= 7;
        }
        out.push(distance as u8);
    }
    out.into()
}

/// Reads what [`encode_sessions`] wrote.
pub(crate) fn decode_sessions(bytes: &[u8]) -> Result<Vec<SessionId>, WireError> {
    let cut_short = WireError::CutShort {
        have: bytes.len(),
        need: bytes.len() + 1,
    };
    let mut sessions = Vec::new();
    let (mut before, mut distance, mut shift) = (0_u64, 0_u64, 0);
    for byte in bytes {
        if shift > 63 {
            return Err(WireError::Malformed(postcard::Error::DeserializeBadVarint));
        }
        distance |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            before = before.wrapping_add(distance);
            sessions.push(SessionId(before));
            (distance, shift) = (0, 0);
        }
    }
    if shift == 0 { Ok(sessions) } else { Err(cut_short) }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::types::{Membership, PeerAddresses};

    fn entries() -> Vec<Entry> {
        let nodes: BTreeMap<u64, PeerAddresses> = [(1, PeerAddresses::default())].into();
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        vec![
            Entry {
                log_id: log_id(1, 7),
                payload: EntryPayload::Blank,
            },
            Entry {
                log_id: log_id(1, 8),
                payload: EntryPayload::Normal(Batch::from_requests(&[
                    Bytes::from_static(b"a"),
                    Bytes::new(),
                ])),
            },
            Entry {
                log_id: log_id(2, 9),
                payload: EntryPayload::Membership(membership),
            },
        ]
    }

    #[test]
    fn an_append_reads_back_as_it_was_written() {
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(log_id(1, 6)),
            entries: entries(),
            leader_commit: None,
        };
        let read = decode_append(encode_append(&request)).unwrap();
        assert_eq!(read.entries, request.entries);
        assert_eq!(read.vote, request.vote);
        assert_eq!(read.prev_log_id, request.prev_log_id);
    }

    #[test]
    fn truncated_appends_never_panic() {
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(2, 1),
            prev_log_id: None,
            entries: entries(),
            leader_commit: None,
        };
        let bytes = encode_append(&request);
        for length in 0..bytes.len() {
            if let Ok(read) = decode_append(bytes.slice(..length)) {
                assert!(read.entries.len() < 3);
            }
        }
    }

    #[test]
    fn an_entry_keeps_its_published_encoding() {
        let mut out = Vec::new();
        put_entry(&entries()[1], &mut out);
        let golden = [
            1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a', 0, 0, 0, 0,
        ];
        assert_eq!(out, golden);
        assert_eq!(entry(out.into()).unwrap(), entries()[1]);
    }

    #[test]
    fn session_ids_are_packed_and_damage_is_refused() {
        let sessions = [1, 2, 300, 301, u64::MAX - 1, u64::MAX].map(SessionId);
        let bytes = encode_sessions(&sessions);
        assert_eq!(decode_sessions(&bytes).unwrap(), sessions);
        assert!(decode_sessions(&[0x80]).is_err());
        assert!(decode_sessions(&[0xff; 11]).is_err());
        assert_eq!(encode_sessions(&sessions[..2]).len(), 2);
    }
}
