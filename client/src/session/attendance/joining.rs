//! Joining a server: a stream, its first word, and what is answered.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::restoring::RESTORE_BATCH;
use super::{Attendance, Lease, Link, MOVED_AWAY_FOR, Up};
use crate::config::millis;
use crate::endpoint::{Channel, Endpoint};
use crate::error::Error;
use crate::key::{NodeKey, RequestId};
use crate::registry::wire_options;
use crate::session::event::{SessionEvent, SessionStatus};
use crate::session::roll::Unowned;

/// Room on the outgoing side beyond the writes in flight: restoring calls take half of it, the other half is for
/// heartbeats and the closing word.
pub(super) const OUTGOING_SPARE: usize = 128;

pub(super) type Joining = Pin<Box<dyn Future<Output = Result<Box<Joined>, Error>> + Send>>;

pub(super) struct Joined {
    /// What the stream runs on, if that is its own.
    connection: Option<Channel>,
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    answer: Response,
}

impl Attendance {
    pub(super) fn join(&mut self) {
        let endpoint = self
            .endpoints
            .pick_preferred(&std::mem::take(&mut self.preferred));
        let call = self.take_call();
        let (first, budget) = match &self.lease {
            Some(lease) => (
                v1::SessionRequest {
                    call,
                    session: lease.session,
                    request: Some(Request::Attach(v1::AttachSession {
                        secret: lease.secret.clone(),
                    })),
                },
                lease
                    .answer_budget()
                    .max(Duration::from_millis(500).min(lease.ttl / 4)),
            ),
            None => {
                let client = self.options.client_name.clone();
                let mode = if self.full_wanted {
                    v1::GroupMode::Unspecified
                } else {
                    self.options.mode
                };
                let open = v1::OpenSession {
                    // Each attempt is a write of its own: a session of which nobody heard lapses without nodes.
                    options: Some(wire_options(RequestId::random(), self.config.attempt_timeout, 0)),
                    ttl_ms: millis(self.options.ttl),
                    client: client.unwrap_or_else(|| self.config.client_name.clone()),
                    mode: mode.into(),
                };
                let first = v1::SessionRequest {
                    call,
                    session: 0,
                    request: Some(Request::Open(open)),
                };
                (first, self.config.attempt_timeout)
            }
        };
        self.tried += 1;
        let own = self.datagrams.are_wanted().then(|| endpoint.own_channel());
        let joining = join(
            Arc::clone(&endpoint),
            own,
            first,
            budget,
            self.config.writes_in_flight_max + OUTGOING_SPARE,
            self.config.message_bytes_max,
        );
        self.link = Link::Joining {
            endpoint,
            joining: Box::pin(joining),
        };
    }

    pub(super) fn on_joined(&mut self, joined: Result<Box<Joined>, Error>) {
        let down = Link::Down {
            retry_at: Instant::now(),
        };
        let Link::Joining { endpoint, .. } = std::mem::replace(&mut self.link, down) else {
            return;
        };
        let joined = match joined {
            Ok(joined) => joined,
            Err(error @ Error::Unauthenticated { .. }) => return self.on_join_refused(&endpoint, error),
            Err(error) => {
                tracing::debug!(server = %endpoint.address, %error, "no stream for the session");
                endpoint.failed();
                self.last_error = Some(error);
                return self.retry_later(Duration::ZERO);
            }
        };
        endpoint.answered();
        let Joined {
            connection,
            outgoing,
            incoming,
            answer,
        } = *joined;
        self.quiet_since = Instant::now();
        let up = |heartbeat_at| {
            Link::Up(Box::new(Up {
                endpoint: Arc::clone(&endpoint),
                _connection: connection,
                outgoing,
                incoming,
                heartbeat_at,
                heartbeat: None,
                move_at: None,
            }))
        };
        match answer {
            Response::Opened(opened) => {
                let header = opened.header.unwrap_or_default();
                let lease = Lease {
                    session: opened.session,
                    secret: opened.secret,
                    ttl: Duration::from_millis(opened.ttl_ms.max(1)),
                    opened_at: Instant::now(),
                    records_alone: header.mode() == v1::GroupMode::Ap,
                };
                self.link = up(Instant::now() + lease.heartbeat_interval());
                self.datagrams.on_told(&endpoint.address, &opened.heartbeat);
                self.on_opened(lease, &endpoint.address);
            }
            Response::Attached(attached) => {
                let Some(lease) = &mut self.lease else { return };
                lease.ttl = Duration::from_millis(attached.ttl_ms.max(1));
                self.link = up(Instant::now() + lease.heartbeat_interval());
                self.datagrams.on_told(&endpoint.address, &attached.heartbeat);
                self.on_attached(attached, &endpoint.address);
            }
            Response::Error(error) => self.on_join_refused(&endpoint, Error::from_wire(error, None)),
            Response::Move(advice) => {
                endpoint.put_aside_for(MOVED_AWAY_FOR);
                self.preferred = advice.servers;
                self.retry_later(Duration::from_millis(advice.after_ms.into()));
            }
            Response::Renewed(_) | Response::Written(_) => {
                tracing::warn!(server = %endpoint.address, "an answer that does not fit the question");
                endpoint.failed();
                self.retry_later(Duration::ZERO);
            }
        }
    }

    fn on_opened(&mut self, lease: Lease, server: &str) {
        self.joined(server);
        let (session, ttl) = (lease.session, lease.ttl);
        self.shared.lease.send_replace((session, ttl));
        self.lease = Some(lease);
        if self.reopening {
            self.tell(SessionEvent::Reopened {
                session,
                server: server.into(),
            });
            self.restore();
            if !self.is_restoring() {
                // Nothing is left that could be refused.
                self.restores_refused = 0;
            }
        } else {
            self.tell(SessionEvent::Opened {
                session,
                ttl,
                server: server.into(),
            });
        }
        self.end_opening(Ok(()));
    }

