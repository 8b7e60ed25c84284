//! `rollcalld`: reads the configuration, runs one server until it is told to stop.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use rollcall_server::config::{Config, Flags, Preset};
use rollcall_server::server::{Server, data_folder};
use rollcall_server::telemetry;
use tokio::signal::unix::{SignalKind, signal};

/// Much of what a server does is to take and give back memory, on many threads (docs/decisions/0021).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit status of a configuration that makes no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let flags = Flags::parse();
    #[cfg(feature = "mutants")]
    if flags.mutants {
        return list_mutants();
    }
    #[cfg(feature = "mutants")]
    rollcall_core::mutants::plant(flags.mutant);
    let (print, check, preset) = (flags.print_config, flags.check_config, flags.preset());
    let config = match flags.into_config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("rollcalld: RC-201: {:#}", anyhow::Error::from(error));
            return ExitCode::from(USAGE);
        }
    };
    if print {
        print!("{}", config.to_toml());
        return ExitCode::SUCCESS;
    }
    if check {
        return ExitCode::SUCCESS;
    }
    match run(config, preset) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rollcalld: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config, preset: Preset) -> anyhow::Result<()> {
    telemetry::start_logging(&config.log)
        .with_context(|| format!("log.filter is {:?}", config.log.filter))?;
    #[cfg(feature = "mutants")]
    warn_of_mutants();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let server = Server::start(config.clone(), preset).await?;
    announce(&config, &server);
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = server.stopped() => Some(reason),
    };
    tokio::select! {
        () = server.shutdown() => {}
        // Asked twice, it does not wait for anyone.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    match failure {
        None => Ok(()),
        Some(reason) => Err(anyhow::anyhow!("replication ended: {reason}")),
    }
}

/// A line for each: its name, a tab, and what it does wrong.
#[cfg(feature = "mutants")]
fn list_mutants() -> ExitCode {
    let mut out = std::io::stdout();
    let mut all = rollcall_core::mutants::Mutant::ALL.iter();
    let listed = all.try_for_each(|mutant| writeln!(out, "{}\t{}", mutant.name(), mutant.breaks()));
    match listed {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A program that can have bugs on purpose says so wherever somebody looks.
#[cfg(feature = "mutants")]
fn warn_of_mutants() {
    let planted = rollcall_core::mutants::chosen().map_or_else(
        || "none is planted in this process".into(),
        |mutant| format!("planted: {}, {}", mutant.name(), mutant.breaks()),
    );
    let line = format!("THIS SERVER IS BUILT TO HAVE BUGS AND MUST NOT BE RELIED ON; {planted}");
    eprintln!("rollcalld: {line}");
    tracing::error!("{line}");
}

/// One line on standard output, for people and for programs that started this one.
fn announce(config: &Config, server: &Server) {
    let addresses = server.addresses();
    let line = format!(
        "serving cluster={} server={} client={} peer={} http={} data={}",
        config.cluster.name,
        config.cluster.id,
        addresses.client,
        addresses.peer,
        addresses.http,
        data_folder(config).display()
    );
    let mut out = std::io::stdout();
    // Nobody may be listening, which is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    tracing::info!("{line}");
}
