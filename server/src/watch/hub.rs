//! The hub: brings every change to the streams that follow it.

mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rollcall_core::directory::{Directory, GroupMode, Passed, RevisionChanges, Service, Sign};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_core::mutants::{Mutant, every, planted};
use rollcall_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::pace::Pace;
use super::backlog::{Backlog, Bounds, ChangeFrames, Item, Offered, Place, Started, Tally};
use super::cache::{FrameCache, ViewCache};
use super::fanout::LastMessage;
use super::frame;
use super::merged::Merged;
use super::metrics::WatchMetrics;
use super::registration::{Registrations, Target};
use super::shown::{Shown, Standing, Standings};
use super::stream::{Shared, StreamEnd, WatchStream};
use crate::config::WatchConfig;
use crate::raft::{AppliedHead, SharedDirectory};
use crate::storm::{StormDesk, Turn};

/// Revisions handed out in one go, before others get the hub's lock.
const REVISIONS_PER_ROUND: usize = 256;
/// And while changes are coalesced: merging costs less than handing out.
const REVISIONS_PER_MERGE: usize = 4_096;

/// What leaves together takes at most this part of a backlog, and of a message.
const BACKLOG_SHARE: usize = 4;
/// A stream's share of the time over which streams leave a closing server: a reconnect costs the others less.
const SLOT_MS: u64 = 2;
/// Over at most so long are subscriptions asked for again that have to move to the other hub.
const MOVE_SPREAD_MS: u64 = 1_000;

/// What a client wants to follow.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Chosen by the client, unique on its stream, not 0.
    pub id: u64,
    /// What to follow.
    pub target: Target,
    /// 0: from the current state; else resume behind this revision.
    pub after: Revision,
    /// The revision of the replicated directory by which it was sent to this hub; 0: to be told to nobody.
    pub directory: Revision,
    /// What the client holds: equal signs are not sent again.
    pub known: Vec<(ServiceKey, Sign)>,
}

/// Why a subscription was refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Choose another id.
    #[error("subscription id 0 is not allowed")]
    ZeroId,
    /// Choose another id, or unsubscribe first.
    #[error("subscription {id} exists already on this stream")]
    Duplicate {
        /// Which.
        id: u64,
    },
    /// Follow a group prefix instead, or open another stream.
    #[error("a stream may have at most {subscriptions_max} subscriptions")]
    TooMany {
        /// The bound.
        subscriptions_max: usize,
    },
    /// The server has not applied that revision; ask another, or later.
    #[error("revision {after} has not been applied here, which is at {head}")]
    Ahead {
        /// What the client has seen.
        after: Revision,
        /// Where this server is.
        head: Revision,
    },
    /// The group has just changed its mode; look again where it is.
    #[error("group {group} is not followed here")]
    Elsewhere {
        /// Which.
        group: GroupName,
    },
}

/// This server has as many streams as it may; go to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this server has {streams_max} watch streams, which is its most")]
pub struct TooManyStreams {
    /// The bound.
    pub streams_max: usize,
}

/// Most watchers that [`Convergence`] names.
const BEHIND_MAX: usize = 16;

/// How far the subscribers of some services have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Convergence {
    /// Streams on this server that follow any of them.
    pub subscribers: usize,
    /// Those whose clients have acknowledged the revision asked about.
    pub current: usize,
    /// The lowest revision acknowledged by any of them.
    pub oldest: Option<Revision>,
    /// Some of those that have not: the client's name, and what it acknowledged last, of groups of which mode. At
    /// most 16.
    pub behind: Vec<(String, Revision, GroupMode)>,
}

/// How far one stream has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) stream: u64,
    client: String,
    wanted: Revision,
    acked: Revision,
    mode: GroupMode,
}

impl Convergence {
    /// Of streams, each of which may come twice: at both hubs.
    pub(super) fn of(progress: Vec<Progress>) -> Self {
        let mut convergence = Self::default();
        let mut current: BTreeMap<u64, bool> = BTreeMap::new();
        for one in progress {
            let reached = one.acked >= one.wanted;
            let oldest = convergence.oldest.unwrap_or(one.acked);
            convergence.oldest = Some(oldest.min(one.acked));
            *current.entry(one.stream).or_insert(true) &= reached;
            if !reached && convergence.behind.len() < BEHIND_MAX {
                convergence.behind.push((one.client, one.acked, one.mode));
            }
        }
        convergence.subscribers = current.len();
        convergence.current = current.values().filter(|current| **current).count();
        convergence
    }

    /// Whether every subscriber has seen it.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.current == self.subscribers
    }
}

