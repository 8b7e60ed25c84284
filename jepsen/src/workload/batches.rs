//! Sets of nodes that are only ever written together: a set is a register made of many nodes. Some batches contain one
//! node that is refused; nothing of them may happen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rollcall_proto::v1::expected::Condition;
use rollcall_proto::v1::{Expected, ReadMode, ServiceKey, ServiceView};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, node_key, options, persistent, reading, service, value_of};
use super::door::put_group;
use super::follower::Follower;
use crate::history::{Answer, Function, Operation, Phase, Record};
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "batches";
/// How many nodes the sets have, one after the other.
const SIZES: [usize; 4] = [2, 7, 40, 200];
/// Sets that are also deregistered, a whole set at a time, are judged by their wholeness alone.
const VANISHES_EACH: u64 = 4;
/// Operations on one set.
const OPERATIONS_MAX: u64 = 120;
const PAUSE_MAX_MS: u64 = 60;
/// Registers of other workloads have other keys.
const FIRST_KEY: u64 = 1_000_000;
/// So are processes.
const FIRST_PROCESS: u64 = 1_000_000;
/// A revision that no node was ever written at.
const NO_REVISION: u64 = u64::MAX;

#[derive(Debug)]
struct Shared {
    stage: Stage,
    processes: AtomicU64,
    values: AtomicU64,
    /// Sets in use, with the operations begun on each, and the next to be used.
    open: Mutex<(Vec<(u64, u64)>, u64)>,
}

/// Clients and watchers at work.
#[derive(Debug)]
pub struct Batches {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    watchers: JoinSet<()>,
}

impl Batches {
    /// Makes the group.
    ///
    /// # Errors
    /// No server takes it in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group(&stage.addresses, GROUP, 10_000).await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        let sizes = SIZES.len() as u64;
        let shared = Arc::new(Shared {
            stage: stage.clone(),
            processes: AtomicU64::new(FIRST_PROCESS),
            values: AtomicU64::new(1),
            open: Mutex::new(((0..sizes).map(|set| (set, 0)).collect(), sizes)),
        });
        let mut clients = JoinSet::new();
        for client in 0..stage.clients.div_ceil(2) {
            let random = Seeded::fork(stage.seed, 70_000 + client);
            clients.spawn(work(Arc::clone(&shared), random));
        }
        // The first sets are watched as well.
        let mut watchers = JoinSet::new();
        for set in 0..sizes {
            let follower = Follower {
                name: format!("batches-{set}"),
                key: key(set),
                first: usize::try_from(set).unwrap_or(0),
                stays: (4_000, 12_000),
                away_max: 30,
                position: Arc::default(),
            };
            let random = Seeded::fork(stage.seed, 71_000 + set);
            watchers.spawn(follower.follow(stage.clone(), random));
        }
        Self {
            shared,
            clients,
            watchers,
        }
    }

    /// Waits until the clients have ended (they were told to stop), then reads every set at every server.
    pub async fn finish(mut self) {
        while self.clients.join_next().await.is_some() {}
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
        let sets = self.shared.lock().1;
        for (_, address) in self.shared.stage.servers() {
            let Some(mut client) = Client::to(&self.shared, address).await else {
                continue;
            };
            for set in 0..sets {
                client.read(set).await;
            }
        }
    }
}

/// How many nodes a set has.
fn size(set: u64) -> usize {
    SIZES[usize::try_from(set).unwrap_or(0) % SIZES.len()]
}

fn vanishes(set: u64) -> bool {
    (set / SIZES.len() as u64) % VANISHES_EACH == VANISHES_EACH - 1
}

fn key(set: u64) -> ServiceKey {
    service(GROUP, &format!("set{set}"))
}

fn node(number: usize) -> String {
    format!("n{number}")
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<(u64, u64)>, u64)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the sets in use; a worn one is replaced by one of the same size.
    fn choose(&self, random: &mut Seeded) -> u64 {
        let mut open = self.lock();
        let (sets, next) = &mut *open;
        let chosen = usize::try_from(random.below(sets.len() as u64)).unwrap_or(0);
        sets[chosen].1 += 1;
        if sets[chosen].1 > OPERATIONS_MAX {
            let later = sets[chosen].0 + SIZES.len() as u64;
            sets[chosen] = (later, 1);
            *next = (*next).max(later + 1);
        }
        sets[chosen].0
    }
}

