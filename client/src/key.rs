//! Names of services and nodes, and the name of a write.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use rollcall_proto::v1;

/// Text that does not name what it should. Correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {wanted}")]
pub struct ParseKeyError {
    text: String,
    wanted: &'static str,
}

/// A service of a group. Written `group/service`; the group may have `/` in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Path of 1 to 8 segments, such as `prod/feed`.
    pub group: Arc<str>,
    /// One segment.
    pub service: Arc<str>,
}

impl ServiceKey {
    /// The service `service` of `group`. Names are checked by the server.
    #[must_use]
    pub fn new(group: impl AsRef<str>, service: impl AsRef<str>) -> Self {
        Self {
            group: group.as_ref().into(),
            service: service.as_ref().into(),
        }
    }

    /// One of its nodes.
    #[must_use]
    pub fn node(&self, id: impl AsRef<str>) -> NodeKey {
        NodeKey {
            service: self.clone(),
            node: id.as_ref().into(),
        }
    }

    /// Whether its group is `prefix` or lies below it, in whole segments. The empty prefix covers all.
    #[must_use]
    pub fn is_within(&self, prefix: &str) -> bool {
        self.group
            .strip_prefix(prefix)
            .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.service)
    }
}

impl FromStr for ServiceKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        match text.rsplit_once('/') {
            Some((group, service)) if !group.is_empty() && !service.is_empty() => {
                Ok(Self::new(group, service))
            }
            _ => Err(ParseKeyError {
                text: text.into(),
                wanted: "service, written group/service",
            }),
        }
    }
}

impl From<v1::ServiceKey> for ServiceKey {
    fn from(key: v1::ServiceKey) -> Self {
        Self {
            group: key.group.into(),
            service: key.service.into(),
        }
    }
}

impl From<&ServiceKey> for v1::ServiceKey {
    fn from(key: &ServiceKey) -> Self {
        Self {
            group: key.group.as_ref().into(),
            service: key.service.as_ref().into(),
        }
    }
}

/// A node of a service. Written `group/service/node`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// Its service.
    pub service: ServiceKey,
    /// Its id, unique in the service; by default `host:port`.
    pub node: Arc<str>,
}

impl NodeKey {
    /// The node `node` of `group/service`.
    #[must_use]
    pub fn new(group: impl AsRef<str>, service: impl AsRef<str>, node: impl AsRef<str>) -> Self {
        ServiceKey::new(group, service).node(node)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.node)
    }
}

impl FromStr for NodeKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let wrong = || ParseKeyError {
            text: text.into(),
            wanted: "node, written group/service/node",
        };
        let (service, node) = text.rsplit_once('/').ok_or_else(wrong)?;
        let service: ServiceKey = service.parse().map_err(|_| wrong())?;
        if node.is_empty() {
            Err(wrong())
        } else {
            Ok(service.node(node))
        }
    }
}

impl From<v1::NodeKey> for NodeKey {
    fn from(key: v1::NodeKey) -> Self {
        Self {
            service: ServiceKey {
                group: key.group.into(),
                service: key.service.into(),
            },
            node: key.node.into(),
        }
    }
}

impl From<&NodeKey> for v1::NodeKey {
    fn from(key: &NodeKey) -> Self {
        Self {
            group: key.service.group.as_ref().into(),
            service: key.service.service.as_ref().into(),
            node: key.node.as_ref().into(),
        }
    }
}

/// A globally unique name for one write: repeated under it, the write is applied once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl RequestId {
    /// A new one, at random.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_paths() {
        let key: NodeKey = "prod/feed/ranker/10.0.0.1:80".parse().unwrap();
        assert_eq!(key, NodeKey::new("prod/feed", "ranker", "10.0.0.1:80"));
        assert_eq!(key.to_string(), "prod/feed/ranker/10.0.0.1:80");
        assert!("ranker".parse::<ServiceKey>().is_err());
        assert!("/ranker".parse::<ServiceKey>().is_err());
        assert!("prod/ranker/".parse::<NodeKey>().is_err());
        assert!("prod/ranker".parse::<NodeKey>().is_err());
    }

    #[test]
    fn prefixes_cover_whole_segments() {
        let key = ServiceKey::new("prod/feed", "ranker");
        assert!(key.is_within("") && key.is_within("prod") && key.is_within("prod/feed"));
        assert!(!key.is_within("pro") && !key.is_within("prod/feed/x"));
    }
}
