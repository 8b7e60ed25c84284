//! `rollcall node deregister`.

use clap::Args;
use rollcall_client::{Expected, NodeKey, ReadOptions, Removal, ServiceKey};
use serde::Serialize;

use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::at_revision;
use crate::output::table::Table;
use crate::progress::Progress;
use crate::servers::plain;
use crate::talk::say;

/// Most nodes of one call (design section 11).
const BATCH_MAX: usize = 1_000;

/// Arguments of `node deregister`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["nodes", "all_of"]))]
pub(crate) struct DeregisterNodes {
    /// group/service/node, all or none
    #[arg(value_name = "NODE")]
    nodes: Vec<NodeKey>,
    /// Every node of this service; asks first
    #[arg(long, value_name = "SERVICE")]
    all_of: Option<ServiceKey>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only say what would be deregistered
    #[arg(long)]
    dry_run: bool,
    /// Only if it was last modified at this revision (one node)
    #[arg(long, value_name = "REVISION", conflicts_with = "all_of")]
    if_revision: Option<u64>,
}

#[derive(Serialize)]
struct DeregisterBody {
    dry_run: bool,
    nodes: Vec<String>,
    revision: u64,
    /// False: none of them was registered.
    changed: bool,
}

pub(super) async fn run(context: &Context, deregister: &DeregisterNodes) -> Result<(), Failure> {
    if deregister.if_revision.is_some() && deregister.nodes.len() != 1 {
        return Err(Failure::usage("--if-revision needs exactly one node"));
    }
    let names: Vec<NodeKey> = match &deregister.all_of {
        None => deregister.nodes.clone(),
        Some(service) => {
            let found = context
                .servers
                .registry()
                .query_wire(service, ReadOptions::default())
                .await?
                .value;
            found.nodes.iter().map(|node| service.node(&node.id)).collect()
        }
    };
    if deregister.dry_run {
        return say_what_would_go(context, &names);
    }
    if let Some(service) = &deregister.all_of {
        if names.is_empty() {
            say(format_args!("service {service} has no nodes"));
        } else {
            confirm(
                &format!("Deregister all {} nodes of {service}?", names.len()),
                deregister.yes,
            )?;
        }
    }
    let expected = at_revision(deregister.if_revision);
    let (revision, changed) = deregister_all(context, &names, expected).await?;
    let body = DeregisterBody {
        dry_run: false,
        nodes: names.iter().map(ToString::to_string).collect(),
        revision,
        changed,
    };
    if !changed && deregister.all_of.is_none() {
        // Harmless for a repeat, but a name that is mistyped must not look like success.
        return Err(Failure::not_found(format!(
            "not registered: {}",
            body.nodes.join(", ")
        )));
    }
    context.printer.done(&body, || match names.as_slice() {
        [name] => format!("node {name} deregistered at revision {revision}"),
        names => format!(
            "{} nodes deregistered, the last at revision {revision}",
            names.len()
        ),
    })
}

fn say_what_would_go(context: &Context, names: &[NodeKey]) -> Result<(), Failure> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    say(format_args!(
        "dry run: {} nodes would be deregistered",
        names.len()
    ));
    let body = DeregisterBody {
        dry_run: true,
        nodes: names,
        revision: 0,
        changed: false,
    };
    context.printer.print(&body, || {
        let mut table = Table::new(&["NODE"]);
        for name in &body.nodes {
            table.row(vec![name.clone()]);
        }
        table
    })
}

/// In batches, each all or none; gives the last revision, and whether any node was there.
async fn deregister_all(
    context: &Context,
    names: &[NodeKey],
    expected: Expected,
) -> Result<(u64, bool), Failure> {
    let progress = Progress::of(names.len() as u64, "deregistering");
    let (mut revision, mut changed) = (0, false);
    for (index, batch) in names.chunks(BATCH_MAX).enumerate() {
        let removals: Vec<Removal> = batch
            .iter()
            .map(|key| Removal {
                key: key.clone(),
                expected,
            })
            .collect();
        let written = context
            .servers
            .registry()
            .deregister(&removals, plain())
            .await
            .map_err(Failure::from)
            .map_err(|failure| match index {
                0 => failure,
                _ => failure.after(format!("after {} nodes were deregistered", index * BATCH_MAX)),
            })?;
        revision = written.revision;
        changed |= written.changed || written.repeated;
        progress.add(batch.len() as u64);
    }
    progress.finish();
    Ok((revision, changed))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::command::Arguments;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn deregistration_needs_nodes_or_a_service() {
        assert!(parse("rollcall node deregister").is_err());
        assert!(parse("rollcall node deregister g/s/n --all-of g/s").is_err());
        assert!(parse("rollcall node deregister g/s/a g/s/b").is_ok());
        assert!(parse("rollcall node deregister --all-of g/s --dry-run").is_ok());
    }
}
