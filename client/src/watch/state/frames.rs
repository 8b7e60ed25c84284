//! What the server says, taken in frame by frame.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::time::Instant;

use super::subscription::{Part, Subscription};
use super::{Slot, State, Tail, Todo, each_of};
use crate::backoff::jittered;
use crate::error::Error;
use crate::key::ServiceKey;
use crate::view::{Confirmed, Counted, ServiceView, Source, said};
use crate::watch::KEEP_CACHE_MAX;
use crate::watch::cache::Merged;
use crate::watch::event::{RemovedNode, WatchEvent};
use crate::watch::target::WatchTarget;

/// A service that misses changes again so soon after it was asked for anew is asked for elsewhere.
pub(super) const RESYNC_SPACING: Duration = Duration::from_secs(1);
/// A server that so often in a row is not ready for a subscription is left for another.
const REFUSALS_MAX: u32 = 3;
/// A refusal that may be lifted only by an operator is asked about again so late: often enough that nobody need start
/// the client anew, and seldom enough to cost a server nothing.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(30);

impl State {
    /// A message begins: all its frames are of this cluster, if it is named, and count like this.
    pub(crate) fn on_message(&mut self, cluster: &str, counted: Counted) {
        self.on_cluster(cluster);
        self.counted = counted;
    }

    /// A message that names its cluster may be a refusal: then the next question must be one that this cluster can
    /// answer, and not name a revision of the one before.
    fn on_cluster(&mut self, cluster: &str) {
        if cluster.is_empty() {
            return;
        }
        self.cluster = Arc::from(cluster);
        if *self.home != *cluster {
            self.home = Arc::clone(&self.cluster);
            self.subscriptions
                .values_mut()
                .for_each(Subscription::on_other_cluster);
        }
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

    pub(crate) fn on_frame(&mut self, frame: v1::WatchFrame) -> Todo {
        use v1::watch_frame::Frame;
        self.touch(frame.frame.as_ref());
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

    /// What is said of groups of this mode may be a sign that all that is held of them is current.
    fn touch(&mut self, frame: Option<&v1::watch_frame::Frame>) {
        use v1::watch_frame::Frame;
        let is_first = |started: fn(&Subscription) -> bool| !self.subscriptions.values().any(started);
        let of_cluster = matches!(self.counted, Counted::Unknown | Counted::Cluster);
        let (revision, is_current) = match frame {
            Some(Frame::Bookmark(bookmark)) => (bookmark.revision, true),
            Some(Frame::Snapshot(snapshot)) => (snapshot.revision, false),
            Some(Frame::Delta(delta)) => (delta.revision, false),
            Some(Frame::Gone(gone)) => (gone.revision, false),
            Some(Frame::Started(started)) => match of_cluster {
                true => (started.revision, is_first(|one| one.cp.started)),
                false => (started.revision, is_first(|one| one.ap.started)),
            },
            Some(Frame::Rejected(_) | Frame::KeepCache(_) | Frame::MoveOn(_)) | None => return,
        };
        match of_cluster {
            true => self.heard_of_cp.touch(revision, is_current),
            false => self.heard_of_ap.touch(revision, is_current),
        }
    }

    /// What is counted like this is as young as the last word on what is.
    fn confirmed(&self, counted: Counted) -> Confirmed {
        let last = match counted {
            Counted::Unknown | Counted::Cluster => &self.heard_of_cp,
            Counted::Server { .. } => &self.heard_of_ap,
        };
        Confirmed::Heard(Arc::clone(&last.heard))
    }

    fn on_started(&mut self, started: v1::Started) -> Todo {
        let header = started.header.unwrap_or_default();
        self.on_cluster(&header.cluster);
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
        subscription.refusals = 0;
        let (cp, ap) = (subscription.cp, subscription.ap);
        let awaits_other = started.half && !(cp.started && ap.started);
        let first = subscription.unlisted.take().filter(|_| !awaits_other);
        let existing: BTreeSet<ServiceKey> = started.services.into_iter().map(ServiceKey::from).collect();
        let guard = |guard: v1::ServiceGuard| (guard.key.unwrap_or_default().into(), guard.guard);
        let guards: BTreeMap<ServiceKey, _> = started.guards.into_iter().map(guard).collect();
        if let WatchTarget::Service(key) = &target {
            self.slot(key).published.refuse(None);
        }
        // A service that exists and was not sent is held already, by its equal sign.
        if let WatchTarget::Group(_) = target {
            for key in &existing {
                self.slot(key);
            }
        }
        let cluster = Arc::clone(&self.cluster);
        let confirmed = self.confirmed(counted);
        let [of_cp, of_ap] =
            [Counted::Cluster, Counted::Server { epoch: 0 }].map(|counted| self.confirmed(counted));
        let (mut missing, mut disputed) = (false, false);
        let mut unlisted = BTreeSet::new();
        let (mut gone, mut guarded) = (Vec::new(), Vec::new());
        for (key, slot) in self.slots.iter_mut().filter(|(key, _)| target.covers(key)) {
            let listed = existing.contains(key);
            if slot.cached.on_other_cluster(&cluster) {
                // The frames before this one were judged as if they came from the old cluster. A list that was asked
                // for since then and did not replace what is held is empty: the next change brings another.
                let asked = slot.awaits_full;
                missing |= listed && !asked;
                slot.awaits_full = if listed { !asked } else { asked && awaits_other };
                slot.disputed = false;
                continue;
            }
            let held = slot.cached.view();
            // What is counted elsewhere is not older or newer than this: equal signs are equal lists.
            slot.disputed &= !(listed && held.counted().differs(counted));
            if slot.disputed {
                disputed = true;
                continue;
            }
            // In one history a service that went comes back with a change.
            let is_back = resumed
                && !held.exists
                && !held.counted().differs(counted)
                && started.revision >= held.revision;
            if listed && (held.source == Source::Nothing || is_back) {
                // It should have come just before.
                missing = true;
                slot.awaits_full = true;
            }
            let held = slot.cached.view().counted();
            let own = held.mode() == counted.mode();
            let resumed_own = resumed && (own || held == Counted::Unknown);
            if slot.awaits_full && (listed || resumed_own) {
                // Where only changes are sent, the list that is waited for does not come.
                missing |= resumed_own;
                continue;
            }
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
                let confirmed = match counted {
                    Counted::Unknown | Counted::Cluster => &of_cp,
                    Counted::Server { .. } => &of_ap,
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
                    slot.dispute();
                    disputed |= slot.disputed;
                    continue;
                }
            }
            // What is gone has no list to wait for.
            slot.awaits_full = false;
            slot.publish();
        }
        for view in gone {
            self.keep_on_disk(&view.key);
            self.tell(&view.key.clone(), WatchEvent::Gone { view });
        }
        for (view, before) in guarded {
            self.keep_on_disk(&view.key);
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
        if disputed {
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
        let cluster = Arc::clone(&self.cluster);
        let counted = self.counted;
        let confirmed = self.confirmed(counted);
        let origin = (Arc::clone(&cluster), counted);
        let view = ServiceView::from_wire(view, snapshot.revision, origin, confirmed);
        let Some(asked_for) = self.is_asked_for(&view.key) else {
            return Todo::default();
        };
        self.on_word_of(&view.key);
        let (key, revision) = (view.key.clone(), snapshot.revision);
        let slot = self.slot(&key);
        let mut view = view;
        if view.cluster.is_empty() && !slot.awaits_full {
            // Before the stream has named its cluster, it is taken for the one that is held.
            view.cluster = Arc::clone(&slot.cached.view().cluster);
        }
        let counted_otherwise = slot.cached.view().counted().differs(counted);
        let merged = slot.cached.take_full(view);
        // What came as a list that is counted otherwise is not older or newer. Of others the next bookmark asks.
        slot.disputed &= !(counted_otherwise && matches!(merged, Merged::Changed | Merged::Confirmed));
        slot.hold_unless(asked_for && !slot.disputed);
        match merged {
            Merged::Changed | Merged::Confirmed => {
                slot.awaits_full = false;
                slot.publish();
                let view = Arc::clone(slot.cached.view());
                self.keep_on_disk(&key);
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
                if !slot.cached.on_other_cluster(&cluster) {
                    slot.dispute();
                }
            }
        }
        // No resume behind it: other services' lists of the same catch-up may still be on their way.
        Todo::default()
    }

    fn on_delta(&mut self, delta: v1::ServiceDelta) -> Todo {
        let key: ServiceKey = delta.key.clone().unwrap_or_default().into();
        let Some(asked_for) = self.is_asked_for(&key) else {
            return Todo::default();
        };
        let (revision, whole) = (delta.revision, delta.parts_after == 0);
        let (cluster, counted, confirmed) = (
            Arc::clone(&self.cluster),
            self.counted,
            self.confirmed(self.counted),
        );
        self.on_word_of(&key);
        let slot = self.slot(&key);
        if slot.awaits_full || slot.disputed {
            return Todo::default();
        }
        let put: BTreeSet<String> = delta.put.iter().map(|node| node.id.clone()).collect();
        let removed: Vec<_> = delta.removed.iter().map(RemovedNode::from).collect();
        let lists = delta.created || delta.settings.is_some() || !put.is_empty() || !removed.is_empty();
        let before = slot.cached.view().guard;
        let merged = slot.cached.take_delta(delta, (&cluster, counted), confirmed);
        slot.hold_unless(asked_for);
        match merged {
            Merged::Changed => {
                slot.publish();
                let view = Arc::clone(slot.cached.view());
                self.keep_on_disk(&key);
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
        let Some(asked_for) = self.is_asked_for(&key) else {
            return Todo::default();
        };
        let (cluster, counted, confirmed) = (
            Arc::clone(&self.cluster),
            self.counted,
            self.confirmed(self.counted),
        );
        self.on_word_of(&key);
        let slot = self.slot(&key);
        let merged = slot
            .cached
            .take_gone(gone.revision, (&cluster, counted), confirmed);
        slot.hold_unless(asked_for && !slot.disputed);
        if matches!(merged, Merged::Changed | Merged::Confirmed) {
            slot.awaits_full = false;
        }
        if merged == Merged::Changed {
            slot.publish();
            let view = Arc::clone(slot.cached.view());
            self.keep_on_disk(&key);
            self.tell(&key, WatchEvent::Gone { view });
        }
        Todo::default()
    }

    fn on_bookmark(&mut self, revision: u64) -> Todo {
        let counted = self.counted;
        for subscription in self.subscriptions.values_mut() {
            let part = subscription.part(counted);
            if part.started {
                part.reach(counted, revision);
            }
        }
        self.settle_disputes(counted, revision);
        self.forget_gone(counted, revision);
        self.acknowledge(revision);
        Todo::default()
    }

    /// The server has come as far as anybody who confirmed what is disputed: its next list holds, be it another one. All are
    /// asked for together: a prefix is not asked for once for each of its services.
    fn settle_disputes(&mut self, counted: Counted, revision: u64) {
        let is_own = |slot: &Slot| slot.disputed && !slot.cached.view().counted().differs(counted);
        let disputed = self.slots.values().filter(|slot| is_own(slot));
        let Some(newest) = disputed.map(|slot| slot.cached.view().as_of).max() else {
            return;
        };
        if revision < newest {
            return;
        }
        let mut asked = BTreeSet::new();
        for (key, slot) in self.slots.iter_mut().filter(|(_, slot)| is_own(slot)) {
            each_of(&mut self.subscriptions, key, |target, subscription| {
                if subscription.part(counted).started {
                    (slot.disputed, slot.awaits_full) = (false, true);
                    asked.insert(target.clone());
                }
            });
        }
        for target in asked {
            self.ask_anew_for_target(&target);
        }
    }

    /// No resume comes to speak again of services that were gone by then: those that nobody asked for by name leave.
    fn forget_gone(&mut self, counted: Counted, revision: u64) {
        let is_past = |view: &ServiceView| {
            let own =
                view.mode == counted.mode() && (view.epoch != counted.epoch() || view.revision <= revision);
            !view.exists && view.source == Source::Live && own
        };
        let past = self
            .slots
            .iter()
            .filter(|(_, slot)| !slot.awaits_full && is_past(slot.cached.view()));
        let past: Vec<ServiceKey> = past.map(|(key, _)| key.clone()).collect();
        for key in past {
            let by_name = self
                .subscriptions
                .contains_key(&WatchTarget::Service(key.clone()));
            let mut covering = self
                .subscriptions
                .iter_mut()
                .filter(|(target, _)| target.covers(&key));
            if !by_name && covering.all(|(_, one)| one.part(counted).started) {
                self.slots.remove(&key);
            }
        }
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
        let pause = if error.is_transient() {
            Some(Duration::from_secs(1))
        } else {
            // No name becomes one.
            let is_about_a_name = matches!(error, Error::InvalidName { .. } | Error::InvalidArgument { .. });
            (!is_about_a_name).then(|| jittered(REFUSED_PAUSE))
        };
        if let Some(pause) = pause {
            let asked = Duration::from_millis(wire.retry_after_ms.into());
            subscription.number = 0;
            subscription.ask_at = Some(Instant::now() + asked.max(pause));
        }
        subscription.stop();
        let unready = wire.code() == v1::ErrorCode::NotReady;
        subscription.refusals = if unready { subscription.refusals + 1 } else { 0 };
        let leave = (subscription.refusals >= REFUSALS_MAX).then_some("the server is not ready");
        if leave.is_some() {
            subscription.refusals = 0;
        }
        self.on_unfollowed(&target);
        let error = Arc::new(error);
        if let WatchTarget::Service(key) = &target
            && !error.is_transient()
        {
            self.slot(key).published.refuse(Some(&error));
        }
        self.tell_target(Some(&target), WatchEvent::Rejected { error });
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
    pub(crate) fn on_message_end(&mut self) {
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
        let mut unfollowed = Vec::new();
        for (target, subscription) in &mut self.subscriptions {
            if target.covers(key) && subscription.number > 0 {
                self.dropped.push(std::mem::take(&mut subscription.number));
                unfollowed.push(target.clone());
            }
        }
        unfollowed.iter().for_each(|target| self.on_unfollowed(target));
        Todo::default()
    }

    fn ask_anew_for_target(&mut self, target: &WatchTarget) -> Todo {
        if let Some(subscription) = self.subscriptions.get_mut(target) {
            subscription.forget();
            subscription.ask_at = Some(Instant::now() + RESYNC_SPACING);
            self.dropped.push(std::mem::take(&mut subscription.number));
        }
        self.on_unfollowed(target);
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
