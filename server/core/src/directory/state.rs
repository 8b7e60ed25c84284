//! The directory's state: what is read from it, and the few writes from which every command is made.
//!
//! Invariant: every write goes through here and keeps up the signs, the counts, the state digest and the
//! revision's draft together. A command checks everything first and then writes without a way to fail.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::changelog::{ChangeLog, ChangeLogBounds};
use super::departed::Departed;
use super::digest::{self, StateDigest};
use super::draft::{Draft, ServiceDraft};
use super::limits::Limits;
use super::moves::moving_refusal;
use super::outcome::{NodeChange, Refusal, RemovalCause, ServiceFate};
use super::record::{
    Group, GroupMode, GroupSettings, Node, NodeState, Override, Service, ServiceSettings, Session,
};
use super::requests::RequestTable;
use super::session_table::SessionTable;
use super::sign::Sign;
use super::tombstone::{Tombstone, Tombstones};
use crate::guard::{Ending, GuardSettings, HoldReason, Ledger, Verdict};
use crate::ids::{GroupName, Incarnation, NodeId, NodeKey, Revision, ServiceKey, SessionId};
use crate::mutants::{Mutant, planted};
use crate::storm::Modes;

/// The replicated state: who offers what, as of which revision.
///
/// A clone is cheap (it shares everything) and never changes; what it shares is copied piece by piece as the
/// original is written.
#[derive(Clone, Debug)]
pub struct Directory {
    pub(super) limits: Limits,
    /// Groups of which mode keep their nodes here. Fixed by what the directory is used for, so no part of what is
    /// replicated.
    pub(super) serving: GroupMode,
    pub(super) revision: Revision,
    pub(super) groups: Arc<BTreeMap<GroupName, Arc<Group>>>,
    pub(super) sessions: SessionTable,
    /// What this server saw, so no part of what is replicated.
    pub(super) departed: Departed,
    /// The last session id given out.
    pub(super) last_session: SessionId,
    /// Services that come back start above this.
    pub(super) incarnation_floor: Incarnation,
    pub(super) requests: RequestTable,
    pub(super) storm: Arc<Modes>,
    pub(super) digest: StateDigest,
    pub(super) totals: Totals,
    pub(super) changes: ChangeLog,
}

/// How much there is. Kept up with every write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Groups.
    pub groups: u64,
    /// Services of all groups.
    pub services: u64,
    /// Nodes of all services.
    pub nodes: u64,
    /// Overrides of all services.
    pub overrides: u64,
    /// Sessions.
    pub sessions: u64,
    /// Requests remembered.
    pub requests: u64,
    /// Nodes held by removal guards.
    pub held: u64,
    /// Services whose removal guard is engaged.
    pub engaged: u64,
}

impl Totals {
    /// A service's ledger was `before` and is `after`.
    pub(super) fn note_ledger(&mut self, before: &Ledger, after: &Ledger) {
        let engaged = |ledger: &Ledger| u64::from(ledger.engaged().is_some());
        self.held = self.held - u64::from(before.held()) + u64::from(after.held());
        self.engaged = self.engaged - engaged(before) + engaged(after);
    }
}

