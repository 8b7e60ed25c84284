//! A watcher at each server and writers of the service they watch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{
    Address, DeregisterNode, DeregisterRequest, NodeKey, NodeKind, RegisterNode, RegisterRequest,
    Registration, ServiceKey, WriteOptions,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::Stop;
use super::door::{SERVER_MAX_MS, connect, is_put_off};
use super::follower::SILENCE_MAX;
use crate::checker::watches::Seen;
use crate::history::{self, Answer, History, Record};
use crate::lab::watching::{Mirror, Told, Watching};
use crate::seed::Seeded;

/// The group of what is watched.
pub const GROUP: &str = "followers";
const SERVICE: &str = "watched";
/// Nodes of each writer.
const NODES_EACH: u64 = 40;
const OPEN_MAX: Duration = Duration::from_secs(2);
/// A watcher leaves its server after so many frames, at most, to resume elsewhere.
const FRAMES_MAX: u64 = 400;

#[derive(Debug)]
struct Shared {
    addresses: Vec<String>,
    history: History,
    stop: Stop,
    acknowledged: Mutex<Vec<u64>>,
}

/// Writers and watchers at work.
#[derive(Debug)]
pub struct Followers {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
    watchers: JoinSet<()>,
    seen: Vec<Arc<Mutex<Following>>>,
}

#[derive(Debug, Default)]
struct Following {
    mirror: Mirror,
    seen: Seen,
    /// The revision behind which every change was told, as long as that goes on.
    since: Option<u64>,
}

/// What they know in the end.
#[derive(Debug)]
pub struct Followed {
    /// What each watcher was told.
    pub seen: Vec<Seen>,
    /// The revisions of all acknowledged writes.
    pub acknowledged: Vec<u64>,
}

impl Followers {
    /// Starts `writers` writers and a watcher at each server. The group [`GROUP`] must be there.
    #[must_use]
    pub fn start(addresses: &[String], history: &History, stop: &Stop, seed: u64, writers: u64) -> Self {
        let shared = Arc::new(Shared {
            addresses: addresses.to_vec(),
            history: history.clone(),
            stop: stop.clone(),
            acknowledged: Mutex::default(),
        });
        let mut followers = Self {
            shared: Arc::clone(&shared),
            writers: JoinSet::new(),
            watchers: JoinSet::new(),
            seen: Vec::new(),
        };
        for writer in 0..writers {
            let random = Seeded::fork(seed, 3_000 + writer);
            followers
                .writers
                .spawn(write(Arc::clone(&shared), writer, random));
        }
        for first in 0..addresses.len() {
            let following = Arc::new(Mutex::new(Following::default()));
            let random = Seeded::fork(seed, 4_000 + first as u64);
            followers
                .watchers
                .spawn(follow(Arc::clone(&shared), Arc::clone(&following), first, random));
            followers.seen.push(following);
        }
        followers
    }

    /// Waits until the writers have ended (they were told to stop) and every watcher has heard of their last write,
    /// at most for `bound`.
    pub async fn finish(mut self, bound: Duration) -> Followed {
        while self.writers.join_next().await.is_some() {}
        let acknowledged = lock(&self.shared.acknowledged).clone();
        let last = acknowledged.iter().copied().max().unwrap_or(0);
        let heard = || {
            self.seen
                .iter()
                .all(|of| lock(of).mirror.revision() >= last || lock(of).seen.broken.is_some())
        };
        let all = crate::lab::eventually("the last write at every watcher", bound, || async {
            heard().then_some(())
        });
        let late = all.await.err();
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
        let mut seen = Vec::new();
        for of in &self.seen {
            let mut of = lock(of);
            of.close();
            if late.is_some() && of.mirror.revision() < last && of.seen.broken.is_none() {
                let at = of.mirror.revision();
                of.seen.broken = Some(format!(
                    "it is at revision {at} {bound:?} after revision {last} was acknowledged"
                ));
            }
            seen.push(of.seen.clone());
        }
        Followed { seen, acknowledged }
    }
}

impl Shared {
    fn acknowledge(&self, revision: u64) {
        lock(&self.acknowledged).push(revision);
        self.history.record(Record::Answer(Answer::Wrote {
            service: format!("{GROUP}/{SERVICE}"),
            revision,
            time: self.history.now(),
        }));
    }

