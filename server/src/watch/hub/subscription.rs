//! How a subscription begins: with what it missed, if that is retained, else with the current state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_core::directory::{RevisionChanges, Service, Sign};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_proto::v1;

use super::{Inner, State, WatchHub};
use crate::grpc::convert::metadata_hash;
use crate::watch::backlog::{Backlog, ChangeFrames, Item, Started};
use crate::watch::registration::Target;
use crate::watch::shown::Shown;
use crate::watch::stream::Shared;

/// The signs of services that a client holds. They may be many, and are handed around as they are.
pub type KnownSigns = Arc<BTreeMap<ServiceKey, Sign>>;

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
    pub known: KnownSigns,
    /// And of which services it holds metadata, by its hash: it is no part of the sign.
    pub known_metadata: Arc<BTreeMap<ServiceKey, u64>>,
    /// Of a prefix that is followed at both hubs; `None`: at one alone.
    pub division: Option<Division>,
}

/// How a prefix was divided between the hubs. If a group within it has moved by the time it begins, both would tell of that
/// group, or none.
#[derive(Clone, Debug)]
pub struct Division {
    /// Its AP groups.
    pub ap_groups: Arc<[GroupName]>,
    /// The revision of the replicated directory then.
    pub at: Revision,
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

/// Changes that a resuming subscription missed.
pub(super) struct Replay {
    items: Vec<Item>,
    bytes: usize,
    through: Revision,
    /// Groups of the target of which the hub does not tell. They are the same in all those changes: one among which a group
    /// changed is not replayed.
    hidden: BTreeSet<GroupName>,
}

impl Replay {
    /// Whether it would fit behind what waits for its stream.
    pub(super) fn has_room(&self, backlog: &Backlog) -> bool {
        backlog.has_room(self.items.len(), self.bytes)
    }
}

impl WatchHub {
    pub(crate) fn subscribe(
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

    /// The same without the AP groups that have been deleted since: of those no view has anything to show.
    pub(crate) fn without_deleted(&self, mut subscription: Subscription) -> Subscription {
        if let Some(division) = &mut subscription.division {
            let directory = self.inner.directory.read();
            let is_deleted = |group: &GroupName| directory.group(group).is_none();
            if division.ap_groups.iter().any(is_deleted) {
                let groups = division.ap_groups.iter().filter(|group| !is_deleted(group));
                division.ap_groups = groups.cloned().collect();
            }
        }
        subscription
    }

    pub(crate) fn unsubscribe(&self, stream: &Arc<Shared>, subscription: u64) {
        let mut state = self.inner.state.lock();
        let target = stream.backlog.lock().subscriptions.remove(&subscription);
        if let Some(target) = target {
            state.registrations.remove(&target, stream.id);
            self.inner.metrics.subscriptions.dec();
        }
    }

    /// Ends a subscription of which the other half ended because a group moved, and says so in this half's own order:
    /// whoever hears this half first must not take it to go on.
    pub(crate) fn end_moved(&self, stream: &Arc<Shared>, keep: v1::KeepCache) {
        let mut state = self.inner.state.lock();
        let mut backlog = stream.backlog.lock();
        let Some(target) = backlog.subscriptions.remove(&keep.subscription) else {
            return;
        };
        backlog.push(Item::KeepCache(keep));
        drop(backlog);
        state.registrations.remove(&target, stream.id);
        self.inner.metrics.subscriptions.dec();
    }

    /// Gives a lagging stream the current state instead of what it missed.
    pub(crate) fn catch_up(&self, stream: &Arc<Shared>) {
        self.inner.at_head(|state, shown| {
            let mut backlog = stream.backlog.lock();
            if backlog.lagging() {
                backlog.catch_up(shown, |key| state.registrations.covers(key, stream.id));
            }
        });
    }
}

impl Inner {
    /// What a subscription missed, as far as it is retained. `None`: it must start from state.
    pub(super) fn replay(&self, subscription: &Subscription) -> Option<Replay> {
        if subscription.after == Revision(0) {
            return None;
        }
        let (changes, through, hidden, absent) = {
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
            let shown = self.shown(&directory);
            let absent = held_but_absent(subscription, shown)?;
            // The hub itself may stand before the revision behind which this resumes, and know other groups.
            (changes, head, shown.hidden_of(&subscription.target), absent)
        };
        if !went_since(absent, &changes) {
            return None;
        }
        let mut replay = Replay {
            items: Vec::new(),
            bytes: 0,
            through,
            hidden,
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
        for (index, change) in changes.services.iter().enumerate() {
            if target.covers(&change.key) && !replay.hidden.contains(&change.key.group) {
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
        if !state.streams.contains_key(&stream.id) {
            // It has ended, and nobody would end what begins now.
            return Ok(());
        }
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
        if let Some(group) = elsewhere(&subscription, shown) {
            return Err(SubscribeError::Elsewhere { group });
        }
        if backlog.lagging() {
            backlog.catch_up(shown, |key| state.registrations.covers(key, stream.id));
        }
        let replay = replay
            .and_then(|replay| self.completed(replay, &subscription.target, shown))
            .filter(|replay| replay.has_room(&backlog));
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

/// The services that a client holds and that are not here. `None`: it holds what this history never had at that revision: a
/// service that has not changed since is another one here. Servers that were set back to a copy count revisions a second
/// time, and the changes behind one of them are no sequel to what the client saw.
fn held_but_absent(subscription: &Subscription, shown: Shown<'_>) -> Option<BTreeSet<ServiceKey>> {
    let after = subscription.after;
    let shown_here = |key: &ServiceKey| subscription.target.covers(key) && shown.follows(&key.group);
    let mut absent = BTreeSet::new();
    for (key, sign) in subscription.known.iter().filter(|(key, _)| shown_here(key)) {
        let Some(service) = shown.service(key) else {
            absent.insert(key.clone());
            continue;
        };
        let other_nodes = service.modified <= after && service.sign != *sign;
        if other_nodes || service.settings_modified <= after && holds_other_metadata(subscription, service) {
            return None;
        }
    }
    Some(absent)
}

/// Whether these changes tell that all of them went, as far as they went in this history.
fn went_since(mut absent: BTreeSet<ServiceKey>, changes: &[Arc<RevisionChanges>]) -> bool {
    let mut services = changes.iter().flat_map(|changes| &changes.services);
    while !absent.is_empty() {
        match services.next() {
            Some(change) => _ = absent.remove(&change.key),
            None => return false,
        }
    }
    true
}

fn holds_other_metadata(subscription: &Subscription, service: &Service) -> bool {
    let held = subscription.known_metadata.get(&service.key);
    held.copied().unwrap_or(0) != metadata_hash(service)
}

/// A group for which the subscription was sent to the wrong hub.
fn elsewhere(subscription: &Subscription, shown: Shown<'_>) -> Option<GroupName> {
    match &subscription.target {
        Target::Service(key) => (!shown.follows(&key.group)).then(|| key.group.clone()),
        Target::Prefix(prefix) => shown.moved_since(prefix, subscription.division.as_ref()?),
    }
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

/// What the client lacks of the current state: services whose sign or metadata differs from what it knows, and those it
/// knows that are gone. A view does not say so of a group that it does not have, which may have moved.
pub(super) fn current_state<'a>(
    subscription: &'a Subscription,
    shown: Shown<'a>,
) -> impl Iterator<Item = Item> + 'a {
    let revision = shown.revision();
    let known = &subscription.known;
    let gone = known
        .keys()
        .filter(move |key| subscription.target.covers(key) && shown.follows(&key.group))
        .filter(move |key| shown.service(key).is_none())
        .map(move |key| Item::State {
            key: key.clone(),
            service: None,
            revision,
            lagged: false,
        });
    let there = shown
        .services(&subscription.target)
        .filter(move |service| {
            known.get(&service.key) != Some(&service.sign) || holds_other_metadata(subscription, service)
        })
        .map(move |service| Item::State {
            key: service.key.clone(),
            service: Some(service.clone()),
            revision,
            lagged: false,
        });
    gone.chain(there)
}
