//! A server of the client contract in this process, on loopback: enough of the promises for the client's side of
//! the protocol to be judged. What servers share (sessions, applied writes) is one [`Cluster`], so that a client
//! can move between two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use prost::Message;
use rollcall_client::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What all servers of the cluster agree on.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) revision: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// Request id to revision: a repeat is not applied again.
    pub(crate) applied: BTreeMap<Vec<u8>, u64>,
    /// Every request id that came, repeats included.
    pub(crate) requests: Vec<Vec<u8>>,
    pub(crate) last_session: u64,
    /// Errors to answer the next writes with.
    pub(crate) refuse: Vec<v1::Error>,
    /// Nodes that are listed under sessions that are not found any more: a removal guard holds them.
    pub(crate) held: BTreeMap<String, u64>,
    /// When a node was last written.
    pub(crate) modified: BTreeMap<String, u64>,
    /// Writes to groups of mode CP find no quorum, and nobody can answer linearizably.
    pub(crate) no_quorum: bool,
    /// Nodes that were registered, each time.
    pub(crate) registered: Vec<String>,
    /// No more nodes are taken in: the disk is full.
    pub(crate) disk_full: bool,
    /// Nothing is taken out for the moment.
    pub(crate) deregisters_nothing: bool,
    /// Sessions are not opened for the moment.
    pub(crate) opens_nothing: bool,
    /// Sessions that are to be closed are not found.
    pub(crate) closes_nothing: bool,
    /// Groups are of this mode.
    pub(crate) mode: v1::GroupMode,
    /// Whoever attaches is told of no nodes: the server has not heard of them yet.
    pub(crate) names_nothing: bool,
    /// It is not said how nodes are listed.
    pub(crate) explains_nothing: bool,
    /// Others write before it is said how nodes are listed.
    pub(crate) moves_on_when_asked: bool,
    /// The services of nodes that are not listed are not there either.
    pub(crate) lost_services: bool,
    /// Asked how nodes are listed: so often.
    pub(crate) explained: u64,
    /// Sessions opened in one of these modes are not found when they register.
    pub(crate) registers_nothing: Vec<v1::GroupMode>,
    /// What subscriptions came, by server.
    pub(crate) subscriptions: Vec<(u64, v1::Subscribe)>,
    pub(crate) acks: Vec<u64>,
    /// Those of AP groups, with their epoch.
    pub(crate) ap_acks: Vec<(u64, u64)>,
    /// A subscription behind a later revision is refused: no server has come so far.
    pub(crate) head: Option<u64>,
    /// How a subscription is answered.
    pub(crate) script: Vec<v1::WatchFrame>,
    /// How it is answered for AP groups, in a message of its own.
    pub(crate) ap_script: Vec<v1::WatchFrame>,
    /// What queries are answered with.
    pub(crate) view: Option<v1::ServiceView>,
    /// How old the state is from which queries are answered.
    pub(crate) age_ms: u64,
    /// The group of what is asked for is in mode AP; once its service is gone, it is not known.
    pub(crate) queried_in_ap: bool,
    /// Signs that were asked for: how often.
    pub(crate) sign_calls: u64,
    /// The same, linearizably.
    pub(crate) sure_signs: u64,
    /// Not 0: full lists are rationed, for whoever holds one.
    pub(crate) keep_cache_ms: u32,
    /// As before signs had a hash of metadata beside them.
    pub(crate) older: bool,
    pub(crate) queries: u64,
    /// Watch streams are refused.
    pub(crate) knows_no_token: bool,
    /// How often.
    pub(crate) denials: u64,
    /// Those that came on streams, by server and stream.
    pub(crate) discovered: Vec<(u64, u64, v1::DiscoverRequest)>,
    /// How often a server was asked for a stream of queries.
    pub(crate) discover_streams: u64,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Session {
    pub(crate) ttl_ms: u64,
    pub(crate) mode: v1::GroupMode,
    pub(crate) nodes: BTreeMap<String, v1::RegisterNode>,
    pub(crate) renewals: u64,
    pub(crate) attached: u64,
}

impl Shared {
    /// Under which session it is listed.
    pub(crate) fn owner(&self, node: &str) -> Option<u64> {
        let mut sessions = self.sessions.iter();
        let living = sessions.find(|(_, session)| session.nodes.contains_key(node));
        living.map(|(id, _)| *id).or_else(|| self.held.get(node).copied())
    }

