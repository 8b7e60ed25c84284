//! A group that any server may write to: writers at random servers, some of them on the same nodes, providers that
//! keep sessions, and a look at every server's view each second.
//!
//! Values are never written twice, except when a node is registered again just as it was. A node is used for a bounded
//! number of writes, or until nobody knows what became of one, and then left alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rollcall_proto::v1::{GroupMode, GuardSettings, ReadMode, ServiceKey, ServiceView, WriteOptions};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, node_key, options, persistent, reading, service, value_of};
use super::door::put_group_as;
use super::provider::Provider;
use crate::checker::ap::gone_within;
use crate::history::{Ap, Record};
use crate::lab::eventually;
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "ap";
pub(super) const SERVICE: &str = "merged";
/// Nodes in use at a time.
const OPEN: usize = 24;
/// Writes of one node.
const WRITES_MAX: u64 = 14;
const PAUSE_MAX_MS: u64 = 40;
/// How often every server is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From the last fault and the last write until all servers show the same.
pub const CONVERGED_WITHIN: Duration = Duration::from_secs(10);
/// The longest life of a provider.
const LIFE_MAX_MS: u64 = 30_000;

#[derive(Debug)]
struct Shared {
    stage: Stage,
    group: &'static str,
    mode: GroupMode,
    values: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    nodes: Vec<Used>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Used {
    id: String,
    writes: u64,
    /// What it was given last, as far as anybody was told.
    value: Option<u64>,
}

/// Writers, providers and lookers at work.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    lookers: JoinSet<()>,
}

impl Writers {
    /// Makes the group.
    ///
    /// # Errors
    /// No server takes it in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group_as(&stage.addresses, GROUP, GroupMode::Ap, unguarded()).await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        Self::begin(stage, GROUP, GroupMode::Ap)
    }

    /// Starts them in a group that is there. `mode`: what sessions are opened for.
    pub(super) fn begin(stage: &Stage, group: &'static str, mode: GroupMode) -> Self {
        let nodes = (0..OPEN as u64).map(Used::new).collect();
        let shared = Arc::new(Shared {
            stage: stage.clone(),
            group,
            mode,
            values: AtomicU64::new(1),
            open: Mutex::new(Open {
                nodes,
                next: OPEN as u64,
            }),
        });
        let purpose = if group == GROUP { 10_000 } else { 20_000 };
        let random = |number| Seeded::fork(stage.seed, purpose + number);
        let (mut tasks, mut lookers) = (JoinSet::new(), JoinSet::new());
        for client in 0..stage.clients {
            tasks.spawn(write(Arc::clone(&shared), random(client)));
        }
        for provider in 0..stage.clients.div_ceil(2) {
            tasks.spawn(provide(Arc::clone(&shared), random(1_000 + provider)));
        }
        for (server, address) in stage.servers() {
            lookers.spawn(look(Arc::clone(&shared), server, address.clone()));
        }
        Self {
            shared,
            tasks,
            lookers,
        }
    }

    /// Waits until the writers have ended (they were told to stop), then until all servers show the same, or time is
    /// up, and looks at them; and once more when every session should be gone.
    pub async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
        self.lookers.abort_all();
        while self.lookers.join_next().await.is_some() {}
        let Shared { stage, group, .. } = &*self.shared;
        let healed = stage.history.now();
        stage.history.record(Record::Ap(Ap::Heal {
            group: (*group).into(),
            time: healed,
        }));
        let same = eventually("the same at every server", CONVERGED_WITHIN, || async {
            let mut first = None;
            for (server, address) in stage.servers() {
                let shown = shown(&self.shared, server, address).await?;
                let Ap::View { sign, nodes, .. } = &shown else {
                    return None;
                };
                let (of_first, shown_first) = first.get_or_insert_with(|| (*sign, nodes.clone()));
                if of_first != sign || shown_first != nodes {
                    return None;
                }
            }
            Some(())
        });
        let same = same.await.is_ok();
        let took = stage.history.now().saturating_sub(healed);
        stage.history.note(format!(
            "{group}: {} {took:?} after the last write",
            if same {
                "the same everywhere"
            } else {
                "still different"
            }
        ));
        self.look_for_the_last_time().await;
        // All sessions are silent: once the last has had its time there is none.
        let all_gone = healed + gone_within(stage.ttl) + LOOK_EVERY;
        tokio::time::sleep(all_gone.saturating_sub(stage.history.now())).await;
        self.look_for_the_last_time().await;
    }

    async fn look_for_the_last_time(&self) {
        let Shared { stage, .. } = &*self.shared;
        for (server, address) in stage.servers() {
            let last = eventually("an answer", CONVERGED_WITHIN, || {
                shown(&self.shared, server, address)
            });
            if let Ok(view) = last.await {
                stage.history.record(Record::Ap(view));
            }
        }
    }
}

pub(super) fn unguarded() -> GuardSettings {
    GuardSettings {
        share_basis_points: Some(10_000),
        keep_last: Some(false),
        ..GuardSettings::default()
    }
}

impl Used {
    fn new(number: u64) -> Self {
        Self {
            id: format!("n{number}"),
            writes: 0,
            value: None,
        }
    }
}