    /// A watcher leaves the server at this turn, which has told it nothing from `since` on.
    fn left_silent(&self, following: &Mutex<Following>, turn: usize, since: Duration) {
        let silent = history::Following::Silent {
            watch: format!("{GROUP}-{}", lock(following).seen.watcher),
            server: (turn % self.addresses.len()) as u64 + 1,
            since,
            told: lock(following).mirror.revision(),
            time: self.history.now(),
        };
        self.history.record(Record::Following(silent));
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(shared: Arc<Shared>, writer: u64, mut random: Seeded) {
    while !shared.stop.is_stopped() {
        let Some(address) = random.pick(&shared.addresses) else {
            return;
        };
        let Some(channel) = connect(address).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut registry = RegistryClient::new(channel);
        while !shared.stop.is_stopped() {
            let node = format!("w{writer}-{}", random.below(NODES_EACH));
            let revision = match random.below(5) {
                0 => deregister(&mut registry, node).await,
                _ => register(&mut registry, node, random.below(60_000)).await,
            };
            match revision {
                Some(0) => {}
                Some(revision) => shared.acknowledge(revision),
                None => break,
            }
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
        }
    }
}

/// The revision of a change; 0: nothing changed, or it was refused; `None`: go elsewhere.
async fn register(registry: &mut RegistryClient<Channel>, node: String, weight: u64) -> Option<u64> {
    let registration = Registration {
        id: node,
        addresses: vec![Address {
            name: "tcp".into(),
            host: "127.0.0.1".into(),
            port: 1,
        }],
        weight: u32::try_from(weight).ok(),
        kind: NodeKind::Persistent.into(),
        ..Registration::default()
    };
    let request = RegisterRequest {
        options: options(),
        nodes: vec![RegisterNode {
            key: Some(key()),
            registration: Some(registration),
            expected: None,
        }],
        ..RegisterRequest::default()
    };
    let written = registry.register(request).await.ok()?.into_inner();
    Some(if written.changed { written.revision } else { 0 })
}

async fn deregister(registry: &mut RegistryClient<Channel>, node: String) -> Option<u64> {
    let request = DeregisterRequest {
        options: options(),
        nodes: vec![DeregisterNode {
            key: Some(NodeKey {
                group: GROUP.into(),
                service: SERVICE.into(),
                node,
            }),
            expected: None,
        }],
        ..DeregisterRequest::default()
    };
    match registry.deregister(request).await {
        Ok(written) => {
            let written = written.into_inner();
            Some(if written.changed { written.revision } else { 0 })
        }
        Err(status) if status.code() == tonic::Code::NotFound => Some(0),
        Err(_) => None,
    }
}

fn options() -> Option<WriteOptions> {
    Some(WriteOptions {
        timeout_ms: SERVER_MAX_MS,
        ..WriteOptions::default()
    })
}

fn key() -> ServiceKey {
    ServiceKey {
        group: GROUP.into(),
        service: SERVICE.into(),
    }
}

async fn follow(shared: Arc<Shared>, following: Arc<Mutex<Following>>, first: usize, mut random: Seeded) {
    lock(&following).seen.watcher = format!("{}", first + 1);
    for turn in first.. {
        let address = &shared.addresses[turn % shared.addresses.len()];
        let after = lock(&following).mirror.revision();
        let opening = Watching::service(address, GROUP, SERVICE, after);
        if let Ok(Ok(mut watching)) = tokio::time::timeout(OPEN_MAX, opening).await {
            // Away from a server that is silent for long, and now and then from one that is not.
            for _ in 0..random.between(FRAMES_MAX / 4, FRAMES_MAX) {
                let since = shared.history.now();
                let frame = match tokio::time::timeout(SILENCE_MAX, watching.next()).await {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(_)) => break,
                    Err(_) => {
                        shared.left_silent(&following, turn, since);
                        break;
                    }
                };
                if is_put_off(&frame) {
                    break;
                }
                if !lock(&following).take(frame) {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Following {
    /// `false`: a promise was broken.
    fn take(&mut self, frame: rollcall_proto::v1::watch_frame::Frame) -> bool {
        let before = self.mirror.revision();
        match self.mirror.take(frame) {
            Ok(None) => true,
            Ok(Some(told)) => {
                if told.as_delta {
                    self.since.get_or_insert(before);
                    self.seen.changes.insert(told.revision, canonical(&told));
                } else {
                    // The whole state instead of changes: what lies between was not told.
                    self.close_at(before);
                    self.since = Some(told.revision);
                }
                true
            }
            Err(broken) => {
                self.close_at(before);
                self.seen.broken = Some(format!("{broken:#}"));
                false
            }
        }
    }

    fn close(&mut self) {
        self.close_at(self.mirror.revision());
    }

    fn close_at(&mut self, revision: u64) {
        if let Some(since) = self.since.take()
            && revision > since
        {
            self.seen.followed.push((since, revision));
        }
    }
}

/// A change in a form that two watchers share.
fn canonical(told: &Told) -> String {
    let mut parts: Vec<String> = told
        .put
        .iter()
        .map(|node| format!("+{}:{}@{}", node.id, node.weight, node.modified_revision))
        .chain(told.removed.iter().map(|(id, _)| format!("-{id}")))
        .collect();
    parts.sort();
    parts.join(" ")
}
