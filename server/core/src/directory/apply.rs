//! Applying one committed request.

use super::codec::{self, LoggedRequest};
use super::command::{Command, Request};
use super::draft::Effect;
use super::limits::Limits;
use super::outcome::{Applied, Outcome, Refusal};
use super::requests::Remembered;
use super::state::Directory;
use crate::ids::{LogPosition, RequestId};
use crate::mutants::{Mutant, planted};

impl Directory {
    /// Applies a committed request that stands at `at` in the log (several requests of one entry share a
    /// position and are applied in their order). Same log, same answers, same changes, on every server.
    ///
    /// A refused request changed nothing. A request whose id was applied before, and is still remembered, is
    /// answered as it was then and changes nothing.
    pub fn apply(&mut self, at: LogPosition, request: &Request) -> Applied {
        self.apply_once(at, request, codec::fingerprint(&request.command))
    }

    /// The same for a request as it came out of the log.
    pub fn apply_logged(&mut self, at: LogPosition, logged: &LoggedRequest) -> Applied {
        self.apply_once(at, &logged.request, logged.fingerprint)
    }

    fn apply_once(&mut self, at: LogPosition, request: &Request, fingerprint: u128) -> Applied {
        if let Some(result) = self.requests.recall(request.id, fingerprint) {
            return Applied {
                result,
                changes: None,
            };
        }
        let applied = self.apply_unremembered(at, request.id, &request.command);
        if let Ok(outcome) = &applied.result
            && !planted(Mutant::ForgetRequests)
        {
            let remembered = Remembered {
                fingerprint,
                outcome: outcome.clone(),
            };
            let requests_max = self.limits.requests_max as usize;
            self.requests
                .remember(request.id, remembered, requests_max, &mut self.digest);
        }
        self.settle_if_behind();
        applied
    }

    /// Applies what was decided elsewhere once and for all. It is no client's request: no id that a client may choose stands
    /// in its way, nor is one remembered for it.
    pub(crate) fn apply_definition(&mut self, at: LogPosition, command: &Command) -> Applied {
        let applied = self.apply_unremembered(at, RequestId(0), command);
        self.settle_if_behind();
        applied
    }

    fn apply_unremembered(&mut self, at: LogPosition, id: RequestId, command: &Command) -> Applied {
        let effect = match self.carry_out(at, command) {
            Ok(effect) => effect,
            Err(refusal) => {
                return Applied {
                    result: Err(refusal),
                    changes: None,
                };
            }
        };
        let changes = effect.draft.map(|draft| draft.finish(id));
        if let Some(changes) = &changes {
            self.revision = changes.revision;
            self.changes.push(changes.clone());
        }
        let outcome = Outcome {
            revision: self.revision,
            changed: changes.is_some(),
            repeated: false,
            session: effect.session,
            voided: effect.voided,
        };
        Applied {
            result: Ok(outcome),
            changes,
        }
    }

    fn carry_out(&mut self, at: LogPosition, command: &Command) -> Result<Effect, Refusal> {
        match command {
            Command::PutGroup {
                group,
                settings,
                expected,
            } => self.on_put_group(group, settings, *expected),
            Command::DeleteGroup { group, expected } => self.on_delete_group(group, *expected),
            Command::PutService {
                key,
                settings,
                expected,
            } => self.on_put_service(key, settings.as_ref(), *expected),
            Command::DeleteService { key, expected } => self.on_delete_service(key, *expected),
            Command::OpenSession {
                secret_digest,
                ttl_ms,
                client,
            } => self.on_open_session(at, secret_digest, *ttl_ms, client),
            Command::CloseSession { session } => self.on_close_session(*session),
            Command::ExpireSessions {
                term,
                sessions,
                following,
            } => self.on_expire_sessions(at, *term, sessions, following),
            Command::Register { session, nodes } => self.on_register(at, *session, nodes),
            Command::Deregister { session, nodes } => self.on_deregister(at, *session, nodes),
            Command::Update { session, nodes } => self.on_update(at, *session, nodes),
            Command::SetOverride { key, over } => self.on_set_override(key, over),
            Command::ClearOverride { key } => self.on_clear_override(key),
            Command::ExpireOverrides { term, overrides } => self.on_expire_overrides(at, *term, overrides),
            Command::SetLimits { limits } => self.on_set_limits(limits),
            Command::ReviveSessions { term, sessions } => self.on_revive_sessions(at, *term, sessions),
            Command::CloseGuardWindows { term, windows } => self.on_close_guard_windows(at, *term, windows),
            Command::ReleaseHeld { term, holds } => self.on_release_held(at, *term, holds),
            Command::ConfirmRemoval {
                service,
                since,
                author,
                reason,
            } => self.on_confirm_removal(service, *since, author, reason),
            Command::SetStorm {
                scope,
                mode,
                author,
                reason,
            } => self.on_set_storm(scope, *mode, author, reason),
            Command::BeginMove { group, to, stamp_ms } => self.on_begin_move(group, *to, *stamp_ms),
            Command::AdoptNodes {
                group,
                since,
                sessions,
                nodes,
                overrides,
            } => self.on_adopt_nodes(group, *since, sessions, nodes, overrides),
            Command::EndMove { group, since, done } => self.on_end_move(group, *since, *done),
            Command::ChangeGroup {
                group,
                settings,
                fields,
                expected,
            } => self.on_change_group(group, settings, fields, *expected),
            Command::ChangeService {
                key,
                settings,
                fields,
                expected,
            } => self.on_change_service(key, settings, fields, *expected),
        }
    }

    fn on_set_limits(&mut self, limits: &Limits) -> Result<Effect, Refusal> {
        limits.check()?;
        if self.limits == *limits {
            return Ok(Effect::nothing());
        }
        self.limits = limits.clone();
        self.requests
            .forget_beyond(limits.requests_max as usize, &mut self.digest);
        Ok(Effect::of(self.draft()))
    }
}
