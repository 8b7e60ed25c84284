//! Providers that register, update and deregister without a pause, each through the SDK on a session of its own.
//! They know what was acknowledged, and when nobody could write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_client::{
    Effect, Error, NodeUpdate, Registration, Registry, RegistryConfig, ServiceKey, Session, SessionOptions,
    Written,
};
use tokio::task::JoinHandle;

use crate::stage::GROUP;
use crate::truth::Truth;
use crate::witness::QUIET_SERVICE;

const WRITERS: usize = 3;
/// Pause between two writes of one writer; bounds how finely a gap is measured.
const WRITE_EVERY: Duration = Duration::from_millis(15);
/// Every so many writes one is a registration, every so many a deregistration; the rest are updates.
const REGISTER_EVERY: u64 = 8;
const DEREGISTER_EVERY: u64 = 24;
/// Most nodes that a writer keeps registered.
const NODES_MAX: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Writers {
    addresses: Vec<String>,
    ttl: Duration,
    truth: Truth,
    book: Arc<Book>,
    tasks: Vec<JoinHandle<()>>,
}

/// What was acknowledged.
#[derive(Debug, Default)]
struct Book {
    stopping: AtomicBool,
    inner: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    nodes: BTreeMap<String, State>,
    /// When each write was acknowledged, and to which writer.
    acknowledged_at: Vec<(Instant, usize)>,
    registered: u64,
    unknown: u64,
    failed: u64,
}

/// What the answers so far say of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its registration was acknowledged, and no deregistration was sent.
    Listed,
    /// Its deregistration was acknowledged.
    Gone,
    /// A registration or deregistration has, or had, no certain outcome.
    Either,
}

/// What must hold when everybody has stopped.
#[derive(Debug)]
pub(crate) struct WritersLedger {
    nodes: BTreeMap<String, State>,
    pub(crate) acknowledged: u64,
    pub(crate) registered: u64,
    pub(crate) unknown: u64,
    pub(crate) failed: u64,
}

impl WritersLedger {
    pub(crate) fn must_be_listed(&self) -> Vec<String> {
        self.in_state(State::Listed)
    }

    pub(crate) fn must_be_gone(&self) -> Vec<String> {
        self.in_state(State::Gone)
    }

    fn in_state(&self, wanted: State) -> Vec<String> {
        self.nodes
            .iter()
            .filter(|(_, state)| **state == wanted)
            .map(|(id, _)| id.clone())
            .collect()
    }
}

impl Writers {
    pub(crate) fn new(addresses: &[String], ttl: Duration, truth: Truth) -> Self {
        Self {
            addresses: addresses.into(),
            ttl,
            truth,
            book: Arc::default(),
            tasks: Vec::new(),
        }
    }

    /// Opens the sessions and begins to write.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        for number in 0..WRITERS {
            // Each begins at another server.
            let mut addresses = self.addresses.clone();
            addresses.rotate_left(number % self.addresses.len());
            let config = RegistryConfig::new(addresses).client_name(format!("demo writer {number}"));
            let registry = Registry::connect(config)?;
            let session = registry.open_session(SessionOptions::ttl(self.ttl)).await?;
            let writer = Writer {
                number,
                session,
                truth: self.truth.clone(),
                book: Arc::clone(&self.book),
                next_id: 0,
                mine: Vec::new(),
            };
            self.tasks.push(tokio::spawn(writer.write()));
        }
        Ok(())
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.book.inner.lock().acknowledged_at.len() as u64
    }

    /// The longest time without any acknowledged write, from the last one before `since` on.
    pub(crate) fn longest_gap_since(&self, since: Instant) -> Duration {
        let entries = self.book.inner.lock();
        longest_gap(entries.acknowledged_at.iter().map(|(at, _)| *at), since)
    }

    /// The same for each writer by itself; the worst of them.
    pub(crate) fn longest_gap_of_one_since(&self, since: Instant) -> Duration {
        let entries = self.book.inner.lock();
        let of = |writer: usize| {
            let own = entries
                .acknowledged_at
                .iter()
                .filter(move |(_, by)| *by == writer);
            longest_gap(own.map(|(at, _)| *at), since)
        };
        (0..WRITERS).map(of).max().unwrap_or_default()
    }

    /// Lets every writer finish the write it is at. Their sessions live on until the ledger is dropped with
    /// the demo, so that what they registered stays.
    pub(crate) async fn stop(&mut self) -> WritersLedger {
        self.book.stopping.store(true, Ordering::Release);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        let entries = self.book.inner.lock();
        WritersLedger {
            nodes: entries.nodes.clone(),
            acknowledged: entries.acknowledged_at.len() as u64,
            registered: entries.registered,
            unknown: entries.unknown,
            failed: entries.failed,
        }
    }
}

