//! `rollcall bench watch`: from a write to the last of its watchers.
//!
//! Each change carries its number in the node's metadata, so a watcher knows which change a frame brings without
//! knowing its revision. A watcher that is sent the current state instead of every change has seen all numbers up
//! to the one it finds.

mod board;
mod report;
mod watcher;
mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use rollcall_client::ServiceKey;
use tokio::time::Instant;

use self::board::Board;
use self::report::{FanoutReport, Measured, Settings};
use self::watcher::start_watchers;
use self::writer::Writer;
use super::driver::drive_stream;
use super::ground::{Ground, metadata_bytes};
use super::lane::{Lane, Pace};
use super::load::{positive, rate};
use super::report::{Tally, errors_text, histogram};
use super::server_process::{Meter, ServerProcesses};
use super::stream::{SessionStream, written};
use crate::context::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::servers::way_to;
use crate::talk::say;

pub(crate) const METHOD: &str = "\
Each watcher is a watch stream of its own. One node of one service is changed again and again; for each change
the time until the last watcher has it is taken, from its sending and from its answer (0 if the last watcher had
it before the writer had its answer). Without --rate the next change goes out when every watcher has the last
one; with --rate changes are due at fixed times, and count from when they were due.

Everything is made in a group of its own (bench-...), deleted at the end, also after Ctrl-C.";

/// Changes under way in an open loop.
const IN_FLIGHT_MAX: usize = 1_024;

/// Arguments of `rollcall bench watch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WatchBench {
    /// Watch streams
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    watchers: usize,
    /// TCP connections they share, spread over the servers of --addr
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = positive)]
    connections: usize,
    /// Changes
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    changes: usize,
    /// Changes per second: an open loop
    #[arg(long, value_name = "PER-SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of metadata of the node that changes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = metadata_bytes)]
    metadata_bytes: usize,
    #[command(flatten)]
    servers: ServerProcesses,
}

pub(crate) async fn run(context: &Context, bench: &WatchBench, interrupt: Interrupt) -> Result<(), Failure> {
    let mut meter = bench.servers.meter()?;
    let ground = Ground::lay(context, 1, 1).await?;
    let measured = measure(context, bench, &ground, &mut meter, interrupt).await;
    let group = ground.group().to_owned();
    ground.clear_up().await;
    let measured = measured?;
    let settings = Settings {
        watchers: bench.watchers,
        connections: bench.connections.min(bench.watchers),
        changes: bench.changes,
        rate: bench.rate,
        metadata_bytes: bench.metadata_bytes,
        group,
    };
    let report = FanoutReport::new(settings, &measured, &meter);
    context.printer.print(&report, || report.table())?;
    if report.changes.complete == 0 {
        return Err(Failure::failed(format!(
            "no change reached every watcher: {}",
            errors_text(&report.errors, 0)
        )));
    }
    Ok(())
}

async fn measure(
    context: &Context,
    bench: &WatchBench,
    ground: &Ground,
    meter: &mut Meter,
    mut interrupt: Interrupt,
) -> Result<Measured, Failure> {
    let timeout = context.servers.timeout();
    let service = ground
        .services()
        .first()
        .ok_or_else(|| Failure::failed("the bench has no service"))?;
    let address = context
        .servers
        .addresses()
        .first()
        .ok_or_else(|| Failure::usage("--addr names no server"))?;
    let opening = Progress::counting("opening the writer's session");
    let mut stream = SessionStream::open(way_to(address, timeout)?, 1, timeout, &opening).await?;
    opening.finish();
    let measured = measure_with(context, bench, service, &mut stream, meter, &mut interrupt).await;
    if let Err(failure) = stream.close(timeout).await {
        say(format_args!("{failure}"));
    }
    measured
}

