//! `rollcall service`.

mod guard;

use clap::{Args, Subcommand};
use rollcall_client::ServiceKey;
use serde::Serialize;

use self::guard::GuardCommand;
use super::node::nodes_table;
use super::settings::{Putting, ServiceFlags, UNNAMED_STAY};
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::{Reading, at_revision};
use crate::names::prefix_of;
use crate::output::guard::guard_text;
use crate::output::record::{Header, Service, ServiceView, Written, map_text};
use crate::output::table::Table;
use crate::servers::plain;

/// What to do with services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service, or change its settings
    Put(PutService),
    /// List services
    List(ListServices),
    /// Show one service and its nodes
    Show(ShowService),
    /// Delete a service that has no nodes
    Delete(DeleteService),
    /// Removal guards: which services' nodes are held instead of removed, and why
    #[command(subcommand)]
    Guard(GuardCommand),
}

/// Arguments of `service put`.
#[derive(Args, Debug)]
#[command(after_help = UNNAMED_STAY)]
pub(crate) struct PutService {
    /// group/service
    service: ServiceKey,
    #[command(flatten)]
    putting: Putting,
    #[command(flatten)]
    flags: ServiceFlags,
}

/// Arguments of `service list`.
#[derive(Args, Debug)]
pub(crate) struct ListServices {
    /// A group, or a leading part of its path; everything if left out
    prefix: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `service show`.
#[derive(Args, Debug)]
pub(crate) struct ShowService {
    /// group/service
    service: ServiceKey,
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `service delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteService {
    /// group/service
    service: ServiceKey,
    /// Only if it was last modified at this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
}

#[derive(Serialize)]
struct ServicesBody {
    header: Header,
    services: Vec<Service>,
}

#[derive(Serialize)]
struct ServiceBody {
    header: Header,
    service: ServiceView,
}

pub(crate) async fn run(context: &Context, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Put(put) => put_service(context, put).await,
        ServiceCommand::List(list) => list_services(context, &list).await,
        ServiceCommand::Show(show) => show_service(context, &show).await,
        ServiceCommand::Delete(delete) => delete_service(context, &delete).await,
        ServiceCommand::Guard(command) => guard::run(context, command).await,
    }
}

async fn put_service(context: &Context, put: PutService) -> Result<(), Failure> {
    let (mut settings, mut named) = put.flags.settings();
    if let Some(metadata) = put.putting.named_metadata() {
        settings.metadata = metadata;
        named.push("metadata".into());
    }
    let registry = context.servers.registry();
    let expected = put.putting.condition.expected();
    let written = match put.putting.fields(named) {
        Some(named) => {
            registry
                .change_service(&put.service, settings, named, expected, plain())
                .await?
        }
        None => {
            registry
                .put_service(&put.service, Some(settings), expected, plain())
                .await?
        }
    };
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!("service {} put {}", put.service, written.text())
    })
}

async fn list_services(context: &Context, list: &ListServices) -> Result<(), Failure> {
    let prefix = prefix_of(list.prefix.as_deref());
    let answer = context
        .servers
        .registry()
        .all_services(prefix, list.reading.options())
        .await?;
    let services = answer.value.into_iter().map(Service::from).collect();
    let body = ServicesBody {
        header: answer.header.into(),
        services,
    };
    context.printer.print(&body, || {
        let mut table = Table::new(&["SERVICE", "UP", "NODES"]).wide(&[
            "REVISION",
            "DEFAULT-KIND",
            "NODES-MAX",
            "GUARD",
            "METADATA",
            "SIGN",
        ]);
        for service in &body.services {
            table.row(vec![
                format!("{}/{}", service.group, service.service),
                service.up.to_string(),
                service.nodes.to_string(),
                service.revision.to_string(),
                service.settings.default_kind.into(),
                service.settings.nodes_max.to_string(),
                service
                    .guard
                    .as_ref()
                    .map_or_else(String::new, |guard| guard_text(Some(guard))),
                map_text(&service.settings.metadata),
                service.sign.clone(),
            ]);
        }
        table
    })
}

async fn show_service(context: &Context, show: &ShowService) -> Result<(), Failure> {
    let answer = context
        .servers
        .registry()
        .query_wire(&show.service, show.reading.options())
        .await?;
    let body = ServiceBody {
        header: answer.header.into(),
        service: answer.value.into(),
    };
    if context.printer.is_json() {
        return context.printer.json(&body);
    }
    let service = &body.service;
    context.printer.print(&body, || {
        Table::fields(vec![
            ("service", show.service.to_string()),
            ("default_kind", service.settings.default_kind.into()),
            ("nodes_max", service.settings.nodes_max.to_string()),
            ("guard_settings", service.settings.guard.text()),
            ("guard", guard_text(service.guard.as_ref())),
            ("metadata", map_text(&service.settings.metadata)),
            ("nodes", service.nodes.len().to_string()),
            ("revision", service.revision.to_string()),
            ("sign", service.sign.clone()),
        ])
    })?;
    if service.nodes.is_empty() {
        return Ok(());
    }
    context.printer.blank_line()?;
    context.printer.print(&body, || nodes_table(&service.nodes))
}

async fn delete_service(context: &Context, delete: &DeleteService) -> Result<(), Failure> {
    let expected = at_revision(delete.if_revision);
    let written = context
        .servers
        .registry()
        .delete_service(&delete.service, expected, plain())
        .await?;
    let written = Written::from(written);
    context.printer.done(&written, || {
        format!("service {} deleted {}", delete.service, written.text())
    })
}
