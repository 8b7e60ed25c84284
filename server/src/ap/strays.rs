//! Moves that have lost their coordinator: the leader takes them back.
//!
//! The log does not say who coordinates a move, for whoever is asked the same goes on with it. So the leader asks every
//! server. One that is gone coordinates nothing; while one that should be there does not answer nobody knows, and the
//! leader waits, but not for ever. Taking back what somebody is still at is harmless: his end of it is void.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::ids::{GroupName, Revision};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inner::Inner;
use super::mover::{ask, take_back};
use crate::pulse;

/// A move of which nobody knows whether somebody coordinates it is taken back when it has lasted so long.
const MOVE_MAX: Duration = Duration::from_secs(120);
/// One that nobody coordinates, when it has been seen for so long: its operator may be about to ask another server to
/// go on with it.
const ORPHANED_AFTER: Duration = Duration::from_secs(5);
/// How often the leader looks.
const LOOK: Duration = Duration::from_secs(1);

/// The groups whose moves this server coordinates, and how many callers asked it to.
#[derive(Debug, Default)]
pub(super) struct Coordinated(Mutex<BTreeMap<GroupName, u32>>);

impl Coordinated {
    pub(super) fn contains(&self, group: &GroupName) -> bool {
        self.0.lock().contains_key(group)
    }
}

/// This server coordinates a group's move until this is dropped.
pub(super) struct AtWork {
    inner: Arc<Inner>,
    group: GroupName,
}

impl AtWork {
    pub(super) fn begin(inner: &Arc<Inner>, group: &GroupName) -> Self {
        *inner.coordinated.0.lock().entry(group.clone()).or_default() += 1;
        Self {
            inner: inner.clone(),
            group: group.clone(),
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut coordinated = self.inner.coordinated.0.lock();
        if let Some(callers) = coordinated.get_mut(&self.group) {
            *callers -= 1;
            if *callers == 0 {
                coordinated.remove(&self.group);
            }
        }
    }
}

/// As the leader: takes moves back that nobody coordinates. Until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut seen: BTreeMap<(GroupName, Revision), Instant> = BTreeMap::new();
    while stop.run_until_cancelled(pulse::pause(LOOK)).await.is_some() {
        let moving = moves(&inner);
        seen.retain(|key, _| moving.contains(key));
        for key in moving {
            let lasts = seen.entry(key.clone()).or_insert_with(Instant::now).elapsed();
            if lasts < ORPHANED_AFTER || !inner.consensus.leadership().borrow().leading {
                continue;
            }
            let (group, since) = key;
            let Some(orphaned) = stop.run_until_cancelled(is_orphaned(&inner, &group)).await else {
                return;
            };
            if orphaned || lasts >= MOVE_MAX {
                tracing::warn!(%group, "a move has lost its coordinator and is taken back");
                take_back(&inner, &group, since).await;
            }
        }
    }
}

fn moves(inner: &Inner) -> Vec<(GroupName, Revision)> {
    let directory = inner.consensus.directory().read();
    let moving = directory.groups().filter_map(|group| {
        let since = group.moving?.since;
        Some((group.name.clone(), since))
    });
    moving.collect()
}

/// Whether no server coordinates this group's move, for certain.
async fn is_orphaned(inner: &Inner, group: &GroupName) -> bool {
    if inner.coordinated.contains(group) {
        return false;
    }
    let others = inner.others_here();
    let asked = others.iter().map(|other| ask(inner, other, group));
    let answers = futures_util::future::join_all(asked).await;
    answers
        .into_iter()
        .all(|answer| answer.is_ok_and(|standing| !standing.coordinates))
}
