//! The sign: a 128-bit, order-free digest of a service's nodes.
//!
//! A sum of hashes modulo 2^128 (Bellare and Micciancio's AdHash): adding and removing a node is O(1), and
//! the order does not matter. It finds differences between honest servers; it is no defence against someone
//! who may write records and wants two lists to look equal.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::labels::Labels;
use super::record::{NodeKind, NodeState};
use super::view::NodeView;
use crate::ids::{SEGMENT_BYTES_MAX, ServiceName};

/// Digest of a set of nodes. Zero is the sign of no nodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sign(pub u128);

impl Sign {
    /// The element that stands for one node: the hash of what consumers see of it, both layers merged. Not in
    /// it: session, incarnation and revisions, so that the same content has the same sign by whatever path it
    /// came, in every datacenter.
    #[must_use]
    pub fn of_node(view: NodeView<'_>) -> Self {
        Self::of_node_in(&mut Vec::new(), view)
    }

    /// The same, in memory that is there already.
    pub(super) fn of_node_in(room: &mut Vec<u8>, view: NodeView<'_>) -> Self {
        room.clear();
        encode_node(room, view);
        Self(xxh3_128(room))
    }

    /// The element that stands for one service in the sign of its group. It holds the service's name, so that
    /// a node that moved between two services, or an empty service more, shows.
    #[must_use]
    pub fn of_service(name: &ServiceName, sign: Self) -> Self {
        let name = name.as_str().as_bytes();
        let mut room = [0; 4 + SEGMENT_BYTES_MAX + 16];
        let bytes = &mut room[..4 + name.len() + 16];
        bytes[..4].copy_from_slice(&(name.len() as u32).to_le_bytes());
        bytes[4..4 + name.len()].copy_from_slice(name);
        bytes[4 + name.len()..].copy_from_slice(&sign.0.to_le_bytes());
        Self(xxh3_128(bytes))
    }

    /// The sign with `other`'s elements added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The sign with `other`'s elements taken away.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

/// The canonical encoding of what consumers see of a node. Fixed for ever: signs are compared between versions
/// and between datacenters. Numbers are little endian; a text is its length in 4 bytes and itself; a map is its
/// number of entries in 4 bytes and key and value of each, in the order of the keys.
fn encode_node(bytes: &mut Vec<u8>, view: NodeView<'_>) {
    let registration = &view.node.registration;
    // Room for most.
    bytes.reserve(512);
    put_text(bytes, registration.id.as_str());
    put_count(bytes, registration.addresses.len());
    for address in registration.addresses.iter() {
        put_text(bytes, address.name);
        put_text(bytes, address.host);
        bytes.extend_from_slice(&address.port.to_le_bytes());
    }
    bytes.extend_from_slice(&view.weight().to_le_bytes());
    bytes.push(u8::from(view.disabled()));
    put_map(bytes, &view.labels());
    put_map(bytes, &registration.metadata);
    bytes.push(match view.node.kind {
        NodeKind::Ephemeral => 1,
        NodeKind::Persistent => 2,
        NodeKind::Static => 3,
    });
    bytes.push(match view.node.state {
        NodeState::Up => 1,
        NodeState::Suspect => 2,
        NodeState::Draining => 3,
        NodeState::Down => 4,
    });
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("limits keep every count and length far below 2^32");
    bytes.extend_from_slice(&count.to_le_bytes());
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
