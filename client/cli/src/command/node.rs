//! `rollcall node`.

use std::time::Duration;

use clap::{Args, Subcommand};
use rollcall_client::{
    Entry, Expected, Heartbeats, NodeKey, NodeState, NodeUpdate, ReadOptions, Registration as Said, Removal,
    ServiceKey, SessionOptions,
};
use serde::Serialize;

use super::{drain, keep};
use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::flags::{Condition, Kind, Reading, State, at_revision};
use crate::interrupt::Interrupt;
use crate::names::{self, NamedAddress, Pair, map_of};
use crate::output::guard::{Guard, guard_text};
use crate::output::record::{
    Header, Node, Override, Registration, Written, map_text, millis_text, nonzero_text,
};
use crate::output::table::Table;
use crate::progress::Progress;
use crate::servers::plain;
use crate::talk::say;

/// Most nodes of one call (design section 11).
const BATCH_MAX: usize = 1_000;

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes of a service
    List(ListNodes),
    /// Show one node
    Show(ShowNode),
    /// Register a node
    Register(RegisterNode),
    /// Deregister nodes
    Deregister(DeregisterNodes),
    /// Change what a node's registration says; only what is named changes
    Update(UpdateNodes),
    /// Set nodes draining: they finish what they have and get nothing new
    Drain(DrainNodes),
    /// What an operator says of a node; outlives its registrations
    #[command(subcommand)]
    Override(OverrideCommand),
    /// Say why a node is, or is not, listed
    Explain(ExplainNode),
}

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

/// Arguments of `node register`.
#[derive(Args, Debug)]
pub(crate) struct RegisterNode {
    /// group/service
    service: ServiceKey,
    /// Its id; left out: host:port of the first address
    #[arg(long)]
    id: Option<String>,
    /// Where it listens, repeatable; IPv6 hosts in brackets
    #[arg(long, value_name = "[NAME=]HOST:PORT", required = true)]
    address: Vec<NamedAddress>,
    /// 0-65535; left out: 100
    #[arg(long)]
    weight: Option<u16>,
    /// Labels, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Pair>,
    /// Metadata, repeatable, up to 4 KiB in all
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Who decides that it is gone; left out: the service's default, ephemeral with --keep
    #[arg(long)]
    kind: Option<Kind>,
    /// Its state
    #[arg(long, default_value = "up")]
    state: State,
    /// Hold a session and keep the node until Ctrl-C or SIGTERM, then deregister it
    #[arg(long)]
    keep: bool,
    /// How long the session outlives its last heartbeat (with --keep)
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = names::positive_duration, requires = "keep")]
    ttl: Duration,
    /// Which way heartbeats go (with --keep): on the session's stream, or by datagram where that works
    #[arg(long, value_name = "WAY", value_enum, default_value_t, requires = "keep")]
    heartbeats: HeartbeatsWay,
    #[command(flatten)]
    condition: Condition,
}

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

/// What to do with an override.
#[derive(Debug, Subcommand)]
pub(crate) enum OverrideCommand {
    /// Set the override of a node; replaces the one it has
    Set(SetOverride),
    /// Clear the override of a node
    Clear(ClearOverride),
}

/// Arguments of `node override set`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("word").required(true).multiple(true)
    .args(["disable", "enable", "weight", "label"]))]
pub(crate) struct SetOverride {
    /// group/service/node
    node: NodeKey,
    /// Consumers must not use it
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// Say that it is not disabled
    #[arg(long)]
    enable: bool,
    /// 0-65535, instead of the registration's
    #[arg(long)]
    weight: Option<u16>,
    /// A label, on top of the registration's, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Pair>,
    /// Why, for those who come later
    #[arg(long)]
    reason: String,
    /// Who says so
    #[arg(long, env = "USER", default_value = "")]
    author: String,
    /// How long it holds; left out: until cleared
    #[arg(long = "for", value_name = "TIME", value_parser = names::positive_duration)]
    lasting: Option<Duration>,
}

/// Arguments of `node override clear`.
#[derive(Args, Debug)]
pub(crate) struct ClearOverride {
    /// group/service/node
    node: NodeKey,
}

/// Arguments of `node explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainNode {
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

#[derive(Serialize)]
struct DeregisterBody {
    dry_run: bool,
    nodes: Vec<String>,
    revision: u64,
    /// False: none of them was registered.
    changed: bool,
}

#[derive(Serialize)]
struct ExplainBody {
    header: Header,
    listed: bool,
    node: Option<Node>,
    registration: Option<Registration>,
    r#override: Option<Override>,
    reasons: Vec<String>,
    session_lapses_in_ms: u64,
    guard: Option<Guard>,
}

pub(crate) async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List(list) => list_nodes(context, &list).await,
        NodeCommand::Show(show) => show_node(context, &show).await,
        NodeCommand::Register(register) => register_node(context, &register).await,
        NodeCommand::Deregister(deregister) => deregister_nodes(context, &deregister).await,
        NodeCommand::Update(update) => update_nodes(context, &update).await,
        NodeCommand::Drain(drain) => drain_nodes(context, &drain).await,
        NodeCommand::Override(OverrideCommand::Set(set)) => set_override(context, set).await,
        NodeCommand::Override(OverrideCommand::Clear(clear)) => clear_override(context, &clear).await,
        NodeCommand::Explain(explain) => explain_node(context, &explain).await,
    }
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
            node.r#override.as_ref().map(override_text).unwrap_or_default(),
            node.origin.clone(),
        ]);
    }
    table
}

