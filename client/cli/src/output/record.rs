//! The records as JSON: the fields of the published messages under their own names, enums as lower-case words,
//! signs and hashes as hexadecimal text. Every field is always there, so a script may rely on it.

use std::collections::BTreeMap;

use rollcall_proto::v1 as wire;
use serde::Serialize;

use super::guard::{Guard, GuardSettings};

/// Who answered, how, and how fresh it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Header {
    pub(crate) cluster: String,
    pub(crate) server: u64,
    pub(crate) revision: u64,
    pub(crate) epoch: u64,
    pub(crate) read_mode: &'static str,
    pub(crate) age_ms: u64,
    pub(crate) mode: &'static str,
    pub(crate) term: u64,
}

impl From<wire::ResponseHeader> for Header {
    fn from(header: wire::ResponseHeader) -> Self {
        Self {
            read_mode: read_mode(header.read_mode()),
            mode: mode(header.mode()),
            cluster: header.cluster,
            server: header.server,
            revision: header.revision,
            epoch: header.epoch,
            age_ms: header.age_ms,
            term: header.term,
        }
    }
}

/// A named address of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Address {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u32,
}

impl From<wire::Address> for Address {
    fn from(address: wire::Address) -> Self {
        Self {
            name: address.name,
            host: address.host,
            port: address.port,
        }
    }
}

impl Address {
    /// `name=host:port`, or `host:port` for the default name.
    pub(crate) fn text(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match self.name.as_str() {
            "" | "default" => format!("{host}:{}", self.port),
            name => format!("{name}={host}:{}", self.port),
        }
    }
}

/// What an operator said of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Override {
    pub(crate) disabled: Option<bool>,
    pub(crate) weight: Option<u32>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) reason: String,
    pub(crate) author: String,
    pub(crate) ttl_ms: u64,
    pub(crate) set_at_revision: u64,
}

impl From<wire::Override> for Override {
    fn from(said: wire::Override) -> Self {
        Self {
            disabled: said.disabled,
            weight: said.weight,
            labels: said.labels,
            reason: said.reason,
            author: said.author,
            ttl_ms: said.ttl_ms,
            set_at_revision: said.set_at_revision,
        }
    }
}

impl Override {
    /// On one line.
    pub(crate) fn text(&self) -> String {
        let mut words = Vec::new();
        if let Some(disabled) = self.disabled {
            words.push(if disabled {
                "disabled".to_owned()
            } else {
                "enabled".to_owned()
            });
        }
        if let Some(weight) = self.weight {
            words.push(format!("weight={weight}"));
        }
        if !self.labels.is_empty() {
            words.push(map_text(&self.labels));
        }
        let mut text = words.join(",");
        if !self.author.is_empty() {
            text.push_str(&format!(" by {}", self.author));
        }
        if !self.reason.is_empty() {
            text.push_str(&format!(": {}", self.reason));
        }
        text
    }
}

/// A node as consumers see it: both layers merged, and the operator's apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) addresses: Vec<Address>,
    pub(crate) weight: u32,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) kind: &'static str,
    pub(crate) state: &'static str,
    pub(crate) disabled: bool,
    pub(crate) incarnation: u64,
    pub(crate) created_revision: u64,
    pub(crate) modified_revision: u64,
    pub(crate) session: u64,
    pub(crate) r#override: Option<Override>,
    pub(crate) origin: String,
}

impl From<wire::Node> for Node {
    fn from(node: wire::Node) -> Self {
        Self {
            kind: kind(node.kind()),
            state: state(node.state()),
            id: node.id,
            addresses: node.addresses.into_iter().map(Address::from).collect(),
            weight: node.weight,
            labels: node.labels,
            metadata: node.metadata,
            disabled: node.disabled,
            incarnation: node.incarnation,
            created_revision: node.created_revision,
            modified_revision: node.modified_revision,
            session: node.session,
            r#override: node.r#override.map(Override::from),
            origin: node.origin,
        }
    }
}

impl Node {
    /// The state, or `disabled` if an operator said so.
    pub(crate) fn state_text(&self) -> &'static str {
        if self.disabled { "disabled" } else { self.state }
    }

    /// All addresses on one line.
    pub(crate) fn addresses_text(&self) -> String {
        self.addresses
            .iter()
            .map(Address::text)
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// What a registrant said of its node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Registration {
    pub(crate) id: String,
    pub(crate) addresses: Vec<Address>,
    pub(crate) weight: Option<u32>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) kind: &'static str,
    pub(crate) state: &'static str,
}