/// Handle on the hub. Cheap to clone.
#[derive(Clone)]
pub struct WatchHub {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of which groups it tells.
    mode: GroupMode,
    directory: Arc<SharedDirectory>,
    limits: WatchConfig,
    message_bytes_max: usize,
    views: ViewCache,
    frames: FrameCache,
    large: Arc<Semaphore>,
    metrics: WatchMetrics,
    storm: StormDesk,
    next_stream: AtomicU64,
    /// Every change up to here has been offered whole.
    settled: AtomicU64,
    /// The same, for those who wait.
    rounds: watch::Sender<Revision>,
    /// Groups of the directory of which it does not tell, as of its position. Written under the state's lock.
    hidden: RwLock<Arc<BTreeSet<GroupName>>>,
    state: Mutex<State>,
    last_message: LastMessage,
}

/// What hubs of one server share.
struct Parts {
    limits: WatchConfig,
    message_bytes_max: usize,
    storm: StormDesk,
    large: Arc<Semaphore>,
}

/// Locks are taken in this order: a stream's line, the hub's state, the directory, a stream's backlog.
struct State {
    /// Every change up to here has been offered.
    position: Revision,
    streams: BTreeMap<u64, Arc<Shared>>,
    registrations: Registrations,
    /// Streams to be told when the round is over.
    woken: Vec<Arc<Shared>>,
    closing: Option<Vec<String>>,
}

/// Changes that a resuming subscription missed.
struct Replay {
    items: Vec<Item>,
    bytes: usize,
    through: Revision,
}

impl WatchHub {
    /// A hub at the directory's head; [`Self::run`] keeps it there.
    #[must_use]
    pub fn new(
        directory: Arc<SharedDirectory>,
        limits: WatchConfig,
        message_bytes_max: usize,
        metrics: WatchMetrics,
        storm: StormDesk,
    ) -> Self {
        let large = Arc::new(Semaphore::new(limits.large_bytes_max));
        let parts = Parts {
            limits,
            message_bytes_max,
            storm,
            large,
        };
        Self::of(GroupMode::Cp, directory, parts, metrics)
    }

    /// A hub of the AP groups beside this one, which is of the CP groups. What readers may cost holds for both.
    #[must_use]
    pub fn beside(&self, view: Arc<SharedDirectory>, metrics: WatchMetrics) -> Self {
        let inner = &self.inner;
        let parts = Parts {
            limits: inner.limits.clone(),
            message_bytes_max: inner.message_bytes_max,
            storm: inner.storm.clone(),
            large: inner.large.clone(),
        };
        Self::of(GroupMode::Ap, view, parts, metrics)
    }

    fn of(mode: GroupMode, directory: Arc<SharedDirectory>, parts: Parts, metrics: WatchMetrics) -> Self {
        let (position, hidden) = {
            let directory = directory.read();
            (directory.revision(), Shown::new(&directory, mode).hidden())
        };
        let state = State {
            position,
            streams: BTreeMap::new(),
            registrations: Registrations::default(),
            woken: Vec::new(),
            closing: None,
        };
        let mut limits = parts.limits;
        // What is gathered may be more by what came last.
        limits.response_bytes = limits.response_bytes.min(parts.message_bytes_max / 2);
        Self {
            inner: Arc::new(Inner {
                mode,
                directory,
                message_bytes_max: parts.message_bytes_max,
                views: ViewCache::new(limits.view_cache_bytes),
                frames: FrameCache::new(limits.frame_cache_bytes),
                large: parts.large,
                limits,
                metrics,
                storm: parts.storm,
                next_stream: AtomicU64::new(1),
                settled: AtomicU64::new(position.0),
                rounds: watch::Sender::new(position),
                hidden: RwLock::new(Arc::new(hidden)),
                state: Mutex::new(state),
                last_message: LastMessage::default(),
            }),
        }
    }

