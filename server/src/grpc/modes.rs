//! Which side a call belongs to: the Raft directory, or this server's view of the AP groups.
//!
//! What a group is, its mode too, is in the Raft directory, which every server reads without a quorum. So a door
//! decides here and now; what it does not know it asks the leader about, within a bound.

use std::sync::Arc;
use std::time::Duration;

use rollcall_core::directory::{Command, Directory, Group, GroupMode, Refusal, Service};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_proto::v1::{self, ReadMode, ResponseHeader};
use tokio::time::Instant;

use super::convert::milliseconds;
use super::read::{AGE_UNKNOWN, Grounds, Reader};
use super::status::{DoorError, of_refusal};
use crate::raft::Freshness;

/// How long a call waits for a definition that this server, or its view, does not have yet.
const LEARN_WAIT: Duration = Duration::from_secs(1);

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the log.
    Raft,
    /// To this server's view.
    View,
    /// None of its groups is known here.
    Unknown,
}

/// A group as a list shows it.
pub(crate) struct Shown {
    /// What it is: from the Raft directory.
    pub(crate) definition: Arc<Group>,
    /// What is in it: of an AP group, from the view.
    pub(crate) content: Arc<Group>,
}

/// What a list is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// Nothing but AP groups: no leader is asked.
    View,
    /// The Raft directory, and the view for what AP groups there are.
    Both(Grounds),
}

/// The services whose nodes a command writes; none for commands of other kinds.
pub(crate) fn services_of(command: &Command) -> Vec<&ServiceKey> {
    let mut services = match command {
        Command::Register { nodes, .. } => nodes.iter().map(|node| &node.key).collect(),
        Command::Deregister { nodes, .. } => nodes.iter().map(|node| &node.key.service).collect(),
        Command::Update { nodes, .. } => nodes.iter().map(|node| &node.key.service).collect(),
        Command::SetOverride { key, .. } | Command::ClearOverride { key } => vec![&key.service],
        Command::ConfirmRemoval { service, .. } => vec![service],
        // Definitions, sessions, and what only the leader says.
        _ => Vec::new(),
    };
    services.dedup();
    services
}

/// A service, or what is missing of it.
pub(crate) fn find(directory: &Directory, key: &ServiceKey) -> Result<Arc<Service>, Refusal> {
    match directory.group(&key.group) {
        None => Err(Refusal::GroupNotFound {
            group: key.group.clone(),
        }),
        Some(group) => match group.services.get(&key.service) {
            Some(service) => Ok(service.clone()),
            None => Err(Refusal::ServiceNotFound { key: key.clone() }),
        },
    }
}

impl Reader {
    /// Where a write of nodes of these services goes, as far as this server knows.
    pub(crate) fn route(&self, services: &[&ServiceKey]) -> Result<Route, v1::Error> {
        let directory = self.consensus().directory().read();
        let (mut cp, mut ap): (Option<&GroupName>, Option<&GroupName>) = (None, None);
        for key in services {
            match directory.group(&key.group).map(|group| group.settings.mode) {
                Some(GroupMode::Cp) => cp = Some(&key.group),
                Some(GroupMode::Ap) => ap = Some(&key.group),
                None => {}
            }
        }
        match (cp, ap) {
            (Some(cp), Some(ap)) => Err(DoorError::MixedModes {
                cp: cp.clone(),
                ap: ap.clone(),
            }
            .into()),
            (Some(_), None) => Ok(Route::Raft),
            (None, Some(_)) => Ok(Route::View),
            (None, None) if services.is_empty() => Ok(Route::Raft),
            (None, None) => Ok(Route::Unknown),
        }
    }

    /// The same; of what is not known here the leader is asked first.
    pub(crate) async fn route_surely(
        &self,
        services: &[&ServiceKey],
        deadline: Instant,
    ) -> Result<Route, v1::Error> {
        match self.route(services)? {
            Route::Unknown => {
                self.ask_for_definitions(deadline).await;
                self.route(services)
            }
            known @ (Route::Raft | Route::View) => Ok(known),
        }
    }

    /// The mode of a group; `None`: it is not known here.
    pub(crate) fn mode_of(&self, group: &GroupName) -> Option<GroupMode> {
        let directory = self.consensus().directory().read();
        directory.group(group).map(|group| group.settings.mode)
    }

