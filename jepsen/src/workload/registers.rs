//! Registers: one persistent node each, in a service of its own; the value stands in its metadata.
//!
//! Values are never written twice. A register is used for a bounded number of operations and then left alone, so
//! that judging it stays cheap; its last value is read at every server at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use rollcall_proto::v1::expected::Condition;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{
    self, Address, ErrorCode, Expected, NodeKind, QueryRequest, QueryResponse, ReadMode, ReadOptions,
    RegisterNode, RegisterRequest, Registration, ServiceKey, ServiceView, WriteOptions,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::Stop;
use super::asking::Asking;
use super::door::{SERVER_MAX_MS, connect, error, surely_nothing};
use crate::history::{Function, History, Operation, Phase, Record};
use crate::seed::Seeded;

/// The registers' group.
pub const GROUP: &str = "registers";
const NODE: &str = "r";
const VALUE: &str = "value";
/// Registers in use at a time.
const OPEN: usize = 4;
/// Operations on one register.
const OPERATIONS_MAX: u64 = 150;
/// Longest pause of a client between two operations.
const PAUSE_MAX_MS: u64 = 20;

#[derive(Debug)]
struct Shared {
    addresses: Vec<String>,
    history: History,
    stop: Stop,
    reads: ReadMode,
    processes: AtomicU64,
    values: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// Registers in use, with the operations begun on each.
    registers: Vec<(u64, u64)>,
    next: u64,
}

/// Clients at work on registers.
#[derive(Debug)]
pub struct Registers {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Registers {
    /// Starts `clients` of them. The group [`GROUP`] must be there. Without a mode, half of all reads are linearizable and
    /// half are leased. Of both, half are asked on a stream of queries and half by calls.
    #[must_use]
    pub fn start(
        addresses: &[String],
        history: &History,
        stop: &Stop,
        reads: ReadMode,
        seed: u64,
        clients: u64,
    ) -> Self {
        let open = Open {
            registers: (0..OPEN as u64).map(|register| (register, 0)).collect(),
            next: OPEN as u64,
        };
        let shared = Arc::new(Shared {
            addresses: addresses.to_vec(),
            history: history.clone(),
            stop: stop.clone(),
            reads,
            processes: AtomicU64::new(0),
            values: AtomicU64::new(1),
            open: Mutex::new(open),
        });
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            tasks.spawn(work(Arc::clone(&shared), Seeded::fork(seed, 1_000 + client)));
        }
        Self {
            shared,
            clients: tasks,
        }
    }

    /// Waits until the clients have ended (they were told to stop), then reads the registers that were in use last at
    /// every server.
    pub async fn finish(mut self) {
        while self.clients.join_next().await.is_some() {}
        let registers: Vec<u64> = {
            let open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.registers.iter().map(|(register, _)| *register).collect()
        };
        for address in &self.shared.addresses {
            let Some(channel) = connect(address).await else {
                continue;
            };
            let mut client = Client::new(Arc::clone(&self.shared), channel);
            for register in &registers {
                if client.read(*register).await.is_none() {
                    client.renew_process();
                }
            }
        }
    }
}

async fn work(shared: Arc<Shared>, mut random: Seeded) {
    while !shared.stop.is_stopped() && !shared.history.is_full() {
        let Some(address) = random.pick(&shared.addresses).cloned() else {
            return;
        };
        let Some(channel) = connect(&address).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut client = Client::new(Arc::clone(&shared), channel);
        // Until an outcome is unknown, or for a while: then another server.
        for _ in 0..random.between(20, 200) {
            if shared.stop.is_stopped() || !client.one(&mut random).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(random.below(PAUSE_MAX_MS))).await;
        }
    }
}

struct Client {
    shared: Arc<Shared>,
    registry: RegistryClient<Channel>,
    /// Of a client that reads on a stream, while it has one.
    asking: Option<Asking>,
    process: u64,
}

/// What a read showed: the value and the revision it was written at.
type Read = Option<(u64, u64)>;

impl Client {
    fn new(shared: Arc<Shared>, channel: Channel) -> Self {
        let process = shared.processes.fetch_add(1, Ordering::Relaxed);
        Self {
            shared,
            registry: RegistryClient::new(channel),
            asking: None,
            process,
        }
    }

    fn renew_process(&mut self) {
        self.process = self.shared.processes.fetch_add(1, Ordering::Relaxed);
    }

    /// One operation (a conditional write reads first); `false`: go elsewhere.
    async fn one(&mut self, random: &mut Seeded) -> bool {
        let register = self.shared.register(random);
        match random.below(10) {
            0..4 => self.read(register).await.is_some(),
            4..7 => self.write(register, None).await,
            _ => match self.read(register).await {
                Some(seen) => self.write(register, Some(seen)).await,
                None => false,
            },
        }
    }