impl Directory {
    /// An empty directory at revision 0. Every server of a cluster must pass the same limits, for they are
    /// part of the replicated state.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            serving: GroupMode::default(),
            revision: Revision::default(),
            groups: Arc::default(),
            sessions: SessionTable::default(),
            departed: Departed::default(),
            last_session: SessionId::default(),
            incarnation_floor: Incarnation::default(),
            requests: RequestTable::default(),
            storm: Arc::default(),
            digest: StateDigest::default(),
            totals: Totals::default(),
            changes: ChangeLog::starting_at(Revision::default(), ChangeLogBounds::default()),
        }
    }

    /// Sets how much the change log keeps. This server's own matter: it changes nothing that is replicated.
    #[must_use]
    pub fn with_change_log(mut self, bounds: ChangeLogBounds) -> Self {
        self.changes.bound(bounds);
        self
    }

    /// Sets of which mode the groups are whose nodes are written here: those of mode `cp`, if it is never said.
    /// Other groups may be defined here too, but their nodes are refused.
    #[must_use]
    pub fn serving(mut self, mode: GroupMode) -> Self {
        self.serving = mode;
        self
    }

    /// The bounds in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The revision of the last change; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How much there is; O(1).
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            sessions: self.sessions.len() as u64,
            requests: self.requests.len() as u64,
            groups: self.groups.len() as u64,
            ..self.totals
        }
    }

    /// One group with its services.
    #[must_use]
    pub fn group(&self, name: &GroupName) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    /// All groups, in the order of their names.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// One service with its nodes.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.groups.get(&key.group)?.services.get(&key.service)
    }

    /// One node, its lower layer.
    #[must_use]
    pub fn node(&self, key: &NodeKey) -> Option<&Arc<Node>> {
        self.service(&key.service)?.nodes.get(&key.node)
    }

    /// One session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Arc<Session>> {
        self.sessions.of(id)
    }

    /// All sessions, in the order of their ids.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.iter()
    }

    /// Those with a greater id than this, in order. Costs what is taken, not what comes before.
    pub fn sessions_after(&self, id: SessionId) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.after(id)
    }

    /// The overrides that clear themselves after a time, in the order of their keys: what a new leader starts
    /// its countdowns from. Walks all services.
    pub fn timed_overrides(&self) -> impl Iterator<Item = (NodeKey, &Arc<Override>)> {
        let services = self.groups.values().flat_map(|group| group.services.values());
        services.flat_map(|service| {
            let timed = service.overrides.iter().filter(|(_, over)| over.ttl_ms > 0);
            timed.map(|(id, over)| {
                (
                    NodeKey {
                        service: service.key.clone(),
                        node: id.clone(),
                    },
                    over,
                )
            })
        })
    }

    /// The services whose removal guard has a window under way or holds nodes, in the order of their keys: what
    /// a new leader starts its countdowns from, and what is to be shown. Walks all services.
    pub fn guarded_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let services = self.groups.values().flat_map(|group| group.services.values());
        services.filter(|service| !service.guard.is_idle())
    }

    /// The longest ttl of the sessions that own a service's held nodes, in milliseconds: how long nodes left
    /// over by a guard that disengaged may still return before they are released. `None`: nothing is held.
    #[must_use]
    pub fn held_ttl_ms(&self, key: &ServiceKey) -> Option<u32> {
        let service = self.service(key)?;
        let held = service
            .nodes
            .values()
            .filter(|node| node.state == NodeState::Suspect);
        let owners = held.filter_map(|node| self.sessions.of(node.session()?));
        owners.map(|session| session.ttl_ms).max()
    }

    /// How the heartbeat-storm switch is set. The same pointer as before: nothing changed.
    #[must_use]
    pub fn storm(&self) -> &Arc<Modes> {
        &self.storm
    }

    /// The last changes.
    #[must_use]
    pub fn changes(&self) -> &ChangeLog {
        &self.changes
    }

    /// Hash of the whole replicated state. Equal on all servers that applied the same log up to the same entry,
    /// whatever snapshots they took or started from. Takes some time for each record that was written since
    /// [`Self::settle`], of which there are at most some thousand.
    #[must_use]
    pub fn state_hash(&self) -> u128 {
        let counters = (
            self.revision,
            self.last_session,
            self.incarnation_floor,
            &self.limits,
        );
        let records = self.digest.sum().wrapping_add(self.hash_open());
        digest::record_hash(0, &(records, counters))
    }

    /// Does ahead what [`Self::state_hash`] would do each time. Changes nothing that is replicated.
    pub fn settle(&mut self) {
        let hashes = self.hash_open();
        self.digest.settle(hashes, self.revision);
    }

    /// The same once it is worth it.
    pub(super) fn settle_if_behind(&mut self) {
        if self.digest.is_behind() {
            self.settle();
        }
    }

    /// Sum of the hashes of the records that are not counted in the digest.
    fn hash_open(&self) -> u128 {
        const THERE: &str = "an open record is there, or it would have been closed when it went";
        let open = self.digest.open();
        let groups = open.groups.iter().map(|name| self.group(name).expect(THERE));
        let services = open.services.iter().map(|key| self.service(key).expect(THERE));
        let sessions = open.sessions.iter().map(|id| self.session(*id).expect(THERE));
        let groups = groups.map(|group| digest::of_group(group));
        let services = services.map(|service| digest::of_service(service));
        let sessions = sessions.map(|session| digest::of_session(session));
        groups.chain(services).chain(sessions).fold(0, u128::wrapping_add)
    }

    pub(super) fn require_group(&self, name: &GroupName) -> Result<&Arc<Group>, Refusal> {
        self.groups
            .get(name)
            .ok_or_else(|| Refusal::GroupNotFound { group: name.clone() })
    }

    pub(super) fn require_service(&self, key: &ServiceKey) -> Result<&Arc<Service>, Refusal> {
        let group = self.require_group(&key.group)?;
        group
            .services
            .get(&key.service)
            .ok_or_else(|| Refusal::ServiceNotFound { key: key.clone() })
    }

    /// A group whose nodes are written here.
    pub(super) fn require_writable_group(&self, name: &GroupName) -> Result<&Arc<Group>, Refusal> {
        let group = self.require_group(name)?;
        if group.moving.is_some() && !planted(Mutant::UnfrozenMove) {
            Err(moving_refusal(name))
        } else if group.settings.mode == self.serving {
            Ok(group)
        } else {
            Err(Refusal::OtherMode {
                group: name.clone(),
                mode: group.settings.mode,
            })
        }
    }

    /// A service whose nodes are written here.
    pub(super) fn require_writable_service(&self, key: &ServiceKey) -> Result<&Arc<Service>, Refusal> {
        self.require_writable_group(&key.group)?;
        self.require_service(key)
    }

    pub(super) fn require_session(&self, id: SessionId) -> Result<&Arc<Session>, Refusal> {
        self.sessions
            .of(id)
            .ok_or(Refusal::SessionNotFound { session: id })
    }

    /// The draft of the next revision.
    pub(super) fn draft(&self) -> Draft {
        Draft::of(self.revision.next())
    }

    /// Creates a group, or replaces its settings.
    pub(super) fn put_group(&mut self, draft: &mut Draft, name: &GroupName, settings: &GroupSettings) {
        draft.groups.insert(name.clone(), true);
        let groups = Arc::make_mut(&mut self.groups);
        let group = groups.entry(name.clone()).or_insert_with(|| {
            Arc::new(Group {
                name: name.clone(),
                settings: settings.clone(),
                services: BTreeMap::new(),
                sign: Sign::default(),
                nodes: 0,
                created: draft.revision,
                modified: draft.revision,
                settings_modified: draft.revision,
                moving: None,
            })
        });
        if group.created == draft.revision {
            self.digest.group_came(name);
            return;
        }
        self.digest.open_group(group);
        let group = Arc::make_mut(group);
        group.settings = settings.clone();
        group.modified = draft.revision;
        group.settings_modified = draft.revision;
    }

    /// Deletes a group that has no services.
    pub(super) fn delete_group(&mut self, draft: &mut Draft, name: &GroupName) {
        draft.groups.insert(name.clone(), false);
        if let Some(group) = Arc::make_mut(&mut self.groups).remove(name) {
            self.digest.group_went(&group);
        }
    }

    /// Changes a group that is there.
    pub(super) fn write_group(&mut self, name: &GroupName, write: impl FnOnce(&mut Group)) {
        let groups = Arc::make_mut(&mut self.groups);
        let group = Arc::make_mut(groups.get_mut(name).expect("the group was found before"));
        self.digest.open_group(group);
        write(group);
    }

    /// Creates a service in a group that is there.
    pub(super) fn create_service(&mut self, draft: &mut Draft, key: &ServiceKey, settings: &ServiceSettings) {
        let revision = draft.revision;
        let service = Service {
            key: key.clone(),
            settings: settings.clone(),
            nodes: BTreeMap::new(),
            overrides: BTreeMap::new(),
            tombstones: Arc::new(Tombstones::above(self.incarnation_floor)),
            sign: Sign::default(),
            guard: Ledger::default(),
            created: revision,
            modified: revision,
            settings_modified: revision,
        };
        self.totals.services += 1;
        self.digest.service_came(key);
        let change = draft.services.of(key);
        change.fate = ServiceFate::Created;
        change.settings = Some(Box::new(settings.clone()));
        self.write_group(&key.group, |group| {
            group.sign = group.sign.plus(Sign::of_service(&key.service, service.sign));
            group.modified = revision;
            group.services.insert(key.service.clone(), Arc::new(service));
        });
    }

    /// Deletes a service that has no nodes, its overrides and tombstones included.
    pub(super) fn delete_service(&mut self, draft: &mut Draft, key: &ServiceKey) {
        let mut deleted = None;
        self.write_group(&key.group, |group| {
            deleted = group.services.remove(&key.service);
            if let Some(service) = &deleted {
                group.sign = group.sign.minus(Sign::of_service(&key.service, service.sign));
                group.modified = draft.revision;
            }
        });
        let service = deleted.expect("the service was found before");
        self.digest.service_went(&service);
        for (id, over) in &service.overrides {
            self.digest.take(digest::of_override(key, id, over));
            draft.overrides.push((
                NodeKey {
                    service: key.clone(),
                    node: id.clone(),
                },
                None,
            ));
        }
        for (id, tombstone) in service.tombstones.iter() {
            self.digest.take(digest::of_tombstone(key, id, tombstone));
        }
        self.totals.services -= 1;
        self.totals.note_ledger(&service.guard, &Ledger::default());
        draft.guards.remove(key);
        self.totals.overrides -= service.overrides.len() as u64;
        self.incarnation_floor = self.incarnation_floor.max(service.tombstones.highest());
        *draft.services.of(key) = ServiceDraft {
            fate: ServiceFate::Deleted,
            ..Default::default()
        };
    }

    /// Changes a service that is there.
    pub(super) fn write_service(
        &mut self,
        draft: &mut Draft,
        key: &ServiceKey,
        write: impl FnOnce(&mut ServiceWriter<'_>),
    ) {
        let groups = Arc::make_mut(&mut self.groups);
        let group = Arc::make_mut(groups.get_mut(&key.group).expect("the group was found before"));
        self.digest.open_group(group);
        let slot = group
            .services
            .get_mut(&key.service)
            .expect("the service was found before");
        self.digest.open_service(slot);
        let service = Arc::make_mut(slot);
        let (sign_before, nodes_before) = (service.sign, service.nodes.len() as u64);
        let (guard_before, said_before) = (service.guard, service.guard_said());
        let change = draft.services.of(key);
        service.modified = draft.revision;
        let mut writer = ServiceWriter {
            service,
            change,
            digest: &mut self.digest,
            totals: &mut self.totals,
            revision: draft.revision,
            tombstones_max: self.limits.tombstones_per_service_max as usize,
            held_now: false,
            room: Vec::new(),
        };
        write(&mut writer);
        let ending = writer.settle_guard();
        change.sign = service.sign;
        if change.guard.is_some() || service.guard_said() != said_before {
            change.guard = Some(Box::new(service.guard_status()));
        }
        self.totals.note_ledger(&guard_before, &service.guard);
        draft.note_guard(
            key,
            guard_before,
            &service.guard,
            || service.guard_status(),
            ending,
        );
        let (name, sign, nodes) = (&key.service, service.sign, service.nodes.len() as u64);
        group.sign = group
            .sign
            .minus(Sign::of_service(name, sign_before))
            .plus(Sign::of_service(name, sign));
        group.nodes = group.nodes - nodes_before + nodes;
    }

    /// Changes what a service's guard keeps, and no node. How an engagement ended, if it did, comes back from
    /// `write`.
    pub(super) fn write_guard(
        &mut self,
        draft: &mut Draft,
        key: &ServiceKey,
        write: impl FnOnce(&mut Ledger, &GuardSettings, Revision) -> Option<Ending>,
    ) {
        let groups = Arc::make_mut(&mut self.groups);
        let group = Arc::make_mut(groups.get_mut(&key.group).expect("the group was found before"));
        let slot = group
            .services
            .get_mut(&key.service)
            .expect("the service was found before");
        self.digest.open_service(slot);
        let service = Arc::make_mut(slot);
        let (before, said_before) = (service.guard, service.guard_said());
        let ending = write(&mut service.guard, &service.settings.guard, draft.revision);
        if service.guard_said() != said_before {
            service.modified = draft.revision;
            let change = draft.services.of(key);
            change.sign = service.sign;
            change.guard = Some(Box::new(service.guard_status()));
        }
        self.totals.note_ledger(&before, &service.guard);
        draft.note_guard(key, before, &service.guard, || service.guard_status(), ending);
    }

    /// Removes nodes that are there, service by service. Their sessions' lists are the caller's matter.
    pub(super) fn remove_nodes(
        &mut self,
        draft: &mut Draft,
        nodes: impl IntoIterator<Item = (ServiceKey, Vec<NodeId>)>,
        cause: RemovalCause,
    ) {
        for (key, ids) in nodes {
            self.write_service(draft, &key, |service| {
                for id in ids {
                    service.remove_node(id, cause);
                }
            });
        }
    }
}

