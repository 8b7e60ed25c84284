//! One server: builds the parts, hands out handles, shuts down in reverse order.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rollcall_core::directory::{ChangeLogBounds, Command, Expected, GroupSettings, Refusal, Request};
use rollcall_core::ids::{GroupName, RequestId, ServerId};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::access::{TokenFileError, Tokens};
use crate::ap::{Ap, ApOptions};
use crate::config::{Config, ConfigError, DoorsConfig, MemberConfig, Preset};
use crate::datagram::{self, Datagrams, DatagramsParts};
use crate::descriptors;
use crate::gossip::{self, Gossip, GossipMetrics, GossipOptions, GossipStartError};
use crate::grpc::{Doors, DoorsParts, Gate, ListenError, UpgradedStreams, bind};
use crate::http::{self, Pages, Readiness};
use crate::pulse;
use crate::raft::types::PeerAddresses;
use crate::raft::{Consensus, LeaderDesk, ProposeError, ReplicationOptions, StartError as ReplicationError};
use crate::session::{Authority, AuthoritySettings, Holder};
use crate::storm::StormDesk;
use crate::telemetry::{Metrics, ServerMetrics};
use crate::watch::{WatchHub, Watches};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// How long streams and calls may take to end once they were told to.
const CLOSING_GRACE: Duration = Duration::from_secs(2);
/// Silent peers are asked for a sign of life this often.
const PEER_KEEPALIVE: Duration = Duration::from_secs(5);
/// Most connections between servers: a few for each of them.
const PEER_CONNECTIONS_MAX: usize = 256;
/// How much a peer may send ahead of what is read: snapshots and bursts of appends.
const PEER_WINDOW: u32 = 4 << 20;
/// How often the health service looks at readiness.
const HEALTH_LOOK: Duration = Duration::from_millis(250);
/// Pause between attempts to set the development group up.
const PRESET_PAUSE: Duration = Duration::from_millis(200);
/// The group that `--dev` sets up.
const DEV_GROUP: &str = "default";

/// Why the server did not start. Nothing is left behind; correct what is named and start again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Correct the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Stop whoever has the address, or choose another.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The data folder or replication could not be opened.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// Gossip could not be started.
    #[error(transparent)]
    Gossip(#[from] GossipStartError),
    /// Correct the token file.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
}

/// Where a server is reached; ports that were left open are filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC for other servers.
    pub peer: SocketAddr,
    /// Gossip (UDP), unless it is off.
    pub gossip: Option<SocketAddr>,
    /// Heartbeats of clients by datagram (UDP), unless they are off.
    pub heartbeat: Option<SocketAddr>,
    /// Health, metrics.
    pub http: SocketAddr,
}

struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    gossip: Option<UdpSocket>,
    heartbeat: Option<StdUdpSocket>,
    http: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, ListenError> {
        let listen = &config.listen;
        let client = bind(listen.client, "--listen-client").await?;
        let peer = bind(listen.peer, "--listen-peer").await?;
        let gossip = match config.gossip.enabled {
            true => Some(gossip::bind(listen, peer.local_addr().unwrap_or(listen.peer)).await?),
            false => None,
        };
        let heartbeat = match config.datagram.enabled {
            true => Some(datagram::bind(
                listen,
                &config.datagram,
                client.local_addr().unwrap_or(listen.client),
            )?),
            false => None,
        };
        Ok(Self {
            client,
            peer,
            gossip,
            heartbeat,
            http: bind(listen.http, "--listen-http").await?,
        })
    }

    fn addresses(&self, config: &Config) -> Addresses {
        // A listener that cannot say where it listens still listens where it was told to.
        let bound = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        Addresses {
            client: bound(&self.client, config.listen.client),
            peer: bound(&self.peer, config.listen.peer),
            gossip: self.gossip.as_ref().and_then(|socket| socket.local_addr().ok()),
            heartbeat: self
                .heartbeat
                .as_ref()
                .and_then(|socket| socket.local_addr().ok()),
            http: bound(&self.http, config.listen.http),
        }
    }
}