    fn contests(&self, register: &v1::RegisterRequest) -> Option<v1::ErrorCode> {
        use v1::expected::Condition;
        register.nodes.iter().find_map(|node| {
            let id = node.registration.clone().unwrap_or_default().id;
            let current = self.owner(&id).map(|_| self.modified[&id]);
            match (node.expected?.condition?, current) {
                (Condition::Absent(true), Some(_)) => Some(v1::ErrorCode::AlreadyExists),
                (Condition::Revision(_), None) => Some(v1::ErrorCode::NodeNotFound),
                (Condition::Revision(expected), Some(current)) if expected != current => {
                    Some(v1::ErrorCode::RevisionMismatch)
                }
                _ => None,
            }
        })
    }

    fn register(&mut self, session: u64, register: &v1::RegisterRequest) {
        for node in &register.nodes {
            let id = node.registration.clone().unwrap().id;
            self.held.remove(&id);
            self.registered.push(id.clone());
            for other in self.sessions.values_mut() {
                other.nodes.remove(&id);
            }
            let nodes = &mut self.sessions.get_mut(&session).unwrap().nodes;
            nodes.insert(id.clone(), node.clone());
            self.modified.insert(id, self.revision + 1);
        }
    }

    /// All sessions lapse, and the guard holds what they had.
    pub(crate) fn hold_all(&mut self) {
        for (id, session) in std::mem::take(&mut self.sessions) {
            self.held.extend(session.nodes.into_keys().map(|node| (node, id)));
        }
    }
}

pub(crate) type Cluster = Arc<Mutex<Shared>>;

/// One server.
pub(crate) struct Server {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    core: Core,
    stop: watch::Sender<bool>,
}

type Attendant = mpsc::Sender<Result<v1::SessionResponse, Status>>;
type Watcher = mpsc::Sender<Result<v1::WatchResponse, Status>>;
type Asker = mpsc::Sender<Result<v1::DiscoverResponse, Status>>;

#[derive(Clone)]
struct Core {
    id: u64,
    cluster: Cluster,
    /// The cluster's name.
    name: Arc<Mutex<&'static str>>,
    /// Takes requests and answers nothing, like a stopped process.
    mute: Arc<AtomicBool>,
    /// Applies writes and does not answer them.
    swallow: Arc<AtomicBool>,
    /// Cut off from the others: opens sessions for AP groups alone, and writes to no others.
    cut_off: Arc<AtomicBool>,
    /// Knows no streams of queries.
    old: Arc<AtomicBool>,
    /// Answers so many queries of a stream at once, the last one first.
    together: Arc<AtomicUsize>,
    stop: watch::Receiver<bool>,
    watchers: Arc<Mutex<Vec<Watcher>>>,
    attendants: Arc<Mutex<Vec<Attendant>>>,
    askers: Arc<Mutex<Vec<Asker>>>,
    /// Counts how often all streams were ended.
    breaks: watch::Sender<u64>,
}

