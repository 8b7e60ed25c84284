//! What is measured, a file each; [`Ground`] is what they share.

mod discover;
mod expiry;
mod failover;
mod hold;
mod join;
mod pause;
mod register;
mod renew;
mod restart;
mod watch;

pub(crate) use discover::discover;
pub(crate) use expiry::expiry;
pub(crate) use failover::failover;
pub(crate) use hold::{Hold, hold};
pub(crate) use join::join;
pub(crate) use pause::{Paused, pause};
pub(crate) use register::{Shape, register};
pub(crate) use renew::{Heartbeats, renew};
pub(crate) use restart::restart;
pub(crate) use watch::{watch_own, watch_shared};

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::cluster::Cluster;
use crate::machine;
use crate::product::{Client, Dialect, Node, Read, Ticket};
use crate::results::{Results, Row, Run};

/// How much of everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sizes {
    /// Of every workload.
    pub(crate) runs: usize,
    /// Of those that mostly wait: expiry, pauses, failover.
    pub(crate) slow_runs: usize,
    pub(crate) connections: usize,
    /// Calls in flight on each connection, where that is more than one.
    pub(crate) depth: usize,
    pub(crate) nodes: u64,
    pub(crate) batch: u64,
    pub(crate) metadata_bytes: usize,
    /// Length of a closed loop without a count.
    pub(crate) window_ms: u64,
    pub(crate) processes: usize,
    pub(crate) paced_interval_ms: u64,
    pub(crate) watchers: usize,
    pub(crate) watchers_many: usize,
    pub(crate) changes: u64,
    pub(crate) burst: u64,
    pub(crate) stored: u64,
    pub(crate) expiring: u32,
    pub(crate) ttl_s: u64,
    pub(crate) short_ttl_s: u64,
}

impl Sizes {
    pub(crate) fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms)
    }

    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_s)
    }

    pub(crate) fn short_ttl(&self) -> Duration {
        Duration::from_secs(self.short_ttl_s)
    }
}

/// Nodes of a service, wherever it does not matter.
pub(crate) const SERVICE_NODES: u64 = 100;

/// What workloads share: sizes, and where results go.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) sizes: Sizes,
    pub(crate) results: Arc<Mutex<Results>>,
    only: Vec<String>,
}

impl Ground {
    pub(crate) fn new(sizes: Sizes, results: Arc<Mutex<Results>>, only: Vec<String>) -> Self {
        Self { sizes, results, only }
    }

    pub(crate) fn wants(&self, workload: &str) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|wanted| workload.starts_with(wanted.as_str()))
    }

    /// Whether any of these is wanted.
    pub(crate) fn wants_any(&self, workloads: &[&str]) -> bool {
        workloads.iter().any(|workload| self.wants(workload))
    }

    /// Runs one piece of work so often as asked for and files its row; a failure becomes the row's note.
    pub(crate) async fn measure<W>(
        &self,
        workload: &str,
        runs: usize,
        cluster: &mut Cluster,
        dialect: &str,
        mut work: W,
    ) where
        W: AsyncFnMut(&mut Cluster, usize) -> Result<Run>,
    {
        if !self.wants(workload) {
            return;
        }
        let mut row = Row {
            workload: workload.to_owned(),
            servers: cluster.size(),
            product: cluster.product.name().to_owned(),
            dialect: dialect.to_owned(),
            runs: Vec::new(),
            note: None,
            load: machine::load(),
        };
        for run in 0..runs {
            let done = match work(cluster, run).await {
                Ok(run) => cluster.check().map(|()| run),
                Err(error) => Err(error),
            };
            match done {
                Ok(run) => row.runs.push(run),
                Err(error) => {
                    row.note = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        self.file(row).await;
    }

    pub(crate) async fn file(&self, row: Row) {
        eprintln!("{}", crate::report::line(&row));
        self.results.lock().await.rows.push(row);
    }

    /// Names that no earlier workload used.
    pub(crate) fn services(count: u64) -> Vec<Arc<str>> {
        static SERIES: AtomicU32 = AtomicU32::new(0);
        let series = SERIES.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|index| format!("s{series}-{index}").into())
            .collect()
    }

    /// Nodes of a service, numbered from this one on.
    pub(crate) fn nodes(&self, service: &Arc<str>, from: u32, count: u64) -> Vec<Node> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        (from..from + count)
            .map(|number| Node::new(service, number, self.sizes.metadata_bytes))
            .collect()
    }
}

/// How many nodes all these services list together.
pub(crate) async fn listed(client: &dyn Client, services: &[Arc<str>]) -> Result<u64> {
    let mut sum = 0;
    for service in services {
        sum += client.discover(service, Read::Local).await? as u64;
    }
    Ok(sum)
}

/// Waits until that many are listed; what is listed at last.
pub(crate) async fn await_listed(
    client: &dyn Client,
    services: &[Arc<str>],
    wanted: u64,
    at_most: Duration,
) -> Result<u64> {
    let deadline = tokio::time::Instant::now() + at_most;
    loop {
        let found = listed(client, services).await?;
        if found == wanted || tokio::time::Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Registers whole services, a hundred nodes a call, each lane with its share.
pub(crate) async fn fill(
    ground: &Ground,
    sessions: &[(Arc<dyn Client>, Ticket)],
    services: &[Arc<str>],
    nodes_each: u64,
) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (lane, (client, ticket)) in sessions.iter().enumerate() {
        let own: Vec<_> = services
            .iter()
            .skip(lane)
            .step_by(sessions.len())
            .cloned()
            .collect();
        let nodes: Vec<_> = own
            .iter()
            .map(|service| ground.nodes(service, 1, nodes_each))
            .collect();
        let (client, ticket) = (Arc::clone(client), ticket.clone());
        tasks.spawn(async move {
            for nodes in nodes {
                for nodes in nodes.chunks(SERVICE_NODES as usize) {
                    client.register(&ticket, nodes).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Ends sessions, in their order; their nodes leave.
pub(crate) async fn close_all(sessions: Vec<(Arc<dyn Client>, Ticket)>) -> Result<()> {
    for (client, ticket) in &sessions {
        client.close(ticket).await?;
    }
    Ok(())
}

/// The dialect of that name.
pub(crate) fn dialects(cluster: &Cluster) -> Vec<Arc<dyn Dialect>> {
    cluster.product.dialects()
}
