//! The pages.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::readiness::{Condition, Readiness, Weight};
use crate::config::DoorsConfig;
use crate::grpc::{Connection, Gate};
use crate::telemetry::ServerMetrics;

/// Media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages show. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    /// `/readyz`.
    pub readiness: Readiness,
    /// `/metrics`.
    pub registry: Arc<Registry>,
    /// Brought up to date before `/metrics` is shown.
    pub server: ServerMetrics,
}

/// Most connections to the pages: probes and collectors are few.
const CONNECTIONS_MAX: usize = 512;

/// Longest stay of one connection: whoever probes or collects may dial again.
const VISIT_MAX: Duration = Duration::from_secs(60);

/// The gate, as axum wants it.
struct Door(Gate);

impl axum::serve::Listener for Door {
    type Io = Connection;
    type Addr = ();

    async fn accept(&mut self) -> (Connection, ()) {
        (self.0.next().await, ())
    }

    fn local_addr(&self) -> std::io::Result<()> {
        self.0.local_addr().map(|_| ())
    }
}

/// Serves the pages until `shutdown`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    limits: &DoorsConfig,
    pages: Pages,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let gate = Gate::new(
        listener,
        CONNECTIONS_MAX,
        limits,
        Gauge::default(),
        Counter::default(),
    )
    .for_short_visits(VISIT_MAX);
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(pages);
    axum::serve(Door(gate), router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// 200 if all required conditions hold, else 503; `?verbose` names each, and what an operator should look at.
async fn readyz(State(pages): State<Pages>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part.starts_with("verbose="))
    });
    readiness_page(&pages.readiness.conditions(), verbose)
}

fn readiness_page(conditions: &[Condition], verbose: bool) -> (StatusCode, String) {
    let mut body = String::new();
    for condition in conditions {
        let Condition { name, otherwise, .. } = condition;
        // Writing to a string does not fail.
        let _ = match (condition.holds, condition.weight) {
            (true, _) if verbose => writeln!(body, "[+] {name} ok"),
            (false, Weight::Warning) if verbose => writeln!(body, "[!] {name}: {otherwise}"),
            (true, _) | (false, Weight::Warning) => Ok(()),
            (false, Weight::Required) => writeln!(body, "[-] {name}: {otherwise}"),
        };
    }
    if conditions.iter().any(Condition::forbids) {
        body.push_str("not ready\n");
        (StatusCode::SERVICE_UNAVAILABLE, body)
    } else {
        body.push_str("ready\n");
        (StatusCode::OK, body)
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    pages.server.refresh();
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &pages.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], body),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            format!("{error}\n"),
        ),
    }
}

async fn version() -> impl IntoResponse {
    #[cfg(not(feature = "mutants"))]
    let version = serde_json::json!({ "name": "rollcalld", "version": env!("CARGO_PKG_VERSION") });
    #[cfg(feature = "mutants")]
    let version = serde_json::json!({
        "name": "rollcalld",
        "version": env!("CARGO_PKG_VERSION"),
        "mutant": rollcall_core::mutants::chosen().map_or("none", |mutant| mutant.name()),
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        format!("{version}\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &'static str, weight: Weight, holds: bool) -> Condition {
        Condition {
            name,
            weight,
            holds,
            otherwise: "it does not hold",
        }
    }

    #[test]
    fn a_warning_is_shown_and_leaves_the_server_ready() {
        let leader = condition("leader", Weight::Required, true);
        let disk = condition("disk", Weight::Warning, false);
        let (code, body) = readiness_page(&[leader, disk], true);
        assert_eq!(code, StatusCode::OK);
        assert_eq!(body, "[+] leader ok\n[!] disk: it does not hold\nready\n");
        let (code, body) = readiness_page(&[leader, disk], false);
        assert_eq!((code, body.as_str()), (StatusCode::OK, "ready\n"));
    }

    #[test]
    fn a_required_condition_that_fails_is_named_and_makes_the_server_unready() {
        let leader = condition("leader", Weight::Required, false);
        let disk = condition("disk", Weight::Warning, true);
        let (code, body) = readiness_page(&[leader, disk], false);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "[-] leader: it does not hold\nnot ready\n");
    }
}