    fn on_attached(&mut self, attached: v1::Attached, server: &str) {
        self.joined(server);
        self.shared.by_datagram.store(false, Ordering::Relaxed);
        match self.laid_at.take() {
            // The stream was put down, and taken up again: nothing happened to the session.
            Some(laid_at) if laid_at == server => {}
            laid_at => {
                if let Some(left) = laid_at {
                    let reason = "no stream could be taken up there".into();
                    self.tell(SessionEvent::Detached { server: left, reason });
                }
                self.tell(SessionEvent::Reattached {
                    server: server.into(),
                });
            }
        }
        let header = attached.header.unwrap_or_default();
        let records_alone = header.mode() == v1::GroupMode::Ap;
        if let Some(lease) = &mut self.lease {
            // It came to the log with a group that moved, say.
            lease.records_alone = records_alone;
        }
        // A session for AP groups alone is answered by one that knows nothing of CP groups.
        let revision = (!records_alone).then_some(header.revision);
        let mut owned: BTreeSet<NodeKey> = attached.nodes.into_iter().map(NodeKey::from).collect();
        self.take_out_departed(&owned);
        // Those that are being registered again are not there yet for that reason alone.
        owned.extend(self.restoring_nodes());
        let Unowned { contested, missing } = self.shared.roll.lock().reconcile(&owned, revision);
        for batch in contested.chunks(RESTORE_BATCH) {
            self.contest(batch.to_vec());
        }
        for batch in missing.chunks(RESTORE_BATCH) {
            self.add_restore(batch.to_vec());
        }
    }

    /// What was taken out and is named as ours all the same: the answer is from before that, or our word was lost with the
    /// servers' disks. Said again, it does no harm to what nobody has asked for since.
    fn take_out_departed(&mut self, owned: &BTreeSet<NodeKey>) {
        let mut departed = self.shared.roll.lock().departed(owned);
        if departed.is_empty() {
            return;
        }
        let asked_for = self.nodes_asked_for();
        departed.retain(|node| !asked_for.contains(node));
        for batch in departed.chunks(RESTORE_BATCH) {
            self.take_out_again(batch.to_vec());
        }
    }

    fn joined(&mut self, server: &str) {
        self.tried = 0;
        if self.restores_refused == 0 {
            self.pause.reset();
        }
        self.last_error = None;
        self.shared.status.send_replace(SessionStatus::Attached {
            server: server.into(),
        });
    }

    fn on_join_refused(&mut self, endpoint: &Endpoint, error: Error) {
        tracing::debug!(server = %endpoint.address, %error, "session refused");
        let attaching = self.lease.is_some();
        match error {
            Error::SessionNotFound { .. } | Error::SessionForeign { .. } if attaching => self.lose(),
            Error::Overloaded { retry_after, .. } => {
                self.last_error = Some(error);
                self.retry_later(retry_after);
            }
            error if !error.is_transient() && self.opening.is_some() => {
                self.end_opening(Err(error));
                self.ended = true;
            }
            error => {
                // While attached before, nobody waits for this word: it is tried again, at growing intervals.
                if !error.is_transient() {
                    tracing::warn!(server = %endpoint.address, %error, "session refused");
                    self.last_error = Some(error);
                    return self.retry_later(Duration::from_secs(1));
                }
                self.last_error = Some(error);
                self.retry_later(Duration::ZERO);
            }
        }
    }

    /// Every server gets its turn at once, then there is a growing pause, small against the ttl.
    pub(super) fn retry_later(&mut self, at_least: Duration) {
        let round_done = self.tried.is_multiple_of(self.endpoints.len());
        let mut pause = at_least;
        if round_done {
            let longest = self
                .lease
                .as_ref()
                .map_or(Duration::from_secs(2), |lease| lease.ttl / 6);
            pause = pause.max(self.pause.next_delay().min(longest));
        }
        self.link = Link::Down {
            retry_at: Instant::now() + pause,
        };
    }
}

/// Opens a stream, says the first word, waits for its answer.
async fn join(
    endpoint: Arc<Endpoint>,
    own: Option<Channel>,
    first: v1::SessionRequest,
    budget: Duration,
    room: usize,
    message_bytes_max: usize,
) -> Result<Box<Joined>, Error> {
    let joining = async {
        let call = first.call;
        let (outgoing, requests) = mpsc::channel(room.max(1));
        let broken = |status: Status| Error::from_status(status, &endpoint.address, None);
        let full = |_| Error::Closed { what: "stream" };
        outgoing.send(first).await.map_err(full)?;
        let channel = own.clone().unwrap_or_else(|| endpoint.channel.clone());
        let mut client = SessionsClient::new(channel).max_decoding_message_size(message_bytes_max);
        let mut incoming = client
            .attend(ReceiverStream::new(requests))
            .await
            .map_err(broken)?
            .into_inner();
        while let Some(message) = incoming.message().await.map_err(broken)? {
            if let Some(answer) = message.response
                && (message.call == call || matches!(answer, Response::Move(_)))
            {
                return Ok(Box::new(Joined {
                    connection: own.clone(),
                    outgoing,
                    incoming,
                    answer,
                }));
            }
        }
        Err(Error::Unavailable {
            message: format!("{} ended the stream", endpoint.address),
        })
    };
    match tokio::time::timeout(budget, joining).await {
        Ok(joined) => joined,
        Err(_) => Err(Error::DeadlineExceeded {
            message: format!("{} did not answer in time", endpoint.address),
        }),
    }
}
