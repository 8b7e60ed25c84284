//! Consumers: they find the services through the SDK's watch and call them without a pause, each answer checked.
//! A call that fails is tried again at another instance; only when all fail does the user see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Method;
use parking_lot::Mutex;
use rollcall_client::{Choice, Node, Picked, Picker, Registry, RegistryConfig, ServiceKey, ServiceWatch};
use rollcall_jepsen::lab::{NotInTime, WAIT_MAX, eventually};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::http::HttpClient;
use crate::services::{Job, sha256_hex};
use crate::stage::GROUP;

const CONSUMERS: usize = 3;
/// Pause between two rounds of one consumer; a round is a call to each service.
const ROUND_EVERY: Duration = Duration::from_millis(15);
/// How many instances a call is tried at.
const ATTEMPTS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Consumers {
    registries: Vec<Registry>,
    book: Arc<Book>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Book {
    stopping: AtomicBool,
    calls: AtomicU64,
    failed: AtomicU64,
    rounds: [AtomicU64; CONSUMERS],
    user_visible_failures: AtomicU64,
    wrong_answers: AtomicU64,
    phase: Mutex<String>,
    failures: Mutex<BTreeMap<(String, String), u64>>,
}

/// What consumers met, in all.
#[derive(Debug)]
pub(crate) struct Consumed {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) user_visible_failures: u64,
    pub(crate) wrong_answers: u64,
    /// By instance and phase of the play.
    pub(crate) failures: BTreeMap<(String, String), u64>,
}

impl Consumers {
    pub(crate) fn new(addresses: &[String]) -> anyhow::Result<Self> {
        let mut registries = Vec::new();
        for number in 0..CONSUMERS {
            let mut addresses = addresses.to_vec();
            let first = number % addresses.len();
            addresses.rotate_left(first);
            let config = RegistryConfig::new(addresses).client_name(format!("demo consumer {number}"));
            registries.push(Registry::connect(config)?);
        }
        Ok(Self {
            registries,
            book: Arc::default(),
            tasks: Vec::new(),
        })
    }

    pub(crate) fn start(&mut self) {
        self.phase("nothing was wrong");
        for (number, registry) in self.registries.iter().enumerate() {
            let consumer = Consumer {
                number,
                registry: registry.clone(),
                http: HttpClient::new(),
                book: Arc::clone(&self.book),
            };
            self.tasks.push(tokio::spawn(consumer.consume()));
        }
    }

    /// What goes on from now; failures are counted by it.
    pub(crate) fn phase(&self, phase: &str) {
        *self.book.phase.lock() = phase.into();
    }

    pub(crate) fn calls(&self) -> u64 {
        self.book.calls.load(Ordering::Acquire)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.book.failed.load(Ordering::Acquire)
    }

    /// Calls that failed in `phase` at another instance than `instance`.
    pub(crate) fn failed_at_others(&self, instance: &str, phase: &str) -> u64 {
        let failures = self.book.failures.lock();
        let others = failures
            .iter()
            .filter(|((at, when), _)| at != instance && when == phase);
        others.map(|(_, count)| count).sum()
    }

    /// Waits until each consumer has made `rounds` more rounds from beginning to end.
    pub(crate) async fn rounds(&self, rounds: u64) -> Result<(), NotInTime> {
        let before: Vec<u64> = self
            .book
            .rounds
            .iter()
            .map(|of| of.load(Ordering::Acquire))
            .collect();
        eventually("further rounds of every consumer", WAIT_MAX, || async {
            let mut now = self.book.rounds.iter().zip(&before);
            // One more: the round that is under way now does not count.
            now.all(|(of, before)| of.load(Ordering::Acquire) > before + rounds)
                .then_some(())
        })
        .await
    }

    pub(crate) async fn stop(&mut self) -> Consumed {
        self.book.stopping.store(true, Ordering::Release);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        Consumed {
            calls: self.calls(),
            failed: self.failed(),
            user_visible_failures: self.book.user_visible_failures.load(Ordering::Acquire),
            wrong_answers: self.book.wrong_answers.load(Ordering::Acquire),
            failures: self.book.failures.lock().clone(),
        }
    }
}

struct Consumer {
    number: usize,
    registry: Registry,
    http: HttpClient,
    book: Arc<Book>,
}

