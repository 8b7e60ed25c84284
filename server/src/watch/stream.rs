//! One watcher's stream: the hub writes into its backlog, its reader takes what is ready in one piece.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_core::directory::{Labels, Node, Service};
use rollcall_core::guard::GuardStatus;
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_proto::v1::{self, WatchResponse, watch_frame::Frame};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backlog::{Backlog, Item, Started};
use super::fanout::Outlet;
use super::frame;
use super::hub::{Row, SubscribeError, Subscription, WatchHub};
use super::line::Line;
use crate::grpc::convert;
use crate::storm::Turn;

/// A list from this size on goes by itself, and is encoded when its turn has come.
const LIST_ALONE: usize = 32 << 10;
/// Bytes that a frame's place in the response costs besides the frame.
const FRAME_OVERHEAD: usize = 6;

/// Why a stream ends.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The server closes; the client goes elsewhere.
    #[error("the server is closing")]
    Moved(v1::MoveOn),
    /// The client asks and asks and does not read.
    #[error("{controls} answers wait unread")]
    Unread {
        /// How many.
        controls: usize,
    },
    /// A request was too large to be decoded; the stream cannot be read any further.
    #[error("the request is too large: {sizes}")]
    Oversize {
        /// What was found, and what is allowed.
        sizes: String,
    },
    /// A service is too large for one message: make it smaller, or raise `doors.message_bytes_max`.
    #[error("service {key} takes {bytes} bytes, at most {bytes_max} fit into a message")]
    TooLarge {
        /// Which.
        key: ServiceKey,
        /// Its encoded size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

/// What the hub, the reader and the writer of a stream share.
pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) client: Mutex<String>,
    consumer: Mutex<Option<String>>,
    pub(crate) backlog: Mutex<Backlog>,
    pub(crate) wake: Notify,
    pub(crate) end: Mutex<Option<StreamEnd>>,
    /// The reader is gone, or the stream must end.
    pub(crate) closed: CancellationToken,
    /// Since when a large message is on its way to the reader; not while it waits here for leave.
    pub(crate) large_since: Mutex<Option<Instant>>,
    /// Cuts the reader's connection.
    pub(crate) cut: CancellationToken,
    /// Subscriptions that ended here because their groups moved to the other hub, until the other half of the
    /// stream has heard of it.
    pub(crate) moved: Mutex<Vec<v1::KeepCache>>,
    /// Its subscriptions begin in a row, while changes are coalesced.
    pub(crate) row: Mutex<Option<Row>>,
    /// How it is told of changes without being woken, if it can be.
    pub(crate) outlet: OnceLock<Outlet>,
}

impl Shared {
    pub(crate) fn new(id: u64, client: String, backlog: Backlog, cut: CancellationToken) -> Self {
        Self {
            id,
            client: Mutex::new(client),
            consumer: Mutex::new(None),
            backlog: Mutex::new(backlog),
            wake: Notify::new(),
            end: Mutex::new(None),
            closed: CancellationToken::new(),
            large_since: Mutex::new(None),
            cut,
            moved: Mutex::default(),
            row: Mutex::default(),
            outlet: OnceLock::new(),
        }
    }

    /// The other half of the same client's stream.
    pub(crate) fn beside(&self) -> Self {
        let (client, backlog) = (self.client.lock().clone(), self.backlog.lock().beside());
        Self::new(self.id, client, backlog, self.cut.clone())
    }

    /// Whose place it has while full lists are rationed.
    pub(crate) fn consumer(&self) -> String {
        let named = self.consumer.lock().clone();
        named.unwrap_or_else(|| format!("stream {}", self.id))
    }

    pub(crate) fn end(&self, end: StreamEnd) {
        self.end.lock().get_or_insert(end);
        self.wake.notify_one();
    }

    /// Nothing more is to be said but a last word.
    fn is_ending(&self) -> bool {
        self.closed.is_cancelled() || self.end.lock().is_some()
    }
}

