//! When proposals that wait leave as an entry.
//!
//! A few requests wait for nobody. Where many are under way, what arrives gathers while an entry is in flight: each entry
//! costs every server a sync and some wake-ups, whatever it carries. Half of what was under way lately follows one entry as
//! soon as that is on this server's disk, which could not take it any sooner (the others' might). Where the other servers
//! are far away an entry is in flight for much longer than a disk takes: who has waited for [`COMPANY_MAX`] needs a free disk
//! and no company. What is worth an entry of its own leaves at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::raft::types::LogId;

/// Entries proposed and not yet applied.
const IN_FLIGHT_MAX: usize = 16;
/// So many requests, or so many bytes of them, are worth an entry.
const WORTH_REQUESTS: usize = 64;
const WORTH_BYTES: usize = 32 << 10;
/// Fewer requests under way would have more of leaving at once than of company.
const CROWD: usize = 16;
/// So long behind the last entry nobody waits for company any more.
const COMPANY_MAX: Duration = Duration::from_millis(10);

/// What is under way, and what waits.
#[derive(Debug)]
pub(super) struct Traffic {
    in_flight: AtomicUsize,
    /// Requests of those in flight.
    carried: AtomicUsize,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// So many that wait may be due behind one entry that is in flight.
    company: AtomicUsize,
    /// Told when what waits may be due: enough of it has come, an entry is through; and by the log, for each sync.
    moved: Arc<Notify>,
}

impl Traffic {
    pub(super) fn new(moved: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            company: AtomicUsize::new(WORTH_REQUESTS),
            moved,
        })
    }

    /// A proposal waits from here on.
    pub(super) fn came(&self, bytes: usize) {
        // In one order with whoever says what company is and then looks who waits: one of the two sees the other.
        let requests = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        let company = self.company.load(Ordering::SeqCst);
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let worth = before < WORTH_BYTES && before + bytes >= WORTH_BYTES;
        if requests == WORTH_REQUESTS || requests == company || worth {
            self.moved.notify_one();
        }
    }

    /// A proposal is taken, or was not let in.
    pub(super) fn went(&self, bytes: usize) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether what waits is worth an entry of its own.
    fn is_worth_an_entry(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) >= WORTH_REQUESTS
            || self.waiting_bytes.load(Ordering::Relaxed) >= WORTH_BYTES
    }
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Pace {
    traffic: Arc<Traffic>,
    /// The end of the log when the last entry left: it stands behind that.
    behind: Option<LogId>,
    /// About how many requests were under way at most when one of the last entries left; entry by entry, not with time.
    crowd: usize,
    /// From then on nobody waits for company.
    alone_at: Instant,
}

impl Pace {
    pub(super) fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            traffic,
            behind: None,
            crowd: 0,
            alone_at: Instant::now(),
        }
    }

    /// Waits until what waits should leave. `flushed`: the last entry that is on this server's disk.
    pub(super) async fn wait_until_due(&self, flushed: impl Fn() -> Option<LogId>) {
        self.traffic.company.store(self.company(), Ordering::SeqCst);
        while !self.is_due(Instant::now(), &flushed) {
            let moved = self.traffic.moved.notified();
            if Instant::now() < self.alone_at {
                _ = tokio::time::timeout_at(self.alone_at, moved).await;
            } else {
                moved.await;
            }
        }
    }

    fn is_due(&self, now: Instant, flushed: impl FnOnce() -> Option<LogId>) -> bool {
        match self.traffic.in_flight.load(Ordering::Acquire) {
            0 => true,
            in_flight @ 1..IN_FLIGHT_MAX => {
                let has_company =
                    || in_flight == 1 && self.traffic.waiting.load(Ordering::SeqCst) >= self.company();
                self.crowd < CROWD
                    || self.traffic.is_worth_an_entry()
                    || ((has_company() || now >= self.alone_at) && flushed() > self.behind)
            }
            _ => false,
        }
    }

    /// Half of the crowd.
    fn company(&self) -> usize {
        self.crowd.div_ceil(2)
    }

    /// Whether others are likely to propose within moments, and what waits would have more of their company than of leaving.
    pub(super) fn expects_company(&self) -> bool {
        self.crowd >= CROWD && !self.traffic.is_worth_an_entry()
    }

    /// So many requests leave as one entry.
    pub(super) fn depart(&mut self, requests: usize) -> InFlight {
        let traffic = self.traffic.clone();
        let carried = traffic.carried.fetch_add(requests, Ordering::Relaxed);
        self.crowd = (self.crowd - self.crowd / 8).max(carried + requests);
        self.alone_at = Instant::now() + COMPANY_MAX;
        traffic.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight { traffic, requests }
    }

    /// They were made an entry: it stands behind what was the end of the log before.
    pub(super) fn entered(&mut self, behind: Option<LogId>) {
        self.behind = behind;
    }
}

