//! `rollcall service`.

use clap::{Args, Subcommand};
use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use serde::Serialize;

use super::group::wire_kind;
use super::node::nodes_table;
use super::{Context, prefix_of};
use crate::arguments::{Condition, Kind, Reading, at_revision};
use crate::exit::Failure;
use crate::names::{Pair, map_of};
use crate::output::record::{Header, Service, ServiceView, Written, map_text};
use crate::output::table::Table;
use crate::servers::plain;

/// What to do with services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service, or replace its settings
    Put(PutService),
    /// List services
    List(ListServices),
    /// Show one service and its nodes
    Show(ShowService),
    /// Delete a service that has no nodes
    Delete(DeleteService),
}

/// Arguments of `service put`.
#[derive(Args, Debug)]
#[command(after_help = "Settings that are not named take their defaults, also if the service exists.")]
pub(crate) struct PutService {
    /// group/service
    service: ServiceKey,
    /// Kind of nodes whose registration names none
    #[arg(long)]
    default_kind: Option<Kind>,
    /// Most nodes; 0: the server's default
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    nodes_max: u32,
    /// Metadata, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    #[command(flatten)]
    condition: Condition,
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
    }
}

async fn put_service(context: &Context, put: PutService) -> Result<(), Failure> {
    let settings = wire::ServiceSettings {
        default_kind: wire_kind(put.default_kind).into(),
        metadata: map_of(&put.metadata),
        nodes_max: put.nodes_max,
        ..wire::ServiceSettings::default()
    };
    let registry = context.servers.registry();
    let written = registry
        .put_service(&put.service, Some(settings), put.condition.expected(), plain())
        .await?;
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
