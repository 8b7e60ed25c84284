//! Settings one by one: a write that names some of them leaves the others as they are.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::command::Expected;
use super::draft::Effect;
use super::outcome::Refusal;
use super::record::{GroupSettings, ServiceSettings};
use super::state::Directory;
use crate::ids::{GroupName, ServiceKey};

/// One of a service's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceField {
    /// [`ServiceSettings::default_kind`]
    DefaultKind,
    /// [`ServiceSettings::metadata`], all of it.
    Metadata,
    /// [`ServiceSettings::nodes_max`]
    NodesMax,
    /// The removal guard's share.
    GuardShare,
    /// The removal guard's window.
    GuardWindow,
    /// Whether the removal guard keeps the last node.
    GuardKeepLast,
    /// How long the removal guard holds.
    GuardHoldMax,
}

/// One of a group's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GroupField {
    /// [`GroupSettings::mode`]
    Mode,
    /// [`GroupSettings::auto_create`]
    AutoCreate,
    /// [`GroupSettings::services_max`]
    ServicesMax,
    /// [`GroupSettings::metadata`], all of it.
    Metadata,
    /// [`GroupSettings::admission`], all of it.
    Admission,
    /// One of [`GroupSettings::defaults`].
    Default(ServiceField),
    /// The networks of [`GroupSettings::admission`].
    AdmissionCidrs,
    /// Its scopes.
    AdmissionScopes,
    /// Its environments.
    AdmissionEnvironments,
    /// Whether it only reports.
    AdmissionDryRun,
}

impl ServiceField {
    fn copy(self, from: &ServiceSettings, to: &mut ServiceSettings) {
        match self {
            Self::DefaultKind => to.default_kind = from.default_kind,
            Self::Metadata => to.metadata.clone_from(&from.metadata),
            Self::NodesMax => to.nodes_max = from.nodes_max,
            Self::GuardShare => to.guard.share = from.guard.share,
            Self::GuardWindow => to.guard.window_ms = from.guard.window_ms,
            Self::GuardKeepLast => to.guard.keep_last = from.guard.keep_last,
            Self::GuardHoldMax => to.guard.hold_max_ms = from.guard.hold_max_ms,
        }
    }
}

impl GroupField {
    fn copy(self, from: &GroupSettings, to: &mut GroupSettings) {
        match self {
            Self::Mode => to.mode = from.mode,
            Self::AutoCreate => to.auto_create = from.auto_create,
            Self::ServicesMax => to.services_max = from.services_max,
            Self::Metadata => to.metadata.clone_from(&from.metadata),
            Self::Admission => to.admission.clone_from(&from.admission),
            Self::Default(field) => field.copy(&from.defaults, &mut to.defaults),
            Self::AdmissionCidrs => to.admission.cidrs.clone_from(&from.admission.cidrs),
            Self::AdmissionScopes => to.admission.scopes.clone_from(&from.admission.scopes),
            Self::AdmissionEnvironments => {
                to.admission.environments.clone_from(&from.admission.environments);
            }
            Self::AdmissionDryRun => to.admission.dry_run = from.admission.dry_run,
        }
    }
}

impl Directory {
    pub(super) fn on_change_group(
        &mut self,
        name: &GroupName,
        settings: &GroupSettings,
        fields: &BTreeSet<GroupField>,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        let held = self.group(name).map(|group| &group.settings);
        let mut changed = held.cloned().unwrap_or_default();
        fields.iter().for_each(|field| field.copy(settings, &mut changed));
        self.on_put_group(name, &changed, expected)
    }

    pub(super) fn on_change_service(
        &mut self,
        key: &ServiceKey,
        settings: &ServiceSettings,
        fields: &BTreeSet<ServiceField>,
        expected: Expected,
    ) -> Result<Effect, Refusal> {
        let group = self.require_group(&key.group)?;
        let held = group.services.get(&key.service).map(|service| &service.settings);
        let mut changed = held.unwrap_or(&group.settings.defaults).clone();
        fields.iter().for_each(|field| field.copy(settings, &mut changed));
        self.on_put_service(key, Some(&changed), expected)
    }
}
