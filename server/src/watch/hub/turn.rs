//! Whose turn it is: while the storm switch is on, whoever wants full lists waits for it.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_core::ids::GroupName;
use tokio::time::Instant;

use super::WatchHub;
use super::subscription::{Subscription, current_state};
use crate::storm::Turn;
use crate::watch::backlog::Item;
use crate::watch::registration::outermost;
use crate::watch::stream::Shared;

/// For this part of the time that changes wait for more, a stream that waited with them begins one subscription after the
/// other.
const ROW_PART: u32 = 8;

/// Subscriptions of a stream that begin in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// When the first of them was asked for. The others waited behind it.
    asked_at: Instant,
    ends_at: Instant,
}

impl WatchHub {
    /// Whether the storm switch lets a subscription that was asked for at a moment have the full lists with which it
    /// would begin at these hubs: if not, when it may ask again.
    pub(crate) fn must_wait(
        &self,
        stream: &Shared,
        parts: &[(&Self, &Subscription)],
        asked_at: Instant,
    ) -> Option<Duration> {
        let storm = &self.inner.storm;
        if !storm.engaged() {
            return None;
        }
        let groups = parts
            .iter()
            .flat_map(|(hub, subscription)| hub.lists(stream, subscription));
        let groups: BTreeSet<GroupName> = groups.collect();
        let cold = parts
            .iter()
            .all(|(_, subscription)| subscription.known.is_empty());
        storm.ask(&groups, &stream.consumer(), cold, asked_at)
    }

    /// The groups of the full lists with which a subscription would begin.
    fn lists(&self, stream: &Shared, subscription: &Subscription) -> BTreeSet<GroupName> {
        // Resumed from retained changes, it begins with those, if they are not too many.
        let resumed = self.inner.replay(subscription);
        if resumed.is_some_and(|replay| replay.has_room(&stream.backlog.lock())) {
            return BTreeSet::new();
        }
        let directory = self.inner.directory.read();
        let lists = current_state(subscription, self.inner.shown(&directory));
        lists.filter_map(|item| list_of(&item).cloned()).collect()
    }

    /// Whether a lagging stream has to wait for its turn to get the current state, and for how long.
    pub(crate) fn laggard_waits(&self, stream: &Shared) -> Option<Duration> {
        let storm = &self.inner.storm;
        if !storm.engaged() {
            return None;
        }
        let groups: BTreeSet<GroupName> = {
            let directory = self.inner.directory.read();
            let backlog = stream.backlog.lock();
            let targets = outermost(backlog.subscriptions.values());
            let shown = self.inner.shown(&directory);
            let services = targets.into_iter().flat_map(|target| shown.services(target));
            services.map(|service| service.key.group.clone()).collect()
        };
        storm.ask(&groups, &stream.consumer(), false, Instant::now())
    }

    /// Waits for the moment at which changes that are kept back leave, if there are any: a new subscription
    /// makes them leave at once, and many of them would undo the coalescing. So a stream that has waited may begin many in
    /// a row, for a small part of that time, before it waits again. As of which moment its turn is judged: waiting here, or
    /// behind another that waits here, makes nobody miss it.
    pub(crate) async fn next_round(&self, stream: &Shared) -> Instant {
        let asked_at = Instant::now();
        let Some(delay_max) = self.inner.storm.coalescing() else {
            return asked_at;
        };
        let row = *stream.row.lock();
        if let Some(row) = row.filter(|row| asked_at < row.ends_at) {
            return row.asked_at;
        }
        let head = self.inner.directory.read().revision();
        let mut rounds = self.inner.rounds.subscribe();
        let round = rounds.wait_for(|position| *position >= head);
        // In vain: the switch was turned off, or the hub is stopping.
        _ = tokio::time::timeout(delay_max, round).await;
        *stream.row.lock() = Some(Row {
            asked_at,
            ends_at: Instant::now() + delay_max / ROW_PART,
        });
        asked_at
    }

    /// Waits for the turn of a message with so many bytes of full lists.
    pub(crate) async fn list_turn(&self, bytes: usize) -> Turn {
        self.inner.storm.list_turn(bytes).await
    }
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
