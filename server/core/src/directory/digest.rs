//! The digest of the whole replicated state.
//!
//! A sum of hashes of records, like the sign, but of everything that replicas must agree on: sessions,
//! incarnations, revisions, remembered requests. Replicas with the same log prefix have the same digest,
//! whatever snapshots they took.
//!
//! Nodes, overrides, tombstones and requests are counted as they are written. Groups, services and sessions are
//! written again and again, each time by a little: the first write takes the record out of the sum and marks it as
//! open, and it is hashed and counted in once for all its writes, when somebody asks or when too many are open.

use std::collections::BTreeSet;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use super::codec::append;
use super::record::{Group, Node, Override, Service, Session};
use super::sign::Sign;
use super::tombstone::Tombstone;
use super::view::NodeView;
use crate::ids::{GroupName, NodeId, Revision, ServiceKey, SessionId};
use crate::storm::{Record, Scope};

/// Records that may be open before they are counted in.
const OPEN_MAX: usize = 1_024;

/// Sum of the hashes of all records but the open ones, modulo 2^128.
#[derive(Clone, Debug, Default)]
pub(super) struct StateDigest {
    sum: u128,
    open: Open,
}

/// Records that are there and not in the sum.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    pub(super) groups: BTreeSet<GroupName>,
    pub(super) services: BTreeSet<ServiceKey>,
    pub(super) sessions: BTreeSet<SessionId>,
    /// A service that was modified behind this revision is among them, so that it need not be looked for.
    settled: Revision,
}

impl StateDigest {
    /// Of a state at `revision` whose records are yet to be counted in.
    pub(super) fn starting_at(revision: Revision) -> Self {
        let mut digest = Self::default();
        digest.settle(0, revision);
        digest
    }

    pub(super) fn add(&mut self, record: u128) {
        self.sum = self.sum.wrapping_add(record);
    }

    pub(super) fn take(&mut self, record: u128) {
        self.sum = self.sum.wrapping_sub(record);
    }

    /// Of what is counted.
    pub(super) fn sum(&self) -> u128 {
        self.sum
    }

    /// What is not.
    pub(super) fn open(&self) -> &Open {
        &self.open
    }

    /// Whether the open records should be counted in.
    pub(super) fn is_behind(&self) -> bool {
        self.open.groups.len() + self.open.services.len() + self.open.sessions.len() > OPEN_MAX
    }

    /// The open records, of which `hashes` is the sum, are counted from here on.
    pub(super) fn settle(&mut self, hashes: u128, revision: Revision) {
        self.add(hashes);
        self.open = Open {
            // A draft that came to nothing may have left the next revision behind.
            settled: revision.next(),
            ..Open::default()
        };
    }

    /// A group is about to be written.
    pub(super) fn open_group(&mut self, group: &Group) {
        if !self.open.groups.contains(&group.name) {
            self.open.groups.insert(group.name.clone());
            self.take(of_group(group));
        }
    }

    /// A group has come.
    pub(super) fn group_came(&mut self, name: &GroupName) {
        self.open.groups.insert(name.clone());
    }

    /// A group is gone.
    pub(super) fn group_went(&mut self, group: &Group) {
        if !self.open.groups.remove(&group.name) {
            self.take(of_group(group));
        }
    }

    /// A service is about to be written.
    pub(super) fn open_service(&mut self, service: &Service) {
        if service.modified <= self.open.settled && self.open.services.insert(service.key.clone()) {
            self.take(of_service(service));
        }
    }

    /// A service has come.
    pub(super) fn service_came(&mut self, key: &ServiceKey) {
        self.open.services.insert(key.clone());
    }

    /// A service is gone.
    pub(super) fn service_went(&mut self, service: &Service) {
        if !self.open.services.remove(&service.key) {
            self.take(of_service(service));
        }
    }

    /// A session is about to be written.
    pub(super) fn open_session(&mut self, session: &Session) {
        if self.open.sessions.insert(session.id) {
            self.take(of_session(session));
        }
    }

