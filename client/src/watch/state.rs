//! What the stream's task and the users' handles share: services as they are held, subscriptions, event queues.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::cache::{Cached, Merged};
use crate::error::Error;
use crate::key::ServiceKey;
use crate::node::Node;
use crate::view::{Confirmed, Counted, Heard, ServiceView, Source, said};

/// Most signs named in one subscription; what is held beyond them is sent again.
const KNOWN_MAX: usize = 5000;
/// A service that misses changes again so soon after it was asked for anew is asked for elsewhere.
const RESYNC_SPACING: Duration = Duration::from_secs(1);

/// A server that so often in a row is not ready for a subscription is left for another.
const REFUSALS_MAX: u32 = 3;

/// Longest wait that a server may ask for while it rations full lists.
const KEEP_CACHE_MAX: Duration = Duration::from_secs(600);

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchTarget {
    /// One service.
    Service(ServiceKey),
    /// Every service of a group and of the groups below it, in whole segments; empty: all.
    Group(Arc<str>),
}

impl WatchTarget {
    /// Every service of `prefix` and below.
    #[must_use]
    pub fn group(prefix: impl AsRef<str>) -> Self {
        Self::Group(prefix.as_ref().into())
    }

    /// Whether it follows this service.
    #[must_use]
    pub fn covers(&self, service: &ServiceKey) -> bool {
        match self {
            Self::Service(key) => key == service,
            Self::Group(prefix) => service.is_within(prefix),
        }
    }

    fn to_wire(&self) -> v1::WatchTarget {
        let target = match self {
            Self::Service(key) => v1::watch_target::Target::Service(key.into()),
            Self::Group(prefix) => v1::watch_target::Target::GroupPrefix(prefix.as_ref().into()),
        };
        v1::WatchTarget { target: Some(target) }
    }
}

impl From<ServiceKey> for WatchTarget {
    fn from(key: ServiceKey) -> Self {
        Self::Service(key)
    }
}

impl fmt::Display for WatchTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Group(prefix) => write!(f, "{prefix}/..."),
        }
    }
}

/// Why a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemovalCause {
    /// By its own or an operator's word.
    Deregistered,
    /// Its session lapsed.
    Expired,
    /// Its session was closed.
    SessionClosed,
    /// The server did not say.
    Unknown,
}

/// A node that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedNode {
    /// Its id.
    pub id: String,
    /// Why.
    pub cause: RemovalCause,
    /// The incarnation that went.
    pub incarnation: u64,
}

impl From<&v1::RemovedNode> for RemovedNode {
    fn from(removed: &v1::RemovedNode) -> Self {
        let cause = match removed.cause() {
            v1::RemovalCause::Deregistered => RemovalCause::Deregistered,
            v1::RemovalCause::Expired => RemovalCause::Expired,
            v1::RemovalCause::SessionClosed => RemovalCause::SessionClosed,
            v1::RemovalCause::Unspecified => RemovalCause::Unknown,
        };
        Self {
            id: removed.id.clone(),
            cause,
            incarnation: removed.incarnation,
        }
    }
}

/// Something that a watch has to tell. Per service, revisions only grow; of groups in mode AP, while the stream
/// stays with one server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// A service as a whole: at the beginning, and wherever single changes are not known.
    Snapshot {
        /// The service.
        view: Arc<ServiceView>,
        /// The server could not send every change to this client in time.
        lagged: bool,
    },
    /// One revision's change to one service.
    Changed {
        /// The service afterwards.
        view: Arc<ServiceView>,
        /// Nodes that are new or different.
        put: Vec<Arc<Node>>,
        /// Nodes that are gone.
        removed: Vec<RemovedNode>,
    },
    /// The service's removal guard says something else: it engaged or disengaged, holds more or fewer nodes, or
    /// lets go of them, or a window began or is over. That only a count in it differs is told by the view alone.
    Guard {
        /// The service afterwards; [`ServiceView::guard`] is what it says.
        view: Arc<ServiceView>,
        /// What it said before.
        before: Option<v1::GuardStatus>,
    },
    /// The service itself was deleted, or does not exist.
    Gone {
        /// The service afterwards: empty.
        view: Arc<ServiceView>,
    },
    /// The subscription is live at a server.
    Live {
        /// The state's revision; of a group and below, that of its parts in mode CP.
        revision: u64,
        /// Every change since the interruption follows; otherwise what differed was sent as snapshots.
        resumed: bool,
        /// The server's id.
        server: u64,
    },
    /// The stream is lost; what is held stays, and another server is being looked for.
    Interrupted {
        /// What happened.
        reason: Arc<str>,
    },
    /// The server refuses the subscription. If that may pass, it is tried again.
    Rejected {
        /// Why.
        error: Arc<Error>,
    },
    /// The reader was slow: changes were left out. This is the state now.
    Lagged {
        /// All services of the watch.
        views: Vec<Arc<ServiceView>>,
    },
}

