//! Who has seen what: watchers note the marks that reach them, and the board knows when all have seen the newest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Of one fan-out. A mark is awaited at a time.
#[derive(Debug)]
pub(crate) struct Board {
    target: AtomicU64,
    arrived: AtomicUsize,
    watchers: usize,
    arrivals: Mutex<Vec<Instant>>,
    complete: Notify,
}

impl Board {
    pub(crate) fn new(watchers: usize) -> Arc<Self> {
        Arc::new(Self {
            target: AtomicU64::new(u64::MAX),
            arrived: AtomicUsize::new(0),
            watchers,
            arrivals: Mutex::new(Vec::with_capacity(watchers)),
            complete: Notify::new(),
        })
    }

    /// A watcher that reports here.
    pub(crate) fn watcher(self: &Arc<Self>) -> Arc<Watcher> {
        Arc::new(Watcher {
            board: Arc::clone(self),
            newest: AtomicU64::new(0),
        })
    }

    /// From now on this mark is awaited; higher than any before.
    pub(crate) fn expect(&self, mark: u64) {
        self.arrivals.lock().clear();
        self.arrived.store(0, Ordering::SeqCst);
        self.target.store(mark, Ordering::SeqCst);
    }

    /// How long after `since` each watcher saw the mark, ascending; those that had not in time are missing.
    pub(crate) async fn arrivals(&self, since: Instant, at_most: Duration) -> Vec<Duration> {
        let deadline = tokio::time::Instant::from_std(since + at_most);
        loop {
            let complete = self.complete.notified();
            if self.arrived.load(Ordering::SeqCst) >= self.watchers {
                break;
            }
            if tokio::time::timeout_at(deadline, complete).await.is_err() {
                break;
            }
        }
        let mut arrivals: Vec<_> = self
            .arrivals
            .lock()
            .iter()
            .map(|at| at.saturating_duration_since(since))
            .collect();
        arrivals.sort();
        arrivals
    }
}

/// One watcher, as its connection sees it.
#[derive(Debug)]
pub(crate) struct Watcher {
    board: Arc<Board>,
    newest: AtomicU64,
}

impl Watcher {
    /// Something came.
    pub(crate) fn see(&self, bytes: &[u8]) {
        if let Some(mark) = newest_mark(bytes) {
            self.see_mark(mark);
        }
    }

    /// Something with this mark came.
    pub(crate) fn see_mark(&self, mark: u64) {
        let before = self.newest.fetch_max(mark, Ordering::SeqCst);
        let target = self.board.target.load(Ordering::SeqCst);
        if before < target && mark >= target {
            self.board.arrivals.lock().push(Instant::now());
            if self.board.arrived.fetch_add(1, Ordering::SeqCst) + 1 >= self.board.watchers {
                self.board.complete.notify_waiters();
            }
        }
    }
}

const MARK: &[u8] = b"mark=";
const DIGITS: usize = 10;

/// The highest mark in these bytes, whatever they are encoded in.
pub(crate) fn newest_mark(bytes: &[u8]) -> Option<u64> {
    let mut newest = None;
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'=') {
        let digits = rest.get(at + 1..at + 1 + DIGITS);
        if rest[..at + 1].ends_with(MARK)
            && let Some(digits) = digits
            && let Ok(Ok(mark)) = std::str::from_utf8(digits).map(str::parse::<u64>)
        {
            newest = newest.max(Some(mark));
        }
        rest = &rest[at + 1..];
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_mark_is_found_in_any_encoding() {
        assert_eq!(newest_mark(b""), None);
        assert_eq!(newest_mark(b"mark=00000"), None);
        assert_eq!(
            newest_mark(b"{\"data\":\"mark=0000000041.abc\"}=x mark=0000000007"),
            Some(41)
        );
    }

    #[tokio::test]
    async fn the_board_waits_for_everyone() {
        let board = Board::new(2);
        let (one, two) = (board.watcher(), board.watcher());
        let since = Instant::now();
        board.expect(5);
        one.see_mark(5);
        one.see_mark(6);
        assert_eq!(board.arrivals(since, Duration::from_millis(20)).await.len(), 1);
        two.see_mark(9);
        assert_eq!(board.arrivals(since, Duration::from_secs(60)).await.len(), 2);
        board.expect(10);
        assert_eq!(
            board
                .arrivals(Instant::now(), Duration::from_millis(1))
                .await
                .len(),
            0
        );
    }
}
