//! Expiry: a client with a thousand nodes is killed, a tenth of each service it is in; and it was alone in one more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::hold::{Hold, Holder};
use super::{Ground, close_all, fill, listed};
use crate::cluster::Cluster;
use crate::drive::Keeper;
use crate::product::Dialect;
use crate::results::Run;

/// Services that lose some of their nodes.
const SERVICES: u32 = 10;
/// Nodes that stay for each that leaves: no registry needs to doubt so small a loss.
const STAYING: u32 = 4;
/// After the ttl.
const LEAVE_MAX: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Until what was to be held back would be gone as well.
const MASS_WAIT: Duration = Duration::from_secs(1);

/// All runs.
pub(crate) async fn expiry(ground: &Ground, cluster: &mut Cluster, dialect: &Arc<dyn Dialect>) -> Result<()> {
    if !ground.wants("expiry") {
        return Ok(());
    }
    let work = async |cluster: &mut Cluster, _run: usize| once(ground, cluster, dialect).await;
    ground
        .measure("expiry", ground.sizes.slow_runs, cluster, dialect.name(), work)
        .await;
    Ok(())
}

async fn once(ground: &Ground, cluster: &Cluster, dialect: &Arc<dyn Dialect>) -> Result<Run> {
    let ttl = cluster.ttl;
    let each = ground.sizes.expiring / SERVICES;
    let mut services = Ground::services(u64::from(SERVICES) + 1);
    dialect.prepare(&cluster.addresses(), &services).await?;
    let lonely = services.split_off(SERVICES as usize);
    let providers = cluster.connect_with_sessions(dialect, 10).await?;
    let _kept = Keeper::keep(
        providers
            .iter()
            .map(|(client, ticket)| (Arc::clone(client), Some(ticket.clone())))
            .collect(),
        ttl / 3,
    );
    fill(ground, &providers, &services, u64::from(each * STAYING)).await?;
    let observer = cluster.connect(dialect, 1).await?.remove(0);
    let hold = Hold {
        product: cluster.product.name().to_owned(),
        address: cluster.addresses().remove(0),
        ttl_s: ttl.as_secs(),
        services: services.iter().chain(&lonely).map(ToString::to_string).collect(),
        nodes: each,
        first: 1_000_000,
        bytes: ground.sizes.metadata_bytes,
    };
    let holder = Holder::start(&hold).await?;
    let staying = u64::from(each * STAYING * SERVICES);
    let all = staying + u64::from(each * SERVICES);
    let found = super::await_listed(&*observer, &services, all, Duration::from_secs(5)).await?;
    ensure!(found == all, "{all} nodes are registered, {found} are listed");
    let holder = holder.renew().await?;
    let renewed = Instant::now();
    holder.kill()?;
    let mut first_gone = None;
    loop {
        let found = listed(&*observer, &services).await?;
        ensure!(
            found >= staying,
            "{} nodes of live clients are gone",
            staying - found
        );
        if found < all {
            first_gone.get_or_insert(renewed.elapsed());
        }
        if found == staying {
            break;
        }
        ensure!(
            renewed.elapsed() < ttl + LEAVE_MAX,
            "{} nodes stay",
            found - staying
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let gone = renewed.elapsed();
    tokio::time::sleep(MASS_WAIT).await;
    let held = observer.discover(&lonely[0], crate::product::Read::Local).await?;
    let mut run = Run::default();
    run.set("after_ttl_s", gone.as_secs_f64() - ttl.as_secs_f64());
    run.set(
        "first_after_ttl_s",
        first_gone.unwrap_or(gone).as_secs_f64() - ttl.as_secs_f64(),
    );
    run.set("after_death_s", gone.as_secs_f64());
    run.set("kept_of_a_lost_service", held as f64 / f64::from(each));
    close_all(providers).await?;
    Ok(run)
}
