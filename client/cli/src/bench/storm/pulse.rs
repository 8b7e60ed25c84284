//! Heartbeats and registrations, on a thread of their own.

use std::time::Duration;

use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::driver::{StreamLoad, drive_stream};
use super::super::lane::{Lane, Pace};
use super::super::report::Tally;
use super::super::stream::{SessionStream, unexpected, written};
use super::thread::on_thread;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::servers::{way_to, wire_write_options};
use crate::talk::say;

/// Calls under way at a time: enough for any server that keeps up.
const IN_FLIGHT_MAX: usize = 4_096;
/// Nodes that are registered again and again.
const NODES: u64 = 100;
/// Weights a node goes through, so that each registration changes something.
const WEIGHTS: u64 = 60_000;

/// How fast, and where.
#[derive(Clone, Debug)]
pub(super) struct PulseSettings {
    pub(super) address: String,
    pub(super) sessions: usize,
    pub(super) heartbeats_per_s: f64,
    pub(super) registrations_per_s: f64,
    pub(super) service: ServiceKey,
    pub(super) timeout: Duration,
}

/// What came of one span of time.
#[derive(Debug)]
pub(super) struct Beats {
    pub(super) heartbeats: Tally,
    pub(super) registrations: Tally,
}

/// A span to be measured: from now until `over`.
struct Span {
    over: watch::Receiver<bool>,
    reply: oneshot::Sender<Beats>,
}

/// The thread. Its sessions end when this is closed.
#[derive(Debug)]
pub(super) struct Pulse {
    spans: mpsc::Sender<Span>,
    ended: oneshot::Receiver<()>,
}

impl Pulse {
    /// Opens its streams and sessions.
    pub(super) async fn start(settings: PulseSettings) -> Result<Self, Failure> {
        let (spans, asked) = mpsc::channel(1);
        let (ready, is_ready) = oneshot::channel();
        let ended = on_thread("pulse", move || serve(settings, ready, asked))?;
        is_ready.await.map_err(|_| gone())??;
        Ok(Self { spans, ended })
    }

    /// Measures until `over`, and then until what is under way is answered.
    pub(super) async fn measure(&self, over: watch::Receiver<bool>) -> Result<Beats, Failure> {
        let (reply, replied) = oneshot::channel();
        self.spans.send(Span { over, reply }).await.map_err(|_| gone())?;
        replied.await.map_err(|_| gone())
    }

    /// Closes the sessions, so that their nodes leave now.
    pub(super) async fn close(self) {
        drop(self.spans);
        // The thread has ended either way.
        let _ = self.ended.await;
    }
}

fn gone() -> Failure {
    Failure::failed("the thread of heartbeats broke down")
}

