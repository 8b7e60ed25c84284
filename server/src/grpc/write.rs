//! Writes: a name, a deadline, a proposal, an answer.

use std::time::Duration;

use rollcall_core::directory::{Command, Outcome, Request};
use rollcall_proto::v1;
use tokio::time::Instant;

use super::convert;
use super::metrics::DoorsMetrics;
use super::read::Reader;
use super::status::{self, of_refusal};
use crate::config::DoorsConfig;

/// Proposes writes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    reader: Reader,
    timeout: Duration,
    timeout_max: Duration,
    metrics: DoorsMetrics,
}

impl Writer {
    pub(crate) fn new(reader: Reader, limits: &DoorsConfig, metrics: DoorsMetrics) -> Self {
        Self {
            reader,
            timeout: limits.write_timeout,
            timeout_max: limits.write_timeout_max,
            metrics,
        }
    }

    /// Writes, and waits for the outcome no longer than the caller does.
    pub(crate) async fn write(
        &self,
        options: Option<&v1::WriteOptions>,
        command: Command,
    ) -> Result<Outcome, v1::Error> {
        let id = convert::request_id_from(options).map_err(|e| of_refusal(&e))?;
        let timeout = match options.map_or(0, |options| options.timeout_ms) {
            0 => self.timeout,
            ms => Duration::from_millis(ms.into()).min(self.timeout_max),
        };
        let began = Instant::now();
        let request = Request { id, command };
        let result = self.reader.consensus().propose(request, began + timeout).await;
        self.metrics.write_seconds.observe(began.elapsed().as_secs_f64());
        result.map_err(|failure| status::of_propose(&failure))
    }

    pub(crate) fn response(&self, outcome: &Outcome) -> v1::WriteResponse {
        v1::WriteResponse {
            header: Some(self.reader.write_header(outcome.revision)),
            revision: outcome.revision.0,
            repeated: outcome.repeated,
            changed: outcome.changed,
        }
    }
}
