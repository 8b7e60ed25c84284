//! How large things may get (design section 11).

use serde::{Deserialize, Serialize};

use super::outcome::Refusal;

/// The bounds that [`super::Directory::apply`] enforces.
///
/// They decide what is refused, so they are part of the replicated state: every server of a cluster starts
/// from the same ones, and only [`super::Command::SetLimits`] changes them. A server's own configuration must
/// never find its way in here past the log. What was accepted under wider limits stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Most groups of the cluster.
    pub groups_max: u32,
    /// Most services of a group that names no quota of its own.
    pub services_per_group_max: u32,
    /// Most nodes of a service that names no quota of its own.
    pub nodes_per_service_max: u32,
    /// Most overrides of a service, of nodes that are there and of nodes that are not.
    pub overrides_per_service_max: u32,
    /// Most sessions of the cluster.
    pub sessions_max: u32,
    /// Most nodes that live with one session.
    pub nodes_per_session_max: u32,
    /// Most nodes, sessions or overrides in one command.
    pub batch_max: u32,
    /// Most addresses of a node.
    pub addresses_max: u32,
    /// Longest host of an address, in bytes.
    pub host_bytes_max: u32,
    /// Most labels of a node or an override.
    pub labels_max: u32,
    /// Longest key of a label or of metadata, in bytes.
    pub key_bytes_max: u32,
    /// Longest value of a label, in bytes.
    pub label_value_bytes_max: u32,
    /// Most metadata of a node, a service or a group: keys and values together, in bytes.
    pub metadata_bytes_max: u32,
    /// Longest text for people (a client's name, an override's reason or author), in bytes.
    pub text_bytes_max: u32,
    /// How many removed node ids each service remembers; beyond it the oldest are folded into the floor of
    /// [`super::Tombstones`].
    pub tombstones_per_service_max: u32,
    /// How many applied requests are remembered, so that a repeat changes nothing; beyond it the oldest are
    /// forgotten.
    pub requests_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups_max: 10_000,
            services_per_group_max: 10_000,
            nodes_per_service_max: 5_000,
            overrides_per_service_max: 5_000,
            sessions_max: 1_000_000,
            nodes_per_session_max: 10_000,
            batch_max: 1_000,
            addresses_max: 16,
            host_bytes_max: 253,
            labels_max: 64,
            key_bytes_max: 128,
            label_value_bytes_max: 1_024,
            metadata_bytes_max: 4_096,
            text_bytes_max: 256,
            tombstones_per_service_max: 1_024,
            requests_max: 131_072,
        }
    }
}

impl Limits {
    /// Refuses limits under which the directory could not work at all.
    ///
    /// # Errors
    ///
    /// [`Refusal::Invalid`] names the limit that is zero; every one must be at least 1.
    pub fn check(&self) -> Result<(), Refusal> {
        let fields = [
            ("groups_max", self.groups_max),
            ("services_per_group_max", self.services_per_group_max),
            ("nodes_per_service_max", self.nodes_per_service_max),
            ("overrides_per_service_max", self.overrides_per_service_max),
            ("sessions_max", self.sessions_max),
            ("nodes_per_session_max", self.nodes_per_session_max),
            ("batch_max", self.batch_max),
            ("addresses_max", self.addresses_max),
            ("host_bytes_max", self.host_bytes_max),
            ("labels_max", self.labels_max),
            ("key_bytes_max", self.key_bytes_max),
            ("label_value_bytes_max", self.label_value_bytes_max),
            ("metadata_bytes_max", self.metadata_bytes_max),
            ("text_bytes_max", self.text_bytes_max),
            ("tombstones_per_service_max", self.tombstones_per_service_max),
            ("requests_max", self.requests_max),
        ];
        match fields.iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(Refusal::Invalid {
                field: format!("limits.{field}"),
                problem: "is 0, must be at least 1".into(),
            }),
            None => Ok(()),
        }
    }
}