impl Consumer {
    async fn consume(self) {
        let mut discoveries = BTreeMap::new();
        for job in Job::ALL {
            match self.discover(job).await {
                Ok(discovery) => {
                    discoveries.insert(job, (discovery, Picker::new(Choice::RoundRobin)));
                }
                Err(error) => {
                    self.fail_user(job, &format!("discovery: {error:#}"));
                    return;
                }
            }
        }
        let mut turn = 0;
        while !self.book.stopping.load(Ordering::Acquire) {
            self.round(&discoveries, turn).await;
            self.book.rounds[self.number].fetch_add(1, Ordering::AcqRel);
            turn += 1;
            tokio::time::sleep(ROUND_EVERY).await;
        }
    }

    /// The watch of a service, once a server has confirmed it.
    async fn discover(&self, job: Job) -> anyhow::Result<ServiceWatch> {
        let mut watch = self
            .registry
            .watch_service(&ServiceKey::new(GROUP, job.name()))
            .await?;
        tokio::time::timeout(WAIT_MAX, watch.live()).await??;
        Ok(watch)
    }

    /// A quote, its words counted, its digest, and the factors of its checksum.
    async fn round(&self, discoveries: &BTreeMap<Job, (ServiceWatch, Picker)>, turn: u64) {
        let get = Method::GET;
        let path = format!("/quote?number={turn}");
        let Some(quote) = self
            .call(discoveries, Job::Quotes, get.clone(), &path, String::new())
            .await
        else {
            return;
        };
        let text = quote["text"].as_str().unwrap_or_default().to_owned();
        self.check(!text.is_empty());

        let counted = self
            .call(discoveries, Job::Wordcount, Method::POST, "/count", text.clone())
            .await;
        let words = text.split_whitespace().count() as u64;
        self.check(counted.is_none_or(|of| of["words"].as_u64() == Some(words)));

        let digests = self
            .call(discoveries, Job::Checksum, Method::POST, "/digest", text.clone())
            .await;
        let Some(digests) = digests else { return };
        self.check(digests["sha256"].as_str() == Some(&sha256_hex(text.as_bytes())));

        let crc = digests["crc32"].as_u64().unwrap_or_default();
        let path = format!("/factor?n={crc}");
        let factored = self
            .call(discoveries, Job::Factor, get, &path, String::new())
            .await;
        self.check(factored.is_none_or(|of| {
            let factors = of["factors"].as_array().map(Vec::as_slice).unwrap_or_default();
            factors.iter().filter_map(Value::as_u64).product::<u64>() == crc
        }));
    }

    /// Calls an instance of `job`; if that fails, another one. `None`: all that were tried failed.
    async fn call(
        &self,
        discoveries: &BTreeMap<Job, (ServiceWatch, Picker)>,
        job: Job,
        method: Method,
        path: &str,
        body: String,
    ) -> Option<Value> {
        let (discovery, picker) = discoveries.get(&job)?;
        let mut tried = BTreeSet::new();
        let mut last = String::from("no node is listed");
        for _ in 0..ATTEMPTS_MAX {
            let untried = |node: &Node| !tried.contains(&node.id);
            let Some(Picked { node, .. }) = picker.pick_from(&discovery.view(), untried) else {
                break;
            };
            tried.insert(node.id.clone());
            let Some(address) = node.addresses.first() else {
                continue;
            };
            self.book.calls.fetch_add(1, Ordering::AcqRel);
            match self
                .http
                .call(method.clone(), &address.authority(), path, body.clone())
                .await
            {
                Ok(answer) => {
                    self.check(answer.instance == *node.id);
                    return Some(answer.json);
                }
                Err(error) => {
                    last = format!("{error:#}");
                    self.fail(&node.id);
                }
            }
        }
        self.fail_user(job, &last);
        None
    }

    fn check(&self, right: bool) {
        if !right {
            self.book.wrong_answers.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn fail(&self, instance: &str) {
        self.book.failed.fetch_add(1, Ordering::AcqRel);
        let phase = self.book.phase.lock().clone();
        *self
            .book
            .failures
            .lock()
            .entry((instance.into(), phase))
            .or_default() += 1;
    }

    fn fail_user(&self, job: Job, why: &str) {
        self.book.user_visible_failures.fetch_add(1, Ordering::AcqRel);
        eprintln!(
            "consumer {}: {} failed for its user: {why}",
            self.number,
            job.name()
        );
    }
}
