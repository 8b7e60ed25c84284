//! What the stream's task and the users' handles share: services as they are held, subscriptions, event queues.

mod frames;
mod subscription;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::subscription::Subscription;
use super::cache::Cached;
use super::event::WatchEvent;
use super::published::Published;
use super::target::WatchTarget;
use crate::error::Error;
use crate::key::ServiceKey;
use crate::view::{Counted, Heard, ServiceView, Source};

/// Most signs named in one subscription; what is held beyond them is sent again.
const KNOWN_MAX: usize = 5000;

/// One service, and who looks at it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cached: Cached,
    pub(super) published: Published,
    /// Changes are ignored until the full list comes.
    awaits_full: bool,
    /// A word on the whole of it was not taken, because what is held is newer. Either the server is behind, or what is held
    /// was lost to the servers, which were set back; once it has come so far, it is asked which. Changes are ignored until
    /// then.
    disputed: bool,
    asked_anew_at: Option<Instant>,
}

impl Slot {
    fn new(cached: Cached) -> Self {
        let published = Published::new(cached.view());
        Self {
            cached,
            published,
            awaits_full: false,
            disputed: false,
            asked_anew_at: None,
        }
    }

    /// What is held is live only if it goes on. Not shown yet.
    fn hold_unless(&mut self, goes_on: bool) {
        if !goes_on {
            self.cached.on_interrupted();
        }
    }

    /// See [`Self::disputed`].
    fn dispute(&mut self) {
        // What this stream itself keeps current is not disputed by what it said before.
        self.disputed |= self.cached.view().source != Source::Live;
    }

    fn publish(&self) {
        self.published.show(self.cached.view());
    }
}

/// What is to be done about a disk snapshot.
#[derive(Debug)]
enum Dirt {
    /// The service changed; it is written as it is held by then.
    Changed,
    /// The service was deleted; perhaps nothing is held of it by then.
    Gone(Arc<ServiceView>),
}

/// When the server last said something of the groups of one mode that is current there.
#[derive(Debug)]
struct LastWord {
    heard: Arc<Heard>,
    at: Instant,
    /// The latest revision that was named.
    revision: u64,
}

impl LastWord {
    fn now() -> Self {
        Self {
            heard: Heard::now(),
            at: Instant::now(),
            revision: 0,
        }
    }

    /// A server that is cut off goes on answering what it is asked, as of where it stands: that confirms nothing else.
    fn touch(&mut self, revision: u64, is_current: bool) {
        if is_current || revision > self.revision {
            self.heard.touch();
            self.at = Instant::now();
        }
        self.revision = self.revision.max(revision);
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
    /// Events were left out: the state is told before all else.
    lagged: bool,
    /// Of what was left out, the last word on the subscription itself, which the state does not say.
    standing: Option<WatchEvent>,
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
    /// There is a folder for disk snapshots.
    on_disk: bool,
    /// Services whose disk snapshot is out of date.
    dirty: BTreeMap<ServiceKey, Dirt>,
    /// Of CP groups, and of AP groups: one is no word on the other.
    heard_of_cp: LastWord,
    heard_of_ap: LastWord,
    cluster: Arc<str>,
    /// The cluster that a stream named last, this one or one before.
    home: Arc<str>,
    /// What revisions of the message at hand count.
    counted: Counted,
    cp_mark: Mark,
    ap_mark: Mark,
    /// Frames since the last point where a resume is safe end with these services' changes of one revision.
    tail: Option<Tail>,
    /// Why no server lets us have a stream, since the last one.
    refused: Option<Arc<Error>>,
    pub(super) closed: bool,
}

/// Changes of one revision, so far the last of a message.
#[derive(Debug)]
struct Tail {
    revision: u64,
    services: BTreeSet<ServiceKey>,
}

impl State {
    pub(super) fn new(events_max: usize, on_disk: bool) -> Self {
        Self {
            slots: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            queues: BTreeMap::new(),
            next_queue: 1,
            next_number: 1,
            events_max,
            dropped: Vec::new(),
            discovered: BTreeSet::new(),
            on_disk,
            dirty: BTreeMap::new(),
            heard_of_cp: LastWord::now(),
            heard_of_ap: LastWord::now(),
            cluster: Arc::from(""),
            home: Arc::from(""),
            counted: Counted::Cluster,
            cp_mark: Mark::default(),
            ap_mark: Mark::default(),
            tail: None,
            refused: None,
            closed: false,
        }
    }

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
        match target {
            WatchTarget::Service(key) if self.is_wanted(key) => {}
            WatchTarget::Service(key) => _ = self.slots.remove(key),
            WatchTarget::Group(_) => {
                let mut slots = std::mem::take(&mut self.slots);
                slots.retain(|key, _| !target.covers(key) || self.is_wanted(key));
                self.slots = slots;
            }
        }
        if self.subscriptions.is_empty() {
            // Nobody asks any more, so it is not known to last.
            self.refused = None;
        }
        // Others want the rest, and may be waiting for their turn.
        self.on_unfollowed(target);
    }