/// Whether a removal guard says something else, and not only another count.
fn is_news(before: Option<&v1::GuardStatus>, after: Option<&v1::GuardStatus>) -> bool {
    let said = |guard: Option<&v1::GuardStatus>| {
        guard.map(|guard| {
            let hold = (guard.held, guard.held_since, guard.overdue);
            (guard.engaged_since, guard.reason, hold, guard.window_began)
        })
    };
    said(before) != said(after)
}

/// One service, and who looks at it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cached: Cached,
    pub(super) published: watch::Sender<Arc<ServiceView>>,
    /// Changes are ignored until the full list comes.
    awaits_full: bool,
    asked_anew_at: Option<Instant>,
}

impl Slot {
    fn new(cached: Cached) -> Self {
        let published = watch::Sender::new(Arc::clone(cached.view()));
        Self {
            cached,
            published,
            awaits_full: false,
            asked_anew_at: None,
        }
    }

    fn publish(&self) {
        self.published.send_replace(Arc::clone(self.cached.view()));
    }
}

/// One target, however many handles want it.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) handles: usize,
    /// Its number on the stream; 0: not asked for yet.
    pub(super) number: u64,
    /// Its groups in mode CP.
    cp: Part,
    /// Its groups in mode AP.
    ap: Part,
    /// One part has started, and the other one will: those of the services held that are not of the first.
    unlisted: Option<BTreeSet<ServiceKey>>,
    ask_at: Option<Instant>,
    pub(super) rejection: Option<v1::Error>,
    /// How often in a row a server said that it is not ready for it.
    refusals: u32,
}

/// What a subscription follows in groups of one mode.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Asked for on this stream, and started.
    started: bool,
    /// It was resumed without a gap.
    resumed: bool,
    /// Everything up to here has come.
    position: u64,
    /// In whose count.
    epoch: u64,
}

impl Part {
    /// Everything up to here has come, or: the server must not be behind this.
    fn reach(&mut self, counted: Counted, revision: u64) {
        let epoch = counted.epoch();
        let before = if self.epoch == epoch { self.position } else { 0 };
        (self.position, self.epoch) = (before.max(revision), epoch);
    }

    /// What has come is not enough: from state again. Where it was not started, its position is a mere lower bound.
    fn forget(&mut self) {
        if std::mem::take(&mut self.started) {
            self.position = 0;
        }
    }
}

impl Subscription {
    fn new() -> Self {
        Self {
            handles: 0,
            number: 0,
            cp: Part::default(),
            ap: Part::default(),
            unlisted: None,
            ask_at: None,
            rejection: None,
            refusals: 0,
        }
    }

    fn part(&mut self, counted: Counted) -> &mut Part {
        match counted {
            Counted::Unknown | Counted::Cluster => &mut self.cp,
            Counted::Server { .. } => &mut self.ap,
        }
    }

    /// Asked for with its number, and live.
    fn live(&self) -> bool {
        (self.cp.started || self.ap.started) && self.unlisted.is_none()
    }

    fn forget(&mut self) {
        self.cp.forget();
        self.ap.forget();
        self.unlisted = None;
    }

    /// No longer asked for on this stream, or no longer live.
    fn stop(&mut self) {
        self.cp.started = false;
        self.ap.started = false;
        self.unlisted = None;
    }
}

/// How far the messages about groups of one mode have been taken in.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    epoch: u64,
    acknowledge: u64,
    acknowledged: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    target: WatchTarget,
    events: VecDeque<WatchEvent>,
    lagged: bool,
    pub(super) wake: Arc<Notify>,
}

/// What a frame asks the stream's task to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// A full list that was asked for anew did not help: leave this server.
    pub(super) leave: Option<&'static str>,
    /// The server asks to move.
    pub(super) move_on: Option<(Duration, Vec<String>)>,
}