async fn serve(
    settings: PulseSettings,
    ready: oneshot::Sender<Result<(), Failure>>,
    mut asked: mpsc::Receiver<Span>,
) {
    let (mut renewing, mut registering) = match open(&settings).await {
        Ok(streams) => streams,
        Err(failure) => {
            let _ = ready.send(Err(failure));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut registrations = Registrations::new(&settings, &registering);
    let mut heartbeats = Heartbeats {
        sessions: renewing
            .sessions()
            .iter()
            .map(|session| session.session)
            .collect(),
    };
    loop {
        let renew_at = renewing.renew_at().min(registering.renew_at());
        let span = tokio::select! {
            span = asked.recv() => match span {
                Some(span) => span,
                None => break,
            },
            () = tokio::time::sleep_until(renew_at) => {
                // A stream that is lost shows in the next span.
                let _ = renewing.keep_alive().and_then(|()| registering.keep_alive());
                continue;
            }
        };
        let start = Instant::now();
        let lane = |rate: f64| {
            let pace = Pace::Open {
                first: Duration::ZERO,
                every: Duration::from_secs_f64(1.0 / rate),
            };
            Lane::new(start, pace, None, None, IN_FLIGHT_MAX, settings.timeout)
        };
        let progress = Progress::silent();
        let over = || Interrupt::told(span.over.clone());
        let (renewed, registered) = tokio::join!(
            drive_stream(
                &mut renewing,
                lane(settings.heartbeats_per_s),
                &mut heartbeats,
                &progress,
                over()
            ),
            drive_stream(
                &mut registering,
                lane(settings.registrations_per_s),
                &mut registrations,
                &progress,
                over()
            ),
        );
        // Who asked may have given up.
        let _ = span.reply.send(Beats {
            heartbeats: renewed,
            registrations: registered,
        });
    }
    for stream in [renewing, registering] {
        if let Err(failure) = stream.close(settings.timeout).await {
            say(format_args!("{failure}"));
        }
    }
}

/// A connection for each, so that none waits behind the other's answers.
async fn open(settings: &PulseSettings) -> Result<(SessionStream, SessionStream), Failure> {
    let timeout = settings.timeout;
    let progress = Progress::silent();
    let channel = way_to(&settings.address, timeout)?;
    let renewing = SessionStream::open(channel, settings.sessions, timeout, &progress).await?;
    let channel = way_to(&settings.address, timeout)?;
    let registering = SessionStream::open(channel, 1, timeout, &progress).await?;
    Ok((renewing, registering))
}

/// One session after the other.
struct Heartbeats {
    sessions: Vec<u64>,
}

impl StreamLoad for Heartbeats {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        let turn = usize::try_from(call % self.sessions.len().max(1) as u64).unwrap_or(0);
        let session = self.sessions.get(turn).copied().unwrap_or(0);
        wire::SessionRequest {
            call,
            session,
            request: Some(Request::Renew(wire::Renew {
                sessions: vec![session],
            })),
        }
    }

    fn judge(&mut self, _: u64, response: Response) -> Result<u64, Failure> {
        match response {
            Response::Renewed(renewed) if renewed.not_found.is_empty() => Ok(1),
            Response::Renewed(_) => Err(wire::Error {
                code: wire::ErrorCode::SessionNotFound.into(),
                message: "a session of the bench has expired".into(),
                ..wire::Error::default()
            }
            .into()),
            Response::Error(error) => Err(error.into()),
            other => Err(unexpected(&other)),
        }
    }
}

/// One node after the other, with another weight each time round.
struct Registrations {
    session: u64,
    service: wire::ServiceKey,
    timeout: Duration,
    registered: u64,
}

impl Registrations {
    fn new(settings: &PulseSettings, stream: &SessionStream) -> Self {
        Self {
            session: stream.sessions().first().map_or(0, |session| session.session),
            service: (&settings.service).into(),
            timeout: settings.timeout,
            registered: 0,
        }
    }
}

impl StreamLoad for Registrations {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        // Counted over all spans, which number their calls anew.
        let (index, round) = (self.registered % NODES, self.registered / NODES);
        self.registered += 1;
        let node = wire::RegisterNode {
            key: Some(self.service.clone()),
            registration: Some(wire::Registration {
                id: format!("pulse-{index}"),
                addresses: vec![wire::Address {
                    name: "http".into(),
                    host: format!("10.0.0.{index}"),
                    port: 8080,
                }],
                weight: Some(u32::try_from(1 + round % WEIGHTS).unwrap_or(1)),
                kind: wire::NodeKind::Ephemeral.into(),
                state: wire::NodeState::Up.into(),
                ..wire::Registration::default()
            }),
            expected: None,
        };
        wire::SessionRequest {
            call,
            session: self.session,
            request: Some(Request::Register(wire::RegisterRequest {
                options: Some(wire_write_options(self.timeout)),
                proof: None,
                nodes: vec![node],
            })),
        }
    }

    fn judge(&mut self, _: u64, response: Response) -> Result<u64, Failure> {
        written(response).map(|_| 1)
    }
}
