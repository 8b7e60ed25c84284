//! Calls on groups, services and nodes: for tools, for persistent nodes, and for who asks instead of watching.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rollcall_proto::v1;
use rollcall_proto::v1::registry_client::RegistryClient;

use crate::config::{ReadOptions, WriteOptions};
use crate::endpoint::Channel;
use crate::error::{Effect, Error};
use crate::key::{NodeKey, RequestId, ServiceKey};
use crate::node::{Entry, Expected, NodeUpdate, Override, Removal};
use crate::registry::{Kind, Registry, Written};
use crate::sign::Sign;
use crate::view::{Confirmed, Counted, ServiceView};

/// What a server gives others to be ready for a move, if nothing is said.
const MOVE_WAIT: Duration = Duration::from_secs(30);
/// What the rest of a move may take.
const MOVE_WAIT_MORE: Duration = Duration::from_secs(15);

/// Most keys of one [`Registry::signs`] call.
pub const SIGNS_MAX: usize = 1000;

/// What was read, and who answered, how, and how fresh it is.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// What was read.
    pub value: T,
    /// The answering server, the revision reflected, the read mode, the age.
    pub header: v1::ResponseHeader,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// In the order of their names.
    pub items: Vec<T>,
    /// There are more behind the last of these.
    pub more: bool,
}

/// The sign of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSign {
    /// Which.
    pub key: ServiceKey,
    /// Whether it exists.
    pub exists: bool,
    /// Digest of its nodes.
    pub sign: Sign,
    /// When it last changed.
    pub revision: u64,
    /// What its removal guard says, which is no part of the sign; `None`: nothing.
    pub guard: Option<v1::GuardStatus>,
    /// How its group is replicated. In mode AP the revision is that of the answering server, in its epoch.
    pub mode: v1::GroupMode,
    /// Of the service's own metadata, which is no part of the sign: see [`rollcall_proto::metadata_hash`]. 0: it has
    /// none.
    pub metadata_hash: u64,
}

/// Why a node is, or is not, listed.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Whether it is listed.
    pub listed: bool,
    /// Both layers merged; as on the wire.
    pub node: Option<v1::Node>,
    /// What the registrant said.
    pub registration: Option<v1::Registration>,
    /// What an operator said.
    pub over: Option<v1::Override>,
    /// Sentences.
    pub reasons: Vec<String>,
    /// When its session lapses, as the leader judges it.
    pub session_lapses_in: Option<std::time::Duration>,
    /// What the removal guard of its service says; `None`: nothing.
    pub guard: Option<v1::GuardStatus>,
}

/// What became of a query that named what is held.
#[derive(Debug)]
pub(crate) enum Queried {
    /// Another list.
    View(Box<v1::ServiceView>),
    /// The sign still holds.
    Unchanged,
    /// Another list, but not now: ask again after this time.
    KeepCache(Duration),
}

/// How the storm switch is to be set.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StormSetting {
    /// This group and those below it; `None`: the cluster.
    pub group: Option<String>,
    /// Its position.
    pub mode: v1::StormMode,
    /// On and auto: the share of consumers that an epoch serves, 1 to 10,000 basis points; 0: 10 %.
    pub share_basis_points: u32,
    /// For people: who.
    pub author: String,
    /// For people: why.
    pub reason: String,
}

impl StormSetting {
    /// The cluster's switch, in this position, with the default share.
    #[must_use]
    pub fn new(mode: v1::StormMode) -> Self {
        Self {
            group: None,
            mode,
            share_basis_points: 0,
            author: String::new(),
            reason: String::new(),
        }
    }
}

