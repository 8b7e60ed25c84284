//! `rollcall node override`: what an operator says of a node.

use std::time::Duration;

use clap::{Args, Subcommand};
use rollcall_client::NodeKey;

use crate::context::Context;
use crate::exit::Failure;
use crate::names::{self, Pair, map_of};
use crate::output::record::Written;
use crate::servers::plain;

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

pub(super) async fn set(context: &Context, set: SetOverride) -> Result<(), Failure> {
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

pub(super) async fn clear(context: &Context, clear: &ClearOverride) -> Result<(), Failure> {
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
