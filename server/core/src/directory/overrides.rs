//! Commands on overrides: set, clear, expire.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draft::{Draft, Effect};
use super::outcome::Refusal;
use super::record::Override;
use super::rules;
use super::state::Directory;
use crate::ids::{LogPosition, NodeId, NodeKey, Revision, ServiceKey, Term};

impl Directory {
    pub(super) fn on_set_override(&mut self, key: &NodeKey, over: &Override) -> Result<Effect, Refusal> {
        rules::over(&self.limits, over)?;
        let service = self.require_writable_service(&key.service)?;
        let before = service.overrides.get(&key.node);
        let quota = self.limits.overrides_per_service_max;
        if before.is_none() && service.overrides.len() >= quota as usize {
            let subject = format!("service {}", key.service);
            return Err(Refusal::QuotaExceeded {
                subject,
                quota,
                of: "overrides".into(),
            });
        }
        // Setting a ttl again starts it again, so only an override without one can be "the same".
        if before.is_some_and(|before| {
            over.ttl_ms == 0
                && **before
                    == Override {
                        set_at: before.set_at,
                        ..over.clone()
                    }
        }) {
            return Ok(Effect::nothing());
        }
        let was_timed = before.is_some_and(|before| before.ttl_ms > 0);
        let mut draft = self.draft();
        let over = Arc::new(Override {
            set_at: draft.revision,
            ..over.clone()
        });
        self.write_service(&mut draft, &key.service, |service| {
            service.set_override(&key.node, Some(&over))
        });
        if over.ttl_ms > 0 {
            draft.overrides.push((key.clone(), Some(over)));
        } else if was_timed {
            draft.overrides.push((key.clone(), None));
        }
        Ok(Effect::of(draft))
    }

    pub(super) fn on_clear_override(&mut self, key: &NodeKey) -> Result<Effect, Refusal> {
        if !self
            .require_writable_service(&key.service)?
            .overrides
            .contains_key(&key.node)
        {
            return Ok(Effect::nothing());
        }
        let mut draft = self.draft();
        self.clear_overrides(
            &mut draft,
            BTreeMap::from([(key.service.clone(), vec![key.node.clone()])]),
        );
        Ok(Effect::of(draft))
    }

    pub(super) fn on_expire_overrides(
        &mut self,
        at: LogPosition,
        term: Term,
        overrides: &[(NodeKey, Revision)],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "overrides", overrides.len())?;
        let mut expired: BTreeMap<ServiceKey, Vec<NodeId>> = BTreeMap::new();
        for (key, set_at) in overrides {
            let over = self
                .service(&key.service)
                .and_then(|service| service.overrides.get(&key.node));
            let stands = over.is_some_and(|over| over.set_at == *set_at && over.ttl_ms > 0);
            let ids = expired.get(&key.service);
            let stands = stands && !self.is_moving(&key.service);
            if at.term == term && stands && !ids.is_some_and(|ids| ids.contains(&key.node)) {
                expired
                    .entry(key.service.clone())
                    .or_default()
                    .push(key.node.clone());
            }
        }
        if expired.is_empty() {
            return Ok(Effect::nothing());
        }
        let mut draft = self.draft();
        self.clear_overrides(&mut draft, expired);
        Ok(Effect::of(draft))
    }

    fn clear_overrides(&mut self, draft: &mut Draft, overrides: BTreeMap<ServiceKey, Vec<NodeId>>) {
        for (key, ids) in overrides {
            self.write_service(draft, &key, |service| {
                for id in &ids {
                    service.set_override(id, None);
                }
            });
            for node in ids {
                draft.overrides.push((
                    NodeKey {
                        service: key.clone(),
                        node,
                    },
                    None,
                ));
            }
        }
    }
}
