//! Rollcall, through its wire contract alone: providers on the session stream and readers on one of queries, or both by
//! unary calls; a group replicated by Raft, or by gossip.

mod datagram;
mod queries;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use parking_lot::Mutex;
use prost::Message;
use rollcall_client::RegistryConfig;
use rollcall_proto::upgrade::{Channel, Streams};
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::watch_client::WatchClient;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use queries::Queries;

use super::{Client, Dialect, Node, PORT, Product, Programs, Read, Ticket, channel, endpoint};
use crate::board::Watcher;
use crate::server::{Ports, ServerPlan, first_line};

/// Largest answer taken; the server's bound is half of it.
const ANSWER_MAX: usize = 64 << 20;

/// As the SDK connects: each stream has a connection of its own.
fn way_to(address: &str) -> Result<Channel> {
    let sdk = RegistryConfig::new([address]);
    let streams = Streams::of_clients(sdk.keepalive_interval, sdk.keepalive_timeout, sdk.connect_timeout);
    Ok(Channel::connect_lazy(&endpoint(address)?, Some(streams)))
}

/// All processes of a workload have one address.
const DOORS: &str = "[doors]
connections_per_second = 1000000
connections_burst = 1000000
sessions_per_second = 1000000
sessions_burst = 1000000
[datagram]
beats_per_second = 100000000
beats_burst = 100000000
";

pub(crate) struct Rollcall;

#[tonic::async_trait]
impl Product for Rollcall {
    fn name(&self) -> &'static str {
        "Rollcall"
    }

    fn version(&self, programs: &Programs) -> Result<String> {
        let said = first_line(&programs.rollcalld, &["--version"])?;
        Ok(said.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    fn settings(&self) -> &'static str {
        "as it ships, but with no limit for new connections, sessions and datagrams from one address: all clients have the same"
    }

    fn plan(
        &self,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        _ttl: Duration,
    ) -> Result<Vec<ServerPlan>> {
        let mut ports = Ports::new();
        let mut addresses = Vec::new();
        for _ in 0..servers {
            addresses.push((ports.free()?, ports.free()?, ports.free()?));
        }
        let members: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(index, (client, peer, http))| {
                format!(
                    "{}=127.0.0.1:{peer},127.0.0.1:{client},127.0.0.1:{http}",
                    index + 1
                )
            })
            .collect();
        let config = folder.join("rollcalld.toml");
        std::fs::write(&config, DOORS)?;
        let plan = |(index, (client, peer, http)): (usize, &(u16, u16, u16))| {
            let folder = folder.join(format!("rollcall-{index}"));
            let mut plan = ServerPlan::new(programs.rollcalld.clone(), &folder);
            plan.address = format!("127.0.0.1:{client}");
            plan.arguments = [
                "--config".into(),
                config.display().to_string(),
                "--id".into(),
                (index + 1).to_string(),
                "--cluster".into(),
                "bench".into(),
                "--data".into(),
                folder.join("data").display().to_string(),
                "--members".into(),
                members.join(";"),
                "--listen-client".into(),
                format!("127.0.0.1:{client}"),
                "--listen-peer".into(),
                format!("127.0.0.1:{peer}"),
                "--listen-http".into(),
                format!("127.0.0.1:{http}"),
            ]
            .into();
            plan
        };
        Ok(addresses.iter().enumerate().map(plan).collect())
    }

    fn dialects(&self) -> Vec<Arc<dyn Dialect>> {
        let usual = Voice {
            name: "",
            group: "bench",
            mode: wire::GroupMode::Cp,
            unary: false,
            datagrams: false,
        };
        let unary = Voice {
            name: "unary",
            unary: true,
            ..usual
        };
        let ap = Voice {
            name: "AP",
            group: "edge",
            mode: wire::GroupMode::Ap,
            ..usual
        };
        let datagrams = Voice {
            name: "UDP",
            datagrams: true,
            ..usual
        };
        [usual, unary, ap, datagrams]
            .map(|voice| Arc::new(voice) as Arc<dyn Dialect>)
            .into()
    }

    async fn leader(&self, addresses: &[String]) -> Result<usize> {
        for (index, address) in addresses.iter().enumerate() {
            let mut cluster = ClusterClient::new(channel(address).await?);
            let status = cluster.status(wire::StatusRequest {}).await?.into_inner();
            if status.role() == wire::MemberRole::Leader {
                return Ok(index);
            }
        }
        bail!("no Rollcall server leads")
    }
}

