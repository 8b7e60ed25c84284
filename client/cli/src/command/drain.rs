//! Waiting until a change has come to every server: the nearest the API tells of what watchers have.

use std::time::Duration;

use rollcall_client::{NodeKey, ReadOptions};
use serde::Serialize;
use tokio::time::Instant;

use super::Context;
use crate::exit::Failure;
use crate::output::record::Written;
use crate::progress::Progress;
use crate::servers::registry_of;

/// Pause before a server that could not answer is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// Least time for one server, even if the write has used up most of it.
const TIME_MIN: Duration = Duration::from_millis(100);

/// A server that serves the change.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reached {
    pub(crate) server: u64,
    pub(crate) address: String,
    pub(crate) revision: u64,
}

/// What was waited for, and who has it.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    pub(crate) servers: Vec<Reached>,
    /// Whether watchers said that they have it: the servers do not tell yet.
    pub(crate) watchers_acknowledged: Option<bool>,
}

/// Waits until every server of the cluster answers from the change's revision or a later one.
pub(crate) async fn wait(context: &Context, nodes: &[NodeKey], written: &Written) -> Result<Seen, Failure> {
    let deadline = Instant::now() + context.servers.timeout();
    let members = context.servers.registry().members().await?.value;
    let mut addresses: Vec<String> = members
        .into_iter()
        .map(|member| member.client_address)
        .filter(|a| !a.is_empty())
        .collect();
    if addresses.is_empty() {
        addresses = context.servers.addresses().to_vec();
    }
    let Some(node) = nodes.first() else {
        return Err(Failure::usage("no node was named"));
    };
    let progress = Progress::of(addresses.len() as u64, "waiting for servers");
    let waits = addresses.into_iter().map(|address| {
        let progress = progress.clone();
        async move {
            let reached = wait_for(&address, node, written.revision, deadline).await;
            progress.add(1);
            reached
        }
    });
    let results = futures_util::future::join_all(waits).await;
    progress.finish();
    let mut servers = Vec::new();
    let mut missing = Vec::new();
    for result in results {
        match result {
            Ok(reached) => servers.push(reached),
            Err(failure) => missing.push(failure.message),
        }
    }
    if missing.is_empty() {
        Ok(Seen {
            revision: written.revision,
            servers,
            watchers_acknowledged: None,
        })
    } else {
        Err(Failure::timeout(format!(
            "draining since revision {}, but not known to be seen everywhere: {}",
            written.revision,
            missing.join("; ")
        )))
    }
}

/// What the server itself has, once it has applied the revision.
async fn wait_for(
    address: &str,
    node: &NodeKey,
    revision: u64,
    deadline: Instant,
) -> Result<Reached, Failure> {
    let left = deadline.saturating_duration_since(Instant::now()).max(TIME_MIN);
    let registry = registry_of(&[address], left)?;
    let read = ReadOptions {
        min_revision: revision,
        ..ReadOptions::local()
    };
    loop {
        let answer = registry
            .signs(std::slice::from_ref(&node.service), read)
            .await
            .map_err(|error| Failure::from(error).context(address))?;
        if answer.header.revision >= revision {
            return Ok(Reached {
                server: answer.header.server,
                address: address.to_owned(),
                revision: answer.header.revision,
            });
        }
        if Instant::now() + PAUSE >= deadline {
            let behind = format!("{address}: still at revision {}", answer.header.revision);
            return Err(Failure::timeout(behind));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