fn override_text(said: &Override) -> String {
    let mut words = Vec::new();
    if let Some(disabled) = said.disabled {
        words.push(if disabled {
            "disabled".to_owned()
        } else {
            "enabled".to_owned()
        });
    }
    if let Some(weight) = said.weight {
        words.push(format!("weight={weight}"));
    }
    if !said.labels.is_empty() {
        words.push(map_text(&said.labels));
    }
    let mut text = words.join(",");
    if !said.author.is_empty() {
        text.push_str(&format!(" by {}", said.author));
    }
    if !said.reason.is_empty() {
        text.push_str(&format!(": {}", said.reason));
    }
    text
}

async fn list_nodes(context: &Context, list: &ListNodes) -> Result<(), Failure> {
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

async fn show_node(context: &Context, show: &ShowNode) -> Result<(), Failure> {
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
        fields.push(("override", override_text(said)));
    }
    if !node.origin.is_empty() {
        fields.push(("origin", node.origin.clone()));
    }
    Table::fields(fields)
}

/// Nothing but what was said; the rest are the client's defaults.
fn registration_of(register: &RegisterNode, kind: Option<Kind>) -> Result<Said, Failure> {
    let (first, more) = register
        .address
        .split_first()
        .ok_or_else(|| Failure::usage("a node needs an --address"))?;
    let mut said = Said::new(&first.name, &first.host, first.port).state(register.state.into());
    for address in more {
        said = said.address(&address.name, &address.host, address.port);
    }
    if let Some(id) = &register.id {
        said = said.id(id);
    }
    if let Some(weight) = register.weight {
        said = said.weight(weight);
    }
    if let Some(kind) = kind {
        said = said.kind(kind.into());
    }
    said.labels = map_of(&register.label);
    said.metadata = map_of(&register.metadata);
    Ok(said)
}

async fn register_node(context: &Context, register: &RegisterNode) -> Result<(), Failure> {
    let kind = if register.keep {
        register.kind.or(Some(Kind::Ephemeral))
    } else {
        register.kind
    };
    let entry = Entry::new(register.service.clone(), registration_of(register, kind)?)
        .expected(register.condition.expected());
    match (register.keep, kind) {
        (true, Some(Kind::Persistent | Kind::Static)) => Err(Failure::usage(
            "--keep holds a session, and only an ephemeral node lives with one: leave out --kind or --keep",
        )),
        (true, _) => keep::run(context, entry, register.session_options(), Interrupt::listen()).await,
        (false, Some(Kind::Ephemeral)) => Err(Failure::usage(
            "an ephemeral node lives with a session: say --keep to hold one, or another --kind",
        )),
        (false, _) => register_once(context, register, entry).await,
    }
}

/// Which way heartbeats go.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum HeartbeatsWay {
    /// On the stream
    #[default]
    Stream,
    /// By datagram (UDP), as soon as the node is registered
    Datagram,
    /// By datagram once nothing was written for a ttl
    Auto,
}

impl RegisterNode {
    fn session_options(&self) -> SessionOptions {
        let heartbeats = match self.heartbeats {
            HeartbeatsWay::Stream => Heartbeats::Stream,
            HeartbeatsWay::Datagram => Heartbeats::Datagram,
            HeartbeatsWay::Auto => Heartbeats::Auto,
        };
        SessionOptions::ttl(self.ttl).heartbeats(heartbeats)
    }
}

async fn register_once(context: &Context, register: &RegisterNode, entry: Entry) -> Result<(), Failure> {
    let key = entry.key();
    let written = context
        .servers
        .registry()
        .register_persistent(&[entry], plain())
        .await
        .map_err(|error| {
            let failure = Failure::from(error);
            match (failure.exit, register.kind) {
                // The service's default kind may be the reason.
                (Exit::Usage, None) => Failure {
                    message: format!(
                        "{}; an ephemeral node needs --keep, any other a --kind",
                        failure.message
                    ),
                    ..failure
                },
                _ => failure,
            }
        })?;
    let written = Written::from(written);
    context
        .printer
        .done(&written, || format!("node {key} registered {}", written.text()))
}

