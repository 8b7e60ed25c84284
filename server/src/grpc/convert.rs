//! Between the wire and the rooms. Nothing unchecked comes in: names, numbers and sizes are judged here.
//!
//! What is wrong is said as a [`Refusal`], as if the directory had said it: the caller's next move is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use rollcall_core::admission::{AdmissionList, ENTRIES_MAX};
use rollcall_core::directory::{
    AddressRef, Addresses, DeregisterNode, Expected, Group, GroupMode, GroupSettings, Node, NodeKind,
    NodeState, NodeView, Override, Refusal, RegisterNode, Registration, RemovalCause, Service,
    ServiceSettings, Sign, UpdateNode, WEIGHT_DEFAULT,
};
use rollcall_core::guard::{GuardSettings, GuardStatus, HoldReason};
use rollcall_core::ids::{GroupName, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId};
use rollcall_proto::v1;

use crate::raft::{MemberInfo, MemberRole};

// From the rooms to the wire.

/// A name on the wire.
pub(crate) fn service_key(key: &ServiceKey) -> v1::ServiceKey {
    v1::ServiceKey {
        group: key.group.as_str().into(),
        service: key.service.as_str().into(),
    }
}

pub(crate) fn node_key(key: &NodeKey) -> v1::NodeKey {
    v1::NodeKey {
        group: key.service.group.as_str().into(),
        service: key.service.service.as_str().into(),
        node: key.node.as_str().into(),
    }
}

pub(crate) fn sign(sign: Sign) -> v1::Sign {
    let low = u64::try_from(sign.0 & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    let high = u64::try_from(sign.0 >> 64).unwrap_or(u64::MAX);
    v1::Sign { high, low }
}

pub(crate) fn removal_cause(cause: RemovalCause) -> v1::RemovalCause {
    match cause {
        RemovalCause::Deregistered => v1::RemovalCause::Deregistered,
        RemovalCause::Expired => v1::RemovalCause::Expired,
        RemovalCause::SessionClosed => v1::RemovalCause::SessionClosed,
    }
}

fn node_kind(kind: NodeKind) -> v1::NodeKind {
    match kind {
        NodeKind::Ephemeral => v1::NodeKind::Ephemeral,
        NodeKind::Persistent => v1::NodeKind::Persistent,
        NodeKind::Static => v1::NodeKind::Static,
    }
}

fn node_state(state: NodeState) -> v1::NodeState {
    match state {
        NodeState::Up => v1::NodeState::Up,
        NodeState::Suspect => v1::NodeState::Suspect,
        NodeState::Draining => v1::NodeState::Draining,
        NodeState::Down => v1::NodeState::Down,
    }
}

fn addresses(addresses: &Addresses) -> Vec<v1::Address> {
    let address = |a: AddressRef<'_>| v1::Address {
        name: a.name.into(),
        host: a.host.into(),
        port: a.port.into(),
    };
    addresses.iter().map(address).collect()
}

/// A node, both layers merged.
pub(crate) fn node(view: NodeView<'_>) -> v1::Node {
    let Node {
        registration,
        kind,
        state,
        owner,
        incarnation,
        created,
        modified,
    } = view.node;
    v1::Node {
        id: registration.id.as_str().into(),
        addresses: addresses(&registration.addresses),
        weight: view.weight().into(),
        labels: (&*view.labels()).into(),
        metadata: (&registration.metadata).into(),
        kind: node_kind(*kind).into(),
        state: node_state(*state).into(),
        disabled: view.disabled(),
        incarnation: incarnation.0,
        created_revision: created.0,
        modified_revision: modified.0,
        session: owner.session().map_or(0, |session| session.0),
        r#override: view.over.map(node_override),
        origin: String::new(),
    }
}

pub(crate) fn registration(registration: &Registration) -> v1::Registration {
    v1::Registration {
        id: registration.id.as_str().into(),
        addresses: addresses(&registration.addresses),
        weight: Some(registration.weight.into()),
        labels: (&registration.labels).into(),
        metadata: (&registration.metadata).into(),
        kind: registration
            .kind
            .map_or(v1::NodeKind::Unspecified, node_kind)
            .into(),
        state: node_state(registration.state).into(),
    }
}

