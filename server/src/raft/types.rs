//! The types this cluster runs Raft with.
//!
//! One leader per term (`leader_id_std`), so a term names its leader: expiry fences and term-bound proposals
//! rest on that.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use rollcall_core::directory::{Outcome, Refusal};
use rollcall_core::ids::{LogIndex, LogPosition, Term};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Raft's type configuration.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = BatchResults;
    type NodeId = u64;
    type Node = PeerAddresses;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Batch, u64, PeerAddresses>;
    type Entry = openraft::Entry<CommittedLeaderId, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type CommittedLeaderId =
    <openraft::impls::leader_id_std::LeaderId<u64, u64> as openraft::vote::RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
#[cfg(test)]
pub(crate) type Membership = openraft::Membership<u64, PeerAddresses>;

/// The log id for a term and an index.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// A log id in the words of the core. Raft's log starts at index 0, and so does ours.
pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: Term(id.leader_id.term),
        index: LogIndex(id.index),
    }
}

/// Where a server is reached. Part of the membership, so every server knows every other's doors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddresses {
    /// Peer listener, `host:port`.
    pub peer_address: String,
    /// Client listener (gRPC), `host:port`.
    pub client_address: String,
    /// HTTP listener, `host:port`; may be empty.
    pub http_address: String,
}

impl fmt::Display for PeerAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer_address)
    }
}

/// What one log entry carries: encoded requests, laid end to end, each behind its length (u32, little
/// endian). The bytes made at the proposer's are the bytes in the log and on the wire.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Batch {
    body: Bytes,
    count: u32,
}

/// Bytes that are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a batch of {bytes} bytes ends within its request {request}")]
pub struct MalformedBatch {
    /// Length of the whole.
    pub bytes: usize,
    /// Which request is cut short, from 0.
    pub request: u32,
}

impl Batch {
    /// Lays `requests` end to end.
    #[must_use]
    pub fn from_requests(requests: &[Bytes]) -> Self {
        let size = requests.iter().map(|request| 4 + request.len()).sum();
        let mut body = BytesMut::with_capacity(size);
        for request in requests {
            body.put_u32_le(request.len() as u32);
            body.put_slice(request);
        }
        Self {
            body: body.freeze(),
            count: requests.len() as u32,
        }
    }

    /// Takes bytes from disk or network for a batch, without copying them.
    ///
    /// # Errors
    /// The lengths inside do not add up.
    pub fn from_body(body: Bytes) -> Result<Self, MalformedBatch> {
        let mut rest = &body[..];
        let mut count = 0;
        while !rest.is_empty() {
            let cut_short = MalformedBatch {
                bytes: body.len(),
                request: count,
            };
            let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| cut_short.clone())?;
            rest = tail
                .get(u32::from_le_bytes(*length) as usize..)
                .ok_or(cut_short)?;
            count += 1;
        }
        Ok(Self { body, count })
    }

    /// The encoded requests, in order, sharing this batch's memory.
    pub fn requests(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let length = self.body.get(at..at + 4)?.first_chunk::<4>()?;
            let start = at + 4;
            at = start + u32::from_le_bytes(*length) as usize;
            Some(self.body.slice(start..at))
        })
    }

    /// How many requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes themselves.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} requests, {} bytes)", self.count, self.body.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// Raft asks for serde on its types; log and wire use raft::wire instead.
impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.body)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Vec::<u8>::deserialize(deserializer)?;
        Self::from_body(body.into()).map_err(serde::de::Error::custom)
    }
}

/// What applying one [`Batch`] gave, request by request. Empty for entries without requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchResults(pub Vec<Result<Outcome, Refusal>>);

/// Hands the end of a proposal to a closure; dropping it unanswered drops what the closure holds.
pub struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(on_complete: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(on_complete))
    }
}

impl<T: Send + 'static> openraft::raft::responder::Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_its_requests() {
        let requests = [
            Bytes::from_static(b"one"),
            Bytes::new(),
            Bytes::from_static(b"three"),
        ];
        let batch = Batch::from_requests(&requests);
        assert_eq!(batch.len(), 3);
        assert_eq!(batch.requests().collect::<Vec<_>>(), requests);
        assert_eq!(Batch::from_body(batch.body().clone()).unwrap(), batch);
    }

    #[test]
    fn a_batch_cut_short_is_refused_at_every_length() {
        let batch = Batch::from_requests(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
        let whole = [0, 7, 14];
        for length in 0..=batch.body().len() {
            let read = Batch::from_body(batch.body().slice(..length));
            assert_eq!(read.is_ok(), whole.contains(&length), "length {length}");
        }
    }
}
