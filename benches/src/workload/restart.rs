//! Restart: a server with very many nodes is killed and started again. How much memory did it take, and how long is it
//! until all are served?

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{Ground, SERVICE_NODES, fill, listed};
use crate::cluster::Cluster;
use crate::drive::Keeper;
use crate::product::{Client, Dialect, Read, Ticket};
use crate::results::Run;

/// Sessions that own them.
const SESSIONS: usize = 10;
/// Services that are asked for until they are complete; then all are counted.
const SAMPLED: usize = 10;
const SERVED_MAX: Duration = Duration::from_secs(60);
/// A probe that takes longer is given up.
const PROBE_MAX: Duration = Duration::from_millis(500);
/// Until memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Memory once, then all restarts.
pub(crate) async fn restart(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
) -> Result<()> {
    if !ground.wants_any(&["stored-memory", "restart"]) {
        return Ok(());
    }
    let stored = ground.sizes.stored;
    let services = Ground::services(stored / SERVICE_NODES);
    dialect.prepare(&cluster.addresses(), &services).await?;
    let before = cluster.resident();
    let sessions = cluster.connect_with_sessions(dialect, SESSIONS).await?;
    let mut kept = keep(&sessions, cluster);
    fill(ground, &sessions, &services, SERVICE_NODES).await?;
    let found = listed(&*sessions[0].0, &services).await?;
    ensure!(
        found == stored,
        "{stored} nodes were acknowledged, {found} are listed"
    );
    tokio::time::sleep(SETTLE).await;
    let memory = async |cluster: &mut Cluster, _run: usize| {
        let mut run = Run::default();
        run.set(
            "bytes_each",
            cluster.resident().saturating_sub(before) as f64 / stored as f64,
        );
        run.set("resident_mib", cluster.resident() as f64 / f64::from(1 << 20));
        Ok(run)
    };
    ground
        .measure("stored-memory", 1, cluster, dialect.name(), memory)
        .await;
    let tickets: Vec<_> = sessions.iter().map(|(_, ticket)| ticket.clone()).collect();
    drop(sessions);
    let survive = cluster.product.sessions_survive_a_restart();
    let work = async |cluster: &mut Cluster, _run: usize| {
        if !survive {
            bail!("its nodes live with connections: a restart loses all of them");
        }
        cluster.server(0).kill();
        drop(kept.take());
        let started = Instant::now();
        cluster.start_again(0)?;
        let address = cluster.addresses().remove(0);
        let client = served(&**dialect, &address, &services, cluster.ttl, started).await?;
        let took = started.elapsed();
        let found = listed(&*client, &services).await?;
        ensure!(found == stored, "{stored} nodes were stored, {found} are served");
        let mut held = Vec::new();
        for ticket in &tickets {
            held.push((
                dialect.connect(&address, cluster.ttl, Some(ticket)).await?,
                ticket.clone(),
            ));
        }
        kept = keep(&held, cluster);
        let mut run = Run::default();
        run.set("served_s", took.as_secs_f64());
        run.set("resident_mib", cluster.resident() as f64 / f64::from(1 << 20));
        Ok(run)
    };
    ground
        .measure("restart", ground.sizes.runs, cluster, dialect.name(), work)
        .await;
    Ok(())
}

fn keep(sessions: &[(Arc<dyn Client>, Ticket)], cluster: &Cluster) -> Option<Keeper> {
    let held = sessions
        .iter()
        .map(|(client, ticket)| (Arc::clone(client), Some(ticket.clone())));
    Some(Keeper::keep(held.collect(), cluster.ttl / 4))
}

/// Asks until a sample of the services is complete.
async fn served(
    dialect: &dyn Dialect,
    address: &str,
    services: &[Arc<str>],
    ttl: Duration,
    started: Instant,
) -> Result<Arc<dyn Client>> {
    let step = services.len().div_ceil(SAMPLED).max(1);
    loop {
        let probe = async {
            let client = dialect.connect(address, ttl, None).await?;
            for service in services.iter().step_by(step) {
                let found = client.discover(service, Read::Local).await?;
                ensure!(found == SERVICE_NODES as usize, "{service} lists {found}");
            }
            anyhow::Ok(client)
        };
        match tokio::time::timeout(PROBE_MAX, probe).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) if started.elapsed() > SERVED_MAX => return Err(error.context("not served")),
            _ if started.elapsed() > SERVED_MAX => bail!("not served within {SERVED_MAX:?}"),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
