//! The command on the heartbeat-storm switch.

use std::sync::Arc;

use super::digest;
use super::draft::{Draft, Effect};
use super::outcome::Refusal;
use super::rules;
use super::state::Directory;
use crate::storm::{Mode, Record, Scope};

impl Directory {
    pub(super) fn on_set_storm(
        &mut self,
        scope: &Scope,
        mode: Mode,
        author: &str,
        reason: &str,
    ) -> Result<Effect, Refusal> {
        rules::text(&self.limits, "storm.author", author)?;
        rules::text(&self.limits, "storm.reason", reason)?;
        match (scope, mode) {
            (Scope::Cluster, Mode::Inherited) => {
                return Err(rules::invalid(
                    "storm.mode",
                    "the cluster has nothing to inherit from",
                ));
            }
            (Scope::Group(group), Mode::Inherited) => {
                if self.storm.of(scope).is_none() {
                    self.require_group(group)?;
                    return Ok(Effect::nothing());
                }
            }
            (Scope::Group(group), _) => {
                self.require_group(group)?;
                let quota = self.limits.groups_max;
                if self.storm.of(scope).is_none() && self.storm.groups().len() >= quota as usize {
                    return Err(Refusal::QuotaExceeded {
                        subject: "the cluster".into(),
                        quota,
                        of: "records of the storm switch".into(),
                    });
                }
            }
            (Scope::Cluster, _) => {}
        }
        let mut draft = self.draft();
        let record = Record {
            mode,
            author: author.into(),
            reason: reason.into(),
            set_at: draft.revision,
        };
        self.set_storm(&mut draft, scope, record);
        Ok(Effect::of(draft))
    }

    fn set_storm(&mut self, draft: &mut Draft, scope: &Scope, record: Record) {
        let modes = Arc::make_mut(&mut self.storm);
        if let Some(before) = modes.of(scope) {
            self.digest.take(digest::of_storm(scope, before));
        }
        modes.set(scope, record.clone());
        if let Some(after) = modes.of(scope) {
            self.digest.add(digest::of_storm(scope, after));
        }
        draft.storm = Some(Box::new((scope.clone(), record)));
    }
}
