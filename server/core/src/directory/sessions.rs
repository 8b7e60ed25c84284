//! Commands on sessions: open, close, expire, revive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::command::{ExpiryFence, RevivalFence};
use super::draft::{Draft, Effect};
use super::outcome::{Refusal, RemovalCause, SessionChange};
use super::owned::OwnedNodes;
use super::record::{GroupMode, Session};
use super::rules;
use super::state::Directory;
use crate::guard::HoldReason;
use crate::ids::{LogIndex, LogPosition, NodeId, ServiceKey, SessionId, Term};
use crate::mutants::{Mutant, planted};

impl Directory {
    pub(super) fn on_open_session(
        &mut self,
        at: LogPosition,
        secret_digest: &[u8; 32],
        ttl_ms: u32,
        client: &str,
    ) -> Result<Effect, Refusal> {
        if ttl_ms == 0 {
            return Err(rules::invalid("ttl_ms", "is 0, must be at least 1"));
        }
        rules::text(&self.limits, "client", client)?;
        if self.sessions.len() >= self.limits.sessions_max as usize {
            return Err(Refusal::QuotaExceeded {
                subject: "the cluster".into(),
                quota: self.limits.sessions_max,
                of: "sessions".into(),
            });
        }
        let mut draft = self.draft();
        let id = SessionId(self.last_session.0 + 1);
        self.last_session = id;
        let session = Session {
            id,
            secret_digest: *secret_digest,
            ttl_ms,
            client: client.into(),
            opened: draft.revision,
            last_renewal: at.index,
            lapsed: None,
            lost_nodes: false,
            nodes: OwnedNodes::default(),
        };
        self.sessions.insert(session, &mut self.digest);
        draft.note_session(SessionChange::Opened { session: id, ttl_ms });
        Ok(Effect {
            session: Some(id),
            ..Effect::of(draft)
        })
    }

    pub(super) fn on_close_session(&mut self, session: SessionId) -> Result<Effect, Refusal> {
        self.require_thawed(self.require_session(session)?)?;
        let mut draft = self.draft();
        self.end_sessions(&mut draft, &[session], RemovalCause::SessionClosed);
        Ok(Effect::of(draft))
    }

