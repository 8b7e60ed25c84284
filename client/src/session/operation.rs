//! A write on a session's stream, and what it does to the roll.

use std::collections::BTreeSet;

use rollcall_proto::v1;
use rollcall_proto::v1::session_request::Request;

use super::roll::Roll;
use crate::key::NodeKey;
use crate::node::{Entry, NodeKind, NodeUpdate, Removal};
use crate::registry::Written;

/// What a provider may say of its nodes. All or none of a call's nodes, in one revision.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Register(Vec<Entry>),
    Deregister(Vec<Removal>),
    Update(Vec<NodeUpdate>),
}

impl Operation {
    pub(super) fn to_wire(&self, options: v1::WriteOptions) -> Request {
        let options = Some(options);
        match self {
            Self::Register(nodes) => Request::Register(v1::RegisterRequest {
                options,
                proof: None,
                nodes: nodes.iter().map(v1::RegisterNode::from).collect(),
            }),
            Self::Deregister(nodes) => Request::Deregister(v1::DeregisterRequest {
                options,
                proof: None,
                nodes: nodes.iter().map(v1::DeregisterNode::from).collect(),
            }),
            Self::Update(nodes) => Request::Update(v1::UpdateRequest {
                options,
                proof: None,
                nodes: nodes.iter().map(v1::UpdateNode::from).collect(),
            }),
        }
    }

    /// It was asked for. What is to go is not registered again from now on, whatever the answer.
    pub(super) fn on_asked(&self, roll: &mut Roll) {
        match self {
            Self::Register(entries) => entries.iter().for_each(|entry| roll.expect(&entry.key())),
            Self::Deregister(removals) => removals.iter().for_each(|removal| roll.dismiss(&removal.key)),
            Self::Update(_) => {}
        }
    }

    /// It was applied.
    pub(super) fn on_applied(&self, written: &Written, roll: &mut Roll) {
        match self {
            Self::Register(entries) => entries.iter().for_each(|entry| roll.enter(entry, written)),
            Self::Deregister(removals) => {
                removals
                    .iter()
                    .for_each(|removal| roll.depart(&removal.key, written.mode));
            }
            Self::Update(updates) => updates.iter().for_each(|update| roll.update(update, written)),
        }
    }

    /// It was refused for good.
    pub(super) fn on_given_up(&self, roll: &mut Roll) {
        if let Self::Deregister(removals) = self {
            removals.iter().for_each(|removal| roll.forget(&removal.key));
        }
    }

    /// What it does may stay when the session under which it was asked for is gone: nodes that are not ephemeral, or
    /// of which we do not know.
    pub(super) fn may_outlive_session(&self) -> bool {
        match self {
            Self::Register(entries) => {
                let ephemeral = |entry: &Entry| entry.registration.kind == Some(NodeKind::Ephemeral);
                !entries.iter().all(ephemeral)
            }
            Self::Deregister(_) | Self::Update(_) => true,
        }
    }

    /// The nodes that it writes to.
    pub(super) fn keys(&self) -> Vec<NodeKey> {
        match self {
            Self::Register(entries) => entries.iter().map(Entry::key).collect(),
            Self::Deregister(removals) => removals.iter().map(|removal| removal.key.clone()).collect(),
            Self::Update(updates) => updates.iter().map(|update| update.key.clone()).collect(),
        }
    }

    /// The groups that it writes to.
    pub(super) fn groups(&self) -> BTreeSet<&str> {
        match self {
            Self::Register(entries) => entries.iter().map(|entry| &*entry.service.group).collect(),
            Self::Deregister(removals) => removals
                .iter()
                .map(|removal| &*removal.key.service.group)
                .collect(),
            Self::Update(updates) => updates.iter().map(|update| &*update.key.service.group).collect(),
        }
    }
}
