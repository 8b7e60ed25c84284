//! Pause: servers stand still for longer than the ttl (SIGSTOP), while all clients live. How many nodes are removed?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Ground, await_listed, listed};
use crate::cluster::Cluster;
use crate::product::{Client, Dialect, Node, Ticket};
use crate::results::Run;

/// Who stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paused {
    All,
    Leader,
}

/// Clients, each with a connection, a session and a node in every service.
const CLIENTS: usize = 100;
const SERVICES: u64 = 10;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A look that takes longer is given up.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// All runs.
pub(crate) async fn pause(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    paused: Paused,
) -> Result<()> {
    let workload = match paused {
        Paused::All => "pause-all",
        Paused::Leader => "pause-leader",
    };
    let work = async |cluster: &mut Cluster, _run: usize| once(ground, cluster, dialect, paused).await;
    ground
        .measure(workload, ground.sizes.slow_runs, cluster, dialect.name(), work)
        .await;
    Ok(())
}

/// A provider that keeps its session as a good client would: it renews, and goes to the next server when one is silent.
struct Provider {
    dialect: Arc<dyn Dialect>,
    addresses: Vec<String>,
    at: usize,
    client: Arc<dyn Client>,
    ticket: Ticket,
    nodes: Vec<Node>,
    ttl: Duration,
}

impl Provider {
    async fn live(mut self, ended: Arc<AtomicBool>) -> Result<()> {
        for node in &self.nodes {
            self.client
                .register(&self.ticket, std::slice::from_ref(node))
                .await?;
        }
        while !ended.load(Ordering::SeqCst) {
            let renewed = tokio::time::timeout(self.ttl / 4, self.client.renew(&self.ticket)).await;
            if matches!(renewed, Ok(Ok(()))) {
                tokio::time::sleep(self.ttl / 4).await;
            } else {
                self.move_on().await;
            }
        }
        let _left = tokio::time::timeout(Duration::from_secs(5), self.client.close(&self.ticket)).await;
        Ok(())
    }

    /// With its session, if the product can; else as a new client that registers again.
    async fn move_on(&mut self) {
        self.at += 1;
        let address = &self.addresses[self.at % self.addresses.len()];
        let patience = self.ttl / 8;
        let moved = self.dialect.connect(address, self.ttl, Some(&self.ticket));
        if let Ok(Ok(client)) = tokio::time::timeout(patience, moved).await {
            self.client = client;
            return;
        }
        if self.ticket.session == 0 {
            let anew = async {
                let client = self.dialect.connect(address, self.ttl, None).await?;
                let ticket = client.open(self.ttl).await?;
                for node in &self.nodes {
                    client.register(&ticket, std::slice::from_ref(node)).await?;
                }
                anyhow::Ok((client, ticket))
            };
            if let Ok(Ok((client, ticket))) = tokio::time::timeout(patience * 2, anew).await {
                (self.client, self.ticket) = (client, ticket);
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn once(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    paused: Paused,
) -> Result<Run> {
    let ttl = cluster.ttl;
    let services = Ground::services(SERVICES);
    let addresses = cluster.addresses();
    dialect.prepare(&addresses, &services).await?;
    let ended = Arc::new(AtomicBool::new(false));
    let mut lives = JoinSet::new();
    for (index, client) in cluster.connect(dialect, CLIENTS).await?.into_iter().enumerate() {
        let number = u32::try_from(index)? + 1;
        let nodes = services
            .iter()
            .map(|service| Node::new(service, number, ground.sizes.metadata_bytes));
        let provider = Provider {
            dialect: Arc::clone(dialect),
            addresses: addresses.clone(),
            at: index,
            ticket: client.open(ttl).await?,
            client,
            nodes: nodes.collect(),
            ttl,
        };
        lives.spawn(provider.live(Arc::clone(&ended)));
    }
    let leader = cluster.product.leader(&addresses).await?;
    let stopped: Vec<usize> = match paused {
        Paused::All => (0..cluster.size()).collect(),
        Paused::Leader => vec![leader],
    };
    // Looks are taken at a server that runs, if there is one.
    let seen_from = (leader + 1) % cluster.size();
    let observer = dialect
        .connect(&addresses[seen_from], Duration::from_secs(30), None)
        .await?;
    let wanted = SERVICES * CLIENTS as u64;
    let found = await_listed(&*observer, &services, wanted, Duration::from_secs(10)).await?;
    ensure!(
        found == wanted,
        "{wanted} nodes are registered, {found} are listed"
    );
    for index in &stopped {
        cluster.server(*index).stop()?;
    }
    let until = Instant::now() + ttl + ttl / 2;
    let mut fewest = wanted;
    if paused == Paused::Leader {
        while Instant::now() < until {
            look(&*observer, &services, &mut fewest).await;
        }
    } else {
        tokio::time::sleep_until(until).await;
    }
    for index in &stopped {
        cluster.server(*index).resume()?;
    }
    let until = Instant::now() + ttl + Duration::from_secs(2);
    while Instant::now() < until {
        look(&*observer, &services, &mut fewest).await;
    }
    let last = listed(&*observer, &services).await.unwrap_or(0);
    ended.store(true, Ordering::SeqCst);
    while let Some(life) = lives.join_next().await {
        life??;
    }
    let mut run = Run::default();
    run.set("removed", (wanted - fewest.min(wanted)) as f64);
    run.set("missing_at_the_end", (wanted - last.min(wanted)) as f64);
    Ok(run)
}

async fn look(observer: &dyn Client, services: &[Arc<str>], fewest: &mut u64) {
    if let Ok(Ok(found)) = tokio::time::timeout(LOOK_MAX, listed(observer, services)).await {
        *fewest = found.min(*fewest);
    }
    tokio::time::sleep(LOOK_EVERY).await;
}
