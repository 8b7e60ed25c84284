//! What the tests share: clusters of this build as real processes, providers that keep a ledger, watchers that check each
//! frame; and one server in the process of the test.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rollcall_client::v1::GroupSettings;
use rollcall_client::{
    Effect, Entry, Expected, Registration, Registry, RegistryConfig, ServiceKey, Session, SessionOptions,
    WriteOptions,
};
use rollcall_jepsen::lab::crowd::Crowd;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::watching::{Mirror, Told, Watching};
use rollcall_jepsen::lab::{Cluster, ClusterOptions, WAIT_MAX, eventually};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

pub(crate) mod alone;

/// The group of every test.
pub(crate) const GROUP: &str = "test";
/// Most nodes of one writer: four of them stay below a service's bound.
const NODES_EACH_MAX: u16 = 1_200;

/// Keeps a crowd alive that began to be heard then. Ends when one of it was struck off: its heartbeats were late.
///
/// # Panics
/// It was struck off though they were in time.
pub(crate) async fn keep_alive(crowd: &mut Crowd, ttl: Duration, began: Instant) -> String {
    let (mut asked_at, mut longest) = (began, Duration::ZERO);
    loop {
        let asks_at = Instant::now();
        let struck_off = crowd.renew().await.unwrap();
        longest = longest.max(asked_at.elapsed());
        asked_at = asks_at;
        if struck_off > 0 {
            assert!(
                longest >= ttl,
                "{struck_off} were struck off, never silent for more than {longest:?}"
            );
            return format!("no heartbeat for {longest:?}");
        }
        tokio::time::sleep(ttl / 6).await;
    }
}

/// How many clusters one test program runs at a time: the tests mostly wait, but elections want a processor.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A cluster, and the right to run one.
pub(crate) struct Stage {
    cluster: Cluster,
    _room: SemaphorePermit<'static>,
}