pub(crate) fn node_override(over: &Override) -> v1::Override {
    v1::Override {
        disabled: over.disabled,
        weight: over.weight.map(u32::from),
        labels: (&over.labels).into(),
        reason: over.reason.clone(),
        author: over.author.clone(),
        ttl_ms: over.ttl_ms,
        set_at_revision: over.set_at.0,
    }
}

pub(crate) fn service_settings(settings: &ServiceSettings) -> v1::ServiceSettings {
    v1::ServiceSettings {
        default_kind: node_kind(settings.default_kind).into(),
        metadata: (&settings.metadata).into(),
        nodes_max: settings.nodes_max,
        guard: guard_settings(&settings.guard),
    }
}

/// What is compared beside a service's sign.
pub(crate) fn metadata_hash(service: &Service) -> u64 {
    rollcall_proto::metadata_hash(service.settings.metadata.iter())
}

/// Nothing if they are the defaults.
fn guard_settings(settings: &GuardSettings) -> Option<v1::GuardSettings> {
    let GuardSettings {
        share,
        window_ms,
        keep_last,
        hold_max_ms,
    } = *settings;
    (*settings != GuardSettings::default()).then_some(v1::GuardSettings {
        share_basis_points: Some(share),
        window_ms: Some(window_ms),
        keep_last: Some(keep_last),
        hold_max_ms: Some(hold_max_ms),
    })
}

pub(crate) fn group_mode(mode: GroupMode) -> v1::GroupMode {
    match mode {
        GroupMode::Cp => v1::GroupMode::Cp,
        GroupMode::Ap => v1::GroupMode::Ap,
    }
}

fn group_settings(settings: &GroupSettings) -> v1::GroupSettings {
    v1::GroupSettings {
        mode: group_mode(settings.mode).into(),
        auto_create: settings.auto_create,
        defaults: Some(service_settings(&settings.defaults)),
        services_max: settings.services_max,
        metadata: (&settings.metadata).into(),
        admission: admission_list(&settings.admission),
    }
}