impl Server {
    pub(crate) async fn start(id: u64, cluster: &Cluster) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let core = Core {
            id,
            cluster: Arc::clone(cluster),
            name: Arc::new(Mutex::new("fake")),
            mute: Arc::default(),
            swallow: Arc::default(),
            cut_off: Arc::default(),
            old: Arc::default(),
            together: Arc::new(AtomicUsize::new(1)),
            stop: stopped.clone(),
            watchers: Arc::default(),
            attendants: Arc::default(),
            askers: Arc::default(),
            breaks: watch::Sender::new(0),
        };
        let router = tonic::transport::Server::builder()
            .add_service(v1::sessions_server::SessionsServer::new(core.clone()))
            .add_service(v1::registry_server::RegistryServer::new(core.clone()))
            .add_service(v1::watch_server::WatchServer::new(core.clone()));
        let mut until = stopped;
        let serving = async move {
            let over = async move {
                let _ = until.wait_for(|stop| *stop).await;
            };
            router
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), over)
                .await
        };
        tokio::spawn(serving);
        Self {
            id,
            address,
            core,
            stop,
        }
    }

    /// Ends all streams and listens no more.
    pub(crate) fn kill(&self) {
        self.stop.send_replace(true);
        self.core.watchers.lock().clear();
    }

    /// Ends all streams, and goes on listening.
    pub(crate) fn break_streams(&self) {
        self.core.watchers.lock().clear();
        self.core.attendants.lock().clear();
        self.core.askers.lock().clear();
        self.core.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Says the last word of a server that closes in order, and ends all streams.
    pub(crate) async fn move_on(&self, after_ms: u32, servers: &[String]) {
        let advice = v1::MoveAdvice {
            after_ms,
            servers: servers.to_vec(),
            reason: "the server is closing".into(),
        };
        let askers = self.core.askers.lock().clone();
        for asker in askers {
            let advice = v1::discover_response::Answer::Move(advice.clone());
            let _ = asker.send(Ok(discovered(0, advice))).await;
        }
        let advice = v1::SessionResponse {
            call: 0,
            response: Some(v1::session_response::Response::Move(advice)),
        };
        let attendants = self.core.attendants.lock().clone();
        for attendant in attendants {
            let _ = attendant.send(Ok(advice.clone())).await;
        }
        let advice = v1::MoveOn {
            after_ms,
            servers: servers.to_vec(),
            reason: "the server is closing".into(),
        };
        let frame = v1::watch_frame::Frame::MoveOn(advice);
        self.send(vec![v1::WatchFrame { frame: Some(frame) }]).await;
        self.break_streams();
    }

    /// From now on it is a server of another cluster.
    pub(crate) fn rename(&self, name: &'static str) {
        *self.core.name.lock() = name;
    }

    pub(crate) fn mute(&self, mute: bool) {
        self.core.mute.store(mute, Ordering::SeqCst);
    }

    pub(crate) fn swallow(&self, swallow: bool) {
        self.core.swallow.store(swallow, Ordering::SeqCst);
    }

    pub(crate) fn cut_off(&self, cut_off: bool) {
        self.core.cut_off.store(cut_off, Ordering::SeqCst);
    }

    /// Whether it knows streams of queries.
    pub(crate) fn old(&self, old: bool) {
        self.core.old.store(old, Ordering::SeqCst);
    }

    /// Answers so many queries of a stream at once, the last one first.
    pub(crate) fn answer_together(&self, queries: usize) {
        self.core.together.store(queries, Ordering::SeqCst);
    }

    /// Says to those with a stream of queries that it closes, and does not.
    pub(crate) async fn send_askers_away(&self) {
        let askers = self.core.askers.lock().clone();
        for asker in askers {
            let advice = v1::MoveAdvice {
                reason: "the server is closing".into(),
                ..v1::MoveAdvice::default()
            };
            let advice = v1::discover_response::Answer::Move(advice);
            let _ = asker.send(Ok(discovered(0, advice))).await;
        }
    }

    /// Sends frames to all watchers of this server.
    pub(crate) async fn send(&self, frames: Vec<v1::WatchFrame>) {
        let senders = self.core.watchers.lock().clone();
        for sender in senders {
            let _ = sender.send(Ok(response(&frames))).await;
        }
    }

    /// The same about AP groups.
    pub(crate) async fn send_ap(&self, frames: Vec<v1::WatchFrame>) {
        let senders = self.core.watchers.lock().clone();
        for sender in senders {
            let _ = sender.send(Ok(ap_response(self.id, &frames))).await;
        }
    }
}

fn discovered(call: u64, answer: v1::discover_response::Answer) -> v1::DiscoverResponse {
    v1::DiscoverResponse {
        call,
        answer: Some(answer),
    }
}

/// A message about AP groups, as this server counts.
pub(crate) fn ap_response(server: u64, frames: &[v1::WatchFrame]) -> v1::WatchResponse {
    v1::WatchResponse {
        mode: v1::GroupMode::Ap.into(),
        epoch: epoch_of(server),
        ..response(frames)
    }
}

pub(crate) fn epoch_of(server: u64) -> u64 {
    server * 1_000
}

pub(crate) fn response(frames: &[v1::WatchFrame]) -> v1::WatchResponse {
    v1::WatchResponse {
        frames: frames.iter().map(|frame| frame.encode_to_vec().into()).collect(),
        ..v1::WatchResponse::default()
    }
}

fn named(cluster: &str, response: v1::WatchResponse) -> v1::WatchResponse {
    let cluster = cluster.into();
    v1::WatchResponse { cluster, ..response }
}

