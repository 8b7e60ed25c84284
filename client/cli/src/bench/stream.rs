//! A raw session stream: everything a provider says, without the client's comforts.

use std::collections::HashMap;
use std::time::Duration;

use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::exit::{Failure, Nature, failure_of};
use crate::progress::Progress;
use crate::servers::{client_name, wire_write_options};

/// What a bench asks for: long enough to survive a stall that is being measured, short enough to be gone soon
/// after a bench that was killed.
const TTL: Duration = Duration::from_secs(60);
/// Requests that may wait for the connection.
const OUTGOING_MAX: usize = 1_024;
/// Sessions being opened, or closed, at a time.
const WINDOW: usize = 64;
/// Sessions of one heartbeat.
const RENEW_MAX: usize = 10_000;
/// Pause before a heartbeat that found no room is tried again.
const RENEW_PAUSE: Duration = Duration::from_millis(100);
/// Heartbeats that keep sessions alive have this bit in their call number.
const HEARTBEAT: u64 = 1 << 63;

/// A session of this stream.
#[derive(Clone, Debug)]
pub(crate) struct OpenedSession {
    pub(crate) session: u64,
    pub(crate) secret: tonic::codegen::Bytes,
    /// Where its server takes heartbeats by datagram.
    pub(crate) heartbeat: String,
    ttl: Duration,
}

/// One stream and the sessions on it.
#[derive(Debug)]
pub(crate) struct SessionStream {
    requests: mpsc::Sender<wire::SessionRequest>,
    responses: Streaming<wire::SessionResponse>,
    next_call: u64,
    sessions: Vec<OpenedSession>,
    renew_at: Instant,
}

/// What came on the stream.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The answer to a call.
    Answer { call: u64, response: Response },
    /// A heartbeat of our own was answered, or the server advised something.
    Other,
}

impl SessionStream {
    /// Opens the stream and so many sessions on it.
    pub(crate) async fn open(
        channel: Channel,
        sessions: usize,
        timeout: Duration,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let (requests, outgoing) = mpsc::channel(OUTGOING_MAX);
        let mut client = SessionsClient::new(channel);
        let opening = client.attend(ReceiverStream::new(outgoing));
        let responses = tokio::time::timeout(timeout, opening)
            .await
            .map_err(|_| Failure::timeout("the session stream was not opened in time"))?
            .map_err(|status| failure_of(&status, Nature::Read))?
            .into_inner();
        let mut stream = Self {
            requests,
            responses,
            next_call: 1,
            sessions: Vec::new(),
            renew_at: Instant::now() + TTL,
        };
        stream.open_sessions(sessions, timeout, progress).await?;
        Ok(stream)
    }

    async fn open_sessions(
        &mut self,
        wanted: usize,
        timeout: Duration,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let mut to_ask = wanted;
        let mut under_way = 0;
        while self.sessions.len() < wanted {
            while to_ask > 0 && under_way < WINDOW {
                let open = wire::OpenSession {
                    options: Some(wire_write_options(timeout)),
                    ttl_ms: crate::names::millis(TTL),
                    client: client_name(),
                    ..wire::OpenSession::default()
                };
                self.send(0, Request::Open(open)).await?;
                to_ask -= 1;
                under_way += 1;
            }
            match self.next_answer(timeout).await? {
                Response::Opened(opened) => {
                    self.sessions.push(OpenedSession {
                        session: opened.session,
                        secret: opened.secret,
                        heartbeat: opened.heartbeat,
                        ttl: Duration::from_millis(opened.ttl_ms.max(1)),
                    });
                    progress.add(1);
                }
                Response::Error(error) => {
                    let failure = Failure::from(error);
                    if !failure.is_passing() || failure.retry_after_ms == 0 {
                        return Err(failure.context("a session could not be opened"));
                    }
                    // New sessions are limited per address and second: come back when the server says.
                    tokio::time::sleep(Duration::from_millis(failure.retry_after_ms.into())).await;
                    to_ask += 1;
                }
                other => return Err(unexpected(&other)),
            }
            under_way -= 1;
            self.keep_alive()?;
        }
        self.plan_renewal();
        Ok(())
    }

    fn plan_renewal(&mut self) {
        let ttl = self
            .sessions
            .iter()
            .map(|session| session.ttl)
            .min()
            .unwrap_or(TTL);
        self.renew_at = Instant::now() + ttl / 3;
    }

    /// The sessions on it.
    pub(crate) fn sessions(&self) -> &[OpenedSession] {
        &self.sessions
    }

    /// Call numbers from here on are free.
    pub(crate) fn first_free_call(&self) -> u64 {
        self.next_call
    }

    /// The way out, for a driver that numbers its calls itself, from [`Self::first_free_call`] on.
    pub(crate) fn requests(&self) -> &mpsc::Sender<wire::SessionRequest> {
        &self.requests
    }

