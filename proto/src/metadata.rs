//! A service's own metadata in eight bytes: signs are of nodes, so whoever compares signs compares this beside them.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The hash of a service's own metadata, in the order of its names: XXH3 (64 bits) of each name and value in turn, each
/// with the hash so far as its seed, which is 0 at first. 0: there is none; never of some. It is computed for each service
/// of a list that is spared, so it is quick; who may set metadata could make two that are hashed alike, to their own harm.
///
/// A client names it beside a sign (`KnownSign.metadata_hash`, `QueryRequest.known_metadata_hash`), a server in
/// `ServiceSign.metadata_hash`. Who does not name it is taken to hold no metadata.
#[must_use]
pub fn metadata_hash<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut entries = entries.into_iter().peekable();
    if entries.peek().is_none() {
        return 0;
    }
    let parts = entries.flat_map(|(name, value)| [name, value]);
    let hash = parts.fold(0, |so_far, part| xxh3_64_with_seed(part.as_bytes(), so_far));
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_another_hash_and_nothing_has_none() {
        assert_eq!(metadata_hash([]), 0);
        let one = metadata_hash([("a", "b")]);
        // Other clients make the same.
        assert_eq!(one, 0xe8b9_79c9_572d_c50c);
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
