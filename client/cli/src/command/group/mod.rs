//! `rollcall group`.

mod admission;

use std::time::Duration;

use clap::{Args, Subcommand};
use rollcall_client::Sign;
use rollcall_proto::v1 as wire;
use serde::Serialize;

use self::admission::{AdmissionFlags, RefusedArguments};
use super::settings::{Putting, ServiceFlags, UNNAMED_STAY};
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::{Mode, Reading, at_revision};
use crate::names::{duration, prefix_of};
use crate::output::record::{Group, Header, Written, map_text};
use crate::output::table::Table;
use crate::servers::plain;

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a group, or change its settings
    Put(PutGroup),
    /// List groups
    List(ListGroups),
    /// Show one group
    Show(ShowGroup),
    /// Show who was not admitted lately: from where, which node, why, how often
    Refused(RefusedArguments),
    /// Move a group between Raft and gossip while it is in use
    SetMode(SetMode),
    /// Delete a group that has no services
    Delete(DeleteGroup),
}

/// Arguments of `group put`.
#[derive(Args, Debug)]
#[command(after_help = UNNAMED_STAY)]
pub(crate) struct PutGroup {
    /// A path of up to 8 segments, such as prod/feed
    group: String,
    /// How its nodes are replicated; a new group: cp, one that is there keeps its mode
    #[arg(long)]
    mode: Option<Mode>,
    /// Registrations create services that are missing; --auto-create=false takes it back
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    auto_create: Option<bool>,
    /// Most services; 0: 10,000
    #[arg(long, value_name = "COUNT")]
    services_max: Option<u32>,
    #[command(flatten)]
    putting: Putting,
    #[command(flatten)]
    flags: ServiceFlags,
    #[command(flatten)]
    admission: AdmissionFlags,
}

/// Arguments of `group set-mode`.
#[derive(Args, Debug)]
pub(crate) struct SetMode {
    /// Its name
    group: String,
    /// Where to
    mode: Mode,
    /// How long servers may take to answer, and then to be ready before the move is taken back; at most 100s. The group takes no
    /// writes while they get ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    wait: Duration,
}

