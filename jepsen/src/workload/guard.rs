//! Services of which a share falls silent at once, while leaders die and servers restart: acts, each with a service of
//! its own, in a CP group and in an AP group.
//!
//! An act: providers register; some of them fall silent; two nodes are deregistered by word meanwhile; then the silent
//! return, or are replaced, or an operator confirms that they are gone, and the guard has to let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rollcall_proto::v1::{
    ConfirmRemovalRequest, ErrorCode, GroupMode, GuardSettings, NodeState, ReadMode, ServiceKey, ServiceView,
};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, node_key, options, reading, service};
use super::door::put_group_as;
use super::follower::Follower;
use super::provider::Provider;
use crate::history::{Guarding, Record};
use crate::lab::eventually;
use crate::seed::Seeded;

/// The group under Raft.
pub const GROUP: &str = "guarded";
/// The group of which each server judges what it holds.
pub const GROUP_AP: &str = "guarded-ap";
const TTL: Duration = Duration::from_secs(2);
/// Of 10,000: the default.
const SHARE: u32 = 3_000;
/// Longer than any run: the default.
const WINDOW: Duration = Duration::from_secs(600);
/// In percent.
const SILENT: [u64; 5] = [10, 31, 50, 90, 100];
/// For the guard to let go, once enough are up.
const LETS_GO_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Acts under way.
#[derive(Debug)]
pub struct Guarded {
    lanes: JoinSet<()>,
}

impl Guarded {
    /// Makes the groups.
    ///
    /// # Errors
    /// No server takes them in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group_as(&stage.addresses, GROUP, GroupMode::Cp, GuardSettings::default()).await?;
        put_group_as(
            &stage.addresses,
            GROUP_AP,
            GroupMode::Ap,
            GuardSettings::default(),
        )
        .await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        let mut lanes = JoinSet::new();
        for lane in 0..stage.clients.div_ceil(4) + 1 {
            let mode = if lane == 0 { GroupMode::Ap } else { GroupMode::Cp };
            let random = Seeded::fork(stage.seed, 40_000 + lane);
            lanes.spawn(acts(stage.clone(), mode, lane, random));
        }
        Self { lanes }
    }

    /// Waits until the acts under way have ended (they were told to stop).
    pub async fn finish(mut self) {
        while self.lanes.join_next().await.is_some() {}
    }
}

async fn acts(stage: Stage, mode: GroupMode, lane: u64, mut random: Seeded) {
    let mut shares = Vec::new();
    for number in 0.. {
        if !stage.goes_on() {
            return;
        }
        if shares.is_empty() {
            shares = SILENT.to_vec();
            random.shuffle(&mut shares);
        }
        let group = if mode == GroupMode::Ap { GROUP_AP } else { GROUP };
        let mut act = Act {
            stage: stage.clone(),
            mode,
            key: service(group, &format!("s{lane}-{number}")),
            // Sessions that can go nowhere else have one judge, as long as it is there.
            one_holder: mode == GroupMode::Ap && random.chance(0.7),
            addresses: stage.addresses.clone(),
            providers: BTreeMap::new(),
            tasks: JoinSet::new(),
            watchers: JoinSet::new(),
            random: Seeded::new(random.next()),
        };
        act.play(shares.pop().unwrap_or(50)).await;
    }
}

struct Act {
    stage: Stage,
    mode: GroupMode,
    key: ServiceKey,
    one_holder: bool,
    addresses: Vec<String>,
    /// Whether each is to be heard from.
    providers: BTreeMap<String, Arc<AtomicBool>>,
    tasks: JoinSet<()>,
    watchers: JoinSet<()>,
    random: Seeded,
}

enum End {
    Return,
    Replace,
    Confirm,
}

impl Act {
    async fn play(&mut self, percent: u64) {
        let time = self.stage.history.now();
        self.record(Guarding::Set {
            service: self.name(),
            ap: self.mode == GroupMode::Ap,
            share: SHARE,
            window: WINDOW,
            ttl: TTL,
            one_holder: self.one_holder,
            time,
        });
        if self.one_holder {
            self.addresses = self
                .random
                .pick(&self.stage.addresses)
                .cloned()
                .into_iter()
                .collect();
        }
        self.watch();
        let count = self.random.between(6, 18);
        self.join("n", count).await;
        let joined = self.providers.len() as u64;
        self.pause(1_500).await;
        let silent = (joined * percent).div_ceil(100);
        // All at once, or one after the other, so that leaders come and go between them.
        let apart = if self.random.chance(0.4) { 1_200 } else { 0 };
        let silent = self.fall_silent(silent, apart).await;
        let first = TTL.as_millis().try_into().unwrap_or(2_000) + self.random.below(2_500);
        self.pause(first).await;
        self.deregister_some(&silent).await;
        self.pause(2_500).await;
        match match self.random.below(3) {
            0 => End::Return,
            1 => End::Replace,
            _ => End::Confirm,
        } {
            End::Return => {
                self.record(Guarding::Returned {
                    service: self.name(),
                    time: self.stage.history.now(),
                });
                for heard in self.providers.values() {
                    heard.store(true, Ordering::Release);
                }
            }
            End::Replace => self.join("r", silent.len() as u64).await,
            End::Confirm => self.confirm().await,
        }
        self.pause(2_000).await;
        self.ask_everybody(self.providers.len() as u64).await;
        self.pause(3_000).await;
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }

