//! From records to the view: what is to be listed of what moved.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Key, NodeValue, Record, SessionValue, Standing, Stored, Value};
use super::replica::Replica;
use super::table;
use crate::directory::{
    Directory, ImposedNode, ImposedSession, Imposition, Listed, Node, NodeState, RemovalCause,
    RevisionChanges,
};
use crate::ids::{NodeKey, SessionId};

/// Which records moved, so that the view must be looked at.
#[derive(Default)]
pub(super) struct Moved {
    /// With them whatever they own.
    pub(super) sessions: BTreeSet<SessionId>,
    /// Sessions that gained or lost a node: a lapsed one may have nothing left to hold, or something again. What else
    /// they own stays as it is. Those that `nodes` name now are among these or among `sessions`.
    pub(super) owners: BTreeSet<SessionId>,
    pub(super) nodes: BTreeSet<NodeKey>,
    pub(super) overrides: BTreeSet<NodeKey>,
}

impl Replica {
    pub(super) fn impose(&self, view: &mut Directory, mut moved: Moved) -> Option<Arc<RevisionChanges>> {
        if moved.is_empty() {
            return None;
        }
        let mut imposition = Imposition::default();
        for id in &moved.sessions {
            moved.nodes.extend(self.table.nodes_of(*id).cloned());
        }
        for id in moved.sessions.union(&moved.owners) {
            self.impose_session(view, *id, &mut imposition);
        }
        // A service that comes with its first node finds what operators said of its nodes before.
        let new: BTreeSet<_> = moved.nodes.iter().map(|key| &key.service).collect();
        for service in new.into_iter().filter(|service| view.service(service).is_none()) {
            moved.overrides.extend(self.table.overrides_of(service));
        }
        imposition.nodes.reserve_exact(moved.nodes.len());
        for key in moved.nodes {
            let listed = self.listed(&key);
            imposition.nodes.push(ImposedNode { key, listed });
        }
        for key in moved.overrides {
            let over = match self
                .table
                .of(&Key::Override(key.clone()))
                .map(|record| &record.value)
            {
                Some(Value::Override(over)) => over.as_deref().cloned(),
                _ => None,
            };
            imposition.overrides.push((key, over));
        }
        view.impose(imposition)
    }

    fn impose_session(&self, view: &Directory, id: SessionId, imposition: &mut Imposition) {
        let Some(session) = self.session(id) else {
            return;
        };
        let lapsed = match self.is_lapsed(id, session) {
            Ok(lapsed) => lapsed,
            Err(cause) => {
                imposition.ended.push((id, cause));
                return;
            }
        };
        let shown = view.session(id);
        if shown.is_some_and(|shown| shown.lapsed.is_some() == lapsed) {
            return;
        }
        imposition.sessions.push(ImposedSession {
            id,
            secret_digest: session.secret_digest,
            ttl_ms: session.ttl_ms,
            client: session.client.clone(),
            lapsed,
        });
    }

    fn node(&self, key: &NodeKey) -> Option<&NodeValue> {
        match &self.table.of_node(key)?.value {
            Value::Node(value) => value.as_deref(),
            Value::Override(_) | Value::Session(_) => None,
        }
    }

    /// How a session is shown, or why it is not.
    fn is_lapsed(&self, id: SessionId, session: &SessionValue) -> Result<bool, RemovalCause> {
        match &session.standing {
            Standing::Held => Ok(false),
            Standing::Lapsed { .. } if self.holds_any(id, session) => Ok(true),
            Standing::Lapsed { .. } => Err(RemovalCause::Expired),
            Standing::Closed => Err(RemovalCause::SessionClosed),
        }
    }

    /// Whether any node that it holds is still its own.
    pub(super) fn holds_any(&self, id: SessionId, session: &SessionValue) -> bool {
        let Standing::Lapsed { held } = &session.standing else {
            return false;
        };
        held.iter()
            .any(|key| self.node(key).is_some_and(|node| node.session == Some(id)))
    }

    /// How a node is listed, or why it is not.
    fn listed(&self, key: &NodeKey) -> Result<Listed, RemovalCause> {
        let node = self.node(key).ok_or(RemovalCause::Deregistered)?;
        let state = match node.session {
            None => node.registration.state,
            Some(id) => {
                // Nobody vouches for what nobody has heard of.
                let session = self.session(id).ok_or(RemovalCause::Expired)?;
                match &session.standing {
                    Standing::Held => node.registration.state,
                    Standing::Lapsed { held } if held.binary_search(key).is_ok() => NodeState::Suspect,
                    Standing::Lapsed { .. } => return Err(RemovalCause::Expired),
                    Standing::Closed => return Err(RemovalCause::SessionClosed),
                }
            }
        };
        Ok(Listed {
            registration: node.registration.clone(),
            kind: node.kind,
            session: node.session,
            incarnation: node.incarnation,
            state,
        })
    }

    /// Whether the view lists exactly what the records say of the groups it has, and has the sessions that they
    /// say: for tests and for doubt.
    #[must_use]
    pub fn is_shown_by(&self, view: &Directory) -> bool {
        let known = |key: &NodeKey| view.group(&key.service.group).is_some();
        let (mut listed, mut sessions) = (0, 0);
        let all_right = self.table.records().all(|record| match &record.key {
            Key::Node(key) if known(key) => match (self.listed(key), view.node(key)) {
                (Ok(said), Some(node)) => {
                    listed += 1;
                    shows(&said, node)
                }
                (Err(_), None) => true,
                (Ok(_), None) | (Err(_), Some(_)) => false,
            },
            Key::Session(id) => {
                let said = self
                    .session(*id)
                    .and_then(|session| self.is_lapsed(*id, session).ok());
                sessions += u64::from(said.is_some());
                view.session(*id).map(|session| session.lapsed.is_some()) == said
            }
            Key::Node(_) | Key::Override(_) => true,
        });
        all_right && listed == view.totals().nodes && sessions == view.totals().sessions
    }
}

impl Moved {
    /// A record is there now, or not any more. A node's session must be shown before it is.
    pub(super) fn note(&mut self, record: &Record) {
        match &record.key {
            Key::Node(key) => _ = self.nodes.insert(key.clone()),
            Key::Override(key) => _ = self.overrides.insert(key.clone()),
            Key::Session(id) => _ = self.sessions.insert(*id),
        }
        self.owners.extend(table::session_of(record));
    }

    fn is_empty(&self) -> bool {
        self.sessions.is_empty()
            && self.owners.is_empty()
            && self.nodes.is_empty()
            && self.overrides.is_empty()
    }
}

fn shows(said: &Listed, node: &Node) -> bool {
    said.state == node.state && said.session == node.session() && said.registration == node.registration
}

/// Sessions that are held now. Those that had lapsed bring back also what the guard had let go: whoever is heard from
/// takes itself to be registered.
pub(super) fn heard_again(stored: &[Stored]) -> Moved {
    let mut moved = Moved::default();
    for stored in stored {
        if let (Key::Session(id), Value::Session(session)) = (&stored.record.key, &stored.record.value)
            && session.standing == Standing::Held
        {
            moved.sessions.insert(*id);
        }
    }
    moved
}
