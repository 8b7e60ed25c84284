//! What runs while faults happen.

use std::sync::Arc;
use std::time::Duration;

use super::options::{Options, Workload};
use crate::history::History;
use crate::lab::Cluster;
use crate::net::{HostRuntime, Net};
use crate::workload::ages::Ages;
use crate::workload::ap::Writers;
use crate::workload::batches::Batches;
use crate::workload::followers::{Followed, Followers};
use crate::workload::guard::Guarded;
use crate::workload::heartbeats::Fleet;
use crate::workload::mode_switch::Moving;
use crate::workload::racers::Racers;
use crate::workload::registers::Registers;
use crate::workload::resumes::Resumes;
use crate::workload::retries::Retries;
use crate::workload::storm::Storm;
use crate::workload::takeover::Takeovers;
use crate::workload::{Stage, Stop, followers, heartbeats, put_group, registers};

/// How late an expiry may be where nothing excuses it: a tick, a commit, a watch, and a busy machine.
pub(super) const LATE_MAX: Duration = Duration::from_secs(3);

/// The workloads of a run, at work.
pub(super) struct Load {
    running: Vec<Running>,
    /// How long silent sessions are waited for in the end.
    aftermath: Duration,
}

enum Running {
    Registers(Registers),
    Fleet(Fleet),
    Followers(Followers),
    Ap(Writers),
    Guard(Guarded),
    Takeovers(Takeovers),
    Moving(Moving),
    Resumes(Resumes),
    Batches(Batches),
    Retries(Retries),
    Racers(Racers),
    Ages(Ages),
    Storm(Storm),
}

impl Load {
    pub(super) async fn start(
        options: &Options,
        cluster: &Cluster,
        history: &History,
        stop: &Stop,
        hosts: &[HostRuntime],
        net: &Arc<Net>,
    ) -> anyhow::Result<Self> {
        let addresses = cluster.addresses();
        let stage = Stage {
            addresses: addresses.clone(),
            history: history.clone(),
            stop: stop.clone(),
            seed: options.seed,
            clients: options.clients,
            ttl: options.ttl,
        };
        let mut running = Vec::new();
        for (index, workload) in options.workloads.iter().enumerate() {
            let host = hosts.get(index % hosts.len().max(1));
            let mut stage = stage.clone();
            if let Some(host) = host {
                let dialled = addresses.iter().map(|of| net.dialled_from(host.host(), of));
                stage.addresses = dialled.collect();
            }
            running.push(start(*workload, options, &stage, host, net).await?);
        }
        Ok(Self {
            running,
            aftermath: options.ttl + LATE_MAX + Duration::from_secs(2),
        })
    }

    /// Ends them, after they were told to stop, and lets each look at what became of its work, all at the same time.
    pub(super) async fn finish(self, bound: Duration) -> Option<Followed> {
        let aftermath = self.aftermath;
        let ending = self
            .running
            .into_iter()
            .map(|running| finish(running, aftermath, bound));
        let ended = futures_util::future::join_all(ending).await;
        ended.into_iter().flatten().next()
    }
}

async fn finish(running: Running, aftermath: Duration, bound: Duration) -> Option<Followed> {
    match running {
        Running::Registers(of) => of.finish().await,
        Running::Fleet(of) => of.finish(aftermath).await,
        Running::Followers(of) => return Some(of.finish(bound).await),
        Running::Ap(of) => of.finish().await,
        Running::Guard(of) => of.finish().await,
        Running::Takeovers(of) => of.finish().await,
        Running::Moving(of) => of.finish().await,
        Running::Resumes(of) => of.finish(bound).await,
        Running::Batches(of) => of.finish().await,
        Running::Retries(of) => of.finish().await,
        Running::Racers(of) => of.finish().await,
        Running::Ages(of) => of.finish().await,
        Running::Storm(of) => of.finish().await,
    }
    None
}

/// On a host of clients, if there is one: sockets that the workload's tasks make are that host's.
async fn start(
    workload: Workload,
    options: &Options,
    stage: &Stage,
    host: Option<&HostRuntime>,
    net: &Arc<Net>,
) -> anyhow::Result<Running> {
    let Stage {
        addresses,
        history,
        stop,
        seed,
        clients,
        ttl,
    } = stage;
    let (seed, clients, ttl) = (*seed, *clients, *ttl);
    Ok(match workload {
        Workload::Registers => {
            put_group(addresses, registers::GROUP, 10_000).await?;
            let _there = host.map(HostRuntime::enter);
            let reads = options.reads;
            Running::Registers(Registers::start(addresses, history, stop, reads, seed, clients))
        }
        Workload::Heartbeats => {
            put_group(addresses, heartbeats::GROUP, 10_000).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Fleet(Fleet::start(addresses, history, stop, seed, clients * 3, ttl))
        }
        Workload::Followers => {
            put_group(addresses, followers::GROUP, 10_000).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Followers(Followers::start(
                addresses,
                history,
                stop,
                seed,
                clients.div_ceil(2),
            ))
        }
        Workload::Ap => {
            Writers::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Ap(Writers::start(stage))
        }
        Workload::Guard => {
            Guarded::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Guard(Guarded::start(stage))
        }
        Workload::Takeover => {
            Takeovers::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Takeovers(Takeovers::start(stage))
        }
        Workload::Storm => {
            let prepared = Storm::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Storm(Storm::start(stage, prepared, Some(Arc::clone(net))))
        }
        Workload::Ages => {
            Ages::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Ages(Ages::start(stage))
        }
        Workload::Racers => {
            Racers::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Racers(Racers::start(stage))
        }
        Workload::Retries => {
            Retries::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Retries(Retries::start(stage))
        }
        Workload::Batches => {
            Batches::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Batches(Batches::start(stage))
        }
        Workload::Resumes => {
            Resumes::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Resumes(Resumes::start(stage))
        }
        Workload::ModeSwitch => {
            Moving::prepare(stage).await?;
            let _there = host.map(HostRuntime::enter);
            Running::Moving(Moving::start(stage))
        }
    })
}
