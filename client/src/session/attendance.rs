//! The task behind a session: one stream at one server at a time, everything on it answered by call number.
//!
//! Invariants: a write keeps its request id for as long as the session lives, so that it is applied at most once
//! whatever streams it travels on; under a new session it gets a new id, since under a dead one nothing can be
//! applied any more. While nodes of a group are being registered again, other writes to that group wait.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::event::{SessionEvent, SessionStatus};
use super::handle::{SessionOptions, Shared};
use super::heartbeats::{Datagrams, News, Signal};
use super::operation::Operation;
use super::roll::Unowned;
use crate::backoff::{Backoff, LOST_SPREAD, jittered, spread_over};
use crate::config::{RegistryConfig, millis};
use crate::endpoint::{Channel, Endpoint, Endpoints};
use crate::error::Error;
use crate::key::{NodeKey, RequestId};
use crate::node::Entry;
use crate::registry::{Written, give_up, wire_options};

/// Nodes of one call when registering again: far below the servers' bounds on nodes and bytes of a request.
const RESTORE_BATCH: usize = 100;
/// Room on the outgoing side beyond the writes in flight: heartbeats, the closing word, restoring calls.
const OUTGOING_SPARE: usize = 128;
/// How long a server that asked us to move is left alone.
const MOVED_AWAY_FOR: Duration = Duration::from_secs(5);
/// After so many sessions under which a write was not taken its caller is told.
const SESSIONS_REFUSED_MAX: u32 = 2;
/// How long the last words of a dropped handle may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) enum Command {
    Write(Write),
    Close {
        reply: oneshot::Sender<Result<(), Error>>,
        deadline: Instant,
    },
}

pub(super) struct Write {
    pub(super) operation: Operation,
    pub(super) request_id: RequestId,
    pub(super) acks: u32,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Written, Error>>,
}

/// A write that waits for its answer.
struct Pending {
    operation: Operation,
    request_id: RequestId,
    acks: u32,
    /// Sessions under which it was not taken.
    sessions_refused: u32,
    purpose: Purpose,
    /// On the present stream, since then.
    sent_at: Option<Instant>,
    /// Some attempt may have been applied, or may yet be.
    outcome_unknown: bool,
    /// Asked to wait before it is sent again.
    not_before: Option<Instant>,
    pause: Backoff,
}

impl Pending {
    fn is_restore(&self) -> bool {
        matches!(self.purpose, Purpose::Restore)
    }
}

enum Purpose {
    /// A caller waits until then.
    Caller {
        deadline: Instant,
        reply: oneshot::Sender<Result<Written, Error>>,
    },
    /// Registers again what was registered.
    Restore,
}

/// The session as the registry knows it.
struct Lease {
    session: u64,
    secret: bytes::Bytes,
    ttl: Duration,
}

impl Lease {
    /// How long a heartbeat or an attachment may go unanswered before another server is asked: a small part of
    /// the ttl, so that several servers can be asked within it.
    fn answer_budget(&self) -> Duration {
        (self.ttl / 6).clamp(Duration::from_millis(250), Duration::from_secs(5))
    }

    fn heartbeat_interval(&self) -> Duration {
        jittered(self.ttl / 3)
    }
}

type Joining = Pin<Box<dyn Future<Output = Result<Box<Joined>, Error>> + Send>>;

struct Joined {
    /// What the stream runs on, if that is its own.
    connection: Option<Channel>,
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    answer: Response,
}

enum Link {
    Down {
        retry_at: Instant,
    },
    Joining {
        endpoint: Arc<Endpoint>,
        joining: Joining,
    },
    Up(Box<Up>),
    /// The stream was put down: datagrams do.
    Laid {
        endpoint: Arc<Endpoint>,
    },
}

struct Up {
    endpoint: Arc<Endpoint>,
    _connection: Option<Channel>,
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    heartbeat_at: Instant,
    heartbeat: Option<Heartbeat>,
    move_at: Option<Instant>,
}

/// A heartbeat under way.
struct Heartbeat {
    call: u64,
    /// When its first attempt left: the budget counts from there.
    since: Instant,
    /// When this attempt left.
    sent_at: Instant,
    resend_at: Option<Instant>,
}

struct Closing {
    reply: Option<oneshot::Sender<Result<(), Error>>>,
    deadline: Instant,
    request_id: RequestId,
    /// Said on the present stream, and when.
    call: Option<(u64, Instant)>,
    asked: bool,
}

