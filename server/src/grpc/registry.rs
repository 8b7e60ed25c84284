//! Unary calls: tools write, readers read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use prost::Message;
use rollcall_core::directory::{
    Command, Group, GroupMode, NodeState, NodeView, Override, Refusal, RemovalCause, Service, Sign,
};
use rollcall_core::guard::HoldReason;
use rollcall_core::ids::{GroupName, NodeId, Revision, ServerId, ServiceKey};
use rollcall_proto::v1::{self, registry_server::Registry};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, bounded};
use super::discover::Discovery;
use super::doors::Doors;
use super::fields;
use super::modes::Shown;
use super::sessions;
use super::shared_body::shared;
use super::speaker::Speaker;
use super::status::{DoorError, of_refusal, status};
use super::storm;
use crate::access::Principal;

/// Most rows of one listing.
const PAGE_MAX: u32 = 1_000;
/// So many overrides are named to whoever wants a service deleted that has them.
const OVERRIDES_NAMED: usize = 3;

type Answer<T> = Result<T, v1::Error>;

fn refused(refusal: Refusal) -> v1::Error {
    of_refusal(&refusal)
}

/// How many rows a page has.
pub(super) fn page(limit: u32) -> usize {
    (if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) }) as usize
}

impl Doors {
    /// Ends a call: counts it, and its error if there is one.
    pub(super) fn answer<T>(&self, call: &'static str, answer: Answer<T>) -> Result<Response<T>, Status> {
        self.metrics.call(call);
        answer.map(Response::new).map_err(|error| {
            self.metrics.error(&error);
            tracing::debug!(call, code = error.code().as_str_name(), message = %error.message, "refused");
            status(&error)
        })
    }

    pub(super) fn check_size(&self, message: &impl Message) -> Answer<usize> {
        let bytes = message.encoded_len();
        let fits = bounded("the request in bytes", bytes, self.limits.request_bytes_max);
        fits.map(|()| bytes).map_err(refused)
    }

    async fn write(&self, options: Option<v1::WriteOptions>, command: Command) -> Answer<v1::WriteResponse> {
        self.write_as(options, command, None).await
    }

    async fn write_as(
        &self,
        options: Option<v1::WriteOptions>,
        command: Command,
        speaker: Option<&Speaker>,
    ) -> Answer<v1::WriteResponse> {
        let written = self.writer.write(options.as_ref(), command, speaker).await?;
        Ok(self.writer.response(&written))
    }

    /// The session a unary call speaks for, proven by its secret.
    async fn proven(&self, proof: Option<&v1::SessionProof>) -> Answer<Option<Speaker>> {
        let Some(proof) = proof else { return Ok(None) };
        let session = convert::session_from(proof.session).map_err(refused)?;
        let secret = convert::secret_from(&proof.secret).map_err(refused)?;
        let seed = sessions::verify(&self.reader, session, &secret, self.limits.read_timeout).await?;
        Ok(Some(Speaker::visiting(seed)))
    }