/// Arguments of `group list`.
#[derive(Args, Debug)]
pub(crate) struct ListGroups {
    /// A group, or a leading part of its path; everything if left out
    prefix: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `group show`.
#[derive(Args, Debug)]
pub(crate) struct ShowGroup {
    /// Its name
    group: String,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `group delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteGroup {
    /// Its name
    group: String,
    /// Only if it was last modified at this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
}

#[derive(Serialize)]
struct GroupsBody {
    header: Header,
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct MovedBody {
    header: Header,
    group: String,
    changed: bool,
    nodes: u64,
    services: u64,
    sign_before: String,
    sign_after: String,
    frozen_ms: u64,
    servers: Vec<ServerBody>,
}

#[derive(Serialize)]
struct ServerBody {
    server: u64,
    ready: bool,
    nodes: u64,
    sign: String,
}

#[derive(Serialize)]
struct GroupBody {
    header: Header,
    group: Group,
}

pub(crate) async fn run(context: &Context, command: GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::Put(put) => put_group(context, put).await,
        GroupCommand::List(list) => list_groups(context, &list).await,
        GroupCommand::Show(show) => show_group(context, &show).await,
        GroupCommand::Refused(asked) => admission::refused(context, &asked).await,
        GroupCommand::SetMode(set) => set_mode(context, &set).await,
        GroupCommand::Delete(delete) => delete_group(context, &delete).await,
    }
}

async fn put_group(context: &Context, put: PutGroup) -> Result<(), Failure> {
    let mode = put.mode.map_or(wire::GroupMode::Unspecified, Mode::to_wire);
    let (defaults, of_services) = put.flags.settings();
    let (admission, of_admission) = put.admission.settings()?;
    let metadata = put.putting.named_metadata();
    let own = [
        ("mode", put.mode.is_some()),
        ("auto_create", put.auto_create.is_some()),
        ("services_max", put.services_max.is_some()),
        ("metadata", metadata.is_some()),
    ];
    let own = own.into_iter().filter(|(_, is_named)| *is_named);
    let of_services = of_services.iter().map(|name| format!("defaults.{name}"));
    let own = own.map(|(name, _)| name.to_owned());
    let named = own.chain(of_services).chain(of_admission).collect();
    let settings = wire::GroupSettings {
        mode: mode.into(),
        auto_create: put.auto_create.unwrap_or_default(),
        defaults: Some(defaults),
        services_max: put.services_max.unwrap_or_default(),
        metadata: metadata.unwrap_or_default(),
        admission,
    };
    let registry = context.servers.registry();
    let expected = put.putting.condition.expected();
    let written = match put.putting.fields(named) {
        Some(named) => {
            registry
                .change_group(&put.group, settings, named, expected, plain())
                .await?
        }
        None => {
            registry
                .put_group(&put.group, settings, expected, plain())
                .await?
        }
    };
    let written = Written::from(written);
    context
        .printer
        .done(&written, || format!("group {} put {}", put.group, written.text()))
}

async fn list_groups(context: &Context, list: &ListGroups) -> Result<(), Failure> {
    let prefix = prefix_of(list.prefix.as_deref());
    let answer = context
        .servers
        .registry()
        .all_groups(prefix, list.reading.options())
        .await?;
    let groups = answer.value.into_iter().map(Group::from).collect();
    let body = GroupsBody {
        header: answer.header.into(),
        groups,
    };
    context.printer.print(&body, || groups_table(&body.groups))
}

fn groups_table(groups: &[Group]) -> Table {
    let mut table = Table::new(&["GROUP", "MODE", "AUTO-CREATE", "SERVICES", "NODES"]).wide(&[
        "REVISION",
        "DEFAULT-KIND",
        "METADATA",
        "SIGN",
    ]);
    for group in groups {
        table.row(vec![
            group.group.clone(),
            group.settings.mode.into(),
            if group.settings.auto_create { "yes" } else { "no" }.into(),
            group.services.to_string(),
            group.nodes.to_string(),
            group.revision.to_string(),
            group.settings.defaults.default_kind.into(),
            map_text(&group.settings.metadata),
            group.sign.clone(),
        ]);
    }
    table
}

async fn show_group(context: &Context, show: &ShowGroup) -> Result<(), Failure> {
    // The list is in the order of the names, so a group comes before those below it.
    let answer = context
        .servers
        .registry()
        .list_groups(&show.group, "", 1, show.reading.options())
        .await?;
    let group = answer
        .value
        .items
        .into_iter()
        .find(|group| group.group == show.group)
        .ok_or_else(|| Failure::not_found(format!("group {} was not found", show.group)))?;
    let body = GroupBody {
        header: answer.header.into(),
        group: group.into(),
    };
    context.printer.print(&body, || {
        let group = &body.group;
        Table::fields(vec![
            ("group", group.group.clone()),
            ("mode", group.settings.mode.into()),
            ("auto_create", group.settings.auto_create.to_string()),
            ("services", group.services.to_string()),
            ("services_max", group.settings.services_max.to_string()),
            ("nodes", group.nodes.to_string()),
            ("default_kind", group.settings.defaults.default_kind.into()),
            ("default_nodes_max", group.settings.defaults.nodes_max.to_string()),
            ("default_guard", group.settings.defaults.guard.text()),
            ("admits", group.settings.admission.text()),
            ("metadata", map_text(&group.settings.metadata)),
            ("revision", group.revision.to_string()),
            ("sign", group.sign.clone()),
        ])
    })
}

async fn set_mode(context: &Context, set: &SetMode) -> Result<(), Failure> {
    let moved = context
        .servers
        .registry()
        .set_group_mode(&set.group, set.mode.to_wire(), set.wait)
        .await?;
    let sign = |sign: Option<wire::Sign>| sign.map(Sign::from).unwrap_or_default().to_string();
    let server = |server: wire::ServerMoved| ServerBody {
        server: server.server,
        ready: server.ready,
        nodes: server.nodes,
        sign: sign(server.sign),
    };
    let body = MovedBody {
        header: moved.header.unwrap_or_default().into(),
        group: set.group.clone(),
        changed: moved.changed,
        nodes: moved.nodes,
        services: moved.services,
        sign_before: sign(moved.sign_before),
        sign_after: sign(moved.sign_after),
        frozen_ms: moved.frozen_ms,
        servers: moved.servers.into_iter().map(server).collect(),
    };
    context.printer.print(&body, || {
        if !body.changed {
            return Table::fields(vec![
                ("group", body.group.clone()),
                ("changed", "no, it was there".into()),
            ]);
        }
        let servers = body.servers.iter().map(|server| match server.ready {
            true => format!("{}: {} nodes, {}", server.server, server.nodes, server.sign),
            false => format!("{}: was not there", server.server),
        });
        Table::fields(vec![
            ("group", body.group.clone()),
            ("nodes", body.nodes.to_string()),
            ("services", body.services.to_string()),
            ("sign before", body.sign_before.clone()),
            ("sign after", body.sign_after.clone()),
            ("took no writes for", format!("{} ms", body.frozen_ms)),
            ("servers", servers.collect::<Vec<_>>().join("; ")),
        ])
    })
}

async fn delete_group(context: &Context, delete: &DeleteGroup) -> Result<(), Failure> {
    let expected = at_revision(delete.if_revision);
    let written = context
        .servers
        .registry()
        .delete_group(&delete.group, expected, plain())
        .await?;
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!("group {} deleted {}", delete.group, written.text())
    })
}
