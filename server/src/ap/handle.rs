//! The handle: what the other shells hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_core::ap::{Record, SessionSeed, SessionValue};
use rollcall_core::directory::{
    ChangeLogBounds, Command, Directory, GroupMode, Limits, LoggedRequest, Refusal, Request,
};
use rollcall_core::ids::{GroupName, NodeId, NodeKey, ServerId, ServiceKey, SessionId};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_proto::v1::ap_server::ApServer;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::committer::{self, Job, Wrote};
use super::company::Company;
use super::contract::{Acknowledged, ApStatus, Introduction, OriginStatus};
use super::desk::{Desk, Now};
use super::inner::{AtAGlance, Inner, ended};
use super::metrics::{ApMetrics, ServerLabel};
use super::origins::Origins;
use super::peer::ApDoor;
use super::rows::Found;
use super::strays::{self, Coordinated};
use super::{definitions, exchange, judge, repair, upkeep};
use crate::config::ApConfig;
use crate::gossip::Gossip;
use crate::raft::{
    AppliedHead, Consensus, Heir, MESSAGE_BYTES_MAX, ProposeError, REQUEST_BYTES_MAX, RenewalVerdict,
    SessionDeadline, SharedDirectory,
};
use crate::store::StoreError;

/// What an overloaded caller is told to wait.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(100);
/// This part of the records that a server may have, besides those, may be sessions of nodes that come back to a full server.
const RETURNING_SHARE: usize = 8;
/// How long a write waits at most for a second disk.
const SECOND_DISK_MAX: Duration = Duration::from_secs(1);
/// This bit is set in the ids of sessions that live by records alone, and in no other.
const OWN_SESSION_BIT: u64 = 1 << 63;

/// How AP groups are set up.
pub struct ApOptions {
    /// Replication: definitions, members, the disk and the lines to the other servers.
    pub consensus: Consensus,
    /// Who is there, and news of them; `None` if it is off.
    pub gossip: Option<Gossip>,
    /// The rest.
    pub config: ApConfig,
    /// How much the view's change log keeps.
    pub change_log: ChangeLogBounds,
    /// What is counted.
    pub metrics: ApMetrics,
}

/// What records say of some sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// They live, or lapsed and have nodes held.
    pub(crate) alive: BTreeSet<SessionId>,
    /// They do not.
    pub(crate) ended: BTreeSet<SessionId>,
}

/// AP groups on this server. Cheap to clone.
#[derive(Clone)]
pub struct Ap {
    pub(super) inner: Arc<Inner>,
    /// Bytes of requests that may still come to wait for the committer.
    room: Arc<Semaphore>,
}

impl Ap {
    /// Takes up what this server's disk knows of AP groups. The tasks end with `stop`; wait for them before
    /// replication ends.
    ///
    /// The peer listener must be served with [`Self::peer_service`].
    ///
    /// # Errors
    /// The records on disk are damaged.
    pub async fn start(
        options: ApOptions,
        stop: CancellationToken,
    ) -> Result<(Self, Vec<JoinHandle<()>>), StoreError> {
        let store = options.consensus.store().clone();
        let found = crate::ground::spawn_blocking(move || Found::read(&store)).await;
        let found = found.map_err(|error| error.to_string());
        let found = found.and_then(|read| read.map_err(|error| error.to_string()));
        let found = found.map_err(|problem| StoreError::RecordsDamaged {
            path: options.consensus.data_folder().join("log"),
            problem,
        })?;
        let (jobs, queue) = mpsc::channel(committer::QUEUE_MAX);
        let inner = Arc::new(Inner::new(options, found, jobs));
        let heir: Arc<dyn Heir> = inner.clone();
        inner.consensus.set_heir(&heir);
        let tasks = vec![
            tokio::spawn(committer::run(inner.clone(), queue, stop.clone())),
            tokio::spawn(definitions::follow(inner.clone(), stop.clone())),
            tokio::spawn(definitions::propose_created(inner.clone(), stop.clone())),
            tokio::spawn(judge::run(inner.clone(), stop.clone())),
            tokio::spawn(exchange::run(inner.clone(), stop.clone())),
            tokio::spawn(repair::run(inner.clone(), stop.clone())),
            tokio::spawn(strays::run(inner.clone(), stop.clone())),
            tokio::spawn(upkeep::run(inner.clone(), stop)),
        ];
        let room = Arc::new(Semaphore::new(committer::QUEUE_BYTES_MAX));
        Ok((Self { inner, room }, tasks))
    }