/// The asking half of a stream. Cheap to clone; the stream ends when the [`WatchStream`] is dropped.
#[derive(Clone)]
pub struct StreamHandle {
    pub(super) hub: WatchHub,
    pub(super) shared: Arc<Shared>,
}

impl StreamHandle {
    /// A name for people, from the stream's first message.
    pub fn name(&self, client: &str) {
        *self.shared.client.lock() = client.chars().take(256).collect();
    }

    /// Whose place the stream has while full lists are rationed, from its first message.
    pub fn name_consumer(&self, consumer: &str) {
        *self.shared.consumer.lock() = Some(consumer.chars().take(64).collect());
    }

    /// Whether a subscription has to wait for its turn, because the storm switch is on and it would begin with
    /// full lists. If so, the client has been told when to ask again. If not, [`Self::subscribe`] is next; while
    /// changes are coalesced this returns at the moment they leave, which is soon.
    pub async fn must_wait(&self, subscription: &Subscription) -> bool {
        // First: with what it would begin is judged at the moment at which it begins; whether it is its turn, as of the
        // moment at which it was asked for.
        let asked_at = self.next_round().await;
        let part = [(&self.hub, subscription)];
        let Some(retry_after) = self.hub.must_wait(&self.shared, &part, asked_at) else {
            return false;
        };
        self.keep_cache(subscription.id, retry_after);
        true
    }

    /// See [`WatchHub::next_round`].
    pub(super) async fn next_round(&self) -> Instant {
        self.hub.next_round(&self.shared).await
    }

    /// Tells the client to ask again later.
    pub(super) fn keep_cache(&self, subscription: u64, retry_after: Duration) {
        let keep = v1::KeepCache {
            subscription,
            retry_after_ms: u32::try_from(retry_after.as_millis())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
        };
        self.shared.backlog.lock().push(Item::KeepCache(keep));
        self.shared.wake.notify_one();
        self.hub.end_if_unread(&self.shared);
    }

    /// Starts a subscription; what it needs is in the stream's backlog when this returns.
    ///
    /// # Errors
    /// Nothing changed; the caller tells the client by [`Self::reject`].
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        self.hub.subscribe(&self.shared, subscription)
    }

    /// Ends a subscription. Frames that wait already still go out; an unknown id is no error.
    pub fn unsubscribe(&self, subscription: u64) {
        self.hub.unsubscribe(&self.shared, subscription);
    }

    /// Tells the client that a subscription was refused.
    pub fn reject(&self, subscription: u64, error: v1::Error) {
        let rejected = v1::Rejected {
            subscription,
            error: Some(error),
        };
        self.shared
            .backlog
            .lock()
            .push(Item::Rejected(Box::new(rejected)));
        self.shared.wake.notify_one();
        self.hub.end_if_unread(&self.shared);
    }

    /// The client has taken in everything up to this revision.
    pub fn ack(&self, revision: Revision) {
        let mut backlog = self.shared.backlog.lock();
        backlog.acked = backlog.acked.max(revision);
    }

    /// Waits until the client has read most of the lists it asked for.
    pub async fn has_been_read(&self) {
        let tally = self.shared.backlog.lock().tally();
        tally.has_been_read().await;
    }

    /// Waits until the stream is closed, from whichever side.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Ends the stream with a last word.
    pub fn end(&self, end: StreamEnd) {
        self.shared.end(end);
    }

    /// Closes the stream: its reader comes to its end.
    pub fn close(&self) {
        self.shared.closed.cancel();
        self.shared.wake.notify_one();
    }
}

/// The answering half of a stream. Dropping it ends every subscription.
pub struct WatchStream {
    hub: WatchHub,
    shared: Arc<Shared>,
    header: v1::ResponseHeader,
    /// Nothing has been said yet.
    first: bool,
    /// Held while a large message is on its way, until the next is asked for.
    large: Option<OwnedSemaphorePermit>,
    /// Taken from the backlog, waiting for leave to go out.
    held: Option<Gathered>,
    /// What stood first when nothing could be taken: this revision is not offered whole yet.
    unsettled: Option<Revision>,
    ended: bool,
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        self.hub.forget(&self.shared);
    }
}

