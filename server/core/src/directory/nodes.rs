//! Commands on nodes: register, update, deregister. Each checks its whole batch before it writes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::command::{DeregisterNode, Expected, RegisterNode, UpdateNode};
use super::draft::{Draft, Effect};
use super::few::Few;
use super::outcome::{Refusal, RemovalCause};
use super::record::{Group, Node, NodeKind, NodeState, Registration, Service, ServiceSettings};
use super::rules;
use super::state::Directory;
use crate::ids::{GroupName, Incarnation, LogPosition, NodeId, NodeKey, ServiceKey, SessionId};
use crate::mutants::{Mutant, planted};

/// What a batch of registrations comes to, service by service.
#[derive(Default)]
struct RegistrationPlan<'a> {
    services: Few<ServiceKey, ServicePlan<'a>>,
    /// Nodes the session does not own yet.
    gained: usize,
}

#[derive(Default)]
struct ServicePlan<'a> {
    /// Found with its first node.
    place: Option<Place<'a>>,
    puts: Vec<NodePut>,
    /// How many of them are not there yet.
    joining: usize,
}

struct NodePut {
    node: Arc<Node>,
    /// The session that owns the node now.
    owner_before: Option<SessionId>,
}

/// Where nodes are to be registered. A service that is not there is going to be created.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The service's own if there is one, so that what is kept of a change shares its text.
    key: &'a ServiceKey,
    group: &'a Group,
    service: Option<&'a Service>,
}

impl<'a> Place<'a> {
    fn settings(self) -> &'a ServiceSettings {
        self.service
            .map_or(&self.group.settings.defaults, |service| &service.settings)
    }
}

/// What is to be written to one service.
struct ServiceWrite {
    key: ServiceKey,
    /// It is to be created first, like this.
    create: Option<ServiceSettings>,
    puts: Vec<NodePut>,
}

impl RegistrationPlan<'_> {
    fn into_writes(self) -> Vec<ServiceWrite> {
        let places = self.services.into_iter().filter_map(|(_, service)| {
            let place = service.place?;
            Some(ServiceWrite {
                key: place.key.clone(),
                create: place.service.is_none().then(|| place.settings().clone()),
                puts: service.puts,
            })
        });
        places.collect()
    }
}

impl Directory {
    pub(super) fn on_register(
        &mut self,
        at: LogPosition,
        session: Option<SessionId>,
        nodes: &[RegisterNode],
    ) -> Result<Effect, Refusal> {
        let writes = self.plan_registrations(session, nodes)?.into_writes();
        self.require_revivable(session)?;
        let mut draft = self.draft();
        self.note_life(&mut draft, at, session);
        for service in writes {
            self.write_registrations(&mut draft, service);
        }
        Ok(effect_of(draft))
    }