    async fn put_group(&self, request: v1::PutGroupRequest) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let group = convert::group_from(&request.group).map_err(refused)?;
        let settings = request.settings.unwrap_or_default();
        let mode_left_out = settings.mode() == v1::GroupMode::Unspecified;
        let mut settings = convert::group_settings_from(settings).map_err(refused)?;
        if mode_left_out && let Some(mode) = self.reader.mode_of(&group) {
            settings.mode = mode;
        }
        let expected = convert::expected_from(request.expected).map_err(refused)?;
        let fields = request
            .fields
            .map(|fields| fields::group_fields_from(&fields.names));
        let fields = fields.transpose().map_err(refused)?;
        let command = match fields {
            None => Command::PutGroup {
                group,
                settings,
                expected,
            },
            Some(fields) => Command::ChangeGroup {
                group,
                settings,
                fields,
                expected,
            },
        };
        self.write(request.options, command).await
    }

    async fn delete_group(&self, request: v1::DeleteGroupRequest) -> Answer<v1::WriteResponse> {
        let group = convert::group_from(&request.group).map_err(refused)?;
        self.check_empty(&group, None).await?;
        let command = Command::DeleteGroup {
            group,
            expected: convert::expected_from(request.expected).map_err(refused)?,
        };
        self.write(request.options, command).await
    }

    async fn put_service(&self, request: v1::PutServiceRequest) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let settings = request
            .settings
            .map(convert::service_settings_from)
            .transpose()
            .map_err(refused)?;
        let key = convert::service_key_from("key", request.key.as_ref()).map_err(refused)?;
        let expected = convert::expected_from(request.expected).map_err(refused)?;
        let fields = request
            .fields
            .map(|fields| fields::service_fields_from(&fields.names));
        let fields = fields.transpose().map_err(refused)?;
        let command = match fields {
            None => Command::PutService {
                key,
                settings,
                expected,
            },
            Some(fields) => Command::ChangeService {
                key,
                settings: settings.unwrap_or_default(),
                fields,
                expected,
            },
        };
        self.write(request.options, command).await
    }

    async fn delete_service(&self, request: v1::DeleteServiceRequest) -> Answer<v1::WriteResponse> {
        let key = convert::service_key_from("key", request.key.as_ref()).map_err(refused)?;
        self.check_empty(&key.group, Some(&key)).await?;
        let command = Command::DeleteService {
            key,
            expected: convert::expected_from(request.expected).map_err(refused)?,
        };
        self.write(request.options, command).await
    }

    /// An AP group, or a service of one, does not go while it shows nodes, or while operators' words on some stand: the log, which
    /// has none of them, cannot tell.
    async fn check_empty(&self, group: &GroupName, service: Option<&ServiceKey>) -> Answer<()> {
        if self.reader.mode_of(group) != Some(GroupMode::Ap) {
            return Ok(());
        }
        let deadline = Instant::now() + self.reader.timeout();
        self.reader
            .learn_groups(std::slice::from_ref(group), deadline)
            .await?;
        let view = self.reader.ap().view().read();
        let (subject, services) = match service {
            Some(key) => {
                let service = view.service(key).map(AsRef::as_ref);
                (format!("service {key}"), service.into_iter().collect())
            }
            None => {
                let seen = view.group(group).into_iter();
                let services = seen.flat_map(|group| group.services.values());
                (format!("group {group}"), services.map(AsRef::as_ref).collect())
            }
        };
        let services: Vec<&Service> = services;
        let nodes: usize = services.iter().map(|service| service.nodes.len()).sum();
        let overrides = services.iter().flat_map(|service| {
            let name = &service.key.service;
            service.overrides.keys().map(move |id| format!("{name}/{id}"))
        });
        let overrides: Vec<String> = overrides.take(OVERRIDES_NAMED).collect();
        let children = match (nodes, &overrides[..]) {
            (0, []) => return Ok(()),
            (0, named) => format!("overrides ({})", named.join(", ")),
            (nodes, _) => format!("{nodes} nodes"),
        };
        Err(refused(Refusal::NotEmpty { subject, children }))
    }

    async fn register(&self, request: v1::RegisterRequest, by: &Principal) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let nodes = convert::register_nodes_from(request.nodes, self.limits.batch_max).map_err(refused)?;
        self.admit(by, None, &nodes).await?;
        let speaker = self.proven(request.proof.as_ref()).await?;
        let session = speaker.as_ref().map(Speaker::id);
        let command = Command::Register { session, nodes };
        self.write_as(request.options, command, speaker.as_ref()).await
    }

    async fn deregister(&self, request: v1::DeregisterRequest, by: &Principal) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let nodes = convert::deregister_nodes_from(request.nodes, self.limits.batch_max).map_err(refused)?;
        let speaker = self.proven(request.proof.as_ref()).await?;
        let session = speaker.as_ref().map(Speaker::id);
        self.check_word_on(by, session, nodes.iter().map(|node| &node.key))?;
        let command = Command::Deregister { session, nodes };
        self.write_as(request.options, command, speaker.as_ref()).await
    }

    async fn update(&self, request: v1::UpdateRequest, by: &Principal) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let nodes = convert::update_nodes_from(request.nodes, self.limits.batch_max).map_err(refused)?;
        let speaker = self.proven(request.proof.as_ref()).await?;
        let session = speaker.as_ref().map(Speaker::id);
        self.check_word_on(by, session, nodes.iter().map(|node| &node.key))?;
        let command = Command::Update { session, nodes };
        self.write_as(request.options, command, speaker.as_ref()).await
    }

    async fn set_override(&self, request: v1::SetOverrideRequest) -> Answer<v1::WriteResponse> {
        self.check_size(&request)?;
        let over = convert::required("override", request.r#override).map_err(refused)?;
        let command = Command::SetOverride {
            key: convert::node_key_from("key", request.key.as_ref()).map_err(refused)?,
            over: convert::override_from(over).map_err(refused)?,
        };
        self.write(request.options, command).await
    }

    async fn clear_override(&self, request: v1::ClearOverrideRequest) -> Answer<v1::WriteResponse> {
        let key = convert::node_key_from("key", request.key.as_ref()).map_err(refused)?;
        self.write(request.options, Command::ClearOverride { key }).await
    }

    async fn confirm_removal(&self, request: v1::ConfirmRemovalRequest) -> Answer<v1::WriteResponse> {
        let command = Command::ConfirmRemoval {
            service: convert::service_key_from("key", request.key.as_ref()).map_err(refused)?,
            since: (request.since > 0).then_some(Revision(request.since)),
            author: request.author,
            reason: request.reason,
        };
        self.write(request.options, command).await
    }

    async fn set_storm(&self, request: v1::SetStormRequest) -> Answer<v1::WriteResponse> {
        let command = Command::SetStorm {
            scope: storm::scope_from(&request.group).map_err(refused)?,
            mode: storm::mode_from(request.mode, request.share_basis_points).map_err(refused)?,
            author: request.author,
            reason: request.reason,
        };
        self.write(request.options, command).await
    }

    async fn storm(&self, request: v1::StormRequest) -> Answer<v1::StormResponse> {
        let grounds = self.reader.admit(request.read.as_ref()).await?;
        let (modes, revision) = {
            let directory = self.reader.consensus().directory().read();
            (directory.storm().clone(), directory.revision())
        };
        let status = self.storm.status();
        let header = self.reader.header(grounds, revision);
        Ok(storm::response(&modes, &status, header))
    }

    pub(super) async fn query(&self, request: v1::QueryRequest) -> Answer<v1::QueryResponse> {
        let key = convert::service_key_from("key", request.key.as_ref()).map_err(refused)?;
        let (service, header) = self.reader.service(request.read.as_ref(), &key).await?;
        self.found(&request, &service, header)
    }

    /// The same, if nothing has to be waited for.
    pub(super) fn query_at_once(&self, request: &v1::QueryRequest) -> Option<Answer<v1::QueryResponse>> {
        let read = request.read.as_ref()?;
        let grounds = self.reader.admit_at_once(read)?;
        let key = match convert::service_key_from("key", request.key.as_ref()) {
            Ok(key) => key,
            Err(refusal) => return Some(Err(refused(refusal))),
        };
        let found = self.reader.service_at_once(grounds, &key)?;
        Some(found.and_then(|(service, header)| self.found(request, &service, header)))
    }

    /// A service as its reader is to have it now.
    fn found(
        &self,
        request: &v1::QueryRequest,
        service: &Service,
        header: v1::ResponseHeader,
    ) -> Answer<v1::QueryResponse> {
        let known = request.known_sign.as_ref().map(convert::sign_from);
        let unchanged =
            known == Some(service.sign) && request.known_metadata_hash == convert::metadata_hash(service);
        if !unchanged
            && let Some(retry_after) = self.storm.ask_for_one(&service.key, &request.consumer, known)
        {
            return keep_cache(Some(header), known, retry_after);
        }
        let mode = match header.mode() {
            v1::GroupMode::Unspecified | v1::GroupMode::Cp => GroupMode::Cp,
            v1::GroupMode::Ap => GroupMode::Ap,
        };
        let view = (!unchanged).then(|| self.watches.view(mode, service));
        if let Some(view) = &view {
            bounded("the service in bytes", view.len(), self.limits.message_bytes_max).map_err(refused)?;
            self.storm.count_called(view.len());
        }
        Ok(v1::QueryResponse {
            header: Some(header),
            unchanged,
            view,
            keep_cache_ms: 0,
        })
    }

    async fn list_services(&self, request: v1::ListServicesRequest) -> Answer<v1::ListServicesResponse> {
        let prefix = convert::prefix_from(&request.group_prefix).map_err(refused)?;
        let after = request
            .after
            .as_ref()
            .map(|key| convert::service_key_from("after", Some(key)));
        let after = after.transpose().map_err(refused)?;
        let limit = page(request.limit);
        let asked = |group: &Group| {
            group.name.is_within(&prefix) && after.as_ref().is_none_or(|after| group.name >= after.group)
        };
        let part = self
            .reader
            .admit_list(request.read.as_ref(), asked, false)
            .await?;
        let (groups, header) = self.reader.groups(part, asked)?;
        let mut services: Vec<v1::ServiceSummary> = groups
            .iter()
            .flat_map(|group| {
                let mode = group.definition.settings.mode;
                group
                    .content
                    .services
                    .values()
                    .map(move |service| (mode, service))
            })
            .filter(|(_, service)| after.as_ref().is_none_or(|after| service.key > *after))
            .take(limit + 1)
            .map(|(mode, service)| convert::service_summary(mode, service))
            .collect();
        let more = services.len() > limit;
        services.truncate(limit);
        Ok(v1::ListServicesResponse {
            header: Some(header),
            services,
            more,
        })
    }

    async fn list_groups(&self, request: v1::ListGroupsRequest) -> Answer<v1::ListGroupsResponse> {
        let prefix = convert::prefix_from(&request.group_prefix).map_err(refused)?;
        let after: Option<GroupName> = match request.after.as_str() {
            "" => None,
            name => Some(convert::group_from(name).map_err(refused)?),
        };
        let limit = page(request.limit);
        let asked = |group: &Group| {
            group.name.is_within(&prefix) && after.as_ref().is_none_or(|after| group.name > *after)
        };
        let part = self
            .reader
            .admit_list(request.read.as_ref(), asked, false)
            .await?;
        let (mut groups, header) = self.reader.groups(part, asked)?;
        let more = groups.len() > limit;
        groups.truncate(limit);
        Ok(v1::ListGroupsResponse {
            header: Some(header),
            groups: groups
                .iter()
                .map(|group| convert::group_summary(&group.definition, &group.content))
                .collect(),
            more,
        })
    }

    async fn signs(&self, request: v1::SignsRequest) -> Answer<v1::SignsResponse> {
        bounded("keys in one call", request.keys.len(), self.limits.batch_max).map_err(refused)?;
        let keys: Vec<ServiceKey> = request
            .keys
            .iter()
            .map(|key| convert::service_key_from("keys", Some(key)))
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        let wanted: BTreeSet<&GroupName> = keys.iter().map(|key| &key.group).collect();
        let unknown = wanted.iter().any(|group| self.reader.mode_of(group).is_none());
        let asked = |group: &Group| wanted.contains(&group.name);
        let part = self
            .reader
            .admit_list(request.read.as_ref(), asked, unknown)
            .await?;
        let (groups, header) = self.reader.groups(part, asked)?;
        let groups: BTreeMap<&GroupName, &Shown> = groups
            .iter()
            .map(|group| (&group.definition.name, group))
            .collect();
        let signs = keys.iter().map(|key| {
            let group = groups.get(&key.group);
            let service = group.and_then(|group| group.content.services.get(&key.service));
            let mode = group.map_or(GroupMode::default(), |group| group.definition.settings.mode);
            v1::ServiceSign {
                key: Some(convert::service_key(key)),
                exists: service.is_some(),
                sign: service.map(|service| convert::sign(service.sign)),
                revision: service.map_or(0, |service| service.modified.0),
                guard: service.and_then(|service| convert::service_guard(service)),
                mode: convert::group_mode(mode).into(),
                metadata_hash: service.map_or(0, |service| convert::metadata_hash(service)),
            }
        });
        Ok(v1::SignsResponse {
            header: Some(header),
            signs: signs.collect(),
        })
    }

    async fn explain(&self, request: v1::ExplainRequest) -> Answer<v1::ExplainResponse> {
        let key = convert::node_key_from("key", request.key.as_ref()).map_err(refused)?;
        let (service, header) = self.reader.service(request.read.as_ref(), &key.service).await?;
        let in_view = header.mode() == v1::GroupMode::Ap;
        let header = Some(header);
        let over = service.overrides.get(&key.node);
        let Some(view) = service.view(&key.node) else {
            return Ok(v1::ExplainResponse {
                header,
                r#override: over.map(|over| convert::node_override(over)),
                reasons: why_absent(&service, &key.node, over.map(AsRef::as_ref)),
                guard: convert::service_guard(&service),
                ..Default::default()
            });
        };
        let deadline = match view.node.session() {
            Some(session) if in_view => self.reader.ap().deadlines(&[session]).pop(),
            Some(session) => sessions::deadlines(&self.reader, vec![session]).await.pop(),
            None => None,
        };
        let judge = match view.node.session() {
            Some(session) if in_view => self.reader.ap().session(session).map(|record| record.holder),
            Some(_) | None => None,
        };
        let lapses_in_ms = deadline.map_or(0, |deadline| convert::milliseconds(deadline.lapses_in).max(1));
        Ok(v1::ExplainResponse {
            header,
            listed: true,
            node: Some(convert::node(view)),
            registration: Some(convert::registration(&view.node.registration)),
            r#override: over.map(|over| convert::node_override(over)),
            reasons: why_listed(&service, view, lapses_in_ms, judge),
            guard: convert::service_guard(&service),
            session_lapses_in_ms: lapses_in_ms,
        })
    }
}