    fn name(&self) -> String {
        format!("{}/{}", self.key.group, self.key.service)
    }

    fn record(&self, line: Guarding) {
        self.stage.history.record(Record::Guarding(line));
    }

    /// A while, or less if everything ends.
    async fn pause(&self, milliseconds: u64) {
        let until = self.stage.history.now() + ms(milliseconds);
        while self.stage.goes_on() && self.stage.history.now() < until {
            tokio::time::sleep(ms(50)).await;
        }
    }

    fn watch(&mut self) {
        if self.mode == GroupMode::Ap {
            for (server, address) in self.stage.servers() {
                let looking = look(self.stage.clone(), self.key.clone(), server, address.clone());
                self.watchers.spawn(looking);
            }
            return;
        }
        for first in 0..2 {
            let follower = Follower {
                name: format!("{}-{first}", self.name()),
                key: self.key.clone(),
                first,
                stays: (6_000, 15_000),
                away_max: 30,
                position: Arc::default(),
            };
            let random = Seeded::new(self.random.next());
            self.watchers.spawn(follower.follow(self.stage.clone(), random));
        }
    }

    /// So many providers register, all at once.
    async fn join(&mut self, prefix: &str, count: u64) {
        let mut joining = JoinSet::new();
        for number in 0..count {
            let (stage, addresses, mode) = (self.stage.clone(), self.addresses.clone(), self.mode);
            let mut random = Seeded::new(self.random.next());
            let (key, id) = (self.key.clone(), format!("{prefix}{number}"));
            joining.spawn(async move {
                let opening = stage.history.now();
                let mut provider = Provider::open(&addresses, TTL, mode, &mut random).await?;
                if mode == GroupMode::Cp {
                    provider.opened(&stage, opening);
                }
                let sent = stage.history.now();
                let registered = provider.register(&key.group, &key.service, &id).await;
                stage.history.record(Record::Guarding(Guarding::Joined {
                    service: format!("{}/{}", key.group, key.service),
                    id: id.clone(),
                    sent,
                    end: registered.map(|_| stage.history.now()),
                }));
                registered.map(|_| (id, provider, random))
            });
        }
        while let Some(joined) = joining.join_next().await {
            let Ok(Some((id, provider, random))) = joined else {
                continue;
            };
            let heard = Arc::new(AtomicBool::new(true));
            self.providers.insert(id, Arc::clone(&heard));
            self.tasks
                .spawn(keep(self.stage.clone(), provider, heard, random));
        }
    }

    async fn fall_silent(&mut self, count: u64, apart_ms: u64) -> Vec<String> {
        let mut ids: Vec<String> = self.providers.keys().cloned().collect();
        self.random.shuffle(&mut ids);
        ids.truncate(usize::try_from(count).unwrap_or(0));
        let at_a_time = if apart_ms == 0 { ids.len().max(1) } else { 1 };
        for some in ids.chunks(at_a_time) {
            for id in some {
                if let Some(heard) = self.providers.get(id) {
                    heard.store(false, Ordering::Release);
                }
            }
            self.record(Guarding::Silent {
                service: self.name(),
                ids: some.to_vec(),
                time: self.stage.history.now(),
            });
            self.pause(apart_ms).await;
        }
        ids
    }

    /// One that is silent and one that is not, by an operator's word.
    async fn deregister_some(&mut self, silent: &[String]) {
        let heard = self.providers.keys().find(|id| !silent.contains(id));
        let chosen: BTreeSet<String> = silent.first().into_iter().chain(heard).cloned().collect();
        for id in chosen {
            let (_, address) = self.stage.any_server(&mut self.random);
            let Some(mut caller) = Caller::to(&address).await else {
                continue;
            };
            let sent = self.stage.history.now();
            let wrote = caller.deregister(options(), vec![node_key(&self.key, &id)]).await;
            let time = self.stage.history.now();
            let (service, left) = (self.name(), |end, revision| Guarding::Left {
                service: self.name(),
                id: id.clone(),
                sent,
                end,
                revision,
            });
            match wrote {
                Wrote::Ok(written) => {
                    self.record(left(Some(time), written.changed.then_some(written.revision)));
                }
                Wrote::Unknown => self.record(left(None, None)),
                Wrote::Nothing(error) if is_outage(error.code()) => {}
                Wrote::Nothing(error) => self.record(Guarding::Blocked {
                    service,
                    id: id.clone(),
                    why: error.message,
                    time,
                }),
            }
        }
    }