    /// Waits, within a bound, until the view has these services, if they are defined anywhere.
    pub(crate) async fn learn(&self, services: &[&ServiceKey], deadline: Instant) {
        if self.view_has(services) {
            return;
        }
        let bound = deadline.min(Instant::now() + LEARN_WAIT);
        self.ask_for_definitions(bound).await;
        Box::pin(self.taken_over(bound, || self.view_has_defined(services))).await;
    }

    /// Waits, within a bound, until the view has taken these groups over, and may be shown with them.
    pub(crate) async fn learn_groups(
        &self,
        groups: &[GroupName],
        deadline: Instant,
    ) -> Result<(), v1::Error> {
        let lacking = || {
            let view = self.ap().view().read();
            groups.iter().find(|group| view.group(group).is_none()).cloned()
        };
        self.taken_over(deadline.min(Instant::now() + LEARN_WAIT), || lacking().is_none())
            .await;
        match lacking() {
            // One that came just now may have come without what is in it.
            None => self.check_view_ready(),
            Some(group) => Err(not_taken_over(&group)),
        }
    }

    /// Waits until something is in the view.
    async fn taken_over(&self, bound: Instant, there: impl Fn() -> bool) {
        let mut head = self.ap().applied_head();
        // Marked as seen before each look, so that no news is missed between the look and the wait.
        head.mark_unchanged();
        while !there() {
            match tokio::time::timeout_at(bound, head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// After it this server knows every definition that was acknowledged before, unless there is no quorum.
    async fn ask_for_definitions(&self, deadline: Instant) {
        if !self.consensus().hears_leader() {
            return;
        }
        let bound = deadline.min(Instant::now() + LEARN_WAIT);
        // Few come here, and what waits is large: every write would have to make room for it.
        let asked = Box::pin(self.consensus().confirm(Freshness::Linearizable, bound));
        if let Err(error) = asked.await {
            tracing::debug!(%error, "definitions could not be asked for");
        }
    }

    /// Whether the view has these services, or would create them.
    fn view_has(&self, services: &[&ServiceKey]) -> bool {
        if services
            .iter()
            .all(|key| self.ap().creates_services_of(&key.group))
        {
            return true;
        }
        let view = self.ap().view().read();
        services.iter().all(|key| {
            view.group(&key.group)
                .is_some_and(|group| group.settings.auto_create || group.services.contains_key(&key.service))
        })
    }

    /// Whether the view has those of these services that the Raft directory defines as AP.
    fn view_has_defined(&self, services: &[&ServiceKey]) -> bool {
        // The two locks are never held together.
        let defined: Vec<(&ServiceKey, bool)> = {
            let directory = self.consensus().directory().read();
            let defined = services.iter().filter_map(|key| {
                let group = directory.group(&key.group)?;
                (group.settings.mode == GroupMode::Ap)
                    .then(|| (*key, group.services.contains_key(&key.service)))
            });
            defined.collect()
        };
        let view = self.ap().view().read();
        defined.into_iter().all(|(key, service)| {
            view.group(&key.group)
                .is_some_and(|group| !service || group.services.contains_key(&key.service))
        })
    }

    /// Whether the view may be shown, or written to.
    pub(crate) fn check_view_ready(&self) -> Result<(), v1::Error> {
        let reason = if self.consensus().is_diverged() {
            "its state differs from the leader's (RC-110)"
        } else if !self.ap().is_loaded() {
            "it has not loaded its AP groups yet"
        } else {
            return Ok(());
        };
        Err(DoorError::NotReady {
            reason: reason.into(),
        }
        .into())
    }

    /// Leave to read the view. There is no quorum to ask: whatever freshness is wished, the answer is local and says so.
    /// Only a bound on the age, and a revision of this very epoch, can be asked for.
    pub(crate) async fn admit_view(&self, options: Option<&v1::ReadOptions>) -> Result<(), v1::Error> {
        self.check_view_ready()?;
        let Some(options) = options else { return Ok(()) };
        // Who is too old already is not waited for.
        self.check_view_age(options)?;
        if options.min_revision > 0 && options.epoch == self.ap().epoch() {
            let revision = Revision(options.min_revision);
            let mut head = self.ap().applied_head();
            let reached = head.wait_for(|head| head.revision >= revision);
            if !matches!(tokio::time::timeout(self.timeout(), reached).await, Ok(Ok(_))) {
                let at = self.ap().view().read().revision();
                let problem = format!("revision {revision} has not been reached here, which is at {at}");
                return Err(DoorError::TooStale { problem }.into());
            }
        }
        // Again: it is the age of what is shown, however long the revision took to come.
        self.check_view_age(options)
    }

    /// Whether what this server knows of AP groups is as young as a local read wants it.
    fn check_view_age(&self, options: &v1::ReadOptions) -> Result<(), v1::Error> {
        if options.mode() == ReadMode::Local && options.max_age_ms > 0 {
            let age_ms = self.view_age_ms();
            if age_ms > options.max_age_ms {
                let age = if age_ms == AGE_UNKNOWN {
                    "has not agreed with another server on its AP groups".into()
                } else {
                    format!("agreed with another server on its AP groups {age_ms} ms ago")
                };
                let problem = format!("this server {age}, at most {} ms is accepted", options.max_age_ms);
                return Err(DoorError::TooStale { problem }.into());
            }
        }
        Ok(())
    }

    /// What an answer from the view says of itself.
    pub(crate) fn view_header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            read_mode: ReadMode::Local.into(),
            age_ms: self.view_age_ms(),
            ..self.view_write_header(revision)
        }
    }

    /// What the answer to a write to the view says of itself.
    pub(crate) fn view_write_header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            revision: revision.0,
            epoch: self.ap().epoch(),
            mode: v1::GroupMode::Ap.into(),
            ..self.identity()
        }
    }

    /// How long ago this server agreed with another on all AP groups. A server without others has nobody to lag.
    fn view_age_ms(&self) -> u64 {
        if self.consensus().members().len() == 1 {
            return 0;
        }
        self.ap().agreed().map_or(AGE_UNKNOWN, milliseconds)
    }

    /// One service, as fresh as asked, and what the answer says of itself.
    pub(crate) async fn service(
        &self,
        options: Option<&v1::ReadOptions>,
        key: &ServiceKey,
    ) -> Result<(Arc<Service>, ResponseHeader), v1::Error> {
        if self.mode_of(&key.group) != Some(GroupMode::Ap) {
            let grounds = self.admit(options).await?;
            // Its mode may be known only now.
            if let Some(found) = self.service_at_once(grounds, key) {
                return found;
            }
        }
        self.admit_view(options).await?;
        if options.is_none_or(|options| options.mode() != ReadMode::Local) {
            self.learn(&[key], Instant::now() + self.timeout()).await;
        }
        self.learn_groups(std::slice::from_ref(&key.group), Instant::now() + self.timeout())
            .await?;
        options.map_or(Ok(()), |options| self.check_view_age(options))?;
        let (service, revision) = {
            let view = self.ap().view().read();
            (find(&view, key).map_err(|e| of_refusal(&e))?, view.revision())
        };
        Ok((service, self.view_header(revision)))
    }

    /// One service of the Raft directory; `None`: its group is in mode ap. The mode and the nodes are read under one lock:
    /// a group that moves to gossip leaves the directory empty.
    pub(crate) fn service_at_once(
        &self,
        grounds: Grounds,
        key: &ServiceKey,
    ) -> Option<Result<(Arc<Service>, ResponseHeader), v1::Error>> {
        let (found, revision) = {
            let directory = self.consensus().directory().read();
            let group = directory.group(&key.group);
            if group.is_some_and(|group| group.settings.mode == GroupMode::Ap) {
                return None;
            }
            (find(&directory, key), directory.revision())
        };
        let shown = found.map(|service| (service, self.header(grounds, revision)));
        Some(shown.map_err(|refusal| of_refusal(&refusal)))
    }

    /// Leave to list the groups that `asked` picks. If all of those are AP groups, no leader is asked, unless there may be
    /// `others` that this server does not know.
    pub(crate) async fn admit_list(
        &self,
        options: Option<&v1::ReadOptions>,
        asked: impl Fn(&Group) -> bool,
        others: bool,
    ) -> Result<Part, v1::Error> {
        let deadline = Instant::now() + self.timeout();
        // What may take its time goes first, ages are judged behind it.
        let (cp, learnt) = self.picked(&asked);
        if !learnt.is_empty() {
            self.check_view_ready()?;
            self.learn_groups(&learnt, deadline).await?;
        }
        let part = if cp || others {
            Part::Both(self.admit(options).await?)
        } else {
            Part::View
        };
        // The leader may have told of more.
        let (_, ap) = self.picked(&asked);
        if ap.iter().any(|group| !learnt.contains(group)) {
            self.check_view_ready()?;
            self.learn_groups(&ap, deadline).await?;
        }
        if !ap.is_empty() {
            match part {
                Part::View => self.admit_view(options).await?,
                Part::Both(_) => {
                    self.check_view_ready()?;
                    options.map_or(Ok(()), |options| self.check_view_age(options))?;
                }
            }
        }
        Ok(part)
    }

    /// Whether the leader must be asked about what `asked` picks, and which AP groups are among it.
    fn picked(&self, asked: &impl Fn(&Group) -> bool) -> (bool, Vec<GroupName>) {
        let directory = self.consensus().directory().read();
        let (mut cp, mut ap) = (false, Vec::new());
        for group in directory.groups().filter(|group| asked(group)) {
            match group.settings.mode {
                GroupMode::Cp => cp = true,
                GroupMode::Ap => ap.push(group.name.clone()),
            }
        }
        (cp || ap.is_empty(), ap)
    }

    /// The groups that `asked` picks, in the order of their names, and what the answer says of itself.
    ///
    /// # Errors
    /// One of them has moved to gossip since leave was given, and is not to be shown yet.
    pub(crate) fn groups(
        &self,
        part: Part,
        asked: impl Fn(&Group) -> bool,
    ) -> Result<(Vec<Shown>, ResponseHeader), v1::Error> {
        let shown = |group: &Arc<Group>| Shown {
            definition: group.clone(),
            content: group.clone(),
        };
        let (mut groups, revision) = {
            let directory = self.consensus().directory().read();
            let groups: Vec<Shown> = directory
                .groups()
                .filter(|group| asked(group))
                .map(shown)
                .collect();
            (groups, directory.revision())
        };
        let in_view = |group: &Shown| group.definition.settings.mode == GroupMode::Ap;
        if !groups.iter().any(in_view)
            && let Part::Both(grounds) = part
        {
            return Ok((groups, self.header(grounds, revision)));
        }
        // The lock is left before the header is made: what that asks for has locks of its own.
        let view_revision = {
            let view = self.ap().view().read();
            for group in groups.iter_mut().filter(|group| in_view(group)) {
                let defined = &group.definition;
                match view.group(&defined.name) {
                    Some(content) => group.content = content.clone(),
                    // It has had no other mode, and was created a moment ago: there is nothing in it.
                    None if defined.settings_modified == defined.created => {}
                    None => return Err(not_taken_over(&defined.name)),
                }
            }
            view.revision()
        };
        self.check_view_ready()?;
        let header = match part {
            Part::View => self.view_header(view_revision),
            // No leader was asked about AP groups: the whole is as old as its older part.
            Part::Both(grounds) => {
                let header = self.header(grounds, revision);
                ResponseHeader {
                    epoch: self.ap().epoch(),
                    age_ms: header.age_ms.max(self.view_age_ms()),
                    ..header
                }
            }
        };
        Ok((groups, header))
    }
}

/// The group is one of mode ap, and the view does not have it yet: it is not empty.
pub(crate) fn not_taken_over(group: &GroupName) -> v1::Error {
    DoorError::NotReady {
        reason: format!("it has yet to take group {group} over"),
    }
    .into()
}

/// The group has moved to Raft, and this server's view has yet to learn of it.
pub(crate) fn not_handed_over(group: &GroupName) -> v1::Error {
    DoorError::NotReady {
        reason: format!("it has yet to hand group {group} over"),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_belong_to_no_side_of_their_own() {
        let key = ServiceKey {
            group: "g".parse().unwrap(),
            service: "s".parse().unwrap(),
        };
        let put = Command::PutService {
            key: key.clone(),
            settings: None,
            expected: rollcall_core::directory::Expected::Any,
        };
        assert!(services_of(&put).is_empty());
        let confirm = Command::ConfirmRemoval {
            service: key.clone(),
            since: None,
            author: String::new(),
            reason: String::new(),
        };
        assert_eq!(services_of(&confirm), [&key]);
    }
}