    /// `None`: no answer of use.
    async fn read(&mut self, register: u64) -> Option<Read> {
        let mode = match self.shared.reads {
            // Every other one by the leader's lease.
            ReadMode::Unspecified if self.process.is_multiple_of(2) => ReadMode::Leased,
            mode => mode,
        };
        let request = QueryRequest {
            key: Some(key(register)),
            read: Some(ReadOptions {
                mode: mode.into(),
                ..ReadOptions::default()
            }),
            ..QueryRequest::default()
        };
        self.note(register, &Function::Read, Phase::Invoke);
        let (seen, revision) = match self.query(request).await {
            Some(Ok(answer)) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                (
                    answer
                        .view
                        .and_then(|view| ServiceView::decode(view).ok())
                        .and_then(|view| value(&view)),
                    revision,
                )
            }
            Some(Err(error)) if error.code() == ErrorCode::ServiceNotFound => (None, 0),
            // A read changes nothing, whatever became of it.
            Some(Err(_)) | None => {
                self.note(register, &Function::Read, Phase::Fail);
                return None;
            }
        };
        let value = seen.map(|(value, _)| value);
        self.note(register, &Function::Read, Phase::Ok { value, revision });
        Some(seen)
    }

    /// `None`: there was no answer.
    async fn query(&mut self, query: QueryRequest) -> Option<Result<QueryResponse, v1::Error>> {
        // Two of four processes, so that each way has both kinds of reads.
        if self.process % 4 < 2 {
            let answer = self.registry.query(query).await;
            return match answer {
                Ok(answer) => Some(Ok(answer.into_inner())),
                Err(status) => error(&status).map(Err),
            };
        }
        if self.asking.is_none() {
            self.asking = Asking::open(&mut self.registry).await;
        }
        let answer = self.asking.as_mut()?.ask(query).await;
        if answer.is_none() {
            self.asking = None;
        }
        answer
    }

    /// Writes a new value, if the register is as it was seen, or whatever it is; `false`: go elsewhere.
    async fn write(&mut self, register: u64, seen: Option<Read>) -> bool {
        let new = self.shared.values.fetch_add(1, Ordering::Relaxed);
        let function = match seen {
            None => Function::Write(new),
            Some(seen) => Function::Cas(seen.map(|(value, _)| value), new),
        };
        let condition = seen.map(|seen| match seen {
            Some((_, revision)) => Condition::Revision(revision),
            None => Condition::Absent(true),
        });
        self.note(register, &function, Phase::Invoke);
        let answer = self.registry.register(request(register, new, condition)).await;
        match answer {
            Ok(written) => {
                let revision = written.into_inner().revision;
                self.note(
                    register,
                    &function,
                    Phase::Ok {
                        value: None,
                        revision,
                    },
                );
                true
            }
            Err(status) if surely_nothing(&status) => {
                self.note(register, &function, Phase::Fail);
                error(&status).is_some_and(|error| error.code() == ErrorCode::RevisionMismatch)
            }
            Err(_) => {
                self.note(register, &function, Phase::Info);
                self.renew_process();
                false
            }
        }
    }

    fn note(&self, key: u64, function: &Function, phase: Phase) {
        self.shared.history.record(Record::Operation(Operation {
            process: self.process,
            key,
            function: function.clone(),
            phase,
            time: self.shared.history.now(),
        }));
    }
}

impl Shared {
    /// One of the registers in use; a worn one is replaced.
    fn register(&self, random: &mut Seeded) -> u64 {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Open { registers, next } = &mut *open;
        let chosen = usize::try_from(random.below(registers.len() as u64)).unwrap_or(0);
        let (register, operations) = &mut registers[chosen];
        *operations += 1;
        if *operations > OPERATIONS_MAX {
            (*register, *operations) = (*next, 1);
            *next += 1;
        }
        *register
    }
}

fn key(register: u64) -> ServiceKey {
    ServiceKey {
        group: GROUP.into(),
        service: format!("r{register}"),
    }
}

fn request(register: u64, value: u64, condition: Option<Condition>) -> RegisterRequest {
    let registration = Registration {
        id: NODE.into(),
        addresses: vec![Address {
            name: "tcp".into(),
            host: "127.0.0.1".into(),
            port: 1,
        }],
        metadata: [(VALUE.to_owned(), value.to_string())].into(),
        kind: NodeKind::Persistent.into(),
        ..Registration::default()
    };
    RegisterRequest {
        options: Some(WriteOptions {
            timeout_ms: SERVER_MAX_MS,
            ..WriteOptions::default()
        }),
        nodes: vec![RegisterNode {
            key: Some(key(register)),
            registration: Some(registration),
            expected: condition.map(|condition| Expected {
                condition: Some(condition),
            }),
        }],
        ..RegisterRequest::default()
    }
}

fn value(view: &ServiceView) -> Read {
    let node = view.nodes.iter().find(|node| node.id == NODE)?;
    let metadata: BTreeMap<_, _> = node.metadata.iter().collect();
    let value = metadata.get(&VALUE.to_owned())?.parse().ok()?;
    Some((value, node.modified_revision))
}