async fn work(shared: Arc<Shared>, mut random: Seeded) {
    while shared.stage.goes_on() {
        let (_, address) = shared.stage.any_server(&mut random);
        let Some(mut client) = Client::to(&shared, &address).await else {
            tokio::time::sleep(ms(100)).await;
            continue;
        };
        for _ in 0..random.between(10, 100) {
            if !shared.stage.goes_on() || !client.one(&mut random).await {
                break;
            }
            tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
        }
    }
}

struct Client {
    shared: Arc<Shared>,
    caller: Caller,
    process: u64,
}

impl Client {
    async fn to(shared: &Arc<Shared>, address: &str) -> Option<Self> {
        Some(Self {
            shared: Arc::clone(shared),
            caller: Caller::to(address).await?,
            process: shared.processes.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// One operation; `false`: go elsewhere.
    async fn one(&mut self, random: &mut Seeded) -> bool {
        let set = self.shared.choose(random);
        match random.below(10) {
            0..4 => self.read(set).await,
            4 => self.write(set, true, random).await,
            5 | 6 if vanishes(set) => self.deregister(set).await,
            _ => self.write(set, false, random).await,
        }
    }

    async fn read(&mut self, set: u64) -> bool {
        self.note(set, Function::Read, Phase::Invoke);
        let read = self.caller.view(key(set), reading(ReadMode::Linearizable)).await;
        let Ok((header, view)) = read else {
            // A read changes nothing, whatever became of it.
            self.note(set, Function::Read, Phase::Fail);
            return false;
        };
        let nodes = nodes(set, &view.unwrap_or_default());
        let value = nodes.first().copied().flatten().map(|(value, _)| value);
        self.shared.stage.history.record(Record::Answer(Answer::Batch {
            set,
            nodes,
            time: self.shared.stage.history.now(),
        }));
        let revision = header.revision;
        self.note(set, Function::Read, Phase::Ok { value, revision });
        true
    }

    /// Gives all nodes of a set a new value. `poisoned`: one of them is only to be written if it is what it cannot be.
    async fn write(&mut self, set: u64, poisoned: bool, random: &mut Seeded) -> bool {
        let value = self.shared.values.fetch_add(1, Ordering::Relaxed);
        let mut nodes: Vec<_> = (0..size(set))
            .map(|number| persistent(&key(set), &node(number), value))
            .collect();
        if poisoned
            && let Some(bad) = random
                .below(nodes.len() as u64)
                .try_into()
                .ok()
                .and_then(|at: usize| nodes.get_mut(at))
        {
            bad.expected = Some(Expected {
                condition: Some(Condition::Revision(NO_REVISION)),
            });
        }
        self.note(set, Function::Write(value), Phase::Invoke);
        let phase = match self.caller.register(options(), nodes).await {
            Wrote::Ok(written) => Phase::Ok {
                value: None,
                revision: written.revision,
            },
            Wrote::Nothing(_) => Phase::Fail,
            Wrote::Unknown => Phase::Info,
        };
        self.note(set, Function::Write(value), phase);
        if phase == Phase::Info {
            self.process = self.shared.processes.fetch_add(1, Ordering::Relaxed);
        }
        matches!(phase, Phase::Ok { .. }) || poisoned
    }

    async fn deregister(&mut self, set: u64) -> bool {
        let keys = (0..size(set)).map(|number| node_key(&key(set), &node(number)));
        matches!(
            self.caller.deregister(options(), keys.collect()).await,
            Wrote::Ok(_)
        )
    }

    /// Sets that vanish are no registers: a deregistration is not among a register's operations.
    fn note(&self, set: u64, function: Function, phase: Phase) {
        if vanishes(set) {
            return;
        }
        let history = &self.shared.stage.history;
        history.record(Record::Operation(Operation {
            process: self.process,
            key: FIRST_KEY + set,
            function,
            phase,
            time: history.now(),
        }));
    }
}

/// Of each node of a set what it carries, and since when.
fn nodes(set: u64, view: &ServiceView) -> Vec<Option<(u64, u64)>> {
    (0..size(set))
        .map(|number| {
            let node = view.nodes.iter().find(|of| of.id == node(number))?;
            Some((value_of(node), node.modified_revision))
        })
        .collect()
}