impl From<wire::Registration> for Registration {
    fn from(said: wire::Registration) -> Self {
        Self {
            kind: kind(said.kind()),
            state: state(said.state()),
            id: said.id,
            addresses: said.addresses.into_iter().map(Address::from).collect(),
            weight: said.weight,
            labels: said.labels,
            metadata: said.metadata,
        }
    }
}

/// Settings of a service, and the defaults of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ServiceSettings {
    pub(crate) default_kind: &'static str,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) nodes_max: u32,
    pub(crate) guard: GuardSettings,
}

impl From<Option<wire::ServiceSettings>> for ServiceSettings {
    fn from(settings: Option<wire::ServiceSettings>) -> Self {
        let settings = settings.unwrap_or_default();
        Self {
            default_kind: kind(settings.default_kind()),
            metadata: settings.metadata,
            nodes_max: settings.nodes_max,
            guard: settings.guard.into(),
        }
    }
}

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GroupSettings {
    pub(crate) mode: &'static str,
    pub(crate) auto_create: bool,
    pub(crate) defaults: ServiceSettings,
    pub(crate) services_max: u32,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) admission: Admission,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Group {
    pub(crate) group: String,
    pub(crate) settings: GroupSettings,
    pub(crate) sign: String,
    pub(crate) revision: u64,
    pub(crate) services: u32,
    pub(crate) nodes: u32,
}

impl From<wire::GroupSummary> for Group {
    fn from(group: wire::GroupSummary) -> Self {
        let settings = group.settings.unwrap_or_default();
        Self {
            group: group.group,
            settings: GroupSettings {
                // Unspecified is CP by definition.
                mode: match settings.mode() {
                    wire::GroupMode::Unspecified | wire::GroupMode::Cp => "cp",
                    wire::GroupMode::Ap => "ap",
                },
                auto_create: settings.auto_create,
                defaults: settings.defaults.into(),
                services_max: settings.services_max,
                metadata: settings.metadata,
                admission: settings.admission.into(),
            },
            sign: sign(group.sign),
            revision: group.revision,
            services: group.services,
            nodes: group.nodes,
        }
    }
}

/// A service in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Service {
    pub(crate) group: String,
    pub(crate) service: String,
    pub(crate) sign: String,
    pub(crate) revision: u64,
    pub(crate) nodes: u32,
    pub(crate) up: u32,
    pub(crate) settings: ServiceSettings,
    pub(crate) guard: Option<Guard>,
}

impl From<wire::ServiceSummary> for Service {
    fn from(service: wire::ServiceSummary) -> Self {
        let key = service.key.unwrap_or_default();
        Self {
            group: key.group,
            service: key.service,
            sign: sign(service.sign),
            revision: service.revision,
            nodes: service.nodes,
            up: service.up,
            settings: service.settings.into(),
            guard: service.guard.map(Guard::from),
        }
    }
}

/// A service with all its nodes, as of one revision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ServiceView {
    pub(crate) group: String,
    pub(crate) service: String,
    pub(crate) sign: String,
    pub(crate) revision: u64,
    pub(crate) settings: ServiceSettings,
    pub(crate) nodes: Vec<Node>,
    pub(crate) guard: Option<Guard>,
}

impl From<wire::ServiceView> for ServiceView {
    fn from(view: wire::ServiceView) -> Self {
        let key = view.key.unwrap_or_default();
        Self {
            group: key.group,
            service: key.service,
            sign: sign(view.sign),
            revision: view.revision,
            settings: view.settings.into(),
            nodes: view.nodes.into_iter().map(Node::from).collect(),
            guard: view.guard.map(Guard::from),
        }
    }
}

/// A client's lease.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Session {
    pub(crate) session: u64,
    pub(crate) client: String,
    pub(crate) ttl_ms: u64,
    pub(crate) nodes: u32,
    pub(crate) opened_revision: u64,
    pub(crate) lapses_in_ms: u64,
    pub(crate) holder: u64,
}

impl From<wire::SessionSummary> for Session {
    fn from(session: wire::SessionSummary) -> Self {
        Self {
            session: session.session,
            client: session.client,
            ttl_ms: session.ttl_ms,
            nodes: session.nodes,
            opened_revision: session.opened_revision,
            lapses_in_ms: session.lapses_in_ms,
            holder: session.holder,
        }
    }
}

/// A server that belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Member {
    pub(crate) server: u64,
    pub(crate) client_address: String,
    pub(crate) peer_address: String,
    pub(crate) http_address: String,
    pub(crate) voter: bool,
    pub(crate) role: &'static str,
    pub(crate) matched_index: u64,
    pub(crate) last_contact_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gossip: Option<GossipMember>,
}

