//! A service's own metadata in eight bytes: signs are of nodes, so whoever compares signs compares this beside them.

use sha2::{Digest, Sha256};

/// The hash of a service's own metadata, in the order of its names: the first eight bytes of SHA-256, big-endian, of each
/// name's and value's length (8 bytes, big-endian) and bytes. 0: there is none; never of some.
///
/// A client names it beside a sign (`KnownSign.metadata_hash`, `QueryRequest.known_metadata_hash`), a server in
/// `ServiceSign.metadata_hash`. Who does not name it is taken to hold no metadata.
#[must_use]
pub fn metadata_hash<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut entries = entries.into_iter().peekable();
    if entries.peek().is_none() {
        return 0;
    }
    let mut hash = Sha256::new();
    for (name, value) in entries {
        for part in [name, value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    let hash: [u8; 32] = hash.finalize().into();
    let first = hash.first_chunk().copied().map_or(0, u64::from_be_bytes);
    first.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_another_hash_and_nothing_has_none() {
        assert_eq!(metadata_hash([]), 0);
        let one = metadata_hash([("a", "b")]);
        // Of the bytes that the page names: other clients make the same.
        assert_eq!(one, 0x3c9d_5910_45bc_8876);
        for other in [
            &[("a", "c")][..],
            &[("ab", "")],
            &[("", "ab")],
            &[("a", "b"), ("", "")],
        ] {
            assert_ne!(metadata_hash(other.iter().copied()), one, "{other:?}");
        }
    }
}
