//! The sessions, in pages that are copied one at a time while a clone is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::digest::StateDigest;
use super::record::Session;
use crate::ids::{NodeId, ServiceKey, SessionId};
use crate::session::SessionPage;

type Page = SessionPage<Arc<Session>>;

/// All sessions, by id. Writes keep the digest up.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionTable {
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    len: usize,
}

impl SessionTable {
    pub(super) fn of(&self, id: SessionId) -> Option<&Arc<Session>> {
        self.pages.get(&Page::number_of(id))?.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.pages.values().flat_map(|page| page.values())
    }

    /// Those with a greater id, in order; what comes before is not looked at.
    pub(super) fn after(&self, id: SessionId) -> impl Iterator<Item = &Arc<Session>> {
        let pages = self.pages.range(Page::number_of(id)..);
        let sessions = pages.flat_map(|(_, page)| page.values());
        sessions.skip_while(move |session| session.id <= id)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A session with a new id.
    pub(super) fn insert(&mut self, session: Session, digest: &mut StateDigest) {
        digest.session_came(session.id);
        self.insert_counted(session);
    }

    /// The same of a session that the digest has counted in.
    pub(super) fn insert_counted(&mut self, session: Session) {
        let page = Arc::make_mut(&mut self.pages)
            .entry(Page::number_of(session.id))
            .or_default();
        let before = Arc::make_mut(page).insert(session.id, Arc::new(session));
        debug_assert!(before.is_none(), "session ids are never used twice");
        self.len += 1;
    }

    pub(super) fn remove(&mut self, id: SessionId, digest: &mut StateDigest) -> Option<Arc<Session>> {
        self.of(id)?;
        let pages = Arc::make_mut(&mut self.pages);
        let page = Arc::make_mut(pages.get_mut(&Page::number_of(id))?);
        let session = page.remove(id)?;
        if page.is_empty() {
            pages.remove(&Page::number_of(id));
        }
        digest.session_went(&session);
        self.len -= 1;
        Some(session)
    }

    /// Changes a session that is there.
    pub(super) fn write(
        &mut self,
        id: SessionId,
        digest: &mut StateDigest,
        write: impl FnOnce(&mut Session),
    ) {
        let session = self.writable(id).expect("the session was found before");
        digest.open_session(session);
        write(session);
    }

    /// Adds nodes of one service to what the session owns.
    pub(super) fn give_nodes<'a>(
        &mut self,
        id: SessionId,
        service: &ServiceKey,
        nodes: impl Iterator<Item = &'a NodeId> + Clone,
    ) {
        if let Some(session) = self.writable(id) {
            session.nodes.insert(service, nodes);
        }
    }

    /// Strikes a node from what the session owns.
    pub(super) fn take_node(&mut self, id: SessionId, service: &ServiceKey, node: &NodeId) {
        if let Some(session) = self.writable(id) {
            session.nodes.remove(service, node);
        }
    }

    fn writable(&mut self, id: SessionId) -> Option<&mut Session> {
        self.of(id)?;
        let page = Arc::make_mut(Arc::make_mut(&mut self.pages).get_mut(&Page::number_of(id))?);
        page.get_mut(id).map(Arc::make_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogIndex, Revision};

    fn session(id: u64) -> Session {
        Session {
            id: SessionId(id),
            secret_digest: [0; 32],
            ttl_ms: 2_000,
            client: "".into(),
            opened: Revision(id),
            last_renewal: LogIndex(id),
            lapsed: None,
            lost_nodes: false,
            nodes: super::super::owned::OwnedNodes::default(),
        }
    }

    /// Opened in the order of their ids and out of it, closed in any order, while clones are held: they are what a map
    /// would be, and keep no more room than they need.
    #[test]
    fn they_are_what_a_map_would_be() {
        let (mut table, mut digest) = (SessionTable::default(), StateDigest::default());
        let mut map: BTreeMap<u64, u64> = BTreeMap::new();
        let mut seed = 1_u64;
        let mut held = table.clone();
        for step in 0..6_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let any = seed >> 33;
            let id = match any % 4 {
                0 => SessionId::GOSSIPED | (any % 1_000),
                1 => any % 1_500,
                _ => step,
            };
            let going = any % 16 < 3 || step > 4_000;
            let old = map.keys().nth(any as usize % map.len().max(1)).copied();
            match (going, old) {
                (true, Some(old)) => {
                    let gone = table.remove(SessionId(old), &mut digest).unwrap();
                    assert_eq!(Some(gone.opened.0), map.remove(&old));
                    assert!(table.of(SessionId(old)).is_none());
                }
                _ if !map.contains_key(&id) => {
                    table.insert(session(id), &mut digest);
                    map.insert(id, id);
                }
                _ => table.write(SessionId(id), &mut digest, |session| {
                    session.opened = Revision(step);
                    map.insert(id, step);
                }),
            }
            if step % 500 == 0 {
                let of = |table: &SessionTable| -> Vec<(u64, u64)> {
                    table
                        .iter()
                        .map(|session| (session.id.0, session.opened.0))
                        .collect()
                };
                assert_eq!(
                    of(&table),
                    map.clone().into_iter().collect::<Vec<_>>(),
                    "step {step}"
                );
                for id in (0..6_000).chain((0..1_000).map(|id| SessionId::GOSSIPED | id)) {
                    let found = table.of(SessionId(id)).map(|session| session.opened.0);
                    assert_eq!(found, map.get(&id).copied());
                }
                assert_eq!(table.len(), map.len());
                let steps = [0, 1, 255, 256, 257, step, SessionId::GOSSIPED - 1, u64::MAX];
                for after in steps.into_iter().chain(map.keys().copied().step_by(97)) {
                    let behind = table.after(SessionId(after)).map(|session| session.id.0);
                    let expected = map.range(after..).filter(|(id, _)| **id > after);
                    assert!(behind.eq(expected.map(|(id, _)| *id)), "after {after}");
                }
                let before = of(&held);
                let also = std::mem::replace(&mut held, table.clone());
                assert_eq!(of(&also), before, "a clone never changes");
                for page in table.pages.values() {
                    assert!(page.capacity() <= 12 + 2 * page.len());
                }
            }
        }
    }
}