/// How providers speak, and to which group.
#[derive(Clone, Copy)]
struct Voice {
    name: &'static str,
    group: &'static str,
    mode: wire::GroupMode,
    unary: bool,
    /// Their heartbeats need no connection.
    datagrams: bool,
}

impl Voice {
    async fn dial(&self, address: &str) -> Result<Arc<Connection>> {
        Ok(Arc::new(Connection {
            channel: way_to(address)?,
            group: self.group,
            unary: self.unary,
            sessions: OnceCell::new(),
            queries: OnceCell::new(),
            watches: OnceCell::new(),
            signs: Mutex::default(),
        }))
    }
}

#[tonic::async_trait]
impl Dialect for Voice {
    fn name(&self) -> &'static str {
        self.name
    }

    fn registers(&self) -> bool {
        !self.datagrams
    }

    fn renews(&self) -> bool {
        self.name.is_empty() || self.datagrams
    }

    fn can(&self, read: Read) -> bool {
        // Reads of AP groups are local whatever is asked for.
        self.mode == wire::GroupMode::Cp || read != Read::Linearizable
    }

    async fn prepare(&self, addresses: &[String], _services: &[Arc<str>]) -> Result<()> {
        let address = addresses.first().context("there is no server")?;
        let settings = wire::GroupSettings {
            mode: self.mode.into(),
            auto_create: true,
            ..wire::GroupSettings::default()
        };
        let request = wire::PutGroupRequest {
            group: self.group.into(),
            settings: Some(settings),
            ..wire::PutGroupRequest::default()
        };
        RegistryClient::new(channel(address).await?)
            .put_group(request)
            .await?;
        Ok(())
    }

    async fn connect(
        &self,
        address: &str,
        ttl: Duration,
        ticket: Option<&Ticket>,
    ) -> Result<Arc<dyn Client>> {
        let connection = self.dial(address).await?;
        if let Some(ticket) = ticket {
            let attach = wire::AttachSession {
                secret: ticket.secret.clone().into(),
            };
            match connection.say(ticket.session, Request::Attach(attach)).await? {
                Response::Attached(_) => {}
                other => return Err(refusal(other)),
            }
        }
        if self.datagrams && ticket.is_none() {
            return Ok(Arc::new(datagram::Datagrams::new(
                *self, address, ttl, connection,
            )));
        }
        Ok(connection)
    }
}