    /// Follows the applied head until `shutdown`.
    pub async fn run(self, mut applied: watch::Receiver<AppliedHead>, shutdown: CancellationToken) {
        let mut bookmarks = tokio::time::interval(self.inner.limits.bookmark_interval);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(&self.inner.limits, Instant::now());
        loop {
            let leave_at = pace.leave_at();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let head = applied.borrow_and_update().revision;
                    let waiting = head.0.saturating_sub(self.settled().0);
                    let coalescing = self.inner.storm.coalescing();
                    if pace.handle_change(Instant::now(), waiting, coalescing, || self.passed()) {
                        self.pull_all(&mut pace).await;
                    }
                }
                () = tokio::time::sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => {
                    self.pull_all(&mut pace).await;
                }
                _ = bookmarks.tick() => {
                    let told = self.bookmark();
                    pace.on_bookmarks(told, Instant::now());
                }
            }
        }
    }

    /// Opens a stream. `header` is what its answers say of this server; `cut` cuts the reader's connection if it
    /// hoards memory.
    ///
    /// # Errors
    /// Too many are open.
    pub fn open(
        &self,
        client: &str,
        header: v1::ResponseHeader,
        cut: CancellationToken,
    ) -> Result<WatchStream, TooManyStreams> {
        let limits = &self.inner.limits;
        let mut state = self.inner.state.lock();
        if state.streams.len() >= limits.streams_max {
            return Err(TooManyStreams {
                streams_max: limits.streams_max,
            });
        }
        let id = self.inner.next_stream.fetch_add(1, Ordering::Relaxed);
        let bounds = Bounds {
            frames: limits.backlog_frames,
            bytes: limits.backlog_bytes,
        };
        let backlog = Backlog::new(bounds, Arc::<Tally>::default());
        let shared = Arc::new(Shared::new(id, client.chars().take(256).collect(), backlog, cut));
        if let Some(servers) = &state.closing {
            shared.end(StreamEnd::Moved(move_on(0, servers.clone())));
        }
        state.streams.insert(id, shared.clone());
        self.inner.metrics.streams.set(count(state.streams.len()));
        drop(state);
        Ok(WatchStream::new(self.clone(), shared, header))
    }

    /// The other half of a stream that another hub has opened: the two share a number and the bounds of a stream.
    #[must_use]
    pub fn open_beside(&self, half: &WatchStream, header: v1::ResponseHeader) -> WatchStream {
        let shared = Arc::new(half.shared().beside());
        let mut state = self.inner.state.lock();
        state.streams.insert(shared.id, shared.clone());
        self.inner.metrics.streams.set(count(state.streams.len()));
        drop(state);
        WatchStream::new(self.clone(), shared, header)
    }

    /// How many streams are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.inner.state.lock().streams.len()
    }

    /// How many of the streams on this server that follow any of `keys` have acknowledged `revision`.
    #[must_use]
    pub fn convergence(&self, keys: &[ServiceKey], revision: Revision) -> Convergence {
        let wanted: Vec<_> = keys.iter().map(|key| (key.clone(), revision)).collect();
        Convergence::of(self.progress(&wanted))
    }

    /// How far the streams of this hub have come that follow any of these services, each as of this revision.
    pub(super) fn progress(&self, wanted: &[(ServiceKey, Revision)]) -> Vec<Progress> {
        // Collected first: the hub is not kept while names are copied.
        let mut streams: BTreeMap<u64, (Revision, Arc<Shared>)> = BTreeMap::new();
        {
            let state = self.inner.state.lock();
            for (key, revision) in wanted {
                for stream in state.registrations.streams(key) {
                    let (latest, _) = streams
                        .entry(stream.id)
                        .or_insert_with(|| (*revision, stream.clone()));
                    *latest = (*latest).max(*revision);
                }
            }
        }
        let progress = |(wanted, stream): (Revision, Arc<Shared>)| Progress {
            stream: stream.id,
            client: stream.client.lock().clone(),
            wanted,
            acked: stream.backlog.lock().acked,
            mode: self.inner.mode,
        };
        streams.into_values().map(progress).collect()
    }

    /// Tells every stream to move on, and ends it. They go at moments spread over `spread_ms`, or over less if
    /// they are few: nobody waits without need.
    pub fn close(&self, servers: &[String], spread_ms: u32) {
        let mut state = self.inner.state.lock();
        state.closing = Some(servers.to_vec());
        let streams = u64::try_from(state.streams.len().max(1)).unwrap_or(u64::MAX);
        let enough_ms = u32::try_from(streams.saturating_mul(SLOT_MS)).unwrap_or(u32::MAX);
        let spread_ms = spread_ms.min(enough_ms);
        for (slot, stream) in (0_u64..).zip(state.streams.values()) {
            let after_ms = u32::try_from(u64::from(spread_ms) * slot / streams).unwrap_or(spread_ms);
            stream.end(StreamEnd::Moved(move_on(after_ms, rotated(servers, slot))));
        }
    }

    /// The encoded view of a service, from the cache if it is there.
    #[must_use]
    pub fn view(&self, service: &Service) -> Bytes {
        self.inner.views.view(service)
    }

    /// Up to where changes have been offered whole.
    pub(super) fn settled(&self) -> Revision {
        Revision(self.inner.settled.load(Ordering::Acquire))
    }

    pub(super) fn last_message(&self) -> &LastMessage {
        &self.inner.last_message
    }

    pub(super) fn limits(&self) -> &WatchConfig {
        &self.inner.limits
    }

    pub(super) fn message_bytes_max(&self) -> usize {
        self.inner.message_bytes_max
    }

    pub(super) fn count_response(&self, bytes: usize) {
        self.inner.metrics.responses.inc();
        self.inner.metrics.response_bytes.inc_by(bytes as u64);
        self.inner.storm.count_egress(bytes);
    }

    pub(super) fn count_snapshot(&self) {
        self.inner.metrics.snapshots.inc();
    }

    /// Waits for the turn of a message with so many bytes of full lists.
    pub(super) async fn list_turn(&self, bytes: usize) -> Turn<'_> {
        self.inner.storm.list_turn(bytes).await
    }

    /// Leave to send so many bytes in one message. `None` only if the hub is gone.
    pub(super) async fn large_permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.inner.limits.large_bytes_max);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.inner.large.clone().acquire_many_owned(permits).await.ok()
    }

    pub(super) fn subscribe(
        &self,
        stream: &Arc<Shared>,
        subscription: Subscription,
    ) -> Result<(), SubscribeError> {
        if subscription.id == 0 {
            return Err(SubscribeError::ZeroId);
        }
        // The bulk of what was missed is looked through before the hub's lock is taken.
        let replay = self.inner.replay(&subscription);
        let started = self
            .inner
            .at_head(|state, shown| self.inner.start(state, shown, stream, subscription, replay));
        stream.wake.notify_one();
        started?;
        self.end_if_unread(stream);
        Ok(())
    }

    /// Whether the storm switch lets a subscription have the full lists with which it would begin at these hubs:
    /// if not, when it may ask again.
    pub(super) fn must_wait(&self, stream: &Shared, parts: &[(&Self, &Subscription)]) -> Option<Duration> {
        let storm = &self.inner.storm;
        if !storm.engaged() {
            return None;
        }
        let groups = parts
            .iter()
            .flat_map(|(hub, subscription)| hub.lists(subscription));
        let groups: BTreeSet<GroupName> = groups.collect();
        let cold = parts
            .iter()
            .all(|(_, subscription)| subscription.known.is_empty());
        storm.ask(&groups, &stream.consumer(), cold)
    }

    /// The groups of the full lists with which a subscription would begin.
    fn lists(&self, subscription: &Subscription) -> BTreeSet<GroupName> {
        let directory = self.inner.directory.read();
        // Resumed from retained changes, it begins with those.
        if subscription.after >= directory.changes().floor().max(Revision(1)) {
            return BTreeSet::new();
        }
        let lists = current_state(subscription, self.inner.shown(&directory));
        lists.filter_map(|item| list_of(&item).cloned()).collect()
    }

    /// Whether a lagging stream has to wait for its turn to get the current state, and for how long.
    pub(super) fn laggard_waits(&self, stream: &Shared) -> Option<Duration> {
        let storm = &self.inner.storm;
        if !storm.engaged() {
            return None;
        }
        let groups: BTreeSet<GroupName> = {
            let directory = self.inner.directory.read();
            let backlog = stream.backlog.lock();
            let targets = backlog.subscriptions.values();
            let shown = self.inner.shown(&directory);
            let services = targets.flat_map(|target| shown.services(target));
            services.map(|service| service.key.group.clone()).collect()
        };
        storm.ask(&groups, &stream.consumer(), false)
    }

    /// Waits for the moment at which changes that are kept back leave, if there are any: a new subscription
    /// makes them leave at once, and many of them would undo the coalescing.
    pub(super) async fn next_round(&self) {
        let Some(delay_max) = self.inner.storm.coalescing() else {
            return;
        };
        let head = self.inner.directory.read().revision();
        let mut rounds = self.inner.rounds.subscribe();
        let round = rounds.wait_for(|position| *position >= head);
        // In vain: the switch was turned off, or the hub is stopping.
        _ = tokio::time::timeout(delay_max, round).await;
    }

    pub(super) fn unsubscribe(&self, stream: &Arc<Shared>, subscription: u64) {
        let mut state = self.inner.state.lock();
        let target = stream.backlog.lock().subscriptions.remove(&subscription);
        if let Some(target) = target {
            state.registrations.remove(&target, stream.id);
            self.inner.metrics.subscriptions.dec();
        }
    }

    /// Gives a lagging stream the current state instead of what it missed.
    pub(super) fn catch_up(&self, stream: &Arc<Shared>) {
        self.inner.at_head(|_, shown| {
            let mut backlog = stream.backlog.lock();
            if backlog.lagging() {
                backlog.catch_up(shown);
            }
        });
    }

    pub(super) fn forget(&self, stream: &Arc<Shared>) {
        let mut state = self.inner.state.lock();
        let subscriptions = std::mem::take(&mut stream.backlog.lock().subscriptions);
        for target in subscriptions.values() {
            state.registrations.remove(target, stream.id);
        }
        state.streams.remove(&stream.id);
        self.inner
            .metrics
            .subscriptions
            .dec_by(count(subscriptions.len()));
        self.inner.metrics.streams.set(count(state.streams.len()));
    }

    pub(super) fn end_if_unread(&self, stream: &Arc<Shared>) {
        let controls = stream.backlog.lock().controls();
        if controls > self.inner.limits.subscriptions_max * 2 + 64 {
            stream.end(StreamEnd::Unread { controls });
        }
    }

    /// Tells of all there is.
    async fn pull_all(&self, pace: &mut Pace) {
        let since = self.passed();
        let mut told_in_all = 0_usize;
        loop {
            let (more, told) = self.round();
            told_in_all = told_in_all.saturating_add(told);
            if !more {
                break;
            }
            tokio::task::yield_now().await;
        }
        pace.on_round(told_in_all, since, Instant::now());
    }

    /// What has gone through the log of changes.
    fn passed(&self) -> Passed {
        self.inner.directory.read().changes().passed()
    }

    /// Whether there is more, and how many streams were told.
    fn round(&self) -> (bool, usize) {
        let (more, woken) = {
            let mut state = self.inner.state.lock();
            let more = self.inner.offer_round(&mut state);
            (more, std::mem::take(&mut state.woken))
        };
        let told = woken.len();
        self.tell(woken);
        (more, told)
    }

    /// One round; whether there is more.
    #[cfg(test)]
    pub(super) fn pull(&self) -> bool {
        self.round().0
    }

    /// How many streams are told.
    fn bookmark(&self) -> usize {
        let mut woken = Vec::new();
        let state = self.inner.state.lock();
        let (mut current, mut lagging) = (0, 0);
        for stream in state.streams.values() {
            let mut backlog = stream.backlog.lock();
            current += i64::from(!backlog.lagging() && backlog.acked >= backlog.changed);
            lagging += i64::from(backlog.lagging());
            if backlog.bookmark(state.position) && !std::mem::replace(&mut backlog.woken, true) {
                woken.push(stream.clone());
            }
        }
        self.inner.metrics.streams_current.set(current);
        self.inner.metrics.streams_lagging.set(lagging);
        let stalled = |stream: &&Arc<Shared>| {
            stream
                .large_since
                .lock()
                .is_some_and(|since| since.elapsed() > self.inner.limits.stall_max)
        };
        for stream in state.streams.values().filter(stalled) {
            let client = stream.client.lock().clone();
            tracing::warn!(
                stream = stream.id,
                client,
                "a reader hoards a large message and is cut off"
            );
            self.inner.metrics.stalled.inc();
            stream.cut.cancel();
        }
        drop(state);
        let told = woken.len();
        self.tell(woken);
        told
    }

    /// Waits until a revision is offered whole.
    pub(super) async fn settles(&self, revision: Revision) {
        let mut rounds = self.inner.rounds.subscribe();
        // In vain: the hub is gone, and the stream is about to hear of it.
        _ = rounds.wait_for(|settled| *settled >= revision).await;
    }
}

