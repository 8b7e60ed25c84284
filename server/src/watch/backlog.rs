//! What waits for one stream: a bounded queue that turns into a list of services when it is full.
//!
//! Two states. *Keeping up*: frames wait in order. *Lagging*: no frame waits; only the names of the services
//! that changed, and what must be said besides. [`Backlog::catch_up`] leads back, at a moment when the
//! directory's state is known to be exactly what the stream has been offered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use rollcall_core::directory::Service;
use rollcall_core::guard::GuardStatus;
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_proto::v1;
use tokio::sync::Notify;

use super::registration::{Target, outermost};
use super::shown::Shown;

/// Most services named while lagging; beyond, every subscription starts from state again.
const OWED_MAX: usize = 4_096;
/// While more services than this wait to be said or listed, nothing more is asked for by the stream's client: the least that
/// is kept of one is some hundred bytes.
const LISTED_MAX: usize = 16_384;
/// So many nodes of a service whose state waits count for a service: a state that has been superseded since is kept by nobody
/// else, and its index of nodes takes some forty bytes for each.
const NODES_A_SERVICE: usize = 32;
/// Places that an empty queue keeps. What a stream once had to be told is no measure of what it will be.
const SPARE_MAX: usize = 16;

/// What may wait for one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// Changes of one service, encoded: one, or those of several revisions in a row that changed nothing else. All who follow
/// the service share them.
#[derive(Debug)]
pub(crate) struct ChangeFrames {
    pub(crate) key: ServiceKey,
    pub(crate) frames: Vec<Bytes>,
    /// Of all frames.
    bytes: usize,
}

impl ChangeFrames {
    pub(crate) fn new(key: ServiceKey, frames: Vec<Bytes>) -> Self {
        let bytes = frames.iter().map(Bytes::len).sum();
        Self { key, frames, bytes }
    }
}

/// One thing to be said, in its place.
#[derive(Debug)]
pub(crate) enum Item {
    /// Changes; the last of them is of this revision.
    Change {
        revision: Revision,
        change: Arc<ChangeFrames>,
    },
    /// A service as of a revision; `None`: it does not exist. Encoded when its turn comes.
    State {
        key: ServiceKey,
        service: Option<Arc<Service>>,
        revision: Revision,
        lagged: bool,
    },
    /// A subscription is live.
    Started(Box<Started>),
    /// A subscription was refused.
    Rejected(Box<v1::Rejected>),
    /// A subscription has to wait for its turn.
    KeepCache(v1::KeepCache),
    /// Everything that concerns the stream up to here stands before this.
    Bookmark(Revision),
}

#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) subscription: u64,
    pub(crate) kind: v1::StartKind,
    pub(crate) revision: Revision,
    pub(crate) listed: Arc<Listed>,
    /// The other half starts at the other hub.
    pub(crate) half: bool,
    /// The revision of the replicated directory by which it was sent here.
    pub(crate) directory: Revision,
}

/// What a subscription's target holds. Those that start together with one target share it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) services: Vec<ServiceKey>,
    /// What their removal guards say, of those that have something to say.
    pub(crate) guards: Vec<(ServiceKey, GuardStatus)>,
}

impl Listed {
    fn of(shown: Shown<'_>, target: &Target) -> Arc<Self> {
        let guard = |service: &Arc<Service>| Some((service.key.clone(), service.guard_said()?));
        let key = |service: &Arc<Service>| service.key.clone();
        Arc::new(Self {
            services: shown.services(target).map(key).collect(),
            guards: shown.services(target).filter_map(guard).collect(),
        })
    }
}

impl Started {
    /// Starts at the directory's revision.
    pub(crate) fn at(shown: Shown<'_>, subscription: u64, kind: v1::StartKind, target: &Target) -> Self {
        Self::with(Listed::of(shown, target), shown, subscription, kind, target)
    }

