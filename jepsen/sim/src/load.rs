//! What runs on the clients' host: the workloads of the lab, which know nothing of the simulation.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_jepsen::campaign::Workload;
use rollcall_jepsen::history::History;
use rollcall_jepsen::workload::ages::Ages;
use rollcall_jepsen::workload::ap::Writers;
use rollcall_jepsen::workload::batches::Batches;
use rollcall_jepsen::workload::followers::{Followed, Followers};
use rollcall_jepsen::workload::guard::Guarded;
use rollcall_jepsen::workload::heartbeats::Fleet;
use rollcall_jepsen::workload::mode_switch::Moving;
use rollcall_jepsen::workload::racers::Racers;
use rollcall_jepsen::workload::registers::Registers;
use rollcall_jepsen::workload::resumes::Resumes;
use rollcall_jepsen::workload::retries::Retries;
use rollcall_jepsen::workload::storm::Storm;
use rollcall_jepsen::workload::takeover::Takeovers;
use rollcall_jepsen::workload::{Stage, Stop, followers, heartbeats, put_group, registers};
use rollcall_proto::v1::ReadMode;
use tokio::task::JoinSet;

/// How late an expiry may be where nothing excuses it: a tick, a commit and a watch, on hosts that are never busy.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(2_500);
/// From the last fault to everybody's last word.
pub(crate) const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// Load without faults, before the end.
const PEACE: Duration = Duration::from_secs(3);
/// Of a group of which all may lapse away.
const ALL_BASIS_POINTS: u32 = 10_000;

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
pub(crate) struct Progress(Arc<Mutex<Outcome>>);

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) failed: Option<String>,
    pub(crate) followed: Option<Followed>,
    pub(crate) over: bool,
}

impl Progress {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Outcome> {
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
    let stage = Stage {
        addresses: options.addresses.clone(),
        history: history.clone(),
        stop: Stop::default(),
        seed: options.seed,
        clients: options.clients,
        ttl: options.ttl,
    };
    let mut ends = Vec::new();
    for workload in &options.workloads {
        ends.push(start(*workload, &stage, options.reads).await?);
    }
    tokio::time::sleep(options.horizon.saturating_sub(history.now()) + PEACE).await;
    stage.stop.stop();
    // Beside each other: simulated time is what a run costs.
    let mut ending: JoinSet<Option<Followed>> = ends.into_iter().collect();
    let mut followed = None;
    while let Some(ended) = ending.join_next().await {
        followed = ended?.or(followed);
    }
    Ok(followed)
}

/// What there is to do for a workload that was told to stop.
type End = Pin<Box<dyn Future<Output = Option<Followed>> + Send>>;

fn end(finish: impl Future<Output = ()> + Send + 'static) -> End {
    Box::pin(async move {
        finish.await;
        None
    })
}

async fn start(workload: Workload, stage: &Stage, reads: ReadMode) -> anyhow::Result<End> {
    let Stage {
        addresses,
        history,
        stop,
        seed,
        clients,
        ttl,
    } = stage;
    Ok(match workload {
        Workload::Registers => {
            put_group(addresses, registers::GROUP, ALL_BASIS_POINTS).await?;
            end(Registers::start(addresses, history, stop, reads, *seed, *clients).finish())
        }
        Workload::Heartbeats => {
            put_group(addresses, heartbeats::GROUP, ALL_BASIS_POINTS).await?;
            let fleet = Fleet::start(addresses, history, stop, *seed, clients * 2, *ttl);
            end(fleet.finish(*ttl + LATE_MAX + Duration::from_secs(2)))
        }
        Workload::Followers => {
            put_group(addresses, followers::GROUP, ALL_BASIS_POINTS).await?;
            let followers = Followers::start(addresses, history, stop, *seed, clients.div_ceil(2));
            Box::pin(async move { Some(followers.finish(RECOVERY_MAX).await) })
        }
        Workload::Ap => {
            Writers::prepare(stage).await?;
            end(Writers::start(stage).finish())
        }
        Workload::Guard => {
            Guarded::prepare(stage).await?;
            end(Guarded::start(stage).finish())
        }
        Workload::Takeover => {
            Takeovers::prepare(stage).await?;
            end(Takeovers::start(stage).finish())
        }
        Workload::ModeSwitch => {
            Moving::prepare(stage).await?;
            end(Moving::start(stage).finish())
        }
        Workload::Resumes => {
            Resumes::prepare(stage).await?;
            end(Resumes::start(stage).finish(RECOVERY_MAX))
        }
        Workload::Batches => {
            Batches::prepare(stage).await?;
            end(Batches::start(stage).finish())
        }
        Workload::Retries => {
            Retries::prepare(stage).await?;
            end(Retries::start(stage).finish())
        }
        Workload::Racers => {
            Racers::prepare(stage).await?;
            end(Racers::start(stage).finish())
        }
        Workload::Ages => {
            Ages::prepare(stage).await?;
            end(Ages::start(stage).finish())
        }
        Workload::Storm => {
            let prepared = Storm::prepare(stage).await?;
            // Nobody but the consumers counts what they are sent.
            end(Storm::start(stage, prepared, None).finish())
        }
    })
}