/// With the writer's stream, which is closed whatever comes of this.
async fn measure_with(
    context: &Context,
    bench: &WatchBench,
    service: &ServiceKey,
    stream: &mut SessionStream,
    meter: &mut Meter,
    interrupt: &mut Interrupt,
) -> Result<Measured, Failure> {
    let timeout = context.servers.timeout();
    let mut writer = Writer::new(stream, service, bench.metadata_bytes, timeout);
    // The node exists before anybody watches: a watcher's first snapshot holds change 0.
    written(stream.ask(writer.session, writer.register(0), timeout).await?)?;

    let board = Arc::new(Board::new(bench.changes, bench.watchers));
    let count = (bench.watchers, bench.connections);
    let starting = start_watchers(context.servers.addresses(), count, service, &board, timeout);
    let (stops, watchers) = tokio::select! {
        started = starting => started?,
        () = interrupt.requested() => return Err(Failure::failed("interrupted while watchers were being started")),
    };
    let progress = Progress::of(bench.changes as u64, "changing");
    meter.begin()?;
    let start = Instant::now();
    writer.board = Some(Arc::clone(&board));
    let tally = match bench.rate {
        Some(rate) => {
            let every = Duration::from_secs_f64(1.0 / rate);
            let pace = Pace::Open {
                first: Duration::ZERO,
                every,
            };
            writer.schedule = Some((start, every));
            let lane = Lane::new(
                start,
                pace,
                Some(bench.changes as u64),
                None,
                IN_FLIGHT_MAX,
                timeout,
            );
            drive_stream(stream, lane, &mut writer, &progress, interrupt.clone()).await
        }
        None => change_one_by_one(stream, &mut writer, bench, timeout, &progress, interrupt).await,
    };
    // The last changes may still be on their way.
    let all_here = async {
        for change in 1..=bench.changes as u64 {
            if board
                .record(change)
                .is_some_and(|record| record.answered.load(Ordering::Acquire) > 0)
            {
                board.wait_for(change).await;
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(timeout, all_here) => {}
        () = interrupt.requested() => {}
    }
    let elapsed = start.elapsed();
    meter.end()?;
    progress.finish();
    for stop in stops {
        // A watcher task that has ended needs no stop.
        let _ = stop.send(());
    }
    let mut each = histogram();
    for watcher in watchers {
        let seen = watcher
            .await
            .map_err(|e| Failure::failed(format!("a watcher's task broke down: {e}")))?;
        each.add(&seen)
            .map_err(|e| Failure::failed(format!("histograms do not add up: {e}")))?;
    }
    Ok(Measured {
        board,
        tally,
        each,
        elapsed,
    })
}

/// The closed loop: the next change when every watcher has the last.
async fn change_one_by_one(
    stream: &mut SessionStream,
    writer: &mut Writer,
    bench: &WatchBench,
    timeout: Duration,
    progress: &Progress,
    interrupt: &mut Interrupt,
) -> Tally {
    let mut tally = Tally::new();
    for change in 1..=bench.changes as u64 {
        if interrupt.is_requested() {
            break;
        }
        let Some(board) = writer.board.clone() else { break };
        let request = writer.register(change);
        let sent = Instant::now();
        board.on_due(change, sent);
        tally.sent += 1;
        let answer = stream
            .ask(writer.session, request, timeout)
            .await
            .and_then(written);
        let now = Instant::now();
        match answer {
            Ok(_) => {
                board.on_answered(change, now);
                tally.answered(now - sent, now - sent, 1);
            }
            Err(failure) => {
                tally.failed(failure.label());
                if failure.exit == crate::exit::Exit::Unavailable && failure.code.is_none() {
                    say(format_args!("the writer's connection broke off: {failure}"));
                    break;
                }
                continue;
            }
        }
        progress.add(1);
        tokio::select! {
            seen = tokio::time::timeout(timeout, board.wait_for(change)) => if seen.is_err() {
                tally.failed("not_seen_in_time".into());
            },
            () = interrupt.requested() => break,
        }
    }
    tally
}