/// A running server.
pub struct Server {
    addresses: Addresses,
    consensus: Consensus,
    /// Replication only knows of it.
    _desk: Arc<dyn LeaderDesk>,
    ap: Ap,
    watches: Watches,
    doors: Doors,
    health: HealthReporter,
    move_spread: Duration,
    /// Streams are told to move on.
    closing: CancellationToken,
    /// Listeners take nothing new.
    doors_stop: CancellationToken,
    /// Everything behind the doors ends.
    stop: CancellationToken,
    /// The other servers are no longer answered.
    peers_stop: CancellationToken,
    client_door: JoinHandle<()>,
    peer_door: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    gossip: Option<Gossip>,
}

impl Server {
    /// Starts a server: checks the configuration, takes the addresses, opens the data folder, and joins.
    /// Returns when it serves, which may be before it knows a leader.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(mut config: Config, preset: Preset) -> Result<Self, StartError> {
        config.check()?;
        config.doors.connections_max = descriptors::connections_that_fit(config.doors.connections_max);
        let tokens = Tokens::load(config.tokens.path.as_deref())?;
        let listeners = Listeners::bind(&config).await?;
        let addresses = listeners.addresses(&config);
        let options = replication_options(&config, addresses);
        let founders = founders(&config, &options.addresses);
        let consensus = Consensus::start(options).await?;

