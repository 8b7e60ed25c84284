//! All client services on one listener.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use rollcall_proto::DESCRIPTORS;
use rollcall_proto::v1::cluster_server::ClusterServer;
use rollcall_proto::v1::registry_server::RegistryServer;
use rollcall_proto::v1::sessions_server::SessionsServer;
use rollcall_proto::v1::watch_server::WatchServer;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use super::address_limiter::AddressLimiter;
use super::listener;
use super::metrics::DoorsMetrics;
use super::oversize::Oversize;
use super::read::Reader;
use super::shared_body::SharedBytes;
use super::upgraded::UpgradedStreams;
use super::watch::WATCH_REQUEST_BYTES_MAX;
use super::whole::Whole;
use super::write::Writer;
use crate::access::{RefusedList, Tokens};
use crate::ap::Ap;
use crate::config::{Config, DoorsConfig, SessionConfig, WatchConfig};
use crate::gossip::Gossip;
use crate::http::Readiness;
use crate::raft::Consensus;
use crate::session::Holder;
use crate::storm::StormDesk;
use crate::watch::Watches;

/// Largest request of those services that are not ours: a name or two.
const QUESTION_BYTES_MAX: usize = 16 << 10;

/// What the doors lead to.
pub struct DoorsParts {
    /// Replication.
    pub consensus: Consensus,
    /// AP groups.
    pub ap: Ap,
    /// Heartbeats of this server's streams.
    pub holder: Holder,
    /// Watches.
    pub watches: Watches,
    /// Gossip, unless it is off.
    pub gossip: Option<Gossip>,
    /// Who may have full lists while consumers stampede.
    pub storm: StormDesk,
    /// The tokens that callers may show.
    pub tokens: Tokens,
    /// Whether this server should be asked at all.
    pub readiness: Readiness,
    /// What is counted.
    pub metrics: DoorsMetrics,
    /// Where clients may send heartbeats by datagram, as they are told; empty: nowhere.
    pub heartbeat: String,
    /// Cancelled when the server closes: streams are told to move on.
    pub closing: CancellationToken,
}

/// The client services. Cheap to clone: every stream and every request under way holds one.
#[derive(Clone)]
pub struct Doors {
    hall: Arc<Hall>,
}

/// What the services share.
pub struct Hall {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) holder: Holder,
    pub(super) watches: Watches,
    pub(super) gossip: Option<Gossip>,
    pub(super) storm: StormDesk,
    pub(super) tokens: Tokens,
    pub(super) refused: Arc<RefusedList>,
    pub(super) readiness: Readiness,
    pub(super) metrics: DoorsMetrics,
    pub(super) limits: Arc<DoorsConfig>,
    pub(super) session: Arc<SessionConfig>,
    pub(super) watch: Arc<WatchConfig>,
    pub(super) new_sessions: Arc<AddressLimiter>,
    /// Of queries on streams that wait.
    pub(super) places_to_wait: Arc<Semaphore>,
    /// Of looks at how far watchers have come.
    pub(super) convergences: Arc<Semaphore>,
    pub(super) closing: CancellationToken,
    pub(super) started_at: Instant,
    pub(super) heartbeat: String,
}

impl Deref for Doors {
    type Target = Hall;

    fn deref(&self) -> &Hall {
        &self.hall
    }
}

impl Doors {
    /// The services of a server.
    #[must_use]
    pub fn new(config: &Config, parts: DoorsParts) -> Self {
        let limits = config.doors.clone();
        let cluster = &config.cluster;
        let reader = Reader::new(
            parts.consensus,
            parts.ap,
            cluster.name.clone(),
            cluster.id,
            limits.read_timeout,
        );
        let hall = Hall {
            writer: Writer::new(reader.clone(), &limits, parts.metrics.clone()),
            reader,
            holder: parts.holder,
            watches: parts.watches,
            gossip: parts.gossip,
            storm: parts.storm,
            tokens: parts.tokens,
            refused: Arc::default(),
            readiness: parts.readiness,
            metrics: parts.metrics,
            new_sessions: Arc::new(AddressLimiter::new(
                limits.sessions_per_second,
                limits.sessions_burst,
            )),
            places_to_wait: Arc::new(Semaphore::new(
                limits.queries_waiting_max.min(Semaphore::MAX_PERMITS),
            )),
            convergences: Arc::new(Semaphore::new(1)),
            limits: Arc::new(limits),
            session: Arc::new(config.session.clone()),
            watch: Arc::new(config.watch.clone()),
            closing: parts.closing,
            started_at: Instant::now(),
            heartbeat: parts.heartbeat,
        };
        Self { hall: Arc::new(hall) }
    }

