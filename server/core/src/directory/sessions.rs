//! Commands on sessions: open, close, expire.

use std::collections::BTreeMap;

use super::command::ExpiryFence;
use super::draft::{Draft, Effect};
use super::outcome::{Refusal, RemovalCause, SessionChange};
use super::record::Session;
use super::rules;
use super::state::Directory;
use crate::ids::{LogPosition, NodeId, ServiceKey, SessionId, Term};

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
            nodes: Vec::new(),
        };
        self.sessions.insert(session, &mut self.digest);
        draft.sessions.push(SessionChange::Opened { session: id, ttl_ms });
        Ok(Effect {
            session: Some(id),
            ..Effect::of(draft)
        })
    }

    pub(super) fn on_close_session(&mut self, session: SessionId) -> Result<Effect, Refusal> {
        self.require_session(session)?;
        let mut draft = self.draft();
        self.end_sessions(&mut draft, &[session], RemovalCause::SessionClosed);
        Ok(Effect::of(draft))
    }

    /// Ends the sessions that are still as the leader saw them, all in one revision.
    pub(super) fn on_expire_sessions(
        &mut self,
        at: LogPosition,
        term: Term,
        fences: &[ExpiryFence],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "sessions", fences.len())?;
        let stands = |fence: &&ExpiryFence| {
            let session = self.session(fence.session);
            at.term == term && session.is_some_and(|session| session.last_renewal == fence.last_renewal)
        };
        let mut expired: Vec<SessionId> = fences.iter().filter(stands).map(|fence| fence.session).collect();
        expired.sort_unstable();
        expired.dedup();
        let mut voided: Vec<SessionId> = fences.iter().map(|fence| fence.session).collect();
        voided.retain(|session| expired.binary_search(session).is_err());
        if expired.is_empty() {
            return Ok(Effect {
                voided,
                ..Effect::nothing()
            });
        }
        let mut draft = self.draft();
        self.end_sessions(&mut draft, &expired, RemovalCause::Expired);
        Ok(Effect {
            voided,
            ..Effect::of(draft)
        })
    }

    /// A session showed life: an expiry judged on what went before is void.
    pub(super) fn note_life(&mut self, at: LogPosition, session: Option<SessionId>) {
        if let Some(session) = session {
            self.sessions.write(session, &mut self.digest, |session| {
                session.last_renewal = at.index
            });
        }
    }

    fn end_sessions(&mut self, draft: &mut Draft, sessions: &[SessionId], cause: RemovalCause) {
        let mut nodes: BTreeMap<ServiceKey, Vec<NodeId>> = BTreeMap::new();
        for id in sessions {
            let session = self
                .sessions
                .remove(*id, &mut self.digest)
                .expect("the session was found before");
            for key in &session.nodes {
                nodes
                    .entry(key.service.clone())
                    .or_default()
                    .push(key.node.clone());
            }
            draft.sessions.push(SessionChange::Ended { session: *id, cause });
        }
        self.remove_nodes(draft, nodes, cause);
    }
}