/// It is not this consumer's turn: it lives on what it has, or, having nothing, waits.
fn keep_cache(
    header: Option<v1::ResponseHeader>,
    known: Option<Sign>,
    retry_after: Duration,
) -> Answer<v1::QueryResponse> {
    if known.is_none() {
        return Err(DoorError::Overloaded {
            problem: "the storm switch is on, and this consumer's turn to fetch is yet to come".into(),
            retry_after,
        }
        .into());
    }
    Ok(v1::QueryResponse {
        header,
        unchanged: false,
        view: None,
        keep_cache_ms: u32::try_from(retry_after.as_millis())
            .unwrap_or(u32::MAX)
            .saturating_add(1),
    })
}

/// Why a node is not there, as far as the service remembers those that left.
fn why_absent(service: &Service, id: &NodeId, over: Option<&Override>) -> Vec<String> {
    let why = match service.tombstones.of(id) {
        None => "it never was, or left so long ago that this is forgotten".into(),
        Some(gone) => {
            let how = match gone.cause {
                RemovalCause::Deregistered => "was deregistered, by its own or an operator's word,",
                RemovalCause::Expired => "expired (its session lapsed, and the removal guard let it go)",
                RemovalCause::SessionClosed => "left with its session, which was closed,",
            };
            let (at, incarnation) = (gone.removed, gone.incarnation);
            format!("it {how} at revision {at}, in incarnation {incarnation}")
        }
    };
    let mut reasons = vec![format!("not registered in {}: {why}", service.key)];
    if let Some(over) = over {
        reasons.push(format!("{} waits for it", word_of(over)));
    }
    reasons
}