impl Inner {
    fn shown<'a>(&self, directory: &'a Directory) -> Shown<'a> {
        Shown::new(directory, self.mode)
    }

    /// Offers a round of changes; whether there is more.
    fn offer_round(&self, state: &mut State) -> bool {
        let revisions = match self.storm.coalescing() {
            None => REVISIONS_PER_ROUND,
            Some(_) => REVISIONS_PER_MERGE,
        };
        let (changes, head) = {
            let directory = self.directory.read();
            let changes = directory.changes().range(state.position, revisions);
            let changes = changes.map(|changes| {
                let standings = self.shown(&directory).standings(&changes);
                (changes, standings)
            });
            (changes, directory.revision())
        };
        match changes {
            Ok((changes, standings)) => {
                self.offer_all(state, &changes, &standings);
                state.position < head
            }
            Err(_) => {
                let directory = self.directory.read();
                self.start_over(state, self.shown(&directory));
                false
            }
        }
    }

    /// Brings the hub to the directory's head and calls `look` there, with the directory locked. Others are told of what that
    /// took in by the next round, which the same changes bring, and which counts them.
    fn at_head<R>(&self, look: impl FnOnce(&mut State, Shown<'_>) -> R) -> R {
        let mut state = self.state.lock();
        while self.offer_round(&mut state) {}
        let directory = self.directory.read();
        let shown = self.shown(&directory);
        match directory.changes().range(state.position, usize::MAX) {
            Ok(changes) => self.offer_all(&mut state, &changes, &shown.standings(&changes)),
            Err(_) => self.start_over(&mut state, shown),
        }
        look(&mut state, shown)
    }

    fn offer_all(&self, state: &mut State, changes: &[Arc<RevisionChanges>], standings: &Standings) {
        match changes {
            [_, .., last] if self.storm.coalescing().is_some() => {
                for revision in changes {
                    self.regroup_all(state, revision, standings);
                }
                self.offer_merged(state, changes, last.revision);
                self.settle(state, last.revision);
            }
            changes => {
                for revisions in changes.chunk_by(|one, next| goes_on(one, next)) {
                    for revision in revisions {
                        self.regroup_all(state, revision, standings);
                    }
                    match revisions {
                        [revision] => {
                            self.offer(state, revision);
                            self.settle(state, revision.revision);
                        }
                        revisions => self.offer_row(state, revisions),
                    }
                }
            }
        }
        self.metrics.revisions.inc_by(changes.len() as u64);
    }

    fn settle(&self, state: &mut State, revision: Revision) {
        state.position = revision;
        self.settled.store(revision.0, Ordering::Release);
        self.rounds.send_replace(revision);
    }

    fn offer(&self, state: &mut State, changes: &RevisionChanges) {
        let hidden = self.hidden();
        for (index, change) in changes.services.iter().enumerate() {
            if hidden.contains(&change.key.group) {
                continue;
            }
            let place = Place {
                revision: changes.revision,
                index: index + 1,
            };
            self.offer_one(state, &change.key, place, || {
                vec![self.frames.frame(changes, index)]
            });
        }
    }

    /// Revisions in a row of one service alone: its followers are met once for many of them, which are theirs together.
    fn offer_row(&self, state: &mut State, row: &[Arc<RevisionChanges>]) {
        let (Some(first), Some(last)) = (row.first(), row.last()) else {
            return;
        };
        let Some(key) = first.services.first().map(|change| &change.key) else {
            return;
        };
        if self.hidden().contains(&key.group) || state.registrations.streams(key).next().is_none() {
            return self.settle(state, last.revision);
        }
        let frames_max = (self.limits.backlog_frames / BACKLOG_SHARE).max(1);
        let bytes_max = self.limits.response_bytes.min(self.limits.backlog_bytes) / BACKLOG_SHARE;
        let mut row = row.iter().peekable();
        while let Some(mut last) = row.next() {
            let mut frames = vec![self.frames.frame(last, 0)];
            let mut bytes = frames[0].len();
            while let Some(next) = row.peek()
                && frames.len() < frames_max
                && bytes < bytes_max
            {
                last = next;
                let frame = self.frames.frame(last, 0);
                bytes += frame.len();
                frames.push(frame);
                row.next();
            }
            let place = Place {
                revision: last.revision,
                index: 1,
            };
            self.offer_one(state, key, place, || std::mem::take(&mut frames));
            self.settle(state, last.revision);
        }
    }

    /// Several revisions as one: each service's changes together, as of its last. All of them stand in the
    /// streams' queues as of the newest revision, so that a message holds either all that concerns its stream or
    /// nothing, and a client may resume behind whatever it has.
    fn offer_merged(&self, state: &mut State, changes: &[Arc<RevisionChanges>], newest: Revision) {
        let merged = Merged::of(changes);
        self.storm.count_coalesced(merged.absorbed);
        let hidden = self.hidden();
        for (index, (revision, change)) in merged.services.into_iter().enumerate() {
            if hidden.contains(&change.key.group) {
                continue;
            }
            let place = Place {
                revision: newest,
                index: index + 1,
            };
            self.offer_one(state, &change.key, place, || {
                vec![frame::change(&change, revision)]
            });
        }
    }

    /// Hands one change, or several that belong together, to the streams that follow its service.
    fn offer_one(
        &self,
        state: &mut State,
        key: &ServiceKey,
        place: Place,
        mut encode: impl FnMut() -> Vec<Bytes>,
    ) {
        if every(Mutant::DropEvent, 50) {
            return;
        }
        let State {
            registrations, woken, ..
        } = state;
        let mut change = None;
        let mut offered = 0;
        for stream in registrations.streams(key) {
            let change = change.get_or_insert_with(|| Arc::new(ChangeFrames::new(key.clone(), encode())));
            let mut backlog = stream.backlog.lock();
            match backlog.offer(place, change) {
                Offered::Repeated => continue,
                Offered::Overflowed => _ = self.metrics.overflows.inc(),
                Offered::Waits => {}
            }
            offered += change.frames.len() as u64;
            if !std::mem::replace(&mut backlog.woken, true) {
                woken.push(stream.clone());
            }
        }
        self.metrics.frames.inc_by(offered);
    }

    /// Changes were lost to the hub (it slept, or a snapshot was installed): everyone starts from state.
    fn start_over(&self, state: &mut State, shown: Shown<'_>) {
        let before = self.hidden();
        let hidden = Arc::new(shown.hidden());
        self.hidden.write().clone_from(&hidden);
        let moved: Vec<GroupName> = before.symmetric_difference(&hidden).cloned().collect();
        self.move_away(state, |group| !shown.follows(group), &moved);
        for stream in state.streams.values() {
            stream.backlog.lock().owe_all();
            state.woken.push(stream.clone());
        }
        self.settle(state, shown.revision());
        self.metrics.resyncs.inc();
    }

    fn hidden(&self) -> Arc<BTreeSet<GroupName>> {
        self.hidden.read().clone()
    }

    fn regroup_all(&self, state: &mut State, changes: &RevisionChanges, standings: &Standings) {
        for (group, put) in &changes.groups {
            if let Some(standing) = standings.of(group) {
                self.regroup(state, group, standing, (changes.revision, *put));
            }
        }
    }

    /// A group's settings were put, or it is gone. If it is for the other hub to tell of it now, or for this one,
    /// those who follow it subscribe again: they move with the sign of what they hold, and an equal one brings
    /// nothing.
    fn regroup(&self, state: &mut State, group: &GroupName, now: Standing, (at, put): (Revision, bool)) {
        let hidden = self.hidden();
        let before = hidden.contains(group);
        let mut now = now;
        if now.settled > at {
            // It changed again since. Until then it is taken for what it was, and one that is new to a view for
            // hidden: if it comes from the other mode, what happens to it meanwhile is not to be told.
            let new = now.created.is_some_and(|created| created >= at);
            now.hidden = match (new, self.mode) {
                (true, GroupMode::Cp) => now.hidden,
                (true, GroupMode::Ap) => true,
                (false, _) => before,
            };
            now.followed = true;
        } else if put && now.created.is_none() {
            // It went since. Out of a view groups go when they have moved, and that nodes go with them is not to be told.
            now.hidden = self.mode == GroupMode::Ap || before;
        }
        if now.hidden != before {
            let mut hidden = BTreeSet::clone(&hidden);
            if now.hidden {
                hidden.insert(group.clone());
            } else {
                hidden.remove(group);
            }
            *self.hidden.write() = Arc::new(hidden);
        }
        // Of a group that is new, or gone, nobody has been told anything that another hub would have to go on with.
        let known = match now.created {
            Some(created) => before || created < at,
            None => put,
        };
        let moved = (now.hidden != before && known).then(|| group.clone());
        if moved.is_some() || !now.followed {
            let followed = |one: &GroupName| one == group && !now.followed;
            self.move_away(state, followed, moved.as_slice());
        }
    }

    /// Ends the subscriptions to services of groups of which this holds, and those to prefixes of the groups that
    /// moved, and lets their clients subscribe again.
    fn move_away(&self, state: &mut State, elsewhere: impl Fn(&GroupName) -> bool, moved: &[GroupName]) {
        let mut streams = state.registrations.of_services(&elsewhere);
        for group in moved {
            streams.append(&mut state.registrations.of_prefixes(group));
        }
        for (slot, stream) in (0_u64..).zip(streams.into_values()) {
            let mut backlog = stream.backlog.lock();
            let over = |target: &Target| match target {
                Target::Service(key) => elsewhere(&key.group),
                Target::Prefix(_) => moved.iter().any(|group| target.touches(group)),
            };
            let over: Vec<_> = backlog
                .subscriptions
                .extract_if(.., |_, target| over(target))
                .collect();
            for (subscription, target) in over {
                state.registrations.remove(&target, stream.id);
                self.metrics.subscriptions.dec();
                self.metrics.moved.inc();
                backlog.push(Item::KeepCache(v1::KeepCache {
                    subscription,
                    retry_after_ms: u32::try_from(slot * SLOT_MS % MOVE_SPREAD_MS).unwrap_or_default() + 1,
                }));
                stream.moved.lock().push(subscription);
            }
            backlog.woken = true;
            drop(backlog);
            state.woken.push(stream);
        }
    }

    /// What a subscription missed, as far as it is retained. `None`: it must start from state.
    fn replay(&self, subscription: &Subscription) -> Option<Replay> {
        if subscription.after == Revision(0) {
            return None;
        }
        let (changes, through) = {
            let directory = self.directory.read();
            let (log, head) = (directory.changes(), directory.revision());
            if subscription.after < log.floor() || subscription.after > head {
                return None;
            }
            let unchanged = match &subscription.target {
                Target::Service(key) => {
                    let group = directory.group(&key.group);
                    group.is_some_and(|group| group.settings_modified <= subscription.after)
                        && directory
                            .service(key)
                            .is_some_and(|service| service.modified <= subscription.after)
                }
                Target::Prefix(_) => false,
            };
            let changes = if unchanged {
                Vec::new()
            } else {
                let late = u64::from(planted(Mutant::ResumeOffByOne));
                log.range(Revision(subscription.after.0 + late), usize::MAX)
                    .ok()?
            };
            (changes, head)
        };
        let mut replay = Replay {
            items: Vec::new(),
            bytes: 0,
            through,
        };
        for changes in &changes {
            self.add_to(&mut replay, changes, &subscription.target)?;
            if replay.items.len() > self.limits.backlog_frames || replay.bytes > self.limits.backlog_bytes {
                return None;
            }
        }
        Some(replay)
    }

    /// `None`: groups changed, perhaps their mode; signs will tell what is missing.
    fn add_to(&self, replay: &mut Replay, changes: &RevisionChanges, target: &Target) -> Option<()> {
        if changes.groups.iter().any(|(group, _)| target.touches(group)) {
            return None;
        }
        let hidden = self.hidden();
        for (index, change) in changes.services.iter().enumerate() {
            if target.covers(&change.key) && !hidden.contains(&change.key.group) {
                let frame = self.frames.frame(changes, index);
                replay.bytes += frame.len();
                let key = change.key.clone();
                replay.items.push(Item::Change {
                    revision: changes.revision,
                    change: Arc::new(ChangeFrames::new(key, vec![frame])),
                });
            }
        }
        Some(())
    }

    /// Makes a subscription live. The hub stands at the directory's head.
    fn start(
        &self,
        state: &mut State,
        shown: Shown<'_>,
        stream: &Arc<Shared>,
        subscription: Subscription,
        replay: Option<Replay>,
    ) -> Result<(), SubscribeError> {
        let revision = shown.revision();
        let mut backlog = stream.backlog.lock();
        if backlog.subscriptions.contains_key(&subscription.id) {
            return Err(SubscribeError::Duplicate { id: subscription.id });
        }
        if backlog.subscriptions.len() >= self.limits.subscriptions_max {
            return Err(SubscribeError::TooMany {
                subscriptions_max: self.limits.subscriptions_max,
            });
        }
        if subscription.after > revision {
            return Err(SubscribeError::Ahead {
                after: subscription.after,
                head: revision,
            });
        }
        if let Target::Service(key) = &subscription.target
            && !shown.follows(&key.group)
        {
            let group = key.group.clone();
            return Err(SubscribeError::Elsewhere { group });
        }
        if backlog.lagging() {
            backlog.catch_up(shown);
        }
        let replay = replay
            .and_then(|replay| self.completed(replay, &subscription.target, shown))
            .filter(|replay| backlog.has_room(replay.items.len(), replay.bytes));
        let kind = if replay.is_some() {
            v1::StartKind::Resumed
        } else {
            v1::StartKind::Current
        };
        match replay {
            Some(replay) => {
                self.metrics.resumed.inc();
                let items = unrepeated(replay.items, shown, |key| {
                    state.registrations.covers(key, stream.id)
                });
                items.into_iter().for_each(|item| backlog.push(item));
            }
            None => current_state(&subscription, shown).for_each(|item| backlog.push(item)),
        }
        let started = Started::at(shown, subscription.id, kind, &subscription.target);
        backlog.push(Item::Started(Box::new(Started {
            directory: subscription.directory,
            ..started
        })));
        let target = shown.sharing(subscription.target);
        state.registrations.add(&target, stream);
        backlog.subscriptions.insert(subscription.id, target);
        self.metrics.subscriptions.inc();
        Ok(())
    }

    /// The replay, with what was applied since it was begun.
    fn completed(&self, mut replay: Replay, target: &Target, shown: Shown<'_>) -> Option<Replay> {
        for changes in shown.changes().range(replay.through, usize::MAX).ok()? {
            self.add_to(&mut replay, &changes, target)?;
        }
        Some(replay)
    }
}