        let [closing, doors_stop, stop, peers_stop] = std::array::from_fn(|_| CancellationToken::new());
        let metrics = Metrics::new();
        let gossiping = match listeners.gossip {
            Some(socket) => start_gossip(&config, socket, &consensus, metrics.gossip, stop.clone()),
            None => Ok(None),
        };
        let gossiping = match gossiping {
            Ok(gossiping) => gossiping,
            Err(error) => {
                consensus.shutdown().await;
                return Err(error.into());
            }
        };
        let (gossip, gossip_task) = gossiping.unzip();
        let options = ApOptions {
            consensus: consensus.clone(),
            gossip: gossip.clone(),
            config: config.ap.clone(),
            change_log: change_log(&config),
            metrics: metrics.ap,
        };
        let (ap, ap_tasks) = match Ap::start(options, stop.clone()).await {
            Ok(started) => started,
            Err(error) => {
                stop.cancel();
                consensus.shutdown().await;
                return Err(StartError::Replication(error.into()));
            }
        };
        let holder = Holder::start(consensus.clone(), stop.clone());
        let authority = Authority::start(consensus.clone(), authority_settings(&config), stop.clone());
        let desk: Arc<dyn LeaderDesk> = Arc::new(authority);
        consensus.set_desk(&desk);
        let peer_door = tokio::spawn(serve_peers(
            listeners.peer,
            config.doors.clone(),
            consensus.clone(),
            ap.clone(),
            peers_stop.clone(),
        ));
        let directory = consensus.directory().clone();
        let storm = StormDesk::new(&config.storm, metrics.storm);
        let hub = WatchHub::new(
            directory.clone(),
            config.watch.clone(),
            config.doors.message_bytes_max,
            metrics.watch.cp,
            storm.clone(),
        );
        let ap_hub = hub.beside(ap.view().clone(), metrics.watch.ap);
        let watches = Watches::new(hub.clone(), ap_hub.clone());
        let readiness = Readiness::new(consensus.clone());
        let doors = Doors::new(
            &config,
            DoorsParts {
                consensus: consensus.clone(),
                ap: ap.clone(),
                holder: holder.clone(),
                watches: watches.clone(),
                gossip: gossip.clone(),
                storm: storm.clone(),
                tokens: tokens.clone(),
                readiness: readiness.clone(),
                metrics: metrics.doors,
                heartbeat: addresses
                    .heartbeat
                    .map_or_else(String::new, |bound| datagram::told(&config.listen, bound)),
                closing: closing.clone(),
            },
        );
        let health = HealthReporter::new();
        let pages = Pages {
            readiness: readiness.clone(),
            registry: Arc::new(metrics.registry),
            server: ServerMetrics::new(metrics.gauges, consensus.clone(), ap.clone(), holder),
        };
        let guard = metrics.guard;
        let mut tasks = vec![
            tokio::spawn(hub.run(consensus.applied_head(), stop.clone())),
            tokio::spawn(ap_hub.run(ap.applied_head(), stop.clone())),
            tokio::spawn(
                guard
                    .clone()
                    .follow(ap.view().clone(), ap.applied_head(), stop.clone()),
            ),
            tokio::spawn(guard.follow(directory.clone(), consensus.applied_head(), stop.clone())),
            tokio::spawn(storm.run(directory, consensus.applied_head(), stop.clone())),
            tokio::spawn(serve_pages(
                listeners.http,
                config.doors.clone(),
                pages,
                stop.clone(),
            )),
            tokio::spawn(report_health(
                health.clone(),
                readiness,
                doors.clone(),
                watches.clone(),
                closing.clone(),
            )),
            tokio::spawn(found(
                config.cluster.join,
                founders,
                consensus.clone(),
                stop.clone(),
            )),
            tokio::spawn(set_up(preset, consensus.clone(), stop.clone())),
            tokio::spawn(tokens.keep_current(stop.clone())),
        ];
        if let Some(socket) = listeners.heartbeat {
            let parts = DatagramsParts {
                socket,
                doors: doors.clone(),
                metrics: metrics.datagram,
            };
            match Datagrams::start(&config.datagram, parts, &stop) {
                Ok(listening) => tasks.extend(listening),
                // Clients are told where they are, and find nobody: they stay on their streams.
                Err(error) => tracing::error!(%error, "heartbeats by datagram cannot be taken"),
            }
        }
        tasks.extend(gossip_task);
        tasks.extend(ap_tasks);
        if let Some(gossip) = gossip.clone() {
            tasks.push(tokio::spawn(gossip::publish_heads(
                gossip,
                consensus.clone(),
                stop.clone(),
            )));
        }
        let serving = doors
            .clone()
            .serve(listeners.client, health.clone(), doors_stop.clone());
        let client_door = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the client listener failed");
            }
        });
        let move_spread = config.session.move_spread;
        Ok(Self {
            addresses,
            consensus,
            _desk: desk,
            ap,
            watches,
            doors,
            health,
            move_spread,
            closing,
            doors_stop,
            stop,
            peers_stop,
            client_door,
            peer_door,
            tasks,
            gossip,
        })
    }

    /// Where it is reached.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its replication handle.
    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// Its AP groups.
    #[must_use]
    pub fn ap(&self) -> &Ap {
        &self.ap
    }

    /// Its gossip, unless that is off.
    #[must_use]
    pub fn gossip(&self) -> Option<&Gossip> {
        self.gossip.as_ref()
    }

    /// Its watches.
    #[must_use]
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Waits until replication has ended, and says why. After that nothing can be made durable: shut down and
    /// start anew.
    pub async fn stopped(&self) -> String {
        self.consensus.stopped().await
    }

    /// Shuts down: leadership is handed over, clients are told where to go and when, what was taken in is finished within a bound, then
    /// replication leaves the disk in order.
    pub async fn shutdown(mut self) {
        tracing::info!("closing");
        self.health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        self.hand_over().await;
        self.closing.cancel();
        let spread_ms = u32::try_from(self.move_spread.as_millis()).unwrap_or(u32::MAX);
        self.watches.close(&self.doors.other_servers(), spread_ms);
        self.doors_stop.cancel();
        if tokio::time::timeout(CLOSING_GRACE, &mut self.client_door)
            .await
            .is_err()
        {
            tracing::info!("some clients did not leave in time");
            self.client_door.abort();
        }
        self.stop.cancel();
        for task in self.tasks {
            if tokio::time::timeout(CLOSING_GRACE, task).await.is_err() {
                tracing::warn!("a part did not end in time");
            }
        }
        self.consensus.shutdown().await;
        self.peers_stop.cancel();
        if tokio::time::timeout(CLOSING_GRACE, &mut self.peer_door)
            .await
            .is_err()
        {
            self.peer_door.abort();
        }
        tracing::info!("closed");
    }

    /// A leader that closes finds a successor first, so that its clients' next writes wait for no election.
    async fn hand_over(&self) {
        let leads = self.consensus.leadership().borrow().leading;
        let voters = self
            .consensus
            .members()
            .iter()
            .filter(|member| member.voter)
            .count();
        if leads && voters > 1 {
            let deadline = Instant::now() + CLOSING_GRACE;
            if let Err(error) = self.consensus.transfer_leadership(None, deadline).await {
                tracing::warn!(%error, "leadership was not handed over");
            }
        }
    }
}

