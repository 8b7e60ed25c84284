//! Register: ephemeral nodes, over connections with a session each.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::{Ground, SERVICE_NODES, await_listed, close_all};
use crate::cluster::Cluster;
use crate::drive::{Meter, Until, drive};
use crate::product::Dialect;
use crate::results::Run;

/// How nodes are registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Calls in flight on a connection.
    pub(crate) depth: usize,
    /// Nodes a call.
    pub(crate) batch: u64,
}

/// Nodes that do not become visible in this time are not registered.
const VISIBLE_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// One run; `nodes` of them.
pub(crate) async fn register(
    ground: &Ground,
    cluster: &Cluster,
    dialect: &Arc<dyn Dialect>,
    shape: Shape,
    nodes: u64,
) -> Result<Run> {
    let sizes = &ground.sizes;
    let services = Ground::services(nodes.div_ceil(SERVICE_NODES));
    dialect.prepare(&cluster.addresses(), &services).await?;
    let sessions = Arc::new(cluster.connect_with_sessions(dialect, sizes.connections).await?);
    // Made before, so that making them is not measured.
    let mut requests = Vec::new();
    for (index, service) in services.iter().enumerate() {
        let from = u32::try_from(index as u64 * SERVICE_NODES)?;
        let count = SERVICE_NODES.min(nodes - u64::from(from));
        requests.extend(
            ground
                .nodes(service, from + 1, count)
                .chunks(shape.batch as usize)
                .map(<[_]>::to_vec),
        );
    }
    let calls = requests.len() as u64;
    let (lanes, requests) = (Arc::clone(&sessions), Arc::new(requests));
    let meter = Meter::begin(cluster);
    let load = drive(
        sizes.connections,
        shape.depth,
        Until::Calls(calls),
        move |lane, call| {
            let (lanes, requests) = (Arc::clone(&lanes), Arc::clone(&requests));
            async move {
                let (client, ticket) = &lanes[lane];
                client.register(ticket, &requests[call as usize]).await
            }
        },
    )
    .await?;
    let mut run = Run::default();
    meter.tell(cluster, &mut run, nodes);
    load.tell(&mut run, shape.batch);
    for (client, _) in sessions.iter().take(cluster.size()) {
        let found = await_listed(&**client, &services, nodes, VISIBLE_MAX).await?;
        ensure!(
            found == nodes,
            "{nodes} nodes were acknowledged, {found} are listed"
        );
    }
    if let Ok(sessions) = Arc::try_unwrap(sessions) {
        close_all(sessions).await?;
    }
    Ok(run)
}
