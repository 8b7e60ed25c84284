//! One revision under way: what it changed so far, for those who are to be told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::outcome::{NodeChange, RevisionChanges, ServiceChange, ServiceFate, SessionChange};
use super::record::{Override, ServiceSettings};
use super::sign::Sign;
use crate::ids::{GroupName, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId};

/// The changes of one revision, in the making.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) revision: Revision,
    pub(super) services: BTreeMap<ServiceKey, ServiceDraft>,
    pub(super) sessions: Vec<SessionChange>,
    pub(super) groups: BTreeMap<GroupName, bool>,
    pub(super) overrides: Vec<(NodeKey, Option<Arc<Override>>)>,
}

/// The changes of one service in it.
#[derive(Debug)]
pub(super) struct ServiceDraft {
    pub(super) fate: ServiceFate,
    pub(super) sign: Sign,
    pub(super) settings: Option<ServiceSettings>,
    pub(super) nodes: BTreeMap<NodeId, NodeChange>,
}

impl Default for ServiceDraft {
    fn default() -> Self {
        Self {
            fate: ServiceFate::Kept,
            sign: Sign::default(),
            settings: None,
            nodes: BTreeMap::new(),
        }
    }
}

impl Draft {
    pub(super) fn of(revision: Revision) -> Self {
        Self {
            revision,
            services: BTreeMap::new(),
            sessions: Vec::new(),
            groups: BTreeMap::new(),
            overrides: Vec::new(),
        }
    }

    pub(super) fn finish(self, request: RequestId) -> Arc<RevisionChanges> {
        let services = self.services.into_iter().map(|(key, service)| ServiceChange {
            key,
            fate: service.fate,
            sign: service.sign,
            settings: service.settings,
            nodes: service.nodes.into_values().collect(),
        });
        Arc::new(RevisionChanges {
            revision: self.revision,
            request,
            services: services.collect(),
            sessions: self.sessions,
            groups: self.groups.into_iter().collect(),
            overrides: self.overrides,
        })
    }
}

/// What carrying out a command did, besides writing.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// The revision it made; `None`: it changed nothing that is listed or watched.
    pub(super) draft: Option<Draft>,
    /// The session it opened.
    pub(super) session: Option<SessionId>,
    /// The sessions it was to end and did not.
    pub(super) voided: Vec<SessionId>,
}

impl Effect {
    pub(super) fn nothing() -> Self {
        Self::default()
    }

    pub(super) fn of(draft: Draft) -> Self {
        Self {
            draft: Some(draft),
            ..Self::default()
        }
    }
}