    /// The sessions that are still as the leader saw them lapsed: their nodes leave or are held, all in one
    /// revision.
    pub(super) fn on_expire_sessions(
        &mut self,
        at: LogPosition,
        term: Term,
        fences: &[ExpiryFence],
        following: &[(ServiceKey, u32)],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "sessions", fences.len())?;
        rules::batch_or_none(&self.limits, "following", following.len())?;
        let stands = |fence: &&ExpiryFence| {
            let session = self.session(fence.session);
            (at.term == term || planted(Mutant::DeposedExpiry))
                && session.is_some_and(|session| {
                    session.last_renewal == fence.last_renewal && session.lapsed.is_none()
                })
                && !self.is_frozen(fence.session)
        };
        let (lapsed, voided) = split(fences, |fence| fence.session, stands);
        if lapsed.is_empty() {
            return Ok(Effect {
                voided,
                ..Effect::nothing()
            });
        }
        let mut draft = self.draft();
        self.lapse_sessions(&mut draft, &lapsed, following);
        Ok(Effect {
            voided,
            ..Effect::of(draft)
        })
    }

    fn lapse_sessions(&mut self, draft: &mut Draft, lapsed: &[SessionId], following: &[(ServiceKey, u32)]) {
        let mut held: BTreeSet<ServiceKey> = BTreeSet::new();
        let following: BTreeMap<&ServiceKey, u32> =
            following.iter().map(|(service, more)| (service, *more)).collect();
        for (key, ids) in self.nodes_of(lapsed) {
            let more = following.get(&key).copied().unwrap_or(0);
            self.write_service(draft, &key, |service| {
                if service.lapse_nodes(&ids, more) {
                    held.insert(key.clone());
                }
            });
        }
        for id in lapsed {
            let (revision, serving) = (draft.revision, self.serving);
            let mut left = 0;
            self.sessions.write(*id, &mut self.digest, |session| {
                let owned = session.nodes.len();
                session.nodes.retain_services(|service| held.contains(service));
                session.lapsed = Some(revision);
                left = session.nodes.len();
                session.lost_nodes |= left < owned && remembers_losses(serving);
            });
            if left > 0 {
                draft.note_session(SessionChange::Lapsed {
                    session: *id,
                    held: left,
                });
            }
            self.end_if_spent(draft, *id);
        }
    }

    /// The lapsed sessions that were heard from again.
    pub(super) fn on_revive_sessions(
        &mut self,
        at: LogPosition,
        term: Term,
        fences: &[RevivalFence],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "sessions", fences.len())?;
        let stands = |fence: &&RevivalFence| {
            let session = self.session(fence.session);
            at.term == term
                && session.is_some_and(|session| session.lapsed == Some(fence.lapsed) && !session.lost_nodes)
                && !self.is_frozen(fence.session)
        };
        let (revived, voided) = split(fences, |fence| fence.session, stands);
        if revived.is_empty() {
            return Ok(Effect {
                voided,
                ..Effect::nothing()
            });
        }
        let mut draft = self.draft();
        self.revive_sessions(&mut draft, at.index, &revived);
        Ok(Effect {
            voided,
            ..Effect::of(draft)
        })
    }

    /// A write under a session that lapsed revives all that it owns, so it waits until none of that is frozen. Nobody
    /// writes under one that lost nodes: it is not revived.
    pub(super) fn require_revivable(&self, session: Option<SessionId>) -> Result<(), Refusal> {
        match session.and_then(|id| self.session(id)) {
            Some(session) if session.lost_nodes => Err(Refusal::SessionNotFound { session: session.id }),
            Some(session) if session.lapsed.is_some() => self.require_thawed(session),
            Some(_) | None => Ok(()),
        }
    }

    /// A node of this session is let go.
    pub(super) fn lose_node(&mut self, id: SessionId, key: &ServiceKey, node: &NodeId) {
        self.sessions.take_node(id, key, node);
        if remembers_losses(self.serving) && self.session(id).is_some_and(|session| !session.lost_nodes) {
            self.sessions
                .write(id, &mut self.digest, |session| session.lost_nodes = true);
        }
    }

    /// Whether nodes left with a lapse of this session, or after it, and its client may not know. As far as this server
    /// remembers, if the session itself is gone.
    #[must_use]
    pub fn has_lost_nodes(&self, id: SessionId) -> bool {
        // One that ended here may have come back with a group that moved.
        self.departed.contains(id) || self.session(id).is_some_and(|session| session.lost_nodes)
    }

    /// A session showed life: an expiry judged on what went before is void, and if it had lapsed it goes on.
    pub(super) fn note_life(&mut self, draft: &mut Draft, at: LogPosition, session: Option<SessionId>) {
        let Some(id) = session else { return };
        if self.session(id).is_some_and(|session| session.lapsed.is_some()) {
            self.revive_sessions(draft, at.index, &[id]);
        } else {
            self.sessions.write(id, &mut self.digest, |session| {
                session.last_renewal = at.index;
            });
        }
    }

    pub(super) fn revive_sessions(&mut self, draft: &mut Draft, heard: LogIndex, sessions: &[SessionId]) {
        for (key, ids) in self.nodes_of(sessions) {
            // Only what is told of a moving group revives anything in it, and its guard waits for the last piece.
            let is_moving = self.is_moving(&key);
            self.write_service(draft, &key, |service| {
                service.revive_nodes(&ids);
                if is_moving {
                    service.learn_of_hold(0, 0);
                }
            });
        }
        for id in sessions {
            self.sessions.write(*id, &mut self.digest, |session| {
                session.lapsed = None;
                session.last_renewal = heard;
                draft.note_session(SessionChange::Revived {
                    session: *id,
                    ttl_ms: session.ttl_ms,
                    held: session.nodes.len(),
                });
            });
        }
    }

    /// These sessions were found silent elsewhere: their nodes become suspects, whatever the guards would let go.
    pub(super) fn hold_sessions(&mut self, draft: &mut Draft, sessions: &[SessionId]) {
        for (key, ids) in self.nodes_of(sessions) {
            self.write_service(draft, &key, |service| service.hold_nodes(&ids, HoldReason::Share));
        }
        for id in sessions {
            let revision = draft.revision;
            self.sessions.write(*id, &mut self.digest, |session| {
                session.lapsed = Some(revision);
                draft.note_session(SessionChange::Lapsed {
                    session: *id,
                    held: session.nodes.len(),
                });
            });
        }
    }

    /// A lapsed session ends with its last node.
    pub(super) fn end_if_spent(&mut self, draft: &mut Draft, id: SessionId) {
        let spent = |session: &Arc<Session>| session.lapsed.is_some() && session.nodes.is_empty();
        if !self.session(id).is_some_and(spent) {
            return;
        }
        if let Some(ended) = self.sessions.remove(id, &mut self.digest) {
            if ended.lost_nodes {
                self.departed.note(id);
            }
            let cause = RemovalCause::Expired;
            draft.note_session(SessionChange::Ended { session: id, cause });
        }
    }

    fn end_sessions(&mut self, draft: &mut Draft, sessions: &[SessionId], cause: RemovalCause) {
        let nodes = self.nodes_of(sessions);
        for id in sessions {
            self.sessions
                .remove(*id, &mut self.digest)
                .expect("the session was found before");
            draft.note_session(SessionChange::Ended { session: *id, cause });
        }
        self.remove_nodes(draft, nodes, cause);
    }

    /// The nodes of these sessions, service by service.
    fn nodes_of(&self, sessions: &[SessionId]) -> BTreeMap<ServiceKey, Vec<NodeId>> {
        let mut nodes: BTreeMap<ServiceKey, Vec<NodeId>> = BTreeMap::new();
        for session in sessions.iter().filter_map(|id| self.session(*id)) {
            for (service, ids) in session.nodes.by_service() {
                let gathered = match nodes.get_mut(service) {
                    Some(gathered) => gathered,
                    None => nodes.entry(service.clone()).or_default(),
                };
                gathered.extend_from_slice(ids);
            }
        }
        nodes
    }
}

/// Where nodes live by records, whoever is heard from again finds all of them again ([`crate::ap`]).
fn remembers_losses(serving: GroupMode) -> bool {
    serving == GroupMode::Cp
}

/// The sessions of the fences that stand, each once and in order, and those of all others.
fn split<F>(
    fences: &[F],
    session: impl Fn(&F) -> SessionId,
    stands: impl Fn(&&F) -> bool,
) -> (Vec<SessionId>, Vec<SessionId>) {
    let mut standing: Vec<SessionId> = fences.iter().filter(stands).map(&session).collect();
    standing.sort_unstable();
    standing.dedup();
    let mut voided: Vec<SessionId> = fences.iter().map(&session).collect();
    voided.retain(|session| standing.binary_search(session).is_err());
    (standing, voided)
}
