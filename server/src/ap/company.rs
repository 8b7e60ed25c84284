//! Company: how long the first write of a batch waits for others that are on their way.
//!
//! A few callers wait for nobody. Many who are answered together come again together, but not at once: whoever went with the
//! first of them would have the disk sync for a few, and the others wait for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Fewer callers would have more of leaving at once than of company.
const CROWD: usize = 8;
/// So many jobs are worth a sync.
const WORTH: usize = 64;
/// Who has not come after so long is not waited for.
const WAIT_MAX: Duration = Duration::from_millis(2);
/// Nobody waits for others.
const NOBODY: usize = usize::MAX;

/// About how many callers there were at most during the last batches; batch by batch, not with time.
#[derive(Debug, Default)]
pub(super) struct Crowd(usize);

impl Crowd {
    /// A batch is done: so many were in it, or wait by now.
    pub(super) fn note(&mut self, jobs: usize) {
        self.0 = (self.0 - self.0 / 8).max(jobs);
    }

    /// How many jobs a batch should wait for; not for all, since some callers are slow, and some do not come again.
    pub(super) fn wanted(&self) -> usize {
        match self.0 {
            0..CROWD => 1,
            crowd => (crowd - crowd / 4).min(WORTH),
        }
    }
}

/// Where the one who waits is told that there are enough.
#[derive(Debug)]
pub(super) struct Company {
    wanted: AtomicUsize,
    enough: Notify,
    patience: Duration,
}

impl Default for Company {
    fn default() -> Self {
        Self {
            wanted: NOBODY.into(),
            enough: Notify::new(),
            patience: WAIT_MAX,
        }
    }
}

impl Company {
    /// A job has come; so many wait by now.
    pub(super) fn came(&self, waiting: usize) {
        if waiting >= self.wanted.load(Ordering::SeqCst)
            && self.wanted.swap(NOBODY, Ordering::SeqCst) != NOBODY
        {
            self.enough.notify_one();
        }
    }

    /// Waits until so many jobs wait, or for a moment.
    pub(super) async fn wait_for(&self, wanted: usize, waiting: impl Fn() -> usize) {
        self.wanted.store(wanted, Ordering::SeqCst);
        if waiting() < wanted {
            // What is too late is late by a moment at most.
            _ = tokio::time::timeout(self.patience, self.enough.notified()).await;
        }
        self.wanted.store(NOBODY, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn few_wait_for_nobody_many_for_most_of_them_and_a_crowd_is_forgotten() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.wanted(), 1);
        crowd.note(CROWD - 1);
        assert_eq!(crowd.wanted(), 1);
        crowd.note(20);
        assert_eq!(crowd.wanted(), 15);
        crowd.note(1_000);
        assert_eq!(crowd.wanted(), WORTH);
        (0..60).for_each(|_| crowd.note(1));
        assert_eq!(crowd.wanted(), 1);
    }

    #[tokio::test]
    async fn who_waits_is_told_when_enough_have_come_and_waits_a_moment_at_most() {
        let company = Arc::new(Company {
            patience: Duration::from_secs(60),
            ..Company::default()
        });
        let waiting = company.clone();
        let wait = tokio::spawn(async move { waiting.wait_for(3, || 1).await });
        tokio::task::yield_now().await;
        company.came(2);
        tokio::task::yield_now().await;
        assert!(!wait.is_finished(), "one is missing");
        company.came(3);
        let told = tokio::time::timeout(Duration::from_secs(10), wait).await;
        told.expect("it is told, and did not wait in vain")
            .expect("it does not panic");
        company.wait_for(3, || 3).await;

        let company = Company::default();
        company.came(5);
        let began = std::time::Instant::now();
        company.wait_for(3, || 2).await;
        assert!(
            began.elapsed() >= WAIT_MAX,
            "who came while nobody waited is not told of later"
        );
    }
}