impl WatchStream {
    pub(super) fn new(hub: WatchHub, shared: Arc<Shared>, header: v1::ResponseHeader) -> Self {
        Self {
            hub,
            shared,
            header,
            first: true,
            large: None,
            held: None,
            unsettled: None,
            ended: false,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Its hub, and what it shares with it.
    pub(super) fn half(&self) -> (&WatchHub, &Arc<Shared>) {
        (&self.hub, &self.shared)
    }

    /// Its messages leave by this line, and those who have some may use it, too.
    pub(crate) fn has_line(&self, line: &Line) {
        let outlet = Outlet::new(line.clone(), self.header.mode, self.header.epoch);
        // There is one at most.
        self.shared.outlet.get_or_init(|| outlet);
    }

    /// Its last word has been said.
    pub(super) fn is_over(&self) -> bool {
        self.ended
    }

    /// The last message is on its way.
    pub(super) fn release(&mut self) {
        self.large = None;
        *self.shared.large_since.lock() = None;
    }

    /// The asking half.
    #[must_use]
    pub fn handle(&self) -> StreamHandle {
        StreamHandle {
            hub: self.hub.clone(),
            shared: self.shared.clone(),
        }
    }

    /// Everything that is ready, as one message; waits until something is. A revision is never split between
    /// messages. `None`: the stream has ended.
    /// Asking for the next message means that the last one is on its way. Cancel-safe: nothing is lost, but a list's place
    /// among those that wait: whoever is not there when its turn comes must not keep others from theirs.
    ///
    /// # Errors
    /// The stream's last word; `None` follows.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, StreamEnd>> {
        self.release();
        loop {
            if self.ended || self.shared.closed.is_cancelled() {
                return None;
            }
            let end = self.shared.end.lock().clone();
            if let Some(end) = end {
                self.ended = true;
                return Some(last_word(end).map(|frames| self.message(frames)));
            }
            if self.shared.backlog.lock().lagging() {
                if waited_for_turn(&self.hub, &self.shared).await {
                    continue;
                }
                self.hub.catch_up(&self.shared);
            }
            if self.held.is_none() {
                match self.gather() {
                    Ok(gathered) => self.held = gathered,
                    Err(end) => return Some(Err(self.ended_by(end))),
                }
            }
            let Some((bytes, lists)) = self.held.as_ref().map(Gathered::bytes) else {
                match self.unsettled {
                    None => self.shared.wake.notified().await,
                    Some(revision) => tokio::select! {
                        () = self.shared.wake.notified() => {}
                        () = self.hub.settles(revision) => {}
                    },
                }
                continue;
            };
            let Some(leave) = self.leave_for(bytes, lists).await else {
                continue;
            };
            if leave.large.is_some() {
                self.large = leave.large;
                *self.shared.large_since.lock() = Some(Instant::now());
            }
            let _turn = leave.turn;
            let frames = match self.held.take() {
                Some(Gathered::Ready { frames, .. }) => Ok(frames),
                // It is encoded when its turn has come, not while it waits.
                Some(Gathered::Large { item, .. }) => {
                    let mut frames = Vec::new();
                    self.encode(item, &mut frames).map(|()| frames)
                }
                None => continue,
            };
            self.hub.count_response(bytes);
            return Some(match frames {
                Ok(frames) => Ok(self.message(frames)),
                Err(end) => Err(self.ended_by(end)),
            });
        }
    }

    fn message(&mut self, frames: Vec<Bytes>) -> WatchResponse {
        let cluster = match std::mem::take(&mut self.first) {
            true => self.header.cluster.clone(),
            false => String::new(),
        };
        WatchResponse {
            frames,
            mode: self.header.mode,
            epoch: self.header.epoch,
            cluster,
        }
    }

    fn ended_by(&mut self, end: StreamEnd) -> StreamEnd {
        self.ended = true;
        end
    }

    /// Frames up to about the wanted size, revisions whole; a large service by itself.
    fn gather(&mut self) -> Result<Option<Gathered>, StreamEnd> {
        let wanted = self.hub.limits().response_bytes;
        let mut frames = Vec::new();
        let (mut bytes, mut lists) = (0, 0);
        let mut items = Vec::new();
        while bytes < wanted {
            let any = {
                let mut backlog = self.shared.backlog.lock();
                backlog.woken = false;
                let any = backlog.take_next(self.hub.settled(), &mut items);
                // What comes first says more than the changes in it.
                backlog.parked = !any && frames.is_empty() && !self.first;
                self.unsettled = if any { None } else { backlog.unsettled() };
                any
            };
            if !any {
                break;
            }
            for item in items.drain(..) {
                let large = self.size(&item);
                if large > self.alone() {
                    if frames.is_empty() {
                        return Ok(Some(Gathered::Large { item, bytes: large }));
                    }
                    self.shared.backlog.lock().put_back(item);
                    return Ok(Some(Gathered::Ready { frames, bytes, lists }));
                }
                let from = frames.len();
                self.encode(item, &mut frames)?;
                let encoded: usize = frames[from..].iter().map(Bytes::len).sum();
                bytes += encoded + FRAME_OVERHEAD * (frames.len() - from);
                lists += if large > 0 { encoded } else { 0 };
            }
        }
        Ok((!frames.is_empty()).then_some(Gathered::Ready { frames, bytes, lists }))
    }

    /// A list from this size on goes by itself.
    fn alone(&self) -> usize {
        self.hub.limits().response_bytes.min(LIST_ALONE)
    }

    /// About how many bytes a full list takes, or the names with which a subscription starts if they are many; 0 for
    /// everything else.
    fn size(&self, item: &Item) -> usize {
        match (estimate(item), item) {
            // A few names are no list for which to wait.
            (named, Item::Started(_)) if named <= self.alone() => 0,
            // Many will want it: it is encoded for all of them, and its size is known.
            (
                large,
                Item::State {
                    service: Some(service),
                    ..
                },
            ) if large > LIST_ALONE && large <= self.hub.limits().view_cache_bytes / 8 => {
                self.hub.view(service).len()
            }
            (size, _) => size,
        }
    }

    fn encode(&self, item: Item, frames: &mut Vec<Bytes>) -> Result<(), StreamEnd> {
        frames.push(match item {
            Item::Change { change, .. } => {
                frames.extend_from_slice(&change.frames);
                return Ok(());
            }
            Item::State {
                key,
                service: None,
                revision,
                ..
            } => frame::gone(&key, revision),
            Item::State {
                key,
                service: Some(service),
                revision,
                lagged,
            } => {
                let frame = frame::snapshot(self.hub.view(&service), revision, lagged);
                let bytes_max = self.hub.message_bytes_max();
                if frame.len() + FRAME_OVERHEAD > bytes_max {
                    return Err(StreamEnd::TooLarge {
                        key,
                        bytes: frame.len(),
                        bytes_max,
                    });
                }
                self.hub.count_snapshot();
                frame
            }
            Item::Started(started) => frame::encode(Frame::Started(self.started(*started))),
            Item::Rejected(rejected) => frame::encode(Frame::Rejected(*rejected)),
            Item::KeepCache(keep) => frame::encode(Frame::KeepCache(keep)),
            Item::Bookmark(revision) => frame::bookmark(revision),
        });
        Ok(())
    }

    fn started(&self, started: Started) -> v1::Started {
        v1::Started {
            subscription: started.subscription,
            kind: started.kind.into(),
            revision: started.revision.0,
            header: Some(v1::ResponseHeader {
                revision: started.revision.0,
                ..self.header.clone()
            }),
            services: started.listed.services.iter().map(convert::service_key).collect(),
            guards: started.listed.guards.iter().map(service_guard).collect(),
            half: started.half,
            directory_revision: started.directory.0,
        }
    }

    /// Waits for leave to send so many bytes, so many of them of full lists. `None`: the stream is told to end.
    async fn leave_for(&self, bytes: usize, lists: usize) -> Option<Leave> {
        let is_large = bytes > self.hub.limits().response_bytes * 2;
        if !is_large && lists == 0 {
            return Some(Leave::default());
        }
        let leave = self.hub.leave(is_large.then_some(bytes), lists);
        tokio::pin!(leave);
        loop {
            tokio::select! {
                biased;
                // What woke it is seen to by whoever gathers next; but an end is not waited out.
                () = self.shared.wake.notified() => {
                    if self.shared.is_ending() {
                        return None;
                    }
                }
                leave = &mut leave => return Some(leave),
            }
        }
    }
}

/// The current state of a laggard is a full list like any other: while those are rationed it comes in its turn.
/// Whether there was anything to wait for.
async fn waited_for_turn(hub: &WatchHub, shared: &Shared) -> bool {
    let Some(wait) = hub.laggard_waits(shared) else {
        return false;
    };
    let turn = Instant::now() + wait;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(turn) => return true,
            () = shared.closed.cancelled() => return true,
            // A change, which waits with the others, or the end.
            () = shared.wake.notified() => {
                if shared.is_ending() {
                    return true;
                }
            }
        }
    }
}