    fn with(
        listed: Arc<Listed>,
        shown: Shown<'_>,
        subscription: u64,
        kind: v1::StartKind,
        target: &Target,
    ) -> Self {
        Self {
            subscription,
            kind,
            revision: shown.revision(),
            listed,
            half: matches!(target, Target::Prefix(_)),
            directory: Revision(0),
        }
    }
}

/// Place of a change in history, so that a stream which follows a service in two ways gets it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) revision: Revision,
    pub(crate) index: usize,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It waits, as a frame or as a name.
    Waits,
    /// It waits as a name, with everything that waited before: the backlog was full.
    Overflowed,
    /// The stream has it already.
    Repeated,
}

impl Item {
    fn weight(&self) -> Weight {
        match self {
            Self::Change { change, .. } => Weight {
                frames: change.frames.len(),
                bytes: change.bytes,
                ..Weight::default()
            },
            Self::Bookmark(_) => Weight {
                frames: 1,
                ..Weight::default()
            },
            Self::State { service, .. } => {
                let nodes = service.as_ref().map_or(0, |service| service.nodes.len());
                Weight {
                    listed: 1 + nodes / NODES_A_SERVICE,
                    ..Weight::default()
                }
            }
            Self::Started(started) => Weight {
                controls: 1,
                listed: started.listed.services.len(),
                ..Weight::default()
            },
            Self::Rejected(_) | Self::KeepCache(_) => Weight {
                controls: 1,
                ..Weight::default()
            },
        }
    }
}

/// What something that waits counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    frames: usize,
    /// Of frames that are encoded.
    bytes: usize,
    /// Answers to subscriptions.
    controls: usize,
    /// Services whose state is to be said, more for large ones; and names in lists.
    listed: usize,
}

impl std::ops::AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.controls += other.controls;
        self.listed += other.listed;
    }
}

impl std::ops::SubAssign for Weight {
    fn sub_assign(&mut self, other: Self) {
        self.frames -= other.frames;
        self.bytes -= other.bytes;
        self.controls -= other.controls;
        self.listed -= other.listed;
    }
}

/// What waits in both backlogs of one client's stream: they share its bounds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    frames: AtomicUsize,
    bytes: AtomicUsize,
    controls: AtomicUsize,
    listed: AtomicUsize,
    /// Told when no more is listed than may be when more is asked for.
    read: Notify,
}

impl Tally {
    fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until its reader has taken most of the lists that were asked for. One task may wait.
    pub(crate) async fn has_been_read(&self) {
        while self.listed.load(Ordering::Acquire) > LISTED_MAX {
            self.read.notified().await;
        }
    }

    fn add(&self, weight: Weight) {
        for (count, more) in self.each(weight) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn subtract(&self, weight: Weight) {
        for (count, less) in self.each(weight) {
            count.fetch_sub(less, Ordering::AcqRel);
        }
        if weight.listed > 0 && self.listed.load(Ordering::Acquire) <= LISTED_MAX {
            self.read.notify_one();
        }
    }

    /// Those that change.
    fn each(&self, weight: Weight) -> impl Iterator<Item = (&AtomicUsize, usize)> {
        let all = [
            (&self.frames, weight.frames),
            (&self.bytes, weight.bytes),
            (&self.controls, weight.controls),
            (&self.listed, weight.listed),
        ];
        all.into_iter().filter(|(_, by)| *by > 0)
    }
}

/// Changes that leave together, and how far they bring their reader.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) changes: Vec<Arc<ChangeFrames>>,
    pub(crate) bookmark: Option<Revision>,
}

#[derive(Debug)]
pub(crate) struct Backlog {
    bounds: Bounds,
    tally: Arc<Tally>,
    pub(crate) subscriptions: BTreeMap<u64, Target>,
    queue: VecDeque<Item>,
    /// Of all that is in the queue, or withheld.
    weight: Weight,
    owed: VecDeque<ServiceKey>,
    owed_set: BTreeSet<ServiceKey>,
    /// Too many services are owed to name them.
    owes_all: bool,
    /// Waits for the next catch-up: said behind the states.
    withheld: Vec<Item>,
    /// The newest revision of the replicated directory by which a subscription was sent here.
    directory: Revision,
    offered: Place,
    /// The last change that concerned this stream.
    pub(crate) changed: Revision,
    pub(crate) acked: Revision,
    marked: Revision,
    /// Its reader is on a list of those who are told, or was, and nobody has looked for it since.
    pub(crate) woken: bool,
    /// Its reader found nothing when it last looked, and holds nothing back. When its line rests, too, everything has left.
    pub(crate) parked: bool,
}