/// Why a lapsed node is still there.
fn why_held(service: &Service) -> String {
    let status = service.guard_status();
    let lapsed = "its session lapsed, and the removal guard holds it as a suspect";
    if let Some(engaged) = status.engaged {
        let rule = match engaged.reason {
            HoldReason::Share => format!("{} may go per window", status.allowed),
            HoldReason::LastNode => "the last node stays".into(),
        };
        return format!(
            "{lapsed} since revision {}: {} of {} lapsed, {rule}; it disengages when {} are up",
            engaged.since, engaged.lapsed, engaged.of, engaged.needed
        );
    }
    let since = status.held_since.unwrap_or_default();
    format!(
        "{lapsed} left over at revision {since}: it may return, and goes when its time is over and the share allows"
    )
}

/// `judge`: the server that vouches for its session, in an AP group.
fn why_listed(
    service: &Service,
    view: NodeView<'_>,
    lapses_in_ms: u64,
    judge: Option<ServerId>,
) -> Vec<String> {
    let node = view.node;
    let mut reasons = vec![format!(
        "registered at revision {}, incarnation {}, last changed at revision {}",
        node.created, node.incarnation, node.modified
    )];
    match node.session() {
        Some(session) if lapses_in_ms > 0 => {
            reasons.push(format!(
                "lives with session {session}, which lapses in {lapses_in_ms} ms without a heartbeat"
            ));
        }
        Some(session) => reasons.push(match judge {
            Some(server) => format!("lives with session {session}, for which server {server} vouches"),
            None => format!("lives with session {session}; the leader's deadline is not known here"),
        }),
        None => reasons.push("lives without a session, until deregistered".into()),
    }
    match node.state {
        NodeState::Up => {}
        NodeState::Suspect => reasons.push(why_held(service)),
        NodeState::Draining => {
            reasons.push("it is draining: it finishes what it has and gets nothing new".into())
        }
        NodeState::Down => reasons.push("it was set down".into()),
    }
    if let Some(over) = view.over {
        let what = if view.disabled() {
            "listed, but disabled and not to be called"
        } else {
            "listed as changed"
        };
        reasons.push(format!("it is {what} by {}", word_of(over)));
    }
    reasons
}

