//! Writes that are sent again, with the same request id and at another server, when nobody knows what became of them, and
//! sometimes also when everybody does. Registers of their own show whether any of them was applied twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rollcall_proto::v1::{ReadMode, ServiceKey, WriteOptions};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, options, persistent, reading, service, value_of};
use super::door::put_group;
use crate::history::{Answer, Function, Operation, Phase, Record};
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "retries";
const NODE: &str = "r";
/// Registers in use at a time, and operations on one.
const OPEN: u64 = 3;
const OPERATIONS_MAX: u64 = 120;
/// How often a request is sent again while nobody knows.
const ATTEMPTS_MAX: u64 = 8;
/// Short enough that some outcomes are unknown.
const TIMEOUT_MS: u32 = 250;
const PAUSE_MAX_MS: u64 = 30;
const FIRST_KEY: u64 = 2_000_000;
const FIRST_PROCESS: u64 = 2_000_000;

#[derive(Debug)]
struct Shared {
    stage: Stage,
    processes: AtomicU64,
    values: AtomicU64,
    operations: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub struct Retries {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Retries {
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
        let shared = Arc::new(Shared {
            stage: stage.clone(),
            processes: AtomicU64::new(FIRST_PROCESS),
            values: AtomicU64::new(1),
            operations: AtomicU64::new(0),
        });
        let mut clients = JoinSet::new();
        for client in 0..stage.clients {
            let random = Seeded::fork(stage.seed, 80_000 + client);
            clients.spawn(work(Arc::clone(&shared), random));
        }
        Self { shared, clients }
    }

    /// Waits until the clients have ended (they were told to stop), then reads every register.
    pub async fn finish(mut self) {
        while self.clients.join_next().await.is_some() {}
        let last = self.shared.register(OPEN - 1);
        for (_, address) in self.shared.stage.servers() {
            for register in 0..=last {
                self.shared.read(address, register).await;
            }
        }
    }
}

async fn work(shared: Arc<Shared>, mut random: Seeded) {
    let mut late = JoinSet::new();
    while shared.stage.goes_on() {
        shared.operations.fetch_add(1, Ordering::Relaxed);
        let register = shared.register(random.below(OPEN));
        if random.chance(0.35) {
            let (_, address) = shared.stage.any_server(&mut random);
            shared.read(&address, register).await;
        } else {
            let seed = random.next();
            write(&shared, register, &mut late, Seeded::new(seed)).await;
        }
        while late.try_join_next().is_some() {}
        tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
    }
    while late.join_next().await.is_some() {}
}

/// Sends a write until somebody knows what became of it, and perhaps once more, later.
async fn write(shared: &Arc<Shared>, register: u64, late: &mut JoinSet<()>, mut random: Seeded) {
    let value = shared.values.fetch_add(1, Ordering::Relaxed);
    let process = shared.processes.fetch_add(1, Ordering::Relaxed);
    let id = [random.next().to_be_bytes(), random.next().to_be_bytes()].concat();
    let note = |phase| shared.note(process, register, Function::Write(value), phase);
    note(Phase::Invoke);
    let mut phase = Phase::Fail;
    for _ in 0..random.between(1, ATTEMPTS_MAX) {
        let (_, address) = shared.stage.any_server(&mut random);
        match attempt(shared, &address, register, value, &id).await {
            Some(Wrote::Ok(written)) => {
                phase = Phase::Ok {
                    value: None,
                    revision: written.revision,
                };
                break;
            }
            // What was sent before may still be under way.
            Some(Wrote::Nothing(_)) | None => {}
            Some(Wrote::Unknown) => phase = Phase::Info,
        }
        tokio::time::sleep(ms(random.below(100))).await;
    }
    note(phase);
    // Somebody did not hear the answer: again, whatever happened to the register meanwhile.
    if matches!(phase, Phase::Ok { .. }) && random.chance(0.4) {
        let shared = Arc::clone(shared);
        late.spawn(async move {
            tokio::time::sleep(ms(random.below(2_500))).await;
            let (_, address) = shared.stage.any_server(&mut random);
            attempt(&shared, &address, register, value, &id).await;
        });
    }
}

/// `None`: it did not even leave.
async fn attempt(shared: &Shared, address: &str, register: u64, value: u64, id: &[u8]) -> Option<Wrote> {
    let mut caller = Caller::to(address).await?;
    let options = WriteOptions {
        request_id: id.to_vec().into(),
        timeout_ms: TIMEOUT_MS,
        ..options()
    };
    let wrote = caller
        .register(options, vec![persistent(&key(register), NODE, value)])
        .await;
    if let Wrote::Ok(written) = &wrote {
        shared.stage.history.record(Record::Answer(Answer::Repeat {
            request: value,
            revision: written.revision,
            repeated: written.repeated,
            time: shared.stage.history.now(),
        }));
    }
    Some(wrote)
}

fn key(register: u64) -> ServiceKey {
    service(GROUP, &format!("r{register}"))
}

impl Shared {
    /// The registers in use change as operations go by.
    fn register(&self, slot: u64) -> u64 {
        let round = self.operations.load(Ordering::Relaxed) / (OPEN * OPERATIONS_MAX);
        round * OPEN + slot
    }

    async fn read(&self, address: &str, register: u64) {
        let process = self.processes.fetch_add(1, Ordering::Relaxed);
        let Some(mut caller) = Caller::to(address).await else {
            return;
        };
        self.note(process, register, Function::Read, Phase::Invoke);
        let read = caller.view(key(register), reading(ReadMode::Linearizable)).await;
        let phase = match read {
            Ok((header, view)) => Phase::Ok {
                value: view.and_then(|view| view.nodes.iter().find(|node| node.id == NODE).map(value_of)),
                revision: header.revision,
            },
            Err(_) => Phase::Fail,
        };
        self.note(process, register, Function::Read, phase);
    }

    fn note(&self, process: u64, register: u64, function: Function, phase: Phase) {
        self.stage.history.record(Record::Operation(Operation {
            process,
            key: FIRST_KEY + register,
            function,
            phase,
            time: self.stage.history.now(),
        }));
    }
}
