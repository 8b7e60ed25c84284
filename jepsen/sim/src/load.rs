//! What runs on the clients' host: the workloads of the lab, which know nothing of the simulation.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_jepsen::history::History;
use rollcall_jepsen::workload::ap::Writers;
use rollcall_jepsen::workload::followers::{Followed, Followers};
use rollcall_jepsen::workload::heartbeats::Fleet;
use rollcall_jepsen::workload::registers::Registers;
use rollcall_jepsen::workload::takeover::Takeovers;
use rollcall_jepsen::workload::{self, Stop, followers, heartbeats, put_group, registers};
use rollcall_proto::v1::ReadMode;

/// How late an expiry may be where nothing excuses it: a tick, a commit and a watch, on hosts that are never busy.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(2_500);
/// From the last fault to everybody's last word.
pub(crate) const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// Load without faults, before the end.
const PEACE: Duration = Duration::from_secs(3);

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    Registers,
    Heartbeats,
    Followers,
    Ap,
    Takeover,
}

impl Workload {
    pub(crate) const ALL: [Self; 5] = [
        Self::Registers,
        Self::Heartbeats,
        Self::Followers,
        Self::Ap,
        Self::Takeover,
    ];
    /// What runs unless something else is asked for.
    pub(crate) const USUAL: [Self; 3] = [Self::Registers, Self::Heartbeats, Self::Followers];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Heartbeats => "heartbeats",
            Self::Followers => "followers",
            Self::Ap => "ap",
            Self::Takeover => "takeover",
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    pub(crate) addresses: Vec<String>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) seed: u64,
    pub(crate) clients: u64,
    pub(crate) ttl: Duration,
    pub(crate) reads: ReadMode,
    /// How long faults go on.
    pub(crate) horizon: Duration,
}

/// How far the load is, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<Stage>>);

#[derive(Debug, Default)]
pub(crate) struct Stage {
    pub(crate) failed: Option<String>,
    pub(crate) followed: Option<Followed>,
    pub(crate) over: bool,
}

impl Progress {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().over
    }
}

/// Runs the load to its end.
pub(crate) async fn run(options: LoadOptions, history: History, progress: Progress) {
    let outcome = carry_out(&options, &history).await;
    let mut stage = progress.lock();
    match outcome {
        Ok(followed) => stage.followed = followed,
        Err(error) => stage.failed = Some(format!("{error:#}")),
    }
    stage.over = true;
}

async fn carry_out(options: &LoadOptions, history: &History) -> anyhow::Result<Option<Followed>> {
    let LoadOptions {
        addresses,
        workloads,
        seed,
        clients,
        ttl,
        reads,
        horizon,
    } = options;
    let has = |workload| workloads.contains(&workload);
    let stop = Stop::default();
    for group in [registers::GROUP, heartbeats::GROUP, followers::GROUP] {
        put_group(addresses, group, 10_000).await?;
    }
    let start_registers = || Registers::start(addresses, history, &stop, *reads, *seed, *clients);
    let start_fleet = || Fleet::start(addresses, history, &stop, *seed, clients * 2, *ttl);
    let start_followers = || Followers::start(addresses, &stop, *seed, clients.div_ceil(2));
    let registers = has(Workload::Registers).then(start_registers);
    let fleet = has(Workload::Heartbeats).then(start_fleet);
    let followers = has(Workload::Followers).then(start_followers);

    let stage = workload::Stage {
        addresses: addresses.clone(),
        history: history.clone(),
        stop: stop.clone(),
        seed: *seed,
        clients: *clients,
        ttl: *ttl,
    };
    let writers = match has(Workload::Ap) {
        true => {
            Writers::prepare(&stage).await?;
            Some(Writers::start(&stage))
        }
        false => None,
    };
    let takeovers = match has(Workload::Takeover) {
        true => {
            Takeovers::prepare(&stage).await?;
            Some(Takeovers::start(&stage))
        }
        false => None,
    };

    tokio::time::sleep(horizon.saturating_sub(history.now()) + PEACE).await;
    stop.stop();
    if let Some(writers) = writers {
        writers.finish().await;
    }
    if let Some(takeovers) = takeovers {
        takeovers.finish().await;
    }
    if let Some(registers) = registers {
        registers.finish().await;
    }
    let followed = match followers {
        Some(followers) => Some(followers.finish(RECOVERY_MAX).await),
        None => None,
    };
    if let Some(fleet) = fleet {
        fleet.finish(*ttl + LATE_MAX + Duration::from_secs(2)).await;
    }
    Ok(followed)
}
