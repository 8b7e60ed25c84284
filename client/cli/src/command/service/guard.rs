//! `rollcall service guard`.

use clap::{Args, Subcommand};
use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use serde::Serialize;

use crate::command::node::nodes_table;
use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::Reading;
use crate::names::{Target, prefix_of};
use crate::output::guard::{Guard, GuardSettings, guard_text};
use crate::output::record::{Header, Node, Written};
use crate::output::table::Table;
use crate::servers::plain;

/// What to do with removal guards.
#[derive(Debug, Subcommand)]
pub(crate) enum GuardCommand {
    /// Show what guards say: engaged or not, since when, how many of how many, why, and which nodes are held
    Show(ShowGuard),
    /// Say that the nodes which a guard holds are gone: all of them leave
    Confirm(ConfirmGuard),
}

/// Arguments of `service guard show`.
#[derive(Args, Debug)]
#[command(after_help = "\
One service is shown with its held nodes. Of a prefix, or of everything, those services are listed whose guard has
something to say: nodes lapsed away lately, or are held.")]
pub(crate) struct ShowGuard {
    /// group/service, or a prefix of groups as in `rollcall watch`; everything if left out
    #[arg(value_name = "SERVICE|PREFIX", default_value = "/", hide_default_value = true)]
    target: Target,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `service guard confirm`.
#[derive(Args, Debug)]
#[command(after_help = "\
All nodes that are held at that moment leave, those included that joined the same hold after you looked. Providers of
held nodes that are alive after all register again by themselves.")]
pub(crate) struct ConfirmGuard {
    /// group/service
    service: ServiceKey,
    /// Why, for those who look later
    #[arg(long)]
    reason: String,
    /// Who
    #[arg(long, env = "USER", default_value = "")]
    author: String,
    /// Refuse unless the hold is still the one of which `guard show` says "held since" this; left out: whatever is held now
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct GuardsBody {
    header: Header,
    services: Vec<ServiceGuard>,
}

#[derive(Serialize)]
struct ServiceGuard {
    group: String,
    service: String,
    guard: Guard,
}

#[derive(Serialize)]
struct GuardBody {
    header: Header,
    settings: GuardSettings,
    /// Null: it has nothing to say.
    guard: Option<Guard>,
    held: Vec<Node>,
}

pub(crate) async fn run(context: &Context, command: GuardCommand) -> Result<(), Failure> {
    match command {
        GuardCommand::Show(show) => match &show.target {
            Target::Service(service) => show_one(context, service, &show.reading).await,
            Target::Prefix(prefix) => show_all(context, prefix, &show.reading).await,
        },
        GuardCommand::Confirm(confirm) => confirm_removal(context, &confirm).await,
    }
}

async fn show_all(context: &Context, prefix: &str, reading: &Reading) -> Result<(), Failure> {
    let registry = context.servers.registry();
    let answer = registry
        .all_services(prefix_of(Some(prefix)), reading.options())
        .await?;
    let services = answer.value.into_iter().filter_map(|service| {
        let key = service.key.unwrap_or_default();
        Some(ServiceGuard {
            group: key.group,
            service: key.service,
            guard: service.guard?.into(),
        })
    });
    let body = GuardsBody {
        header: answer.header.into(),
        services: services.collect(),
    };
    context.printer.print(&body, || {
        let mut table = Table::new(&["SERVICE", "ENGAGED", "HELD", "UP", "NODES", "SAYS"]);
        for service in &body.services {
            let guard = &service.guard;
            table.row(vec![
                format!("{}/{}", service.group, service.service),
                if guard.engaged { "yes" } else { "no" }.into(),
                guard.held.to_string(),
                guard.up.to_string(),
                guard.listed.to_string(),
                guard_text(Some(guard)),
            ]);
        }
        table
    })
}

async fn read(
    context: &Context,
    service: &ServiceKey,
    reading: &Reading,
) -> Result<(wire::ResponseHeader, wire::ServiceView), Failure> {
    let registry = context.servers.registry();
    let answer = registry.query_wire(service, reading.options()).await?;
    Ok((answer.header, answer.value))
}

async fn show_one(context: &Context, service: &ServiceKey, reading: &Reading) -> Result<(), Failure> {
    let (header, view) = read(context, service, reading).await?;
    let held = view.nodes.into_iter();
    let held = held.filter(|node| node.state() == wire::NodeState::Suspect);
    let body = GuardBody {
        header: header.into(),
        settings: view.settings.unwrap_or_default().guard.into(),
        guard: view.guard.map(Guard::from),
        held: held.map(Node::from).collect(),
    };
    if context.printer.is_json() {
        return context.printer.json(&body);
    }
    context.printer.print(&body, || {
        let guard = body.guard.as_ref();
        let mut fields = vec![
            ("service", service.to_string()),
            ("guard", guard_text(guard)),
            ("settings", body.settings.text()),
        ];
        if let Some(guard) = guard.filter(|guard| guard.held > 0) {
            fields.push(("held since", format!("revision {}", guard.held_since)));
        }
        Table::fields(fields)
    })?;
    if body.held.is_empty() {
        return Ok(());
    }
    context.printer.blank_line()?;
    context.printer.print(&body, || nodes_table(&body.held))
}

async fn confirm_removal(context: &Context, wanted: &ConfirmGuard) -> Result<(), Failure> {
    let service = &wanted.service;
    let (header, view) = read(context, service, &Reading::default()).await?;
    let guard = view.guard.unwrap_or_default();
    if guard.held == 0 {
        return Err(Failure::not_found(format!(
            "the removal guard of {service} holds nothing"
        )));
    }
    let since = wanted.since.unwrap_or(guard.held_since);
    let held = guard.held;
    confirm(
        &format!(
            "Remove the {held} nodes of {service} that its guard holds since revision {since}, for good?"
        ),
        wanted.yes,
    )?;
    let registry = match header.mode() {
        // What holds, and since when, is each server's own.
        wire::GroupMode::Ap => context.servers.one_of(header.server).await?,
        wire::GroupMode::Cp | wire::GroupMode::Unspecified => context.servers.registry().clone(),
    };
    let written = registry
        .confirm_removal(service, Some(since), &wanted.author, &wanted.reason, plain())
        .await?;
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!(
            "removal of the held nodes of {service} confirmed {}",
            written.text()
        )
    })
}
