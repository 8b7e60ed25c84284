//! The sessions, in pages that are copied one at a time while a clone is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::digest::{self, StateDigest};
use super::record::Session;
use crate::ids::{NodeKey, SessionId};

/// Sessions with the same id but for these low bits share a page.
const PAGE_BITS: u32 = 8;

type Page = BTreeMap<SessionId, Arc<Session>>;

/// All sessions, by id. Writes keep the digest up.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionTable {
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    len: usize,
}

impl SessionTable {
    pub(super) fn of(&self, id: SessionId) -> Option<&Arc<Session>> {
        self.pages.get(&(id.0 >> PAGE_BITS))?.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.pages.values().flat_map(|page| page.values())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A session with a new id.
    pub(super) fn insert(&mut self, session: Session, digest: &mut StateDigest) {
        digest.add(digest::of_session(&session));
        let page = Arc::make_mut(&mut self.pages)
            .entry(session.id.0 >> PAGE_BITS)
            .or_default();
        let before = Arc::make_mut(page).insert(session.id, Arc::new(session));
        debug_assert!(before.is_none(), "session ids are never used twice");
        self.len += 1;
    }

    pub(super) fn remove(&mut self, id: SessionId, digest: &mut StateDigest) -> Option<Arc<Session>> {
        self.of(id)?;
        let pages = Arc::make_mut(&mut self.pages);
        let page = Arc::make_mut(pages.get_mut(&(id.0 >> PAGE_BITS))?);
        let session = page.remove(&id)?;
        if page.is_empty() {
            pages.remove(&(id.0 >> PAGE_BITS));
        }
        digest.take(digest::of_session(&session));
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
        digest.take(digest::of_session(session));
        write(session);
        digest.add(digest::of_session(session));
    }

    /// Adds a node to the session's list.
    pub(super) fn give_node(&mut self, id: SessionId, key: NodeKey) {
        if let Some(session) = self.writable(id)
            && let Err(place) = session.nodes.binary_search(&key)
        {
            session.nodes.insert(place, key);
        }
    }

    /// Strikes a node from the session's list.
    pub(super) fn take_node(&mut self, id: SessionId, key: &NodeKey) {
        if let Some(session) = self.writable(id)
            && let Ok(place) = session.nodes.binary_search(key)
        {
            session.nodes.remove(place);
        }
    }

    fn writable(&mut self, id: SessionId) -> Option<&mut Session> {
        self.of(id)?;
        let page = Arc::make_mut(Arc::make_mut(&mut self.pages).get_mut(&(id.0 >> PAGE_BITS))?);
        page.get_mut(&id).map(Arc::make_mut)
    }
}
