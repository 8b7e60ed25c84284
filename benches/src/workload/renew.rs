//! Renew: heartbeats as fast as they are answered.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::{Ground, close_all};
use crate::cluster::Cluster;
use crate::drive::{Meter, Until, drive};
use crate::product::{Client, Dialect, Ticket};
use crate::results::Run;

/// How heartbeats are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heartbeats {
    pub(crate) name: &'static str,
    /// In flight on each connection.
    pub(crate) depth: usize,
    /// Sessions of a connection, whose heartbeats are one call.
    pub(crate) sessions: usize,
}

/// A connection and its sessions.
type Lane = (Arc<dyn Client>, Vec<Ticket>);

/// All runs.
pub(crate) async fn renew(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    heartbeats: Heartbeats,
) -> Result<()> {
    if !ground.wants(heartbeats.name) {
        return Ok(());
    }
    let lanes = ground.sizes.connections;
    let held = Arc::new(open(cluster, dialect, lanes, heartbeats.sessions).await?);
    let window = ground.sizes.window();
    let work = async |cluster: &mut Cluster, _run: usize| {
        let held = Arc::clone(&held);
        let meter = Meter::begin(cluster);
        let load = drive(
            lanes,
            heartbeats.depth,
            Until::Time(window),
            move |lane, _call| {
                let held = Arc::clone(&held);
                async move {
                    match &held[lane] {
                        (client, tickets) if tickets.len() > 1 => client.renew_all(tickets).await,
                        (client, tickets) => client.renew(tickets.first().context("no session")?).await,
                    }
                }
            },
        )
        .await?;
        let sessions = heartbeats.sessions as u64;
        let mut run = Run::default();
        meter.tell(cluster, &mut run, load.calls * sessions);
        load.tell(&mut run, sessions);
        Ok(run)
    };
    ground
        .measure(heartbeats.name, ground.sizes.runs, cluster, dialect.name(), work)
        .await;
    close(Arc::try_unwrap(held).unwrap_or_default()).await
}

async fn open(
    cluster: &Cluster,
    dialect: &Arc<dyn Dialect>,
    lanes: usize,
    sessions: usize,
) -> Result<Vec<Lane>> {
    let mut opened = Vec::with_capacity(lanes);
    for (client, ticket) in cluster.connect_with_sessions(dialect, lanes).await? {
        let mut tickets = vec![ticket];
        while tickets.len() < sessions {
            tickets.push(client.open(cluster.ttl).await.context("no session")?);
        }
        opened.push((client, tickets));
    }
    Ok(opened)
}

/// Of a product whose session is the connection, all tickets of a lane are the same.
async fn close(lanes: Vec<Lane>) -> Result<()> {
    for (client, mut tickets) in lanes {
        tickets.dedup_by_key(|ticket| ticket.session);
        let each = tickets.into_iter().map(|ticket| (Arc::clone(&client), ticket));
        close_all(each.collect()).await?;
    }
    Ok(())
}