fn replication_options(config: &Config, addresses: Addresses) -> ReplicationOptions {
    let listen = &config.listen;
    let advertised =
        |told: &Option<String>, bound: SocketAddr| told.clone().unwrap_or_else(|| bound.to_string());
    let own = PeerAddresses {
        peer_address: advertised(&listen.advertise_peer, addresses.peer),
        client_address: advertised(&listen.advertise_client, addresses.client),
        http_address: advertised(&listen.advertise_http, addresses.http),
    };
    let raft = &config.raft;
    ReplicationOptions {
        cluster: config.cluster.name.clone(),
        server: ServerId(config.cluster.id),
        addresses: own,
        data: config.storage.data.clone(),
        election_timeout: (raft.election_timeout_min, raft.election_timeout_max),
        heartbeat_interval: raft.heartbeat_interval,
        snapshot_after_entries: raft.snapshot_after_entries,
        log_keep_entries: raft.log_keep_entries,
        disk_reserve: config.storage.reserve_bytes,
        compare_every: raft.compare_every,
        change_log: change_log(config),
    }
}

fn change_log(config: &Config) -> ChangeLogBounds {
    ChangeLogBounds {
        revisions_max: config.watch.retained_revisions,
        bytes_max: config.watch.retained_bytes,
    }
}

/// The servers that found the cluster. Of itself a server knows better where a port was left open.
fn founders(config: &Config, own: &PeerAddresses) -> BTreeMap<ServerId, PeerAddresses> {
    let open = |member: &MemberConfig| {
        [&member.peer, &member.client]
            .iter()
            .any(|address| address.ends_with(":0"))
    };
    let founder = |member: &MemberConfig| {
        let told = PeerAddresses {
            peer_address: member.peer.clone(),
            client_address: member.client.clone(),
            http_address: member.http.clone(),
        };
        let known = if member.id == config.cluster.id && open(member) {
            own.clone()
        } else {
            told
        };
        (ServerId(member.id), known)
    };
    config.cluster.members.iter().map(founder).collect()
}

fn start_gossip(
    config: &Config,
    socket: UdpSocket,
    consensus: &Consensus,
    metrics: GossipMetrics,
    stop: CancellationToken,
) -> Result<Option<(Gossip, JoinHandle<()>)>, GossipStartError> {
    let bound = socket.local_addr().unwrap_or(config.listen.peer);
    let options = GossipOptions {
        cluster: config.cluster.name.clone(),
        server: ServerId(config.cluster.id),
        data: config.storage.data.clone(),
        advertise: gossip::advertised(&config.listen, bound),
        seeds: gossip::seeds(config, consensus),
        config: config.gossip.clone(),
        metrics,
    };
    Gossip::start(options, socket, stop).map(Some)
}

fn authority_settings(config: &Config) -> AuthoritySettings {
    AuthoritySettings {
        election_timeout: config.raft.election_timeout_max,
        spread: config.raft.election_timeout_max,
    }
}

