//! `rollcall`: the command line of Rollcall.
//!
//! Every command goes the same way: [`command`] says what was asked, a module of it (or of [`mod@bench`])
//! asks the servers through [`servers`], and [`output`] prints what came. Data goes to stdout, talk to stderr,
//! and the process ends with a code of [`exit`] that scripts can rely on.

mod bench;
mod command;
mod confirm;
mod context;
mod exit;
mod flags;
mod interrupt;
mod names;
mod output;
mod progress;
mod servers;
mod talk;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::command::Arguments;
use crate::flags::Reading;

fn main() -> ExitCode {
    let given = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
    if let Err(failure) = Reading::check(&given) {
        return failure.tell();
    }
    log_if_asked();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| exit::Failure::failed(format!("cannot start the runtime: {e}")))
        .and_then(|runtime| {
            let done = runtime.block_on(command::run(arguments));
            // A call still under way must not hold the process back.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

/// What the client library notes on its way (reconnections, say), on stderr, if `ROLLCALL_LOG` names levels:
/// `debug`, or `rollcall_client=trace`.
fn log_if_asked() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("ROLLCALL_LOG") else {
        return;
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
