//! What the operator set: off, on or auto, for the cluster and for groups.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupName, Revision};

/// All of it, in basis points.
const WHOLE: u16 = 10_000;

/// It is no share. Nothing was changed; choose another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a share of {basis_points} basis points was given, must be 1 to 10000 (10000 are 100 %)")]
pub struct ShareError {
    /// What was given.
    pub basis_points: u16,
}

/// The share of consumers that an epoch serves: 1 to 10,000 basis points (0.01 % to 100 %).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Share(u16);

impl Share {
    /// From basis points.
    ///
    /// # Errors
    ///
    /// [`ShareError`]: 0 would serve nobody, ever; more than 10,000 is more than all.
    pub fn from_basis_points(basis_points: u16) -> Result<Self, ShareError> {
        if (1..=WHOLE).contains(&basis_points) {
            Ok(Self(basis_points))
        } else {
            Err(ShareError { basis_points })
        }
    }

    /// In basis points.
    #[must_use]
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// In how many epochs everyone is served: `ceil(1 / share)`, 1 to 10,000.
    #[must_use]
    pub fn epochs(self) -> u16 {
        WHOLE.div_ceil(self.0)
    }
}

impl Default for Share {
    /// 10 %.
    fn default() -> Self {
        Self(WHOLE / 10)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        match (part, part % 10) {
            (0, _) => write!(f, "{whole} %"),
            (_, 0) => write!(f, "{whole}.{} %", part / 10),
            (_, _) => write!(f, "{whole}.{part:02} %"),
        }
    }
}

impl TryFrom<u16> for Share {
    type Error = ShareError;

    fn try_from(basis_points: u16) -> Result<Self, ShareError> {
        Self::from_basis_points(basis_points)
    }
}

impl From<Share> for u16 {
    fn from(share: Share) -> Self {
        share.0
    }
}

/// A position of the switch. Variants are only ever added at the end: logs outlive servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Everyone is served at once; every change leaves by itself.
    Off,
    /// An epoch serves this share of the consumers; changes are coalesced.
    On {
        /// Which share.
        share: Share,
    },
    /// Like off, until this server is pressed; then like on.
    Auto {
        /// Which share while engaged.
        share: Share,
    },
    /// As on the cluster: of a group, its own record is taken away; of the cluster, off.
    #[default]
    Inherited,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On { share } => write!(f, "on ({share})"),
            Self::Auto { share } => write!(f, "auto ({share})"),
            Self::Inherited => f.write_str("inherited"),
        }
    }
}

/// What a record of the switch is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Every group without a record of its own or above it.
    Cluster,
    /// This group, and those below it that have no record of their own.
    Group(GroupName),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Group(group) => write!(f, "group {group}"),
        }
    }
}

/// The switch as it was set: what, by whom, why, as of which revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its position.
    pub mode: Mode,
    /// Who set it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When; a later record has a higher revision. 0: never set.
    pub set_at: Revision,
}

/// The records of all scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    cluster: Record,
    groups: BTreeMap<GroupName, Record>,
}

impl Modes {
    /// The record of exactly this scope. `None`: a group without one of its own.
    #[must_use]
    pub fn of(&self, scope: &Scope) -> Option<&Record> {
        match scope {
            Scope::Cluster => Some(&self.cluster),
            Scope::Group(group) => self.groups.get(group),
        }
    }

    /// The record that holds for a group: its own, else that of the nearest group above it, else the cluster's.
    #[must_use]
    pub fn holding_for(&self, group: &GroupName) -> &Record {
        if self.groups.is_empty() {
            return &self.cluster;
        }
        let path = group.as_str();
        let above = path.rmatch_indices('/').map(|(at, _)| &path[..at]);
        std::iter::once(path)
            .chain(above)
            .find_map(|path| self.groups.get(&path.parse().ok()?))
            .unwrap_or(&self.cluster)
    }

    /// Replaces a scope's record. A group that inherits loses its own.
    pub fn set(&mut self, scope: &Scope, record: Record) {
        match scope {
            Scope::Cluster => self.cluster = record,
            Scope::Group(group) if record.mode == Mode::Inherited => _ = self.groups.remove(group),
            Scope::Group(group) => _ = self.groups.insert(group.clone(), record),
        }
    }

    /// The cluster's record.
    #[must_use]
    pub fn cluster(&self) -> &Record {
        &self.cluster
    }

    /// The records of groups, by name.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (&GroupName, &Record)> {
        self.groups.iter()
    }

    /// Whether any record may ever engage; if not, nobody needs to ask.
    #[must_use]
    pub fn idle(&self) -> bool {
        let still = |record: &Record| matches!(record.mode, Mode::Off | Mode::Inherited);
        still(&self.cluster) && self.groups.values().all(still)
    }
}
