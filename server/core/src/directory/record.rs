//! What the directory keeps: groups, services, nodes in two layers, sessions.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::addresses::Addresses;
use super::labels::Labels;
use super::owned::OwnedNodes;
use super::sign::Sign;
use super::tombstone::Tombstones;
use crate::admission::AdmissionList;
use crate::guard::{GuardSettings, GuardStatus, Ledger, Standing};
use crate::ids::{GroupName, Incarnation, LogIndex, NodeId, Revision, ServiceKey, ServiceName, SessionId};

/// Weight of a node that names none.
pub const WEIGHT_DEFAULT: u16 = 100;

/// How a group is replicated (design section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GroupMode {
    /// By Raft.
    #[default]
    Cp,
    /// By gossip.
    Ap,
}

impl std::fmt::Display for GroupMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cp => "cp",
            Self::Ap => "ap",
        })
    }
}

/// Who decides that a node is gone (design section 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeKind {
    /// Lives with its session.
    #[default]
    Ephemeral,
    /// Stays until deregistered.
    Persistent,
    /// Never struck off by the registry.
    Static,
}

/// What is known of a node's health (design section 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Serving.
    #[default]
    Up,
    /// Lapsed, held by the removal guard.
    Suspect,
    /// Finishes what it has.
    Draining,
    /// It was set down.
    Down,
}

impl NodeState {
    /// What the removal guard makes of it.
    pub(super) fn standing(self) -> Standing {
        match self {
            Self::Up => Standing::Up,
            Self::Suspect => Standing::Suspect,
            Self::Draining | Self::Down => Standing::Other,
        }
    }
}

/// One way to reach a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Its purpose: `http`, `grpc`; unique in a node.
    pub name: String,
    /// Host name or IP address.
    pub host: String,
    /// TCP or UDP port.
    pub port: u16,
}

/// What the registrant said: the lower layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registration {
    /// The node's id.
    pub id: NodeId,
    /// At least one.
    pub addresses: Addresses,
    /// Share of traffic, against the other nodes.
    pub weight: u16,
    /// dc, zone, version, ...
    pub labels: Labels,
    /// Up to 4 KiB, keys and values together.
    pub metadata: Labels,
    /// `None`: the service's default kind.
    pub kind: Option<NodeKind>,
    /// Up, draining or down.
    pub state: NodeState,
}

/// What an operator said: the upper layer. Kept by node id, whether the node is there or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Override {
    /// Takes the node out of (or explicitly leaves it in) the choice.
    pub disabled: Option<bool>,
    /// Replaces the registrant's weight.
    pub weight: Option<u16>,
    /// Laid over the registrant's labels.
    pub labels: Labels,
    /// For people: why.
    pub reason: String,
    /// For people: who.
    pub author: String,
    /// Cleared by itself this many milliseconds after it was set; 0: never.
    pub ttl_ms: u64,
    /// When it was set; fences its expiry. Filled in by apply.
    pub set_at: Revision,
}

/// The session that a node lives with, if it lives with one. There are very many nodes: this takes half of what an option
/// would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(Option<NonZeroU64>);

impl Owner {
    /// Which session.
    #[must_use]
    pub fn session(self) -> Option<SessionId> {
        self.0.map(|session| SessionId(session.get()))
    }
}

impl From<Option<SessionId>> for Owner {
    fn from(session: Option<SessionId>) -> Self {
        Self(session.and_then(|session| NonZeroU64::new(session.0)))
    }
}

/// As the option it stands for.
impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.session().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let session = Option::<SessionId>::deserialize(deserializer)?;
        if session == Some(SessionId(0)) {
            return Err(D::Error::custom("0 is no session"));
        }
        Ok(session.into())
    }
}

/// A node of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What its registrant said.
    pub registration: Registration,
    /// Resolved kind.
    pub kind: NodeKind,
    /// What is known of its health.
    pub state: NodeState,
    /// The session it lives with.
    #[serde(rename = "session")]
    pub owner: Owner,
    /// Grows with each new registration of the id, also across removals; in AP groups while the server that is written
    /// to runs. On the way back to the log it does not fall; it may be what it was, though the id was registered anew
    /// elsewhere, if the server there had forgotten how often.
    pub incarnation: Incarnation,
    /// Revision of this incarnation's registration.
    pub created: Revision,
    /// Revision of its last change, overrides included.
    pub modified: Revision,
}

impl Node {
    /// The session it lives with.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.owner.session()
    }
}

/// A service's settings. Room for storm, routing and balancing comes with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// For registrations that name no kind.
    pub default_kind: NodeKind,
    /// Free.
    pub metadata: Labels,
    /// Most nodes; 0: the limits' default.
    pub nodes_max: u32,
    /// How much of it may lapse away.
    pub guard: GuardSettings,
}

