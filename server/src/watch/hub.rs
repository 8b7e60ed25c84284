//! The hub: brings every change to the streams that follow it.

mod convergence;
mod pace;
mod regroup;
mod round;
mod subscription;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rollcall_core::directory::{Directory, GroupMode, Service};
use rollcall_core::ids::{GroupName, Revision};
use rollcall_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use self::convergence::Convergence;
use self::pace::Pace;
pub use self::subscription::{Division, KnownSigns, SubscribeError, Subscription};
pub(super) use self::turn::Row;
use super::backlog::{Backlog, Bounds, Tally};
use super::cache::{FrameCache, ViewCache};
use super::fanout::LastMessage;
use super::metrics::WatchMetrics;
use super::registration::Registrations;
use super::shown::Shown;
use super::stream::{Shared, StreamEnd, WatchStream};
use crate::config::WatchConfig;
use crate::raft::{AppliedHead, SharedDirectory};
use crate::storm::StormDesk;

/// A stream's share of the time over which streams leave a closing server: a reconnect costs the others less.
const SLOT_MS: u64 = 2;

/// This server has as many streams as it may; go to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this server has {streams_max} watch streams, which is its most")]
pub struct TooManyStreams {
    /// The bound.
    pub streams_max: usize,
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
        // A revision is never split: one that waits whole must fit into a message.
        limits.backlog_bytes = limits.backlog_bytes.min(parts.message_bytes_max / 2);
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

    /// Leave to send so many bytes in one message. `None` only if the hub is gone.
    pub(super) async fn large_permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.inner.limits.large_bytes_max);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.inner.large.clone().acquire_many_owned(permits).await.ok()
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

    /// How many streams are told.
    pub(super) fn bookmark(&self) -> usize {
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
}

impl WatchHub {
    /// Says the last bookmark once more to those who have heard nothing since. How many are told.
    pub(super) fn bookmark_again(&self) -> usize {
        let mut woken = Vec::new();
        let state = self.inner.state.lock();
        for stream in state.streams.values() {
            let mut backlog = stream.backlog.lock();
            if backlog.bookmark_again(state.position) && !std::mem::replace(&mut backlog.woken, true) {
                woken.push(stream.clone());
            }
        }
        drop(state);
        let told = woken.len();
        self.tell(woken);
        told
    }
}

impl Inner {
    fn shown<'a>(&self, directory: &'a Directory) -> Shown<'a> {
        Shown::new(directory, self.mode)
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
mod tests;
