//! `rollcall bench`: what a cluster does under load, measured from outside.
//!
//! A [`lane`] decides when a call is due and what its answer took; a [`report`] adds the lanes up. The drivers
//! use raw streams and channels: the client's comforts (retries, failover, re-registration) would hide what is
//! to be seen. Everything a bench makes lies in one group of its own, which it deletes at the end.

mod datagram;
mod discover;
mod driver;
mod ground;
mod lane;
mod load;
mod query_stream;
mod register;
mod renew;
mod report;
mod server_process;
mod storm;
mod stream;
mod watch;

use clap::Subcommand;

use crate::context::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;

const METHOD: &str = "\
Closed loop (default): every connection keeps --in-flight calls under way; the next one goes out when one is
answered. Open loop (--rate): calls are due at fixed times, whether or not earlier ones were answered; latency
counts from the time a call was due, so a stalled server cannot hide the calls it kept waiting (no coordinated
omission). A call sent more than 2 ms after it was due is counted as late; the schedule does not slip. Timers
add up to 1 ms; `service_ms` counts from the actual sending.

Everything is made in a group of its own (bench-...), deleted at the end, also after Ctrl-C.";

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Writes: ephemeral nodes registered on session streams
    #[command(after_help = METHOD)]
    Register(register::RegisterBench),
    /// Heartbeats: many sessions on few connections
    #[command(after_help = METHOD)]
    Renew(renew::RenewBench),
    /// Reads: queries of services
    #[command(after_help = METHOD)]
    Discover(discover::DiscoverBench),
    /// Watch fan-out: from a write to the last of its watchers
    #[command(after_help = watch::METHOD)]
    Watch(watch::WatchBench),
    /// A stampede of watchers, with the storm switch off, on or auto
    #[command(after_help = storm::METHOD)]
    Storm(storm::StormBench),
}

/// Measures, reports, cleans up.
pub(crate) async fn run(
    context: &Context,
    command: BenchCommand,
    interrupt: Interrupt,
) -> Result<(), Failure> {
    match command {
        BenchCommand::Register(bench) => register::run(context, &bench, interrupt).await,
        BenchCommand::Renew(bench) => renew::run(context, &bench, interrupt).await,
        BenchCommand::Discover(bench) => discover::run(context, &bench, interrupt).await,
        BenchCommand::Watch(bench) => watch::run(context, &bench, interrupt).await,
        BenchCommand::Storm(bench) => storm::run(context, &bench, interrupt).await,
    }
}
