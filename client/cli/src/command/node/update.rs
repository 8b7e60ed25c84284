//! `rollcall node update`.

use clap::Args;
use rollcall_client::{NodeKey, NodeState, NodeUpdate};

use crate::context::Context;
use crate::exit::Failure;
use crate::flags::{State, at_revision};
use crate::names::{Pair, plural};
use crate::output::record::Written;
use crate::servers::plain;

/// Arguments of `node update`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["weight", "state", "label", "remove_label", "metadata", "remove_metadata"]))]
pub(crate) struct UpdateNodes {
    /// group/service/node, all or none
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<NodeKey>,
    /// 0-65535
    #[arg(long)]
    weight: Option<u16>,
    /// The state its registration says
    #[arg(long)]
    state: Option<State>,
    /// Set a label, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Pair>,
    /// Remove a label, repeatable
    #[arg(long, value_name = "KEY")]
    remove_label: Vec<String>,
    /// Set metadata, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Remove metadata, repeatable
    #[arg(long, value_name = "KEY")]
    remove_metadata: Vec<String>,
    /// Only if it was last modified at this revision (one node)
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
}

pub(super) async fn run(context: &Context, update: &UpdateNodes) -> Result<(), Failure> {
    if update.if_revision.is_some() && update.nodes.len() != 1 {
        return Err(Failure::usage("--if-revision needs exactly one node"));
    }
    let updates: Vec<NodeUpdate> = update.nodes.iter().map(|key| change_of(update, key)).collect();
    let written = Written::from(context.servers.registry().update(&updates, plain()).await?);
    context.printer.done(&written, || {
        format!("{} updated {}", plural(&update.nodes), written.text())
    })
}

/// What `node update` says of one node.
fn change_of(update: &UpdateNodes, key: &NodeKey) -> NodeUpdate {
    let mut change = NodeUpdate::new(key.clone()).expected(at_revision(update.if_revision));
    change.weight = update.weight;
    change.state = update.state.map(NodeState::from);
    let changes = |set: &[Pair], remove: &[String]| {
        let removed = remove.iter().map(|key| (key.clone(), None));
        let set = set
            .iter()
            .map(|pair| (pair.key.clone(), Some(pair.value.clone())));
        removed.chain(set).collect()
    };
    change.labels = changes(&update.label, &update.remove_label);
    change.metadata = changes(&update.metadata, &update.remove_metadata);
    change
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::Arguments;
    use crate::command::node::NodeCommand;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn a_label_that_is_set_and_removed_is_set() {
        let update = match parse("rollcall node update g/s/n --label a=1 --remove-label a --remove-label b")
            .unwrap()
            .command
        {
            crate::command::Command::Node(NodeCommand::Update(update)) => update,
            other => panic!("not an update: {other:?}"),
        };
        let change = change_of(&update, &update.nodes[0]);
        assert_eq!(change.labels["a"].as_deref(), Some("1"));
        assert_eq!(change.labels["b"], None);
        assert_eq!(change.weight, None);
    }
}
