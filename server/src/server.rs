//! One server: builds the parts, hands out handles, shuts down in reverse order.

mod founding;
mod listeners;
mod serving;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rollcall_core::directory::ChangeLogBounds;
use rollcall_core::ids::ServerId;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::founding::{found, founders, set_up};
pub use self::listeners::Addresses;
use self::listeners::Listeners;
use self::serving::{report_health, serve_pages, serve_peers};
use crate::access::{TokenFileError, Tokens};
use crate::ap::{Ap, ApOptions};
use crate::config::{Config, ConfigError, Preset};
use crate::datagram::{self, Datagrams, DatagramsParts};
use crate::descriptors;
use crate::gossip::{self, Gossip, GossipMetrics, GossipOptions, GossipStartError};
use crate::grpc::{Doors, DoorsParts, ListenError};
use crate::http::{Pages, Readiness};
use crate::raft::types::PeerAddresses;
use crate::raft::{Consensus, Freshness, LeaderDesk, ReplicationOptions, StartError as ReplicationError};
use crate::session::{Authority, AuthoritySettings, Holder};
use crate::storm::StormDesk;
use crate::telemetry::{Metrics, ServerMetrics};
use crate::watch::{WatchHub, Watches};

/// How long streams and calls may take to end once they were told to.
const CLOSING_GRACE: Duration = Duration::from_secs(2);
/// How long a leader may take to say that it is there, before idle watchers are told that nothing happened.
const TOUCH_WAIT: Duration = Duration::from_secs(2);
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

/// A running server.
pub struct Server {
    addresses: Addresses,
    consensus: Consensus,
    /// Kept alive here; replication holds it only weakly.
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
            tokio::spawn({
                let consensus = consensus.clone();
                watches
                    .clone()
                    .assure(move || is_in_touch(consensus.clone()), stop.clone())
            }),
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

/// Whether what this server has is what the leader had a moment ago.
async fn is_in_touch(consensus: Consensus) -> bool {
    let deadline = Instant::now() + TOUCH_WAIT;
    consensus.confirm(Freshness::Leased, deadline).await.is_ok()
}

fn authority_settings(config: &Config) -> AuthoritySettings {
    AuthoritySettings {
        election_timeout: config.raft.election_timeout_max,
        spread: config.raft.election_timeout_max,
    }
}

/// Where a server keeps its data, for people: absolute if that can be told.
#[must_use]
pub fn data_folder(config: &Config) -> PathBuf {
    let path = &config.storage.data;
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}