    fn plan_registrations<'a>(
        &'a self,
        session: Option<SessionId>,
        nodes: &'a [RegisterNode],
    ) -> Result<RegistrationPlan<'a>, Refusal> {
        rules::batch(&self.limits, "nodes", nodes.len())?;
        let owned = session
            .map(|id| self.require_session(id))
            .transpose()?
            .map_or(0, |session| session.nodes.len());
        let mut plan = RegistrationPlan::default();
        check_distinct(nodes.iter().map(|node| (&node.key, &node.registration.id)))?;
        for node in nodes {
            self.plan_registration(&mut plan, session, node)?;
        }
        if plan.gained > 0 && owned + plan.gained > self.limits.nodes_per_session_max as usize {
            return Err(Refusal::QuotaExceeded {
                subject: format!("session {}", session.unwrap_or_default()),
                quota: self.limits.nodes_per_session_max,
                of: "nodes".into(),
            });
        }
        self.check_registration_quotas(&plan)?;
        Ok(plan)
    }

    fn place_of<'a>(&'a self, key: &'a ServiceKey) -> Result<Place<'a>, Refusal> {
        let group = self.require_writable_group(&key.group)?;
        let service = group.services.get(&key.service).map(AsRef::as_ref);
        if service.is_none() && !group.settings.auto_create {
            return Err(Refusal::ServiceNotFound { key: key.clone() });
        }
        let key = service.map_or(key, |service| &service.key);
        Ok(Place { key, group, service })
    }

    fn plan_registration<'a>(
        &'a self,
        plan: &mut RegistrationPlan<'a>,
        session: Option<SessionId>,
        asked: &'a RegisterNode,
    ) -> Result<(), Refusal> {
        let RegisterNode {
            key,
            registration,
            expected,
        } = asked;
        rules::registration(&self.limits, registration)?;
        let service_plan = plan.services.of(key);
        let place = match service_plan.place {
            Some(place) => place,
            None => *service_plan.place.insert(self.place_of(key)?),
        };
        let service = place.service;
        let kind = registration.kind.unwrap_or(place.settings().default_kind);
        let owner = owner_of(kind, session)?;
        let before = service.and_then(|service| service.nodes.get(&registration.id));
        check_node(*expected, before.map(AsRef::as_ref), key, &registration.id)?;
        if let Some(before) = before
            && before.session() == owner
            && before.kind == kind
            && before.state == registration.state
            && before.registration == *registration
        {
            return Ok(());
        }
        if owner.is_some() && before.is_none_or(|before| before.session() != owner) {
            plan.gained += 1;
        }
        service_plan.joining += usize::from(before.is_none());
        let owner_before = before.and_then(|before| before.session());
        let node = self.registered(registration, kind, owner, before.map(AsRef::as_ref), service);
        service_plan.puts.push(NodePut {
            node: Arc::new(node),
            owner_before,
        });
        Ok(())
    }

    /// The node as this registration makes it. The same owner keeps the incarnation, another begins a new one.
    fn registered(
        &self,
        registration: &Registration,
        kind: NodeKind,
        owner: Option<SessionId>,
        before: Option<&Node>,
        service: Option<&Service>,
    ) -> Node {
        let revision = self.revision.next();
        let (incarnation, created) = match before {
            Some(before) if before.session() == owner => (before.incarnation, before.created),
            Some(before) => (Incarnation(before.incarnation.0 + 1), revision),
            None => {
                let next = match service {
                    Some(service) => service.tombstones.next_incarnation(&registration.id),
                    None => Incarnation(self.incarnation_floor.0 + 1),
                };
                (next, revision)
            }
        };
        Node {
            registration: registration.clone(),
            kind,
            state: registration.state,
            owner: owner.into(),
            incarnation,
            created,
            modified: revision,
        }
    }

    fn check_registration_quotas(&self, plan: &RegistrationPlan<'_>) -> Result<(), Refusal> {
        let mut creations: BTreeMap<&GroupName, usize> = BTreeMap::new();
        for (key, service_plan) in plan.services.iter() {
            let Some(place) = service_plan.place else { continue };
            if place.service.is_none() {
                *creations.entry(&key.group).or_default() += 1;
            }
            let quota = match place.settings().nodes_max {
                0 => self.limits.nodes_per_service_max,
                own => own,
            };
            let nodes = place.service.map_or(0, |service| service.nodes.len()) + service_plan.joining;
            if service_plan.joining > 0 && nodes > quota as usize {
                let subject = format!("service {key}");
                return Err(Refusal::QuotaExceeded {
                    subject,
                    quota,
                    of: "nodes".into(),
                });
            }
        }
        for (name, more) in creations {
            self.check_services_quota(self.require_group(name)?, more)?;
        }
        Ok(())
    }

    fn write_registrations(&mut self, draft: &mut Draft, service: ServiceWrite) {
        let ServiceWrite {
            key,
            create,
            mut puts,
        } = service;
        if planted(Mutant::PartialBatch) {
            puts.truncate(puts.len().div_ceil(2));
        }
        if let Some(settings) = &create {
            self.create_service(draft, &key, settings);
        }
        if puts.is_empty() {
            return;
        }
        self.move_ownership(draft, &key, &puts);
        self.write_service(draft, &key, |service| {
            service.expect_puts(puts.len());
            for put in puts {
                service.put_node(put.node);
            }
        });
    }

    /// The nodes of one service leave the sessions that own them, and go to those that will.
    fn move_ownership(&mut self, draft: &mut Draft, key: &ServiceKey, puts: &[NodePut]) {
        let moving = |put: &&NodePut| put.owner_before != put.node.session();
        for put in puts.iter().filter(moving) {
            let from = put.owner_before.filter(|_| !planted(Mutant::TakeoverForgotten));
            if let Some(from) = from {
                self.sessions.take_node(from, key, &put.node.registration.id);
                self.end_if_spent(draft, from);
            }
        }
        // All nodes of a batch that have an owner have the same.
        for part in puts.chunk_by(|one, next| one.node.owner == next.node.owner) {
            if let Some(to) = part[0].node.session() {
                let gained = part.iter().filter(moving);
                let ids = gained.map(|put| &put.node.registration.id);
                self.sessions.give_nodes(to, key, ids);
            }
        }
    }

    pub(super) fn on_update(
        &mut self,
        at: LogPosition,
        session: Option<SessionId>,
        nodes: &[UpdateNode],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "nodes", nodes.len())?;
        if let Some(session) = session {
            self.require_session(session)?;
        }
        self.require_revivable(session)?;
        check_distinct(nodes.iter().map(|update| (&update.key.service, &update.key.node)))?;
        let mut plan: Few<ServiceKey, Vec<Node>> = Few::default();
        for update in nodes {
            if let Some(node) = self.updated(session, update)? {
                plan.of(&update.key.service).push(node);
            }
        }
        let mut draft = self.draft();
        self.note_life(&mut draft, at, session);
        for (key, nodes) in plan {
            self.write_service(&mut draft, &key, |service| {
                service.expect_puts(nodes.len());
                nodes.into_iter().for_each(|node| service.put_node(node.into()));
            });
        }
        Ok(effect_of(draft))
    }

    /// The node as this update makes it; `None` if that is what it was. An update under the session is a sign
    /// of its life; an operator's word about a suspect does not make it less suspect.
    fn updated(&self, session: Option<SessionId>, update: &UpdateNode) -> Result<Option<Node>, Refusal> {
        let UpdateNode {
            key,
            expected,
            weight,
            state,
            labels,
            metadata,
        } = update;
        if *expected == Expected::Absent {
            return Err(rules::invalid(
                "expected",
                "an update needs the node, so it cannot expect it to be absent",
            ));
        }
        let service = self.require_writable_service(&key.service)?;
        let Some(before) = service.nodes.get(&key.node) else {
            return Err(Refusal::NodeNotFound { key: key.clone() });
        };
        check_owner(session, before, key)?;
        check_node(*expected, Some(before), &key.service, &key.node)?;
        let mut node = Node::clone(before);
        if let Some(weight) = weight {
            node.registration.weight = *weight;
        }
        if let Some(state) = state {
            rules::state(*state)?;
            node.registration.state = *state;
        }
        if session.is_some() || before.state != NodeState::Suspect {
            node.state = node.registration.state;
        }
        node.registration.labels.merge(labels);
        node.registration.metadata.merge(metadata);
        if node == **before {
            return Ok(None);
        }
        rules::registration(&self.limits, &node.registration)?;
        node.modified = self.revision.next();
        Ok(Some(node))
    }

    pub(super) fn on_deregister(
        &mut self,
        at: LogPosition,
        session: Option<SessionId>,
        nodes: &[DeregisterNode],
    ) -> Result<Effect, Refusal> {
        rules::batch(&self.limits, "nodes", nodes.len())?;
        if let Some(session) = session {
            self.require_session(session)?;
        }
        // Leaving is never guarded: one that lost nodes is not revived, but may take out what is held of it.
        let living =
            session.filter(|session| self.session(*session).is_some_and(|session| !session.lost_nodes));
        self.require_revivable(living)?;
        check_distinct(nodes.iter().map(|node| (&node.key.service, &node.key.node)))?;
        let mut plan: Few<ServiceKey, Vec<NodeId>> = Few::default();
        let mut lost = Vec::new();
        for DeregisterNode { key, expected } in nodes {
            let service = self.require_writable_service(&key.service)?;
            let node = service.nodes.get(&key.node);
            check_node(*expected, node.map(AsRef::as_ref), &key.service, &key.node)?;
            let Some(node) = node else { continue };
            check_owner(session, node, key)?;
            plan.of(&key.service).push(key.node.clone());
            lost.extend(node.session().map(|owner| (owner, key)));
        }
        let mut draft = self.draft();
        self.note_life(&mut draft, at, living);
        for (owner, key) in lost {
            self.sessions.take_node(owner, &key.service, &key.node);
            self.end_if_spent(&mut draft, owner);
        }
        self.remove_nodes(&mut draft, plan, RemovalCause::Deregistered);
        Ok(effect_of(draft))
    }
}

