//! What a provider says of a node, and what a consumer sees of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_proto::v1;

use crate::key::{NodeKey, ServiceKey};

/// Free text by name.
pub type Labels = BTreeMap<String, String>;

/// Weight of a node that names none.
pub const WEIGHT_DEFAULT: u16 = 100;

/// Who decides that a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeKind {
    /// It lives with its session.
    Ephemeral,
    /// It stays until deregistered. Nothing checks its health in this version: whoever registered it, or an operator, sets its state.
    Persistent,
    /// It is never struck off by the registry: its clients judge its health.
    Static,
}

/// What is known of a node's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// It serves.
    Up,
    /// Its session lapsed, and the removal guard held it.
    Suspect,
    /// It finishes what it has and wants nothing new.
    Draining,
    /// It was set down.
    Down,
}

impl NodeKind {
    pub(crate) fn from_wire(kind: i32) -> Self {
        match v1::NodeKind::try_from(kind) {
            Ok(v1::NodeKind::Persistent) => Self::Persistent,
            Ok(v1::NodeKind::Static) => Self::Static,
            Ok(v1::NodeKind::Ephemeral | v1::NodeKind::Unspecified) | Err(_) => Self::Ephemeral,
        }
    }
}

impl From<NodeKind> for v1::NodeKind {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Ephemeral => Self::Ephemeral,
            NodeKind::Persistent => Self::Persistent,
            NodeKind::Static => Self::Static,
        }
    }
}

impl NodeState {
    pub(crate) fn from_wire(state: i32) -> Self {
        match v1::NodeState::try_from(state) {
            Ok(v1::NodeState::Up | v1::NodeState::Unspecified) => Self::Up,
            Ok(v1::NodeState::Draining) => Self::Draining,
            Ok(v1::NodeState::Down) => Self::Down,
            // A state of a later version: neither surely well nor surely gone.
            Ok(v1::NodeState::Suspect) | Err(_) => Self::Suspect,
        }
    }
}

impl From<NodeState> for v1::NodeState {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Up => Self::Up,
            NodeState::Suspect => Self::Suspect,
            NodeState::Draining => Self::Draining,
            NodeState::Down => Self::Down,
        }
    }
}

/// One way to reach a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Its purpose: `http`, `grpc`; unique in a node.
    pub name: String,
    /// Host name or IP address.
    pub host: String,
    /// TCP or UDP port.
    pub port: u16,
}

impl Address {
    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What a provider says of one of its nodes.
///
/// ```
/// use rollcall_client::Registration;
/// let node = Registration::new("http", "10.0.0.1", 8080).weight(200).label("zone", "b");
/// assert_eq!(node.id, "10.0.0.1:8080");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// Unique in the service.
    pub id: String,
    /// At least one.
    pub addresses: Vec<Address>,
    /// Share of the traffic against the other nodes; default [`WEIGHT_DEFAULT`]; 0: not chosen.
    pub weight: u16,
    /// dc, zone, version, ...
    pub labels: Labels,
    /// Keys and values together up to 4 KiB.
    pub metadata: Labels,
    /// `None`: the service's default kind.
    pub kind: Option<NodeKind>,
    /// Up (default), draining or down. The registry alone says suspect.
    pub state: NodeState,
}

impl Registration {
    /// A node with one address; its id is `host:port`.
    #[must_use]
    pub fn new(name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        let address = Address {
            name: name.into(),
            host: host.into(),
            port,
        };
        Self {
            id: address.authority(),
            addresses: vec![address],
            weight: WEIGHT_DEFAULT,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: None,
            state: NodeState::Up,
        }
    }

    /// With another id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// With a further address.
    #[must_use]
    pub fn address(mut self, name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        self.addresses.push(Address {
            name: name.into(),
            host: host.into(),
            port,
        });
        self
    }

    /// With another weight.
    #[must_use]
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// With an entry of metadata.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Of a kind other than the service's default.
    #[must_use]
    pub fn kind(mut self, kind: NodeKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// In another state than up.
    #[must_use]
    pub fn state(mut self, state: NodeState) -> Self {
        self.state = state;
        self
    }

    /// What an update makes of it.
    pub(crate) fn apply(&mut self, update: &NodeUpdate) {
        if let Some(weight) = update.weight {
            self.weight = weight;
        }
        if let Some(state) = update.state {
            self.state = state;
        }
        patch(&mut self.labels, &update.labels);
        patch(&mut self.metadata, &update.metadata);
    }
}

fn patch(labels: &mut Labels, changes: &BTreeMap<String, Option<String>>) {
    for (name, value) in changes {
        match value {
            Some(value) => labels.insert(name.clone(), value.clone()),
            None => labels.remove(name),
        };
    }
}

impl From<&Registration> for v1::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            id: registration.id.clone(),
            addresses: registration.addresses.iter().map(v1::Address::from).collect(),
            weight: Some(registration.weight.into()),
            labels: registration.labels.clone(),
            metadata: registration.metadata.clone(),
            kind: registration
                .kind
                .map_or(v1::NodeKind::Unspecified, v1::NodeKind::from)
                .into(),
            state: v1::NodeState::from(registration.state).into(),
        }
    }
}