/// What is said to whoever has seen more than this server.
fn ahead() -> v1::WatchFrame {
    let error = v1::Error {
        code: v1::ErrorCode::NotReady.into(),
        message: "that revision has not been applied here".into(),
        ..v1::Error::default()
    };
    let rejected = v1::Rejected {
        subscription: 0,
        error: Some(error),
    };
    v1::WatchFrame {
        frame: Some(v1::watch_frame::Frame::Rejected(rejected)),
    }
}

fn service_not_found() -> Status {
    let error = v1::Error {
        code: v1::ErrorCode::ServiceNotFound.into(),
        message: "no such service".into(),
        effect: v1::Effect::None.into(),
        ..v1::Error::default()
    };
    Status::with_details(
        tonic::Code::NotFound,
        "no such service",
        error.encode_to_vec().into(),
    )
}

fn error(code: v1::ErrorCode) -> v1::session_response::Response {
    v1::session_response::Response::Error(v1::Error {
        code: code.into(),
        message: format!("{code:?}"),
        effect: v1::Effect::None.into(),
        ..Default::default()
    })
}

impl Core {
    /// The view, under the name that was asked for.
    fn found(&self, query: &v1::QueryRequest) -> Option<v1::QueryResponse> {
        let mut cluster = self.cluster.lock();
        cluster.queries += 1;
        let view = v1::ServiceView {
            key: query.key.clone(),
            ..cluster.view.clone()?
        };
        let known = query.known_sign.is_some() && query.known_sign == view.sign;
        let unchanged = known && (cluster.older || query.known_metadata_hash == metadata_hash(&view));
        let mut header = self.header(cluster.revision)?;
        header.age_ms = cluster.age_ms;
        if cluster.queried_in_ap {
            (header.mode, header.epoch) = (v1::GroupMode::Ap.into(), epoch_of(self.id));
        }
        Some(v1::QueryResponse {
            header: Some(header),
            unchanged,
            view: (!unchanged).then(|| view.encode_to_vec().into()),
            keep_cache_ms: cluster.keep_cache_ms,
        })
    }

    fn answer_query(&self, query: &v1::QueryRequest) -> v1::discover_response::Answer {
        use v1::discover_response::Answer;
        let service = query.key.clone().unwrap_or_default().service;
        match self.found(query).filter(|_| service != "absent") {
            Some(found) => Answer::Found(found),
            None => Answer::Error(v1::Error {
                code: v1::ErrorCode::ServiceNotFound.into(),
                message: "no such service".into(),
                subject: service,
                effect: v1::Effect::None.into(),
                ..v1::Error::default()
            }),
        }
    }

    fn header(&self, revision: u64) -> Option<v1::ResponseHeader> {
        Some(v1::ResponseHeader {
            cluster: (*self.name.lock()).into(),
            server: self.id,
            revision,
            ..Default::default()
        })
    }

    /// In which mode the groups of a write are; groups below `ap` are in mode AP whatever the others are in.
    fn modes(&self, cluster: &Shared, request: &v1::session_request::Request) -> BTreeSet<i32> {
        use v1::session_request::Request as R;
        let groups: Vec<&str> = match request {
            R::Register(write) => (write.nodes.iter())
                .filter_map(|node| node.key.as_ref())
                .map(|key| &*key.group)
                .collect(),
            R::Update(write) => (write.nodes.iter())
                .filter_map(|node| node.key.as_ref())
                .map(|key| &*key.group)
                .collect(),
            _ => Vec::new(),
        };
        let mode = |group: &&str| match group.starts_with("ap") {
            true => i32::from(v1::GroupMode::Ap),
            false => cluster.mode.into(),
        };
        groups.iter().map(mode).collect()
    }

