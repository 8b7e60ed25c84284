//! Commands that move a group from one mode to the other.
//!
//! A group that moves is frozen where it was: nothing is written to it and nothing of it lapses, until what it holds
//! is where it goes. Then one entry of the log ends the move for everybody, or takes it back. Consumers are told of the
//! mode, never of nodes that leave: nothing does.

use std::collections::BTreeSet;

use serde::Serialize;

use super::command::{AdoptedNode, AdoptedSession, Command};
use super::draft::{Draft, Effect};
use super::imposed::{ImposedNode, ImposedSession, Imposition, Listed, heard_at};
use super::outcome::{Refusal, RemovalCause, SessionChange};
use super::record::{GroupMode, Move, Override, Session};
use super::rules;
use super::state::Directory;
use crate::guard::Ledger;
use crate::ids::{GroupName, NodeKey, Revision, ServiceKey, SessionId};

/// A command of several nodes or overrides has about so many bytes at most: half of what a request may have.
const PIECE_BYTES: usize = 512 << 10;
/// What a session takes up in one, but for its client's name.
const SESSION_BYTES: usize = 64;

impl Directory {
    pub(super) fn on_begin_move(
        &mut self,
        group: &GroupName,
        to: GroupMode,
        stamp_ms: u64,
    ) -> Result<Effect, Refusal> {
        let found = self.require_group(group)?;
        match found.moving {
            Some(moving) if moving.to == to => return Ok(Effect::nothing()),
            Some(_) => return Err(moving_refusal(group)),
            None if found.settings.mode == to => return Ok(Effect::nothing()),
            None => {}
        }
        let mut draft = self.draft();
        let since = draft.revision;
        draft.groups.insert(group.clone(), true);
        self.write_group(group, |group| {
            group.moving = Some(Move { to, since, stamp_ms });
            group.modified = since;
        });
        Ok(Effect::of(draft))
    }

    /// Nodes of a group that moves here, with the sessions that own them. Repeats are harmless.
    pub(super) fn on_adopt_nodes(
        &mut self,
        group: &GroupName,
        since: Revision,
        sessions: &[AdoptedSession],
        nodes: &[AdoptedNode],
        overrides: &[(NodeKey, Override)],
    ) -> Result<Effect, Refusal> {
        rules::batch_or_none(&self.limits, "sessions", sessions.len())?;
        rules::batch_or_none(&self.limits, "nodes", nodes.len())?;
        rules::batch_or_none(&self.limits, "overrides", overrides.len())?;
        self.require_move(group, since, self.serving)?;
        let keys = nodes
            .iter()
            .map(|node| &node.key)
            .chain(overrides.iter().map(|(key, _)| key));
        if let Some(stray) = keys.into_iter().find(|key| key.service.group != *group) {
            return Err(rules::invalid(
                "nodes",
                format!("{stray} is not of group {group}"),
            ));
        }
        let named: BTreeSet<SessionId> = sessions.iter().map(|session| session.id).collect();
        let known = |id: SessionId| named.contains(&id) || self.session(id).is_some();
        if let Some(orphan) = nodes
            .iter()
            .find(|node| node.session.is_some_and(|id| !known(id)))
        {
            let session = orphan.session.unwrap_or_default();
            return Err(Refusal::SessionNotFound { session });
        }
        let (revived, lapsed) = self.judged_otherwise(sessions);
        let mut differing = revived.iter().chain(&lapsed).filter_map(|id| self.session(*id));
        differing.try_for_each(|session| self.require_thawed_but(session, Some(group)))?;
        let mut draft = self.draft();
        self.revive_sessions(&mut draft, heard_at(self.revision.next()), &revived);
        self.hold_sessions(&mut draft, &lapsed);
        self.impose_on(&mut draft, adoption(sessions, nodes, overrides));
        if draft.services.is_empty() && draft.sessions.is_empty() {
            return Ok(Effect::nothing());
        }
        self.grant_anew(&mut draft, sessions);
        Ok(Effect::of(draft))
    }

    /// Sessions that own nodes here, and were found alive or silent where they come from while the other was found here:
    /// those that are to be revived, and those that are to be held. A session has one standing, so what it owns in
    /// other groups follows what moves. That may hold a node a little early, but it strikes none, and a heartbeat brings
    /// it back.
    fn judged_otherwise(&self, sessions: &[AdoptedSession]) -> (Vec<SessionId>, Vec<SessionId>) {
        let differing = sessions.iter().filter(|adopted| {
            self.session(adopted.id)
                .is_some_and(|here| here.lapsed.is_some() != adopted.lapsed && !here.nodes.is_empty())
        });
        let (lapsed, revived): (Vec<_>, Vec<_>) = differing.partition(|adopted| adopted.lapsed);
        let ids = |sessions: Vec<&AdoptedSession>| sessions.into_iter().map(|session| session.id).collect();
        (ids(revived), ids(lapsed))
    }

