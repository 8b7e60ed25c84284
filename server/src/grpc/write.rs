//! Writes: a name, a deadline, a side, an answer.

use std::time::Duration;

use rollcall_core::directory::{Command, GroupMode, Outcome, Refusal, Request};
use rollcall_proto::v1;
use tokio::time::Instant;

use super::convert;
use super::metrics::DoorsMetrics;
use super::modes::{Route, services_of};
use super::read::Reader;
use super::speaker::Speaker;
use super::status::{self, of_refusal};
use crate::config::DoorsConfig;

/// Most servers on whose disks a write to an AP group can be asked to be.
const ACKS_MAX: u32 = 2;

/// Carries writes to the side they belong to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    reader: Reader,
    timeout: Duration,
    timeout_max: Duration,
    metrics: DoorsMetrics,
}

/// A write was applied.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) outcome: Outcome,
    /// On which side.
    pub(crate) mode: GroupMode,
    /// On how many servers' disks, on the AP side.
    pub(crate) acks: u32,
}

impl Written {
    pub(crate) fn in_log(outcome: Outcome) -> Self {
        Self {
            outcome,
            mode: GroupMode::Cp,
            acks: 0,
        }
    }
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

    /// When the caller wants to have its answer.
    pub(crate) fn deadline(&self, options: Option<&v1::WriteOptions>) -> Instant {
        let timeout = match options.map_or(0, |options| options.timeout_ms) {
            0 => self.timeout,
            ms => Duration::from_millis(ms.into()).min(self.timeout_max),
        };
        Instant::now() + timeout
    }

    /// Writes on the side that the groups belong to, and waits for the outcome no longer than the caller does.
    /// `speaker` is the session under which the command is, if it is under one.
    pub(crate) async fn write(
        &self,
        options: Option<&v1::WriteOptions>,
        command: Command,
        speaker: Option<&Speaker>,
    ) -> Result<Written, v1::Error> {
        let deadline = self.deadline(options);
        let route = self.reader.route_surely(&services_of(&command), deadline).await?;
        match route {
            Route::Raft | Route::Unknown => self.propose(options, command).await.map(Written::in_log),
            Route::View => self.write_to_view(options, command, speaker).await,
        }
    }

    /// Writes to the log.
    pub(crate) async fn propose(
        &self,
        options: Option<&v1::WriteOptions>,
        command: Command,
    ) -> Result<Outcome, v1::Error> {
        let id = convert::request_id_from(options).map_err(|e| of_refusal(&e))?;
        let began = Instant::now();
        let request = Request { id, command };
        let deadline = self.deadline(options);
        let result = self.reader.consensus().propose(request, deadline).await;
        self.metrics.write_seconds.observe(began.elapsed().as_secs_f64());
        result.map_err(|failure| status::of_propose(&failure))
    }

    /// Writes to this server's view of the AP groups.
    pub(crate) async fn write_to_view(
        &self,
        options: Option<&v1::WriteOptions>,
        command: Command,
        speaker: Option<&Speaker>,
    ) -> Result<Written, v1::Error> {
        let id = convert::request_id_from(options).map_err(|e| of_refusal(&e))?;
        let acks = acks_from(options).map_err(|e| of_refusal(&e))?;
        let deadline = self.deadline(options);
        self.reader.check_view_ready()?;
        self.reader.learn(&services_of(&command), deadline).await;
        // A group that came just now may have come without what is in it.
        self.reader.check_view_ready()?;
        let began = Instant::now();
        let by = speaker.map(Speaker::introduction);
        let request = Request { id, command };
        let result = self.reader.ap().write_by(by, request, acks, deadline).await;
        self.metrics.write_seconds.observe(began.elapsed().as_secs_f64());
        let acknowledged = result.map_err(|failure| status::of_propose(&failure))?;
        if let Some(speaker) = speaker {
            speaker.note_heard();
        }
        Ok(Written {
            outcome: acknowledged.outcome,
            mode: GroupMode::Ap,
            acks: acknowledged.acks,
        })
    }

    pub(crate) fn response(&self, written: &Written) -> v1::WriteResponse {
        let outcome = &written.outcome;
        let header = match written.mode {
            GroupMode::Cp => self.reader.write_header(outcome.revision),
            GroupMode::Ap => self.reader.view_write_header(outcome.revision),
        };
        v1::WriteResponse {
            header: Some(header),
            revision: outcome.revision.0,
            repeated: outcome.repeated,
            changed: outcome.changed,
            acks: written.acks,
        }
    }
}

fn acks_from(options: Option<&v1::WriteOptions>) -> Result<u32, Refusal> {
    match options.map_or(0, |options| options.acks) {
        0 => Ok(1),
        acks @ 1..=ACKS_MAX => Ok(acks),
        acks => Err(Refusal::Invalid {
            field: "options.acks".into(),
            problem: format!("is {acks}, must be 1 or {ACKS_MAX}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_one_or_two() {
        let asked = |acks| {
            let options = v1::WriteOptions {
                acks,
                ..v1::WriteOptions::default()
            };
            acks_from(Some(&options)).ok()
        };
        assert_eq!([0, 1, 2, 3].map(asked), [Some(1), Some(1), Some(2), None]);
        assert_eq!(acks_from(None), Ok(1));
    }
}