/// The other servers' listener.
async fn serve_peers(
    listener: TcpListener,
    limits: DoorsConfig,
    consensus: Consensus,
    ap: Ap,
    stop: CancellationToken,
) {
    let gate = Gate::new(
        listener,
        PEER_CONNECTIONS_MAX,
        &limits,
        Gauge::default(),
        Counter::default(),
    );
    let over = CancellationToken::new();
    let gate = gate.until(over.clone());
    let _over = over.drop_guard();
    let routes = Routes::new(consensus.peer_service())
        .add_service(ap.peer_service())
        .prepare();
    let limits = DoorsConfig {
        keepalive_interval: PEER_KEEPALIVE,
        keepalive_timeout: PEER_KEEPALIVE,
        ..limits
    };
    let streams = UpgradedStreams::new(routes.clone(), &limits);
    let connections = streams.beside(gate, stop.clone());
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PEER_KEEPALIVE))
        .http2_keepalive_timeout(Some(PEER_KEEPALIVE))
        .initial_stream_window_size(PEER_WINDOW)
        .initial_connection_window_size(PEER_WINDOW * 2)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    match serving.await {
        Ok(()) => streams.ended().await,
        Err(error) => tracing::error!(%error, "the peer listener failed"),
    }
}

/// Founds the cluster, or finds that there is one.
async fn found(
    join: bool,
    founders: BTreeMap<ServerId, PeerAddresses>,
    consensus: Consensus,
    stop: CancellationToken,
) {
    if join {
        return;
    }
    match stop.run_until_cancelled(consensus.initialize(founders)).await {
        Some(Ok(found)) => tracing::debug!(?found, "the cluster stands"),
        Some(Err(error)) => tracing::error!(%error, "the cluster could not be founded"),
        None => {}
    }
}

async fn serve_pages(listener: TcpListener, limits: DoorsConfig, pages: Pages, stop: CancellationToken) {
    let serving = http::serve(listener, &limits, pages, stop.clone());
    let outcome = tokio::select! {
        outcome = serving => outcome,
        // Whoever keeps a connection open does not keep the server.
        () = async { stop.cancelled().await; tokio::time::sleep(CLOSING_GRACE / 4).await } => return,
    };
    if let Err(error) = outcome {
        tracing::error!(%error, "the http listener failed");
    }
}

/// Keeps the health service up to date. Watchers leave a server whose state is not to be shown any more.
async fn report_health(
    health: HealthReporter,
    readiness: Readiness,
    doors: Doors,
    watches: Watches,
    closing: CancellationToken,
) {
    let mut ready = None;
    let mut shown = true;
    loop {
        let now = readiness.check();
        if ready != Some(now.is_ok()) {
            ready = Some(now.is_ok());
            let status = if now.is_ok() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            health.set_service_status("", status).await;
            match now {
                Ok(()) => tracing::info!("ready"),
                Err(reason) => tracing::info!(reason, "not ready"),
            }
        }
        if shown && !readiness.may_show() {
            shown = false;
            watches.close(&doors.other_servers(), 0);
        }
        tokio::select! {
            () = closing.cancelled() => return,
            () = pulse::pause(HEALTH_LOOK) => {}
        }
    }
}

/// Creates the development group, once somebody leads.
async fn set_up(preset: Preset, consensus: Consensus, stop: CancellationToken) {
    match preset {
        Preset::None => {}
        Preset::Dev => _ = stop.run_until_cancelled(create_dev_group(&consensus)).await,
    }
}

async fn create_dev_group(consensus: &Consensus) {
    let group: GroupName = DEV_GROUP.parse().expect("it is a well-formed name");
    loop {
        let settings = GroupSettings {
            auto_create: true,
            ..GroupSettings::default()
        };
        let command = Command::PutGroup {
            group: group.clone(),
            settings,
            expected: Expected::Absent,
        };
        let request = Request {
            id: RequestId(rand::random()),
            command,
        };
        match consensus
            .propose(request, Instant::now() + Duration::from_secs(5))
            .await
        {
            Ok(_) => return tracing::info!(%group, "development group created"),
            Err(ProposeError::Refused(Refusal::AlreadyExists { .. })) => return,
            Err(error) => tracing::debug!(%error, "development group not created yet"),
        }
        tokio::time::sleep(PRESET_PAUSE).await;
    }
}

/// Where a server keeps its data, for people: absolute if that can be told.
#[must_use]
pub fn data_folder(config: &Config) -> PathBuf {
    let path = &config.storage.data;
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}