    /// Sessions that own what came are judged here from now on, with a full ttl: while they owned nothing here, their
    /// heartbeats were answered without the leader's word.
    fn grant_anew(&mut self, draft: &mut Draft, sessions: &[AdoptedSession]) {
        let told: BTreeSet<SessionId> = draft.sessions.iter().map(SessionChange::session).collect();
        let heard = heard_at(draft.revision);
        for id in sessions.iter().map(|session| session.id) {
            let counts = |session: &std::sync::Arc<Session>| session.lapsed.is_none();
            if told.contains(&id) || !self.session(id).is_some_and(counts) {
                continue;
            }
            self.sessions.write(id, &mut self.digest, |session| {
                session.last_renewal = heard;
                draft.note_session(SessionChange::Revived {
                    session: id,
                    ttl_ms: session.ttl_ms,
                    held: 0,
                });
            });
        }
    }

    pub(super) fn on_end_move(
        &mut self,
        group: &GroupName,
        since: Revision,
        done: bool,
    ) -> Result<Effect, Refusal> {
        let found = self.require_group(group)?;
        let Some(moving) = found.moving else {
            return Ok(Effect::nothing());
        };
        self.require_move(group, since, moving.to)?;
        let mut draft = self.draft();
        let stays = if done { moving.to } else { found.settings.mode };
        if stays != self.serving {
            self.vacate(&mut draft, group);
        }
        let revision = draft.revision;
        draft.groups.insert(group.clone(), true);
        self.write_group(group, |group| {
            group.moving = None;
            group.modified = revision;
            if done {
                group.settings.mode = moving.to;
                group.settings_modified = revision;
            }
        });
        Ok(Effect::of(draft))
    }

    /// What a group's services list is listed elsewhere from here on. Nobody is told that nodes left.
    fn vacate(&mut self, draft: &mut Draft, group: &GroupName) {
        let services: Vec<ServiceKey> = self
            .group(group)
            .into_iter()
            .flat_map(|group| group.services.values())
            .map(|service| service.key.clone())
            .collect();
        for key in services {
            let Some(service) = self.service(&key).cloned() else {
                continue;
            };
            for (id, node) in &service.nodes {
                if let Some(owner) = node.session() {
                    self.sessions.take_node(owner, &key, id);
                    self.end_if_spent(draft, owner);
                }
            }
            self.write_service(draft, &key, |writer| {
                for id in service.nodes.keys() {
                    writer.remove_node(id.clone(), RemovalCause::Deregistered);
                }
                for id in service.overrides.keys() {
                    writer.set_override(id, None);
                }
                writer.set_guard(Ledger::default());
            });
            for (id, over) in &service.overrides {
                if over.ttl_ms > 0 {
                    let node = NodeKey {
                        service: key.clone(),
                        node: id.clone(),
                    };
                    draft.overrides.push((node, None));
                }
            }
            draft.services.remove(&key);
            draft.guards.remove(&key);
        }
    }

    /// What a group lists, as the commands that make another directory list the same, each with at most `most` of
    /// anything, and of about half a mebibyte if that is more than one; sessions before their nodes.
    #[must_use]
    pub fn adoptions(&self, group: &GroupName, since: Revision, most: usize) -> Vec<Command> {
        let services: Vec<_> = self
            .group(group)
            .into_iter()
            .flat_map(|group| group.services.values())
            .collect();
        let listed = services.iter().flat_map(|service| {
            service.nodes.values().map(|node| AdoptedNode {
                key: NodeKey {
                    service: service.key.clone(),
                    node: node.registration.id.clone(),
                },
                registration: node.registration.clone(),
                kind: node.kind,
                session: node.session(),
                incarnation: node.incarnation,
                state: node.state,
            })
        });
        let nodes: Vec<AdoptedNode> = listed.collect();
        let said = services.iter().flat_map(|service| {
            service.overrides.iter().map(|(id, over)| {
                let key = NodeKey {
                    service: service.key.clone(),
                    node: id.clone(),
                };
                (key, Override::clone(over))
            })
        });
        let overrides: Vec<(NodeKey, Override)> = said.collect();
        let piece = |sessions, nodes, overrides| Command::AdoptNodes {
            group: group.clone(),
            since,
            sessions,
            nodes,
            overrides,
        };
        let weight_of_node = |node: &AdoptedNode| {
            let owner = node.session.and_then(|id| self.session(id));
            encoded_len(node) + owner.map_or(0, |owner| SESSION_BYTES + owner.client.len())
        };
        let with_sessions = pieces(nodes, most, weight_of_node).into_iter().map(|nodes| {
            let named: BTreeSet<SessionId> = nodes.iter().filter_map(|node| node.session).collect();
            let owners = named.into_iter().filter_map(|id| self.session(id));
            let sessions = owners.map(|session| AdoptedSession {
                id: session.id,
                secret_digest: session.secret_digest,
                ttl_ms: session.ttl_ms,
                client: session.client.clone(),
                lapsed: session.lapsed.is_some(),
            });
            piece(sessions.collect(), nodes, Vec::new())
        });
        let alone = pieces(overrides, most, encoded_len)
            .into_iter()
            .map(|overrides| piece(Vec::new(), Vec::new(), overrides));
        with_sessions.chain(alone).collect()
    }

