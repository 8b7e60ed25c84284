//! What a server answers besides its clients: the other servers, pages, questions about its health.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::CLOSING_GRACE;
use crate::ap::Ap;
use crate::config::DoorsConfig;
use crate::grpc::{Doors, Gate, UpgradedStreams};
use crate::http::{self, Pages, Readiness};
use crate::pulse;
use crate::raft::Consensus;
use crate::watch::Watches;

/// Silent peers are asked for a sign of life this often.
const PEER_KEEPALIVE: Duration = Duration::from_secs(5);
/// Most connections between servers: a few for each of them.
const PEER_CONNECTIONS_MAX: usize = 256;
/// How much a peer may send ahead of what is read: snapshots and bursts of appends.
const PEER_WINDOW: u32 = 4 << 20;
/// How often the health service looks at readiness.
const HEALTH_LOOK: Duration = Duration::from_millis(250);

/// The other servers' listener.
pub(super) async fn serve_peers(
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

pub(super) async fn serve_pages(
    listener: TcpListener,
    limits: DoorsConfig,
    pages: Pages,
    stop: CancellationToken,
) {
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
pub(super) async fn report_health(
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