    /// A session has come.
    pub(super) fn session_came(&mut self, id: SessionId) {
        self.open.sessions.insert(id);
    }

    /// A session is gone.
    pub(super) fn session_went(&mut self, session: &Session) {
        if !self.open.sessions.remove(&session.id) {
            self.take(of_session(session));
        }
    }
}

/// Hash of one record. The tag keeps records of different kinds apart; 7 is that of remembered requests.
pub(super) fn record_hash(tag: u8, record: &impl Serialize) -> u128 {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(tag);
    append(&mut bytes, record);
    xxh3_128(&bytes)
}

/// Without its services, which stand for themselves.
pub(super) fn of_group(group: &Group) -> u128 {
    let Group {
        name,
        settings,
        services: _,
        sign,
        nodes,
        created,
        modified,
        settings_modified,
        moving,
    } = group;
    record_hash(
        1,
        &(
            name,
            settings,
            sign,
            nodes,
            created,
            modified,
            settings_modified,
            moving,
        ),
    )
}

/// Without its nodes, overrides and tombstones, which stand for themselves.
pub(super) fn of_service(service: &Service) -> u128 {
    let Service {
        key,
        settings,
        nodes: _,
        overrides: _,
        tombstones,
        sign,
        guard,
        created,
        modified,
        settings_modified,
    } = service;
    record_hash(
        2,
        &(
            key,
            settings,
            tombstones.floor(),
            sign,
            guard,
            created,
            modified,
            settings_modified,
        ),
    )
}

/// What one node adds to the sign of its service, and to the state's digest. What its registrant said is hashed once
/// for both. `room` is memory to do it in: every change of a node comes by here, most of them twice.
pub(super) fn of_node(
    room: &mut Vec<u8>,
    service: &ServiceKey,
    node: &Node,
    over: Option<&Override>,
) -> (Sign, u128) {
    let plain = Sign::of_node_in(room, NodeView::new(node, None));
    let shown = match over {
        None => plain,
        Some(_) => Sign::of_node_in(room, NodeView::new(node, over)),
    };
    (shown, of_node_shown_as(room, service, node, plain))
}

/// `plain` is the sign's element of the node without an override: it stands for id, addresses, weight, labels,
/// metadata, kind and state.
fn of_node_shown_as(room: &mut Vec<u8>, service: &ServiceKey, node: &Node, plain: Sign) -> u128 {
    const TAG: u8 = 3;
    let Node {
        registration,
        kind: _,
        state: _,
        owner,
        incarnation,
        created,
        modified,
    } = node;
    let said = (registration.kind, registration.state);
    room.clear();
    room.push(TAG);
    append(room, service);
    room.extend_from_slice(&plain.0.to_le_bytes());
    append(room, &(said, owner, incarnation, created, modified));
    xxh3_128(room)
}

pub(super) fn of_override(service: &ServiceKey, id: &NodeId, over: &Override) -> u128 {
    record_hash(4, &(service, id, over))
}

pub(super) fn of_tombstone(service: &ServiceKey, id: &NodeId, tombstone: &Tombstone) -> u128 {
    record_hash(5, &(service, id, tombstone))
}

/// Without its nodes: each of them names its session. One that lost nodes has a tag of its own.
pub(super) fn of_session(session: &Session) -> u128 {
    let Session {
        id,
        secret_digest,
        ttl_ms,
        client,
        opened,
        last_renewal,
        lapsed,
        lost_nodes,
        nodes: _,
    } = session;
    record_hash(
        if *lost_nodes { 9 } else { 6 },
        &(id, secret_digest, ttl_ms, client, opened, last_renewal, lapsed),
    )
}

pub(super) fn of_storm(scope: &Scope, record: &Record) -> u128 {
    // A cluster whose switch was never touched has the digest of one that knows no switch.
    if record.set_at == Revision(0) {
        return 0;
    }
    record_hash(8, &(scope, record))
}
