//! From records to the view: what is to be listed of what moved.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Key, NodeValue, SessionValue, Standing, Stored, Value};
use super::replica::Replica;
use crate::directory::{
    Directory, ImposedNode, ImposedSession, Imposition, Listed, Node, NodeState, RemovalCause,
    RevisionChanges,
};
use crate::ids::{NodeKey, SessionId};

/// Which records moved, so that the view must be looked at.
#[derive(Default)]
pub(super) struct Moved {
    pub(super) sessions: BTreeSet<SessionId>,
    pub(super) nodes: BTreeSet<NodeKey>,
    pub(super) overrides: BTreeSet<NodeKey>,
}

impl Replica {
    pub(super) fn impose(&self, view: &mut Directory, mut moved: Moved) -> Option<Arc<RevisionChanges>> {
        let mut imposition = Imposition::default();
        // A node's session must be there before it is.
        let named = moved.nodes.iter().filter_map(|key| self.node(key)?.session);
        moved.sessions.extend(named.collect::<Vec<_>>());
        for id in &moved.sessions {
            moved.nodes.extend(self.table.nodes_of(*id).cloned());
            let Some(session) = self.session(*id) else {
                continue;
            };
            let lapsed = match &session.standing {
                Standing::Held => false,
                Standing::Lapsed { .. } if self.holds_any(*id, session) => true,
                Standing::Lapsed { .. } => {
                    imposition.ended.push((*id, RemovalCause::Expired));
                    continue;
                }
                Standing::Closed => {
                    imposition.ended.push((*id, RemovalCause::SessionClosed));
                    continue;
                }
            };
            imposition.sessions.push(ImposedSession {
                id: *id,
                secret_digest: session.secret_digest,
                ttl_ms: session.ttl_ms,
                client: session.client.clone(),
                lapsed,
            });
        }
        // A service that comes with its first node finds what operators said of its nodes before.
        let new: BTreeSet<_> = moved.nodes.iter().map(|key| &key.service).collect();
        for service in new.into_iter().filter(|service| view.service(service).is_none()) {
            moved.overrides.extend(self.table.overrides_of(service));
        }
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

    fn node(&self, key: &NodeKey) -> Option<&NodeValue> {
        match &self.table.of(&Key::Node(key.clone()))?.value {
            Value::Node(value) => value.as_deref(),
            Value::Override(_) | Value::Session(_) => None,
        }
    }

    fn holds_any(&self, id: SessionId, session: &SessionValue) -> bool {
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

    /// Whether the view lists exactly what the records say of the groups it has: for tests and for doubt.
    #[must_use]
    pub fn is_shown_by(&self, view: &Directory) -> bool {
        let known = |key: &NodeKey| view.group(&key.service.group).is_some();
        let mut listed = 0;
        let all_right = self.table.records().all(|record| match &record.key {
            Key::Node(key) if known(key) => match (self.listed(key), view.node(key)) {
                (Ok(said), Some(node)) => {
                    listed += 1;
                    shows(&said, node)
                }
                (Err(_), None) => true,
                (Ok(_), None) | (Err(_), Some(_)) => false,
            },
            Key::Node(_) | Key::Override(_) | Key::Session(_) => true,
        });
        all_right && listed == view.totals().nodes
    }
}

impl Moved {
    pub(super) fn note(&mut self, key: &Key) {
        match key {
            Key::Node(key) => _ = self.nodes.insert(key.clone()),
            Key::Override(key) => _ = self.overrides.insert(key.clone()),
            Key::Session(id) => _ = self.sessions.insert(*id),
        }
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