/// Leave to encode and send a message, held while that is done.
#[derive(Default)]
struct Leave {
    /// Its bytes may be on their way.
    large: Option<OwnedSemaphorePermit>,
    /// For its lists.
    turn: Option<Turn>,
}

impl WatchHub {
    async fn leave(&self, large: Option<usize>, lists: usize) -> Leave {
        let large = match large {
            Some(bytes) => self.large_permit(bytes).await,
            None => None,
        };
        let turn = match lists {
            0 => None,
            lists => Some(self.list_turn(lists).await),
        };
        Leave { large, turn }
    }
}

/// What is ready to be sent.
enum Gathered {
    Ready {
        frames: Vec<Bytes>,
        bytes: usize,
        /// Bytes of small lists in it.
        lists: usize,
    },
    /// A service, or a list of names, so large that leave is asked for before it is encoded.
    Large { item: Item, bytes: usize },
}

impl Gathered {
    /// In all, and of full lists.
    fn bytes(&self) -> (usize, usize) {
        match self {
            Self::Ready { bytes, lists, .. } => (*bytes, *lists),
            Self::Large { bytes, .. } => (*bytes, *bytes),
        }
    }
}

fn service_guard((key, guard): &(ServiceKey, GuardStatus)) -> v1::ServiceGuard {
    v1::ServiceGuard {
        key: Some(convert::service_key(key)),
        guard: Some(convert::guard_status(guard)),
    }
}

/// About how many bytes a service takes when it is encoded, or names do; 0 for everything else, which is encoded already
/// or small.
fn estimate(item: &Item) -> usize {
    match item {
        Item::State {
            service: Some(service),
            ..
        } => bytes_of_service(service),
        Item::Started(started) => {
            let bytes = |key: &ServiceKey| key.group.as_str().len() + key.service.as_str().len() + 8;
            started.listed.services.iter().map(bytes).sum()
        }
        _ => 0,
    }
}

fn bytes_of_service(service: &Service) -> usize {
    let texts = |labels: &Labels| {
        labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 8)
            .sum::<usize>()
    };
    let node = |node: &Node| 256 + texts(&node.registration.labels) + texts(&node.registration.metadata);
    service.nodes.values().map(|one| node(one)).sum()
}

fn last_word(end: StreamEnd) -> Result<Vec<Bytes>, StreamEnd> {
    match end {
        StreamEnd::Moved(advice) => Ok(vec![frame::encode(Frame::MoveOn(advice))]),
        other @ (StreamEnd::Unread { .. } | StreamEnd::Oversize { .. } | StreamEnd::TooLarge { .. }) => {
            Err(other)
        }
    }
}