/// An operator's override, for people: whose, since when and why.
fn word_of(over: &Override) -> String {
    let who = match over.author.as_str() {
        "" => "an operator".to_owned(),
        author => format!("the operator {author:?}"),
    };
    let why = match over.reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason:?}"),
    };
    format!("the word of {who} at revision {}{why}", over.set_at)
}

macro_rules! unary {
    ($($who:ident $method:ident: $request:ty => $response:ty;)*) => {
        #[tonic::async_trait]
        impl Registry for Doors {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let answer = unary!(@ $who self $method request);
                    self.answer(stringify!($method), answer)
                }
            )*

            type DiscoverStream = BoxStream<'static, Result<v1::DiscoverResponse, Status>>;

            async fn discover(
                &self,
                request: Request<Streaming<v1::DiscoverRequest>>,
            ) -> Result<Response<Self::DiscoverStream>, Status> {
                let opened = self.principal(&request).map(|by| {
                    Discovery::new(self.clone(), by, request.into_inner()).boxed()
                });
                let opened = self.answer("discover", opened)?;
                Ok(shared(opened.into_inner(), self.limits.message_bytes_max))
            }
        }
    };
    (@ anyone $doors:ident $method:ident $request:ident) => {
        match $doors.principal(&$request) {
            Ok(_) => Doors::$method($doors, $request.into_inner()).await,
            Err(error) => Err(error),
        }
    };
    (@ operator $doors:ident $method:ident $request:ident) => {
        match $doors.operator(&$request) {
            Ok(_) => Doors::$method($doors, $request.into_inner()).await,
            Err(error) => Err(error),
        }
    };
    (@ writer $doors:ident $method:ident $request:ident) => {
        match $doors.principal(&$request) {
            Ok(by) => Doors::$method($doors, $request.into_inner(), &by).await,
            Err(error) => Err(error),
        }
    };
}

