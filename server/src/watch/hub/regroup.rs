//! Groups that are put, or go: one that changes its mode is for the other hub to tell of.

use std::collections::BTreeSet;
use std::sync::Arc;

use rollcall_core::directory::{GroupMode, RevisionChanges};
use rollcall_core::ids::{GroupName, Revision};
use rollcall_proto::v1;

use super::{Inner, SLOT_MS, State};
use crate::watch::backlog::Item;
use crate::watch::registration::Target;
use crate::watch::shown::{Standing, Standings};

/// Over at most so long are subscriptions asked for again that have to move to the other hub.
const MOVE_SPREAD_MS: u64 = 1_000;

impl Inner {
    pub(super) fn hidden(&self) -> Arc<BTreeSet<GroupName>> {
        self.hidden.read().clone()
    }

    pub(super) fn regroup_all(&self, state: &mut State, changes: &RevisionChanges, standings: &Standings) {
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
    pub(super) fn move_away(
        &self,
        state: &mut State,
        elsewhere: impl Fn(&GroupName) -> bool,
        moved: &[GroupName],
    ) {
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
                let keep = v1::KeepCache {
                    subscription,
                    retry_after_ms: u32::try_from(slot * SLOT_MS % MOVE_SPREAD_MS).unwrap_or_default() + 1,
                };
                backlog.push(Item::KeepCache(keep));
                stream.moved.lock().push(keep);
            }
            backlog.woken = true;
            drop(backlog);
            state.woken.push(stream);
        }
    }
}
