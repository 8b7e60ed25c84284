//! Failover: the leader of three is killed while nodes are being registered. For how long is nothing acknowledged, and
//! is everything that was acknowledged still there?

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Ground, await_listed};
use crate::cluster::Cluster;
use crate::product::{Client, Dialect, Node, Ticket};
use crate::results::Run;

/// Under load before the kill, and after.
const BEFORE: Duration = Duration::from_millis(1_000);
const AFTER: Duration = Duration::from_millis(4_000);
/// A call that is not answered in this time is made again elsewhere.
const PATIENCE: Duration = Duration::from_millis(500);
/// A lane that gets nothing done for so long ends the run.
const STUCK: Duration = Duration::from_secs(20);

/// All runs; the killed server is started again between them.
pub(crate) async fn failover(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
) -> Result<()> {
    let work = async |cluster: &mut Cluster, _run: usize| once(ground, cluster, dialect).await;
    ground
        .measure("failover", ground.sizes.slow_runs, cluster, dialect.name(), work)
        .await;
    Ok(())
}

struct Lane {
    dialect: Arc<dyn Dialect>,
    addresses: Vec<String>,
    at: usize,
    client: Arc<dyn Client>,
    ticket: Ticket,
    service: Arc<str>,
    bytes: usize,
    ttl: Duration,
}

impl Lane {
    /// Registers until then, each node until it is acknowledged; when each was.
    async fn write(mut self, until: Instant) -> Result<Vec<Instant>> {
        let mut acknowledged = Vec::new();
        while Instant::now() < until {
            let number = u32::try_from(acknowledged.len())? + 1;
            let node = [Node::new(&self.service, number, self.bytes)];
            let asked = Instant::now();
            loop {
                let call = tokio::time::timeout(PATIENCE, self.client.register(&self.ticket, &node)).await;
                if matches!(call, Ok(Ok(()))) {
                    break;
                }
                if asked.elapsed() > STUCK {
                    bail!("nothing was acknowledged for {STUCK:?}");
                }
                self.move_on().await;
            }
            acknowledged.push(Instant::now());
        }
        Ok(acknowledged)
    }

    async fn move_on(&mut self) {
        self.at += 1;
        let address = &self.addresses[self.at % self.addresses.len()];
        let elsewhere = async {
            match self.dialect.connect(address, self.ttl, Some(&self.ticket)).await {
                Ok(client) => Ok((client, self.ticket.clone())),
                // A session that is a connection cannot move.
                Err(_) if self.ticket.session == 0 => {
                    let client = self.dialect.connect(address, self.ttl, None).await?;
                    let ticket = client.open(self.ttl).await?;
                    Ok((client, ticket))
                }
                Err(error) => Err(error),
            }
        };
        if let Ok(Ok((client, ticket))) = tokio::time::timeout(PATIENCE, elsewhere).await {
            (self.client, self.ticket) = (client, ticket);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn once(ground: &Ground, cluster: &mut Cluster, dialect: &Arc<dyn Dialect>) -> Result<Run> {
    let addresses = cluster.addresses();
    let services = Ground::services(ground.sizes.connections as u64);
    dialect.prepare(&addresses, &services).await?;
    let sessions = cluster.connect_with_sessions(dialect, services.len()).await?;
    let leader = cluster.product.leader(&addresses).await?;
    let started = Instant::now();
    let until = started + BEFORE + AFTER;
    let mut lanes = JoinSet::new();
    for (index, ((client, ticket), service)) in sessions.into_iter().zip(&services).enumerate() {
        let lane = Lane {
            dialect: Arc::clone(dialect),
            addresses: addresses.clone(),
            at: index,
            client,
            ticket,
            service: Arc::clone(service),
            bytes: ground.sizes.metadata_bytes,
            ttl: cluster.ttl,
        };
        lanes.spawn(lane.write(until));
    }
    tokio::time::sleep_until(started + BEFORE).await;
    cluster.server(leader).kill();
    let killed = Instant::now();
    let mut acknowledged = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        acknowledged.extend(lane??);
    }
    acknowledged.sort();
    // From the kill on, the longest time between two acknowledgements, whoever got them.
    let behind = acknowledged.iter().copied().filter(|at| *at >= killed);
    let mut gap = Duration::ZERO;
    let mut last = killed;
    for at in behind.chain([until]) {
        gap = gap.max(at.saturating_duration_since(last));
        last = at;
    }
    let survivor = dialect
        .connect(&addresses[(leader + 1) % addresses.len()], cluster.ttl, None)
        .await?;
    // What an AP product has yet to spread gets the time to.
    let wanted = acknowledged.len() as u64;
    let found = await_listed(&*survivor, &services, wanted, Duration::from_secs(3)).await?;
    let missing = wanted.saturating_sub(found);
    let before = acknowledged.iter().filter(|at| **at < killed).count();
    let mut run = Run::default();
    run.set("gap_s", gap.as_secs_f64());
    run.set("acknowledged", wanted as f64);
    run.set("lost", missing as f64);
    run.set("rate_before_per_s", before as f64 / BEFORE.as_secs_f64());
    drop(survivor);
    cluster.start_again(leader)?;
    cluster.await_all().await?;
    Ok(run)
}