unary! {
    operator put_group: v1::PutGroupRequest => v1::WriteResponse;
    operator delete_group: v1::DeleteGroupRequest => v1::WriteResponse;
    operator put_service: v1::PutServiceRequest => v1::WriteResponse;
    operator delete_service: v1::DeleteServiceRequest => v1::WriteResponse;
    writer register: v1::RegisterRequest => v1::WriteResponse;
    writer deregister: v1::DeregisterRequest => v1::WriteResponse;
    writer update: v1::UpdateRequest => v1::WriteResponse;
    operator set_override: v1::SetOverrideRequest => v1::WriteResponse;
    operator clear_override: v1::ClearOverrideRequest => v1::WriteResponse;
    anyone query: v1::QueryRequest => v1::QueryResponse;
    anyone list_services: v1::ListServicesRequest => v1::ListServicesResponse;
    anyone list_groups: v1::ListGroupsRequest => v1::ListGroupsResponse;
    anyone signs: v1::SignsRequest => v1::SignsResponse;
    anyone explain: v1::ExplainRequest => v1::ExplainResponse;
    operator confirm_removal: v1::ConfirmRemovalRequest => v1::WriteResponse;
    operator set_storm: v1::SetStormRequest => v1::WriteResponse;
    operator set_group_mode: v1::SetGroupModeRequest => v1::SetGroupModeResponse;
    anyone storm: v1::StormRequest => v1::StormResponse;
    operator refused_registrations: v1::RefusedRegistrationsRequest => v1::RefusedRegistrationsResponse;
}
