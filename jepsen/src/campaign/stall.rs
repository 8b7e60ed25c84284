//! How late the harness itself was: its own stalls are nobody else's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::history::{Fault, History, Record};

const TICK: Duration = Duration::from_millis(10);
/// From here on a stall is written down and excuses lateness.
const NOTED: Duration = Duration::from_millis(250);
/// So much lateness within a second, in small pieces, excuses it as well.
const STARVED: Duration = Duration::from_millis(300);

/// A thread that does nothing but look whether it is late.
#[derive(Debug)]
pub(super) struct StallWatch {
    stop: Arc<AtomicBool>,
    worst_micros: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl StallWatch {
    pub(super) fn start(history: &History) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let worst = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("rc-stalls".into()).spawn({
            let (stop, worst, history) = (Arc::clone(&stop), Arc::clone(&worst), history.clone());
            move || watch(&stop, &worst, &history)
        })?;
        Ok(Self {
            stop,
            worst_micros: worst,
            thread: Some(thread),
        })
    }

    /// The worst so far.
    pub(super) fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_micros.load(Ordering::Relaxed))
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(stop: &AtomicBool, worst: &AtomicU64, history: &History) {
    let mut second = Second::new(history);
    while !stop.load(Ordering::Acquire) {
        let slept = Instant::now();
        std::thread::sleep(TICK);
        let late = slept.elapsed().saturating_sub(TICK);
        worst.fetch_max(
            u64::try_from(late.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
        if late >= NOTED {
            let began = history.now().saturating_sub(late);
            note(
                history,
                began,
                format!("the harness itself stood still for {late:?}"),
            );
        }
        second.add(late, history);
    }
}

/// How late it was within a second, bit by bit: on a machine that has too much to do nobody keeps time.
struct Second {
    began: Duration,
    late: Duration,
}

impl Second {
    fn new(history: &History) -> Self {
        Self {
            began: history.now(),
            late: Duration::ZERO,
        }
    }

    fn add(&mut self, late: Duration, history: &History) {
        self.late += late;
        if history.now() < self.began + Duration::from_secs(1) {
            return;
        }
        if self.late >= STARVED {
            let what = format!(
                "the harness itself was starved: late by {:?} within a second",
                self.late
            );
            note(history, self.began, what);
        }
        *self = Self::new(history);
    }
}

fn note(history: &History, began: Duration, what: String) {
    history.record(Record::Fault(Fault {
        what,
        time: began,
        end: history.now(),
        bit: true,
        effect: String::new(),
    }));
}
