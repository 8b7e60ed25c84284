//! `rollcall node list` and `node show`.

use clap::Args;
use rollcall_client::{NodeKey, ServiceKey};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Failure;
use crate::flags::Reading;
use crate::names::Pair;
use crate::output::record::{Header, Node, Override, map_text, nonzero_text};
use crate::output::table::Table;

/// Arguments of `node list`.
#[derive(Args, Debug)]
pub(crate) struct ListNodes {
    /// group/service
    service: ServiceKey,
    /// Only nodes in this state: up, suspect, draining, down or disabled
    #[arg(long, value_name = "STATE", value_parser = ["up", "suspect", "draining", "down", "disabled"])]
    state: Option<String>,
    /// Only nodes with this label, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Pair>,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `node show`.
#[derive(Args, Debug)]
pub(crate) struct ShowNode {
    /// group/service/node
    node: NodeKey,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Serialize)]
struct NodesBody {
    header: Header,
    group: String,
    service: String,
    revision: u64,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct NodeBody {
    header: Header,
    node: Node,
}

pub(super) async fn list(context: &Context, list: &ListNodes) -> Result<(), Failure> {
    let answer = context
        .servers
        .registry()
        .query_wire(&list.service, list.reading.options())
        .await?;
    let body = NodesBody {
        header: answer.header.into(),
        group: list.service.group.to_string(),
        service: list.service.service.to_string(),
        revision: answer.value.revision,
        nodes: answer
            .value
            .nodes
            .into_iter()
            .map(Node::from)
            .filter(|node| is_wanted(list, node))
            .collect(),
    };
    context.printer.print(&body, || nodes_table(&body.nodes))
}

fn is_wanted(list: &ListNodes, node: &Node) -> bool {
    list.state
        .as_deref()
        .is_none_or(|state| node.state_text() == state)
        && list
            .label
            .iter()
            .all(|wanted| node.labels.get(&wanted.key) == Some(&wanted.value))
}

pub(super) async fn show(context: &Context, show: &ShowNode) -> Result<(), Failure> {
    let registry = context.servers.registry();
    let answer = registry
        .query_wire(&show.node.service, show.reading.options())
        .await?;
    let node = answer
        .value
        .nodes
        .into_iter()
        .find(|node| node.id == *show.node.node)
        .ok_or_else(|| Failure::not_found(format!("node {} was not found", show.node)))?;
    let body = NodeBody {
        header: answer.header.into(),
        node: node.into(),
    };
    context.printer.print(&body, || node_fields(&body.node))
}

/// One node a row.
pub(crate) fn nodes_table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&["NODE", "STATE", "WEIGHT", "KIND", "ADDRESSES", "LABELS"]).wide(&[
        "SESSION",
        "INCARNATION",
        "CREATED",
        "MODIFIED",
        "METADATA",
        "OVERRIDE",
        "ORIGIN",
    ]);
    for node in nodes {
        table.row(vec![
            node.id.clone(),
            node.state_text().into(),
            node.weight.to_string(),
            node.kind.into(),
            node.addresses_text(),
            map_text(&node.labels),
            nonzero_text(node.session),
            node.incarnation.to_string(),
            node.created_revision.to_string(),
            node.modified_revision.to_string(),
            map_text(&node.metadata),
            node.r#override.as_ref().map(Override::text).unwrap_or_default(),
            node.origin.clone(),
        ]);
    }
    table
}

fn node_fields(node: &Node) -> Table {
    let mut fields = vec![
        ("id", node.id.clone()),
        ("state", node.state_text().into()),
        ("weight", node.weight.to_string()),
        ("kind", node.kind.into()),
        ("addresses", node.addresses_text()),
        ("labels", map_text(&node.labels)),
        ("metadata", map_text(&node.metadata)),
        ("session", nonzero_text(node.session)),
        ("incarnation", node.incarnation.to_string()),
        ("created_revision", node.created_revision.to_string()),
        ("modified_revision", node.modified_revision.to_string()),
    ];
    if let Some(said) = &node.r#override {
        fields.push(("override", said.text()));
    }
    if !node.origin.is_empty() {
        fields.push(("origin", node.origin.clone()));
    }
    Table::fields(fields)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rollcall_proto::v1 as wire;

    use super::*;
    use crate::command::Arguments;
    use crate::command::node::NodeCommand;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn filters_need_every_label() {
        let list = match parse("rollcall node list g/s --state disabled --label zone=a")
            .unwrap()
            .command
        {
            crate::command::Command::Node(NodeCommand::List(list)) => list,
            other => panic!("not a list: {other:?}"),
        };
        let mut node = Node::from(wire::Node {
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            disabled: true,
            state: wire::NodeState::Up.into(),
            ..wire::Node::default()
        });
        assert!(is_wanted(&list, &node));
        node.disabled = false;
        assert!(!is_wanted(&list, &node));
    }
}
