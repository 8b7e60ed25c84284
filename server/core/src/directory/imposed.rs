//! What was decided elsewhere: sessions, nodes and overrides as they are to be, without asking the rules.
//!
//! For the view of AP groups ([`crate::ap`]), where records that merge say what is listed. Signs, guard ledgers, the
//! change log and the sessions' lists of nodes follow as they do with commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::draft::Draft;
use super::outcome::{RemovalCause, RevisionChanges, SessionChange};
use super::owned::OwnedNodes;
use super::record::{GroupMode, Node, NodeKind, NodeState, Override, Registration, Service, Session};
use super::state::Directory;
use crate::ids::{Incarnation, LogIndex, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId};

/// What is to be.
#[derive(Debug, Default)]
pub(crate) struct Imposition {
    /// Sessions that are there.
    pub(crate) sessions: Vec<ImposedSession>,
    /// Sessions that are not; what they own must be among `nodes`.
    pub(crate) ended: Vec<(SessionId, RemovalCause)>,
    /// Nodes; the sessions that they name must be there.
    pub(crate) nodes: Vec<ImposedNode>,
    /// Overrides, or that there is none.
    pub(crate) overrides: Vec<(NodeKey, Option<Override>)>,
}

/// A session that is there.
#[derive(Debug)]
pub(crate) struct ImposedSession {
    pub(crate) id: SessionId,
    pub(crate) secret_digest: [u8; 32],
    pub(crate) ttl_ms: u32,
    pub(crate) client: String,
    /// It lapsed, and what is listed of it are suspects.
    pub(crate) lapsed: bool,
}

/// A node.
#[derive(Debug)]
pub(crate) struct ImposedNode {
    pub(crate) key: NodeKey,
    /// As it is listed, or why it is not.
    pub(crate) listed: Result<Listed, RemovalCause>,
}

/// A node that is listed.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) registration: Registration,
    pub(crate) kind: NodeKind,
    pub(crate) session: Option<SessionId>,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
}

impl Listed {
    fn is_shown_by(&self, node: &Node) -> bool {
        node.session() == self.session
            && node.state == self.state
            && node.kind == self.kind
            && node.incarnation == self.incarnation
            && node.registration == self.registration
    }
}

impl Directory {
    /// Makes it so, in one revision; `None` if it is so already. What belongs to groups that are not here is
    /// left out: it is to be imposed again when the group is.
    pub(crate) fn impose(&mut self, imposition: Imposition) -> Option<Arc<RevisionChanges>> {
        let mut draft = self.draft();
        self.impose_on(&mut draft, imposition);
        self.conclude(draft)
    }

    fn conclude(&mut self, draft: Draft) -> Option<Arc<RevisionChanges>> {
        if draft.services.is_empty() && draft.sessions.is_empty() {
            return None;
        }
        let changes = draft.finish(RequestId(0));
        self.revision = changes.revision;
        self.changes.push(changes.clone());
        self.settle_if_behind();
        Some(changes)
    }

    pub(super) fn impose_on(&mut self, draft: &mut Draft, imposition: Imposition) {
        for session in imposition.sessions {
            self.impose_session(draft, session);
        }
        let mut services: BTreeMap<ServiceKey, Vec<ImposedNode>> = BTreeMap::new();
        for node in imposition.nodes {
            services.entry(node.key.service.clone()).or_default().push(node);
        }
        let mut bereft = BTreeSet::new();
        for (key, nodes) in services {
            self.impose_nodes(draft, &key, nodes, &mut bereft);
        }
        for session in bereft {
            self.end_if_spent(draft, session);
        }
        for (session, cause) in imposition.ended {
            if self.sessions.remove(session, &mut self.digest).is_some() {
                draft.note_session(SessionChange::Ended { session, cause });
            }
        }
        for (key, over) in imposition.overrides {
            self.impose_override(draft, &key, over);
        }
    }

    /// What was imposed until now came piece by piece and was there all along: guards that hold anything count it as if it had
    /// come at once. `None` if there are none.
    pub(crate) fn learn_guards_anew(&mut self) -> Option<Arc<RevisionChanges>> {
        let services = self.groups.values().flat_map(|group| group.services.values());
        let holding: Vec<ServiceKey> = services
            .filter(|service| service.guard.hold().is_some())
            .map(|service| service.key.clone())
            .collect();
        let mut draft = self.draft();
        for key in holding {
            let is_moving = self.is_moving(&key);
            self.write_guard(&mut draft, &key, |ledger, settings, at| {
                ledger.learn_anew(at);
                if is_moving {
                    None
                } else {
                    ledger.settle(settings, at)
                }
            });
        }
        self.conclude(draft)
    }

    fn impose_session(&mut self, draft: &mut Draft, imposed: ImposedSession) {
        let (id, revision) = (imposed.id, draft.revision);
        let lapsed = imposed.lapsed.then_some(revision);
        let Some(before) = self.session(id) else {
            let session = Session {
                id,
                secret_digest: imposed.secret_digest,
                ttl_ms: imposed.ttl_ms,
                client: imposed.client,
                opened: revision,
                last_renewal: heard_at(revision),
                lapsed,
                lost_nodes: false,
                nodes: OwnedNodes::default(),
            };
            self.sessions.insert(session, &mut self.digest);
            let ttl_ms = imposed.ttl_ms;
            draft.note_session(match lapsed {
                None => SessionChange::Opened { session: id, ttl_ms },
                Some(_) => SessionChange::Lapsed { session: id, held: 0 },
            });
            return;
        };
        if before.lapsed.is_some() == imposed.lapsed {
            return;
        }
        let held = before.nodes.len();
        draft.note_session(match lapsed {
            None => SessionChange::Revived {
                session: id,
                ttl_ms: imposed.ttl_ms,
                held,
            },
            Some(_) => SessionChange::Lapsed { session: id, held },
        });
        self.sessions.write(id, &mut self.digest, |session| {
            session.lapsed = lapsed;
            session.last_renewal = heard_at(revision);
        });
    }