/// All of it, behind one lock: a frame is applied and told in one step.
#[derive(Debug)]
pub(super) struct State {
    pub(super) slots: BTreeMap<ServiceKey, Slot>,
    pub(super) subscriptions: BTreeMap<WatchTarget, Subscription>,
    queues: BTreeMap<u64, Queue>,
    next_queue: u64,
    next_number: u64,
    events_max: usize,
    /// Numbers to give up on the stream.
    dropped: Vec<u64>,
    /// Services that discovery keeps current.
    pub(super) discovered: BTreeSet<ServiceKey>,
    /// Services whose disk snapshot is out of date.
    pub(super) dirty: BTreeSet<ServiceKey>,
    heard: Arc<Heard>,
    cluster: Arc<str>,
    /// What revisions of the message at hand count.
    counted: Counted,
    cp_mark: Mark,
    ap_mark: Mark,
    /// Frames since the last point where a resume is safe end with these services' changes of one revision.
    tail: Option<Tail>,
    pub(super) closed: bool,
}

/// Changes of one revision, so far the last of a message.
#[derive(Debug)]
struct Tail {
    revision: u64,
    services: BTreeSet<ServiceKey>,
}

impl State {
    pub(super) fn new(events_max: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            queues: BTreeMap::new(),
            next_queue: 1,
            next_number: 1,
            events_max,
            dropped: Vec::new(),
            discovered: BTreeSet::new(),
            dirty: BTreeSet::new(),
            heard: Heard::now(),
            cluster: Arc::from(""),
            counted: Counted::Cluster,
            cp_mark: Mark::default(),
            ap_mark: Mark::default(),
            tail: None,
            closed: false,
        }
    }

    // ---- handles ----------------------------------------------------------------------------------------

    /// One more handle wants the target.
    pub(super) fn want(&mut self, target: &WatchTarget) {
        let subscription = self
            .subscriptions
            .entry(target.clone())
            .or_insert_with(Subscription::new);
        subscription.handles += 1;
        if let WatchTarget::Service(key) = target {
            self.slot(key);
        }
    }

    /// One handle less.
    pub(super) fn unwant(&mut self, target: &WatchTarget) {
        let Some(subscription) = self.subscriptions.get_mut(target) else {
            return;
        };
        subscription.handles -= 1;
        if subscription.handles > 0 {
            return;
        }
        if subscription.number > 0 {
            self.dropped.push(subscription.number);
        }
        self.subscriptions.remove(target);
        let subscriptions = &self.subscriptions;
        self.slots
            .retain(|key, _| subscriptions.keys().any(|target| target.covers(key)));
    }

    pub(super) fn slot(&mut self, key: &ServiceKey) -> &mut Slot {
        self.slots
            .entry(key.clone())
            .or_insert_with(|| Slot::new(Cached::unknown(key.clone())))
    }

    /// From disk: only where nothing is known.
    pub(super) fn offer(&mut self, view: ServiceView) {
        if let Some(slot) = self.slots.get_mut(&view.key)
            && slot.cached.view().source == Source::Nothing
        {
            slot.cached = Cached::of(view);
            slot.publish();
            let view = Arc::clone(slot.cached.view());
            self.tell(&view.key.clone(), WatchEvent::Snapshot { view, lagged: false });
        }
    }

    /// A queue of events, which begins with what is held.
    pub(super) fn add_queue(&mut self, target: &WatchTarget) -> (u64, Arc<Notify>) {
        let number = self.next_queue;
        self.next_queue += 1;
        let wake = Arc::new(Notify::new());
        let events: VecDeque<_> = self
            .views(target)
            .into_iter()
            .filter(|view| view.source != Source::Nothing)
            .map(|view| WatchEvent::Snapshot { view, lagged: false })
            .collect();
        let lagged = events.len() > self.events_max;
        let events = if lagged { VecDeque::new() } else { events };
        wake.notify_one();
        self.queues.insert(
            number,
            Queue {
                target: target.clone(),
                events,
                lagged,
                wake: Arc::clone(&wake),
            },
        );
        (number, wake)
    }

    pub(super) fn remove_queue(&mut self, number: u64) {
        self.queues.remove(&number);
    }

    /// The next event of a queue, if there is one.
    pub(super) fn take_event(&mut self, number: u64) -> Option<WatchEvent> {
        let queue = self.queues.get_mut(&number)?;
        if std::mem::take(&mut queue.lagged) {
            let target = queue.target.clone();
            return Some(WatchEvent::Lagged {
                views: self.views(&target),
            });
        }
        queue.events.pop_front()
    }

    pub(super) fn views(&self, target: &WatchTarget) -> Vec<Arc<ServiceView>> {
        self.slots
            .iter()
            .filter(|(key, _)| target.covers(key))
            .map(|(_, slot)| Arc::clone(slot.cached.view()))
            .collect()
    }

    fn tell(&mut self, key: &ServiceKey, event: WatchEvent) {
        let max = self.events_max;
        let queues = self.queues.values_mut().filter(|queue| queue.target.covers(key));
        queues.for_each(|queue| queue.push(event.clone(), max));
    }

    fn tell_target(&mut self, target: Option<&WatchTarget>, event: WatchEvent) {
        let max = self.events_max;
        let queues = self
            .queues
            .values_mut()
            .filter(|queue| target.is_none_or(|target| queue.target == *target));
        queues.for_each(|queue| queue.push(event.clone(), max));
    }

    // ---- the stream's outgoing side ---------------------------------------------------------------------

    /// A new stream begins, on which nothing was asked for yet.
    pub(super) fn on_connected(&mut self) {
        self.dropped.clear();
        self.next_number = 1;
        self.cp_mark = Mark::default();
        self.ap_mark = Mark::default();
        self.counted = Counted::Cluster;
        self.tail = None;
        self.heard = Heard::now();
        self.cluster = Arc::from("");
        for subscription in self.subscriptions.values_mut() {
            subscription.number = 0;
            subscription.stop();
            subscription.ask_at = None;
        }
        for slot in self.slots.values_mut() {
            slot.awaits_full = false;
        }
    }

    /// What is to be said next; `None`: nothing at the moment.
    pub(super) fn take_request(&mut self, now: Instant) -> Option<v1::watch_request::Request> {
        use v1::watch_request::Request;
        if let Some(number) = self.dropped.pop() {
            return Some(Request::Unsubscribe(v1::Unsubscribe { subscription: number }));
        }
        let due = |subscription: &Subscription| {
            subscription.number == 0 && subscription.ask_at.is_none_or(|at| at <= now)
        };
        if let Some((target, subscription)) = self.subscriptions.iter_mut().find(|(_, one)| due(one)) {
            subscription.number = self.next_number;
            self.next_number += 1;
            let known = self
                .slots
                .iter()
                .filter(|(key, slot)| target.covers(key) && slot.cached.view().exists && !slot.awaits_full)
                .take(KNOWN_MAX)
                .map(|(key, slot)| v1::KnownSign {
                    key: Some(key.into()),
                    sign: Some(slot.cached.view().sign.into()),
                })
                .collect();
            return Some(Request::Subscribe(v1::Subscribe {
                subscription: subscription.number,
                target: Some(target.to_wire()),
                after_revision: subscription.cp.position,
                known,
                ap_after_revision: subscription.ap.position,
                ap_epoch: subscription.ap.epoch,
            }));
        }
        let marks = [
            (v1::GroupMode::Cp, &mut self.cp_mark),
            (v1::GroupMode::Ap, &mut self.ap_mark),
        ];
        let mut news = marks
            .into_iter()
            .filter(|(_, mark)| mark.acknowledge > mark.acknowledged);
        let (mode, mark) = news.next()?;
        // What is asked for anew has not been taken in, whatever came behind it.
        if self.slots.values().any(|slot| slot.awaits_full) {
            return None;
        }
        mark.acknowledged = mark.acknowledge;
        Some(Request::Ack(v1::WatchAck {
            revision: mark.acknowledge,
            mode: mode.into(),
            epoch: mark.epoch,
        }))
    }

    /// When a refused subscription is to be asked for again.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.subscriptions
            .values()
            .filter(|one| one.number == 0)
            .filter_map(|one| one.ask_at)
            .min()
    }

    // ---- the stream's incoming side ---------------------------------------------------------------------

    /// A message begins: all its frames are of this cluster, if it is named, and count like this.
    pub(super) fn on_message(&mut self, cluster: &str, counted: Counted) {
        if !cluster.is_empty() {
            self.cluster = Arc::from(cluster);
        }
        self.counted = counted;
    }

    fn acknowledge(&mut self, revision: u64) {
        let mark = match self.counted {
            Counted::Unknown | Counted::Cluster => &mut self.cp_mark,
            Counted::Server { .. } => &mut self.ap_mark,
        };
        mark.epoch = self.counted.epoch();
        mark.acknowledge = mark.acknowledge.max(revision);
    }

    /// Whoever waits for the other part of a subscription need not wonder about this service any more.
    fn on_word_of(&mut self, key: &ServiceKey) {
        for subscription in self.subscriptions.values_mut() {
            if let Some(unlisted) = &mut subscription.unlisted {
                unlisted.remove(key);
            }
        }
    }

    pub(super) fn on_frame(&mut self, frame: v1::WatchFrame) -> Todo {
        use v1::watch_frame::Frame;
        self.heard.touch();
        if !matches!(frame.frame, Some(Frame::Delta(_))) {
            self.tail = None;
        }
        match frame.frame {
            Some(Frame::Started(started)) => self.on_started(started),
            Some(Frame::Snapshot(snapshot)) => self.on_snapshot(snapshot),
            Some(Frame::Delta(delta)) => self.on_delta(delta),
            Some(Frame::Gone(gone)) => self.on_gone(gone),
            Some(Frame::Bookmark(bookmark)) => self.on_bookmark(bookmark.revision),
            Some(Frame::Rejected(rejected)) => self.on_rejected(rejected),
            Some(Frame::KeepCache(keep)) => self.on_keep_cache(keep),
            Some(Frame::MoveOn(advice)) => Todo {
                move_on: Some((Duration::from_millis(advice.after_ms.into()), advice.servers)),
                leave: None,
            },
            // A frame of a later version: what it says is not needed for what this version promises.
            None => Todo::default(),
        }
    }

    fn confirmed(&self) -> Confirmed {
        Confirmed::Heard(Arc::clone(&self.heard))
    }

    fn is_wanted(&self, key: &ServiceKey) -> bool {
        self.subscriptions.keys().any(|target| target.covers(key))
    }

    fn on_started(&mut self, started: v1::Started) -> Todo {
        let header = started.header.unwrap_or_default();
        self.cluster = Arc::from(header.cluster.as_str());
        let counted = self.counted;
        let found = self
            .subscriptions
            .iter_mut()
            .find(|(_, one)| one.number == started.subscription);
        let Some((target, subscription)) = found else {
            return Todo::default();
        };
        let target = target.clone();
        let resumed = started.kind == i32::from(v1::StartKind::Resumed);
        // Said again of one part of a live subscription, it is about this part alone.
        let again = subscription.live() && subscription.part(counted).started;
        *subscription.part(counted) = Part {
            started: true,
            resumed,
            position: started.revision,
            epoch: counted.epoch(),
        };
        if !started.half {
            subscription
                .cp
                .reach(Counted::Cluster, started.directory_revision);
        }
        subscription.rejection = None;
        subscription.refusals = 0;
        let (cp, ap) = (subscription.cp, subscription.ap);
        let awaits_other = started.half && !(cp.started && ap.started);
        let first = subscription.unlisted.take().filter(|_| !awaits_other);
        let existing: BTreeSet<ServiceKey> = started.services.into_iter().map(ServiceKey::from).collect();
        let guard = |guard: v1::ServiceGuard| (guard.key.unwrap_or_default().into(), guard.guard);
        let guards: BTreeMap<ServiceKey, _> = started.guards.into_iter().map(guard).collect();
        // A service that exists and was not sent is held already, by its equal sign.
        if let WatchTarget::Group(_) = target {
            for key in &existing {
                self.slot(key);
            }
        }
        let (cluster, confirmed) = (Arc::clone(&self.cluster), self.confirmed());
        let mut missing = false;
        let mut unlisted = BTreeSet::new();
        let (mut gone, mut guarded) = (Vec::new(), Vec::new());
        for (key, slot) in self.slots.iter_mut().filter(|(key, _)| target.covers(key)) {
            if slot.cached.on_other_cluster(&cluster) {
                // The frames before this one were judged as if they came from the old cluster.
                missing |= existing.contains(key);
                slot.awaits_full |= existing.contains(key);
                continue;
            }
            if slot.cached.view().source == Source::Nothing && existing.contains(key) {
                // It should have come just before.
                missing = true;
                slot.awaits_full = true;
            }
            if slot.awaits_full {
                continue;
            }
            let held = slot.cached.view().counted();
            let own = held.mode() == counted.mode();
            let listed = existing.contains(key);
            if listed && resumed && held.differs(counted) {
                // Only the changes were sent, and they are not to what is held.
                missing = true;
                slot.awaits_full = true;
                continue;
            }
            let merged = if listed || (resumed && own && slot.cached.view().exists) {
                slot.cached
                    .confirm(started.revision, (&cluster, counted), confirmed.clone())
            } else if awaits_other {
                unlisted.insert(key.clone());
                continue;
            } else if first.as_ref().is_some_and(|first| !first.contains(key)) || (again && !own) {
                // The other part's.
                continue;
            } else {
                let (part, counted) = match held {
                    Counted::Server { .. } if ap.started => (ap, Counted::Server { epoch: ap.epoch }),
                    _ if cp.started => (cp, Counted::Cluster),
                    _ => (ap, counted),
                };
                slot.cached
                    .take_gone(part.position, (&cluster, counted), confirmed.clone())
            };
            match merged {
                Merged::Changed => gone.push(Arc::clone(slot.cached.view())),
                Merged::Confirmed => {
                    let before = slot.cached.view().guard;
                    slot.cached.take_guard(said(guards.get(key).copied().flatten()));
                    let view = slot.cached.view();
                    if is_news(before.as_ref(), view.guard.as_ref()) {
                        guarded.push((Arc::clone(view), before));
                    }
                }
                Merged::Older | Merged::UnconfirmedEmpty | Merged::Gap => {
                    tracing::warn!(service = %key, ?merged, "a server's word on a service was not taken");
                    continue;
                }
            }
            slot.publish();
        }
        for view in gone {
            self.dirty.insert(view.key.clone());
            self.tell(&view.key.clone(), WatchEvent::Gone { view });
        }
        for (view, before) in guarded {
            self.dirty.insert(view.key.clone());
            self.tell(&view.key.clone(), WatchEvent::Guard { view, before });
        }
        if missing {
            return self.ask_anew_for_target(&target);
        }
        self.acknowledge(started.revision);
        let Some(subscription) = self.subscriptions.get_mut(&target) else {
            return Todo::default();
        };
        if awaits_other {
            subscription.unlisted = Some(unlisted);
            return Todo::default();
        }
        let (revision, resumed) = if started.half {
            (cp.position, cp.resumed && ap.resumed)
        } else {
            (started.revision, resumed)
        };
        self.tell_target(
            Some(&target),
            WatchEvent::Live {
                revision,
                resumed,
                server: header.server,
            },
        );
        Todo::default()
    }

    fn on_snapshot(&mut self, snapshot: v1::ServiceSnapshot) -> Todo {
        let Some(view) = snapshot.view else {
            return Todo::default();
        };
        let confirmed = self.confirmed();
        let origin = (Arc::clone(&self.cluster), self.counted);
        let view = ServiceView::from_wire(view, snapshot.revision, origin, confirmed);
        if !self.is_wanted(&view.key) {
            return Todo::default();
        }
        self.on_word_of(&view.key);
        let (key, revision) = (view.key.clone(), snapshot.revision);
        let slot = self.slot(&key);
        let mut view = view;
        if view.cluster.is_empty() && !slot.awaits_full {
            // Before the stream has named its cluster, it is taken for the one that is held.
            view.cluster = Arc::clone(&slot.cached.view().cluster);
        }
        let merged = slot.cached.take_full(view);
        match merged {
            Merged::Changed | Merged::Confirmed => {
                slot.awaits_full = false;
                slot.publish();
                let view = Arc::clone(slot.cached.view());
                self.dirty.insert(key.clone());
                if merged == Merged::Changed {
                    self.tell(
                        &key,
                        WatchEvent::Snapshot {
                            view,
                            lagged: snapshot.lagged,
                        },
                    );
                }
            }
            Merged::Older | Merged::UnconfirmedEmpty | Merged::Gap => {
                tracing::warn!(service = %key, ?merged, revision, "a server's list was not taken");
            }
        }
        // No resume behind it: other services' lists of the same catch-up may still be on their way.
        Todo::default()
    }

    fn on_delta(&mut self, delta: v1::ServiceDelta) -> Todo {
        let key: ServiceKey = delta.key.clone().unwrap_or_default().into();
        if !self.is_wanted(&key) {
            return Todo::default();
        }
        let (revision, whole) = (delta.revision, delta.parts_after == 0);
        let (cluster, counted, confirmed) = (Arc::clone(&self.cluster), self.counted, self.confirmed());
        self.on_word_of(&key);
        let slot = self.slot(&key);
        if slot.awaits_full {
            return Todo::default();
        }
        let put: BTreeSet<String> = delta.put.iter().map(|node| node.id.clone()).collect();
        let removed: Vec<_> = delta.removed.iter().map(RemovedNode::from).collect();
        let lists = delta.created || delta.settings.is_some() || !put.is_empty() || !removed.is_empty();
        let before = slot.cached.view().guard;
        match slot.cached.take_delta(delta, (&cluster, counted), confirmed) {
            Merged::Changed => {
                slot.publish();
                let view = Arc::clone(slot.cached.view());
                self.dirty.insert(key.clone());
                if lists {
                    let put = put.iter().filter_map(|id| view.node(id).cloned()).collect();
                    let view = Arc::clone(&view);
                    self.tell(&key, WatchEvent::Changed { view, put, removed });
                }
                if is_news(before.as_ref(), view.guard.as_ref()) {
                    self.tell(&key, WatchEvent::Guard { view, before });
                }
            }
            Merged::Gap => return self.ask_anew(&key),
            // It came before, over another subscription or before an interruption.
            Merged::Older | Merged::Confirmed | Merged::UnconfirmedEmpty => {}
        }
        self.note_tail(key, revision, whole);
        Todo::default()
    }

    fn on_gone(&mut self, gone: v1::ServiceGone) -> Todo {
        let key: ServiceKey = gone.key.unwrap_or_default().into();
        if !self.is_wanted(&key) {
            return Todo::default();
        }
        let (cluster, counted, confirmed) = (Arc::clone(&self.cluster), self.counted, self.confirmed());
        self.on_word_of(&key);
        let slot = self.slot(&key);
        if slot
            .cached
            .take_gone(gone.revision, (&cluster, counted), confirmed)
            == Merged::Changed
        {
            slot.publish();
            let view = Arc::clone(slot.cached.view());
            self.dirty.insert(key.clone());
            self.tell(&key, WatchEvent::Gone { view });
        }
        Todo::default()
    }

    fn on_bookmark(&mut self, revision: u64) -> Todo {
        let counted = self.counted;
        let mut started = Vec::new();
        for (target, subscription) in &mut self.subscriptions {
            let part = subscription.part(counted);
            if part.started {
                part.reach(counted, revision);
                started.push(target);
            }
        }
        // A server that was behind when it took over has caught up.
        let (cluster, confirmed) = (
            Arc::clone(&self.cluster),
            Confirmed::Heard(Arc::clone(&self.heard)),
        );
        for (key, slot) in &mut self.slots {
            if slot.cached.view().source != Source::Live
                && slot.cached.view().counted() == counted
                && !slot.awaits_full
                && !slot.cached.on_other_cluster(&cluster)
                && started.iter().any(|target| target.covers(key))
                && slot
                    .cached
                    .confirm(revision, (&cluster, counted), confirmed.clone())
                    == Merged::Confirmed
            {
                slot.publish();
            }
        }
        self.acknowledge(revision);
        Todo::default()
    }

    /// It is not our turn, or a group's mode changed and the subscription is over: what is held is served meanwhile,
    /// and the subscription is asked for when told.
    fn on_keep_cache(&mut self, keep: v1::KeepCache) -> Todo {
        let found = self
            .subscriptions
            .iter_mut()
            .find(|(_, one)| one.number != 0 && one.number == keep.subscription);
        if let Some((target, subscription)) = found {
            let retry_after = Duration::from_millis(keep.retry_after_ms.into()).min(KEEP_CACHE_MAX);
            tracing::debug!(%target, ?retry_after, "to be asked for later");
            subscription.number = 0;
            subscription.stop();
            subscription.ask_at = Some(Instant::now() + retry_after);
            let target = target.clone();
            self.on_unfollowed(&target);
        }
        Todo::default()
    }

    /// No frames come for a target at the moment: what only it kept current is held, and no longer said to be live.
    fn on_unfollowed(&mut self, target: &WatchTarget) {
        let live: Vec<&WatchTarget> = self
            .subscriptions
            .iter()
            .filter(|(_, one)| one.live())
            .map(|(target, _)| target)
            .collect();
        for (key, slot) in self.slots.iter_mut().filter(|(key, _)| target.covers(key)) {
            if !live.iter().any(|target| target.covers(key)) && slot.cached.on_interrupted() {
                slot.publish();
            }
        }
    }

    fn on_rejected(&mut self, rejected: v1::Rejected) -> Todo {
        let found = self
            .subscriptions
            .iter_mut()
            .find(|(_, one)| one.number == rejected.subscription);
        let Some((target, subscription)) = found else {
            return Todo::default();
        };
        let target = target.clone();
        let wire = rejected.error.unwrap_or_default();
        let error = Error::from_wire(wire.clone(), None);
        tracing::warn!(%target, %error, "subscription refused");
        if error.is_transient() {
            let asked = Duration::from_millis(wire.retry_after_ms.into());
            subscription.number = 0;
            subscription.ask_at = Some(Instant::now() + asked.max(Duration::from_secs(1)));
        }
        subscription.stop();
        let unready = wire.code() == v1::ErrorCode::NotReady;
        subscription.refusals = if unready { subscription.refusals + 1 } else { 0 };
        let leave = (subscription.refusals >= REFUSALS_MAX).then_some("the server is not ready");
        if leave.is_some() {
            subscription.refusals = 0;
        }
        subscription.rejection = Some(wire);
        self.tell_target(
            Some(&target),
            WatchEvent::Rejected {
                error: Arc::new(error),
            },
        );
        Todo { leave, move_on: None }
    }

    /// Remembers a change as perhaps the last of its message. `whole`: no other part of the revision follows.
    fn note_tail(&mut self, key: ServiceKey, revision: u64, whole: bool) {
        match &mut self.tail {
            _ if !whole => self.tail = None,
            Some(tail) if tail.revision == revision => _ = tail.services.insert(key),
            _ => {
                let services = BTreeSet::from([key]);
                self.tail = Some(Tail { revision, services });
            }
        }
    }

    /// A message has been taken in. If it ends with changes, they are whole, and a resume behind them is safe for
    /// the subscriptions that cover them; others learn it from bookmarks.
    pub(super) fn on_message_end(&mut self) {
        let Some(Tail { revision, services }) = self.tail.take() else {
            return;
        };
        let counted = self.counted;
        let mut reached = false;
        for (target, subscription) in &mut self.subscriptions {
            let part = subscription.part(counted);
            if part.started && services.iter().any(|key| target.covers(key)) {
                part.reach(counted, revision);
                reached = true;
            }
        }
        if reached {
            self.acknowledge(revision);
        }
    }

    /// Changes of a service were missed: its full list is asked for.
    fn ask_anew(&mut self, key: &ServiceKey) -> Todo {
        let now = Instant::now();
        let slot = self.slot(key);
        tracing::warn!(service = %key, "changes were missed, asking for the full list");
        if slot.asked_anew_at.is_some_and(|at| at + RESYNC_SPACING > now) {
            // The next stream names no sign that this slot does not hold, so it brings what differs.
            self.forget_positions(key);
            return Todo {
                leave: Some("changes were missed again"),
                move_on: None,
            };
        }
        slot.asked_anew_at = Some(now);
        slot.awaits_full = true;
        self.forget_positions(key);
        let subscriptions = self
            .subscriptions
            .iter_mut()
            .filter(|(target, _)| target.covers(key));
        let numbers: Vec<u64> = subscriptions
            .map(|(_, one)| std::mem::take(&mut one.number))
            .collect();
        self.dropped
            .extend(numbers.into_iter().filter(|number| *number > 0));
        Todo::default()
    }

    fn ask_anew_for_target(&mut self, target: &WatchTarget) -> Todo {
        if let Some(subscription) = self.subscriptions.get_mut(target) {
            subscription.forget();
            subscription.ask_at = Some(Instant::now() + RESYNC_SPACING);
            self.dropped.push(std::mem::take(&mut subscription.number));
        }
        Todo::default()
    }

    fn forget_positions(&mut self, key: &ServiceKey) {
        for (_, subscription) in self
            .subscriptions
            .iter_mut()
            .filter(|(target, _)| target.covers(key))
        {
            subscription.forget();
        }
    }

    /// The stream is gone.
    pub(super) fn on_interrupted(&mut self, reason: &str) {
        for slot in self.slots.values_mut() {
            if slot.cached.on_interrupted() {
                slot.publish();
            }
        }
        for subscription in self.subscriptions.values_mut() {
            subscription.stop();
        }
        self.tell_target(
            None,
            WatchEvent::Interrupted {
                reason: reason.into(),
            },
        );
    }
}

impl Queue {
    /// A full queue is replaced by the state at the time of reading.
    fn push(&mut self, event: WatchEvent, max: usize) {
        if !self.lagged && self.events.len() >= max {
            self.events.clear();
            self.lagged = true;
        }
        if !self.lagged {
            self.events.push_back(event);
        }
        self.wake.notify_one();
    }
}
