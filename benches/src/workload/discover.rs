//! Discover: whole services, read and decoded.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::{Ground, SERVICE_NODES, close_all, fill};
use crate::cluster::Cluster;
use crate::drive::{Meter, Until, drive};
use crate::product::{Dialect, Read};
use crate::results::Run;

/// Services that are asked for in turn.
const SERVICES: u64 = 10;

/// All runs of one kind of read, on connections of their own.
pub(crate) async fn discover(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    read: Read,
) -> Result<()> {
    let workload = match read {
        Read::Local => "discover-local",
        Read::Linearizable => "discover-linearizable",
        Read::Unchanged => "discover-unchanged",
    };
    if !dialect.can(read) || !ground.wants(workload) {
        return Ok(());
    }
    let services = Arc::new(Ground::services(SERVICES));
    dialect.prepare(&cluster.addresses(), &services).await?;
    let providers = cluster.connect_with_sessions(dialect, cluster.size()).await?;
    fill(ground, &providers, &services, SERVICE_NODES).await?;
    let readers = Arc::new(cluster.connect(dialect, ground.sizes.connections).await?);
    for reader in readers.iter() {
        for service in services.iter() {
            reader.discover(service, read).await?;
        }
    }
    let window = ground.sizes.window();
    let work = async |cluster: &mut Cluster, run: usize| {
        if run == 0 {
            once(cluster, &readers, &services, read, window / 2).await?;
        }
        once(cluster, &readers, &services, read, window).await
    };
    ground
        .measure(workload, ground.sizes.runs, cluster, dialect.name(), work)
        .await;
    close_all(providers).await
}

async fn once(
    cluster: &Cluster,
    readers: &Arc<Vec<Arc<dyn crate::product::Client>>>,
    services: &Arc<Vec<Arc<str>>>,
    read: Read,
    window: std::time::Duration,
) -> Result<Run> {
    let expected = if read == Read::Unchanged {
        0
    } else {
        SERVICE_NODES as usize
    };
    let lanes = readers.len();
    let (readers, services) = (Arc::clone(readers), Arc::clone(services));
    let meter = Meter::begin(cluster);
    let load = drive(lanes, 1, Until::Time(window), move |lane, call| {
        let reader = Arc::clone(&readers[lane]);
        let service = Arc::clone(&services[(call % SERVICES) as usize]);
        async move {
            let found = reader.discover(&service, read).await?;
            ensure!(found == expected, "{expected} nodes are registered, {found} came");
            Ok(())
        }
    })
    .await?;
    let mut run = Run::default();
    meter.tell(cluster, &mut run, load.calls);
    load.tell(&mut run, 1);
    Ok(run)
}