/// A server, as the answering one knows it by gossip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GossipMember {
    pub(crate) server: u64,
    pub(crate) address: String,
    pub(crate) state: &'static str,
    pub(crate) incarnation: u32,
    pub(crate) epoch: u64,
    pub(crate) since_ms: u64,
    pub(crate) own: bool,
    pub(crate) head: Option<GossipHead>,
}

/// How far a server said it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct GossipHead {
    pub(crate) revision: u64,
    pub(crate) applied_index: u64,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) age_ms: u64,
}

impl From<wire::GossipMember> for GossipMember {
    fn from(member: wire::GossipMember) -> Self {
        let state = match member.state() {
            wire::GossipState::Unspecified => "unknown",
            wire::GossipState::Alive => "alive",
            wire::GossipState::Suspect => "suspect",
            wire::GossipState::Down => "down",
            wire::GossipState::Displaced => "displaced",
        };
        Self {
            state,
            server: member.server,
            address: member.address,
            incarnation: member.incarnation,
            epoch: member.epoch,
            since_ms: member.since_ms,
            own: member.own,
            head: member.head.map(|head| GossipHead {
                revision: head.revision,
                applied_index: head.applied_index,
                term: head.term,
                leader: head.leader,
                age_ms: head.age_ms,
            }),
        }
    }
}

impl From<wire::Member> for Member {
    fn from(member: wire::Member) -> Self {
        Self {
            role: role(member.role()),
            server: member.server,
            client_address: member.client_address,
            peer_address: member.peer_address,
            http_address: member.http_address,
            voter: member.voter,
            matched_index: member.matched_index,
            last_contact_ms: member.last_contact_ms,
            gossip: member.gossip.map(GossipMember::from),
        }
    }
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Written {
    pub(crate) revision: u64,
    pub(crate) repeated: bool,
    pub(crate) changed: bool,
    pub(crate) server: u64,
    pub(crate) mode: &'static str,
    /// In mode ap: the life of the server, whose own the revision is.
    pub(crate) epoch: u64,
    /// In mode ap: on how many servers' disks it is.
    pub(crate) acks: u32,
}

impl From<rollcall_client::Written> for Written {
    fn from(written: rollcall_client::Written) -> Self {
        Self {
            revision: written.revision,
            repeated: written.repeated,
            changed: written.changed,
            server: written.server,
            mode: mode(written.mode),
            epoch: written.epoch,
            acks: written.acks,
        }
    }
}

impl Written {
    /// `at revision 12`, or that nothing had to change.
    pub(crate) fn text(&self) -> String {
        // In mode ap a revision is one server's own.
        let whose = if self.is_ap() {
            format!(" of server {}", self.server)
        } else {
            String::new()
        };
        if self.changed {
            format!("at revision {}{whose}", self.revision)
        } else {
            format!(
                "unchanged, as it already was at revision {}{whose}",
                self.revision
            )
        }
    }

    pub(crate) fn is_ap(&self) -> bool {
        self.epoch != 0
    }
}

/// 32 hexadecimal digits; empty if there is none.
pub(crate) fn sign(sign: Option<wire::Sign>) -> String {
    sign.map(|sign| format!("{:016x}{:016x}", sign.high, sign.low))
        .unwrap_or_default()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `a=1,b=2`.
pub(crate) fn map_text(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Milliseconds for people; empty for 0, which means unknown everywhere it is used.
pub(crate) fn millis_text(millis: u64) -> String {
    match millis {
        0 => String::new(),
        1..1000 => format!("{millis}ms"),
        _ => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
    }
}

/// A number for people; empty for 0, where that means "none".
pub(crate) fn nonzero_text(number: u64) -> String {
    if number == 0 {
        String::new()
    } else {
        number.to_string()
    }
}

pub(crate) fn kind(kind: wire::NodeKind) -> &'static str {
    match kind {
        wire::NodeKind::Unspecified => "default",
        wire::NodeKind::Ephemeral => "ephemeral",
        wire::NodeKind::Persistent => "persistent",
        wire::NodeKind::Static => "static",
    }
}

pub(crate) fn state(state: wire::NodeState) -> &'static str {
    match state {
        wire::NodeState::Unspecified => "unspecified",
        wire::NodeState::Up => "up",
        wire::NodeState::Suspect => "suspect",
        wire::NodeState::Draining => "draining",
        wire::NodeState::Down => "down",
    }
}

pub(crate) fn role(role: wire::MemberRole) -> &'static str {
    match role {
        wire::MemberRole::Unspecified => "unknown",
        wire::MemberRole::Leader => "leader",
        wire::MemberRole::Follower => "follower",
        wire::MemberRole::Candidate => "candidate",
        wire::MemberRole::Learner => "learner",
    }
}