/// Whether both revisions changed one service, the same, and nothing else.
fn goes_on(one: &RevisionChanges, next: &RevisionChanges) -> bool {
    let alone = |changes: &RevisionChanges| changes.groups.is_empty() && changes.services.len() == 1;
    alone(one) && alone(next) && one.services[0].key == next.services[0].key
}

/// A stream that follows a service already has had those changes: instead of repeating them it gets the
/// service's state, once.
fn unrepeated(items: Vec<Item>, shown: Shown<'_>, followed: impl Fn(&ServiceKey) -> bool) -> Vec<Item> {
    let mut states = BTreeMap::new();
    let mut fresh = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Item::Change { change, .. } if followed(&change.key) => {
                let service = shown.service(&change.key).cloned();
                states.insert(change.key.clone(), service);
            }
            other => fresh.push(other),
        }
    }
    let revision = shown.revision();
    let state = |(key, service)| Item::State {
        key,
        service,
        revision,
        lagged: false,
    };
    fresh.extend(states.into_iter().map(state));
    fresh
}

/// What the client lacks of the current state: services whose sign differs from the one it knows, and those it
/// knows that are gone.
fn current_state<'a>(subscription: &'a Subscription, shown: Shown<'a>) -> impl Iterator<Item = Item> + 'a {
    let revision = shown.revision();
    let known: BTreeMap<&ServiceKey, Sign> = subscription
        .known
        .iter()
        .map(|(key, sign)| (key, *sign))
        .collect();
    let gone = subscription
        .known
        .iter()
        .filter(move |(key, _)| subscription.target.covers(key) && !shown.hides(&key.group))
        .filter(move |(key, _)| shown.service(key).is_none())
        .map(move |(key, _)| Item::State {
            key: key.clone(),
            service: None,
            revision,
            lagged: false,
        });
    let there = shown
        .services(&subscription.target)
        .filter(move |service| known.get(&service.key) != Some(&service.sign))
        .map(move |service| Item::State {
            key: service.key.clone(),
            service: Some(service.clone()),
            revision,
            lagged: false,
        });
    gone.chain(there)
}

/// The group of a full list.
fn list_of(item: &Item) -> Option<&GroupName> {
    match item {
        Item::State {
            key,
            service: Some(_),
            ..
        } => Some(&key.group),
        _ => None,
    }
}

fn move_on(after_ms: u32, servers: Vec<String>) -> v1::MoveOn {
    v1::MoveOn {
        after_ms,
        servers,
        reason: "the server is closing".into(),
    }
}

/// The servers, beginning elsewhere for each client, so that they spread.
fn rotated(servers: &[String], by: u64) -> Vec<String> {
    let mut servers = servers.to_vec();
    if let Some(by) = usize::try_from(by)
        .ok()
        .and_then(|by| by.checked_rem(servers.len()))
    {
        servers.rotate_left(by);
    }
    servers
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "hub_test.rs"]
mod tests;