struct Connection {
    channel: Channel,
    group: &'static str,
    unary: bool,
    sessions: OnceCell<Sessions>,
    queries: OnceCell<Queries>,
    watches: OnceCell<Watches>,
    signs: Mutex<HashMap<String, wire::Sign>>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Response>>>>;

/// The session stream; answers carry the number of their call.
struct Sessions {
    requests: mpsc::UnboundedSender<wire::SessionRequest>,
    waiting: Waiting,
    next: AtomicU64,
}

/// The watch stream: each subscription follows one service.
struct Watches {
    requests: mpsc::UnboundedSender<wire::WatchRequest>,
    watched: Arc<Mutex<Watched>>,
    next: AtomicU64,
}

#[derive(Default)]
struct Watched {
    starting: HashMap<u64, oneshot::Sender<()>>,
    services: HashMap<String, Vec<Arc<Watcher>>>,
}

impl Connection {
    async fn sessions(&self) -> Result<Sessions> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let opening = SessionsClient::new(self.channel.clone())
            .attend(UnboundedReceiverStream::new(outgoing))
            .await?;
        let mut answers = opening.into_inner();
        let waiting = Waiting::default();
        let waiters = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let waiter = waiters.lock().remove(&answer.call);
                if let (Some(waiter), Some(response)) = (waiter, answer.response) {
                    let _gone = waiter.send(response);
                }
            }
            waiters.lock().clear();
        });
        Ok(Sessions {
            requests,
            waiting,
            next: AtomicU64::new(1),
        })
    }

    /// One call on the session stream.
    async fn say(&self, session: u64, request: Request) -> Result<Response> {
        let sessions = self.sessions.get_or_try_init(|| self.sessions()).await?;
        let call = sessions.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        sessions.waiting.lock().insert(call, answer);
        let request = wire::SessionRequest {
            call,
            session,
            request: Some(request),
        };
        sessions.requests.send(request).context("the stream has ended")?;
        answered.await.context("the stream has ended")
    }

    /// A query; `None`: there is no such service.
    async fn query(&self, query: wire::QueryRequest) -> Result<Option<wire::QueryResponse>> {
        if !self.unary {
            let opening = || Queries::open(self.channel.clone());
            return self.queries.get_or_try_init(opening).await?.ask(query).await;
        }
        let mut registry = RegistryClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX);
        match registry.query(query).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    async fn watches(&self) -> Result<Watches> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX);
        let mut answers = client
            .watch(UnboundedReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let watched: Arc<Mutex<Watched>> = Arc::default();
        let watchers = Arc::clone(&watched);
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let mut watchers = watchers.lock();
                answer.frames.iter().for_each(|frame| watchers.show(frame));
            }
        });
        Ok(Watches {
            requests,
            watched,
            next: AtomicU64::new(1),
        })
    }

    fn key(&self, service: &str) -> wire::ServiceKey {
        wire::ServiceKey {
            group: self.group.into(),
            service: service.into(),
        }
    }

    fn registration(&self, node: &Node) -> wire::RegisterNode {
        let address = wire::Address {
            name: "http".into(),
            host: node.host(),
            port: PORT.into(),
        };
        let registration = wire::Registration {
            id: node.id(),
            addresses: vec![address],
            metadata: [("data".to_owned(), node.payload())].into(),
            ..wire::Registration::default()
        };
        wire::RegisterNode {
            key: Some(self.key(&node.service)),
            registration: Some(registration),
            expected: None,
        }
    }
}

impl Watched {
    /// Shows a frame to whom it concerns.
    fn show(&mut self, frame: &[u8]) {
        if self.starting.is_empty()
            && self.services.len() == 1
            && let Some(watchers) = self.services.values().next()
        {
            watchers.iter().for_each(|watcher| watcher.see(frame));
            return;
        }
        let key = match wire::WatchFrame::decode(frame)
            .ok()
            .and_then(|decoded| decoded.frame)
        {
            Some(wire::watch_frame::Frame::Started(started)) => {
                if let Some(live) = self.starting.remove(&started.subscription) {
                    let _gone = live.send(());
                }
                None
            }
            Some(wire::watch_frame::Frame::Rejected(rejected)) => {
                self.starting.remove(&rejected.subscription);
                None
            }
            Some(wire::watch_frame::Frame::Delta(delta)) => delta.key,
            Some(wire::watch_frame::Frame::Snapshot(snapshot)) => snapshot.view.and_then(|view| view.key),
            _ => None,
        };
        let watchers = key.and_then(|key| self.services.get(&key.service));
        watchers
            .into_iter()
            .flatten()
            .for_each(|watcher| watcher.see(frame));
    }
}

fn refusal(response: Response) -> anyhow::Error {
    match response {
        Response::Error(error) => anyhow!("{} ({:?})", error.message, error.code()),
        other => anyhow!("an answer of the wrong kind: {other:?}"),
    }
}

/// So many were.
fn renewed(count: usize, response: Response) -> Result<()> {
    match response {
        Response::Renewed(renewed) => {
            ensure!(renewed.not_found.is_empty(), "the session is gone");
            ensure!(renewed.sessions.len() == count, "not all sessions were renewed");
            Ok(())
        }
        other => Err(refusal(other)),
    }
}

fn written(response: Response) -> Result<()> {
    match response {
        Response::Written(_) => Ok(()),
        other => Err(refusal(other)),
    }
}