    /// The gRPC service for the peer listener, and for no other.
    #[must_use]
    pub fn peer_service(&self) -> ApServer<ApDoor> {
        ApServer::new(ApDoor::new(self.inner.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The AP groups, as this server sees them. Its revisions count this server's own steps and mean nothing
    /// elsewhere, nor under another [`Self::epoch`]. It may show a change shortly before that is on disk.
    #[must_use]
    pub fn view(&self) -> &Arc<SharedDirectory> {
        &self.inner.view
    }

    /// How far the view is, its changes on disk; has no position.
    #[must_use]
    pub fn applied_head(&self) -> watch::Receiver<AppliedHead> {
        self.inner.head.subscribe()
    }

    /// Tells this life of the server from every other.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Whether the view may be shown. Not before what is on disk is in it; and if there is nothing, or it is too
    /// old, or a group moved here while this server was away, not before others were asked.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.inner.defined.load(Ordering::Acquire) && self.inner.is_sure() && !self.inner.waits_for_missed()
    }

    /// Whether this life of the server has agreed with another one on every group: until then it may lack what
    /// happened while it was down.
    #[must_use]
    pub fn has_agreed(&self) -> bool {
        self.inner.agreed_at.lock().is_some()
    }

    /// Has a request applied to the view and written to disk; with 2 `acks` to another live server's as well, if
    /// one answers in time (see [`Acknowledged::acks`]). Needs no quorum.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn write(
        &self,
        request: Request,
        acks: u32,
        deadline: Instant,
    ) -> Result<Acknowledged, ProposeError> {
        self.write_by(None, request, acks, deadline).await
    }

    /// The same under a session, which records know from then on: in one step, so that no writer looks at what all others
    /// write at.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied. A closed session is refused as not found.
    pub(crate) async fn write_by(
        &self,
        by: Option<Introduction>,
        request: Request,
        acks: u32,
        deadline: Instant,
    ) -> Result<Acknowledged, ProposeError> {
        self.check_room_for(&request.command, by.as_ref())?;
        let (request, size) = LoggedRequest::of(request);
        if size > REQUEST_BYTES_MAX {
            return Err(ProposeError::Refused(Refusal::TooLarge {
                what: "the request".into(),
                size: size as u64,
                size_max: REQUEST_BYTES_MAX as u64,
            }));
        }
        let permits = u32::try_from(size).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(permits);
        let room = room.map_err(|_| ProposeError::Overloaded {
            retry_after: OVERLOAD_PAUSE,
        })?;
        let Wrote { outcome, records } = self
            .submit(deadline, |done| Job::Write {
                request: Box::new(request),
                by,
                with_records: acks > 1,
                deadline,
                room,
                done,
            })
            .await?;
        if acks < 2 {
            return Ok(Acknowledged { outcome, acks: 1 });
        }
        let doubled = planted(Mutant::SecondAckUnasked) || Box::pin(self.double(&records, deadline)).await;
        let metrics = &self.inner.metrics;
        match doubled {
            true => metrics.doubled.inc(),
            false => metrics.not_doubled.inc(),
        };
        Ok(Acknowledged {
            outcome,
            acks: 1 + u32::from(doubled),
        })
    }

    /// Whether another server's disk has these, too. Of no records nobody can say so: a repeated request may have
    /// written some that cannot be told any more.
    async fn double(&self, records: &[Arc<Record>], deadline: Instant) -> bool {
        if records.is_empty() {
            return false;
        }
        let deadline = deadline.min(Instant::now() + SECOND_DISK_MAX);
        let doubling = exchange::double(&self.inner, records);
        tokio::time::timeout_at(deadline, doubling).await.unwrap_or(false)
    }

    /// Opens a session that lives by records alone. Its id has the highest bit set.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been opened.
    pub async fn open_session(
        &self,
        secret_digest: [u8; 32],
        ttl_ms: u32,
        client: String,
        deadline: Instant,
    ) -> Result<SessionId, ProposeError> {
        self.check_room_to_return()?;
        self.check_room_for_session(&client)?;
        let id = SessionId(rand::random::<u64>() | OWN_SESSION_BIT);
        let seed = SessionSeed {
            id,
            secret_digest,
            ttl_ms,
            client,
        };
        self.claim(seed, deadline).await?;
        Ok(id)
    }

    /// Whether this server may keep more records of sessions: also of those whose nodes are known here and come back.
    fn check_room_to_return(&self) -> Result<(), Refusal> {
        let records_max = self.inner.config.records_max as usize;
        match self.inner.records() < records_max + records_max / RETURNING_SHARE {
            true => Ok(()),
            false => Err(self.no_room()),
        }
    }

    fn no_room(&self) -> Refusal {
        Refusal::QuotaExceeded {
            subject: "a server".into(),
            quota: self.inner.config.records_max,
            of: "records of AP groups (ap.records_max)".into(),
        }
    }

    /// Whether a command may be carried out with the records that there are. What is said of something that is known here, if
    /// only by its end, is always taken, and what others tell: who was here before those who took all the room may come
    /// back, and leave. While there is room this takes no lock.
    fn check_room_for(&self, command: &Command, by: Option<&Introduction>) -> Result<(), Refusal> {
        let (records, records_max) = (self.inner.records(), self.inner.config.records_max as usize);
        if records < records_max {
            return Ok(());
        }
        let desk = self.inner.desk.lock();
        let knows = |service: &ServiceKey, node: &NodeId| {
            let (service, node) = (service.clone(), node.clone());
            desk.replica.knows(&NodeKey { service, node })
        };
        let grows = match command {
            Command::Register { nodes, .. } => {
                // Who comes back has another session, and there is room for so many of them.
                let new = |by: &Introduction| desk.replica.session(by.session.id).is_none();
                records >= records_max + records_max / RETURNING_SHARE && by.is_some_and(new)
                    || nodes.iter().any(|node| !knows(&node.key, &node.registration.id))
            }
            Command::SetOverride { key, .. } | Command::ClearOverride { key } => {
                !desk.replica.knows_override(key)
            }
            // What is not known here gets a tombstone, since it may be known elsewhere.
            Command::Deregister { nodes, .. } => nodes.iter().any(|node| !desk.replica.knows(&node.key)),
            _ => false,
        };
        match grows {
            true => Err(self.no_room()),
            false => Ok(()),
        }
    }

    fn check_room_for_session(&self, client: &str) -> Result<(), Refusal> {
        let view = self.inner.view.read();
        let limits = view.limits();
        if client.len() > limits.text_bytes_max as usize {
            return Err(Refusal::TooLarge {
                what: "the client's name".into(),
                size: client.len() as u64,
                size_max: limits.text_bytes_max.into(),
            });
        }
        if view.totals().sessions >= limits.sessions_max.into() {
            return Err(Refusal::QuotaExceeded {
                subject: "the cluster".into(),
                quota: limits.sessions_max,
                of: "sessions".into(),
            });
        }
        Ok(())
    }

    /// From now on this server vouches for the session, until another claims it.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been claimed. A closed session is refused as not found.
    pub async fn claim(&self, session: SessionSeed, deadline: Instant) -> Result<(), ProposeError> {
        self.submit(deadline, |done| Job::Claim {
            seeds: vec![session],
            done,
        })
        .await
    }

    /// A job of a caller's: refused at once where it would have to wait for room.
    async fn submit<T>(
        &self,
        deadline: Instant,
        job: impl FnOnce(oneshot::Sender<Result<T, ProposeError>>) -> Job,
    ) -> Result<T, ProposeError> {
        let inner = &self.inner;
        if inner.consensus.disk_is_full() {
            return Err(ProposeError::DiskFull);
        }
        let (done, outcome) = oneshot::channel();
        inner.jobs.try_send(job(done)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded {
                retry_after: OVERLOAD_PAUSE,
            },
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        inner.tell_company();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(outcome) => outcome.map_err(|_| ended())?,
            Err(_) => Err(ProposeError::Unknown {
                reason: "no answer before the deadline".into(),
            }),
        }
    }

    /// A session that lives, or lapsed and has nodes held.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionValue> {
        let desk = self.inner.desk.lock();
        desk.replica
            .session(id)
            .filter(|session| session.is_alive())
            .cloned()
    }