    /// When the sessions want their next heartbeat.
    pub(crate) fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// Sends a heartbeat for all sessions if it is time. Never waits: if the connection takes nothing at the
    /// moment, it tries again a little later.
    pub(crate) fn keep_alive(&mut self) -> Result<(), Failure> {
        if Instant::now() < self.renew_at {
            return Ok(());
        }
        self.plan_renewal();
        for sessions in self.sessions.chunks(RENEW_MAX) {
            let renew = wire::Renew {
                sessions: sessions.iter().map(|session| session.session).collect(),
            };
            let session = sessions.first().map_or(0, |session| session.session);
            let request = wire::SessionRequest {
                call: HEARTBEAT,
                session,
                request: Some(Request::Renew(renew)),
            };
            match self.requests.try_send(request) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.renew_at = Instant::now() + RENEW_PAUSE;
                    return Ok(());
                }
                Err(TrySendError::Closed(_)) => return Err(lost()),
            }
        }
        Ok(())
    }

    async fn send(&mut self, session: u64, request: Request) -> Result<u64, Failure> {
        let call = self.next_call;
        self.next_call += 1;
        let request = wire::SessionRequest {
            call,
            session,
            request: Some(request),
        };
        self.requests.send(request).await.map_err(|_| lost())?;
        Ok(call)
    }

    /// What comes next. Safe to drop while waiting.
    pub(crate) async fn next(&mut self) -> Result<Incoming, Failure> {
        let message = self
            .responses
            .message()
            .await
            .map_err(|status| failure_of(&status, Nature::Read))?;
        let message = message.ok_or_else(lost)?;
        match message.response {
            Some(_) if message.call & HEARTBEAT != 0 || message.call == 0 => Ok(Incoming::Other),
            Some(response) => Ok(Incoming::Answer {
                call: message.call,
                response,
            }),
            None => Err(Failure::failed("the server sent an answer without content")),
        }
    }

    async fn next_answer(&mut self, timeout: Duration) -> Result<Response, Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            let incoming = tokio::time::timeout_at(deadline, self.next())
                .await
                .map_err(|_| Failure::timeout("no answer on the session stream in time"))??;
            if let Incoming::Answer { response, .. } = incoming {
                return Ok(response);
            }
        }
    }

    /// One call, alone on the stream.
    pub(crate) async fn ask(
        &mut self,
        session: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, Failure> {
        let asked = self.send(session, request).await?;
        let deadline = Instant::now() + timeout;
        loop {
            self.keep_alive()?;
            let incoming = tokio::time::timeout_at(deadline, self.next())
                .await
                .map_err(|_| Failure::outcome_unknown("no answer on the session stream in time"))??;
            match incoming {
                Incoming::Answer { call, response } if call == asked => return Ok(response),
                // Of an earlier call whose caller has given up.
                Incoming::Answer { .. } | Incoming::Other => {}
            }
        }
    }

    /// Makes call numbers below this one used.
    pub(crate) fn skip_calls_to(&mut self, next_call: u64) {
        self.next_call = self.next_call.max(next_call);
    }

    /// Closes the sessions, so that their nodes leave now and not with the ttl.
    pub(crate) async fn close(mut self, timeout: Duration) -> Result<(), Failure> {
        let sessions = std::mem::take(&mut self.sessions);
        let mut left = sessions.iter();
        let mut under_way: HashMap<u64, u64> = HashMap::new();
        loop {
            while under_way.len() < WINDOW
                && let Some(session) = left.next()
            {
                let close = wire::CloseSession {
                    options: Some(wire_write_options(timeout)),
                };
                let call = self.send(session.session, Request::Close(close)).await?;
                under_way.insert(call, session.session);
            }
            if under_way.is_empty() {
                return Ok(());
            }
            let incoming = tokio::time::timeout(timeout, self.next()).await.map_err(|_| {
                Failure::timeout("sessions were not closed in time; they lapse with their ttl")
            })??;
            if let Incoming::Answer { call, response } = incoming
                && let Some(session) = under_way.remove(&call)
                && let Response::Error(error) = response
            {
                let failure = Failure::from(error);
                if failure.exit != crate::exit::Exit::NotFound {
                    return Err(failure.context(format!("session {session} could not be closed")));
                }
            }
        }
    }
}

fn lost() -> Failure {
    Failure::unavailable("the session stream was closed by the server")
}

/// An answer that does not fit the question.
pub(crate) fn unexpected(response: &Response) -> Failure {
    let name = match response {
        Response::Opened(_) => "opened",
        Response::Attached(_) => "attached",
        Response::Renewed(_) => "renewed",
        Response::Written(_) => "written",
        Response::Error(_) => "error",
        Response::Move(_) => "move",
    };
    Failure::failed(format!("the server gave an answer of the wrong kind: {name}"))
}

/// What the answer to a write says.
pub(crate) fn written(response: Response) -> Result<wire::WriteResponse, Failure> {
    match response {
        Response::Written(written) => Ok(written),
        Response::Error(error) => Err(error.into()),
        other => Err(unexpected(&other)),
    }
}
