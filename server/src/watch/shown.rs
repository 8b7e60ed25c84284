//! What a hub shows of its directory: the groups of its mode.
//!
//! The replicated directory holds the definitions of all groups, and a view may hold a group before it is the view's
//! turn to show it; see `docs/decisions/0012-ap-groups.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_core::directory::{ChangeLog, Directory, Group, GroupMode, RevisionChanges, Service};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};

use super::hub::Division;
use super::registration::Target;

/// The part of a directory that a hub shows.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    directory: &'a Directory,
    mode: GroupMode,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(directory: &'a Directory, mode: GroupMode) -> Self {
        Self { directory, mode }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.directory.revision()
    }

    pub(crate) fn changes(&self) -> &'a ChangeLog {
        self.directory.changes()
    }

    /// Whether the group exists and is of the other mode.
    pub(crate) fn hides(&self, group: &GroupName) -> bool {
        let group = self.directory.group(group);
        group.is_some_and(|group| group.settings.mode != self.mode)
    }

    /// The groups that it hides among those of a target.
    pub(crate) fn hidden_of(&self, target: &Target) -> BTreeSet<GroupName> {
        match target {
            Target::Service(key) => self
                .hides(&key.group)
                .then(|| key.group.clone())
                .into_iter()
                .collect(),
            Target::Prefix(_) => {
                let hidden = self.all_hidden().filter(|group| target.touches(&group.name));
                hidden.map(|group| group.name.clone()).collect()
            }
        }
    }

    /// All groups that it hides.
    pub(crate) fn hidden(&self) -> BTreeSet<GroupName> {
        self.all_hidden().map(|group| group.name.clone()).collect()
    }

    fn all_hidden(&self) -> impl Iterator<Item = &'a Arc<Group>> {
        let mode = self.mode;
        self.directory
            .groups()
            .filter(move |group| group.settings.mode != mode)
    }

    /// Whether a service of this group is followed here, or would be if it existed. Those of groups that do not
    /// exist are followed in the replicated directory, which will know first.
    pub(crate) fn follows(&self, group: &GroupName) -> bool {
        let group = self.directory.group(group);
        group.map_or(GroupMode::Cp, |group| group.settings.mode) == self.mode
    }

    /// A group that has gone to the other side, or come from there, since a prefix was divided.
    pub(crate) fn moved_since(&self, prefix: &str, division: &Division) -> Option<GroupName> {
        let ap_groups = &division.ap_groups;
        match self.mode {
            GroupMode::Cp => {
                // One that is new since then, or deleted, was nowhere else before.
                let came = |group: &GroupName| {
                    let group = self.directory.group(group);
                    group.is_some_and(|group| group.settings.mode == GroupMode::Cp)
                };
                let went = |group: &Arc<Group>| {
                    group.settings.mode == GroupMode::Ap
                        && group.created <= division.at
                        && group.settings_modified > division.at
                        && group.name.is_within(prefix)
                        && !ap_groups.contains(&group.name)
                };
                let moved = ap_groups.iter().find(|group| came(group));
                let moved = moved.or_else(|| {
                    let group = self.directory.groups().find(|group| went(group));
                    group.map(|group| &group.name)
                });
                moved.cloned()
            }
            GroupMode::Ap => ap_groups.iter().find(|group| !self.follows(group)).cloned(),
        }
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&'a Arc<Service>> {
        if self.hides(&key.group) {
            return None;
        }
        self.directory.service(key)
    }

    /// The same target, named by the texts that the directory has anyway.
    pub(crate) fn sharing(&self, target: Target) -> Target {
        let Target::Service(key) = target else {
            return target;
        };
        let Some(group) = self.directory.group(&key.group) else {
            return Target::Service(key);
        };
        let service = group.services.get(&key.service);
        Target::Service(ServiceKey {
            group: group.name.clone(),
            service: service.map_or(key.service, |service| service.key.service.clone()),
        })
    }

    /// The services of a target that exist, in the order of their keys.
    pub(crate) fn services(&self, target: &'a Target) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        let mode = self.mode;
        match target {
            Target::Service(key) => Box::new(self.service(key).into_iter()),
            Target::Prefix(prefix) => Box::new(
                self.directory
                    .groups()
                    .filter(move |group| group.settings.mode == mode && group.name.is_within(prefix))
                    .flat_map(|group| group.services.values()),
            ),
        }
    }

    /// How the groups whose settings some revisions changed stand now, which may be later than those revisions.
    pub(crate) fn standings(&self, changes: &[Arc<RevisionChanges>]) -> Standings {
        let names = changes.iter().flat_map(|changes| &changes.groups);
        let standing = |(name, _): &(GroupName, bool)| {
            let group = self.directory.group(name);
            let standing = Standing {
                hidden: self.hides(name),
                followed: self.follows(name),
                created: group.map(|group| group.created),
                settled: group.map_or(Revision(0), |group| group.settings_modified),
            };
            (name.clone(), standing)
        };
        Standings(names.map(standing).collect())
    }
}

/// The AP groups within a prefix that the view shows.
pub(crate) fn shown_within(view: &Directory, prefix: &str) -> Vec<GroupName> {
    let is_ap = |group: &&Arc<Group>| group.settings.mode == GroupMode::Ap;
    let shown = view.groups().filter(is_ap);
    let within = shown.filter(|group| group.name.is_within(prefix));
    within.map(|group| group.name.clone()).collect()
}

/// One of these that is a CP group by now: the view is about to follow.
pub(crate) fn left_behind(raft: &Directory, shown: Vec<GroupName>) -> Option<GroupName> {
    let is_cp = |name: &GroupName| {
        let group = raft.group(name);
        group.is_some_and(|group| group.settings.mode == GroupMode::Cp)
    };
    shown.into_iter().find(is_cp)
}

/// How a group stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) hidden: bool,
    /// See [`Shown::follows`].
    pub(crate) followed: bool,
    /// When it was created; `None`: it does not exist.
    pub(crate) created: Option<Revision>,
    /// Since when it stands like this: of its mode before, nothing is known.
    pub(crate) settled: Revision,
}

/// How some groups stand.
pub(crate) struct Standings(BTreeMap<GroupName, Standing>);

impl Standings {
    pub(crate) fn of(&self, group: &GroupName) -> Option<Standing> {
        self.0.get(group).copied()
    }
}
