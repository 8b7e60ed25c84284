//! Commands on groups.

use super::command::Expected;
use super::draft::Effect;
use super::outcome::Refusal;
use super::record::GroupSettings;
use super::rules;
use super::state::Directory;
use crate::ids::GroupName;

impl Directory {
    pub(super) fn on_put_group(
        &mut self,
        name: &GroupName,
        settings: &GroupSettings,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        if self.decides_definitions() {
            rules::group_settings(&self.limits, settings)?;
        }
        self.require_still(name)?;
        let group = self.group(name);
        self.check_group(name, expected)?;
        match group {
            Some(group) if group.settings == *settings => return Ok(Effect::nothing()),
            Some(group) if group.settings.mode != settings.mode => {
                return Err(rules::invalid(
                    "settings.mode",
                    format!(
                        "is {}, but group {name} is in mode {}; `rollcall group set-mode` moves a group from one mode to \
                         the other",
                        settings.mode, group.settings.mode
                    ),
                ));
            }
            Some(_) => {}
            None if self.decides_definitions() && self.groups.len() >= self.limits.groups_max as usize => {
                return Err(Refusal::QuotaExceeded {
                    subject: "the cluster".into(),
                    quota: self.limits.groups_max,
                    of: "groups".into(),
                });
            }
            None => {}
        }
        let mut draft = self.draft();
        self.put_group(&mut draft, name, settings);
        Ok(Effect::of(draft))
    }

    pub(super) fn on_delete_group(
        &mut self,
        name: &GroupName,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        let group = self.require_group(name)?;
        self.require_still(name)?;
        self.check_group(name, expected)?;
        if !group.services.is_empty() {
            let children = format!("{} services", group.services.len());
            return Err(Refusal::NotEmpty {
                subject: format!("group {name}"),
                children,
            });
        }
        let mut draft = self.draft();
        self.delete_group(&mut draft, name);
        Ok(Effect::of(draft))
    }

    fn check_group(&self, name: &GroupName, expected: Expected) -> Result<(), Refusal> {
        rules::expected_settings(
            expected,
            self.group(name).map(|group| group.settings_modified),
            self.revision,
            || format!("group {name}"),
            || Refusal::GroupNotFound { group: name.clone() },
        )
    }
}
