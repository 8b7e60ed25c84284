//! What is kept for each of very many sessions, in pieces.

use crate::ids::SessionId;

/// Sessions with the same id but for these low bits share a page.
const BITS: u32 = 8;
/// So many.
const LEN_MAX: usize = 1 << BITS;

/// Something for each of up to 256 sessions whose ids lie side by side. A list in the order of the ids, which are given out
/// in their order: a tree that grows at its end is half empty, and so is a hash table after it has grown.
#[derive(Clone, Debug)]
pub struct SessionPage<V>(Vec<(SessionId, V)>);

impl<V> Default for SessionPage<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> SessionPage<V> {
    /// The number of the page to which a session belongs.
    #[must_use]
    pub fn number_of(session: SessionId) -> u64 {
        session.0 >> BITS
    }

    /// What is kept of a session.
    #[must_use]
    pub fn get(&self, session: SessionId) -> Option<&V> {
        let place = self.place_of(session).ok()?;
        Some(&self.0[place].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, session: SessionId) -> Option<&mut V> {
        let place = self.place_of(session).ok()?;
        Some(&mut self.0[place].1)
    }

    /// Keeps this of a session that belongs here; what was kept before.
    pub fn insert(&mut self, session: SessionId, value: V) -> Option<V> {
        match self.place_of(session) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                if self.0.len() == self.0.capacity() {
                    let left = LEN_MAX.saturating_sub(self.0.len()).max(1);
                    // Sessions whose ids are random have a page each.
                    let room = match self.0.len() {
                        0 => 1,
                        kept => 4 + kept / 8,
                    };
                    self.0.reserve_exact(left.min(room));
                }
                self.0.insert(place, (session, value));
                None
            }
        }
    }

    /// Forgets a session; what was kept of it.
    pub fn remove(&mut self, session: SessionId) -> Option<V> {
        let place = self.place_of(session).ok()?;
        let (_, value) = self.0.remove(place);
        if self.0.capacity() > 8 + 2 * self.0.len() {
            self.0.shrink_to(4 + self.0.len() + self.0.len() / 8);
        }
        Some(value)
    }

    /// What is kept, in the order of the sessions' ids.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// Of how many sessions something is kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of how many there is room for now.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Where it is, or belongs. Without gaps before it, it stands where its low bits say, and never behind that.
    fn place_of(&self, session: SessionId) -> Result<usize, usize> {
        let last = session.0 as usize % LEN_MAX;
        if self.0.get(last).is_some_and(|(known, _)| *known == session) {
            return Ok(last);
        }
        let before = &self.0[..last.min(self.0.len())];
        before.binary_search_by_key(&session, |(known, _)| *known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_has_no_room_to_spare() {
        let mut page = SessionPage::default();
        for id in 512..768 {
            assert_eq!(SessionPage::<u64>::number_of(SessionId(id)), 2);
            assert_eq!(page.insert(SessionId(id), id), None);
        }
        assert_eq!((page.len(), page.capacity()), (LEN_MAX, LEN_MAX));
        assert_eq!(page.insert(SessionId(600), 1), Some(600));
        assert_eq!(page.get(SessionId(600)), Some(&1));
        assert!(
            page.values()
                .copied()
                .eq((512..768).map(|id| if id == 600 { 1 } else { id }))
        );
    }
}
