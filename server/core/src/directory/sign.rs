//! The sign: a 128-bit, order-free digest of a service's nodes.
//!
//! A sum of hashes modulo 2^128 (Bellare and Micciancio's AdHash): adding and removing a node is O(1), and
//! the order does not matter. It finds differences between honest servers; it is no defence against someone
//! who may write records and wants two lists to look equal.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Digest of a set of nodes. Zero is the sign of no nodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sign(pub u128);

impl Sign {
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
