//! Commands on services.

use super::command::Expected;
use super::draft::Effect;
use super::outcome::Refusal;
use super::record::{Group, GroupMode, ServiceSettings};
use super::rules;
use super::state::Directory;
use crate::ids::ServiceKey;

impl Directory {
    pub(super) fn on_put_service(
        &mut self,
        key: &ServiceKey,
        settings: Option<&ServiceSettings>,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        if let Some(settings) = settings.filter(|_| self.decides_definitions()) {
            rules::service_settings(&self.limits, settings)?;
        }
        let group = self.require_group(&key.group)?;
        self.require_still(&key.group)?;
        self.check_service(key, expected)?;
        let mut draft = self.draft();
        match (group.services.get(&key.service), settings) {
            (Some(_), None) => return Ok(Effect::nothing()),
            (Some(service), Some(settings)) if service.settings == *settings => return Ok(Effect::nothing()),
            (Some(_), Some(settings)) => {
                self.write_service(&mut draft, key, |service| service.set_settings(settings));
            }
            (None, settings) => {
                if self.decides_definitions() {
                    self.check_services_quota(group, 1)?;
                }
                let settings = settings.unwrap_or(&group.settings.defaults).clone();
                self.create_service(&mut draft, key, &settings);
            }
        }
        Ok(Effect::of(draft))
    }

    pub(super) fn on_delete_service(
        &mut self,
        key: &ServiceKey,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        let service = self.require_service(key)?;
        self.require_still(&key.group)?;
        self.check_service(key, expected)?;
        if !service.nodes.is_empty() {
            let children = format!("{} nodes", service.nodes.len());
            return Err(Refusal::NotEmpty {
                subject: format!("service {key}"),
                children,
            });
        }
        let mut draft = self.draft();
        self.delete_service(&mut draft, key);
        Ok(Effect::of(draft))
    }

    /// Whether it is asked what may be defined. A view of AP groups follows what the log has accepted, under wider limits
    /// perhaps.
    pub(super) fn decides_definitions(&self) -> bool {
        self.serving == GroupMode::Cp
    }

    /// Whether `group` may have `more` services.
    pub(super) fn check_services_quota(&self, group: &Group, more: usize) -> Result<(), Refusal> {
        let quota = match group.settings.services_max {
            0 => self.limits.services_per_group_max,
            own => own,
        };
        if group.services.len() + more > quota as usize {
            let subject = format!("group {}", group.name);
            return Err(Refusal::QuotaExceeded {
                subject,
                quota,
                of: "services".into(),
            });
        }
        Ok(())
    }

    fn check_service(&self, key: &ServiceKey, expected: Expected) -> Result<(), Refusal> {
        rules::expected_settings(
            expected,
            self.service(key).map(|service| service.settings_modified),
            self.revision,
            || format!("service {key}"),
            || Refusal::ServiceNotFound { key: key.clone() },
        )
    }
}
