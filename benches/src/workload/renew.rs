//! Renew: heartbeats as fast as they are answered.

use std::sync::Arc;

use anyhow::Result;

use super::{Ground, close_all};
use crate::cluster::Cluster;
use crate::drive::{Meter, Until, drive};
use crate::product::Dialect;
use crate::results::Run;

/// All runs, on connections with a session each and `depth` heartbeats in flight.
pub(crate) async fn renew(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    workload: &str,
    depth: usize,
) -> Result<()> {
    if !ground.wants(workload) {
        return Ok(());
    }
    let lanes = ground.sizes.connections;
    let sessions = Arc::new(cluster.connect_with_sessions(dialect, lanes).await?);
    let window = ground.sizes.window();
    let work = async |cluster: &mut Cluster, _run: usize| {
        let held = Arc::clone(&sessions);
        let meter = Meter::begin(cluster);
        let load = drive(lanes, depth, Until::Time(window), move |lane, _call| {
            let held = Arc::clone(&held);
            async move {
                let (client, ticket) = &held[lane];
                client.renew(ticket).await
            }
        })
        .await?;
        let mut run = Run::default();
        meter.tell(cluster, &mut run, load.calls);
        load.tell(&mut run, 1);
        Ok(run)
    };
    ground
        .measure(workload, ground.sizes.runs, cluster, dialect.name(), work)
        .await;
    match Arc::try_unwrap(sessions) {
        Ok(sessions) => close_all(sessions).await,
        Err(_) => Ok(()),
    }
}
