//! What Rollcall does, on real services under real faults.
//!
//! `rollcall-demo run` starts three servers and ten services as processes of their own, then kills, drains and
//! pauses some of them while consumers call and writers write, and prints a timeline and a verdict.
//! `rollcall-demo service` is one of the services.

mod consumer;
mod director;
mod follower;
mod http;
mod provider;
mod services;
mod stage;
mod truth;
mod verdict;
mod witness;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use services::Job;

#[derive(Debug, Parser)]
#[command(version, about = "What Rollcall does, on real services under real faults")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plays the whole demo; ends with 1 if a promise broke.
    Run(RunArguments),
    /// Runs one service instance; the demo starts these.
    Service(ServiceArguments),
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Writes timeline, figures and verdict to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The sessions' ttl.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Keeps the servers' data and all logs, and says where they are.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, clap::Args)]
struct ServiceArguments {
    /// What it does.
    job: Job,
    /// Its id in the registry.
    #[arg(long)]
    instance: String,
    /// Client addresses of the servers; repeat it for each.
    #[arg(long = "registry", value_name = "HOST:PORT", required = true)]
    registry: Vec<String>,
    /// The group to register in.
    #[arg(long, default_value = "demo")]
    group: String,
    /// The session's ttl.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Ends when standard input ends, that is, with the process that started it.
    #[arg(long)]
    with_parent: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => director::run(&arguments).await,
        Command::Service(arguments) => provider::run(arguments).await.map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            eprintln!("error: {failed:#}");
            ExitCode::FAILURE
        }
    }
}