    /// Leaves those of which there is no record, of whatever standing.
    pub(crate) fn retain_unrecorded(&self, sessions: &mut Vec<SessionId>) {
        if sessions.is_empty() {
            return;
        }
        let desk = self.inner.desk.lock();
        sessions.retain(|session| desk.replica.session(*session).is_none());
    }

    /// Whether a session lives, or lapsed and has nodes held.
    pub(crate) fn knows_session(&self, id: SessionId) -> bool {
        self.inner.desk.lock().knows(id, false)
    }

    /// Whether a registration in this group creates the service it names, so that none has to be defined before. Takes no
    /// lock for which writes are waited for.
    pub(crate) fn creates_services_of(&self, group: &GroupName) -> bool {
        self.inner.at_a_glance.creates_services_of(group)
    }

    /// Those among them that have a record, whatever it says. Costs next to nothing while no session ever had one.
    #[must_use]
    pub(crate) fn remembered(&self, sessions: &[SessionId]) -> Remembered {
        let mut remembered = Remembered::default();
        let desk = self.inner.desk.lock();
        if desk.holders().next().is_none() {
            return remembered;
        }
        for session in sessions {
            match desk.replica.session(*session) {
                Some(known) if known.is_alive() => _ = remembered.alive.insert(*session),
                Some(_) => _ = remembered.ended.insert(*session),
                None => {}
            }
        }
        remembered
    }

