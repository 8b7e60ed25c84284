//! From the view to records: what a local write changed, written down.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Key, NodeValue, Record, SessionValue, Standing, Stored, Value};
use super::replica::Replica;
use super::shown::Moved;
use super::table;
use crate::directory::{
    Command, Directory, NodeChange, Override, RemovalCause, RevisionChanges, SessionChange,
};
use crate::ids::{NodeId, NodeKey, Revision, ServiceKey, SessionId};

impl Replica {
    /// Whether there is a record of this node, if only of its end.
    #[must_use]
    pub fn knows(&self, node: &NodeKey) -> bool {
        self.table.of_node(node).is_some()
    }

    /// What a command changed in the view, as records. What follows from a session's record is not written again.
    pub(super) fn write_down(
        &mut self,
        view: &Directory,
        now_ms: u64,
        command: &Command,
        changes: &RevisionChanges,
    ) -> Vec<Stored> {
        let stamp = self.clock.stamp(now_ms);
        let mut values: Vec<(Key, Value)> = Vec::new();
        let mut touched: BTreeSet<SessionId> = changes.sessions.iter().map(SessionChange::session).collect();
        for service in &changes.services {
            for change in &service.nodes {
                let id = match change {
                    NodeChange::Put { node, .. } => &node.registration.id,
                    NodeChange::Removed { id, .. } => id,
                };
                let key = Key::Node(NodeKey {
                    service: service.key.clone(),
                    node: id.clone(),
                });
                let known = self.table.of(&key);
                touched.extend(known.and_then(|record| table::session_of(record)));
                values.extend(node_value(known, change).map(|value| (key, value)));
            }
        }
        values.extend(override_keys(command).filter_map(|key| self.override_value(view, key)));
        let going: BTreeSet<&NodeKey> = values.iter().filter_map(tombstone).collect();
        // Sessions first: whoever hears of a node has heard who vouches for it.
        let sessions = touched
            .into_iter()
            .filter_map(|id| Some((Key::Session(id), self.session_value(view, command, id, &going)?)))
            .collect::<Vec<_>>();
        sessions
            .into_iter()
            .chain(values)
            .map(|(key, value)| self.own(key, value, stamp))
            .collect()
    }

    /// Whether there is a record of what an operator said of this node, if only of its end.
    #[must_use]
    pub fn knows_override(&self, node: &NodeKey) -> bool {
        self.table.of(&Key::Override(node.clone())).is_some()
    }

    /// What a command says and the view shows already, written anew with a stamp of now. Others may have
    /// written meanwhile what has not come here: this is the later word, and has to win. So a node that is not known
    /// here gets a tombstone, too, when it is deregistered.
    pub(super) fn say_again(
        &mut self,
        now_ms: u64,
        command: &Command,
        written: &[Stored],
        moved: &mut Moved,
    ) -> Vec<Stored> {
        let mut said: Vec<Named<'_>> = written
            .iter()
            .filter_map(|stored| named(&stored.record.key))
            .collect();
        said.sort_unstable();
        let unsaid = named_by(command)
            .into_iter()
            .filter(|named| said.binary_search(named).is_err());
        let mut again = Vec::new();
        for key in unsaid.map(key_of) {
            let known = self.table.of(&key);
            let value = match command {
                Command::Deregister { .. } => Some(Value::Node(None)),
                Command::ClearOverride { .. } => Some(Value::Override(None)),
                _ => known
                    .filter(|record| !record.is_dead())
                    .map(|record| record.value.clone()),
            };
            // One that is not listed may hang on a session that has lapsed.
            if let (Key::Node(node), Some(Value::Node(None))) = (&key, &value) {
                moved
                    .owners
                    .extend(known.and_then(|record| table::session_of(record)));
                moved.nodes.insert(node.clone());
            }
            again.extend(value.map(|value| (key, value)));
        }
        if again.is_empty() {
            return Vec::new();
        }
        let stamp = self.clock.stamp(now_ms);
        let own = |(key, value)| self.own(key, value, stamp);
        again.into_iter().map(own).collect()
    }

    /// The records of what a client's or an operator's command says something of, sessions first. Whatever superseded those that
    /// it wrote stands for them.
    pub(super) fn said_by(&self, command: &Command) -> Vec<Arc<Record>> {
        let session = named_session(command).map(Key::Session);
        let keys = session
            .into_iter()
            .chain(named_by(command).into_iter().map(key_of));
        keys.filter_map(|key| self.table.of(&key).cloned()).collect()
    }

