//! The services of the demo. Each is a small program of its own right: it listens on a port, does one real
//! job, and knows nothing of the registry.

mod checksum;
mod factor;
mod quotes;
mod wordcount;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::{self, Next};
use axum::response::Response;
use parking_lot::Mutex;

pub(crate) use checksum::sha256_hex;

/// Largest body a service takes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Header that names the answering instance.
pub(crate) const INSTANCE_HEADER: &str = "x-instance";

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Job {
    /// Gives quotes from a book of them.
    Quotes,
    /// Counts the words of a text.
    Wordcount,
    /// Digests a text.
    Checksum,
    /// Factors a number.
    Factor,
}

impl Job {
    pub(crate) const ALL: [Self; 4] = [Self::Quotes, Self::Wordcount, Self::Checksum, Self::Factor];

    /// Name of the service in the registry.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quotes => "quotes",
            Self::Wordcount => "wordcount",
            Self::Checksum => "checksum",
            Self::Factor => "factor",
        }
    }

    fn routes(self) -> Router {
        match self {
            Self::Quotes => quotes::routes(),
            Self::Wordcount => wordcount::routes(),
            Self::Checksum => checksum::routes(),
            Self::Factor => factor::routes(),
        }
    }
}

/// How busy an instance is; tells it when it may leave.
#[derive(Debug)]
pub(crate) struct Traffic {
    instance: String,
    in_flight: AtomicU64,
    served: AtomicU64,
    last_at: Mutex<Instant>,
}

impl Traffic {
    pub(crate) fn new(instance: &str) -> Arc<Self> {
        Arc::new(Self {
            instance: instance.into(),
            in_flight: AtomicU64::new(0),
            served: AtomicU64::new(0),
            last_at: Mutex::new(Instant::now()),
        })
    }

    /// Whether nothing is being served, and nothing was for `quiet`.
    pub(crate) fn is_quiet_for(&self, quiet: Duration) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && self.last_at.lock().elapsed() >= quiet
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

/// The service's HTTP interface.
pub(crate) fn router(job: Job, traffic: Arc<Traffic>) -> Router {
    job.routes()
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(traffic, count))
}

async fn count(State(traffic): State<Arc<Traffic>>, request: Request, next: Next) -> Response {
    traffic.in_flight.fetch_add(1, Ordering::AcqRel);
    *traffic.last_at.lock() = Instant::now();
    let mut response = next.run(request).await;
    if let Ok(instance) = HeaderValue::from_str(&traffic.instance) {
        response.headers_mut().insert(INSTANCE_HEADER, instance);
    }
    *traffic.last_at.lock() = Instant::now();
    traffic.served.fetch_add(1, Ordering::Relaxed);
    traffic.in_flight.fetch_sub(1, Ordering::AcqRel);
    response
}