/// Nothing if it admits everyone.
fn admission_list(list: &AdmissionList) -> Option<v1::AdmissionList> {
    let AdmissionList {
        cidrs,
        scopes,
        environments,
        dry_run,
    } = list;
    (*list != AdmissionList::default()).then(|| v1::AdmissionList {
        cidrs: cidrs.iter().map(ToString::to_string).collect(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        environments: environments.iter().map(ToString::to_string).collect(),
        dry_run: *dry_run,
    })
}

/// All nodes of a service.
pub(crate) fn service_view(service: &Service) -> v1::ServiceView {
    v1::ServiceView {
        key: Some(service_key(&service.key)),
        sign: Some(sign(service.sign)),
        revision: service.modified.0,
        settings: Some(service_settings(&service.settings)),
        nodes: service.views().map(node).collect(),
        guard: service_guard(service),
    }
}

pub(crate) fn service_summary(mode: GroupMode, service: &Service) -> v1::ServiceSummary {
    let up = service
        .views()
        .filter(|view| view.node.state == NodeState::Up && !view.disabled())
        .count();
    v1::ServiceSummary {
        key: Some(service_key(&service.key)),
        sign: Some(sign(service.sign)),
        revision: service.modified.0,
        nodes: small(service.nodes.len()),
        up: small(up),
        settings: Some(service_settings(&service.settings)),
        guard: service_guard(service),
        mode: group_mode(mode).into(),
    }
}

/// Nothing if it has nothing to say.
pub(crate) fn service_guard(service: &Service) -> Option<v1::GuardStatus> {
    service.guard_said().as_ref().map(guard_status)
}

pub(crate) fn guard_status(status: &GuardStatus) -> v1::GuardStatus {
    let mut wire = v1::GuardStatus {
        listed: status.listed,
        up: status.up,
        held: status.held,
        held_since: status.held_since.map_or(0, |since| since.0),
        overdue: status.overdue,
        window_began: status.window.map_or(0, |began| began.0),
        baseline: status.baseline,
        removed: status.removed,
        allowed: status.allowed,
        ..v1::GuardStatus::default()
    };
    if let Some(engaged) = status.engaged {
        let reason = match engaged.reason {
            HoldReason::Share => v1::GuardReason::Share,
            HoldReason::LastNode => v1::GuardReason::LastNode,
        };
        wire.engaged = true;
        wire.engaged_since = engaged.since.0;
        wire.reason = reason.into();
        wire.lapsed = engaged.lapsed;
        wire.of = engaged.of;
        wire.needed = engaged.needed;
    }
    wire
}

/// What the log says it is, and what its side of the registry says is in it.
pub(crate) fn group_summary(definition: &Group, content: &Group) -> v1::GroupSummary {
    v1::GroupSummary {
        group: definition.name.as_str().into(),
        settings: Some(group_settings(&definition.settings)),
        sign: Some(sign(content.sign)),
        revision: definition.modified.0,
        services: small(content.services.len()),
        nodes: u32::try_from(content.nodes).unwrap_or(u32::MAX),
    }
}

pub(crate) fn member_role(role: MemberRole) -> v1::MemberRole {
    match role {
        MemberRole::Leader => v1::MemberRole::Leader,
        MemberRole::Follower => v1::MemberRole::Follower,
        MemberRole::Candidate => v1::MemberRole::Candidate,
        MemberRole::Learner => v1::MemberRole::Learner,
    }
}

pub(crate) fn member(member: MemberInfo) -> v1::Member {
    v1::Member {
        server: member.server.0,
        peer_address: member.addresses.peer_address,
        client_address: member.addresses.client_address,
        http_address: member.addresses.http_address,
        voter: member.voter,
        role: member_role(member.role).into(),
        matched_index: member.matched.map_or(0, |index| index.0),
        last_contact_ms: member.last_contact.map_or(0, milliseconds),
        gossip: None,
    }
}

/// Whole milliseconds, rounded up.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

// From the wire to the rooms.

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

/// A field that must be there.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| invalid(field, "is missing"))
}

/// Something that may have at most so many elements.
pub(crate) fn bounded(what: &str, size: usize, size_max: usize) -> Result<(), Refusal> {
    if size <= size_max {
        return Ok(());
    }
    Err(Refusal::TooLarge {
        what: what.into(),
        size: size as u64,
        size_max: size_max as u64,
    })
}

pub(crate) fn group_from(name: &str) -> Result<GroupName, Refusal> {
    Ok(name.parse()?)
}

/// A group or a leading part of its path; empty for all.
pub(crate) fn prefix_from(prefix: &str) -> Result<String, Refusal> {
    let prefix = prefix.trim_end_matches('/');
    if !prefix.is_empty() {
        group_from(prefix)?;
    }
    Ok(prefix.into())
}

pub(crate) fn service_key_from(field: &str, key: Option<&v1::ServiceKey>) -> Result<ServiceKey, Refusal> {
    let key = required(field, key)?;
    Ok(ServiceKey {
        group: key.group.parse()?,
        service: key.service.parse()?,
    })
}

pub(crate) fn node_key_from(field: &str, key: Option<&v1::NodeKey>) -> Result<NodeKey, Refusal> {
    let key = required(field, key)?;
    let service = ServiceKey {
        group: key.group.parse()?,
        service: key.service.parse()?,
    };
    Ok(NodeKey {
        service,
        node: key.node.parse()?,
    })
}

pub(crate) fn sign_from(sign: &v1::Sign) -> Sign {
    Sign(u128::from(sign.high) << 64 | u128::from(sign.low))
}

/// 0 is no session.
pub(crate) fn session_from(session: u64) -> Result<SessionId, Refusal> {
    if session == 0 {
        Err(invalid("session", "is missing"))
    } else {
        Ok(SessionId(session))
    }
}

