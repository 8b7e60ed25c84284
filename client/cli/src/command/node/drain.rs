//! `rollcall node drain`, and waiting until the consumers know: every watcher, at every server.

use clap::Args;
use rollcall_client::{Convergence, NodeKey, NodeState, NodeUpdate, ServerConvergence, ServiceKey};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Failure;
use crate::names::plural;
use crate::output::record::Written;
use crate::servers::plain;
use crate::talk::say;

/// Arguments of `node drain`.
#[derive(Args, Debug)]
#[command(after_help = "\
--wait ends with 0 when every watcher of the nodes' services, at every server of the cluster, has acknowledged
the drain. What is printed says how many have, and who has not. A consumer without a watch, and one that is
between two servers at the moment, is not counted. --timeout bounds the write and the wait, each; a wait that
takes longer, or a server that does not answer, ends with code 6, and the nodes stay draining.")]
pub(crate) struct DrainNodes {
    /// group/service/node, all or none
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<NodeKey>,
    /// Wait until every watcher has seen it, within --timeout
    #[arg(long)]
    wait: bool,
}

/// A watcher that has not acknowledged the drain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Behind {
    pub(crate) client: String,
    pub(crate) acknowledged: u64,
}

/// One server's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Reached {
    pub(crate) server: u64,
    pub(crate) address: String,
    /// It serves the drain, and all of its watchers have acknowledged it.
    pub(crate) complete: bool,
    /// The revision it has applied; `null`: it did not answer.
    pub(crate) revision: Option<u64>,
    /// The services are of groups in mode ap: the revision counts that server's own steps.
    pub(crate) ap: bool,
    /// Watch streams at it that follow the drained nodes' services; `null`: unknown.
    pub(crate) watchers: Option<u64>,
    pub(crate) watchers_acknowledged: Option<u64>,
    /// Some of the others.
    pub(crate) watchers_behind: Vec<Behind>,
    pub(crate) error: Option<String>,
}

/// What was waited for, and who has it.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    /// Everything below is as it should be.
    pub(crate) complete: bool,
    /// At the servers that answered.
    pub(crate) watchers: u64,
    pub(crate) watchers_acknowledged: u64,
    /// Servers that did not answer, whose watchers are unknown.
    pub(crate) servers_unknown: u64,
    pub(crate) servers: Vec<Reached>,
}

pub(super) async fn run(context: &Context, drain: &DrainNodes) -> Result<(), Failure> {
    let draining = |key: &NodeKey| NodeUpdate::new(key.clone()).state(NodeState::Draining);
    let updates: Vec<NodeUpdate> = drain.nodes.iter().map(draining).collect();
    let written = Written::from(context.servers.registry().update(&updates, plain()).await?);
    if !drain.wait {
        return context.printer.done(&written, || {
            format!("{} draining {}", plural(&drain.nodes), written.text())
        });
    }
    say(format_args!(
        "{} draining {}; waiting for the watchers",
        plural(&drain.nodes),
        written.text()
    ));
    let seen = wait(context, &drain.nodes, &written).await.map_err(|failure| {
        let unasked = "the nodes are draining, but the watchers could not be asked";
        Failure::timeout(format!("{unasked}: {failure}"))
    })?;
    if seen.complete {
        return context.printer.done(&seen, || seen.text());
    }
    if context.printer.is_json() {
        context.printer.json(&seen)?;
    }
    Err(Failure::timeout(format!(
        "draining, but not seen by all: {}",
        seen.text()
    )))
}

/// Waits until every watcher at every server has acknowledged the drain, or `--timeout` has passed.
pub(crate) async fn wait(context: &Context, nodes: &[NodeKey], written: &Written) -> Result<Seen, Failure> {
    let mut services: Vec<ServiceKey> = nodes.iter().map(|node| node.service.clone()).collect();
    services.sort();
    services.dedup();
    let convergence = context
        .servers
        .registry()
        .wait_converged(&services, written.revision, context.servers.timeout())
        .await?;
    Ok(Seen::from(&convergence))
}

impl From<&Convergence> for Seen {
    fn from(convergence: &Convergence) -> Self {
        let servers = convergence
            .servers
            .iter()
            .map(|server| reached(server, convergence.revision));
        Self {
            revision: convergence.revision,
            complete: convergence.is_complete(),
            watchers: convergence.subscribers(),
            watchers_acknowledged: convergence.current(),
            servers_unknown: convergence.unknown().count() as u64,
            servers: servers.collect(),
        }
    }
}

