//! Join: processes that arrive, each with a connection, a session and a node; then their heartbeats at their pace, and
//! what the servers keep for each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Ground, SERVICE_NODES, await_listed};
use crate::cluster::{Cluster, connect_one};
use crate::drive::{Meter, Until, drive};
use crate::product::{Client, Dialect, Ticket};
use crate::results::{Row, Run};

/// Processes that arrive at a time.
const ARRIVING: usize = 64;
/// Until memory is read.
const SETTLE: Duration = Duration::from_millis(500);

type Held = Vec<(Arc<dyn Client>, Ticket)>;

/// All runs of joining; the last one's processes stay for the paced heartbeats.
pub(crate) async fn join(ground: &Ground, cluster: &mut Cluster, dialect: &Arc<dyn Dialect>) -> Result<()> {
    if !ground.wants_any(&["join", "renew-paced", "session-memory"]) {
        return Ok(());
    }
    let runs = ground.sizes.runs;
    let mut held: Held = Vec::new();
    let mut memory = Vec::new();
    let work = async |cluster: &mut Cluster, run: usize| {
        let before = cluster.resident();
        let (figures, joined) = arrive(ground, cluster, dialect).await?;
        tokio::time::sleep(SETTLE).await;
        // Memory that the first run grew is used again by the others.
        if run == 0 {
            let mut figures = Run::default();
            let grown = cluster.resident().saturating_sub(before);
            figures.set("bytes_each", grown as f64 / joined.len() as f64);
            memory.push(figures);
        }
        if run + 1 == runs {
            held = joined;
        } else {
            leave(joined).await?;
        }
        Ok(figures)
    };
    ground.measure("join", runs, cluster, dialect.name(), work).await;
    if !memory.is_empty() {
        let row = Row {
            workload: "session-memory".into(),
            servers: cluster.size(),
            product: cluster.product.name().into(),
            dialect: dialect.name().into(),
            runs: memory,
            note: None,
            load: crate::machine::load(),
        };
        ground.file(row).await;
    }
    if held.is_empty() {
        return Ok(());
    }
    let held = Arc::new(held);
    let interval = Duration::from_millis(ground.sizes.paced_interval_ms);
    let work = async |cluster: &mut Cluster, _run: usize| paced(cluster, &held, interval).await;
    ground
        .measure("renew-paced", runs, cluster, dialect.name(), work)
        .await;
    Ok(())
}

async fn arrive(ground: &Ground, cluster: &Cluster, dialect: &Arc<dyn Dialect>) -> Result<(Run, Held)> {
    let processes = ground.sizes.processes as u64;
    let services = Arc::new(Ground::services(processes.div_ceil(SERVICE_NODES)));
    dialect.prepare(&cluster.addresses(), &services).await?;
    let held: Arc<Mutex<Held>> = Arc::default();
    let (joined, spoken, addresses, names) = (
        Arc::clone(&held),
        Arc::clone(dialect),
        Arc::new(cluster.addresses()),
        Arc::clone(&services),
    );
    let (ttl, bytes) = (cluster.ttl, ground.sizes.metadata_bytes);
    let meter = Meter::begin(cluster);
    let load = drive(ARRIVING, 1, Until::Calls(processes), move |_lane, call| {
        let (held, dialect, addresses) = (Arc::clone(&joined), Arc::clone(&spoken), Arc::clone(&addresses));
        let service = Arc::clone(&names[(call / SERVICE_NODES) as usize]);
        async move {
            let address = &addresses[call as usize % addresses.len()];
            let client = connect_one(&*dialect, address, ttl).await?;
            let ticket = client.open(ttl).await?;
            let node = crate::product::Node::new(&service, u32::try_from(call)? + 1, bytes);
            client.register(&ticket, std::slice::from_ref(&node)).await?;
            held.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((client, ticket));
            Ok(())
        }
    })
    .await?;
    let mut run = Run::default();
    meter.tell(cluster, &mut run, processes);
    load.tell(&mut run, 1);
    let held = std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some((client, _)) = held.first() {
        let found = await_listed(&**client, &services, processes, Duration::from_secs(10)).await?;
        ensure!(
            found == processes,
            "{processes} processes joined, {found} are listed"
        );
    }
    Ok((run, held))
}

async fn leave(held: Held) -> Result<()> {
    let mut closing = JoinSet::new();
    for chunk in held.chunks(held.len().div_ceil(ARRIVING).max(1)) {
        let chunk = chunk.to_vec();
        closing.spawn(super::close_all(chunk));
    }
    while let Some(closed) = closing.join_next().await {
        closed??;
    }
    Ok(())
}

/// Each session renews once, evenly spread over the interval.
async fn paced(cluster: &Cluster, held: &Arc<Held>, interval: Duration) -> Result<Run> {
    let count = u32::try_from(held.len())?;
    let meter = Meter::begin(cluster);
    let started = Instant::now();
    let mut renewals = JoinSet::new();
    for index in 0..count {
        tokio::time::sleep_until(started + interval * index / count).await;
        let held = Arc::clone(held);
        renewals.spawn(async move {
            let asked = Instant::now();
            let (client, ticket) = &held[index as usize];
            client.renew(ticket).await?;
            anyhow::Ok(asked.elapsed())
        });
    }
    let mut latencies = Vec::new();
    while let Some(renewed) = renewals.join_next().await {
        latencies.push(renewed??);
    }
    latencies.sort();
    let mut run = Run::default();
    meter.tell(cluster, &mut run, count.into());
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    run.set("p50_ms", at(0.5));
    run.set("p99_ms", at(0.99));
    run.set("rate_per_s", f64::from(count) / interval.as_secs_f64());
    Ok(run)
}