impl From<&Address> for v1::Address {
    fn from(address: &Address) -> Self {
        Self {
            name: address.name.clone(),
            host: address.host.clone(),
            port: address.port.into(),
        }
    }
}

/// A condition on the record to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// None.
    #[default]
    Any,
    /// It must not exist.
    Absent,
    /// It must exist, last modified at this revision.
    Revision(u64),
}

impl From<Expected> for Option<v1::Expected> {
    fn from(expected: Expected) -> Self {
        let condition = match expected {
            Expected::Any => return None,
            Expected::Absent => v1::expected::Condition::Absent(true),
            Expected::Revision(revision) => v1::expected::Condition::Revision(revision),
        };
        Some(v1::Expected {
            condition: Some(condition),
        })
    }
}

/// One node to register, for calls with many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Into which service.
    pub service: ServiceKey,
    /// What is said of it.
    pub registration: Registration,
    /// Condition on the node.
    pub expected: Expected,
}

impl Entry {
    /// Without a condition.
    #[must_use]
    pub fn new(service: ServiceKey, registration: Registration) -> Self {
        Self {
            service,
            registration,
            expected: Expected::Any,
        }
    }

    /// With a condition.
    #[must_use]
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.service.node(&self.registration.id)
    }
}

impl From<&Entry> for v1::RegisterNode {
    fn from(entry: &Entry) -> Self {
        Self {
            key: Some((&entry.service).into()),
            registration: Some((&entry.registration).into()),
            expected: entry.expected.into(),
        }
    }
}

/// One node to deregister.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Which.
    pub key: NodeKey,
    /// Condition on the node. Without one, a node that is already gone is no error.
    pub expected: Expected,
}

impl From<NodeKey> for Removal {
    fn from(key: NodeKey) -> Self {
        Self {
            key,
            expected: Expected::Any,
        }
    }
}

impl From<&Removal> for v1::DeregisterNode {
    fn from(removal: &Removal) -> Self {
        Self {
            key: Some((&removal.key).into()),
            expected: removal.expected.into(),
        }
    }
}

/// A change to a registered node: only what is set changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeUpdate {
    /// Which.
    pub key: NodeKey,
    /// Condition on the node; compare-and-set with [`Expected::Revision`] of [`Node::modified_revision`].
    pub expected: Expected,
    /// New weight.
    pub weight: Option<u16>,
    /// New state: up, draining or down.
    pub state: Option<NodeState>,
    /// Labels to set, or to remove (`None`).
    pub labels: BTreeMap<String, Option<String>>,
    /// Metadata to set, or to remove (`None`).
    pub metadata: BTreeMap<String, Option<String>>,
}

impl NodeUpdate {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(key: NodeKey) -> Self {
        Self {
            key,
            expected: Expected::Any,
            weight: None,
            state: None,
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Only if this holds.
    #[must_use]
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// Sets the weight.
    #[must_use]
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets the state.
    #[must_use]
    pub fn state(mut self, state: NodeState) -> Self {
        self.state = Some(state);
        self
    }

    /// Sets a label, or removes it (`None`).
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: Option<String>) -> Self {
        self.labels.insert(name.into(), value);
        self
    }

    /// Sets an entry of metadata, or removes it (`None`).
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: Option<String>) -> Self {
        self.metadata.insert(name.into(), value);
        self
    }
}

impl From<&NodeUpdate> for v1::UpdateNode {
    fn from(update: &NodeUpdate) -> Self {
        let (set_labels, remove_labels) = split(&update.labels);
        let (set_metadata, remove_metadata) = split(&update.metadata);
        Self {
            key: Some((&update.key).into()),
            expected: update.expected.into(),
            weight: update.weight.map(u32::from),
            state: update
                .state
                .map_or(v1::NodeState::Unspecified, v1::NodeState::from)
                .into(),
            set_labels,
            remove_labels,
            set_metadata,
            remove_metadata,
        }
    }
}

fn split(changes: &BTreeMap<String, Option<String>>) -> (Labels, Vec<String>) {
    let set = changes
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect();
    let removed = changes
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(name, _)| name.clone())
        .collect();
    (set, removed)
}

/// What an operator says of a node. It outlives re-registrations and is kept by node id alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// Takes the node out of the choice (`true`), or explicitly leaves it in.
    pub disabled: Option<bool>,
    /// Replaces the registrant's weight.
    pub weight: Option<u16>,
    /// Laid over the registrant's labels.
    pub labels: Labels,
    /// For people: why.
    pub reason: String,
    /// For people: who.
    pub author: String,
    /// Cleared by itself so long after it was set; `None`: never.
    pub ttl: Option<std::time::Duration>,
    /// When it was set. Given by the registry; ignored when setting.
    pub set_at_revision: u64,
}

