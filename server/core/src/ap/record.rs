//! Records: what travels between servers, and the order in which one supersedes another.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;
use crate::directory::{DecodeError, NodeKind, Override, Registration, decode_value, encode_value};
use crate::ids::{Incarnation, NodeKey, ServerId, SessionId};

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A node: what its registrant said.
    Node(NodeKey),
    /// What an operator said of a node id.
    Override(NodeKey),
    /// A session: who vouches for it.
    Session(SessionId),
}

/// What a record says. Of its key's kind; `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Of a node.
    Node(Option<Box<NodeValue>>),
    /// Of an override; `set_at` is 0, for revisions mean nothing elsewhere.
    Override(Option<Box<Override>>),
    /// Of a session.
    Session(Box<SessionValue>),
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeValue {
    /// What its registrant said.
    pub registration: Registration,
    /// Resolved kind.
    pub kind: NodeKind,
    /// The session it lives with.
    pub session: Option<SessionId>,
    /// How often its id was registered anew, as its writer knew.
    pub incarnation: Incarnation,
}

/// A session, and who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionValue {
    /// SHA-256 of its secret.
    pub secret_digest: [u8; 32],
    /// Granted, in milliseconds.
    pub ttl_ms: u32,
    /// A name for people.
    pub client: String,
    /// Who vouches for it, or did last.
    pub holder: ServerId,
    /// How many times somebody began to vouch for it, or heard it again after it had lapsed.
    pub claim: u64,
    /// What became of it.
    pub standing: Standing,
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its holder hears it.
    Held,
    /// It lapsed. These of its nodes are held as suspects, in the order of their keys; the others are gone.
    Lapsed {
        /// Which.
        held: Vec<NodeKey>,
    },
    /// Ended by its own or an operator's word, for good.
    Closed,
}

/// Everything that is needed to vouch for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSeed {
    /// Its id.
    pub id: SessionId,
    /// SHA-256 of its secret.
    pub secret_digest: [u8; 32],
    /// Granted, in milliseconds.
    pub ttl_ms: u32,
    /// A name for people.
    pub client: String,
}

/// One thing that one server once said. Of two records with the same key one supersedes the other, or a third
/// supersedes both; whatever the order in which servers hear them, they end up with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// About what.
    pub key: Key,
    /// What.
    pub value: Value,
    /// When.
    pub stamp: Stamp,
}

/// Number of a record in the log of the server that wrote it, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

/// A record as it goes to disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The record.
    pub record: Arc<Record>,
    /// Its number, if this server wrote it.
    pub seq: Option<Seq>,
    /// What [`Record::encode`] makes of it.
    pub bytes: Bytes,
}

impl Stored {
    /// With its bytes, made here once for all who need them.
    #[must_use]
    pub fn new(record: Arc<Record>, seq: Option<Seq>) -> Self {
        let bytes = record.encode();
        Self { record, seq, bytes }
    }
}

impl SessionValue {
    /// Closed outranks all; else the later claim; else having lapsed.
    fn rank(&self) -> (bool, u64, bool) {
        (
            matches!(self.standing, Standing::Closed),
            self.claim,
            matches!(self.standing, Standing::Lapsed { .. }),
        )
    }

    /// Whether anything of it may still be listed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match &self.standing {
            Standing::Held => true,
            Standing::Lapsed { held } => !held.is_empty(),
            Standing::Closed => false,
        }
    }
}

impl Record {
    /// Whether the value is of the key's kind. What comes from elsewhere must be asked.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        match (&self.key, &self.value) {
            (Key::Node(key), Value::Node(value)) => value
                .as_deref()
                .is_none_or(|value| value.registration.id == key.node),
            (Key::Override(_), Value::Override(_)) | (Key::Session(_), Value::Session(_)) => true,
            (Key::Node(_) | Key::Override(_) | Key::Session(_), _) => false,
        }
    }

    /// Whether nothing of it is ever listed again unless something newer says so.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        match &self.value {
            Value::Node(value) => value.is_none(),
            Value::Override(value) => value.is_none(),
            Value::Session(session) => !session.is_alive(),
        }
    }

    /// What is true after hearing both of two sound records of one key. Commutes, associates, repeats freely.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let (later, earlier) = match self.compare(other) {
            Ordering::Less => (other, self),
            Ordering::Equal | Ordering::Greater => (self, other),
        };
        let mut merged = later.clone();
        if let (Value::Session(of_later), Value::Session(of_earlier)) = (&mut merged.value, &earlier.value)
            && of_later.claim == of_earlier.claim
            && let (Standing::Lapsed { held }, Standing::Lapsed { held: also }) =
                (&mut of_later.standing, &of_earlier.standing)
        {
            held.retain(|key| also.binary_search(key).is_ok());
        }
        merged
    }

    /// What [`Self::merged`] makes of it and one that was heard, unless that is what it is already.
    pub(super) fn grown(&self, heard: Self) -> Option<Self> {
        match &heard.value {
            // Of two lapses neither may be the whole truth.
            Value::Session(_) => {
                let merged = self.merged(&heard);
                (merged != *self).then_some(merged)
            }
            Value::Node(_) | Value::Override(_) => (self.compare(&heard) == Ordering::Less).then_some(heard),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        let rank = |record: &Self| match &record.value {
            Value::Session(session) => session.rank(),
            Value::Node(_) | Value::Override(_) => (false, 0, false),
        };
        (rank(self), self.stamp).cmp(&(rank(other), other.stamp))
    }

    /// Its bytes: a version and the record.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode_value(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] says whether the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_value("record", bytes)
    }
}