impl Shared {
    fn key(&self) -> ServiceKey {
        service(self.group, SERVICE)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the nodes in use; a worn one is replaced.
    fn choose(&self, random: &mut Seeded) -> Used {
        let mut open = self.lock();
        let Open { nodes, next } = &mut *open;
        let chosen = usize::try_from(random.below(nodes.len() as u64)).unwrap_or(0);
        if nodes[chosen].writes >= WRITES_MAX {
            nodes[chosen] = Used::new(*next);
            *next += 1;
        }
        nodes[chosen].writes += 1;
        nodes[chosen].clone()
    }

    /// What became of a write; `None`: nobody knows, and the node is not used again.
    fn settle(&self, id: &str, told: Option<Option<u64>>) {
        if let Some(of) = self.lock().nodes.iter_mut().find(|of| of.id == id) {
            match told {
                Some(value) => of.value = value,
                None => of.writes = WRITES_MAX,
            }
        }
    }
}

enum Act {
    Register(u64),
    Update(u64),
    Deregister,
}

async fn write(shared: Arc<Shared>, mut random: Seeded) {
    let stage = &shared.stage;
    while stage.goes_on() {
        let (server, address) = stage.any_server(&mut random);
        let Some(mut caller) = Caller::to(&address).await else {
            tokio::time::sleep(ms(100)).await;
            continue;
        };
        for _ in 0..random.between(5, 60) {
            if !stage.goes_on() || !one(&shared, &mut caller, server, &mut random).await {
                break;
            }
            tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
        }
    }
}

/// One write; `false`: go elsewhere.
async fn one(shared: &Shared, caller: &mut Caller, server: u64, random: &mut Seeded) -> bool {
    let history = &shared.stage.history;
    let node = shared.choose(random);
    let fresh = || shared.values.fetch_add(1, Ordering::Relaxed);
    let act = match (random.below(20), node.value) {
        (0..6, _) => Act::Deregister,
        (6..9, _) => Act::Update(fresh()),
        (9, Some(same)) => Act::Register(same),
        _ => Act::Register(fresh()),
    };
    let acks = if random.chance(0.3) { 2 } else { 1 };
    let options = WriteOptions { acks, ..options() };
    let key = shared.key();
    let sent = history.now();
    let (value, wrote) = match act {
        Act::Register(value) => {
            let registered = caller.register(options, vec![persistent(&key, &node.id, value)]);
            (Some(value), registered.await)
        }
        Act::Update(value) => {
            let updated = caller.update(options, node_key(&key, &node.id), value);
            (Some(value), updated.await)
        }
        Act::Deregister => (
            None,
            caller.deregister(options, vec![node_key(&key, &node.id)]).await,
        ),
    };
    let (end, acks) = match wrote {
        Wrote::Ok(written) => (Some(history.now()), written.acks),
        Wrote::Nothing(_) => return random.chance(0.8),
        Wrote::Unknown => (None, 0),
    };
    history.record(Record::Ap(Ap::Write {
        group: shared.group.into(),
        id: node.id.clone(),
        value,
        ttl: None,
        server,
        sent,
        end,
        acks,
    }));
    shared.settle(&node.id, end.map(|_| value));
    end.is_some()
}

/// One session after the other, each with a node, each silent in the end.
async fn provide(shared: Arc<Shared>, mut random: Seeded) {
    let stage = &shared.stage;
    while stage.goes_on() {
        live(&shared, &mut random).await;
        tokio::time::sleep(ms(100)).await;
    }
}

async fn live(shared: &Shared, random: &mut Seeded) {
    let Shared {
        stage, group, mode, ..
    } = shared;
    let history = &stage.history;
    let Some(mut provider) = Provider::open(&stage.addresses, stage.ttl, *mode, random).await else {
        return;
    };
    let id = format!("s{:x}", provider.session);
    let sent = history.now();
    let registered = provider.register(group, SERVICE, &id).await;
    let end = registered.map(|_| history.now());
    history.record(Record::Ap(Ap::Write {
        group: (*group).into(),
        id: id.clone(),
        value: Some(0),
        ttl: Some(provider.ttl),
        server: 0,
        sent,
        end,
        acks: 1,
    }));
    let dies_at = history.now() + ms(random.between(3_000, LIFE_MAX_MS));
    let mut pause = provider.ttl / 3;
    while end.is_some() && stage.goes_on() && history.now() < dies_at {
        tokio::time::sleep(pause).await;
        let beat = provider.beat(stage, random).await;
        match beat.acknowledged {
            Some(true) => history.record(Record::Ap(Ap::Beat {
                group: (*group).into(),
                id: id.clone(),
                sent: beat.sent,
                end: beat.end,
            })),
            Some(false) => break,
            None => {}
        }
        // Who lost its server looks for another at once.
        pause = if provider.is_attached() {
            provider.ttl / 3
        } else {
            ms(50)
        };
    }
    history.record(Record::Ap(Ap::Stop {
        group: (*group).into(),
        id,
        time: history.now(),
    }));
}

async fn look(shared: Arc<Shared>, server: u64, address: String) {
    loop {
        if let Some(view) = shown(&shared, server, &address).await {
            shared.stage.history.record(Record::Ap(view));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What one server shows now; `None`: it does not answer, or has nothing to show yet.
async fn shown(shared: &Shared, server: u64, address: &str) -> Option<Ap> {
    let mut caller = Caller::to(address).await?;
    let sent = shared.stage.history.now();
    let (header, view) = caller.view(shared.key(), reading(ReadMode::Local)).await.ok()?;
    let view: ServiceView = view.unwrap_or_default();
    let sign = view.sign.unwrap_or_default();
    let nodes: BTreeMap<String, u64> = view
        .nodes
        .iter()
        .map(|node| (node.id.clone(), value_of(node)))
        .collect();
    Some(Ap::View {
        group: shared.group.into(),
        server,
        epoch: header.epoch,
        sent,
        end: shared.stage.history.now(),
        nodes,
        sign: (sign.high, sign.low),
    })
}
