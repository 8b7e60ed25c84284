//! A running cluster of one product.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;

use crate::machine::{self, Cpu};
use crate::product::{Client, Dialect, Node, Product, Programs, Ticket};
use crate::server::{Server, ServerPlan};

/// How long servers may take until they serve.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a call that asks whether they do may take.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Connections being opened at a time.
const OPENING: usize = 32;
/// A connection that was refused is tried again for so long.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// The servers and how to reach them.
pub(crate) struct Cluster {
    pub(crate) product: Arc<dyn Product>,
    pub(crate) ttl: Duration,
    plans: Vec<ServerPlan>,
    servers: Vec<Server>,
    folder: PathBuf,
}

impl Cluster {
    /// Starts it with empty folders and waits until every server serves.
    pub(crate) async fn start(
        product: &Arc<dyn Product>,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        ttl: Duration,
    ) -> Result<Self> {
        let folder = folder.to_owned();
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let plans = product.plan(programs, &folder, servers, ttl)?;
        let mut cluster = Self {
            product: Arc::clone(product),
            ttl,
            plans,
            servers: Vec::new(),
            folder,
        };
        for index in 0..cluster.plans.len() {
            if cluster.plans[index].after_the_first && index == 1 {
                cluster.await_serving(&cluster.addresses()[..1]).await?;
            }
            let server = cluster.plans[index].start()?;
            cluster.servers.push(server);
        }
        cluster.await_serving(&cluster.addresses()).await?;
        Ok(cluster)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.plans.iter().map(|plan| plan.address.clone()).collect()
    }

    pub(crate) fn size(&self) -> usize {
        self.plans.len()
    }

    /// What users would take.
    pub(crate) fn dialect(&self) -> Result<Arc<dyn Dialect>> {
        self.product
            .dialects()
            .into_iter()
            .next()
            .context("the product has no dialect")
    }

    /// A write at each server is seen at all of them.
    async fn await_serving(&self, addresses: &[String]) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        let dialect = self.dialect()?;
        loop {
            let serving = tokio::time::timeout(PROBE_MAX, serves(&*dialect, addresses)).await;
            match serving {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if Instant::now() > deadline => {
                    return Err(error.context(format!("{} does not serve", self.product.name())));
                }
                Err(_) if Instant::now() > deadline => bail!("{} does not answer", self.product.name()),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Connections of their own, spread over the servers.
    pub(crate) async fn connect(
        &self,
        dialect: &Arc<dyn Dialect>,
        count: usize,
    ) -> Result<Vec<Arc<dyn Client>>> {
        let addresses = self.addresses();
        let opening = (0..count).map(|index| {
            let address = addresses[index % addresses.len()].clone();
            let dialect = Arc::clone(dialect);
            let ttl = self.ttl;
            async move { connect_one(&*dialect, &address, ttl).await }
        });
        let mut opening = futures_util::stream::iter(opening).buffered(OPENING);
        let mut clients = Vec::with_capacity(count);
        while let Some(client) = opening.next().await {
            clients.push(client?);
        }
        Ok(clients)
    }

    /// The same, each with a session.
    pub(crate) async fn connect_with_sessions(
        &self,
        dialect: &Arc<dyn Dialect>,
        count: usize,
    ) -> Result<Vec<(Arc<dyn Client>, Ticket)>> {
        let clients = self.connect(dialect, count).await?;
        let mut sessions = Vec::with_capacity(count);
        for client in clients {
            let ticket = client.open(self.ttl).await.context("no session")?;
            sessions.push((client, ticket));
        }
        Ok(sessions)
    }

    pub(crate) fn server(&mut self, index: usize) -> &mut Server {
        &mut self.servers[index]
    }

    /// Starts a server that was killed, with what its folder holds.
    pub(crate) fn start_again(&mut self, index: usize) -> Result<()> {
        self.servers[index] = self.plans[index].start()?;
        Ok(())
    }

    /// Waits until all servers serve.
    pub(crate) async fn await_all(&self) -> Result<()> {
        self.await_serving(&self.addresses()).await
    }

    pub(crate) fn cpu(&self) -> Vec<Cpu> {
        self.servers.iter().map(|server| Cpu::of(server.pid())).collect()
    }

    /// Resident memory of all servers.
    pub(crate) fn resident(&self) -> u64 {
        self.servers
            .iter()
            .map(|server| machine::resident(server.pid()))
            .sum()
    }

    /// Ends it and forgets its data; without this call its folders, with the servers' logs, stay to be looked at.
    pub(crate) fn discard(mut self) {
        self.servers.clear();
        let _left = std::fs::remove_dir_all(&self.folder);
    }

    /// A server that ended by itself makes what was measured worthless.
    pub(crate) fn check(&mut self) -> Result<()> {
        for (server, plan) in self.servers.iter_mut().zip(&self.plans) {
            if !server.is_running() {
                bail!(
                    "a server of {} has ended: see {}",
                    self.product.name(),
                    plan.folder.join("log").display()
                );
            }
        }
        Ok(())
    }
}

/// A connection, tried again while the server takes no more for the moment.
pub(crate) async fn connect_one(
    dialect: &dyn Dialect,
    address: &str,
    ttl: Duration,
) -> Result<Arc<dyn Client>> {
    let deadline = Instant::now() + CONNECT_MAX;
    loop {
        match dialect.connect(address, ttl, None).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error.context("no connection")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

static PROBES: AtomicU32 = AtomicU32::new(1);

async fn serves(dialect: &dyn Dialect, addresses: &[String]) -> Result<()> {
    const TTL: Duration = Duration::from_secs(10);
    let services: Vec<Arc<str>> = (0..addresses.len())
        .map(|index| format!("probe-{index}").into())
        .collect();
    dialect.prepare(addresses, &services).await?;
    let mut clients = Vec::new();
    for address in addresses {
        clients.push(dialect.connect(address, TTL, None).await?);
    }
    let mut tickets = Vec::new();
    for (client, service) in clients.iter().zip(&services) {
        let ticket = client.open(TTL).await?;
        // An earlier attempt may have left its node.
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        client
            .register(&ticket, &[Node::new(service, number, 20)])
            .await?;
        for other in &clients {
            while other.discover(service, crate::product::Read::Local).await? == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tickets.push(ticket);
    }
    for (client, ticket) in clients.iter().zip(&tickets) {
        client.close(ticket).await?;
    }
    Ok(())
}
