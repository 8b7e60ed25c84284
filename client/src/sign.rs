//! The sign of a service's nodes, as the registry computes it: the sum, modulo 2^128, of one XXH3 hash per node
//! over a canonical encoding of what consumers see of it (server/core/src/directory/sign.rs). The encoding is
//! fixed for ever, so a consumer can check that what it holds is what the registry holds.

use std::fmt;

use rollcall_proto::v1;
use xxhash_rust::xxh3::xxh3_128;

use crate::node::{Labels, Node, NodeKind, NodeState};

/// 128-bit, order-free digest of a service's nodes. Equal signs, equal content. Zero: no nodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sign(pub u128);

impl Sign {
    /// The element that stands for one node.
    #[must_use]
    pub fn of_node(node: &Node) -> Self {
        Self(xxh3_128(&encode_node(node)))
    }

    /// The sign of these nodes.
    #[must_use]
    pub fn of_nodes<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        nodes.into_iter().fold(Self::default(), |sum, node| {
            Self(sum.0.wrapping_add(Self::of_node(node).0))
        })
    }
}

fn encode_node(node: &Node) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    put_text(&mut bytes, &node.id);
    put_count(&mut bytes, node.addresses.len());
    for address in &node.addresses {
        put_text(&mut bytes, &address.name);
        put_text(&mut bytes, &address.host);
        bytes.extend_from_slice(&address.port.to_le_bytes());
    }
    bytes.extend_from_slice(&node.weight.to_le_bytes());
    bytes.push(u8::from(node.disabled));
    put_map(&mut bytes, &node.labels);
    put_map(&mut bytes, &node.metadata);
    bytes.push(match node.kind {
        NodeKind::Ephemeral => 1,
        NodeKind::Persistent => 2,
        NodeKind::Static => 3,
    });
    bytes.push(match node.state {
        NodeState::Up => 1,
        NodeState::Suspect => 2,
        NodeState::Draining => 3,
        NodeState::Down => 4,
    });
    bytes
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    // Messages are far below 4 GiB; a wrong count would only make signs differ.
    bytes.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_map(bytes: &mut Vec<u8>, map: &Labels) {
    put_count(bytes, map.len());
    for (key, value) in map {
        put_text(bytes, key);
        put_text(bytes, value);
    }
}

impl From<v1::Sign> for Sign {
    fn from(sign: v1::Sign) -> Self {
        Self(u128::from(sign.high) << 64 | u128::from(sign.low))
    }
}

impl From<Sign> for v1::Sign {
    fn from(sign: Sign) -> Self {
        Self {
            high: (sign.0 >> 64) as u64,
            low: sign.0 as u64,
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sign({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_keeps_all_128_bits() {
        let sign = Sign(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        assert_eq!(Sign::from(v1::Sign::from(sign)), sign);
    }

    /// Computed by the registry for the same node. For ever: it is compared between versions.
    #[test]
    fn golden_sign() {
        let node = v1::Node {
            id: "10.0.0.1:80".into(),
            addresses: vec![v1::Address {
                name: "http".into(),
                host: "10.0.0.1".into(),
                port: 80,
            }],
            weight: 100,
            labels: [("zone".into(), "b".into())].into(),
            metadata: [("commit".into(), "f00".into())].into(),
            kind: v1::NodeKind::Ephemeral.into(),
            state: v1::NodeState::Up.into(),
            ..Default::default()
        };
        assert_eq!(
            Sign::of_node(&node.into()).to_string(),
            "9fad0d4a1288a151da0578e5c26c6494"
        );
    }

    #[test]
    fn order_does_not_matter_and_every_visible_field_does() {
        let node = |id: &str| {
            Node::from(v1::Node {
                id: id.into(),
                weight: 100,
                ..Default::default()
            })
        };
        let (a, b) = (node("a"), node("b"));
        assert_eq!(Sign::of_nodes([&a, &b]), Sign::of_nodes([&b, &a]));
        let mut heavier = a.clone();
        heavier.weight = 101;
        assert_ne!(Sign::of_node(&a), Sign::of_node(&heavier));
        let mut later = a.clone();
        later.modified_revision = 9;
        assert_eq!(
            Sign::of_node(&a),
            Sign::of_node(&later),
            "revisions are not content"
        );
    }
}