pub(crate) fn expected_from(expected: Option<v1::Expected>) -> Result<Expected, Refusal> {
    use v1::expected::Condition;
    match expected.and_then(|expected| expected.condition) {
        None => Ok(Expected::Any),
        Some(Condition::Absent(true)) => Ok(Expected::Absent),
        Some(Condition::Absent(false)) => Err(invalid(
            "expected.absent",
            "is false; leave it out, or name a revision",
        )),
        Some(Condition::Revision(revision)) => Ok(Expected::Revision(Revision(revision))),
    }
}

/// The caller's request id, or one of our own.
pub(crate) fn request_id_from(options: Option<&v1::WriteOptions>) -> Result<RequestId, Refusal> {
    let id = options.map_or(&[][..], |options| &options.request_id);
    if id.is_empty() {
        return Ok(RequestId(rand::random()));
    }
    let bytes: [u8; 16] = id.try_into().map_err(|_| {
        invalid(
            "options.request_id",
            format!("has {} bytes, must have 16 or none", id.len()),
        )
    })?;
    Ok(RequestId(u128::from_be_bytes(bytes)))
}

fn enumeration<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Refusal> {
    E::try_from(value).map_err(|_| invalid(field, format!("{value} is not known to this server")))
}

fn kind_from(field: &str, kind: i32) -> Result<Option<NodeKind>, Refusal> {
    Ok(match enumeration(field, kind)? {
        v1::NodeKind::Unspecified => None,
        v1::NodeKind::Ephemeral => Some(NodeKind::Ephemeral),
        v1::NodeKind::Persistent => Some(NodeKind::Persistent),
        v1::NodeKind::Static => Some(NodeKind::Static),
    })
}

/// What a registrant may say of its state; whether it lapsed is not for it to say.
fn state_from(field: &str, state: i32) -> Result<Option<NodeState>, Refusal> {
    Ok(match enumeration(field, state)? {
        v1::NodeState::Unspecified => None,
        v1::NodeState::Up => Some(NodeState::Up),
        v1::NodeState::Draining => Some(NodeState::Draining),
        v1::NodeState::Down => Some(NodeState::Down),
        v1::NodeState::Suspect => return Err(invalid(field, "a registrant may say up, draining or down")),
    })
}

fn weight_from(field: &str, weight: u32) -> Result<u16, Refusal> {
    u16::try_from(weight).map_err(|_| invalid(field, format!("{weight} is not within 0 and 65535")))
}

fn address_from(address: &v1::Address) -> Result<AddressRef<'_>, Refusal> {
    let port = u16::try_from(address.port).map_err(|_| {
        invalid(
            "addresses.port",
            format!("{} is not within 0 and 65535", address.port),
        )
    })?;
    Ok(AddressRef {
        name: &address.name,
        host: &address.host,
        port,
    })
}

pub(crate) fn registration_from(registration: v1::Registration) -> Result<Registration, Refusal> {
    let addresses: Addresses = registration
        .addresses
        .iter()
        .map(address_from)
        .collect::<Result<_, _>>()?;
    let id: NodeId = match (registration.id.as_str(), addresses.first()) {
        ("", None) => {
            return Err(invalid(
                "registration.addresses",
                "is empty; a node needs at least one address",
            ));
        }
        ("", Some(first)) => host_port(first).parse()?,
        (id, _) => id.parse()?,
    };
    Ok(Registration {
        id,
        addresses,
        weight: registration
            .weight
            .map_or(Ok(WEIGHT_DEFAULT), |w| weight_from("registration.weight", w))?,
        labels: registration.labels.into(),
        metadata: registration.metadata.into(),
        kind: kind_from("registration.kind", registration.kind)?,
        state: state_from("registration.state", registration.state)?.unwrap_or_default(),
    })
}

fn host_port(address: AddressRef<'_>) -> String {
    let bare_v6 = address.host.contains(':') && !address.host.starts_with('[');
    if bare_v6 {
        format!("[{}]:{}", address.host, address.port)
    } else {
        format!("{}:{}", address.host, address.port)
    }
}