    async fn confirm(&mut self) {
        self.record(Guarding::Confirmed {
            service: self.name(),
            sent: self.stage.history.now(),
        });
        for _ in 0..5 {
            let (_, address) = self.stage.any_server(&mut self.random);
            let request = ConfirmRemovalRequest {
                options: Some(options()),
                key: Some(self.key.clone()),
                author: "lab".into(),
                reason: "they are gone".into(),
                ..ConfirmRemovalRequest::default()
            };
            if let Some(mut caller) = Caller::to(&address).await {
                let wrote = Wrote::of(caller.registry.confirm_removal(request).await);
                let refused = match wrote {
                    Wrote::Ok(_) => None,
                    Wrote::Nothing(error) if !is_outage(error.code()) => Some(error.message),
                    Wrote::Nothing(_) | Wrote::Unknown => {
                        self.pause(300).await;
                        continue;
                    }
                };
                let done = refused.is_none();
                self.record(Guarding::Answered {
                    service: self.name(),
                    refused,
                    time: self.stage.history.now(),
                });
                if done {
                    return;
                }
            }
            self.pause(300).await;
        }
    }

    /// What every server says of the guard, if so many are up at each that it has to have let go, for long enough.
    async fn ask_everybody(&mut self, of: u64) {
        for (server, address) in self.stage.servers() {
            let Some(first) = self.ask(address).await.filter(|view| is_enough(view, of)) else {
                continue;
            };
            let engaged = |view: &ServiceView| view.guard.as_ref().is_some_and(|guard| guard.engaged);
            if engaged(&first) {
                // It may be about to.
                let disengaged = eventually("a guard that lets go", LETS_GO_WITHIN, || async {
                    let view = self.ask(address).await;
                    view.is_none_or(|view| !engaged(&view) || !is_enough(&view, of))
                        .then_some(())
                });
                let _ = disengaged.await;
            }
            let Some(view) = self.ask(address).await.filter(|view| is_enough(view, of)) else {
                continue;
            };
            let window = view.guard.as_ref().filter(|guard| guard.window_began > 0);
            self.record(Guarding::Said {
                service: self.name(),
                server,
                time: self.stage.history.now(),
                engaged: engaged(&view),
                removed: window.map(|guard| guard.removed),
                revision: view.revision,
            });
        }
    }

    async fn ask(&self, address: &str) -> Option<ServiceView> {
        let mut caller = Caller::to(address).await?;
        let read = caller.view(self.key.clone(), reading(ReadMode::Linearizable));
        read.await.ok()?.1
    }
}

/// Whether at least `1 - share` of so many are up, which is everybody who ever joined; or as many as the guard itself says
/// it needs: who joined before it engaged is no replacement to it.
fn is_enough(view: &ServiceView, of: u64) -> bool {
    let up = view
        .nodes
        .iter()
        .filter(|node| node.state() == NodeState::Up)
        .count() as u64;
    let needed = view.guard.as_ref().map_or(0, |guard| u64::from(guard.needed));
    up * 10_000 >= of * u64::from(10_000 - SHARE) || (needed > 0 && up >= needed)
}

fn is_outage(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unavailable
            | ErrorCode::Overloaded
            | ErrorCode::NotReady
            | ErrorCode::DiskFull
            | ErrorCode::NodeNotFound
            | ErrorCode::ServiceNotFound
            | ErrorCode::OutcomeUnknown
    )
}

/// Heartbeats while they are wanted.
async fn keep(stage: Stage, mut provider: Provider, heard: Arc<AtomicBool>, mut random: Seeded) {
    loop {
        let attached = provider.is_attached();
        tokio::time::sleep(if attached { TTL / 4 } else { ms(50) }).await;
        if !heard.load(Ordering::Acquire) {
            provider.hang_up();
            continue;
        }
        if provider.beat(&stage, &mut random).await.acknowledged == Some(false) {
            return;
        }
    }
}

async fn look(stage: Stage, key: ServiceKey, server: u64, address: String) {
    loop {
        let sent = stage.history.now();
        if let Some(mut caller) = Caller::to(&address).await
            && let Ok((header, Some(view))) = caller.view(key.clone(), reading(ReadMode::Local)).await
        {
            let suspects = view
                .nodes
                .iter()
                .filter(|node| node.state() == NodeState::Suspect)
                .map(|node| node.id.clone())
                .collect();
            stage.history.record(Record::Guarding(Guarding::Listed {
                service: format!("{}/{}", key.group, key.service),
                server,
                epoch: header.epoch,
                sent,
                end: stage.history.now(),
                ids: view.nodes.into_iter().map(|node| node.id).collect(),
                suspects,
            }));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