impl Backlog {
    pub(crate) fn new(bounds: Bounds, tally: Arc<Tally>) -> Self {
        Self {
            bounds,
            tally,
            subscriptions: BTreeMap::new(),
            queue: VecDeque::new(),
            weight: Weight::default(),
            owed: VecDeque::new(),
            owed_set: BTreeSet::new(),
            owes_all: false,
            withheld: Vec::new(),
            directory: Revision(0),
            offered: Place::default(),
            changed: Revision(0),
            acked: Revision(0),
            marked: Revision(0),
            woken: false,
            parked: false,
        }
    }

    /// An empty one that shares the bounds of this one.
    pub(crate) fn beside(&self) -> Self {
        Self::new(self.bounds, self.tally.clone())
    }

    pub(crate) fn lagging(&self) -> bool {
        self.owes_all || !self.owed.is_empty()
    }

    /// Answers to subscriptions that wait, in both backlogs; a client that asks without reading makes this grow.
    pub(crate) fn controls(&self) -> usize {
        self.tally.controls.load(Ordering::Relaxed)
    }

    /// What waits in this backlog and the one beside it.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    fn add(&mut self, weight: Weight) {
        self.weight += weight;
        self.tally.add(weight);
    }

    fn subtract(&mut self, weight: Weight) {
        self.weight -= weight;
        self.tally.subtract(weight);
    }

    /// Whether so much more would fit.
    pub(crate) fn has_room(&self, frames: usize, bytes: usize) -> bool {
        self.tally.frames() + frames <= self.bounds.frames / 2
            && self.tally.bytes() + bytes <= self.bounds.bytes / 2
    }

    /// Takes in changes, whose last has this place. Never refuses, never waits.
    pub(crate) fn offer(&mut self, place: Place, change: &Arc<ChangeFrames>) -> Offered {
        if place <= self.offered {
            return Offered::Repeated;
        }
        self.offered = place;
        self.changed = place.revision;
        if self.lagging() {
            self.owe(change.key.clone());
            return Offered::Waits;
        }
        let full = self.tally.frames() + change.frames.len() > self.bounds.frames;
        if full || self.tally.bytes() + change.bytes > self.bounds.bytes {
            self.forget_frames();
            self.owe(change.key.clone());
            return Offered::Overflowed;
        }
        self.push(Item::Change {
            revision: place.revision,
            change: change.clone(),
        });
        Offered::Waits
    }

    /// Says something in its place behind all that waits.
    pub(crate) fn push(&mut self, item: Item) {
        if let Item::Started(started) = &item {
            self.directory = self.directory.max(started.directory);
        }
        self.add(item.weight());
        self.queue.push_back(item);
    }

    /// A bookmark at the hub's position, if it says anything new and the stream keeps up.
    pub(crate) fn bookmark(&mut self, revision: Revision) -> bool {
        revision > self.marked && self.mark(revision)
    }

    /// The last bookmark once more, if nothing has happened since and nothing waits to be said.
    pub(crate) fn bookmark_again(&mut self, revision: Revision) -> bool {
        revision == self.marked && self.queue.is_empty() && self.mark(revision)
    }

    fn mark(&mut self, revision: Revision) -> bool {
        if self.lagging() || self.subscriptions.is_empty() || self.tally.frames() >= self.bounds.frames {
            return false;
        }
        self.marked = revision;
        if let Some(Item::Bookmark(last)) = self.queue.back_mut() {
            *last = revision;
        } else {
            self.push(Item::Bookmark(revision));
        }
        true
    }

    /// Everything must be said anew, from state.
    pub(crate) fn owe_all(&mut self) {
        self.forget_frames();
        self.owed.clear();
        self.owed_set.clear();
        self.owes_all = !self.subscriptions.is_empty() || !self.withheld.is_empty();
    }

    /// Replaces what is owed by the current state. The directory must stand at the revision up to which this
    /// stream has been offered all changes. `followed`: what a subscription of the stream still covers. A group that
    /// moved to the other hub is gone from a view, and of its services nothing is to be said here.
    pub(crate) fn catch_up(&mut self, shown: Shown<'_>, followed: impl Fn(&ServiceKey) -> bool) {
        let revision = shown.revision();
        let withheld = std::mem::take(&mut self.withheld);
        withheld.iter().for_each(|item| self.subtract(item.weight()));
        if std::mem::take(&mut self.owes_all) {
            self.start_over(shown);
            let rejected = withheld
                .into_iter()
                .filter(|item| matches!(item, Item::Rejected(_) | Item::KeepCache(_)));
            rejected.for_each(|item| self.push(item));
        } else {
            self.owed_set.clear();
            let owed = std::mem::take(&mut self.owed);
            let to_say = |key: &ServiceKey| followed(key) && !shown.hides(&key.group);
            for key in owed.into_iter().filter(to_say) {
                let service = shown.service(&key).cloned();
                self.push(Item::State {
                    key,
                    service,
                    revision,
                    lagged: true,
                });
            }
            for item in withheld {
                match item {
                    Item::Started(started) => self.start_later(&started, shown),
                    other => self.push(other),
                }
            }
        }
        self.marked = revision;
        self.push(Item::Bookmark(revision));
    }

    /// A subscription that was withheld starts at a later revision than was meant, and so with other services.
    fn start_later(&mut self, started: &Started, shown: Shown<'_>) {
        let Some(target) = self.subscriptions.get(&started.subscription) else {
            return;
        };
        let later = Started::at(shown, started.subscription, started.kind, target);
        self.push(Item::Started(Box::new(Started {
            directory: started.directory,
            ..later
        })));
    }

    /// Says the state of everything subscribed to, and starts each subscription again: its list of services
    /// tells the client what went.
    fn start_over(&mut self, shown: Shown<'_>) {
        let revision = shown.revision();
        let mut said = BTreeSet::new();
        let subscriptions = std::mem::take(&mut self.subscriptions);
        for target in outermost(subscriptions.values()) {
            for service in shown.services(target) {
                if said.insert(&service.key) {
                    let (key, service) = (service.key.clone(), Some(service.clone()));
                    self.push(Item::State {
                        key,
                        service,
                        revision,
                        lagged: true,
                    });
                }
            }
        }
        let mut lists: BTreeMap<&str, Arc<Listed>> = BTreeMap::new();
        for (subscription, target) in &subscriptions {
            let listed = match target {
                Target::Service(_) => Listed::of(shown, target),
                Target::Prefix(prefix) => {
                    let list = lists.entry(prefix).or_insert_with(|| Listed::of(shown, target));
                    list.clone()
                }
            };
            let kind = v1::StartKind::Current;
            let started = Started::with(listed, shown, *subscription, kind, target);
            self.push(Item::Started(Box::new(Started {
                directory: self.directory,
                ..started
            })));
        }
        self.subscriptions = subscriptions;
    }

    /// Takes the next thing to say; of changes a whole revision, and none of a revision that is not yet offered
    /// whole. Whether there was anything.
    pub(crate) fn take_next(&mut self, settled: Revision, items: &mut Vec<Item>) -> bool {
        let Some(first) = self.queue.front() else {
            return false;
        };
        let Item::Change { revision, .. } = *first else {
            items.extend(self.pop());
            return true;
        };
        if revision > settled {
            return false;
        }
        while matches!(self.queue.front(), Some(Item::Change { revision: next, .. }) if *next == revision) {
            items.extend(self.pop());
        }
        true
    }

    /// A change that stands first and is not offered whole yet, or was not when this was last looked at. Whoever is told of
    /// it may have been told before: who finds it waits for its revision.
    pub(crate) fn unsettled(&self) -> Option<Revision> {
        match self.queue.front() {
            Some(Item::Change { revision, .. }) => Some(*revision),
            Some(_) | None => None,
        }
    }

    /// Takes what a parked reader would say next, if that is changes: whole revisions that are offered whole, of so many
    /// bytes at most, and a bookmark behind them. `None`: the reader itself has to look. Whether nothing is left comes with it.
    pub(crate) fn take_run(&mut self, settled: Revision, bytes_max: usize) -> Option<(Run, bool)> {
        if !self.parked || self.lagging() {
            return None;
        }
        // The last ones of a revision are known by what follows them. So far: how many items, frames and bytes.
        let (mut whole, mut looked) = ([0; 3], [0; 3]);
        let mut last = None;
        for item in &self.queue {
            let Item::Change { revision, change } = item else {
                break;
            };
            if last.is_some_and(|last| last != *revision) {
                whole = looked;
            }
            let [items, frames, bytes] = looked;
            if *revision > settled || bytes + change.bytes > bytes_max {
                last = None;
                break;
            }
            last = Some(*revision);
            looked = [items + 1, frames + change.frames.len(), bytes + change.bytes];
        }
        if last.is_some() {
            whole = looked;
        }
        let [items, frames, bytes] = whole;
        let changes = self.queue.drain(..items).filter_map(|item| match item {
            Item::Change { change, .. } => Some(change),
            _ => None,
        });
        let mut run = Run {
            changes: changes.collect(),
            bookmark: None,
        };
        self.subtract(Weight {
            frames,
            bytes,
            ..Weight::default()
        });
        if let Some(Item::Bookmark(revision)) = self.queue.front() {
            run.bookmark = Some(*revision);
            _ = self.pop();
        }
        if run.changes.is_empty() && run.bookmark.is_none() {
            return None;
        }
        self.woken = false;
        self.tidy();
        Some((run, self.queue.is_empty()))
    }

    /// Gives back the state that was taken last: it goes out next.
    pub(crate) fn put_back(&mut self, item: Item) {
        match item {
            // The queue overflowed in between, and what follows is owed.
            Item::State { key, .. } if self.lagging() => self.owe(key),
            item => {
                self.add(item.weight());
                self.queue.push_front(item);
            }
        }
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.queue.pop_front()?;
        self.tidy();
        self.subtract(item.weight());
        Some(item)
    }

    fn tidy(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > SPARE_MAX {
            self.queue = VecDeque::new();
        }
    }

    /// The queue becomes names; what must be said besides is kept.
    fn forget_frames(&mut self) {
        let mut forgotten = Weight::default();
        for item in std::mem::take(&mut self.queue) {
            let weight = item.weight();
            match item {
                Item::Started(_) | Item::Rejected(_) | Item::KeepCache(_) => {
                    self.withheld.push(item);
                    continue;
                }
                Item::Change { change, .. } => self.owe(change.key.clone()),
                Item::State { key, .. } => self.owe(key),
                Item::Bookmark(_) => {}
            }
            forgotten += weight;
        }
        self.subtract(forgotten);
    }

    fn owe(&mut self, key: ServiceKey) {
        if self.owes_all || !self.owed_set.insert(key.clone()) {
            return;
        }
        self.owed.push_back(key);
        if self.owed.len() > OWED_MAX {
            self.owed.clear();
            self.owed_set.clear();
            self.owes_all = true;
        }
    }

    /// Places of its queue, used or not.
    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.queue.capacity()
    }

    #[cfg(test)]
    pub(crate) fn items(&self) -> usize {
        self.queue.len()
    }

    /// Lists of services among what waits, those that are shared counted once.
    #[cfg(test)]
    pub(crate) fn lists(&self) -> usize {
        let lists = self.queue.iter().filter_map(|item| match item {
            Item::Started(started) => Some(Arc::as_ptr(&started.listed)),
            _ => None,
        });
        lists.collect::<BTreeSet<_>>().len()
    }

    /// By which revisions those that start were sent here.
    #[cfg(test)]
    pub(crate) fn sent_by(&self) -> Vec<Revision> {
        let started = self.queue.iter().filter_map(|item| match item {
            Item::Started(started) => Some(started.directory),
            _ => None,
        });
        started.collect()
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.weight.frames, self.weight.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 10_000;

    fn change(byte: u8) -> Arc<ChangeFrames> {
        let key = ServiceKey {
            group: "a".parse().unwrap(),
            service: format!("s{byte}").parse().unwrap(),
        };
        Arc::new(ChangeFrames::new(key, vec![Bytes::from(vec![byte; 100])]))
    }

    /// Of a reader that found nothing when it last looked. Changes are numbered; they come in revisions of so many.
    fn parked(revisions: &[u8]) -> Backlog {
        let bounds = Bounds {
            frames: 100,
            bytes: ALL,
        };
        let mut backlog = Backlog::new(bounds, Arc::default());
        backlog.parked = true;
        let mut number = 0;
        for (revision, changes) in (1..).zip(revisions) {
            for index in 1..=usize::from(*changes) {
                number += 1;
                let place = Place {
                    revision: Revision(revision),
                    index,
                };
                assert_eq!(backlog.offer(place, &change(number)), Offered::Waits);
            }
        }
        backlog
    }

    /// The numbers of the changes in a run, its bookmark, and whether nothing is left.
    fn run(backlog: &mut Backlog, settled: u64, bytes_max: usize) -> Option<(Vec<u8>, Option<u64>, bool)> {
        let (run, last) = backlog.take_run(Revision(settled), bytes_max)?;
        let changes = run.changes.iter().map(|change| change.frames[0][0]).collect();
        Some((changes, run.bookmark.map(|revision| revision.0), last))
    }

    #[test]
    fn a_run_ends_where_what_is_offered_whole_ends() {
        let mut backlog = parked(&[1, 2, 2]);
        assert_eq!(run(&mut backlog, 0, ALL), None);
        assert_eq!(run(&mut backlog, 2, ALL), Some((vec![1, 2, 3], None, false)));
        assert_eq!(run(&mut backlog, 2, ALL), None);
        assert_eq!(run(&mut backlog, 3, ALL), Some((vec![4, 5], None, true)));
        assert_eq!(backlog.waiting(), (0, 0));
    }

    #[test]
    fn a_run_holds_whole_revisions_that_fit_into_a_message() {
        let mut backlog = parked(&[1, 2, 2]);
        assert_eq!(run(&mut backlog, 3, 299), Some((vec![1], None, false)));
        assert_eq!(run(&mut backlog, 3, 199), None, "the reader itself sees to that");
        assert_eq!(run(&mut backlog, 3, 200), Some((vec![2, 3], None, false)));
        assert_eq!(run(&mut backlog, 3, 200), Some((vec![4, 5], None, true)));
    }

    #[test]
    fn a_run_ends_with_a_bookmark_and_before_what_only_the_reader_can_say() {
        let mut backlog = parked(&[1, 1]);
        backlog.push(Item::Bookmark(Revision(2)));
        backlog.push(Item::KeepCache(v1::KeepCache::default()));
        assert_eq!(run(&mut backlog, 2, ALL), Some((vec![1, 2], Some(2), false)));
        assert_eq!(run(&mut backlog, 2, ALL), None);
    }

    #[test]
    fn a_reader_that_is_at_work_is_left_alone() {
        let mut backlog = parked(&[1]);
        backlog.parked = false;
        assert_eq!(run(&mut backlog, 1, ALL), None);
        backlog.parked = true;
        assert_eq!(run(&mut backlog, 1, ALL), Some((vec![1], None, true)));
    }
}
