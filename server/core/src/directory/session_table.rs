//! The sessions, in pages that are copied one at a time while a clone is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::digest::StateDigest;
use super::record::Session;
use crate::ids::{NodeId, ServiceKey, SessionId};

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
        digest.session_came(session.id);
        self.insert_counted(session);
    }

    /// The same of a session that the digest has counted in.
    pub(super) fn insert_counted(&mut self, session: Session) {
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
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) {
        if let Some(session) = self.writable(id) {
            nodes
                .into_iter()
                .for_each(|node| session.nodes.insert(service, node));
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
        let page = Arc::make_mut(Arc::make_mut(&mut self.pages).get_mut(&(id.0 >> PAGE_BITS))?);
        page.get_mut(&id).map(Arc::make_mut)
    }
}
