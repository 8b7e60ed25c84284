//! Names and numbers that could be swapped by mistake, each a type of its own.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::known::{self, Known};

/// Longest name segment, in bytes (design section 11).
pub const SEGMENT_BYTES_MAX: usize = 128;
/// Most segments of a group path (design section 1).
pub const GROUP_SEGMENTS_MAX: usize = 8;
/// Longest node id, in bytes: room for `host:port` with the longest DNS name.
pub const NODE_ID_BYTES_MAX: usize = 262;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A server of the cluster.
    ServerId(u64)
);
number!(
    /// A Raft term.
    Term(u64)
);
number!(
    /// A position in the Raft log.
    LogIndex(u64)
);
number!(
    /// The counter clients see: one per committed change, in log order, without gaps. 0: before the first.
    Revision(u64)
);
number!(
    /// How often a node id has been registered anew; the higher one is the living one.
    Incarnation(u64)
);
number!(
    /// A client's lease. Never used twice in a cluster's life. 0 is no session.
    SessionId(u64)
);

impl SessionId {
    /// Set in the ids of sessions that were opened without the Raft directory ([`crate::ap`]), clear in all that it
    /// gave out: they never meet.
    pub const GOSSIPED: u64 = 1 << 63;

    /// Whether it was opened without the Raft directory.
    #[must_use]
    pub fn is_gossiped(self) -> bool {
        self.0 & Self::GOSSIPED != 0
    }
}

impl Revision {
    /// The one behind this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where an entry stands in the log: its leader's term and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that proposed the entry.
    pub term: Term,
    /// Index of the entry.
    pub index: LogIndex,
}

/// A globally unique name for one write, chosen by whoever wants to retry it safely.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({:032x})", self.0)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Why a name was refused. Nothing was changed; correct the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NameError {
    /// It has no characters.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name.
        what: String,
    },
    /// It, or one of its segments, is longer than allowed.
    #[error("{what} {name:?} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong {
        /// Which kind of name.
        what: String,
        /// Its beginning.
        name: String,
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A character outside the allowed set.
    #[error("{what} {name:?} contains {found:?}, allowed are {allowed}")]
    BadCharacter {
        /// Which kind of name.
        what: String,
        /// The name.
        name: String,
        /// The first offending character.
        found: char,
        /// The allowed set, for people.
        allowed: String,
    },
    /// More path segments than [`GROUP_SEGMENTS_MAX`].
    #[error("group {name:?} has {segments} segments, at most {segments_max} are allowed")]
    TooDeep {
        /// The name.
        name: String,
        /// How many it has.
        segments: usize,
        /// The bound.
        segments_max: usize,
    },
}

fn check(what: &str, name: &str, bytes_max: usize, extra: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what: what.into() });
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong {
            what: what.into(),
            name: name.chars().take(32).collect(),
            bytes: name.len(),
            bytes_max,
        });
    }
    // Every name of every request comes by here, some of them at every server: byte by byte.
    let allowed = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') || extra.as_bytes().contains(&byte)
    };
    if name.bytes().all(allowed) {
        return Ok(());
    }
    match name.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        Some(found) => Err(NameError::BadCharacter {
            what: what.into(),
            name: name.into(),
            found,
            allowed: format!("[A-Za-z0-9._-{extra}]"),
        }),
        None => Ok(()),
    }
}

/// Reads a name from text where it lies: names are read and written far too often to be copied on the way.
struct NameVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err = NameError>> Visitor<'_> for NameVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<T, E> {
        name.parse().map_err(E::custom)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $text:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(Arc<str>);

        impl Ord for $name {
            /// By their text. Most names that are compared share it.
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    return Ordering::Equal;
                }
                self.0.cmp(&other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(NameVisitor(PhantomData))
            }
        }

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                #[allow(clippy::redundant_closure_call, reason = "one macro, three rules")]
                ($text)(name).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

thread_local! {
    static GROUPS: RefCell<Known> = const { Known::nothing() };
    static SERVICES: RefCell<Known> = const { Known::nothing() };
}

fn check_group(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what: "group".into() });
    }
    let segments = name.split('/').count();
    if segments > GROUP_SEGMENTS_MAX {
        return Err(NameError::TooDeep {
            name: name.chars().take(64).collect(),
            segments,
            segments_max: GROUP_SEGMENTS_MAX,
        });
    }
    name.split('/')
        .try_for_each(|segment| check("group segment", segment, SEGMENT_BYTES_MAX, ""))
}

name!(
    /// A group: a path of 1 to 8 segments joined by `/`, such as `prod/feed`.
    GroupName,
    |name: &str| known::shared(&GROUPS, name, check_group)
);

name!(
    /// A service: one segment.
    ServiceName,
    |name: &str| known::shared(&SERVICES, name, |name| check("service", name, SEGMENT_BYTES_MAX, ""))
);

name!(
    /// A node: `host:port`, or whatever its registrant called it.
    NodeId,
    |name: &str| check("node id", name, NODE_ID_BYTES_MAX, ":[]%").map(|()| name.into())
);

name!(
    /// Where a process says it belongs: `prod`, `staging`. A claim, not a proof.
    Environment,
    |name: &str| check("environment", name, SEGMENT_BYTES_MAX, "").map(|()| name.into())
);

impl GroupName {
    /// Whether this group is `prefix` or lies below it, counted in whole segments. The empty prefix covers all.
    #[must_use]
    pub fn is_within(&self, prefix: &str) -> bool {
        match self.0.strip_prefix(prefix) {
            Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

/// A service of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Its group.
    pub group: GroupName,
    /// Its name.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.service)
    }
}

/// A node of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeKey {
    /// Its service.
    pub service: ServiceKey,
    /// Its id.
    pub node: NodeId,
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.node)
    }
}