    fn override_value(&self, view: &Directory, key: NodeKey) -> Option<(Key, Value)> {
        let over = view
            .service(&key.service)
            .and_then(|service| service.overrides.get(&key.node));
        let said = over.map(|over| {
            Box::new(Override {
                set_at: Revision(0),
                ..Override::clone(over)
            })
        });
        let key = Key::Override(key);
        let known = match self.table.of(&key).map(|record| &record.value) {
            Some(Value::Override(value)) => value.clone(),
            _ => None,
        };
        // One with a ttl that is set again begins anew, though it says the same.
        let again = said.as_ref().is_some_and(|over| over.ttl_ms > 0);
        (again || known != said).then_some((key, Value::Override(said)))
    }

    fn session_value(
        &self,
        view: &Directory,
        command: &Command,
        id: SessionId,
        going: &BTreeSet<&NodeKey>,
    ) -> Option<Value> {
        let known = self.session(id)?;
        let standing = match view.session(id) {
            Some(session) if session.lapsed.is_some() => Standing::Lapsed {
                held: session.nodes.keys().collect(),
            },
            Some(_) => Standing::Held,
            None => match command {
                Command::CloseSession { .. } => Standing::Closed,
                // An operator's word on nodes is none on what else the session owned: that may be heard elsewhere, under a
                // claim that has not come here and is void once the session is closed.
                Command::ConfirmRemoval { .. } | Command::Deregister { .. }
                    if self.table.nodes_of(id).all(|key| going.contains(key)) =>
                {
                    Standing::Closed
                }
                _ => Standing::Lapsed { held: Vec::new() },
            },
        };
        if standing == known.standing {
            return None;
        }
        let mut said = SessionValue {
            standing,
            ..known.clone()
        };
        if said.standing == Standing::Held {
            said.claim += 1;
            said.holder = self.server;
        }
        Some(Value::Session(Box::new(said)))
    }
}

/// What a node's record is to say behind a change, unless that is what it says.
fn node_value(known: Option<&Arc<Record>>, change: &NodeChange) -> Option<Value> {
    let known = match known.map(|record| &record.value) {
        Some(Value::Node(value)) => value.as_deref(),
        Some(Value::Override(_) | Value::Session(_)) | None => None,
    };
    match change {
        NodeChange::Put { node, .. } => {
            let said = NodeValue {
                registration: node.registration.clone(),
                kind: node.kind,
                session: node.session(),
                incarnation: node.incarnation,
            };
            (known != Some(&said)).then(|| Value::Node(Some(Box::new(said))))
        }
        NodeChange::Removed {
            cause: RemovalCause::Deregistered,
            ..
        } => known.map(|_| Value::Node(None)),
        // Its session's record says so.
        NodeChange::Removed { .. } => None,
    }
}

/// The node of which a record is to tell the end.
fn tombstone((key, value): &(Key, Value)) -> Option<&NodeKey> {
    match (key, value) {
        (Key::Node(key), Value::Node(None)) => Some(key),
        _ => None,
    }
}

/// What a key is about, in the order of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Node,
    Override,
}

type Named<'a> = (About, &'a ServiceKey, &'a NodeId);

fn named(key: &Key) -> Option<Named<'_>> {
    match key {
        Key::Node(key) => Some((About::Node, &key.service, &key.node)),
        Key::Override(key) => Some((About::Override, &key.service, &key.node)),
        Key::Session(_) => None,
    }
}

fn key_of((about, service, node): Named<'_>) -> Key {
    let key = NodeKey {
        service: service.clone(),
        node: node.clone(),
    };
    match about {
        About::Node => Key::Node(key),
        About::Override => Key::Override(key),
    }
}

/// Of what a client's or an operator's command says something.
fn named_by(command: &Command) -> Vec<Named<'_>> {
    fn of_node(key: &NodeKey) -> Named<'_> {
        (About::Node, &key.service, &key.node)
    }
    match command {
        Command::Register { nodes, .. } => nodes
            .iter()
            .map(|node| (About::Node, &node.key, &node.registration.id))
            .collect(),
        Command::Update { nodes, .. } => nodes.iter().map(|node| of_node(&node.key)).collect(),
        Command::Deregister { nodes, .. } => nodes.iter().map(|node| of_node(&node.key)).collect(),
        Command::SetOverride { key, .. } | Command::ClearOverride { key } => {
            vec![(About::Override, &key.service, &key.node)]
        }
        _ => Vec::new(),
    }
}

/// The session that a client ends, or under which it writes.
fn named_session(command: &Command) -> Option<SessionId> {
    match command {
        Command::CloseSession { session } => Some(*session),
        Command::Register { session, .. }
        | Command::Update { session, .. }
        | Command::Deregister { session, .. } => *session,
        _ => None,
    }
}

/// The overrides that a command may have changed.
fn override_keys(command: &Command) -> impl Iterator<Item = NodeKey> {
    let keys = match command {
        Command::SetOverride { key, .. } | Command::ClearOverride { key } => vec![key.clone()],
        Command::ExpireOverrides { overrides, .. } => overrides.iter().map(|(key, _)| key.clone()).collect(),
        _ => Vec::new(),
    };
    keys.into_iter()
}