enum Input {
    Command(Option<Command>),
    Joined(Result<Box<Joined>, Error>),
    Message(Result<Option<v1::SessionResponse>, Status>),
    Datagram(Signal),
    Time,
}

pub(super) struct Attendance {
    config: Arc<RegistryConfig>,
    endpoints: Arc<Endpoints>,
    options: SessionOptions,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    opening: Option<(oneshot::Sender<Result<(), Error>>, Instant)>,
    lease: Option<Lease>,
    /// There was a session before.
    reopening: bool,
    link: Link,
    datagrams: Datagrams,
    /// The server that has heard the session by datagram since the stream to it was put down; nobody was told of that.
    laid_at: Option<String>,
    /// Since when nothing was written.
    quiet_since: Instant,
    pending: BTreeMap<u64, Pending>,
    next_call: u64,
    closing: Option<Closing>,
    tried: usize,
    pause: Backoff,
    preferred: Vec<String>,
    /// Nodes that a server did not name as ours, but had when they were to be registered again.
    doubted: BTreeSet<NodeKey>,
    last_error: Option<Error>,
    ended: bool,
}

impl Attendance {
    pub(super) fn new(
        config: Arc<RegistryConfig>,
        endpoints: Arc<Endpoints>,
        options: SessionOptions,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        opening: (oneshot::Sender<Result<(), Error>>, Instant),
    ) -> Self {
        Self {
            config,
            endpoints,
            datagrams: Datagrams::new(options.heartbeats),
            laid_at: None,
            quiet_since: Instant::now(),
            options,
            shared,
            commands,
            opening: Some(opening),
            lease: None,
            reopening: false,
            link: Link::Down {
                retry_at: Instant::now(),
            },
            pending: BTreeMap::new(),
            next_call: 1,
            closing: None,
            tried: 0,
            pause: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            preferred: Vec::new(),
            doubted: BTreeSet::new(),
            last_error: None,
            ended: false,
        }
    }

    pub(super) async fn run(mut self) {
        while !self.ended {
            match self.next_input().await {
                Input::Command(Some(Command::Write(write))) => self.on_write(write),
                Input::Command(Some(Command::Close { reply, deadline })) => {
                    self.on_close(Some(reply), deadline)
                }
                Input::Command(None) => self.on_close(None, Instant::now() + LAST_WORDS),
                Input::Joined(joined) => self.on_joined(joined),
                Input::Message(message) => self.on_message(message),
                Input::Datagram(signal) => {
                    let news = self.datagrams.on_signal(signal, Instant::now());
                    self.on_news(news);
                }
                Input::Time => {}
            }
            self.on_time(Instant::now());
        }
        self.shared.status.send_replace(SessionStatus::Closed);
        self.tell(SessionEvent::Closed);
        self.shared.events.lock().take();
    }

    async fn next_input(&mut self) -> Input {
        let wake_at = self.wake_at();
        let takes_commands = self.closing.is_none() && self.callers() < self.config.writes_in_flight_max;
        let Self {
            commands,
            link,
            datagrams,
            ..
        } = self;
        tokio::select! {
            biased;
            input = link.next_input() => input,
            signal = datagrams.next_signal() => Input::Datagram(signal),
            command = commands.recv(), if takes_commands => Input::Command(command),
            () = tokio::time::sleep_until(wake_at) => Input::Time,
        }
    }

    /// The next moment at which [`Self::on_time`] can have something to do.
    fn wake_at(&self) -> Instant {
        let idle = Instant::now() + Duration::from_secs(60);
        let link = match &self.link {
            Link::Down { retry_at } => Some(*retry_at),
            Link::Joining { .. } | Link::Laid { .. } => None,
            Link::Up(up) => {
                let heartbeat = match (&up.heartbeat, &self.lease) {
                    (Some(heartbeat), Some(lease)) => {
                        let given_up = heartbeat.since + lease.answer_budget();
                        heartbeat.resend_at.map_or(given_up, |at| at.min(given_up))
                    }
                    _ => up.heartbeat_at,
                };
                Some(up.move_at.map_or(heartbeat, |at| at.min(heartbeat)))
            }
        };
        let attached = matches!(self.link, Link::Up(_));
        let writes = self.pending.values().flat_map(|pending| {
            let deadline = match &pending.purpose {
                Purpose::Caller { deadline, .. } => Some(*deadline),
                Purpose::Restore => None,
            };
            [deadline, pending.not_before.filter(|_| attached)]
                .into_iter()
                .flatten()
        });
        let closing = self.closing.as_ref().map(|closing| closing.deadline);
        let opening = self.opening.as_ref().map(|(_, deadline)| *deadline);
        writes
            .chain(link)
            .chain(self.datagrams.wake_at())
            .chain(self.datagrams_try_at())
            .chain(self.silent_at())
            .chain(closing)
            .chain(opening)
            .fold(idle, Instant::min)
    }