fn reached(server: &ServerConvergence, revision: u64) -> Reached {
    let watchers = server.answer.as_ref().ok();
    Reached {
        server: server.server,
        address: server.address.clone(),
        complete: server.is_complete(revision),
        revision: watchers.map(|watchers| watchers.applied),
        ap: watchers.is_some_and(|watchers| watchers.mode == rollcall_client::v1::GroupMode::Ap),
        watchers: watchers.map(|watchers| watchers.subscribers),
        watchers_acknowledged: watchers.map(|watchers| watchers.current),
        watchers_behind: watchers.map_or(Vec::new(), |watchers| {
            let behind = |(client, acknowledged): &(String, u64)| Behind {
                client: client.clone(),
                acknowledged: *acknowledged,
            };
            watchers.behind.iter().map(behind).collect()
        }),
        error: server.answer.as_ref().err().map(ToString::to_string),
    }
}

impl Seen {
    /// How it went, in a sentence.
    pub(crate) fn text(&self) -> String {
        // In mode ap each server counts its own steps.
        let what = match self.servers.iter().any(|server| server.ap) {
            true => "it".into(),
            false => format!("revision {}", self.revision),
        };
        let told = format!(
            "{} of {} watchers have acknowledged {what}",
            self.watchers_acknowledged, self.watchers
        );
        if self.complete {
            return match self.servers.as_slice() {
                [_] => format!("{told}; the server serves it"),
                servers => format!("{told}; all {} servers serve it", servers.len()),
            };
        }
        let open = self.servers.iter().filter(|server| !server.complete);
        let mut open: Vec<String> = open.map(|server| server.missing(self.revision)).collect();
        if open.is_empty() {
            open.push("the servers do not show the same yet".into());
        }
        format!("{told}; {}", open.join("; "))
    }
}

impl Reached {
    /// What is missing at this server.
    fn missing(&self, revision: u64) -> String {
        let name = format!("server {} ({})", self.server, self.address);
        match (&self.error, self.revision) {
            (Some(error), _) => format!("{name} did not answer, its watchers are unknown: {error}"),
            (None, Some(applied)) if applied < revision && !self.ap => {
                format!("{name} is still at revision {applied}")
            }
            (None, _) => {
                let behind = self
                    .watchers_behind
                    .iter()
                    .map(|watcher| match watcher.client.as_str() {
                        "" => format!("one without a name at {}", watcher.acknowledged),
                        client => format!("{client:?} at {}", watcher.acknowledged),
                    });
                let open = self.watchers.unwrap_or(0) - self.watchers_acknowledged.unwrap_or(0);
                let named: Vec<String> = behind.collect();
                let more = open.saturating_sub(named.len() as u64);
                let more = if more > 0 {
                    format!(", and {more} more")
                } else {
                    String::new()
                };
                format!("{name} waits for {}{more}", named.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rollcall_client::{Error, ServerWatchers};

    use super::*;

    fn seen(answers: Vec<Result<ServerWatchers, Error>>) -> Seen {
        let server = |(id, answer): (u64, Result<ServerWatchers, Error>)| ServerConvergence {
            server: id,
            address: format!("s{id}:7400"),
            answer: answer.map_err(Arc::new),
        };
        Seen::from(&Convergence {
            revision: 9,
            servers: (1..).zip(answers).map(server).collect(),
        })
    }

    fn watchers(applied: u64, subscribers: u64, current: u64, behind: &[(&str, u64)]) -> ServerWatchers {
        ServerWatchers {
            applied,
            subscribers,
            current,
            behind: behind
                .iter()
                .map(|(client, at)| ((*client).into(), *at))
                .collect(),
            ..ServerWatchers::default()
        }
    }

    #[test]
    fn what_is_missing_is_said_by_server_and_client() {
        let down = Error::Unavailable {
            message: "no answer".into(),
        };
        let seen = seen(vec![
            Ok(watchers(9, 4, 1, &[("api", 7), ("", 8)])),
            Ok(watchers(6, 1, 0, &[("web", 6)])),
            Err(down),
            Ok(watchers(9, 2, 2, &[])),
        ]);
        assert!(!seen.complete);
        assert_eq!(
            (seen.watchers, seen.watchers_acknowledged, seen.servers_unknown),
            (7, 3, 1)
        );
        assert_eq!(
            seen.text(),
            "3 of 7 watchers have acknowledged revision 9; server 1 (s1:7400) waits for \"api\" at 7, one \
             without a name at 8, and 1 more; server 2 (s2:7400) is still at revision 6; server 3 (s3:7400) did \
             not answer, its watchers are unknown: unavailable: no answer"
        );
    }

    #[test]
    fn nobody_watching_is_complete() {
        let seen = seen(vec![Ok(watchers(9, 0, 0, &[])), Ok(watchers(10, 0, 0, &[]))]);
        assert!(seen.complete);
        assert_eq!(
            seen.text(),
            "0 of 0 watchers have acknowledged revision 9; all 2 servers serve it"
        );
    }
}