fn longest_gap(acknowledged_at: impl Iterator<Item = Instant>, since: Instant) -> Duration {
    let mut last = None;
    let mut longest = Duration::ZERO;
    for at in acknowledged_at {
        if at >= since
            && let Some(last) = last
        {
            longest = longest.max(at - last);
        }
        last = Some(at);
    }
    longest
}

struct Writer {
    number: usize,
    session: Session,
    truth: Truth,
    book: Arc<Book>,
    next_id: u64,
    mine: Vec<String>,
}

impl Writer {
    async fn write(mut self) {
        let mut turn: u64 = 0;
        while !self.book.stopping.load(Ordering::Acquire) {
            if turn.is_multiple_of(DEREGISTER_EVERY) && !self.mine.is_empty() {
                self.deregister().await;
            } else if turn.is_multiple_of(REGISTER_EVERY) && self.mine.len() < NODES_MAX {
                self.register().await;
            } else {
                self.update(turn).await;
            }
            turn += 1;
            tokio::time::sleep(WRITE_EVERY).await;
        }
        KEPT.lock().push(self.session);
    }

    async fn register(&mut self) {
        let id = format!("writer-{}-{}", self.number, self.next_id);
        let port = 10_000 + u16::try_from(self.next_id % 50_000).unwrap_or(0);
        self.next_id += 1;
        let registration = Registration::new("tcp", "127.0.0.1", port).id(&id);
        self.book.inner.lock().nodes.insert(id.clone(), State::Either);
        let answer = self.session.register(&ledger(), registration).await;
        if self.note(&answer) {
            let mut entries = self.book.inner.lock();
            entries.nodes.insert(id.clone(), State::Listed);
            entries.registered += 1;
            drop(entries);
            self.truth.alive(&format!("{GROUP}/{QUIET_SERVICE}/{id}"));
            self.mine.push(id);
        }
    }

    async fn update(&mut self, turn: u64) {
        let Some(id) = self.mine.last() else {
            return self.register().await;
        };
        let update = NodeUpdate::new(ledger().node(id)).metadata("turn", Some(turn.to_string()));
        let answer = self.session.update(update).await;
        self.note(&answer);
    }

    async fn deregister(&mut self) {
        let id = self.mine.remove(0);
        self.truth.leaving(&format!("{GROUP}/{QUIET_SERVICE}/{id}"));
        self.book.inner.lock().nodes.insert(id.clone(), State::Either);
        let answer = self.session.deregister(&ledger().node(&id)).await;
        if self.note(&answer) {
            self.book.inner.lock().nodes.insert(id, State::Gone);
        }
    }

    /// Counts an answer; `true`: acknowledged.
    fn note(&self, answer: &Result<Written, Error>) -> bool {
        let mut entries = self.book.inner.lock();
        match answer {
            Ok(_) => entries.acknowledged_at.push((Instant::now(), self.number)),
            Err(error) if error.effect() == Effect::Unknown => entries.unknown += 1,
            Err(_) => entries.failed += 1,
        }
        answer.is_ok()
    }
}

/// Sessions whose writers have stopped; they keep their nodes until the process ends.
static KEPT: Mutex<Vec<Session>> = Mutex::new(Vec::new());

fn ledger() -> ServiceKey {
    ServiceKey::new(GROUP, QUIET_SERVICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_reaches_back_to_the_last_write_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let gap = |since| longest_gap([0, 900, 1_000, 1_900, 1_950].into_iter().map(at), at(since));
        assert_eq!(gap(0), Duration::from_millis(900));
        assert_eq!(gap(1_100), Duration::from_millis(900));
        assert_eq!(gap(1_920), Duration::from_millis(50));
    }
}
