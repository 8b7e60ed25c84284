//! The handle that everything starts from, and how it calls: failover, deadlines, safe repeats.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::backoff::Backoff;
use crate::config::{RegistryConfig, WriteOptions, millis};
use crate::endpoint::{Channel, Endpoint, Endpoints};
use crate::error::Error;
use crate::key::RequestId;
use crate::watch::Hub;

/// A registry: some servers of one cluster. Cheap to clone; clones share connections, the watch stream and the
/// cache.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Arc<RegistryConfig>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) hub: Hub,
    /// The name under which servers that ration full lists keep our place.
    pub(crate) consumer: Arc<str>,
}

/// A handle on the registry that these servers are, with default settings. See [`Registry::connect`].
///
/// # Errors
/// [`Error::InvalidArgument`]: no address, or one that is none.
pub fn connect<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Result<Registry, Error> {
    Registry::connect(RegistryConfig::new(servers))
}

/// The answer to a write that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of this write; of its first application if it was a repeat.
    pub revision: u64,
    /// The request id had been applied before.
    pub repeated: bool,
    /// `false`: the record already said this.
    pub changed: bool,
    /// The server that answered.
    pub server: u64,
    /// How the group is replicated. In mode ap the revision is that server's own: it means nothing at another one, or
    /// in another epoch.
    pub mode: v1::GroupMode,
    /// In mode ap: the life of the server that answered; otherwise 0.
    pub epoch: u64,
    /// In mode ap: on how many servers' disks it is; otherwise 0, for a quorum's.
    pub acks: u32,
}

impl From<v1::WriteResponse> for Written {
    fn from(response: v1::WriteResponse) -> Self {
        let header = response.header.unwrap_or_default();
        Self {
            revision: response.revision,
            repeated: response.repeated,
            changed: response.changed,
            server: header.server,
            mode: match header.mode() {
                v1::GroupMode::Unspecified | v1::GroupMode::Cp => v1::GroupMode::Cp,
                v1::GroupMode::Ap => v1::GroupMode::Ap,
            },
            epoch: header.epoch,
            acks: response.acks,
        }
    }
}

/// What kind of call it is, and so when it may be repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Changes nothing: repeated freely.
    Read,
    /// Applied at most once under its id: repeated under the same id.
    Write(RequestId),
    /// Has no id: repeated only when surely not applied.
    Order(RequestId),
}

impl Kind {
    fn request_id(self) -> Option<RequestId> {
        match self {
            Self::Read => None,
            Self::Write(id) | Self::Order(id) => Some(id),
        }
    }
}

impl Registry {
    /// A handle with these settings. Connects when it is first used, so it can be made while all servers are
    /// down. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: a setting that makes no sense, by name.
    pub fn connect(config: RegistryConfig) -> Result<Self, Error> {
        config.check()?;
        let endpoints = Arc::new(Endpoints::new(&config)?);
        let config = Arc::new(config);
        let consumer: Arc<str> = RequestId::random().to_string().into();
        let hub = Hub::new(Arc::clone(&config), Arc::clone(&endpoints), Arc::clone(&consumer));
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                endpoints,
                hub,
                consumer,
            }),
        })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &RegistryConfig {
        &self.inner.config
    }

    /// Calls until there is an answer that needs a decision, or the deadline. `send` gets a channel and the
    /// time this attempt has.
    pub(crate) async fn call<T, F>(
        &self,
        kind: Kind,
        timeout: Option<Duration>,
        send: impl Fn(Channel, Duration) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_at(kind, timeout, |endpoint, budget| {
            send(endpoint.channel.clone(), budget)
        })
        .await
    }

    /// The same for calls that do not go over the channel alone: `send` gets the server.
    pub(crate) async fn call_at<T, F>(
        &self,
        kind: Kind,
        timeout: Option<Duration>,
        send: impl Fn(Arc<Endpoint>, Duration) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let config = &self.inner.config;
        let mut attempts = Attempts {
            kind,
            deadline: Instant::now() + timeout.unwrap_or(config.call_timeout),
            servers: self.inner.endpoints.len(),
            tried: 0,
            outcome_unknown: false,
            pause: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
        };
        loop {
            let endpoint = self.inner.endpoints.pick();
            let left = attempts.deadline.saturating_duration_since(Instant::now());
            let budget = match kind {
                // An order is not repeated after a timeout, so the first attempt gets all the time.
                Kind::Order(_) => left,
                Kind::Read | Kind::Write(_) => left.min(config.attempt_timeout),
            };
            let sent = tokio::time::timeout(budget, send(Arc::clone(&endpoint), budget)).await;
            match attempts.judge(&endpoint, sent) {
                Verdict::Answer(value) => return Ok(value),
                Verdict::GiveUp(error) => return Err(error),
                Verdict::Again { after } => tokio::time::sleep(after).await,
            }
        }
    }

    /// A write: as [`Self::call`], under one request id for all attempts.
    pub(crate) async fn write<T, F>(
        &self,
        options: WriteOptions,
        send: impl Fn(Channel, v1::WriteOptions) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let id = options.request_id.unwrap_or_else(RequestId::random);
        self.call(Kind::Write(id), options.timeout, |channel, budget| {
            send(channel, wire_options(id, budget, options.acks))
        })
        .await
    }
}