    fn require_move(&self, group: &GroupName, since: Revision, to: GroupMode) -> Result<Move, Refusal> {
        let current = self.require_group(group)?.moving;
        match current {
            Some(moving) if moving.since == since && moving.to == to => Ok(moving),
            Some(_) | None => Err(Refusal::RevisionMismatch {
                subject: format!("the move of group {group}"),
                expected: since,
                current: current.map_or(Revision(0), |moving| moving.since),
            }),
        }
    }

    /// Whether a service's group is on its way to the other mode.
    pub(super) fn is_moving(&self, service: &ServiceKey) -> bool {
        self.group(&service.group)
            .is_some_and(|group| group.moving.is_some())
    }

    /// Whether a session owns anything that must not change now.
    pub(super) fn is_frozen(&self, session: SessionId) -> bool {
        self.session(session).is_some_and(|session| {
            session
                .nodes
                .by_service()
                .any(|(service, _)| self.is_moving(service))
        })
    }

    /// Refuses what must wait until no group of a session's nodes is on its way.
    pub(super) fn require_thawed(&self, session: &Session) -> Result<(), Refusal> {
        self.require_thawed_but(session, None)
    }

    /// The same, except of a group that is being told what is in it: a move that goes on says so once more.
    fn require_thawed_but(&self, session: &Session, told: Option<&GroupName>) -> Result<(), Refusal> {
        let owned = session.nodes.by_service();
        let mut others = owned.filter(|(service, _)| Some(&service.group) != told);
        others.try_for_each(|(service, _)| self.require_still(&service.group))
    }

    /// Refuses what must wait until a group has moved.
    pub(super) fn require_still(&self, group: &GroupName) -> Result<(), Refusal> {
        match self.group(group).and_then(|group| group.moving) {
            Some(_) => Err(moving_refusal(group)),
            None => Ok(()),
        }
    }
}

pub(super) fn moving_refusal(group: &GroupName) -> Refusal {
    Refusal::Moving { group: group.clone() }
}

fn encoded_len(item: &impl Serialize) -> usize {
    let bytes = postcard::to_allocvec(item).expect("plain values always encode");
    bytes.len()
}

/// In their order, each with at most `most`, and with more than one only as long as they have `PIECE_BYTES` together.
fn pieces<T>(items: Vec<T>, most: usize, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut pieces: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = weight(&item);
        match pieces.last_mut() {
            Some(piece) if piece.len() < most && bytes + more <= PIECE_BYTES => {
                piece.push(item);
                bytes += more;
            }
            _ => {
                pieces.push(vec![item]);
                bytes = more;
            }
        }
    }
    pieces
}

fn adoption(
    sessions: &[AdoptedSession],
    nodes: &[AdoptedNode],
    overrides: &[(NodeKey, Override)],
) -> Imposition {
    Imposition {
        sessions: sessions
            .iter()
            .map(|session| ImposedSession {
                id: session.id,
                secret_digest: session.secret_digest,
                ttl_ms: session.ttl_ms,
                client: session.client.clone(),
                lapsed: session.lapsed,
            })
            .collect(),
        ended: Vec::new(),
        nodes: nodes
            .iter()
            .map(|node| ImposedNode {
                key: node.key.clone(),
                listed: Ok(Listed {
                    registration: node.registration.clone(),
                    kind: node.kind,
                    session: node.session,
                    incarnation: node.incarnation,
                    state: node.state,
                }),
            })
            .collect(),
        overrides: overrides
            .iter()
            .map(|(key, over)| (key.clone(), Some(over.clone())))
            .collect(),
    }
}
