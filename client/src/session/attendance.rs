//! The task behind a session: one stream at one server at a time, everything on it answered by call number.
//!
//! Invariants: a write keeps its request id for as long as the session lives, so that it is applied at most once
//! whatever streams it travels on; under a new session it gets a new id, since under a dead one nothing can be
//! applied any more. (It may have been before, and may have outlived the session.) While nodes of a group are being registered again, other writes to that group wait.

mod closing;
mod heartbeat;
mod joining;
mod leaving;
mod ownership;
mod parting;
mod restoring;
mod scouting;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rollcall_proto::v1;
use rollcall_proto::v1::session_response::Response;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use self::closing::Closing;
use self::heartbeat::Heartbeat;
use self::joining::{Joined, Joining};
use self::ownership::{Questions, Told};
use self::scouting::Scout;
use self::writes::{Pending, Purpose};
use super::event::{SessionEvent, SessionStatus};
use super::handle::{SessionOptions, Shared};
use super::heartbeats::{Datagrams, Signal};
use super::operation::Operation;
use crate::backoff::{Backoff, jittered};
use crate::config::RegistryConfig;
use crate::endpoint::{Channel, Endpoint, Endpoints};
use crate::error::Error;
use crate::key::RequestId;
use crate::registry::Written;

/// How long a server that asked us to move is left alone.
const MOVED_AWAY_FOR: Duration = Duration::from_secs(5);
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
    /// Its place among the writes in flight.
    pub(super) place: OwnedSemaphorePermit,
}

/// The session as the registry knows it.
struct Lease {
    session: u64,
    secret: bytes::Bytes,
    ttl: Duration,
    opened_at: Instant,
    /// For AP groups alone: no server writes to a CP group under it.
    records_alone: bool,
}

impl Lease {
    /// How long a heartbeat or an attachment may go unanswered before another server is asked: a small part of
    /// the ttl, so that several servers can be asked within it.
    fn answer_budget(&self) -> Duration {
        (self.ttl / 6).clamp(Duration::from_millis(250), Duration::from_secs(5))
    }

    /// It cannot have lapsed yet, even if no heartbeat has come through.
    fn is_young(&self) -> bool {
        self.opened_at.elapsed() < self.ttl
    }

    fn heartbeat_interval(&self) -> Duration {
        jittered(self.ttl / 3)
    }
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

enum Input {
    Command(Option<Command>),
    Joined(Result<Box<Joined>, Error>),
    Message(Result<Option<v1::SessionResponse>, Status>),
    Datagram(Signal),
    Told(Told),
    Scouted(Option<Arc<Endpoint>>),
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
    /// Sessions in a row that cannot have lapsed, and under which what was registered before was not taken.
    restores_refused: u32,
    /// A session for AP groups alone did not do: a group has moved to CP since.
    full_wanted: bool,
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
    /// Sessions of ours that the registry forgot.
    lost: VecDeque<u64>,
    questions: Questions,
    scout: Scout,
    /// Not only asked, since registering again began.
    registered_again: bool,
    /// A caller was told of a registration that nobody knows what became of: it may be listed, and is not on the roll.
    registered_perhaps: bool,
    last_error: Option<Error>,
    ended: bool,
    #[cfg(test)]
    groups_gathered: std::cell::Cell<usize>,
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
            restores_refused: 0,
            full_wanted: false,
            link: Link::Down {
                retry_at: Instant::now(),
            },
            pending: BTreeMap::new(),
            next_call: 1,
            closing: None,
            tried: 0,
            pause: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            preferred: Vec::new(),
            lost: VecDeque::new(),
            questions: Questions::new(),
            scout: Scout::new(),
            registered_again: false,
            registered_perhaps: false,
            last_error: None,
            ended: false,
            #[cfg(test)]
            groups_gathered: std::cell::Cell::default(),
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
                Input::Told(told) => self.on_told(told),
                Input::Scouted(found) => self.on_scouted(found),
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
        let takes_commands = self.closing.is_none();
        let Self {
            commands,
            link,
            datagrams,
            questions,
            scout,
            ..
        } = self;
        tokio::select! {
            biased;
            input = link.next_input() => input,
            signal = datagrams.next_signal() => Input::Datagram(signal),
            Some(told) = questions.next() => Input::Told(told),
            found = scout.next() => Input::Scouted(found),
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
        let callers_wait = |pending: &Pending| !pending.is_restore() && pending.not_before.is_some();
        let restoring = self.restoring_groups_if(|pending| attached && callers_wait(pending));
        let writes = self.pending.values().flat_map(|pending| {
            let deadline = match &pending.purpose {
                Purpose::Caller { deadline, .. } => Some(*deadline),
                Purpose::Restore(_) => None,
            };
            let sendable = attached && pending.may_go(&restoring, &self.pending);
            [deadline, pending.not_before.filter(|_| sendable)]
                .into_iter()
                .flatten()
        });
        let closing = self.closing.as_ref().map(|closing| closing.deadline);
        let opening = self.opening.as_ref().map(|(_, deadline)| *deadline);
        writes
            .chain(link)
            .chain(self.datagrams.wake_at())
            .chain(self.datagrams_try_at())
            .chain(self.silent_at().filter(|_| attached))
            .chain(closing)
            .chain(self.leave_behind_wakes_at())
            .chain(opening)
            .fold(idle, Instant::min)
    }

    fn on_time(&mut self, now: Instant) {
        self.forget_abandoned();
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
        self.leave_behind_at(now);
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
        self.ask_whose(now);
        self.send_close();
    }

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

    /// `false`: it did not go, and the stream was left.
    fn send(&mut self, request: v1::SessionRequest) -> bool {
        let Link::Up(up) = &self.link else { return false };
        // There is room for all that may be in flight: a full channel means the server reads nothing.
        let sent = up.outgoing.try_send(request).is_ok();
        if !sent {
            up.endpoint.failed();
            self.detach("the server takes nothing");
        }
        sent
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
