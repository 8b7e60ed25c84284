//! Rounds: the log of changes from where the hub stands, offered to the streams that follow what changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rollcall_core::directory::{Passed, RevisionChanges};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_core::mutants::{Mutant, every};
use tokio::time::Instant;

use super::pace::Pace;
use super::{Inner, State, WatchHub};
use crate::watch::backlog::{ChangeFrames, Offered, Place};
use crate::watch::frame;
use crate::watch::merged::Merged;
use crate::watch::shown::{Shown, Standings};

/// Revisions handed out in one go, before others get the hub's lock.
pub(super) const REVISIONS_PER_ROUND: usize = 256;
/// And while changes are coalesced: merging costs less than handing out.
pub(super) const REVISIONS_PER_MERGE: usize = 4_096;
/// What leaves together takes at most this part of a backlog, and of a message.
pub(super) const BACKLOG_SHARE: usize = 4;

impl WatchHub {
    /// Tells of all there is.
    pub(super) async fn pull_all(&self, pace: &mut Pace) {
        let since = self.passed();
        let mut told_in_all = 0_usize;
        loop {
            let (more, told) = self.round();
            told_in_all = told_in_all.saturating_add(told);
            if !more {
                break;
            }
            tokio::task::yield_now().await;
        }
        pace.on_round(told_in_all, since, Instant::now());
    }

    /// What has gone through the log of changes.
    pub(super) fn passed(&self) -> Passed {
        self.inner.directory.read().changes().passed()
    }

    /// Whether there is more, and how many streams were told.
    fn round(&self) -> (bool, usize) {
        let (more, woken) = {
            let mut state = self.inner.state.lock();
            let more = self.inner.offer_round(&mut state);
            (more, std::mem::take(&mut state.woken))
        };
        let told = woken.len();
        self.tell(woken);
        (more, told)
    }

    /// One round; whether there is more.
    #[cfg(test)]
    pub(crate) fn pull(&self) -> bool {
        self.round().0
    }

    /// Waits until a revision is offered whole.
    pub(crate) async fn settles(&self, revision: Revision) {
        let mut rounds = self.inner.rounds.subscribe();
        // In vain: the hub is gone, and the stream is about to hear of it.
        _ = rounds.wait_for(|settled| *settled >= revision).await;
    }
}

impl Inner {
    /// Offers a round of changes; whether there is more.
    fn offer_round(&self, state: &mut State) -> bool {
        let revisions = match self.storm.coalescing() {
            None => REVISIONS_PER_ROUND,
            Some(_) => REVISIONS_PER_MERGE,
        };
        let (changes, head) = {
            let directory = self.directory.read();
            let changes = directory.changes().range(state.position, revisions);
            let changes = changes.map(|changes| {
                let standings = self.shown(&directory).standings(&changes);
                (changes, standings)
            });
            (changes, directory.revision())
        };
        match changes {
            Ok((changes, standings)) => {
                self.offer_all(state, &changes, &standings);
                state.position < head
            }
            Err(_) => {
                let directory = self.directory.read();
                self.start_over(state, self.shown(&directory));
                false
            }
        }
    }

