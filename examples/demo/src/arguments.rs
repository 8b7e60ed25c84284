//! What the command line says.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::services::Job;

#[derive(Debug, Parser)]
#[command(version, about = "What Rollcall does, on real services under real faults")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Plays the whole demo; ends with 1 if a promise broke.
    Run(RunArguments),
    /// Runs one service instance; the demo starts these.
    Service(ServiceArguments),
}

/// Arguments of `rollcall-demo run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// Writes timeline, figures and verdict to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The sessions' ttl.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Keeps the servers' data and all logs, and says where they are.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Arguments of `rollcall-demo service`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArguments {
    /// What it does.
    pub(crate) job: Job,
    /// Its id in the registry.
    #[arg(long)]
    pub(crate) instance: String,
    /// Client addresses of the servers; repeat it for each.
    #[arg(long = "registry", value_name = "HOST:PORT", required = true)]
    pub(crate) registry: Vec<String>,
    /// The group to register in.
    #[arg(long, default_value = "demo")]
    pub(crate) group: String,
    /// The session's ttl.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Ends when standard input ends, that is, with the process that started it.
    #[arg(long)]
    pub(crate) with_parent: bool,
}