    /// Whether a subscription wants it, by its name or by a group's.
    fn is_wanted(&self, key: &ServiceKey) -> bool {
        self.subscriptions_of(key).next().is_some()
    }

    /// Those that want it. Groups are few where services are many.
    fn subscriptions_of<'a>(&'a self, key: &'a ServiceKey) -> impl Iterator<Item = &'a Subscription> + 'a {
        let by_name = self.subscriptions.get(&WatchTarget::Service(key.clone()));
        // Behind all single services, in the order of targets.
        let groups = self.subscriptions.range(WatchTarget::group("")..);
        let of_groups = groups.filter(|(target, _)| target.covers(key));
        by_name
            .into_iter()
            .chain(of_groups.map(|(_, subscription)| subscription))
    }

    /// Whether somebody wants it (`None`: nobody), and it is asked for on this stream. If not, its frames are late ones
    /// of a subscription that was given up, and no further ones follow: they make nothing live.
    fn is_asked_for(&self, key: &ServiceKey) -> Option<bool> {
        let mut subscriptions = self.subscriptions_of(key).peekable();
        subscriptions.peek()?;
        Some(subscriptions.any(|one| one.number > 0))
    }

    /// No frames come for a target at the moment: what only it kept current is held, and no longer said to be live.
    fn on_unfollowed(&mut self, target: &WatchTarget) {
        let mut slots = std::mem::take(&mut self.slots);
        let hold = |key: &ServiceKey, slot: &mut Slot| {
            if !self.subscriptions_of(key).any(Subscription::live) && slot.cached.on_interrupted() {
                slot.publish();
            }
        };
        match target {
            WatchTarget::Service(key) => {
                if let Some(slot) = slots.get_mut(key) {
                    hold(key, slot);
                }
            }
            WatchTarget::Group(_) => {
                let covered = slots.iter_mut().filter(|(key, _)| target.covers(key));
                covered.for_each(|(key, slot)| hold(key, slot));
            }
        }
        self.slots = slots;
    }

    /// The disk snapshot is to say what is held now.
    fn keep_on_disk(&mut self, key: &ServiceKey) {
        if !self.on_disk {
            return;
        }
        let view = self.slots.get(key).map(|slot| slot.cached.view());
        let dirt = match view.filter(|view| !view.exists) {
            Some(gone) => Dirt::Gone(Arc::clone(gone)),
            None => Dirt::Changed,
        };
        self.dirty.insert(key.clone(), dirt);
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// So that the ages on disk are true: all that is live is to be written.
    pub(super) fn keep_live_on_disk(&mut self) {
        let live = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.cached.view().source == Source::Live);
        let live: Vec<ServiceKey> = live.map(|(key, _)| key.clone()).collect();
        live.iter().for_each(|key| self.keep_on_disk(key));
    }

    /// What is to be written to disk, or taken from it.
    pub(super) fn take_dirty(&mut self) -> Vec<Arc<ServiceView>> {
        let dirty = std::mem::take(&mut self.dirty);
        let view = |(key, dirt)| match (self.slots.get(&key), dirt) {
            (Some(slot), _) => Some(Arc::clone(slot.cached.view())),
            (None, Dirt::Gone(view)) => Some(view),
            (None, Dirt::Changed) => None,
        };
        dirty.into_iter().filter_map(view).collect()
    }

    pub(super) fn slot(&mut self, key: &ServiceKey) -> &mut Slot {
        self.slots
            .entry(key.clone())
            .or_insert_with(|| Slot::new(Cached::unknown(key.clone())))
    }

    /// Whether a service is followed of which nothing was heard or read.
    pub(super) fn knows_nothing_of(&self, key: &ServiceKey) -> bool {
        let slot = self.slots.get(key);
        slot.is_some_and(|slot| slot.cached.view().source == Source::Nothing)
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
            .telling(target)
            .into_iter()
            .map(|view| WatchEvent::Snapshot { view, lagged: false })
            .collect();
        let lagged = events.len() > self.events_max;
        let events = if lagged { VecDeque::new() } else { events };
        wake.notify_one();
        let mut queue = Queue {
            target: target.clone(),
            events,
            lagged,
            standing: None,
            wake: Arc::clone(&wake),
        };
        if let Some(error) = &self.refused {
            let error = Arc::clone(error);
            queue.push(WatchEvent::Rejected { error }, self.events_max);
        }
        self.queues.insert(number, queue);
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
                views: self.telling(&target),
            });
        }
        queue.standing.take().or_else(|| queue.events.pop_front())
    }

    pub(super) fn views(&self, target: &WatchTarget) -> Vec<Arc<ServiceView>> {
        self.slots
            .iter()
            .filter(|(key, _)| target.covers(key))
            .map(|(_, slot)| Arc::clone(slot.cached.view()))
            .collect()
    }

    /// What a reader who begins here is told: a group has the services that exist; of one that was asked for by name
    /// it is also said that it does not.
    fn telling(&self, target: &WatchTarget) -> Vec<Arc<ServiceView>> {
        let by_name = matches!(target, WatchTarget::Service(_));
        let mut views = self.views(target);
        views.retain(|view| view.source != Source::Nothing && (view.exists || by_name));
        views
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

    /// A new stream begins, on which nothing was asked for yet.
    pub(super) fn on_connected(&mut self) {
        self.dropped.clear();
        self.next_number = 1;
        self.cp_mark = Mark::default();
        self.ap_mark = Mark::default();
        self.counted = Counted::Cluster;
        self.tail = None;
        self.heard_of_cp = LastWord::now();
        self.heard_of_ap = LastWord::now();
        self.cluster = Arc::from("");
        for subscription in self.subscriptions.values_mut() {
            subscription.number = 0;
            subscription.stop();
            subscription.ask_at = None;
        }
        self.forget_disputes();
        for slot in self.slots.values_mut() {
            slot.awaits_full = false;
        }
    }

    /// Another server may be asked. Behind the positions that were reached meanwhile it would say nothing of what was
    /// disputed.
    fn forget_disputes(&mut self) {
        for (key, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.disputed) {
            slot.disputed = false;
            let counted = slot.cached.view().counted();
            each_of(&mut self.subscriptions, key, |_, one| {
                one.part(counted).position = 0
            });
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
                    metadata_hash: slot.cached.view().metadata_hash(),
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
        let has_news = |mark: &Mark| mark.acknowledge > mark.acknowledged;
        // What is asked for anew has not been taken in, whatever came behind it. For what is not asked for at the moment this
        // stream does not answer.
        let is_owed = |(key, slot): (&ServiceKey, &Slot)| {
            (slot.awaits_full || slot.disputed) && self.is_asked_for(key) == Some(true)
        };
        if !(has_news(&self.cp_mark) || has_news(&self.ap_mark)) || self.slots.iter().any(is_owed) {
            return None;
        }
        let marks = [
            (v1::GroupMode::Cp, &mut self.cp_mark),
            (v1::GroupMode::Ap, &mut self.ap_mark),
        ];
        let (mode, mark) = marks.into_iter().find(|(_, mark)| has_news(mark))?;
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

    /// Since when nothing was said of groups of a mode of which something is live; the one that has been silent for longer.
    /// `None`: nothing is live.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let has_live = |mode: v1::GroupMode| {
            let views = self.slots.values().map(|slot| slot.cached.view());
            let mut live = views.filter(|view| view.source == Source::Live);
            live.any(|view| view.counted().mode() == mode)
        };
        let of_cp = has_live(v1::GroupMode::Cp).then_some(self.heard_of_cp.at);
        let of_ap = has_live(v1::GroupMode::Ap).then_some(self.heard_of_ap.at);
        of_cp.into_iter().chain(of_ap).min()
    }

    /// A server lets us have a stream.
    pub(super) fn on_opened(&mut self) {
        self.refused = None;
    }

    /// No server lets us have a stream, and asking again would not help. It is asked again all the same, in every round;
    /// queues are told once.
    pub(super) fn on_refused(&mut self, error: &Arc<Error>) {
        if self.subscriptions.is_empty() {
            return;
        }
        for slot in self.slots.values() {
            slot.published.refuse(Some(error));
        }
        let kind = std::mem::discriminant::<Error>;
        let told = self.refused.replace(Arc::clone(error));
        if told.is_none_or(|told| kind(&told) != kind(error)) {
            let error = Arc::clone(error);
            self.tell_target(None, WatchEvent::Rejected { error });
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

/// Those that want a service, as [`State::subscriptions_of`].
fn each_of(
    subscriptions: &mut BTreeMap<WatchTarget, Subscription>,
    key: &ServiceKey,
    mut look: impl FnMut(&WatchTarget, &mut Subscription),
) {
    let by_name = WatchTarget::Service(key.clone());
    if let Some(subscription) = subscriptions.get_mut(&by_name) {
        look(&by_name, subscription);
    }
    let groups = subscriptions.range_mut(WatchTarget::group("")..);
    for (target, subscription) in groups.filter(|(target, _)| target.covers(key)) {
        look(target, subscription);
    }
}

impl Queue {
    /// A full queue is replaced by the state at the time of reading, and the last word on the subscription.
    fn push(&mut self, event: WatchEvent, max: usize) {
        if !self.lagged && self.events.len() >= max {
            self.lagged = true;
            let said = self.events.drain(..).rfind(is_standing);
            self.standing = said.or(self.standing.take());
        }
        if !self.lagged {
            self.events.push_back(event);
        } else if is_standing(&event) {
            self.standing = Some(event);
        }
        self.wake.notify_one();
    }
}

/// Whether it says how the subscription stands.
fn is_standing(event: &WatchEvent) -> bool {
    match event {
        WatchEvent::Live { .. } | WatchEvent::Interrupted { .. } | WatchEvent::Rejected { .. } => true,
        WatchEvent::Snapshot { .. }
        | WatchEvent::Changed { .. }
        | WatchEvent::Guard { .. }
        | WatchEvent::Gone { .. }
        | WatchEvent::Lagged { .. } => false,
    }
}