    /// Records signs of life of clients whose streams are here, at once and without a write. Sessions that nobody
    /// knows, that are closed, or that lapsed here are not found. One that another server holds, or found lapsed, is
    /// claimed for this one, and undecided until it is: ask again.
    #[must_use]
    pub fn renew(&self, sessions: &[SessionId]) -> RenewalVerdict {
        let now = std::time::Instant::now();
        let mut desk = self.inner.desk.lock();
        let view = self.inner.view.read();
        let verdict = desk.renew(sessions, &view, now);
        // The judge also has sessions claimed that are held elsewhere.
        if desk.office.is_resting() && !verdict.undecided.is_empty() {
            self.inner.to_judge.notify_one();
        }
        verdict
    }

    /// When these sessions lapse, by this server's clock; those it does not judge are left out.
    #[must_use]
    pub fn deadlines(&self, sessions: &[SessionId]) -> Vec<SessionDeadline> {
        let now = std::time::Instant::now();
        let desk = self.inner.desk.lock();
        let deadlines = sessions.iter().filter_map(|id| desk.office.deadline(*id, now));
        deadlines
            .map(|deadline| SessionDeadline {
                holder: Some(self.inner.server),
                ..deadline
            })
            .collect()
    }

    /// How long ago this server asked another, which then agreed with it on every group; `None`: never since its start.
    /// Costs a look.
    #[must_use]
    pub fn agreed(&self) -> Option<std::time::Duration> {
        self.inner.agreed_at().map(|at| at.elapsed())
    }

    /// How AP groups stand here.
    #[must_use]
    pub fn status(&self) -> ApStatus {
        let now = std::time::Instant::now();
        let inner = &self.inner;
        let origins = inner.origins.all();
        let agreed = inner.agreed_at().map(|at| now - at);
        let loaded = self.is_loaded();
        let desk = inner.desk.lock();
        let origin = |(server, origin): (ServerId, super::origins::Origin)| {
            let followed = desk.followed(server);
            OriginStatus {
                server,
                log: origin.said.log,
                head: origin.said.through.0,
                followed: if followed.log == origin.said.log {
                    followed.through.0
                } else {
                    0
                },
                ahead: origin.ahead(now),
            }
        };
        ApStatus {
            records: desk.replica.len() as u64,
            log: desk.log(),
            head: desk.replica.head().0,
            sessions_held: desk.office.counts().0 as u64,
            origins: origins.into_iter().map(origin).collect(),
            agreed,
            loaded,
        }
    }