    /// `None`: not answered.
    fn answer(
        &self,
        request: v1::SessionRequest,
        own: &mut BTreeSet<u64>,
    ) -> Option<v1::session_response::Response> {
        use v1::session_request::Request as R;
        use v1::session_response::Response as A;
        if self.mute.load(Ordering::SeqCst) {
            return None;
        }
        let mut cluster = self.cluster.lock();
        let session = request.session;
        let options = match request.request.as_ref()? {
            R::Register(write) => write.options.clone(),
            R::Deregister(write) => write.options.clone(),
            R::Update(write) => write.options.clone(),
            R::Close(write) => write.options.clone(),
            R::Open(_) | R::Attach(_) | R::Renew(_) => None,
        };
        if let Some(options) = &options {
            cluster.requests.push(options.request_id.to_vec());
            if !cluster.refuse.is_empty() {
                return Some(A::Error(cluster.refuse.remove(0)));
            }
            if !own.contains(&session) {
                return Some(error(v1::ErrorCode::SessionForeign));
            }
            let registers = matches!(request.request, Some(R::Register(_)));
            let found = cluster.sessions.get(&session);
            if found.is_none_or(|found| registers && cluster.registers_nothing.contains(&found.mode)) {
                return Some(error(v1::ErrorCode::SessionNotFound));
            }
        }
        let modes = self.modes(&cluster, request.request.as_ref()?);
        if modes.len() > 1 {
            return Some(error(v1::ErrorCode::InvalidArgument));
        }
        let mode = modes.first().copied().unwrap_or_default();
        let cut_off = self.cut_off.load(Ordering::SeqCst);
        let ap = i32::from(v1::GroupMode::Ap);
        if cut_off && modes.iter().any(|mode| *mode != ap) {
            return Some(error(v1::ErrorCode::Unavailable));
        }
        if cluster.no_quorum && modes.contains(&i32::from(cluster.mode)) {
            return Some(error(v1::ErrorCode::Unavailable));
        }
        let written = |cluster: &mut Shared, change: &dyn Fn(&mut Shared)| {
            let id = options.clone().unwrap_or_default().request_id.to_vec();
            let repeated = cluster.applied.contains_key(&id);
            if !repeated {
                change(cluster);
                cluster.revision += 1;
                cluster.applied.insert(id.clone(), cluster.revision);
            }
            let revision = cluster.applied[&id];
            if self.swallow.load(Ordering::SeqCst) {
                return None;
            }
            Some(A::Written(v1::WriteResponse {
                header: self
                    .header(revision)
                    .map(|header| v1::ResponseHeader { mode, ..header }),
                revision,
                repeated,
                changed: true,
                acks: 0,
            }))
        };
        match request.request? {
            R::Open(_) if cluster.opens_nothing => Some(error(v1::ErrorCode::Unavailable)),
            R::Open(open) => {
                cluster.last_session += 1;
                let id = cluster.last_session;
                let mode = if cut_off { v1::GroupMode::Ap } else { open.mode() };
                let mut header = self.header(cluster.revision).unwrap_or_default();
                header.mode = mode.into();
                cluster.sessions.insert(
                    id,
                    Session {
                        ttl_ms: open.ttl_ms,
                        mode,
                        ..Default::default()
                    },
                );
                own.insert(id);
                Some(A::Opened(v1::Opened {
                    header: Some(header),
                    session: id,
                    secret: format!("secret-{id}").into_bytes().into(),
                    ttl_ms: open.ttl_ms,
                    ..Default::default()
                }))
            }
            R::Attach(attach) => {
                let (revision, names_nothing) = (cluster.revision, cluster.names_nothing);
                let Some(found) = cluster.sessions.get_mut(&session) else {
                    return Some(error(v1::ErrorCode::SessionNotFound));
                };
                if attach.secret != format!("secret-{session}") {
                    return Some(error(v1::ErrorCode::SessionForeign));
                }
                found.attached += 1;
                own.insert(session);
                let key = |node: &v1::RegisterNode| {
                    let key = node.key.clone().unwrap_or_default();
                    let id = node.registration.clone().unwrap_or_default().id;
                    v1::NodeKey {
                        group: key.group,
                        service: key.service,
                        node: id,
                    }
                };
                Some(A::Attached(v1::Attached {
                    header: self.header(revision),
                    ttl_ms: found.ttl_ms,
                    nodes: found.nodes.values().filter(|_| !names_nothing).map(key).collect(),
                    ..Default::default()
                }))
            }
            R::Renew(renew) => {
                let mut renewed = v1::Renewed::default();
                for id in renew.sessions {
                    match cluster.sessions.get_mut(&id) {
                        Some(found) => {
                            found.renewals += 1;
                            renewed.sessions.push(id);
                        }
                        None => renewed.not_found.push(id),
                    }
                }
                Some(A::Renewed(renewed))
            }
            R::Register(_) if cluster.disk_full => Some(error(v1::ErrorCode::DiskFull)),
            R::Register(register) => {
                let repeated = cluster
                    .applied
                    .contains_key(&options.clone().unwrap_or_default().request_id[..]);
                if let Some(code) = cluster.contests(&register).filter(|_| !repeated) {
                    return Some(error(code));
                }
                written(&mut cluster, &|cluster| cluster.register(session, &register))
            }
            R::Deregister(_) if cluster.deregisters_nothing => Some(error(v1::ErrorCode::Unavailable)),
            R::Deregister(deregister)
                if deregister.nodes.iter().any(|node| {
                    let owner = cluster.owner(&node.key.clone().unwrap_or_default().node);
                    owner.is_some_and(|owner| owner != session)
                }) =>
            {
                Some(error(v1::ErrorCode::NotOwner))
            }
            R::Deregister(deregister) => written(&mut cluster, &|cluster| {
                let nodes = &mut cluster.sessions.get_mut(&session).unwrap().nodes;
                for node in &deregister.nodes {
                    nodes.remove(&node.key.clone().unwrap().node);
                }
            }),
            R::Update(update)
                if update.nodes.iter().any(|update| {
                    let node = update.key.clone().unwrap_or_default().node;
                    !cluster.sessions[&session].nodes.contains_key(&node)
                }) =>
            {
                Some(error(v1::ErrorCode::NotOwner))
            }
            R::Update(update) => written(&mut cluster, &|cluster| {
                let nodes = &mut cluster.sessions.get_mut(&session).unwrap().nodes;
                for update in &update.nodes {
                    let node = nodes.get_mut(&update.key.clone().unwrap().node).unwrap();
                    node.registration.as_mut().unwrap().state = update.state;
                }
            }),
            R::Close(_) if cluster.closes_nothing => Some(error(v1::ErrorCode::SessionNotFound)),
            // What it has in AP groups is gone, and of the rest this server knows nothing.
            R::Close(_) if cut_off => Some(A::Written(v1::WriteResponse {
                header: self
                    .header(1)
                    .map(|header| v1::ResponseHeader { mode: ap, ..header }),
                revision: 1,
                changed: true,
                ..v1::WriteResponse::default()
            })),
            R::Close(_) => written(&mut cluster, &|cluster| {
                cluster.sessions.remove(&session);
            }),
        }
    }
}