#[tonic::async_trait]
impl Client for Connection {
    async fn open(&self, ttl: Duration) -> Result<Ticket> {
        let open = wire::OpenSession {
            ttl_ms: u64::try_from(ttl.as_millis())?,
            client: "bench".into(),
            ..wire::OpenSession::default()
        };
        match self.say(0, Request::Open(open)).await? {
            Response::Opened(opened) => Ok(Ticket {
                session: opened.session,
                secret: opened.secret.to_vec(),
                heartbeat: opened.heartbeat,
            }),
            other => Err(refusal(other)),
        }
    }

    async fn register(&self, ticket: &Ticket, nodes: &[Node]) -> Result<()> {
        let mut request = wire::RegisterRequest {
            nodes: nodes.iter().map(|node| self.registration(node)).collect(),
            ..wire::RegisterRequest::default()
        };
        if self.unary {
            request.proof = Some(wire::SessionProof {
                session: ticket.session,
                secret: ticket.secret.clone().into(),
            });
            RegistryClient::new(self.channel.clone())
                .register(request)
                .await?;
            Ok(())
        } else {
            written(self.say(ticket.session, Request::Register(request)).await?)
        }
    }

    async fn replace(&self, ticket: &Ticket, _old: &Node, new: &Node) -> Result<()> {
        self.register(ticket, std::slice::from_ref(new)).await
    }

    async fn renew(&self, ticket: &Ticket) -> Result<()> {
        let renew = wire::Renew { sessions: Vec::new() };
        renewed(1, self.say(ticket.session, Request::Renew(renew)).await?)
    }

    async fn renew_all(&self, tickets: &[Ticket]) -> Result<()> {
        let first = tickets.first().context("whose heartbeat?")?;
        let sessions = tickets.iter().map(|ticket| ticket.session).collect();
        let renew = Request::Renew(wire::Renew { sessions });
        renewed(tickets.len(), self.say(first.session, renew).await?)
    }

    async fn discover(&self, service: &str, read: Read) -> Result<usize> {
        let known_sign = if read == Read::Unchanged {
            self.signs.lock().get(service).copied()
        } else {
            None
        };
        let mode = match read {
            Read::Local | Read::Unchanged => wire::ReadMode::Local,
            Read::Linearizable => wire::ReadMode::Linearizable,
        };
        let request = wire::QueryRequest {
            key: Some(self.key(service)),
            read: Some(wire::ReadOptions {
                mode: mode.into(),
                ..wire::ReadOptions::default()
            }),
            known_sign,
            ..wire::QueryRequest::default()
        };
        // Not there (yet): nobody has registered.
        let Some(answer) = self.query(request).await? else {
            return Ok(0);
        };
        if answer.unchanged {
            return Ok(0);
        }
        let view = wire::ServiceView::decode(answer.view.context("the answer holds no view")?)?;
        if let (Read::Unchanged, Some(sign)) = (read, view.sign) {
            self.signs.lock().insert(service.to_owned(), sign);
        }
        Ok(view.nodes.len())
    }

    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()> {
        let watches = self.watches.get_or_try_init(|| self.watches()).await?;
        let subscription = watches.next.fetch_add(1, Ordering::Relaxed);
        let (live, lives) = oneshot::channel();
        {
            let mut watched = watches.watched.lock();
            watched.starting.insert(subscription, live);
            watched
                .services
                .entry(service.to_string())
                .or_default()
                .push(watcher);
        }
        let subscribe = wire::Subscribe {
            subscription,
            target: Some(wire::WatchTarget {
                target: Some(wire::watch_target::Target::Service(self.key(service))),
            }),
            ..wire::Subscribe::default()
        };
        let request = wire::WatchRequest {
            request: Some(wire::watch_request::Request::Subscribe(subscribe)),
            client: "bench".into(),
            ..wire::WatchRequest::default()
        };
        watches.requests.send(request).context("the stream has ended")?;
        lives.await.context("the subscription was not started")
    }

    async fn close(&self, ticket: &Ticket) -> Result<()> {
        let close = wire::CloseSession { options: None };
        written(self.say(ticket.session, Request::Close(close)).await?)
    }
}
