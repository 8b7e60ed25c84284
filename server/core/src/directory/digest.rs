//! The digest of the whole replicated state, kept up with every write.
//!
//! A sum of hashes of records, like the sign, but of everything that replicas must agree on: sessions,
//! incarnations, revisions, remembered requests. Replicas with the same log prefix have the same digest,
//! whatever snapshots they took.

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use super::record::{Group, Node, Override, Service, Session};
use super::tombstone::Tombstone;
use crate::ids::{NodeId, Revision, ServiceKey};
use crate::storm::{Record, Scope};

/// Sum of the hashes of all records, modulo 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateDigest(u128);

impl StateDigest {
    pub(super) fn add(&mut self, record: u128) {
        self.0 = self.0.wrapping_add(record);
    }

    pub(super) fn take(&mut self, record: u128) {
        self.0 = self.0.wrapping_sub(record);
    }

    pub(super) fn value(self) -> u128 {
        self.0
    }
}

/// Hash of one record. The tag keeps records of different kinds apart.
pub(super) fn record_hash(tag: u8, record: &impl Serialize) -> u128 {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(tag);
    let bytes = postcard::to_extend(record, bytes).expect("plain records always encode");
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

pub(super) fn of_node(service: &ServiceKey, node: &Node) -> u128 {
    record_hash(3, &(service, node))
}

pub(super) fn of_override(service: &ServiceKey, id: &NodeId, over: &Override) -> u128 {
    record_hash(4, &(service, id, over))
}

pub(super) fn of_tombstone(service: &ServiceKey, id: &NodeId, tombstone: &Tombstone) -> u128 {
    record_hash(5, &(service, id, tombstone))
}

pub(super) fn of_storm(scope: &Scope, record: &Record) -> u128 {
    // A cluster whose switch was never touched has the digest of one that knows no switch.
    if record.set_at == Revision(0) {
        return 0;
    }
    record_hash(8, &(scope, record))
}

/// Without its nodes: each of them names its session.
pub(super) fn of_session(session: &Session) -> u128 {
    let Session {
        id,
        secret_digest,
        ttl_ms,
        client,
        opened,
        last_renewal,
        lapsed,
        nodes: _,
    } = session;
    record_hash(
        6,
        &(id, secret_digest, ttl_ms, client, opened, last_renewal, lapsed),
    )
}