    /// Brings the hub to the directory's head and calls `look` there, with the directory locked. Others are told of what that
    /// took in by the next round, which the same changes bring, and which counts them.
    pub(super) fn at_head<R>(&self, look: impl FnOnce(&mut State, Shown<'_>) -> R) -> R {
        let mut state = self.state.lock();
        while self.offer_round(&mut state) {}
        let directory = self.directory.read();
        let shown = self.shown(&directory);
        match directory.changes().range(state.position, usize::MAX) {
            Ok(changes) => self.offer_all(&mut state, &changes, &shown.standings(&changes)),
            Err(_) => self.start_over(&mut state, shown),
        }
        look(&mut state, shown)
    }

    fn offer_all(&self, state: &mut State, changes: &[Arc<RevisionChanges>], standings: &Standings) {
        match changes {
            [_, .., last] if self.storm.coalescing().is_some() => {
                for revision in changes {
                    self.regroup_all(state, revision, standings);
                }
                self.offer_merged(state, changes, last.revision);
                self.settle(state, last.revision);
            }
            changes => {
                for revisions in changes.chunk_by(|one, next| goes_on(one, next)) {
                    for revision in revisions {
                        self.regroup_all(state, revision, standings);
                    }
                    match revisions {
                        [revision] => {
                            self.offer(state, revision);
                            self.settle(state, revision.revision);
                        }
                        revisions => self.offer_row(state, revisions),
                    }
                }
            }
        }
        self.metrics.revisions.inc_by(changes.len() as u64);
    }

    pub(super) fn settle(&self, state: &mut State, revision: Revision) {
        state.position = revision;
        self.settled.store(revision.0, Ordering::Release);
        self.rounds.send_replace(revision);
    }

    pub(super) fn offer(&self, state: &mut State, changes: &RevisionChanges) {
        let hidden = self.hidden();
        for (index, change) in changes.services.iter().enumerate() {
            if hidden.contains(&change.key.group) {
                continue;
            }
            let place = Place {
                revision: changes.revision,
                index: index + 1,
            };
            self.offer_one(state, &change.key, place, || {
                vec![self.frames.frame(changes, index)]
            });
        }
    }

    /// Revisions in a row of one service alone: its followers are met once for many of them, which are theirs together.
    fn offer_row(&self, state: &mut State, row: &[Arc<RevisionChanges>]) {
        let (Some(first), Some(last)) = (row.first(), row.last()) else {
            return;
        };
        let Some(key) = first.services.first().map(|change| &change.key) else {
            return;
        };
        if self.hidden().contains(&key.group) || state.registrations.streams(key).next().is_none() {
            return self.settle(state, last.revision);
        }
        let frames_max = (self.limits.backlog_frames / BACKLOG_SHARE).max(1);
        let bytes_max = self.limits.response_bytes.min(self.limits.backlog_bytes) / BACKLOG_SHARE;
        let mut row = row.iter().peekable();
        while let Some(mut last) = row.next() {
            let mut frames = vec![self.frames.frame(last, 0)];
            let mut bytes = frames[0].len();
            while let Some(next) = row.peek()
                && frames.len() < frames_max
                && bytes < bytes_max
            {
                last = next;
                let frame = self.frames.frame(last, 0);
                bytes += frame.len();
                frames.push(frame);
                row.next();
            }
            let place = Place {
                revision: last.revision,
                index: 1,
            };
            self.offer_one(state, key, place, || std::mem::take(&mut frames));
            self.settle(state, last.revision);
        }
    }

    /// Several revisions as one: each service's changes together, as of its last. All of them stand in the
    /// streams' queues as of the newest revision, so that a message holds either all that concerns its stream or
    /// nothing, and a client may resume behind whatever it has.
    fn offer_merged(&self, state: &mut State, changes: &[Arc<RevisionChanges>], newest: Revision) {
        let merged = Merged::of(changes);
        self.storm.count_coalesced(merged.absorbed);
        let hidden = self.hidden();
        for (index, (revision, change)) in merged.services.into_iter().enumerate() {
            if hidden.contains(&change.key.group) {
                continue;
            }
            let place = Place {
                revision: newest,
                index: index + 1,
            };
            self.offer_one(state, &change.key, place, || {
                vec![frame::change(&change, revision)]
            });
        }
    }

    /// Hands one change, or several that belong together, to the streams that follow its service.
    fn offer_one(
        &self,
        state: &mut State,
        key: &ServiceKey,
        place: Place,
        mut encode: impl FnMut() -> Vec<Bytes>,
    ) {
        if every(Mutant::DropEvent, 50) {
            return;
        }
        let State {
            registrations, woken, ..
        } = state;
        let mut change = None;
        let mut offered = 0;
        for stream in registrations.streams(key) {
            let change = change.get_or_insert_with(|| Arc::new(ChangeFrames::new(key.clone(), encode())));
            let mut backlog = stream.backlog.lock();
            match backlog.offer(place, change) {
                Offered::Repeated => continue,
                Offered::Overflowed => _ = self.metrics.overflows.inc(),
                Offered::Waits => {}
            }
            offered += change.frames.len() as u64;
            if !std::mem::replace(&mut backlog.woken, true) {
                woken.push(stream.clone());
            }
        }
        self.metrics.frames.inc_by(offered);
    }

    /// Changes were lost to the hub (it slept, or a snapshot was installed): everyone starts from state.
    fn start_over(&self, state: &mut State, shown: Shown<'_>) {
        let before = self.hidden();
        let hidden = Arc::new(shown.hidden());
        self.hidden.write().clone_from(&hidden);
        let moved: Vec<GroupName> = before.symmetric_difference(&hidden).cloned().collect();
        self.move_away(state, |group| !shown.follows(group), &moved);
        for stream in state.streams.values() {
            stream.backlog.lock().owe_all();
            state.woken.push(stream.clone());
        }
        self.settle(state, shown.revision());
        self.metrics.resyncs.inc();
    }
}

/// Whether both revisions changed one service, the same, and nothing else.
fn goes_on(one: &RevisionChanges, next: &RevisionChanges) -> bool {
    let alone = |changes: &RevisionChanges| changes.groups.is_empty() && changes.services.len() == 1;
    alone(one) && alone(next) && one.services[0].key == next.services[0].key
}
