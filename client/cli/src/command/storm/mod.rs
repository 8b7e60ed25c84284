//! `rollcall storm`.

mod rehearsal;

use clap::{Args, Subcommand, ValueEnum};
use rollcall_client::StormSetting;
use rollcall_proto::v1 as wire;
use serde::Serialize;

use self::rehearsal::RehearseStorm;
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::Reading;
use crate::output::record::{Header, Written};
use crate::output::table::Table;
use crate::servers::plain;
use crate::units::{basis_points, percent};

/// What to do with the storm switch.
#[derive(Debug, Subcommand)]
pub(crate) enum StormCommand {
    /// Show how the switch is set, and how it stands on the server that answers
    Show(ShowStorm),
    /// Set the switch of the cluster or of a group
    Set(SetStorm),
    /// Predict what the restart of a service or the loss of a zone would make the servers send
    Rehearse(RehearseStorm),
}

/// Arguments of `storm show`.
#[derive(Args, Debug)]
pub(crate) struct ShowStorm {
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `storm set`.
#[derive(Args, Debug)]
#[command(
    after_help = "While the switch is on, full lists are given to one share of the consumers after the other; the others \
                  live on what they have, and all are served within a round of epochs. Changes leave together. \
                  Heartbeats, registrations and deregistrations are never held up."
)]
pub(crate) struct SetStorm {
    /// Its position
    mode: Position,
    /// Which share of the consumers is served at a time, such as 10% or 0.5%; with on and auto
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = basis_points)]
    share: u32,
    /// This group and those below it instead of the cluster
    #[arg(long)]
    group: Option<String>,
    /// Why, for those who look later
    #[arg(long)]
    reason: String,
    /// Who
    #[arg(long, env = "USER", default_value = "")]
    author: String,
}

/// A position of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Position {
    /// Everyone is served at once
    Off,
    /// Consumers are served in turn
    On,
    /// Off, until a server is pressed by egress, changes or its scheduler
    Auto,
    /// Of a group: as above it
    Inherited,
}

#[derive(Serialize)]
struct StormBody {
    header: Header,
    records: Vec<Record>,
    here: Here,
}

/// How the switch of a scope is set.
#[derive(Serialize)]
struct Record {
    /// Empty: the cluster.
    group: String,
    mode: &'static str,
    share_basis_points: u32,
    engaged: bool,
    author: String,
    reason: String,
    set_at: u64,
}

/// How it stands on the server that answered.
#[derive(Serialize)]
struct Here {
    server: u64,
    pressed: bool,
    pressed_since_ms: u64,
    pressed_reason: String,
    egress_bytes_per_s: u64,
    changes_per_s: u64,
    scheduling_lag_ms: u64,
    lists_served: u64,
    lists_kept: u64,
    changes_coalesced: u64,
}

pub(crate) async fn run(context: &Context, command: StormCommand) -> Result<(), Failure> {
    match command {
        StormCommand::Show(show) => show_storm(context, &show).await,
        StormCommand::Set(set) => set_storm(context, set).await,
        StormCommand::Rehearse(rehearse) => rehearsal::run(context, rehearse).await,
    }
}

async fn set_storm(context: &Context, set: SetStorm) -> Result<(), Failure> {
    let mode = match set.mode {
        Position::Off => wire::StormMode::Off,
        Position::On => wire::StormMode::On,
        Position::Auto => wire::StormMode::Auto,
        Position::Inherited => wire::StormMode::Inherited,
    };
    let mut setting = StormSetting::new(mode);
    let scope = match &set.group {
        Some(group) => format!("group {group}"),
        None => "the cluster".into(),
    };
    setting.group = set.group;
    setting.share_basis_points = set.share;
    setting.author = set.author;
    setting.reason = set.reason;
    let written = context.servers.registry().set_storm(&setting, plain()).await?;
    let written = Written::from(written);
    let text = match set.mode {
        Position::Off => "off".into(),
        Position::On => format!("on ({})", percent(set.share)),
        Position::Auto => format!("auto ({})", percent(set.share)),
        Position::Inherited => "inherited".into(),
    };
    context.printer.done(&written, || {
        format!("storm switch of {scope} set to {text} {}", written.text())
    })
}

async fn show_storm(context: &Context, show: &ShowStorm) -> Result<(), Failure> {
    let storm = context.servers.registry().storm(show.reading.options()).await?;
    let header = storm.header.unwrap_or_default();
    let body = StormBody {
        here: Here {
            server: header.server,
            pressed: storm.pressed,
            pressed_since_ms: storm.pressed_since_ms,
            pressed_reason: storm.pressed_reason,
            egress_bytes_per_s: storm.egress_bytes_per_s,
            changes_per_s: storm.changes_per_s,
            scheduling_lag_ms: storm.scheduling_lag_ms,
            lists_served: storm.lists_served,
            lists_kept: storm.lists_kept,
            changes_coalesced: storm.changes_coalesced,
        },
        records: storm.records.into_iter().map(Record::from).collect(),
        header: header.into(),
    };
    context.printer.print(&body, || storm_table(&body))
}

impl From<wire::StormRecord> for Record {
    fn from(record: wire::StormRecord) -> Self {
        let mode = match record.mode() {
            wire::StormMode::Off | wire::StormMode::Unspecified => "off",
            wire::StormMode::On => "on",
            wire::StormMode::Auto => "auto",
            wire::StormMode::Inherited => "inherited",
        };
        Self {
            group: record.group,
            mode,
            share_basis_points: record.share_basis_points,
            engaged: record.engaged,
            author: record.author,
            reason: record.reason,
            set_at: record.set_at,
        }
    }
}

fn storm_table(body: &StormBody) -> Table {
    let mut rows = Vec::new();
    for record in &body.records {
        let share = match record.share_basis_points {
            0 => String::new(),
            share => format!(" ({})", percent(share)),
        };
        let engaged = if record.engaged { ", engaged" } else { "" };
        let said = match record.set_at {
            0 => ", never set".into(),
            at => format!(", set at revision {at} by {:?}: {}", record.author, record.reason),
        };
        let (field, whose) = match record.group.as_str() {
            "" => ("cluster", String::new()),
            group => ("group", format!("{group} ")),
        };
        rows.push((field, format!("{whose}{}{share}{engaged}{said}", record.mode)));
    }
    let here = &body.here;
    let pressed = if here.pressed { "yes" } else { "no" };
    let since = here.pressed_since_ms / 1_000;
    rows.extend([
        ("server", here.server.to_string()),
        (
            "pressed",
            format!("{pressed}, since {since} s: {}", here.pressed_reason),
        ),
        ("egress", format!("{} bytes/s", here.egress_bytes_per_s)),
        ("changes", format!("{}/s", here.changes_per_s)),
        ("scheduling_lag", format!("{} ms", here.scheduling_lag_ms)),
        ("lists_served", here.lists_served.to_string()),
        ("lists_kept", here.lists_kept.to_string()),
        ("changes_coalesced", here.changes_coalesced.to_string()),
    ]);
    Table::fields(rows)
}
