//! A map of few entries, in one piece and in the order of their keys: what a command touches. A tree would take
//! kilobytes for its first entry.

/// Few entries by key.
#[derive(Clone, Debug)]
pub(super) struct Few<K, V> {
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: Ord + Clone, V: Default> Few<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.entries.iter()
    }

    /// The value of a key, made if it is not there.
    pub(super) fn of(&mut self, key: &K) -> &mut V {
        let place = match self.place_of(key) {
            Ok(place) => place,
            Err(place) => {
                if self.entries.is_empty() {
                    self.entries.reserve_exact(1);
                }
                self.entries.insert(place, (key.clone(), V::default()));
                place
            }
        };
        &mut self.entries[place].1
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Ok(place) = self.place_of(key) {
            self.entries.remove(place);
        }
    }

    /// What comes in order is found without a search.
    fn place_of(&self, key: &K) -> Result<usize, usize> {
        match self.entries.last() {
            Some((last, _)) if last < key => Err(self.entries.len()),
            Some((last, _)) if last == key => Ok(self.entries.len() - 1),
            Some(_) | None => self.entries.binary_search_by(|(known, _)| known.cmp(key)),
        }
    }
}

impl<K, V> IntoIterator for Few<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn they_are_what_a_map_would_be() {
        let (mut few, mut map): (Few<u32, u32>, BTreeMap<u32, u32>) = Default::default();
        for step in 0..200_u32 {
            let key = step.wrapping_mul(2_654_435_761) >> 28;
            if step % 3 == 2 {
                few.remove(&key);
                map.remove(&key);
            } else {
                *few.of(&key) += step;
                *map.entry(key).or_default() += step;
            }
            assert!(few.iter().copied().eq(map.clone()), "step {step}");
            assert_eq!(few.is_empty(), map.is_empty());
        }
    }
}