    fn on_time(&mut self, now: Instant) {
        self.expire_writes(now);
        if let Some((_, deadline)) = &self.opening
            && *deadline <= now
        {
            let error = self.last_error.take().unwrap_or(Error::DeadlineExceeded {
                message: "no server opened a session in time".into(),
            });
            self.end_opening(Err(error));
            self.ended = true;
            return;
        }
        if self
            .closing
            .as_ref()
            .is_some_and(|closing| closing.deadline <= now)
        {
            return self.end_closing(None);
        }
        match &mut self.link {
            Link::Down { retry_at } if *retry_at <= now => self.join(),
            Link::Down { .. } | Link::Joining { .. } => {}
            Link::Laid { .. } => self.take_up_if_needed(now),
            Link::Up(up) if up.move_at.is_some_and(|at| at <= now) => {
                up.endpoint.put_aside_for(MOVED_AWAY_FOR);
                self.detach("the server asked to move");
            }
            Link::Up(_) => self.beat(now),
        }
        self.try_datagrams(now);
        let news = self.datagrams.on_time(now);
        self.on_news(news);
        self.leave_if_silent(now);
        self.send_pending(now);
        self.send_close();
    }

    // ---- joining a server -------------------------------------------------------------------------------

    fn join(&mut self) {
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
                let open = v1::OpenSession {
                    // Each attempt is a write of its own: a session of which nobody heard lapses without nodes.
                    options: Some(wire_options(RequestId::random(), self.config.attempt_timeout, 0)),
                    ttl_ms: millis(self.options.ttl),
                    client: client.unwrap_or_else(|| self.config.client_name.clone()),
                    mode: self.options.mode.into(),
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

    fn on_joined(&mut self, joined: Result<Box<Joined>, Error>) {
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
                let lease = Lease {
                    session: opened.session,
                    secret: opened.secret,
                    ttl: Duration::from_millis(opened.ttl_ms.max(1)),
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
        // A session for AP groups alone is answered by one that knows nothing of CP groups.
        let revision = (header.mode() != v1::GroupMode::Ap).then_some(header.revision);
        let mut owned: BTreeSet<NodeKey> = attached.nodes.into_iter().map(NodeKey::from).collect();
        // Those that are being registered again are not there yet for that reason alone.
        owned.extend(self.restoring_nodes());
        let doubted = std::mem::take(&mut self.doubted);
        let Unowned { mut taken, missing } = self.shared.roll.lock().reconcile(&owned, revision);
        let (gone, missing): (Vec<Entry>, Vec<Entry>) = missing
            .into_iter()
            .partition(|entry| doubted.contains(&entry.key()));
        for key in gone.iter().map(Entry::key) {
            self.shared.roll.lock().strike(&key);
            taken.push(key);
        }
        if !taken.is_empty() {
            self.tell(SessionEvent::NodesTaken { nodes: taken });
        }
        for batch in missing.chunks(RESTORE_BATCH) {
            self.add_restore(batch.to_vec());
        }
    }

    fn joined(&mut self, server: &str) {
        self.tried = 0;
        self.pause.reset();
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
    fn retry_later(&mut self, at_least: Duration) {
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

    // ---- losing a server, losing the session ------------------------------------------------------------

    /// The server closed in order: another is asked in the slot that it gave, if the ttl leaves time for that.
    fn leave_closing(&mut self) {
        let now = Instant::now();
        let Link::Up(up) = &self.link else { return };
        let slot = up.move_at.unwrap_or(now);
        up.endpoint.put_aside_for(MOVED_AWAY_FOR);
        self.detach("the server is closing");
        let latest = now + self.lease.as_ref().map_or(Duration::ZERO, |lease| lease.ttl / 6);
        self.link = Link::Down {
            retry_at: slot.min(latest),
        };
    }

    /// The stream broke, and with it those of all clients of that server, which gave no slots: each asks another at
    /// a moment of its own.
    fn leave_lost(&mut self, reason: &str) {
        if let Link::Up(up) = &self.link {
            up.endpoint.failed();
        }
        self.detach(reason);
        self.link = self.down_for_a_moment();
    }

    /// The stream is of no use any more; the session may well live.
    fn detach(&mut self, reason: &str) {
        let down = Link::Down {
            retry_at: Instant::now(),
        };
        self.datagrams.close();
        let left = match std::mem::replace(&mut self.link, down) {
            Link::Up(up) => Some(up.endpoint.address.clone()),
            Link::Laid { .. } | Link::Down { .. } | Link::Joining { .. } => None,
        };
        self.tell_detached(left, reason);
        for pending in self.pending.values_mut() {
            pending.outcome_unknown |= pending.sent_at.take().is_some();
        }
        if let Some(closing) = &mut self.closing {
            closing.call = None;
        }
    }

    /// No server hears the session now: not the one whose stream was left, nor the one that heard it by datagram.
    fn tell_detached(&mut self, left: Option<String>, reason: &str) {
        self.shared.by_datagram.store(false, Ordering::Relaxed);
        let laid_at = self.laid_at.take();
        if let Some(server) = left.or(laid_at) {
            tracing::debug!(%server, reason, "session detached");
            self.shared.status.send_replace(SessionStatus::Detached);
            self.tell(SessionEvent::Detached {
                server,
                reason: reason.into(),
            });
        }
    }

    /// Others lost the same server: each asks another at a moment of its own.
    fn down_for_a_moment(&self) -> Link {
        let spread = self.lease.as_ref().map_or(Duration::ZERO, |lease| lease.ttl / 12);
        Link::Down {
            retry_at: Instant::now() + spread_over(spread.min(LOST_SPREAD)),
        }
    }

    /// The registry has forgotten the session: with it went its nodes and whatever was under way.
    fn lose(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        tracing::warn!(session = lease.session, "session lost, opening a new one");
        self.detach("the session was lost");
        self.reopening = true;
        self.shared.status.send_replace(SessionStatus::Restoring);
        self.tell(SessionEvent::Lost {
            session: lease.session,
        });
        self.pending
            .retain(|_, pending| matches!(pending.purpose, Purpose::Caller { .. }));
        for pending in self.pending.values_mut() {
            pending.request_id = RequestId::random();
            pending.outcome_unknown = false;
            pending.not_before = None;
        }
        if self.closing.is_some() {
            // What was to be ended has ended.
            self.end_closing(Some(Ok(())));
        }
    }

    /// Registers again all that was registered.
    fn restore(&mut self) {
        for mode in [v1::GroupMode::Ap, v1::GroupMode::Cp] {
            let entries = self.shared.roll.lock().entries(mode);
            for batch in entries.chunks(RESTORE_BATCH) {
                self.shared.status.send_replace(SessionStatus::Restoring);
                self.add_restore(batch.to_vec());
            }
        }
    }

    fn add_restore(&mut self, entries: Vec<Entry>) {
        self.add_pending(
            Operation::Register(entries),
            RequestId::random(),
            0,
            Purpose::Restore,
        );
    }

    fn restoring_nodes(&self) -> Vec<NodeKey> {
        let restoring = self.pending.values().filter(|pending| pending.is_restore());
        restoring
            .flat_map(|pending| match &pending.operation {
                Operation::Register(entries) => entries.as_slice(),
                Operation::Deregister(_) | Operation::Update(_) => &[],
            })
            .map(Entry::key)
            .collect()
    }

    fn is_restoring(&self) -> bool {
        self.pending.values().any(Pending::is_restore)
    }

    // ---- heartbeats -------------------------------------------------------------------------------------

    fn beat(&mut self, now: Instant) {
        let call = self.next_call;
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        let since = match &up.heartbeat {
            None if up.heartbeat_at <= now => now,
            None => return,
            Some(heartbeat) if heartbeat.since + lease.answer_budget() <= now => {
                up.endpoint.failed();
                return self.detach("a heartbeat was not answered in time");
            }
            Some(heartbeat) if heartbeat.resend_at.is_some_and(|at| at <= now) => heartbeat.since,
            Some(_) => return,
        };
        up.heartbeat = Some(Heartbeat {
            call,
            since,
            sent_at: now,
            resend_at: None,
        });
        let renew = Request::Renew(v1::Renew {
            sessions: vec![lease.session],
        });
        let request = v1::SessionRequest {
            call,
            session: lease.session,
            request: Some(renew),
        };
        self.next_call += 1;
        self.send(request);
    }

    fn on_renewed(&mut self, call: u64, renewed: &v1::Renewed) {
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        if renewed.not_found.contains(&lease.session) {
            return self.lose();
        }
        let Some(heartbeat) = up.heartbeat.as_mut().filter(|heartbeat| heartbeat.call == call) else {
            return;
        };
        if renewed.sessions.contains(&lease.session) {
            up.heartbeat_at = heartbeat.sent_at + lease.heartbeat_interval();
            up.heartbeat = None;
            up.endpoint.answered();
        } else {
            // Undecided: an expiry is under way. Ask again.
            heartbeat.resend_at = Some(Instant::now() + lease.answer_budget() / 4);
        }
    }

    fn on_heartbeat_refused(&mut self, error: Error) {
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        match error {
            Error::SessionNotFound { .. } => self.lose(),
            Error::SessionForeign { .. } => self.detach("the server does not hold the session"),
            error => {
                tracing::debug!(%error, "heartbeat refused");
                let asked = match error {
                    Error::Overloaded { retry_after, .. } => retry_after,
                    _ => Duration::ZERO,
                };
                if let Some(heartbeat) = &mut up.heartbeat {
                    heartbeat.resend_at = Some(Instant::now() + asked.max(lease.answer_budget() / 4));
                }
            }
        }
    }

    // ---- heartbeats by datagram -------------------------------------------------------------------------

    /// Nothing needs the stream.
    fn is_quiet(&self) -> bool {
        self.pending.is_empty()
            && self.closing.is_none()
            && self.opening.is_none()
            && self.commands.is_empty()
    }

    fn datagrams_try_at(&self) -> Option<Instant> {
        match (&self.link, &self.lease) {
            (Link::Up(up), Some(lease)) if self.is_quiet() && up.move_at.is_none() => {
                self.datagrams.try_at(self.quiet_since, lease.ttl)
            }
            _ => None,
        }
    }

    fn try_datagrams(&mut self, now: Instant) {
        if self.datagrams_try_at().is_some_and(|at| at <= now)
            && let Some(lease) = &self.lease
        {
            self.datagrams.open(lease.session, &lease.secret, lease.ttl, now);
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::None => {}
            News::Renewed => self.on_renewed_by_datagram(),
            News::NotFound => self.lose(),
            News::Failed(reason) => self.on_datagrams_failed(reason),
        }
    }

    /// Datagrams work. The stream is put down if it has nothing to carry; else they were tried too early.
    fn on_renewed_by_datagram(&mut self) {
        let quiet = self.is_quiet();
        let Link::Up(up) = &self.link else { return };
        if !quiet || up.move_at.is_some() {
            return self.datagrams.close();
        }
        let endpoint = Arc::clone(&up.endpoint);
        tracing::debug!(server = %endpoint.address, "heartbeats go by datagram, the stream is put down");
        self.laid_at = Some(endpoint.address.clone());
        self.shared.by_datagram.store(true, Ordering::Relaxed);
        self.link = Link::Laid { endpoint };
    }

    /// The stream is missed: by those who live by datagrams, not by those who only tried them.
    fn on_datagrams_failed(&mut self, reason: &str) {
        tracing::debug!(reason, "heartbeats go on a stream");
        match &self.link {
            Link::Laid { endpoint } => {
                endpoint.failed();
                self.detach(reason);
                self.link = self.down_for_a_moment();
            }
            // A stream is being taken up already.
            Link::Down { .. } | Link::Joining { .. } => self.tell_detached(None, reason),
            Link::Up(_) => {}
        }
    }

    /// A write, or the end, goes on a stream; heartbeats go by datagram until it stands.
    fn take_up_if_needed(&mut self, now: Instant) {
        if self.is_quiet() {
            return;
        }
        if let Link::Laid { endpoint } = &self.link {
            self.preferred = vec![endpoint.address.clone()];
            self.link = Link::Down { retry_at: now };
            self.join();
        }
    }

    // ---- messages ---------------------------------------------------------------------------------------

    fn on_message(&mut self, message: Result<Option<v1::SessionResponse>, Status>) {
        let Link::Up(up) = &mut self.link else { return };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) | Err(_) if up.move_at.is_some() => return self.leave_closing(),
            Ok(None) => return self.leave_lost("the server ended the stream"),
            Err(status) => return self.leave_lost(&format!("the stream broke: {}", status.message())),
        };
        let call = message.call;
        match message.response {
            Some(Response::Renewed(renewed)) => self.on_renewed(call, &renewed),
            Some(Response::Written(written)) => self.on_answer(call, Ok(written.into())),
            Some(Response::Error(error)) => self.on_error(call, error),
            Some(Response::Move(advice)) => {
                let after = Duration::from_millis(advice.after_ms.into());
                up.move_at = Some(Instant::now() + after);
                self.preferred = advice.servers;
            }
            Some(Response::Opened(_) | Response::Attached(_)) | None => {}
        }
    }

    fn on_error(&mut self, call: u64, error: v1::Error) {
        let heartbeat = match &self.link {
            Link::Up(up) => up.heartbeat.as_ref().map(|heartbeat| heartbeat.call),
            Link::Down { .. } | Link::Joining { .. } | Link::Laid { .. } => None,
        };
        if heartbeat == Some(call) {
            return self.on_heartbeat_refused(Error::from_wire(error, None));
        }
        let request_id = match self.pending.get(&call) {
            Some(pending) => Some(pending.request_id),
            None => self
                .closing
                .as_ref()
                .filter(|closing| closing.call.is_some_and(|(said, _)| said == call))
                .map(|c| c.request_id),
        };
        // Call 0, or one whose caller has given up: nobody waits.
        if let Some(request_id) = request_id {
            self.on_answer(call, Err(Error::from_wire(error, Some(request_id))));
        }
    }

    fn on_answer(&mut self, call: u64, answer: Result<Written, Error>) {
        if self
            .closing
            .as_ref()
            .is_some_and(|closing| closing.call.is_some_and(|(said, _)| said == call))
        {
            return self.on_close_answer(answer);
        }
        let Some(pending) = self.pending.get_mut(&call) else {
            return;
        };
        match answer {
            Ok(written) => self.finish(call, Ok(written)),
            Err(error @ Error::SessionNotFound { .. })
                if pending.sessions_refused >= SESSIONS_REFUSED_MAX =>
            {
                // Not the sessions are at fault: one for AP groups alone cannot write to a CP group, say.
                self.finish(call, Err(error));
            }
            Err(Error::SessionNotFound { .. }) => {
                pending.sessions_refused += 1;
                self.lose();
            }
            Err(Error::SessionForeign { .. }) => self.detach("the server does not hold the session"),
            Err(error) => {
                pending.outcome_unknown |= matches!(error, Error::OutcomeUnknown { .. });
                let restoring = matches!(pending.purpose, Purpose::Restore);
                // A caller hears of a full disk at once; what was registered before waits for space.
                let again = match &error {
                    Error::DiskFull { .. } => restoring,
                    error => error.is_transient(),
                };
                if !again {
                    return self.finish(call, Err(error));
                }
                let asked = match &error {
                    Error::Overloaded { retry_after, .. } => *retry_after,
                    _ => Duration::ZERO,
                };
                pending.sent_at = None;
                pending.not_before = Some(Instant::now() + asked.max(pending.pause.next_delay()));
                self.last_error = Some(error);
            }
        }
    }

    // ---- writes -----------------------------------------------------------------------------------------

    fn on_write(&mut self, write: Write) {
        write.operation.on_asked(&mut self.shared.roll.lock());
        let purpose = Purpose::Caller {
            deadline: write.deadline,
            reply: write.reply,
        };
        self.add_pending(write.operation, write.request_id, write.acks, purpose);
    }

    fn add_pending(&mut self, operation: Operation, request_id: RequestId, acks: u32, purpose: Purpose) {
        let call = self.take_call();
        let pause = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let pending = Pending {
            operation,
            request_id,
            acks,
            sessions_refused: 0,
            purpose,
            sent_at: None,
            outcome_unknown: false,
            not_before: None,
            pause,
        };
        self.pending.insert(call, pending);
    }

    fn callers(&self) -> usize {
        self.pending
            .values()
            .filter(|pending| matches!(pending.purpose, Purpose::Caller { .. }))
            .count()
    }

    fn send_pending(&mut self, now: Instant) {
        let (Link::Up(_), Some(lease)) = (&self.link, &self.lease) else {
            return;
        };
        let session = lease.session;
        let restores = self.pending.values().filter(|pending| pending.is_restore());
        let restoring: BTreeSet<&str> = restores.flat_map(|pending| pending.operation.groups()).collect();
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.sent_at.is_none() && pending.not_before.is_none_or(|at| at <= now))
            .filter(|(_, pending)| pending.is_restore() || pending.operation.groups().is_disjoint(&restoring))
            .map(|(call, _)| *call)
            .collect();
        for call in due {
            let Some(pending) = self.pending.get_mut(&call) else {
                continue;
            };
            let left = match &pending.purpose {
                Purpose::Caller { deadline, .. } => deadline.saturating_duration_since(now),
                Purpose::Restore => self.config.attempt_timeout,
            };
            let budget = left.min(self.config.attempt_timeout);
            let options = wire_options(pending.request_id, budget, pending.acks);
            let request = Some(pending.operation.to_wire(options));
            pending.sent_at = Some(now);
            pending.not_before = None;
            self.send(v1::SessionRequest {
                call,
                session,
                request,
            });
        }
    }

    /// When the stream's oldest unanswered write should have been answered. A server answers *unknown* before
    /// that; one that says nothing is paused, or cut off.
    fn silent_at(&self) -> Option<Instant> {
        let writes = self.pending.values().filter_map(|pending| pending.sent_at);
        let closing = self
            .closing
            .as_ref()
            .and_then(|closing| closing.call)
            .map(|(_, at)| at);
        writes
            .chain(closing)
            .min()
            .map(|at| at + self.config.attempt_timeout)
    }

    fn leave_if_silent(&mut self, now: Instant) {
        if let Link::Up(up) = &self.link
            && self.silent_at().is_some_and(|at| at <= now)
        {
            up.endpoint.failed();
            self.detach("a write was not answered in time");
        }
    }

    fn send(&mut self, request: v1::SessionRequest) {
        let Link::Up(up) = &self.link else { return };
        // There is room for all that may be in flight: a full channel means the server reads nothing.
        if up.outgoing.try_send(request).is_err() {
            up.endpoint.failed();
            self.detach("the server takes nothing");
        }
    }

    fn expire_writes(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(
                |(_, pending)| matches!(pending.purpose, Purpose::Caller { deadline, .. } if deadline <= now),
            )
            .map(|(call, _)| *call)
            .collect();
        for call in due {
            let Some(pending) = self.pending.get(&call) else {
                continue;
            };
            let error = if pending.sent_at.is_some() || pending.outcome_unknown {
                Error::OutcomeUnknown {
                    request_id: pending.request_id,
                    message: "no answer before the deadline".into(),
                }
            } else {
                Error::Unavailable {
                    message: "no server took the write before the deadline".into(),
                }
            };
            self.finish(call, Err(error));
        }
    }

    fn finish(&mut self, call: u64, answer: Result<Written, Error>) {
        let Some(pending) = self.pending.remove(&call) else {
            return;
        };
        if let Ok(written) = &answer {
            pending
                .operation
                .on_applied(written, &mut self.shared.roll.lock());
        }
        self.quiet_since = Instant::now();
        match pending.purpose {
            Purpose::Caller { reply, .. } => {
                let answer =
                    answer.map_err(|error| give_up(Some(pending.request_id), pending.outcome_unknown, error));
                // A caller that went away wants no answer.
                let _ = reply.send(answer);
            }
            Purpose::Restore => self.on_restored(pending.operation, answer),
        }
    }

    fn on_restored(&mut self, operation: Operation, answer: Result<Written, Error>) {
        if let (Err(error), Operation::Register(mut entries)) = (answer, operation) {
            if entries.len() > 1 {
                // One of them is refused: find it.
                let rest = entries.split_off(entries.len() / 2);
                self.add_restore(entries);
                self.add_restore(rest);
                return;
            }
            let Some(node) = entries.first().map(Entry::key) else {
                return;
            };
            if let (Error::AlreadyExists { .. }, Link::Up(up)) = (&error, &self.link) {
                // Somebody's, perhaps ours after all: the server says whose when it is asked what we own.
                self.preferred = vec![up.endpoint.address.clone()];
                self.doubted.insert(node);
                return self.detach("a node that was missing is there");
            }
            tracing::warn!(%node, %error, "a node could not be registered again");
            self.shared.roll.lock().strike(&node);
            self.tell(SessionEvent::NodeRefused {
                node,
                error: Arc::new(error),
            });
        }
        if self.is_restoring() {
            return;
        }
        let nodes = self.shared.roll.lock().len();
        if let Link::Up(up) = &self.link {
            self.shared.status.send_replace(SessionStatus::Attached {
                server: up.endpoint.address.clone(),
            });
        }
        self.tell(SessionEvent::Reregistered { nodes });
    }

    // ---- the end ----------------------------------------------------------------------------------------

    fn on_close(&mut self, reply: Option<oneshot::Sender<Result<(), Error>>>, deadline: Instant) {
        self.closing = Some(Closing {
            reply,
            deadline,
            request_id: RequestId::random(),
            call: None,
            asked: false,
        });
        self.commands.close();
        if self.lease.is_none() {
            // Lost, and not open again: there is nothing to close.
            self.end_closing(Some(Ok(())));
        }
    }

    /// Says the last word, once all writes are answered.
    fn send_close(&mut self) {
        let call = self.next_call;
        let callers = self.callers();
        let (Link::Up(_), Some(lease), Some(closing)) = (&self.link, &self.lease, &mut self.closing) else {
            return;
        };
        if closing.call.is_some() || callers > 0 {
            return;
        }
        closing.call = Some((call, Instant::now()));
        closing.asked = true;
        let left = closing.deadline.saturating_duration_since(Instant::now());
        let options = wire_options(closing.request_id, left.min(self.config.attempt_timeout), 0);
        let close = Request::Close(v1::CloseSession {
            options: Some(options),
        });
        let request = v1::SessionRequest {
            call,
            session: lease.session,
            request: Some(close),
        };
        self.next_call += 1;
        self.send(request);
    }

    fn on_close_answer(&mut self, answer: Result<Written, Error>) {
        match answer {
            Ok(_) | Err(Error::SessionNotFound { .. }) => self.end_closing(Some(Ok(()))),
            Err(Error::SessionForeign { .. }) => self.detach("the server does not hold the session"),
            Err(error) if error.is_transient() => {
                // Another server may do it: the deadline bounds this.
                self.last_error = Some(error);
                self.detach("the session was not closed");
                self.retry_later(Duration::from_millis(50));
            }
            Err(error) => self.end_closing(Some(Err(error))),
        }
    }

    /// `None`: the deadline passed.
    fn end_closing(&mut self, answer: Option<Result<(), Error>>) {
        self.ended = true;
        for call in self.pending.keys().copied().collect::<Vec<_>>() {
            if matches!(self.pending[&call].purpose, Purpose::Caller { .. }) {
                let message = "the session was closed".into();
                let outcome_unknown = self.pending[&call].sent_at.is_some();
                if let Some(pending) = self.pending.get_mut(&call) {
                    pending.outcome_unknown |= outcome_unknown;
                }
                self.finish(call, Err(Error::Unavailable { message }));
            }
        }
        let Some(closing) = self.closing.take() else {
            return;
        };
        let answer = answer.unwrap_or_else(|| {
            let message = "no server confirmed the end of the session in time".to_owned();
            Err(if closing.asked {
                Error::OutcomeUnknown {
                    request_id: closing.request_id,
                    message,
                }
            } else {
                Error::Unavailable { message }
            })
        });
        if let Some(reply) = closing.reply {
            let _ = reply.send(answer);
        }
    }

    fn end_opening(&mut self, answer: Result<(), Error>) {
        if let Some((opened, _)) = self.opening.take()
            && opened.send(answer).is_err()
        {
            // Whoever wanted the session has gone; the commands' end says so too, and closes it.
            tracing::debug!("nobody waits for the session any more");
        }
    }

    fn take_call(&mut self) -> u64 {
        let call = self.next_call;
        self.next_call += 1;
        call
    }

    fn tell(&self, event: SessionEvent) {
        if let Some(events) = &*self.shared.events.lock() {
            // Without readers there is nobody to tell.
            let _ = events.send(event);
        }
    }
}

impl Link {
    async fn next_input(&mut self) -> Input {
        match self {
            Self::Down { .. } | Self::Laid { .. } => std::future::pending().await,
            Self::Joining { joining, .. } => Input::Joined(joining.await),
            Self::Up(up) => Input::Message(up.incoming.message().await),
        }
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