async fn deregister_nodes(context: &Context, deregister: &DeregisterNodes) -> Result<(), Failure> {
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

async fn update_nodes(context: &Context, update: &UpdateNodes) -> Result<(), Failure> {
    if update.if_revision.is_some() && update.nodes.len() != 1 {
        return Err(Failure::usage("--if-revision needs exactly one node"));
    }
    let updates: Vec<NodeUpdate> = update.nodes.iter().map(|key| change_of(update, key)).collect();
    let written = Written::from(context.servers.registry().update(&updates, plain()).await?);
    context.printer.done(&written, || {
        format!("{} updated {}", plural(&update.nodes), written.text())
    })
}

fn plural(names: &[NodeKey]) -> String {
    match names {
        [name] => format!("node {name}"),
        names => format!("{} nodes", names.len()),
    }
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

async fn drain_nodes(context: &Context, drain: &DrainNodes) -> Result<(), Failure> {
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
    let seen = drain::wait(context, &drain.nodes, &written)
        .await
        .map_err(|failure| {
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

async fn set_override(context: &Context, set: SetOverride) -> Result<(), Failure> {
    let over = rollcall_client::Override {
        disabled: match (set.disable, set.enable) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        },
        weight: set.weight,
        labels: map_of(&set.label),
        reason: set.reason,
        author: set.author,
        ttl: set.lasting,
        ..rollcall_client::Override::default()
    };
    let written = context
        .servers
        .registry()
        .set_override(&set.node, &over, plain())
        .await?;
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!("override of {} set {}", set.node, written.text())
    })
}

async fn clear_override(context: &Context, clear: &ClearOverride) -> Result<(), Failure> {
    let written = context
        .servers
        .registry()
        .clear_override(&clear.node, plain())
        .await?;
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!("override of {} cleared {}", clear.node, written.text())
    })
}

async fn explain_node(context: &Context, explain: &ExplainNode) -> Result<(), Failure> {
    let answer = context
        .servers
        .registry()
        .explain(&explain.node, explain.reading.options())
        .await?;
    let said = answer.value;
    let body = ExplainBody {
        header: answer.header.into(),
        listed: said.listed,
        node: said.node.map(Node::from),
        registration: said.registration.map(Registration::from),
        r#override: said.over.map(Override::from),
        reasons: said.reasons,
        session_lapses_in_ms: said.session_lapses_in.map_or(0, names::millis),
        guard: said.guard.map(Guard::from),
    };
    context.printer.print(&body, || explain_table(explain, &body))
}

fn explain_table(explain: &ExplainNode, body: &ExplainBody) -> Table {
    let mut fields = vec![
        ("node", explain.node.to_string()),
        ("listed", if body.listed { "yes" } else { "no" }.into()),
    ];
    fields.extend(body.reasons.iter().map(|reason| ("because", reason.clone())));
    if let Some(node) = &body.node {
        fields.push(("state", node.state_text().into()));
        fields.push(("weight", node.weight.to_string()));
        fields.push(("session", nonzero_text(node.session)));
    }
    if body.session_lapses_in_ms > 0 {
        fields.push(("session lapses in", millis_text(body.session_lapses_in_ms)));
    }
    if let Some(said) = &body.registration {
        fields.push((
            "registrant said",
            format!(
                "{} {} weight={} labels={}",
                said.kind,
                said.state,
                said.weight
                    .map_or_else(|| "default".into(), |weight| weight.to_string()),
                map_text(&said.labels)
            ),
        ));
    }
    if let Some(said) = &body.r#override {
        fields.push(("operator said", override_text(said)));
    }
    if body.guard.is_some() {
        fields.push(("guard of its service", guard_text(body.guard.as_ref())));
    }
    Table::fields(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Arguments;
    use clap::Parser;
    use rollcall_proto::v1 as wire;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    fn register(words: &str) -> RegisterNode {
        match parse(words).unwrap().command {
            crate::command::Command::Node(NodeCommand::Register(register)) => register,
            other => panic!("not a registration: {other:?}"),
        }
    }

    #[test]
    fn a_registration_says_only_what_was_said() {
        let register = register(
            "rollcall node register prod/feed --address http=10.0.0.1:80 --label zone=a --label version=2",
        );
        let said = registration_of(&register, None).unwrap();
        assert_eq!(said.id, "10.0.0.1:80");
        assert_eq!(said.kind, None);
        assert_eq!(said.labels.len(), 2);
    }

    #[test]
    fn nothing_to_change_is_wrong_use() {
        assert!(parse("rollcall node update g/s/n").is_err());
        assert!(parse("rollcall node update g/s/n --weight 5").is_ok());
        assert!(parse("rollcall node update g/s/n --weight 65536").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x --disable --enable").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x --disable --for 10m").is_ok());
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

    #[test]
    fn deregistration_needs_nodes_or_a_service() {
        assert!(parse("rollcall node deregister").is_err());
        assert!(parse("rollcall node deregister g/s/n --all-of g/s").is_err());
        assert!(parse("rollcall node deregister g/s/a g/s/b").is_ok());
        assert!(parse("rollcall node deregister --all-of g/s --dry-run").is_ok());
    }

    #[test]
    fn a_ttl_makes_sense_with_keep_only() {
        assert!(parse("rollcall node register g/s --address h:1 --ttl 5s").is_err());
        assert!(parse("rollcall node register g/s --address h:1 --keep --ttl 5s").is_ok());
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

    #[test]
    fn an_override_reads_as_a_sentence() {
        let said = Override::from(wire::Override {
            disabled: Some(true),
            weight: Some(0),
            author: "ann".into(),
            reason: "bad disk".into(),
            ..wire::Override::default()
        });
        assert_eq!(override_text(&said), "disabled,weight=0 by ann: bad disk");
    }
}