impl Registry {
    /// Says, as an operator, that the nodes which a service's removal guard holds are gone: all of them leave in
    /// one revision, the last one too. `since` is the revision at which the hold began that the operator saw;
    /// `None`: whatever is held. If nothing is held, nothing changes.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], [`Error::RevisionMismatch`] if another hold began since: look again;
    /// [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn confirm_removal(
        &self,
        key: &ServiceKey,
        since: Option<u64>,
        author: &str,
        reason: &str,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::ConfirmRemovalRequest {
                options: Some(options),
                key: Some(key.into()),
                since: since.unwrap_or_default(),
                author: author.into(),
                reason: reason.into(),
            };
            async move { self.registry_client(channel).confirm_removal(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Moves a group between Raft and gossip while it is in use; the answer tells what both sides had. Servers get
    /// `wait` to be ready, at most 100 s (zero: 30 s); the call may take some seconds longer.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`Error::NotMoved`] says what was missing, and the group stays in its mode;
    /// [`Error::OutcomeUnknown`]: look at its mode.
    pub async fn set_group_mode(
        &self,
        group: &str,
        mode: v1::GroupMode,
        wait: Duration,
    ) -> Result<v1::SetGroupModeResponse, Error> {
        let timeout = if wait.is_zero() { MOVE_WAIT } else { wait } + MOVE_WAIT_MORE;
        let order = Kind::Order(RequestId::random());
        self.call(order, Some(timeout), |channel, _| {
            let request = v1::SetGroupModeRequest {
                group: group.into(),
                mode: mode.into(),
                timeout_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            };
            async move { self.registry_client(channel).set_group_mode(request).await }
        })
        .await
    }

    /// Sets the heartbeat-storm switch.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::InvalidArgument`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn set_storm(&self, setting: &StormSetting, options: WriteOptions) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::SetStormRequest {
                options: Some(options),
                group: setting.group.clone().unwrap_or_default(),
                mode: setting.mode.into(),
                share_basis_points: setting.share_basis_points,
                author: setting.author.clone(),
                reason: setting.reason.clone(),
            };
            async move { self.registry_client(channel).set_storm(request).await }
        })
        .await
        .map(Written::from)
    }

    /// How the heartbeat-storm switch is set, and how it stands on the server that answers.
    ///
    /// # Errors
    /// The transient ones.
    pub async fn storm(&self, options: ReadOptions) -> Result<v1::StormResponse, Error> {
        let request = v1::StormRequest {
            read: Some(options.to_wire()),
        };
        self.call(Kind::Read, options.timeout, |channel, _| async move {
            self.registry_client(channel).storm(request).await
        })
        .await
    }

    pub(crate) fn registry_client(&self, channel: Channel) -> RegistryClient<Channel> {
        RegistryClient::new(channel).max_decoding_message_size(self.inner.config.message_bytes_max)
    }

    /// Creates a group, or replaces its settings.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::RevisionMismatch`] or [`Error::AlreadyExists`] if `expected` does not
    /// hold, [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn put_group(
        &self,
        group: &str,
        settings: v1::GroupSettings,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::PutGroupRequest {
                options: Some(options),
                group: group.into(),
                settings: Some(settings.clone()),
                expected: expected.into(),
                fields: None,
            };
            async move { self.registry_client(channel).put_group(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Writes some of a group's settings and leaves the others as they are; a group that is not there is created,
    /// with the defaults for them. `fields` names those to write by their paths on the wire: `auto_create`,
    /// `admission`, `defaults.guard.window_ms`, ...
    ///
    /// # Errors
    /// Those of [`Self::put_group`], and [`Error::InvalidArgument`] for a name that the server does not know.
    pub async fn change_group(
        &self,
        group: &str,
        settings: v1::GroupSettings,
        fields: impl IntoIterator<Item = impl Into<String>>,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let names: Vec<String> = fields.into_iter().map(Into::into).collect();
        self.write(options, |channel, options| {
            let request = v1::PutGroupRequest {
                options: Some(options),
                group: group.into(),
                settings: Some(settings.clone()),
                expected: expected.into(),
                fields: Some(v1::SettingNames { names: names.clone() }),
            };
            async move { self.registry_client(channel).put_group(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Deletes a group that has no services.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::NotEmpty`], [`Error::RevisionMismatch`], [`Error::OutcomeUnknown`], and
    /// the transient ones.
    pub async fn delete_group(
        &self,
        group: &str,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::DeleteGroupRequest {
                options: Some(options),
                group: group.into(),
                expected: expected.into(),
            };
            async move { self.registry_client(channel).delete_group(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Creates a service, or replaces its settings; `None`: its group's defaults.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::InvalidName`], [`Error::QuotaExceeded`], [`Error::RevisionMismatch`],
    /// [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn put_service(
        &self,
        key: &ServiceKey,
        settings: Option<v1::ServiceSettings>,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::PutServiceRequest {
                options: Some(options),
                key: Some(key.into()),
                settings: settings.clone(),
                expected: expected.into(),
                fields: None,
            };
            async move { self.registry_client(channel).put_service(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Writes some of a service's settings and leaves the others as they are; a service that is not there is
    /// created, with its group's defaults for them. `fields` names those to write by their paths on the wire:
    /// `nodes_max`, `metadata`, `guard.window_ms`, ...
    ///
    /// # Errors
    /// Those of [`Self::put_service`], and [`Error::InvalidArgument`] for a name that the server does not know.
    pub async fn change_service(
        &self,
        key: &ServiceKey,
        settings: v1::ServiceSettings,
        fields: impl IntoIterator<Item = impl Into<String>>,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let names: Vec<String> = fields.into_iter().map(Into::into).collect();
        self.write(options, |channel, options| {
            let request = v1::PutServiceRequest {
                options: Some(options),
                key: Some(key.into()),
                settings: Some(settings.clone()),
                expected: expected.into(),
                fields: Some(v1::SettingNames { names: names.clone() }),
            };
            async move { self.registry_client(channel).put_service(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Deletes a service that has no nodes.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], [`Error::NotEmpty`], [`Error::RevisionMismatch`], [`Error::OutcomeUnknown`],
    /// and the transient ones.
    pub async fn delete_service(
        &self,
        key: &ServiceKey,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::DeleteServiceRequest {
                options: Some(options),
                key: Some(key.into()),
                expected: expected.into(),
            };
            async move { self.registry_client(channel).delete_service(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Registers persistent or static nodes, all or none, in one revision. Ephemeral nodes are registered under
    /// a [`crate::Session`].
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::ServiceNotFound`], [`Error::TooLarge`], [`Error::QuotaExceeded`],
    /// [`Error::InvalidArgument`] (an ephemeral node, say), [`Error::RevisionMismatch`],
    /// [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn register_persistent(
        &self,
        nodes: &[Entry],
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::RegisterRequest {
                options: Some(options),
                proof: None,
                nodes: nodes.iter().map(v1::RegisterNode::from).collect(),
            };
            async move { self.registry_client(channel).register(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Removes nodes by an operator's word, whoever owns them; all or none, in one revision.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], [`Error::RevisionMismatch`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn deregister(&self, nodes: &[Removal], options: WriteOptions) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::DeregisterRequest {
                options: Some(options),
                proof: None,
                nodes: nodes.iter().map(v1::DeregisterNode::from).collect(),
            };
            async move { self.registry_client(channel).deregister(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Changes nodes by an operator's word, whoever owns them; all or none, in one revision. What the registrant
    /// says next replaces it; to outlive that, use [`Self::set_override`].
    ///
    /// # Errors
    /// [`Error::NodeNotFound`], [`Error::RevisionMismatch`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn update(&self, nodes: &[NodeUpdate], options: WriteOptions) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::UpdateRequest {
                options: Some(options),
                proof: None,
                nodes: nodes.iter().map(v1::UpdateNode::from).collect(),
            };
            async move { self.registry_client(channel).update(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Lays an operator's word over a node id, replacing an earlier one. The node need not be registered now.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn set_override(
        &self,
        key: &NodeKey,
        over: &Override,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::SetOverrideRequest {
                options: Some(options),
                key: Some(key.into()),
                r#override: Some(over.into()),
            };
            async move { self.registry_client(channel).set_override(request).await }
        })
        .await
        .map(Written::from)
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn clear_override(&self, key: &NodeKey, options: WriteOptions) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::ClearOverrideRequest {
                options: Some(options),
                key: Some(key.into()),
            };
            async move { self.registry_client(channel).clear_override(request).await }
        })
        .await
        .map(Written::from)
    }

    /// One service with all its nodes.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::ServiceNotFound`], [`Error::TooStale`], and the transient ones.
    pub async fn query(&self, key: &ServiceKey, options: ReadOptions) -> Result<Answer<ServiceView>, Error> {
        let answer = self.query_wire(key, options).await?;
        let cluster = Arc::from(answer.header.cluster.as_str());
        let as_of = answer.header.revision;
        let counted = Counted::of(answer.header.mode(), answer.header.epoch);
        let confirmed = Confirmed::by(&answer.header);
        let view = ServiceView::from_wire(answer.value, as_of, (cluster, counted), confirmed);
        Ok(Answer {
            value: ServiceView {
                source: crate::view::Source::Cache,
                ..view
            },
            header: answer.header,
        })
    }

    /// As [`Self::query`], as it stands on the wire: settings and overrides included.
    ///
    /// # Errors
    /// Those of [`Self::query`].
    pub async fn query_wire(
        &self,
        key: &ServiceKey,
        options: ReadOptions,
    ) -> Result<Answer<v1::ServiceView>, Error> {
        let Answer { value, header } = self.query_unless(key, None, options).await?;
        match value {
            Queried::View(view) => Ok(Answer { value: *view, header }),
            Queried::Unchanged | Queried::KeepCache(_) => Err(Error::Internal {
                message: format!(
                    "server {} answered a query for {key} without a view",
                    header.server
                ),
                effect: Effect::None,
            }),
        }
    }

    /// Unless what is known, by its sign and the hash of its metadata, still holds.
    pub(crate) async fn query_unless(
        &self,
        key: &ServiceKey,
        known: Option<(Sign, u64)>,
        options: ReadOptions,
    ) -> Result<Answer<Queried>, Error> {
        let request = v1::QueryRequest {
            key: Some(key.into()),
            read: Some(options.to_wire()),
            known_sign: known.map(|(sign, _)| sign.into()),
            known_metadata_hash: known.map_or(0, |(_, metadata)| metadata),
            consumer: self.inner.consumer.to_string(),
        };
        let response = self
            .call_at(Kind::Read, options.timeout, |endpoint, budget| {
                let request = request.clone();
                async move {
                    let (queries, channel) = (&endpoint.queries, &endpoint.channel);
                    queries.ask(channel, &self.inner.config, request, budget).await
                }
            })
            .await?;
        let header = response.header.unwrap_or_default();
        let value = match (known, response.unchanged, response.keep_cache_ms) {
            (Some(_), true, _) => Queried::Unchanged,
            (Some(_), false, wait @ 1..) => Queried::KeepCache(Duration::from_millis(wait.into())),
            _ => Queried::View(Box::new(decode_view(response.view, header.server)?)),
        };
        Ok(Answer { value, header })
    }

    /// One page of the services of a group and of the groups below it (whole segments; empty: all).
    ///
    /// # Errors
    /// [`Error::TooStale`], and the transient ones.
    pub async fn list_services(
        &self,
        group_prefix: &str,
        after: Option<&ServiceKey>,
        limit: u32,
        options: ReadOptions,
    ) -> Result<Answer<Page<v1::ServiceSummary>>, Error> {
        let request = v1::ListServicesRequest {
            group_prefix: group_prefix.into(),
            read: Some(options.to_wire()),
            limit,
            after: after.map(v1::ServiceKey::from),
        };
        let response = self
            .call(Kind::Read, options.timeout, |channel, _| {
                let request = request.clone();
                async move { self.registry_client(channel).list_services(request).await }
            })
            .await?;
        let page = Page {
            items: response.services,
            more: response.more,
        };
        Ok(Answer {
            value: page,
            header: response.header.unwrap_or_default(),
        })
    }

    /// All services of a group and of the groups below it, page by page; each page as of its own revision.
    ///
    /// # Errors
    /// Those of [`Self::list_services`].
    pub async fn all_services(
        &self,
        group_prefix: &str,
        options: ReadOptions,
    ) -> Result<Answer<Vec<v1::ServiceSummary>>, Error> {
        let mut all = Vec::new();
        let mut after: Option<ServiceKey> = None;
        loop {
            let answer = self
                .list_services(group_prefix, after.as_ref(), 0, options)
                .await?;
            let last = answer.value.items.last().and_then(|service| service.key.clone());
            all.extend(answer.value.items);
            match last {
                Some(last) if answer.value.more => after = Some(last.into()),
                _ => {
                    return Ok(Answer {
                        value: all,
                        header: answer.header,
                    });
                }
            }
        }
    }

    /// One page of the groups at and below a prefix (whole segments; empty: all).
    ///
    /// # Errors
    /// [`Error::TooStale`], and the transient ones.
    pub async fn list_groups(
        &self,
        group_prefix: &str,
        after: &str,
        limit: u32,
        options: ReadOptions,
    ) -> Result<Answer<Page<v1::GroupSummary>>, Error> {
        let request = v1::ListGroupsRequest {
            group_prefix: group_prefix.into(),
            read: Some(options.to_wire()),
            limit,
            after: after.into(),
        };
        let response = self
            .call(Kind::Read, options.timeout, |channel, _| {
                let request = request.clone();
                async move { self.registry_client(channel).list_groups(request).await }
            })
            .await?;
        let page = Page {
            items: response.groups,
            more: response.more,
        };
        Ok(Answer {
            value: page,
            header: response.header.unwrap_or_default(),
        })
    }

    /// All groups at and below a prefix, page by page; each page as of its own revision.
    ///
    /// # Errors
    /// Those of [`Self::list_groups`].
    pub async fn all_groups(
        &self,
        group_prefix: &str,
        options: ReadOptions,
    ) -> Result<Answer<Vec<v1::GroupSummary>>, Error> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let answer = self.list_groups(group_prefix, &after, 0, options).await?;
            let last = answer.value.items.last().map(|group| group.group.clone());
            all.extend(answer.value.items);
            match last {
                Some(last) if answer.value.more => after = last,
                _ => {
                    return Ok(Answer {
                        value: all,
                        header: answer.header,
                    });
                }
            }
        }
    }

    /// The signs of up to [`SIGNS_MAX`] services at once, in the order asked.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::TooStale`], and the transient ones.
    pub async fn signs(
        &self,
        keys: &[ServiceKey],
        options: ReadOptions,
    ) -> Result<Answer<Vec<ServiceSign>>, Error> {
        if keys.len() > SIGNS_MAX {
            let message = format!(
                "{} signs were asked for, at most {SIGNS_MAX} are allowed",
                keys.len()
            );
            return Err(Error::TooLarge { message });
        }
        let request = v1::SignsRequest {
            keys: keys.iter().map(v1::ServiceKey::from).collect(),
            read: Some(options.to_wire()),
        };
        let response = self
            .call(Kind::Read, options.timeout, |channel, _| {
                let request = request.clone();
                async move { self.registry_client(channel).signs(request).await }
            })
            .await?;
        let signs = response.signs.into_iter().map(|sign| ServiceSign {
            mode: sign.mode(),
            key: sign.key.unwrap_or_default().into(),
            exists: sign.exists,
            sign: sign.sign.unwrap_or_default().into(),
            revision: sign.revision,
            guard: crate::view::said(sign.guard),
            metadata_hash: sign.metadata_hash,
        });
        Ok(Answer {
            value: signs.collect(),
            header: response.header.unwrap_or_default(),
        })
    }

    /// Why a node is, or is not, listed.
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`], and the transient ones.
    pub async fn explain(&self, key: &NodeKey, options: ReadOptions) -> Result<Answer<Explanation>, Error> {
        let request = v1::ExplainRequest {
            key: Some(key.into()),
            read: Some(options.to_wire()),
        };
        let response = self
            .call(Kind::Read, options.timeout, |channel, _| {
                let request = request.clone();
                async move { self.registry_client(channel).explain(request).await }
            })
            .await?;
        let lapses = response.session_lapses_in_ms;
        let explanation = Explanation {
            listed: response.listed,
            node: response.node,
            registration: response.registration,
            guard: crate::view::said(response.guard),
            over: response.r#override,
            reasons: response.reasons,
            session_lapses_in: (lapses > 0).then(|| std::time::Duration::from_millis(lapses)),
        };
        Ok(Answer {
            value: explanation,
            header: response.header.unwrap_or_default(),
        })
    }
}

fn decode_view(view: Option<Bytes>, server: u64) -> Result<v1::ServiceView, Error> {
    let broken = |problem: String| Error::Internal {
        message: format!("server {server} answered a query with {problem}"),
        effect: Effect::None,
    };
    let view = view.ok_or_else(|| broken("no view".into()))?;
    v1::ServiceView::decode(view).map_err(|error| broken(format!("an unreadable view: {error}")))
}