pub(crate) fn register_nodes_from(
    nodes: Vec<v1::RegisterNode>,
    batch_max: usize,
) -> Result<Vec<RegisterNode>, Refusal> {
    batch(&nodes, batch_max)?;
    let node = |node: v1::RegisterNode| {
        Ok(RegisterNode {
            key: service_key_from("nodes.key", node.key.as_ref())?,
            registration: registration_from(required("nodes.registration", node.registration)?)?,
            expected: expected_from(node.expected)?,
        })
    };
    nodes.into_iter().map(node).collect()
}

pub(crate) fn deregister_nodes_from(
    nodes: Vec<v1::DeregisterNode>,
    batch_max: usize,
) -> Result<Vec<DeregisterNode>, Refusal> {
    batch(&nodes, batch_max)?;
    let node = |node: v1::DeregisterNode| {
        Ok(DeregisterNode {
            key: node_key_from("nodes.key", node.key.as_ref())?,
            expected: expected_from(node.expected)?,
        })
    };
    nodes.into_iter().map(node).collect()
}

pub(crate) fn update_nodes_from(
    nodes: Vec<v1::UpdateNode>,
    batch_max: usize,
) -> Result<Vec<UpdateNode>, Refusal> {
    batch(&nodes, batch_max)?;
    let node = |node: v1::UpdateNode| {
        Ok(UpdateNode {
            key: node_key_from("nodes.key", node.key.as_ref())?,
            expected: expected_from(node.expected)?,
            weight: node
                .weight
                .map(|weight| weight_from("nodes.weight", weight))
                .transpose()?,
            state: state_from("nodes.state", node.state)?,
            labels: changes("nodes.set_labels", node.set_labels, node.remove_labels)?,
            metadata: changes("nodes.set_metadata", node.set_metadata, node.remove_metadata)?,
        })
    };
    nodes.into_iter().map(node).collect()
}

fn batch<T>(nodes: &[T], batch_max: usize) -> Result<(), Refusal> {
    if nodes.is_empty() {
        return Err(invalid("nodes", "is empty"));
    }
    bounded("nodes in one call", nodes.len(), batch_max)
}

fn changes(
    field: &str,
    set: BTreeMap<String, String>,
    remove: Vec<String>,
) -> Result<BTreeMap<String, Option<String>>, Refusal> {
    let mut changes: BTreeMap<_, _> = set.into_iter().map(|(key, value)| (key, Some(value))).collect();
    for key in remove {
        if let Some(Some(_)) = changes.insert(key.clone(), None) {
            return Err(invalid(field, format!("{key:?} is set and removed at once")));
        }
    }
    Ok(changes)
}

pub(crate) fn override_from(over: v1::Override) -> Result<Override, Refusal> {
    Ok(Override {
        disabled: over.disabled,
        weight: over
            .weight
            .map(|weight| weight_from("override.weight", weight))
            .transpose()?,
        labels: over.labels.into(),
        reason: over.reason,
        author: over.author,
        ttl_ms: over.ttl_ms,
        set_at: Revision::default(),
    })
}

pub(crate) fn service_settings_from(settings: v1::ServiceSettings) -> Result<ServiceSettings, Refusal> {
    Ok(ServiceSettings {
        default_kind: kind_from("settings.default_kind", settings.default_kind)?.unwrap_or_default(),
        metadata: settings.metadata.into(),
        nodes_max: settings.nodes_max,
        guard: guard_settings_from(settings.guard.unwrap_or_default()),
    })
}

/// What is missing is its default. The directory judges the ranges.
fn guard_settings_from(settings: v1::GuardSettings) -> GuardSettings {
    let default = GuardSettings::default();
    GuardSettings {
        share: settings.share_basis_points.unwrap_or(default.share),
        window_ms: settings.window_ms.unwrap_or(default.window_ms),
        keep_last: settings.keep_last.unwrap_or(default.keep_last),
        hold_max_ms: settings.hold_max_ms.unwrap_or(default.hold_max_ms),
    }
}