impl From<&Override> for v1::Override {
    fn from(over: &Override) -> Self {
        Self {
            disabled: over.disabled,
            weight: over.weight.map(u32::from),
            labels: over.labels.clone(),
            reason: over.reason.clone(),
            author: over.author.clone(),
            ttl_ms: over
                .ttl
                .map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)),
            set_at_revision: over.set_at_revision,
        }
    }
}

impl From<v1::Override> for Override {
    fn from(over: v1::Override) -> Self {
        Self {
            disabled: over.disabled,
            weight: over.weight.map(narrow_weight),
            labels: over.labels,
            reason: over.reason,
            author: over.author,
            ttl: (over.ttl_ms > 0).then(|| std::time::Duration::from_millis(over.ttl_ms)),
            set_at_revision: over.set_at_revision,
        }
    }
}

/// A node as consumers see it: what its registrant said and what an operator overrode, merged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Unique in the service.
    pub id: Arc<str>,
    /// How to reach it.
    pub addresses: Vec<Address>,
    /// Share of the traffic against the other nodes; 0: not chosen.
    pub weight: u16,
    /// dc, zone, version, ...
    pub labels: Labels,
    /// Free.
    pub metadata: Labels,
    /// Who decides that it is gone.
    pub kind: NodeKind,
    /// What is known of its health.
    pub state: NodeState,
    /// An operator took it out of the choice.
    pub disabled: bool,
    /// Grows with each new registration of the id.
    pub incarnation: u64,
    /// Revision of this incarnation's registration.
    pub created_revision: u64,
    /// Revision of its last change, overrides included.
    pub modified_revision: u64,
    /// The session it lives with; 0: none.
    pub session: u64,
    /// What an operator said.
    pub over: Option<Override>,
    /// Datacenter of an imported record; empty: this one.
    pub origin: String,
}

impl Node {
    /// The address of that name.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.addresses.iter().find(|address| address.name == name)
    }

    /// The first address.
    #[must_use]
    pub fn first_address(&self) -> Option<&Address> {
        self.addresses.first()
    }
}

fn narrow_weight(weight: u32) -> u16 {
    u16::try_from(weight).unwrap_or(u16::MAX)
}

impl From<v1::Node> for Node {
    fn from(node: v1::Node) -> Self {
        Self {
            id: node.id.into(),
            addresses: node
                .addresses
                .into_iter()
                .filter_map(|address| {
                    // A port that does not fit reaches nothing.
                    let port = u16::try_from(address.port).ok()?;
                    Some(Address {
                        name: address.name,
                        host: address.host,
                        port,
                    })
                })
                .collect(),
            weight: narrow_weight(node.weight),
            labels: node.labels,
            metadata: node.metadata,
            kind: NodeKind::from_wire(node.kind),
            state: NodeState::from_wire(node.state),
            disabled: node.disabled,
            incarnation: node.incarnation,
            created_revision: node.created_revision,
            modified_revision: node.modified_revision,
            session: node.session,
            over: node.r#override.map(Override::from),
            origin: node.origin,
        }
    }
}

impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.as_ref().into(),
            addresses: node.addresses.iter().map(v1::Address::from).collect(),
            weight: node.weight.into(),
            labels: node.labels.clone(),
            metadata: node.metadata.clone(),
            kind: v1::NodeKind::from(node.kind).into(),
            state: v1::NodeState::from(node.state).into(),
            disabled: node.disabled,
            incarnation: node.incarnation,
            created_revision: node.created_revision,
            modified_revision: node.modified_revision,
            session: node.session,
            r#override: node.over.as_ref().map(v1::Override::from),
            origin: node.origin.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_applied_to_what_would_be_registered_again() {
        let key = NodeKey::new("g", "s", "n");
        let mut registration = Registration::new("http", "h", 1)
            .label("zone", "a")
            .label("old", "x");
        let update = NodeUpdate::new(key)
            .weight(7)
            .state(NodeState::Draining)
            .label("old", None);
        registration.apply(&update.label("zone", Some("b".into())));
        assert_eq!(
            (registration.weight, registration.state),
            (7, NodeState::Draining)
        );
        assert_eq!(registration.labels, Labels::from([("zone".into(), "b".into())]));
    }

    #[test]
    fn an_ipv6_address_has_brackets() {
        assert_eq!(Registration::new("http", "::1", 80).id, "[::1]:80");
    }

    #[test]
    fn a_state_of_a_later_version_is_suspect() {
        assert_eq!(NodeState::from_wire(99), NodeState::Suspect);
    }
}