    /// Reads what cannot be counted as it happens.
    pub fn refresh_metrics(&self) {
        let status = self.status();
        let metrics = &self.inner.metrics;
        let refused = status.origins.iter().filter(|origin| origin.ahead.is_some());
        metrics.clocks_refused.set(refused.count() as i64);
        metrics.lag.clear();
        for origin in &status.origins {
            let lag = origin.head.saturating_sub(origin.followed);
            let label = ServerLabel {
                server: origin.server.0,
            };
            metrics
                .lag
                .get_or_create(&label)
                .set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }

    /// Puts this server's wall clock forward or back.
    #[cfg(test)]
    pub(crate) fn shift_clock(&self, by_ms: i64) {
        self.inner.clock_offset_ms.store(by_ms, Ordering::Relaxed);
    }
}

impl Inner {
    fn new(options: ApOptions, found: Found, jobs: mpsc::Sender<Job>) -> Self {
        let mut view = Directory::new(Limits::default())
            .with_change_log(options.change_log)
            .serving(GroupMode::Ap);
        let server = options.consensus.status().server;
        let config = options.config;
        let bounds = (config.clock_skew_max, config.tombstone_retention);
        let desk = Desk::new(server, bounds, found, &mut view, Now::read(0));
        options.metrics.observe(&desk);
        let at_a_glance = AtAGlance::of(&desk, &view);
        let head = AppliedHead {
            revision: view.revision(),
            position: None,
        };
        Self {
            server,
            epoch: rand::random_range(1..=u64::MAX),
            started_at: std::time::Instant::now(),
            config,
            consensus: options.consensus,
            gossip: options.gossip,
            view: Arc::new(SharedDirectory::new(view)),
            desk: parking_lot::Mutex::new(desk),
            at_a_glance,
            jobs,
            company: Company::default(),
            head: watch::Sender::new(head),
            synced: watch::Sender::new(0),
            defined: false.into(),
            origins: Origins::default(),
            to_judge: Notify::new(),
            created: Notify::new(),
            returned: Notify::new(),
            untold: Notify::new(),
            agreed_at: parking_lot::Mutex::default(),
            missed: parking_lot::Mutex::default(),
            followed: 0.into(),
            defined_through: 0.into(),
            leaving: Default::default(),
            coordinated: Coordinated::default(),
            metrics: options.metrics,
            clock_offset_ms: 0.into(),
            #[cfg(test)]
            mute: super::inner::Mute::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::super::cluster_test::{Cluster, deregister, eventually, register, soon, write};
    use super::committer::QUEUE_BYTES_MAX;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_was_there_before_a_server_was_full_may_come_back_and_leave() {
        let records_max = 10;
        let cluster = Cluster::start(1, |config| config.ap.records_max = records_max).await;
        let ap = cluster.ap(1).clone();
        write(&ap, register(None, "old")).await;
        for turn in 0.. {
            let id = format!("stranger{turn}");
            if let Err(refused) = ap.write(register(None, &id), 1, soon()).await {
                assert!(
                    matches!(&refused, ProposeError::Refused(Refusal::QuotaExceeded { .. })),
                    "{refused:?}"
                );
                break;
            }
            write(&ap, deregister(&id)).await;
            assert!(turn < records_max, "it never was full");
        }
        let full = ap.inner.records();
        write(&ap, register(None, "old")).await;
        write(&ap, deregister("old")).await;
        write(&ap, register(None, "old")).await;
        write(&ap, register(None, "stranger0")).await;
        assert_eq!(ap.inner.records(), full);
        // With a session of its own, which is one record more.
        let by = |id| Introduction {
            session: Arc::new(SessionSeed {
                id: SessionId(id),
                secret_digest: [7; 32],
                ttl_ms: 60_000,
                client: "test".into(),
            }),
            attends: true,
        };
        let mut back = Vec::new();
        for id in 1..4 {
            let request = register(Some(SessionId(id)), "old");
            back.push(ap.write_by(Some(by(id)), request, 1, soon()).await.is_ok());
        }
        assert_eq!(back, [true, false, false], "an eighth of ten is one");
        cluster.stop().await;
    }

    #[tokio::test]
    async fn writes_that_wait_are_bounded_in_bytes_and_give_their_room_back() {
        let cluster = Cluster::start(1, |_| {}).await;
        let ap = cluster.ap(1).clone();
        let of_others = ap
            .room
            .clone()
            .try_acquire_many_owned(QUEUE_BYTES_MAX as u32 - 16);
        let of_others = of_others.expect("nobody else writes");
        let refused = ap.write(register(None, "n0"), 1, soon()).await.unwrap_err();
        assert!(matches!(refused, ProposeError::Overloaded { .. }), "{refused:?}");
        drop(of_others);
        write(&ap, register(None, "n1")).await;
        {
            let mut writing = pin!(ap.write(register(None, "n2"), 1, soon()));
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
        }
        let room = ap.room.available_permits();
        assert!(room < QUEUE_BYTES_MAX, "it waits, though its caller has gone");
        let late = ap.write(register(None, "n3"), 1, Instant::now()).await;
        assert!(late.is_err(), "{late:?}");
        eventually("all room is given back", || {
            ap.room.available_permits() == QUEUE_BYTES_MAX
        })
        .await;
        cluster.stop().await;
    }
}