#[tonic::async_trait]
impl v1::registry_server::Registry for Core {
    async fn put_group(
        &self,
        _: Request<v1::PutGroupRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn delete_group(
        &self,
        _: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn put_service(
        &self,
        _: Request<v1::PutServiceRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn delete_service(
        &self,
        _: Request<v1::DeleteServiceRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn register(&self, _: Request<v1::RegisterRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn deregister(
        &self,
        _: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn update(&self, _: Request<v1::UpdateRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn set_override(
        &self,
        _: Request<v1::SetOverrideRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn clear_override(
        &self,
        _: Request<v1::ClearOverrideRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn list_services(
        &self,
        _: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn list_groups(
        &self,
        _: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn confirm_removal(
        &self,
        _: Request<v1::ConfirmRemovalRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn set_storm(
        &self,
        _: Request<v1::SetStormRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn storm(&self, _: Request<v1::StormRequest>) -> Result<Response<v1::StormResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn set_group_mode(
        &self,
        _: Request<v1::SetGroupModeRequest>,
    ) -> Result<Response<v1::SetGroupModeResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn refused_registrations(
        &self,
        _: Request<v1::RefusedRegistrationsRequest>,
    ) -> Result<Response<v1::RefusedRegistrationsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let mut cluster = self.cluster.lock();
        cluster.explained += 1;
        if cluster.explains_nothing || self.cut_off.load(Ordering::SeqCst) {
            return Err(Status::unavailable("no quorum"));
        }
        let id = request.into_inner().key.unwrap_or_default().node;
        if cluster.moves_on_when_asked {
            cluster.revision += 10;
        }
        if cluster.lost_services && cluster.owner(&id).is_none() {
            return Err(service_not_found());
        }
        let node = cluster.owner(&id).map(|session| v1::Node {
            session,
            modified_revision: cluster.modified[&id],
            id,
            ..v1::Node::default()
        });
        Ok(Response::new(v1::ExplainResponse {
            header: self.header(cluster.revision),
            listed: node.is_some(),
            node,
            ..v1::ExplainResponse::default()
        }))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let found = self.found(&request.into_inner());
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no view"))
    }

    type DiscoverStream = Answers<v1::DiscoverResponse>;

    async fn discover(
        &self,
        request: Request<Streaming<v1::DiscoverRequest>>,
    ) -> Result<Response<Self::DiscoverStream>, Status> {
        let stream = {
            let mut cluster = self.cluster.lock();
            cluster.discover_streams += 1;
            cluster.discover_streams
        };
        if self.old.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("an older server"));
        }
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        self.askers.lock().push(sender.clone());
        let core = self.clone();
        let mut breaks = self.breaks.subscribe();
        tokio::spawn(async move {
            let mut gathered = Vec::new();
            loop {
                let request = tokio::select! {
                    _ = breaks.changed() => return,
                    request = requests.message() => request,
                };
                let Ok(Some(request)) = request else { return };
                core.cluster
                    .lock()
                    .discovered
                    .push((core.id, stream, request.clone()));
                if core.mute.load(Ordering::SeqCst) {
                    continue;
                }
                gathered.push(request);
                if gathered.len() < core.together.load(Ordering::SeqCst) {
                    continue;
                }
                for request in gathered.drain(..).rev() {
                    let answer = core.answer_query(&request.query.unwrap_or_default());
                    if sender.send(Ok(discovered(request.call, answer))).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(until_stopped(receiver, self.stop.clone())))
    }

    async fn signs(&self, request: Request<v1::SignsRequest>) -> Result<Response<v1::SignsResponse>, Status> {
        let is_bad = |key: &v1::ServiceKey| key.service.contains(' ');
        if request.get_ref().keys.iter().any(is_bad) {
            return Err(refused(v1::ErrorCode::InvalidName));
        }
        let read_mode = request.get_ref().read.unwrap_or_default().mode();
        let mut cluster = self.cluster.lock();
        cluster.sign_calls += 1;
        let age_max = request.get_ref().read.map_or(0, |read| read.max_age_ms);
        if age_max > 0 && cluster.age_ms > age_max {
            return Err(refused(v1::ErrorCode::TooStale));
        }
        if read_mode != v1::ReadMode::Local {
            cluster.sure_signs += 1;
            if cluster.no_quorum {
                return Err(refused(v1::ErrorCode::Unavailable));
            }
        }
        let sign = |key: v1::ServiceKey| {
            let view = cluster
                .view
                .as_ref()
                .filter(|view| view.key.as_ref() == Some(&key));
            v1::ServiceSign {
                exists: view.is_some(),
                sign: view.and_then(|view| view.sign),
                revision: view.map_or(0, |view| view.revision),
                guard: view.and_then(|view| view.guard),
                key: Some(key),
                mode: match cluster.queried_in_ap && view.is_some() {
                    true => v1::GroupMode::Ap.into(),
                    false => v1::GroupMode::Cp.into(),
                },
                metadata_hash: view.filter(|_| !cluster.older).map_or(0, metadata_hash),
            }
        };
        let signs = request.into_inner().keys.into_iter().map(sign).collect();
        let header = self.header(cluster.revision).map(|header| v1::ResponseHeader {
            read_mode: read_mode.into(),
            age_ms: cluster.age_ms,
            epoch: epoch_of(self.id),
            ..header
        });
        Ok(Response::new(v1::SignsResponse { header, signs }))
    }
}

fn refused(code: v1::ErrorCode) -> Status {
    let error = v1::Error {
        code: code.into(),
        message: format!("{code:?}"),
        ..v1::Error::default()
    };
    Status::with_details(
        tonic::Code::InvalidArgument,
        "refused",
        error.encode_to_vec().into(),
    )
}

fn metadata_hash(view: &v1::ServiceView) -> u64 {
    let metadata = view.settings.iter().flat_map(|settings| &settings.metadata);
    rollcall_proto::metadata_hash(metadata.map(|(name, value)| (name.as_str(), value.as_str())))
}

type Answers<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

fn until_stopped<T: Send + 'static>(
    receiver: mpsc::Receiver<Result<T, Status>>,
    mut stop: watch::Receiver<bool>,
) -> Answers<T> {
    let over = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    Box::pin(ReceiverStream::new(receiver).take_until(over))
}

#[tonic::async_trait]
impl v1::sessions_server::Sessions for Core {
    type AttendStream = Answers<v1::SessionResponse>;

    async fn attend(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        self.attendants.lock().push(sender.clone());
        let core = self.clone();
        let mut breaks = self.breaks.subscribe();
        tokio::spawn(async move {
            let mut own = BTreeSet::new();
            loop {
                let request = tokio::select! {
                    _ = breaks.changed() => return,
                    request = requests.message() => request,
                };
                let Ok(Some(request)) = request else { return };
                let call = request.call;
                if let Some(answer) = core.answer(request, &mut own) {
                    let answer = v1::SessionResponse {
                        call,
                        response: Some(answer),
                    };
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(until_stopped(receiver, self.stop.clone())))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn end_session(
        &self,
        request: Request<v1::EndSessionRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        let request = request.into_inner();
        let id = request.options.unwrap_or_default().request_id.to_vec();
        if self.mute.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        let mut cluster = self.cluster.lock();
        cluster.requests.push(id.clone());
        if !cluster.refuse.is_empty() {
            let error = cluster.refuse.remove(0);
            return Err(Status::with_details(
                tonic::Code::Unavailable,
                error.message.clone(),
                error.encode_to_vec().into(),
            ));
        }
        let repeated = cluster.applied.contains_key(&id);
        if !repeated {
            cluster.sessions.remove(&request.session);
            cluster.revision += 1;
            let revision = cluster.revision;
            cluster.applied.insert(id.clone(), revision);
        }
        let revision = cluster.applied[&id];
        Ok(Response::new(v1::WriteResponse {
            header: self.header(revision),
            revision,
            repeated,
            changed: true,
            acks: 0,
        }))
    }
}

#[tonic::async_trait]
impl v1::watch_server::Watch for Core {
    type WatchStream = Answers<v1::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let denied = {
            let mut cluster = self.cluster.lock();
            cluster.denials += u64::from(cluster.knows_no_token);
            cluster.knows_no_token
        };
        if denied {
            return Err(refused(v1::ErrorCode::Unauthenticated));
        }
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        self.watchers.lock().push(sender.clone());
        let core = self.clone();
        let mut breaks = self.breaks.subscribe();
        tokio::spawn(async move {
            let mut unnamed = true;
            loop {
                let request = tokio::select! {
                    _ = breaks.changed() => return,
                    request = requests.message() => request,
                };
                let Ok(Some(request)) = request else { return };
                // In the first message of each mode.
                let first = std::mem::take(&mut unnamed).then(|| (*core.name.lock()).to_owned());
                let (frames, ap_frames) = {
                    let mut cluster = core.cluster.lock();
                    match request.request {
                        Some(v1::watch_request::Request::Subscribe(subscribe)) => {
                            cluster.subscriptions.push((core.id, subscribe.clone()));
                            // The script is written for subscription 0; it gets the number that was chosen.
                            let (mut frames, mut ap_frames) =
                                (cluster.script.clone(), cluster.ap_script.clone());
                            if cluster.head.is_some_and(|head| subscribe.after_revision > head) {
                                (frames, ap_frames) = (vec![ahead()], Vec::new());
                            }
                            for frame in frames.iter_mut().chain(&mut ap_frames) {
                                match &mut frame.frame {
                                    Some(v1::watch_frame::Frame::Started(started)) => {
                                        started.subscription = subscribe.subscription;
                                        started.header = core.header(started.revision);
                                    }
                                    Some(v1::watch_frame::Frame::KeepCache(keep)) => {
                                        keep.subscription = subscribe.subscription;
                                    }
                                    Some(v1::watch_frame::Frame::Rejected(rejected)) => {
                                        rejected.subscription = subscribe.subscription;
                                    }
                                    _ => {}
                                }
                            }
                            (frames, ap_frames)
                        }
                        Some(v1::watch_request::Request::Ack(ack)) => {
                            match ack.mode() {
                                v1::GroupMode::Ap => cluster.ap_acks.push((ack.revision, ack.epoch)),
                                _ => cluster.acks.push(ack.revision),
                            }
                            Default::default()
                        }
                        Some(v1::watch_request::Request::Unsubscribe(_)) | None => Default::default(),
                    }
                };
                let name = first.unwrap_or_default();
                let cp = named(&name, response(&frames));
                if !frames.is_empty() && sender.send(Ok(cp)).await.is_err() {
                    return;
                }
                let ap = named(&name, ap_response(core.id, &ap_frames));
                if !ap_frames.is_empty() && sender.send(Ok(ap)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(until_stopped(receiver, self.stop.clone())))
    }

    async fn convergence(
        &self,
        _: Request<v1::ConvergenceRequest>,
    ) -> Result<Response<v1::ConvergenceResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// Waits until something holds; generous, since machines are busy.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