pub(crate) fn group_settings_from(settings: v1::GroupSettings) -> Result<GroupSettings, Refusal> {
    let mode = match enumeration("settings.mode", settings.mode)? {
        v1::GroupMode::Unspecified | v1::GroupMode::Cp => GroupMode::Cp,
        v1::GroupMode::Ap => GroupMode::Ap,
    };
    Ok(GroupSettings {
        mode,
        auto_create: settings.auto_create,
        defaults: settings
            .defaults
            .map_or_else(|| Ok(ServiceSettings::default()), service_settings_from)?,
        services_max: settings.services_max,
        metadata: settings.metadata.into(),
        admission: admission_list_from(settings.admission.unwrap_or_default())?,
    })
}

fn admission_list_from(list: v1::AdmissionList) -> Result<AdmissionList, Refusal> {
    Ok(AdmissionList {
        cidrs: entries_from("settings.admission.cidrs", &list.cidrs)?,
        scopes: entries_from("settings.admission.scopes", &list.scopes)?,
        environments: entries_from("settings.admission.environments", &list.environments)?,
        dry_run: list.dry_run,
    })
}

fn entries_from<T>(field: &str, entries: &[String]) -> Result<BTreeSet<T>, Refusal>
where
    T: FromStr<Err: Error> + Ord,
{
    bounded(field, entries.len(), ENTRIES_MAX)?;
    let parse = |entry: &String| entry.parse().map_err(|error| invalid(field, sentence(&error)));
    entries.iter().map(parse).collect()
}

/// An error and what caused it.
fn sentence(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", sentence(source)),
        None => error.to_string(),
    }
}

