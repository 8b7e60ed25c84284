//! Who has seen which change, and when.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::report::{histogram, record};

/// What the writer and the watchers know of the changes. Times are nanoseconds since the bench began, 0: not yet.
#[derive(Debug)]
pub(super) struct Board {
    began: Instant,
    changes: Vec<ChangeRecord>,
    /// Changes that every watcher has.
    pub(super) complete: AtomicUsize,
    completed: Notify,
    pub(super) lagged: AtomicU64,
    pub(super) lost: AtomicU64,
}

#[derive(Debug)]
pub(super) struct ChangeRecord {
    due: AtomicU64,
    pub(super) answered: AtomicU64,
    last_seen: AtomicU64,
    to_come: AtomicUsize,
}

impl Board {
    pub(super) fn new(changes: usize, watchers: usize) -> Self {
        let record = || ChangeRecord {
            due: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            last_seen: AtomicU64::new(0),
            to_come: AtomicUsize::new(watchers),
        };
        Self {
            began: Instant::now(),
            changes: (0..changes).map(|_| record()).collect(),
            complete: AtomicUsize::new(0),
            completed: Notify::new(),
            lagged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// The change (from 1) is due, or sent, at this moment.
    pub(super) fn on_due(&self, change: u64, at: Instant) {
        if let Some(record) = self.record(change) {
            record.due.store(self.nanos(at), Ordering::Release);
        }
    }

    pub(super) fn on_answered(&self, change: u64, at: Instant) {
        if let Some(record) = self.record(change) {
            record.answered.store(self.nanos(at), Ordering::Release);
        }
    }

    /// A watcher that had seen everything up to `before` has now seen `change`. Gives how long each of these took.
    pub(super) fn on_seen(
        &self,
        before: u64,
        change: u64,
        at: Instant,
    ) -> impl Iterator<Item = Duration> + '_ {
        let at = self.nanos(at);
        (before + 1..=change).filter_map(move |change| {
            let record = self.record(change)?;
            record.last_seen.fetch_max(at, Ordering::AcqRel);
            let due = record.due.load(Ordering::Acquire);
            if record.to_come.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.complete.fetch_add(1, Ordering::AcqRel);
                self.completed.notify_waiters();
            }
            Some(Duration::from_nanos(at.saturating_sub(due)))
        })
    }

    pub(super) fn record(&self, change: u64) -> Option<&ChangeRecord> {
        usize::try_from(change)
            .ok()?
            .checked_sub(1)
            .and_then(|index| self.changes.get(index))
    }

    pub(super) fn is_complete(&self, change: u64) -> bool {
        self.record(change)
            .is_none_or(|record| record.to_come.load(Ordering::Acquire) == 0)
    }

    /// Waits until every watcher has the change.
    pub(super) async fn wait_for(&self, change: u64) {
        loop {
            let completed = self.completed.notified();
            tokio::pin!(completed);
            // Listens from here on, so that nothing between the look and the wait is missed.
            completed.as_mut().enable();
            if self.is_complete(change) {
                return;
            }
            completed.await;
        }
    }

    /// One value a change that every watcher has: from its due time, and from its answer.
    pub(super) fn last_watcher(&self) -> (Histogram<u64>, Histogram<u64>) {
        let (mut from_send, mut from_answer) = (histogram(), histogram());
        for change in &self.changes {
            if change.to_come.load(Ordering::Acquire) > 0 {
                continue;
            }
            let seen = change.last_seen.load(Ordering::Acquire);
            let due = change.due.load(Ordering::Acquire);
            record(&mut from_send, Duration::from_nanos(seen.saturating_sub(due)));
            let answered = change.answered.load(Ordering::Acquire);
            if answered > 0 {
                record(
                    &mut from_answer,
                    Duration::from_nanos(seen.saturating_sub(answered)),
                );
            }
        }
        (from_send, from_answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_last_watcher_counts() {
        let board = Board::new(2, 3);
        let at = |ms: u32| board.began + MS * ms;
        board.on_due(1, at(10));
        board.on_answered(1, at(14));
        let took: Vec<Duration> = [12, 13, 20]
            .iter()
            .flat_map(|ms| board.on_seen(0, 1, at(*ms)))
            .collect();
        assert_eq!(took, [MS * 2, MS * 3, MS * 10]);
        assert!(board.is_complete(1) && !board.is_complete(2));
        let (from_send, from_answer) = board.last_watcher();
        assert_eq!(from_send.len(), 1);
        assert!((9_900_000..=10_100_000).contains(&from_send.max()));
        assert!((5_900_000..=6_100_000).contains(&from_answer.max()));
    }

    #[test]
    fn a_watcher_that_skipped_changes_has_seen_them_all() {
        let board = Board::new(3, 1);
        for change in 1..=3 {
            board.on_due(change, board.began + MS);
        }
        assert_eq!(board.on_seen(0, 3, board.began + MS * 2).count(), 3);
        assert_eq!(board.complete.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_change_from_elsewhere_is_not_ours() {
        let board = Board::new(1, 1);
        assert_eq!(board.on_seen(1, 9, board.began).count(), 0);
        assert!(!board.is_complete(1));
    }

    #[test]
    fn a_watcher_before_the_answer_waits_zero_from_it() {
        let board = Board::new(1, 1);
        board.on_due(1, board.began + MS);
        assert_eq!(board.on_seen(0, 1, board.began + MS * 2).count(), 1);
        board.on_answered(1, board.began + MS * 3);
        let (_, from_answer) = board.last_watcher();
        assert!(from_answer.max() <= 1);
    }

    #[tokio::test]
    async fn waiting_for_a_change_ends_with_its_last_watcher() {
        let board = Arc::new(Board::new(1, 2));
        let waiting = tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.wait_for(1).await }
        });
        assert_eq!(board.on_seen(0, 1, Instant::now()).count(), 1);
        assert!(!waiting.is_finished());
        assert_eq!(board.on_seen(0, 1, Instant::now()).count(), 1);
        waiting.await.unwrap();
    }
}