    /// Client addresses of the other servers, in an order of chance.
    #[must_use]
    pub fn other_servers(&self) -> Vec<String> {
        use rand::seq::SliceRandom;
        let own = self.reader.identity().server;
        let mut servers: Vec<String> = self
            .reader
            .consensus()
            .members()
            .into_iter()
            .filter(|member| member.server.0 != own && !member.addresses.client_address.is_empty())
            .map(|member| member.addresses.client_address)
            .collect();
        servers.shuffle(&mut rand::rng());
        servers
    }

    /// Serves until `shutdown`, and then until the calls under way are answered.
    ///
    /// # Errors
    /// The transport failed as a whole; connections fail by themselves.
    pub async fn serve(
        self,
        listener: TcpListener,
        health: HealthReporter,
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let limits = self.limits.clone();
        let (decode, encode) = (limits.request_bytes_max, limits.message_bytes_max);
        // On a stream, what is not much too large is refused alone, and the stream goes on.
        let attend_decode = decode.saturating_mul(2);
        let (open, refused) = (
            self.metrics.connections.clone(),
            self.metrics.connections_refused.clone(),
        );
        let gate = listener::Gate::new(listener, limits.connections_max, &limits, open, refused);
        // Whoever gives up waiting for this ends what is left.
        let over = CancellationToken::new();
        let gate = gate.until(over.clone());
        let _over = over.drop_guard();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .expect("the descriptors were compiled with this program")
            .max_decoding_message_size(QUESTION_BYTES_MAX);
        let metrics = self.metrics.clone();
        let watch_decode = decode.max(WATCH_REQUEST_BYTES_MAX);
        let health = tonic_health::server::HealthService::from_health_reporter(health);
        let health = tonic_health::pb::health_server::HealthServer::new(health);
        let routes = Routes::new(health.max_decoding_message_size(QUESTION_BYTES_MAX))
            .add_service(reflection)
            .add_service(Oversize::new(
                Whole::new(
                    SharedBytes(
                        RegistryServer::new(self.clone())
                            .max_decoding_message_size(decode)
                            .max_encoding_message_size(encode),
                    ),
                    decode,
                ),
                metrics.clone(),
            ))
            .add_service(Oversize::new(
                Whole::new(
                    SessionsServer::new(self.clone())
                        .max_decoding_message_size(attend_decode)
                        .max_encoding_message_size(encode),
                    decode,
                ),
                metrics.clone(),
            ))
            .add_service(Oversize::new(
                Whole::new(
                    SharedBytes(
                        WatchServer::new(self.clone())
                            .max_decoding_message_size(watch_decode)
                            .max_encoding_message_size(encode),
                    ),
                    decode,
                ),
                metrics.clone(),
            ))
            .add_service(Oversize::new(
                Whole::new(
                    ClusterServer::new(self)
                        .max_decoding_message_size(decode)
                        .max_encoding_message_size(encode),
                    decode,
                ),
                metrics,
            ))
            .prepare();
        let streams = UpgradedStreams::new(routes.clone(), &limits);
        let connections = streams.beside(gate, shutdown.clone());
        Server::builder()
            .max_concurrent_streams(limits.streams_per_connection_max)
            .http2_max_header_list_size(limits.header_bytes_max)
            .http2_keepalive_interval(Some(limits.keepalive_interval))
            .http2_keepalive_timeout(Some(limits.keepalive_timeout))
            .add_routes(routes)
            .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
            .await?;
        streams.ended().await;
        Ok(())
    }
}