fn read_mode(mode: wire::ReadMode) -> &'static str {
    match mode {
        wire::ReadMode::Unspecified => "unspecified",
        wire::ReadMode::Linearizable => "linearizable",
        wire::ReadMode::Leased => "leased",
        wire::ReadMode::Local => "local",
    }
}

fn mode(mode: wire::GroupMode) -> &'static str {
    match mode {
        wire::GroupMode::Unspecified | wire::GroupMode::Cp => "cp",
        wire::GroupMode::Ap => "ap",
    }
}

/// A group's list, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Admission {
    cidrs: Vec<String>,
    scopes: Vec<String>,
    environments: Vec<String>,
    dry_run: bool,
}

impl From<Option<wire::AdmissionList>> for Admission {
    fn from(list: Option<wire::AdmissionList>) -> Self {
        let list = list.unwrap_or_default();
        Self {
            cidrs: list.cidrs,
            scopes: list.scopes,
            environments: list.environments,
            dry_run: list.dry_run,
        }
    }
}

impl Admission {
    /// On one line.
    pub(crate) fn text(&self) -> String {
        let rules = [
            ("from", &self.cidrs),
            ("with", &self.scopes),
            ("of environment", &self.environments),
        ];
        let rules = rules.into_iter().filter(|(_, entries)| !entries.is_empty());
        let rules: Vec<String> = rules
            .map(|(rule, entries)| format!("{rule} {}", entries.join(", ")))
            .collect();
        match (rules.is_empty(), self.dry_run) {
            (true, _) => "everyone".into(),
            (false, false) => rules.join("; "),
            (false, true) => format!("{} (dry run: others are reported and let in)", rules.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_json_is_stable() {
        let node = wire::Node {
            id: "10.0.0.1:80".into(),
            addresses: vec![wire::Address {
                name: "http".into(),
                host: "10.0.0.1".into(),
                port: 80,
            }],
            weight: 100,
            kind: wire::NodeKind::Ephemeral.into(),
            state: wire::NodeState::Up.into(),
            incarnation: 2,
            session: 7,
            ..wire::Node::default()
        };
        let json = serde_json::to_string(&Node::from(node)).unwrap();
        assert_eq!(
            json,
            "{\"id\":\"10.0.0.1:80\",\"addresses\":[{\"name\":\"http\",\"host\":\"10.0.0.1\",\"port\":80}],\
             \"weight\":100,\"labels\":{},\"metadata\":{},\"kind\":\"ephemeral\",\"state\":\"up\",\
             \"disabled\":false,\"incarnation\":2,\"created_revision\":0,\"modified_revision\":0,\
             \"session\":7,\"override\":null,\"origin\":\"\"}"
        );
    }

    #[test]
    fn signs_are_32_digits() {
        assert_eq!(
            sign(Some(wire::Sign { high: 1, low: 0xab })),
            "000000000000000100000000000000ab"
        );
        assert_eq!(sign(None), "");
        assert_eq!(hex(&[0, 0xff]), "00ff");
    }

    #[test]
    fn addresses_read_as_they_are_typed() {
        let text = |name: &str, host: &str| {
            Address {
                name: name.into(),
                host: host.into(),
                port: 80,
            }
            .text()
        };
        assert_eq!(text("default", "h"), "h:80");
        assert_eq!(text("grpc", "::1"), "grpc=[::1]:80");
    }

    #[test]
    fn milliseconds_read_well() {
        assert_eq!(millis_text(0), "");
        assert_eq!(millis_text(999), "999ms");
        assert_eq!(millis_text(14_960), "14.9s");
    }

    #[test]
    fn a_list_is_one_line() {
        let list = |dry_run| wire::AdmissionList {
            cidrs: vec!["10.0.0.0/8".into(), "::1/128".into()],
            environments: vec!["prod".into()],
            dry_run,
            ..wire::AdmissionList::default()
        };
        assert_eq!(Admission::from(None).text(), "everyone");
        let text = "from 10.0.0.0/8, ::1/128; of environment prod";
        assert_eq!(Admission::from(Some(list(false))).text(), text);
        let dry = Admission::from(Some(list(true))).text();
        assert!(dry.starts_with(text) && dry.contains("dry run"), "{dry}");
    }

    #[test]
    fn an_override_reads_as_a_sentence() {
        let said = Override::from(wire::Override {
            disabled: Some(true),
            weight: Some(0),
            author: "ann".into(),
            reason: "bad disk".into(),
            ..wire::Override::default()
        });
        assert_eq!(said.text(), "disabled,weight=0 by ann: bad disk");
    }
}