    fn impose_nodes(
        &mut self,
        draft: &mut Draft,
        key: &ServiceKey,
        nodes: Vec<ImposedNode>,
        bereft: &mut BTreeSet<SessionId>,
    ) {
        let Some(group) = self.group(&key.group) else {
            return;
        };
        if !group.services.contains_key(&key.service) {
            if nodes.iter().all(|node| node.listed.is_err()) {
                return;
            }
            let defaults = group.settings.defaults.clone();
            self.create_service(draft, key, &defaults);
        }
        let service = self
            .service(key)
            .expect("it was there, or was just created")
            .clone();
        let (mut puts, mut removals): (Vec<Node>, Vec<(NodeId, RemovalCause)>) = Default::default();
        let (mut newly_held, mut joined) = (0, 0);
        for ImposedNode {
            key: node_key,
            mut listed,
        } in nodes
        {
            if let (GroupMode::Cp, Ok(listed)) = (self.serving, &mut listed) {
                listed.incarnation = grown(&service, &node_key.node, listed.incarnation);
            }
            let before = service.nodes.get(&node_key.node);
            let owner_before = before.and_then(|before| before.session());
            let owner = match &listed {
                Ok(listed) => listed.session,
                Err(_) => None,
            };
            if owner_before != owner {
                if let Some(from) = owner_before {
                    self.sessions.take_node(from, key, &node_key.node);
                    bereft.insert(from);
                }
                if let Some(to) = owner {
                    self.sessions.give_nodes(to, key, [&node_key.node].into_iter());
                }
            }
            match (listed, before) {
                (Ok(listed), Some(before)) if listed.is_shown_by(before) => {}
                (Ok(listed), before) => {
                    let was_held = before.is_some_and(|before| before.state == NodeState::Suspect);
                    newly_held += u32::from(listed.state == NodeState::Suspect && !was_held);
                    joined += u32::from(before.is_none());
                    let same = before.filter(|before| before.incarnation == listed.incarnation);
                    puts.push(Node {
                        registration: listed.registration,
                        kind: listed.kind,
                        state: listed.state,
                        owner: listed.session.into(),
                        incarnation: listed.incarnation,
                        created: same.map_or(draft.revision, |before| before.created),
                        modified: draft.revision,
                    });
                }
                (Err(cause), Some(_)) => removals.push((node_key.node, cause)),
                (Err(_), None) => {}
            }
        }
        if puts.is_empty() && removals.is_empty() {
            return;
        }
        // Whoever holds a service while it is written has it copied.
        drop(service);
        // What moves comes in pieces, and nobody registers meanwhile: the next piece, too, was there all along.
        let is_moving = self.is_moving(key);
        self.write_service(draft, key, |service| {
            for node in puts {
                service.put_node(node.into());
            }
            if newly_held > 0 || is_moving {
                service.learn_of_hold(newly_held, joined);
            }
            for (id, cause) in removals {
                service.remove_node(id, cause);
            }
        });
    }

    fn impose_override(&mut self, draft: &mut Draft, key: &NodeKey, over: Option<Override>) {
        if self.service(&key.service).is_none() {
            // A view is told of services by the log, and of the word again when it is; the log has nobody to tell it.
            let (GroupMode::Cp, Some(_), Some(group)) = (self.serving, &over, self.group(&key.service.group))
            else {
                return;
            };
            let defaults = group.settings.defaults.clone();
            self.create_service(draft, &key.service, &defaults);
        }
        let service = self
            .service(&key.service)
            .expect("it was there, or was just created");
        let before = service.overrides.get(&key.node);
        let said = |over: &Override| Override {
            set_at: Default::default(),
            ..over.clone()
        };
        if before.map(|before| said(before)) == over.as_ref().map(said) {
            return;
        }
        let was_timed = before.is_some_and(|before| before.ttl_ms > 0);
        let over = over.map(|over| {
            Arc::new(Override {
                set_at: draft.revision,
                ..over
            })
        });
        self.write_service(draft, &key.service, |service| {
            service.set_override(&key.node, over.as_ref());
        });
        match over {
            Some(over) if over.ttl_ms > 0 => draft.overrides.push((key.clone(), Some(over))),
            Some(_) | None if was_timed => draft.overrides.push((key.clone(), None)),
            Some(_) | None => {}
        }
    }
}

/// The incarnation under which the log lists a node that it was told of. Whoever registered it elsewhere may not have
/// known how often the log had listed it; the log's numbers never fall.
fn grown(service: &Service, id: &NodeId, told: Incarnation) -> Incarnation {
    match service.nodes.get(id) {
        Some(listed) => told.max(listed.incarnation),
        None if told < service.tombstones.last(id) => service.tombstones.next_incarnation(id),
        None => told,
    }
}

/// A sign of life that came from elsewhere: an index that no command has.
pub(super) fn heard_at(revision: Revision) -> LogIndex {
    LogIndex(1 << 63 | revision.0)
}
