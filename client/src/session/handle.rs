//! What a provider holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_proto::v1::GroupMode;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::attendance::{Attendance, Command, Write};
use super::event::{SessionEvents, SessionStatus};
use super::heartbeats::Heartbeats;
use super::operation::Operation;
use super::roll::Roll;
use crate::config::{RegistryConfig, WriteOptions};
use crate::error::Error;
use crate::key::{NodeKey, RequestId, ServiceKey};
use crate::node::{Entry, NodeState, NodeUpdate, Registration, Removal};
use crate::registry::{Registry, Written};

/// Events kept for a slow reader of [`Session::events`].
const EVENTS_MAX: usize = 256;

/// Nodes of one call that says that they are draining.
const DRAIN_BATCH: usize = 1000;

/// How a session is to be opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionOptions {
    /// How long the registry waits for a sign of life before it strikes the nodes off. The servers clamp it to
    /// their range (2 s to 10 min by default). Default 15 s. Short: a crash is noticed soon, but a pause of the
    /// program (or its machine) as long costs a re-registration.
    pub ttl: Duration,
    /// A name for people; `None`: [`RegistryConfig::client_name`].
    pub client_name: Option<String>,
    /// How long the first opening may take; `None`: [`RegistryConfig::call_timeout`].
    pub timeout: Option<Duration>,
    /// Unspecified (default): for groups of both modes; while there is no quorum, one for groups of mode ap alone is
    /// better than none, and is exchanged for a full one when it is to register into a group of mode cp. Ap: only for
    /// groups of mode ap, which is opened without a quorum at once. Cp: a full one or none.
    pub mode: GroupMode,
    /// Which way its heartbeats go. Default: [`Heartbeats::Stream`].
    pub heartbeats: Heartbeats,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(15),
            client_name: None,
            timeout: None,
            mode: GroupMode::Unspecified,
            heartbeats: Heartbeats::default(),
        }
    }
}

impl SessionOptions {
    /// The defaults, with this ttl.
    #[must_use]
    pub fn ttl(ttl: Duration) -> Self {
        Self {
            ttl,
            ..Self::default()
        }
    }

    /// With another name for people.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = Some(name.into());
        self
    }

    /// For groups of this mode.
    #[must_use]
    pub fn mode(mut self, mode: GroupMode) -> Self {
        self.mode = mode;
        self
    }

    /// With heartbeats that go this way.
    #[must_use]
    pub fn heartbeats(mut self, heartbeats: Heartbeats) -> Self {
        self.heartbeats = heartbeats;
        self
    }
}

/// A session: the lease of all nodes of this process. It keeps itself alive: heartbeats, re-attaching at another
/// server, reopening and registering again after a loss. Cheap to clone; when the last clone is dropped, it is
/// closed in the background as well as that can be done.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    /// Places for the writes in flight.
    places: Arc<Semaphore>,
    shared: Arc<Shared>,
    config: Arc<RegistryConfig>,
}

/// What the handle and the task both look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) roll: Mutex<Roll>,
    pub(super) status: watch::Sender<SessionStatus>,
    pub(super) lease: watch::Sender<(u64, Duration)>,
    /// The stream is put down: heartbeats go by datagram.
    pub(super) by_datagram: AtomicBool,
    pub(super) events: Mutex<Option<broadcast::Sender<super::SessionEvent>>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            roll: Mutex::default(),
            status: watch::Sender::new(SessionStatus::Opening),
            lease: watch::Sender::new((0, Duration::ZERO)),
            by_datagram: AtomicBool::new(false),
            events: Mutex::new(Some(broadcast::Sender::new(EVENTS_MAX))),
        }
    }
}

impl Registry {
    /// Opens a session.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::AdmissionRefused`], and the transient ones when no server would open
    /// it in time. A session of which nobody heard the answer lapses by itself; it has no nodes.
    pub async fn open_session(&self, options: SessionOptions) -> Result<Session, Error> {
        let config = Arc::clone(&self.inner.config);
        // The task takes commands at once, whatever is in flight: it keeps their deadlines.
        let (commands, receiver) = mpsc::channel(config.writes_in_flight_max);
        let places = Arc::new(Semaphore::new(config.writes_in_flight_max));
        let (opened, answer) = oneshot::channel();
        let shared = Arc::new(Shared::new());
        let deadline = Instant::now() + options.timeout.unwrap_or(config.call_timeout);
        let attendance = Attendance::new(
            Arc::clone(&config),
            Arc::clone(&self.inner.endpoints),
            options,
            Arc::clone(&shared),
            receiver,
            (opened, deadline),
        );
        tokio::spawn(attendance.run());
        answer.await.unwrap_or(Err(Error::Closed { what: "session" }))?;
        Ok(Session {
            inner: Arc::new(Inner {
                commands,
                places,
                shared,
                config,
            }),
        })
    }
}