/// An entry in flight, until it is dropped.
pub(super) struct InFlight {
    traffic: Arc<Traffic>,
    requests: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.traffic.carried.fetch_sub(self.requests, Ordering::Relaxed);
        let before = self.traffic.in_flight.fetch_sub(1, Ordering::AcqRel);
        if [1, 2, IN_FLIGHT_MAX].contains(&before) {
            self.traffic.moved.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::raft::types::log_id;

    const MANY: usize = 40;
    const BUSY: fn() -> Option<LogId> = || None;
    const FREE: fn() -> Option<LogId> = || Some(log_id(1, 8));

    /// A pace that has seen a crowd, with an entry under way behind the log's entry 7.
    fn crowded(moved: Arc<Notify>) -> (Pace, Arc<Traffic>, InFlight) {
        let traffic = Traffic::new(moved);
        let mut pace = Pace::new(traffic.clone());
        let entry = pace.depart(MANY);
        pace.entered(Some(log_id(1, 7)));
        (pace, traffic, entry)
    }

    fn come(traffic: &Traffic, requests: usize) {
        (0..requests).for_each(|_| traffic.came(1));
    }

    impl Pace {
        fn leaves(&self, flushed: fn() -> Option<LogId>) -> bool {
            self.is_due(self.alone_at - COMPANY_MAX, flushed)
        }
    }

    #[test]
    fn what_is_not_worth_an_entry_waits_for_the_disk() {
        let (mut pace, traffic, entry) = crowded(Arc::default());
        come(&traffic, WORTH_REQUESTS - 1);
        assert!(!pace.leaves(BUSY));
        assert!(
            !pace.leaves(|| Some(log_id(1, 7))),
            "the entry stands behind that"
        );
        assert!(pace.leaves(FREE));
        come(&traffic, 1);
        assert!(pace.leaves(BUSY), "so many requests are worth it");
        traffic.went(1);
        assert!(!pace.leaves(BUSY));
        traffic.came(WORTH_BYTES);
        traffic.went(1);
        assert!(pace.leaves(BUSY), "and so are so many bytes");
        let mut in_flight = vec![entry];
        in_flight.extend((1..IN_FLIGHT_MAX).map(|_| pace.depart(1)));
        assert!(!pace.leaves(FREE), "but nothing leaves beyond the bound");
        in_flight.pop();
        assert!(pace.leaves(BUSY));
        traffic.went(WORTH_BYTES);
        in_flight.clear();
        assert_eq!(traffic.carried.load(Ordering::Relaxed), 0);
        assert!(pace.leaves(BUSY), "with none in flight nothing waits");
    }

    #[test]
    fn half_of_a_crowd_follows_one_entry_and_no_second_one() {
        let (mut pace, traffic, _entry) = crowded(Arc::default());
        come(&traffic, MANY / 2 - 1);
        assert!(!pace.leaves(FREE), "less than half, though the disk is free");
        come(&traffic, 1);
        assert!(pace.leaves(FREE));
        assert!(!pace.leaves(BUSY));
        let second = pace.depart(1);
        // The crowd is one more.
        come(&traffic, 1);
        assert!(!pace.leaves(FREE), "two are in flight");
        drop(second);
        assert!(pace.leaves(FREE), "one is through");
    }

    #[test]
    fn who_has_waited_for_long_needs_a_free_disk_and_no_company() {
        let (mut pace, traffic, _entry) = crowded(Arc::default());
        let _second = pace.depart(1);
        come(&traffic, 1);
        let alone = pace.alone_at;
        assert!(!pace.is_due(alone - Duration::from_millis(1), FREE));
        assert!(pace.is_due(alone, FREE), "an entry takes longer than a disk here");
        assert!(!pace.is_due(alone, BUSY));
    }

    #[test]
    fn few_wait_for_nobody_and_a_crowd_is_not_forgotten_with_its_last_entry() {
        let mut pace = Pace::new(Traffic::new(Arc::default()));
        let few = pace.depart(CROWD - 1);
        assert!(pace.leaves(BUSY), "they have nothing of company");
        let one_more = pace.depart(1);
        assert!(!pace.leaves(BUSY), "of all under way together");
        drop((few, one_more));
        let alone = pace.depart(1);
        assert!(pace.leaves(BUSY), "there are just too few");
        drop((alone, pace.depart(10 * CROWD)));
        let mut entries = 0;
        loop {
            let _alone = pace.depart(1);
            entries += 1;
            if pace.leaves(BUSY) {
                break;
            }
        }
        assert!((8..=32).contains(&entries), "forgotten after {entries} entries");
    }

    type Disk = Arc<Mutex<Option<LogId>>>;

    /// Waits with a pace whose patience has no end, and gives it back.
    async fn begin_to_wait(mut pace: Pace, disk: &Disk) -> JoinHandle<Pace> {
        const LONG: Duration = Duration::from_secs(10);
        pace.alone_at = Instant::now() + 2 * LONG;
        let disk = disk.clone();
        let waiting = tokio::spawn(async move {
            let due = pace.wait_until_due(|| *disk.lock());
            tokio::time::timeout(LONG, due).await.expect("it is woken");
            pace
        });
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished(), "it waits");
        waiting
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_disk_the_end_of_an_entry_and_by_what_is_worth_one() {
        let (synced, disk) = (Arc::new(Notify::new()), Disk::default());
        let (mut pace, traffic, entry) = crowded(synced.clone());
        come(&traffic, MANY / 2 + 1);
        let waiting = begin_to_wait(pace, &disk).await;
        *disk.lock() = FREE();
        synced.notify_one();
        pace = waiting.await.unwrap();

        let second = pace.depart(1);
        let waiting = begin_to_wait(pace, &disk).await;
        drop(second);
        pace = waiting.await.unwrap();

        *disk.lock() = None;
        let waiting = begin_to_wait(pace, &disk).await;
        drop(entry);
        pace = waiting.await.unwrap();

        let _entry = pace.depart(1);
        let waiting = begin_to_wait(pace, &disk).await;
        come(&traffic, WORTH_REQUESTS - MANY / 2 - 1);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_half_of_the_crowd_waits() {
        let disk = Disk::default();
        *disk.lock() = FREE();
        let (pace, traffic, _entry) = crowded(Arc::default());
        come(&traffic, MANY / 2 - 1);
        let waiting = begin_to_wait(pace, &disk).await;
        come(&traffic, 1);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_there_was_no_company_for_long() {
        let (mut pace, traffic, _entry) = crowded(Arc::default());
        come(&traffic, 1);
        pace.alone_at = Instant::now() + COMPANY_MAX;
        let due = pace.wait_until_due(FREE);
        let due = tokio::time::timeout(Duration::from_secs(10), due).await;
        due.expect("it is woken");
    }
}