/// The server gets a little less time than the client waits, so that its answer arrives.
pub(crate) fn wire_options(id: RequestId, budget: Duration, acks: u32) -> v1::WriteOptions {
    let timeout_ms = u32::try_from(millis(budget.mul_f64(0.9)))
        .unwrap_or(u32::MAX)
        .max(1);
    v1::WriteOptions {
        request_id: id.to_bytes(),
        timeout_ms,
        acks,
    }
}

struct Attempts {
    kind: Kind,
    deadline: Instant,
    servers: usize,
    tried: usize,
    /// An attempt went out and its fate is not known: from now on only an answer can be certain.
    outcome_unknown: bool,
    pause: Backoff,
}

enum Verdict<T> {
    Answer(T),
    GiveUp(Error),
    Again { after: Duration },
}

impl Attempts {
    fn judge<T>(
        &mut self,
        endpoint: &Endpoint,
        sent: Result<Result<Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Verdict<T> {
        self.tried += 1;
        let id = self.kind.request_id();
        let error = match sent {
            Ok(Ok(response)) => {
                endpoint.answered();
                return Verdict::Answer(response.into_inner());
            }
            Ok(Err(status)) => {
                if status.details().is_empty() {
                    endpoint.failed();
                } else {
                    endpoint.answered();
                }
                Error::from_status(status, &endpoint.address, id)
            }
            Err(_) => {
                endpoint.failed();
                let message = format!("{} did not answer", endpoint.address);
                match id {
                    Some(request_id) => Error::OutcomeUnknown { request_id, message },
                    None => Error::DeadlineExceeded { message },
                }
            }
        };
        if matches!(error, Error::TooStale { .. }) {
            // It is cut off, and took its time to notice: the next call goes elsewhere.
            endpoint.failed();
        }
        self.outcome_unknown |= matches!(error, Error::OutcomeUnknown { .. });
        match self.next_attempt_after(&error) {
            Some(after) if Instant::now() + after < self.deadline => Verdict::Again { after },
            _ => Verdict::GiveUp(self.give_up(error)),
        }
    }

    /// Whether this error is worth another attempt, and after which pause. Every server gets its turn at once;
    /// then there is a pause.
    fn next_attempt_after(&mut self, error: &Error) -> Option<Duration> {
        let hint = match error {
            Error::Connection { .. }
            | Error::Unavailable { .. }
            | Error::NotReady { .. }
            | Error::DeadlineExceeded { .. } => Duration::ZERO,
            Error::OutcomeUnknown { .. } if matches!(self.kind, Kind::Write(_)) => Duration::ZERO,
            Error::Overloaded { retry_after, .. } => (*retry_after).max(Duration::from_millis(10)),
            Error::TooStale { .. } if self.tried < self.servers => Duration::ZERO,
            _ => return None,
        };
        let round_done = self.tried.is_multiple_of(self.servers.max(1));
        Some(if round_done {
            hint.max(self.pause.next_delay())
        } else {
            hint
        })
    }

    fn give_up(&self, error: Error) -> Error {
        give_up(self.kind.request_id(), self.outcome_unknown, error)
    }
}

/// The error to report for a write of which an earlier attempt may still be applied.
pub(crate) fn give_up(id: Option<RequestId>, outcome_unknown: bool, error: Error) -> Error {
    match id {
        Some(request_id) if outcome_unknown && !error.outlaws_earlier_attempts() => match error {
            Error::OutcomeUnknown { .. } => error,
            error => Error::OutcomeUnknown {
                request_id,
                message: format!("after an unanswered attempt: {error}"),
            },
        },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_unanswered_attempt_only_a_lasting_refusal_is_certain() {
        let id = RequestId(1);
        let unavailable = || Error::Unavailable {
            message: "no leader".into(),
        };
        assert!(matches!(
            give_up(Some(id), true, unavailable()),
            Error::OutcomeUnknown { .. }
        ));
        assert!(matches!(
            give_up(Some(id), false, unavailable()),
            Error::Unavailable { .. }
        ));
        let mismatch = || Error::RevisionMismatch {
            subject: "n".into(),
            current: 3,
            message: "m".into(),
        };
        assert!(
            matches!(give_up(Some(id), true, mismatch()), Error::OutcomeUnknown { .. }),
            "it may be that attempt's own revision"
        );
        assert!(matches!(
            give_up(Some(id), false, mismatch()),
            Error::RevisionMismatch { current: 3, .. }
        ));
        let invalid = Error::InvalidArgument {
            subject: "n".into(),
            message: "m".into(),
        };
        assert!(matches!(
            give_up(Some(id), true, invalid),
            Error::InvalidArgument { .. }
        ));
    }
}