impl Session {
    /// Its id at the moment; after a loss there is a new one.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.shared.lease.borrow().0
    }

    /// The ttl that the servers granted.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.inner.shared.lease.borrow().1
    }

    /// Whether it lives by datagrams at the moment, without a connection: see [`SessionOptions::heartbeats`].
    #[must_use]
    pub fn is_by_datagram(&self) -> bool {
        self.inner.shared.by_datagram.load(Ordering::Relaxed)
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        self.inner.shared.status.borrow().clone()
    }

    /// The nodes that it keeps registered.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeKey> {
        self.inner.shared.roll.lock().keys()
    }

    /// What happens to it from now on.
    #[must_use]
    pub fn events(&self) -> SessionEvents {
        let receiver = match &*self.inner.shared.events.lock() {
            Some(events) => events.subscribe(),
            // It has ended: a channel without a sender says so.
            None => broadcast::channel(1).1,
        };
        SessionEvents { receiver }
    }

    /// Registers a node, or replaces what it says of itself. From then on it is registered again after a loss.
    ///
    /// A static or persistent node belongs to no session, also if it was registered here: it stays when this one is
    /// closed or lost.
    ///
    /// # Errors
    /// Those of [`Self::register_all`].
    pub async fn register(&self, service: &ServiceKey, registration: Registration) -> Result<Written, Error> {
        self.register_all(
            vec![Entry::new(service.clone(), registration)],
            WriteOptions::default(),
        )
        .await
    }

    /// Registers nodes, all or none, in one revision. All in groups of one mode.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::ServiceNotFound`], [`Error::InvalidName`], [`Error::InvalidArgument`],
    /// [`Error::TooLarge`], [`Error::QuotaExceeded`], [`Error::AdmissionRefused`], [`Error::RevisionMismatch`]
    /// or [`Error::AlreadyExists`] if a condition does not hold, [`Error::OutcomeUnknown`], and the transient
    /// ones.
    pub async fn register_all(&self, nodes: Vec<Entry>, options: WriteOptions) -> Result<Written, Error> {
        self.write(Operation::Register(nodes), options).await
    }

    /// Takes a node out. It is not registered again, even if this fails.
    ///
    /// # Errors
    /// Those of [`Self::deregister_all`].
    pub async fn deregister(&self, node: &NodeKey) -> Result<Written, Error> {
        self.deregister_all(vec![node.clone().into()], WriteOptions::default())
            .await
    }

    /// Takes nodes out, all or none, in one revision. They are not registered again, even if this fails.
    ///
    /// # Errors
    /// [`Error::NotOwner`], [`Error::RevisionMismatch`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn deregister_all(&self, nodes: Vec<Removal>, options: WriteOptions) -> Result<Written, Error> {
        self.write(Operation::Deregister(nodes), options).await
    }

    /// Changes a registered node; compare-and-set with [`NodeUpdate::expected`].
    ///
    /// # Errors
    /// Those of [`Self::update_all`].
    pub async fn update(&self, update: NodeUpdate) -> Result<Written, Error> {
        self.update_all(vec![update], WriteOptions::default()).await
    }

    /// Changes registered nodes, all or none, in one revision.
    ///
    /// # Errors
    /// [`Error::NodeNotFound`], [`Error::NotOwner`], [`Error::RevisionMismatch`], [`Error::TooLarge`],
    /// [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn update_all(
        &self,
        updates: Vec<NodeUpdate>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(Operation::Update(updates), options).await
    }

    /// Says that a node finishes what it has and wants nothing new.
    ///
    /// # Errors
    /// Those of [`Self::update_all`].
    pub async fn drain(&self, node: &NodeKey) -> Result<Written, Error> {
        self.update(NodeUpdate::new(node.clone()).state(NodeState::Draining))
            .await
    }

    /// Says so of all nodes of the session, in calls of up to 1,000 nodes: of those in groups of mode ap first, and of the
    /// others whatever came of that. One that is not ours any more holds up no other.
    ///
    /// # Errors
    /// Those of [`Self::update_all`]; [`Error::NodeNotFound`] and [`Error::NotOwner`] of single nodes are none here.
    pub async fn drain_all(&self) -> Result<(), Error> {
        // Groups of mode ap first: they need no quorum.
        let ap = self.drain_in(GroupMode::Ap).await;
        let cp = self.drain_in(GroupMode::Cp).await;
        ap.and(cp)
    }

    async fn drain_in(&self, mode: GroupMode) -> Result<(), Error> {
        let nodes = self.inner.shared.roll.lock().keys_in(mode);
        let mut calls: Vec<Vec<NodeKey>> = nodes.chunks(DRAIN_BATCH).map(Vec::from).collect();
        let mut outcome = Ok(());
        while let Some(mut nodes) = calls.pop() {
            let drain = |key: &NodeKey| NodeUpdate::new(key.clone()).state(NodeState::Draining);
            let updates = nodes.iter().map(drain).collect();
            let Err(error) = self.update_all(updates, WriteOptions::default()).await else {
                continue;
            };
            if !is_about_a_node(&error) {
                return Err(error);
            }
            if nodes.len() > 1 {
                // One of them is refused: find it.
                let rest = nodes.split_off(nodes.len() / 2);
                calls.extend([rest, nodes]);
            } else if !matches!(error, Error::NodeNotFound { .. } | Error::NotOwner { .. }) {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Ends the session: its nodes leave in one revision, static and persistent ones stay. Writes under way are answered
    /// first; those that are not after three quarters of the time for it are given up. If it was lost, what it had may still
    /// be listed: that is taken over by a new one, which is closed.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] or a transient one, if no server confirmed it within
    /// [`RegistryConfig::call_timeout`]: then the nodes leave when the ttl has passed. So it ends without a leader, if nodes
    /// were registered in CP groups, though all may be gone. After a loss also what refused
    /// nodes that were still listed: the session is closed, and they may stay for as long as a removal guard holds
    /// them. [`Error::Closed`]: it was closed before.
    pub async fn close(self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.inner.config.call_timeout;
        let closed = || Error::Closed { what: "session" };
        let sent = self.inner.commands.send(Command::Close { reply, deadline });
        match tokio::time::timeout_at(deadline, sent).await {
            Ok(Ok(())) => answer.await.unwrap_or_else(|_| Err(closed())),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(queue_full()),
        }
    }

    async fn write(&self, operation: Operation, options: WriteOptions) -> Result<Written, Error> {
        let (reply, answer) = oneshot::channel();
        let request_id = options.request_id.unwrap_or_else(RequestId::random);
        let deadline = Instant::now() + options.timeout.unwrap_or(self.inner.config.call_timeout);
        let places = Arc::clone(&self.inner.places);
        let place = match tokio::time::timeout_at(deadline, places.acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(Error::Closed { what: "session" }),
            Err(_) => return Err(queue_full()),
        };
        let write = Write {
            operation,
            request_id,
            acks: options.acks,
            deadline,
            reply,
            place,
        };
        match tokio::time::timeout_at(deadline, self.inner.commands.send(Command::Write(write))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Error::Closed { what: "session" }),
            Err(_) => return Err(queue_full()),
        }
        // The task answers everything it took; without it (the runtime is closing) nobody knows.
        answer.await.unwrap_or_else(|_| {
            Err(Error::OutcomeUnknown {
                request_id,
                message: "the session ended with the write under way".into(),
            })
        })
    }
}

/// Whether a call without the nodes that this is about may be taken.
fn is_about_a_node(error: &Error) -> bool {
    matches!(
        error,
        Error::NodeNotFound { .. }
            | Error::NotOwner { .. }
            | Error::ServiceNotFound { .. }
            | Error::GroupNotFound { .. }
            // Groups of both modes in one call, say: one has moved.
            | Error::InvalidArgument { .. }
            | Error::NotPermitted { .. }
    )
}

fn queue_full() -> Error {
    Error::Overloaded {
        retry_after: Duration::from_millis(100),
        message: "writes of this session waited for room until their deadline".into(),
    }
}