/// A batch that turned out to say what was so already makes no revision.
fn effect_of(draft: Draft) -> Effect {
    if draft.services.is_empty() {
        Effect::nothing()
    } else {
        Effect::of(draft)
    }
}

/// Ephemeral nodes live with the session, which they need; others belong to nobody.
fn owner_of(kind: NodeKind, session: Option<SessionId>) -> Result<Option<SessionId>, Refusal> {
    match (kind, session) {
        (NodeKind::Ephemeral, Some(session)) => Ok(Some(session)),
        (NodeKind::Ephemeral, None) => Err(rules::invalid(
            "session",
            "is missing, an ephemeral node must be registered under a session",
        )),
        (NodeKind::Persistent | NodeKind::Static, _) => Ok(None),
    }
}

/// A session speaks for its own nodes, and for those that belong to nobody: who registered them is not kept. Without a
/// session it is an operator's word, about any node.
fn check_owner(session: Option<SessionId>, node: &Node, key: &NodeKey) -> Result<(), Refusal> {
    match (session, node.session()) {
        (Some(by), Some(owner)) if by != owner => Err(Refusal::NotOwner { key: key.clone() }),
        (Some(_) | None, _) => Ok(()),
    }
}

fn check_node(
    expected: Expected,
    node: Option<&Node>,
    service: &ServiceKey,
    id: &NodeId,
) -> Result<(), Refusal> {
    rules::expected_node(
        expected,
        node.map(|node| node.modified),
        || format!("node {service}/{id}"),
        || Refusal::NodeNotFound {
            key: NodeKey {
                service: service.clone(),
                node: id.clone(),
            },
        },
    )
}

/// A batch names no node twice. Hashes tell most batches apart from such: the names themselves are compared only where
/// two hashes are the same.
fn check_distinct<'a>(
    nodes: impl ExactSizeIterator<Item = (&'a ServiceKey, &'a NodeId)> + Clone,
) -> Result<(), Refusal> {
    if nodes.len() < 2 {
        return Ok(());
    }
    let hash = |(service, id): (&ServiceKey, &NodeId)| {
        let seed = xxh3_64(service.service.as_str().as_bytes());
        xxh3_64_with_seed(id.as_str().as_bytes(), seed)
    };
    let mut hashes: Vec<u64> = nodes.clone().map(hash).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    for (service, id) in nodes {
        if !seen.insert((service, id)) {
            return Err(rules::invalid(
                "nodes",
                format!("node {service}/{id} is there twice, must be once in a batch"),
            ));
        }
    }
    Ok(())
}