/// A group's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// How it is replicated.
    pub mode: GroupMode,
    /// Registration creates missing services of this group.
    pub auto_create: bool,
    /// For services that are created without settings.
    pub defaults: ServiceSettings,
    /// Most services; 0: the limits' default.
    pub services_max: u32,
    /// Free.
    pub metadata: Labels,
    /// Who may register. Judged at the door that takes the registration, which knows where it comes from; apply does
    /// not ask again.
    pub admission: AdmissionList,
}

/// A service and its nodes. Shared between the directory, its snapshots and readers; copied when written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// Its settings.
    pub settings: ServiceSettings,
    /// Its nodes, by id.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Operators' overrides, by node id; a node need not be there.
    pub overrides: BTreeMap<NodeId, Arc<Override>>,
    /// Node ids that left, so that one that comes back gets a higher incarnation.
    pub tombstones: Arc<Tombstones>,
    /// The digest of its nodes as consumers see them.
    pub sign: Sign,
    /// The removal guard's account of it.
    pub guard: Ledger,
    /// When it was created.
    pub created: Revision,
    /// When its settings, nodes, overrides or what its removal guard says last changed: two readings with the same
    /// value are the same.
    pub modified: Revision,
    /// When its settings last changed. Conditions on a service are judged against this, so that a node coming
    /// or going does not spoil them.
    pub settings_modified: Revision,
}

impl Service {
    /// What its removal guard has to say: engaged or not, since when, k of n, why.
    #[must_use]
    pub fn guard_status(&self) -> GuardStatus {
        self.guard.status(&self.settings.guard)
    }

    /// The same, if it has something to say.
    #[must_use]
    pub fn guard_said(&self) -> Option<GuardStatus> {
        (!self.guard.is_idle()).then(|| self.guard_status())
    }
}

/// A group on its way from one mode to the other. Nothing is written to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Where to.
    pub to: GroupMode,
    /// When it began; its name.
    pub since: Revision,
    /// Milliseconds since 1970, by the proposer's clock: the stamp that its records get if it goes to gossip.
    pub stamp_ms: u64,
}

/// A group and its services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its settings.
    pub settings: GroupSettings,
    /// Its services, by name.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Sum of its services' signs, each mixed with the service's name ([`Sign::of_service`]).
    pub sign: Sign,
    /// How many nodes its services have.
    pub nodes: u64,
    /// When it was created.
    pub created: Revision,
    /// When its settings or its set of services last changed (not its services' nodes).
    pub modified: Revision,
    /// When its settings last changed. Conditions on a group are judged against this.
    pub settings_modified: Revision,
    /// On its way to the other mode.
    pub moving: Option<Move>,
}

/// The replicated part of a session. Its deadline lives with the leader, in [`crate::session`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// SHA-256 of its secret; the secret itself is never stored.
    pub secret_digest: [u8; 32],
    /// Granted, in milliseconds.
    pub ttl_ms: u32,
    /// A name for people.
    pub client: String,
    /// When it was opened.
    pub opened: Revision,
    /// Log index of its last committed sign of life (opening, or a write under it); fences its expiry.
    pub last_renewal: LogIndex,
    /// When it lapsed, if it did and the guard holds nodes of it. Nothing counts down for it then; it ends with
    /// its last node, and a sign of life revives it, unless it lost nodes.
    pub lapsed: Option<Revision>,
    /// Nodes of it went when it lapsed, or afterwards, while others are held. Its client takes itself to own them all,
    /// so it is told that the session is gone, whatever is left of it, and registers them again under another.
    pub lost_nodes: bool,
    /// The nodes it owns. All of them are suspects if it lapsed, none if not.
    pub nodes: OwnedNodes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_written_as_the_option_it_stands_for() {
        for session in [
            None,
            Some(SessionId(1)),
            Some(SessionId(SessionId::GOSSIPED | 300)),
        ] {
            let owner = Owner::from(session);
            assert_eq!(owner.session(), session);
            let bytes = postcard::to_allocvec(&session).unwrap();
            assert_eq!(postcard::to_allocvec(&owner).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Owner>(&bytes).unwrap(), owner);
        }
        assert_eq!(Owner::from(Some(SessionId(0))).session(), None);
        let nobody = postcard::to_allocvec(&Some(SessionId(0))).unwrap();
        assert!(postcard::from_bytes::<Owner>(&nobody).is_err());
    }

    /// With its counts a node just fits into a piece of memory of 128 bytes; the next size is 160.
    #[test]
    fn a_node_is_small() {
        assert!(size_of::<Node>() + 2 * size_of::<usize>() <= 128);
    }
}