/// A session's secret.
pub(crate) fn secret_from(secret: &Bytes) -> Result<[u8; 16], Refusal> {
    secret[..]
        .try_into()
        .map_err(|_| invalid("secret", format!("has {} bytes, must have 16", secret.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.unwrap_err().to_string()
    }

    fn address(host: &str, port: u32) -> v1::Address {
        v1::Address {
            name: "http".into(),
            host: host.into(),
            port,
        }
    }

    #[test]
    fn a_node_without_an_id_is_called_by_its_first_address() {
        for (host, id) in [
            ("10.0.0.1", "10.0.0.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
        ] {
            let registration = v1::Registration {
                addresses: vec![address(host, 80)],
                ..Default::default()
            };
            let registration = registration_from(registration).unwrap();
            assert_eq!(registration.id.as_str(), id);
            assert_eq!(registration.weight, WEIGHT_DEFAULT);
        }
    }

    #[test]
    fn bad_registrations_are_refused_with_field_and_value() {
        type Spoil = fn(&mut v1::Registration);
        let cases: &[(&str, Spoil)] = &[
            ("at least one address", |r| r.addresses.clear()),
            ("70000 is not within", |r| r.addresses[0].port = 70_000),
            ("registration.weight: 65536", |r| r.weight = Some(65_536)),
            ("registration.kind: 9", |r| r.kind = 9),
            ("up, draining or down", |r| {
                r.state = v1::NodeState::Suspect.into()
            }),
            ("contains ' '", |r| r.id = "a b".into()),
        ];
        for (expected, spoil) in cases {
            let mut registration = v1::Registration {
                addresses: vec![address("h", 1)],
                ..Default::default()
            };
            spoil(&mut registration);
            let problem = problem(registration_from(registration));
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn batches_are_neither_empty_nor_oversized() {
        assert!(problem(register_nodes_from(Vec::new(), 1_000)).contains("nodes: is empty"));
        let nodes = vec![v1::DeregisterNode::default(); 1_001];
        assert_eq!(
            problem(deregister_nodes_from(nodes, 1_000)),
            "nodes in one call is 1001, at most 1000 is allowed"
        );
    }

    #[test]
    fn request_ids_have_16_bytes_or_are_made_here() {
        let options = |bytes: &'static [u8]| v1::WriteOptions {
            request_id: Bytes::from_static(bytes),
            ..Default::default()
        };
        assert!(problem(request_id_from(Some(&options(&[1; 15])))).contains("has 15 bytes"));
        assert_eq!(request_id_from(Some(&options(&[0; 16]))).unwrap(), RequestId(0));
        assert_ne!(request_id_from(None).unwrap(), request_id_from(None).unwrap());
    }

    #[test]
    fn bad_names_say_what_is_allowed() {
        let key = |group: &str, service: &str| v1::ServiceKey {
            group: group.into(),
            service: service.into(),
        };
        for (group, service, expected) in [
            ("", "s", "group is empty"),
            ("a//b", "s", "group segment is empty"),
            ("1/2/3/4/5/6/7/8/9", "s", "has 9 segments"),
            ("g", "s/t", "contains '/'"),
            ("g", &"x".repeat(129), "has 129 bytes"),
        ] {
            let problem = problem(service_key_from("key", Some(&key(group, service))));
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(problem(service_key_from("key", None)).contains("key: is missing"));
        assert!(problem(prefix_from("a b")).contains("contains ' '"));
        assert_eq!(prefix_from("a/b/").unwrap(), "a/b");
        assert_eq!(prefix_from("").unwrap(), "");
    }

    #[test]
    fn a_label_cannot_be_set_and_removed_at_once() {
        let set = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert!(problem(changes("nodes.set_labels", set, vec!["zone".into()])).contains("set and removed"));
    }

    #[test]
    fn guard_settings_survive_the_wire() {
        let other = GuardSettings {
            share: 0,
            window_ms: 1_000,
            keep_last: false,
            hold_max_ms: 0,
        };
        for guard in [GuardSettings::default(), GuardSettings::off(), other] {
            let defaults = ServiceSettings {
                guard,
                ..ServiceSettings::default()
            };
            assert_eq!(
                service_settings_from(service_settings(&defaults)).unwrap(),
                defaults
            );
            let group = GroupSettings {
                defaults,
                ..GroupSettings::default()
            };
            assert_eq!(group_settings_from(group_settings(&group)).unwrap(), group);
        }
        let partly = v1::GuardSettings {
            share_basis_points: Some(500),
            ..v1::GuardSettings::default()
        };
        let expected = GuardSettings {
            share: 500,
            ..GuardSettings::default()
        };
        assert_eq!(guard_settings_from(partly), expected);
    }

    #[test]
    fn admission_lists_survive_the_wire_or_are_refused_by_name() {
        let list = |cidrs: &[&str], scopes: &[&str], environments: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
            v1::AdmissionList {
                cidrs: texts(cidrs),
                scopes: texts(scopes),
                environments: texts(environments),
                dry_run: true,
            }
        };
        let full = list(&["10.1.0.0/16", "::1/128"], &["register:prod/feed"], &["prod"]);
        let read = admission_list_from(full.clone()).unwrap();
        assert_eq!(admission_list(&read), Some(full));
        assert_eq!(admission_list(&AdmissionList::default()), None);
        for (list, complaint) in [
            (
                list(&["10.0.0.0/33"], &[], &[]),
                "settings.admission.cidrs: 10.0.0.0 has 32 bits, 33 cannot count",
            ),
            (
                list(&["prod"], &[], &[]),
                "settings.admission.cidrs: \"prod\" is no network",
            ),
            (list(&["10.1.2.3/16"], &[], &[]), "use 10.1.0.0/16"),
            (
                list(&[], &["register:a//b"], &[]),
                "does not name a group: group segment is empty",
            ),
            (list(&[], &["*"], &[]), "settings.admission.scopes: scope \"*\""),
            (
                list(&[], &[], &["p r"]),
                "settings.admission.environments: environment \"p r\" contains ' '",
            ),
            (
                list(&["::1"; 65], &[], &[]),
                "settings.admission.cidrs is 65, at most 64 is allowed",
            ),
        ] {
            let problem = problem(admission_list_from(list));
            assert!(problem.contains(complaint), "{problem}");
        }
    }

    #[test]
    fn signs_survive_the_wire() {
        for value in [
            0,
            1,
            u128::MAX,
            1 << 64,
            0x0123_4567_89ab_cdef_0011_2233_4455_6677,
        ] {
            assert_eq!(sign_from(&sign(Sign(value))), Sign(value));
        }
    }
}