/// One service, being written.
pub(super) struct ServiceWriter<'a> {
    service: &'a mut Service,
    change: &'a mut ServiceDraft,
    digest: &'a mut StateDigest,
    totals: &'a mut Totals,
    revision: Revision,
    tombstones_max: usize,
    /// Nodes became suspects in this write.
    held_now: bool,
    /// What nodes are hashed in.
    room: Vec<u8>,
}

impl ServiceWriter<'_> {
    pub(super) fn set_settings(&mut self, settings: &ServiceSettings) {
        self.service.settings = settings.clone();
        self.service.settings_modified = self.revision;
        self.change.settings = Some(Box::new(settings.clone()));
    }

    /// Sets what the removal guard keeps of it.
    pub(super) fn set_guard(&mut self, ledger: Ledger) {
        self.service.guard = ledger;
    }

    /// So many nodes are about to be put. Most commands put one, and what changed is kept as it was laid down.
    pub(super) fn expect_puts(&mut self, nodes: usize) {
        self.change.nodes.reserve_exact(nodes);
    }

    /// Puts a node, new or in place of what it was.
    pub(super) fn put_node(&mut self, node: Arc<Node>) {
        let id = &node.registration.id;
        let over = self.service.overrides.get(id).cloned();
        if let Some(before) = self.service.nodes.insert(id.clone(), Arc::clone(&node)) {
            self.count_out(&before, over.as_deref());
            self.service
                .guard
                .changed(before.state.standing(), node.state.standing());
        } else {
            self.totals.nodes += 1;
            self.service.guard.joined(node.state.standing());
            if self.service.tombstones.of(id).is_some()
                && let Some(tombstone) = Arc::make_mut(&mut self.service.tombstones).exhume(id)
            {
                self.digest
                    .take(digest::of_tombstone(&self.service.key, id, &tombstone));
            }
        }
        self.count_in(&node, over.as_deref());
        self.change.nodes.push(NodeChange::Put { node, over });
    }

    /// A node is listed, or listed like this.
    fn count_in(&mut self, node: &Node, over: Option<&Override>) {
        let (sign, hash) = digest::of_node(&mut self.room, &self.service.key, node, over);
        self.service.sign = self.service.sign.plus(sign);
        self.digest.add(hash);
    }

    /// A node is not listed any more, or not like this.
    fn count_out(&mut self, node: &Node, over: Option<&Override>) {
        let (sign, hash) = digest::of_node(&mut self.room, &self.service.key, node, over);
        self.service.sign = self.service.sign.minus(sign);
        self.digest.take(hash);
    }

    pub(super) fn remove_node(&mut self, id: NodeId, cause: RemovalCause) {
        let node = self.service.nodes.remove(&id).expect("the node was found before");
        let over = self.service.overrides.get(&id).cloned();
        self.count_out(&node, over.as_deref());
        self.totals.nodes -= 1;
        let guard = &mut self.service.guard;
        match cause {
            RemovalCause::Expired => {
                guard.struck(&self.service.settings.guard, node.state.standing(), self.revision)
            }
            RemovalCause::Deregistered | RemovalCause::SessionClosed => guard.left(node.state.standing()),
        }
        let incarnation = node.incarnation;
        self.change.nodes.push(NodeChange::Removed {
            id: id.clone(),
            incarnation,
            cause,
        });
        let tombstone = Tombstone {
            incarnation,
            removed: self.revision,
            cause,
        };
        self.digest
            .add(digest::of_tombstone(&self.service.key, &id, &tombstone));
        let tombstones = Arc::make_mut(&mut self.service.tombstones);
        for (id, forgotten) in tombstones.bury(id, tombstone, self.tombstones_max) {
            self.digest
                .take(digest::of_tombstone(&self.service.key, &id, &forgotten));
        }
    }

    /// These nodes' sessions lapsed, and `following` more will be told of the same tick: the guard lets all of
    /// them go, or holds them all as suspects. Whether they are held.
    pub(super) fn lapse_nodes(&mut self, ids: &[NodeId], following: u32) -> bool {
        let lapsed = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let service = &mut *self.service;
        match service.guard.judge(&service.settings.guard, lapsed, following) {
            Verdict::Remove => {
                for id in ids {
                    self.remove_node(id.clone(), RemovalCause::Expired);
                }
                false
            }
            Verdict::Hold(reason) => {
                self.hold_nodes(ids, reason);
                true
            }
        }
    }

    /// Of the nodes that were put so many became suspects by another's judgement, and so many were not listed here.
    pub(super) fn learn_of_hold(&mut self, lapsed: u32, joined: u32) {
        self.service.guard.learn(lapsed, joined, self.revision);
        self.held_now = true;
    }

    /// These nodes become suspects.
    pub(super) fn hold_nodes(&mut self, ids: &[NodeId], reason: HoldReason) {
        let lapsed = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        self.held_now = true;
        self.service.guard.engage(reason, lapsed, self.revision);
        for id in ids {
            self.set_state(id, |_| NodeState::Suspect);
        }
    }

    /// Suspects whose session was heard from again are what their registrant said.
    pub(super) fn revive_nodes(&mut self, ids: &[NodeId]) {
        for id in ids {
            self.set_state(id, |node| node.registration.state);
        }
    }

    fn set_state(&mut self, id: &NodeId, state: impl FnOnce(&Node) -> NodeState) {
        let before = self
            .service
            .nodes
            .get(id)
            .expect("a session's nodes are in the directory");
        let mut node = Node::clone(before);
        node.state = state(before);
        node.modified = self.revision;
        self.put_node(node.into());
    }

    /// Whether the guard disengages now. Not by the lapses that it just held.
    fn settle_guard(&mut self) -> Option<Ending> {
        if self.held_now && self.service.guard.held() > 0 {
            return None;
        }
        self.service
            .guard
            .settle(&self.service.settings.guard, self.revision)
    }

    /// Lays an override over a node id, or takes it away. A node that is there changes with it.
    pub(super) fn set_override(&mut self, id: &NodeId, over: Option<&Arc<Override>>) {
        let before = match over {
            Some(over) => {
                self.totals.overrides += 1;
                self.digest.add(digest::of_override(&self.service.key, id, over));
                self.service.overrides.insert(id.clone(), Arc::clone(over))
            }
            None => self.service.overrides.remove(id),
        };
        if let Some(before) = &before {
            self.totals.overrides -= 1;
            self.digest
                .take(digest::of_override(&self.service.key, id, before));
        }
        let Some(node) = self.service.nodes.get(id).cloned() else {
            return;
        };
        self.count_out(&node, before.as_deref());
        let node = Arc::new(Node {
            modified: self.revision,
            ..Node::clone(&node)
        });
        self.count_in(&node, over.map(AsRef::as_ref));
        self.service.nodes.insert(id.clone(), Arc::clone(&node));
        self.change.nodes.push(NodeChange::Put {
            node,
            over: over.map(Arc::clone),
        });
    }
}