impl Deref for Stage {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// A cluster of the `rollcalld` that belongs to this test, with the group [`GROUP`].
pub(crate) async fn cluster(servers: u64) -> Stage {
    cluster_with(ClusterOptions::servers(servers)).await
}

/// As [`cluster`], with these options.
pub(crate) async fn cluster_with(options: ClusterOptions) -> Stage {
    let room = ROOM.acquire().await.unwrap();
    let options = ClusterOptions {
        // Another one may be put to the same tests.
        binary: Some(
            std::env::var_os("ROLLCALLD").map_or_else(|| env!("CARGO_BIN_EXE_rollcalld").into(), Into::into),
        ),
        ..options
    };
    let cluster = Cluster::start_with(options).await.unwrap();
    let settings = GroupSettings {
        auto_create: true,
        ..GroupSettings::default()
    };
    registry(&cluster.addresses(), 0)
        .put_group(GROUP, settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
    Stage { cluster, _room: room }
}

/// A client that begins with the server at `first` in the list.
pub(crate) fn registry(addresses: &[String], first: usize) -> Registry {
    let mut addresses = addresses.to_vec();
    let first = first % addresses.len();
    addresses.rotate_left(first);
    Registry::connect(RegistryConfig::new(addresses)).unwrap()
}

/// Writers that register new nodes of one service without a pause, until told to stop.
pub(crate) struct Load {
    book: Arc<Book>,
    tasks: Vec<JoinHandle<Session>>,
}

#[derive(Default)]
struct Book {
    stopping: AtomicBool,
    acknowledged: AtomicU64,
    /// By node: the revision of its acknowledged registration; `None`: no certain outcome.
    nodes: Mutex<BTreeMap<String, Option<u64>>>,
}

/// What the writers know when they have stopped. Their sessions are kept, so that the nodes stay.
pub(crate) struct Ledger {
    pub(crate) nodes: BTreeMap<String, Option<u64>>,
    pub(crate) sessions: Vec<Session>,
}

impl Load {
    pub(crate) async fn start(addresses: &[String], service: &str, writers: usize, ttl: Duration) -> Self {
        let book = Arc::new(Book::default());
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let session = registry(addresses, writer)
                .open_session(SessionOptions::ttl(ttl))
                .await
                .unwrap();
            tasks.push(tokio::spawn(write(
                Arc::clone(&book),
                session,
                ServiceKey::new(GROUP, service),
                writer,
            )));
        }
        Self { book, tasks }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.book.acknowledged.load(Ordering::Acquire)
    }

    /// Waits for `more` acknowledged writes beyond those so far.
    pub(crate) async fn wait_more(&self, more: u64) {
        let enough = self.acknowledged() + more;
        eventually("further acknowledged writes", WAIT_MAX, || async {
            (self.acknowledged() >= enough).then_some(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn stop(self) -> Ledger {
        self.book.stopping.store(true, Ordering::Release);
        let mut sessions = Vec::new();
        for task in self.tasks {
            sessions.push(task.await.unwrap());
        }
        let nodes = self
            .book
            .nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ledger { nodes, sessions }
    }
}

async fn write(book: Arc<Book>, session: Session, service: ServiceKey, writer: usize) -> Session {
    let mut number = 0_u16;
    while !book.stopping.load(Ordering::Acquire) && number < NODES_EACH_MAX {
        let id = format!("w{writer}-{number}");
        let registration = Registration::new("tcp", "127.0.0.1", 1 + number).id(&id);
        number += 1;
        let note = |outcome| {
            book.nodes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id.clone(), outcome)
        };
        match session.register(&service, registration).await {
            Ok(written) => {
                note(Some(written.revision));
                book.acknowledged.fetch_add(1, Ordering::AcqRel);
            }
            Err(error) if error.effect() == Effect::Unknown => drop(note(None)),
            Err(error) => assert!(error.is_transient(), "a registration was refused: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    session
}

impl Ledger {
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = (&String, u64)> {
        self.nodes
            .iter()
            .filter_map(|(id, revision)| revision.map(|revision| (id, revision)))
    }

    /// Every acknowledged registration is at every server, and nothing that was never asked for.
    pub(crate) async fn assert_kept(&self, cluster: &mut Cluster, service: &str) {
        let revision = cluster.wait_converged(WAIT_MAX).await.unwrap();
        for server in cluster.servers() {
            let view = local_view(server.address(), GROUP, service, revision)
                .await
                .unwrap()
                .unwrap();
            let listed: BTreeMap<_, _> = view
                .nodes
                .iter()
                .map(|node| (&node.id, node.created_revision))
                .collect();
            for (id, revision) in self.acknowledged() {
                assert_eq!(
                    listed.get(id),
                    Some(&revision),
                    "node {id} at server {}",
                    server.id()
                );
            }
            for id in listed.keys() {
                assert!(
                    self.nodes.contains_key(*id),
                    "server {} lists {id}, which nobody registered",
                    server.id()
                );
            }
        }
    }
}

/// Providers that only want to stay: `sessions` sessions, each with `nodes_each` nodes of `service`.
pub(crate) async fn fleet(
    addresses: &[String],
    service: &str,
    sessions: usize,
    nodes_each: u16,
    ttl: Duration,
) -> Vec<Session> {
    let mut fleet = Vec::new();
    let key = ServiceKey::new(GROUP, service);
    for number in 0..sessions {
        let session = registry(addresses, number)
            .open_session(SessionOptions::ttl(ttl))
            .await
            .unwrap();
        let entry = |port| {
            let registration = Registration::new("tcp", "127.0.0.1", port).id(format!("f{number}-{port}"));
            Entry::new(key.clone(), registration)
        };
        session
            .register_all((1..=nodes_each).map(entry).collect(), WriteOptions::default())
            .await
            .unwrap();
        fleet.push(session);
    }
    fleet
}

/// Follows a service at one server after the other, resuming each time, and keeps all that was told.
pub(crate) struct Follower {
    shared: Arc<Mutex<Followed>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct Followed {
    mirror: Mirror,
    pub(crate) told: Vec<Told>,
    pub(crate) streams: u64,
    pub(crate) broken: Option<String>,
}

impl Follower {
    /// Begins at the server at `first` in the list; goes to the next one when a stream ends.
    pub(crate) fn start(addresses: &[String], service: &str, first: usize) -> Self {
        let shared = Arc::new(Mutex::new(Followed::default()));
        let task = follow(Arc::clone(&shared), addresses.to_vec(), service.to_owned(), first);
        Self {
            shared,
            task: tokio::spawn(task),
        }
    }

    pub(crate) fn look<T>(&self, at: impl FnOnce(&Followed) -> T) -> T {
        at(&self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until everything up to `revision` was told.
    pub(crate) async fn wait_revision(&self, revision: u64) {
        let told = eventually("a revision at a watcher", WAIT_MAX, || async {
            let (now, broken) = self.look(|of| (of.mirror.revision(), of.broken.clone()));
            assert_eq!(broken, None, "a guarantee of the watch");
            (now >= revision).then_some(())
        })
        .await;
        let now = self.look(|of| of.mirror.revision());
        assert!(
            told.is_ok(),
            "the watcher is at revision {now}, {revision} was written"
        );
    }

    /// Waits until `nodes` nodes are listed.
    pub(crate) async fn wait_nodes(&self, service: &str, nodes: usize) {
        let service = format!("{GROUP}/{service}");
        eventually("all nodes at a watcher", WAIT_MAX, || async {
            (self.look(|of| of.mirror.nodes(&service).count()) == nodes).then_some(())
        })
        .await
        .unwrap();
    }

    /// How many nodes were told to be gone so far.
    pub(crate) fn removals(&self) -> usize {
        self.look(|of| of.told.iter().map(|told| told.removed.len()).sum())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(shared: Arc<Mutex<Followed>>, addresses: Vec<String>, service: String, first: usize) {
    for turn in first.. {
        let after = shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .mirror
            .revision();
        let address = &addresses[turn % addresses.len()];
        if let Ok(mut watching) = Watching::service(address, GROUP, &service, after).await {
            shared.lock().unwrap_or_else(PoisonError::into_inner).streams += 1;
            while let Ok(frame) = watching.next().await {
                let mut followed = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match followed.mirror.take(frame) {
                    Ok(told) => followed.told.extend(told),
                    Err(broken) => {
                        followed.broken = Some(format!("{broken:#}"));
                        return;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
