//! One run for each position of the switch: a quiet span, then the storm.

use std::time::Duration;

use clap::{Args, ValueEnum};
use rollcall_client::{Error, ReadOptions, StormSetting};
use rollcall_proto::v1 as wire;
use tokio::sync::watch;

use super::super::ground::{Ground, filler, metadata_bytes};
use super::super::load::{positive, rate};
use super::super::report::errors_text;
use super::herd::{Herd, HerdSettings};
use super::pulse::{Pulse, PulseSettings};
use super::report::{Run, Settings, StormReport};
use crate::context::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::names::positive_duration;
use crate::progress::Progress;
use crate::servers::{plain, registry_of};
use crate::talk::say;
use crate::units::basis_points;

pub(crate) const METHOD: &str = "\
Every watcher opens a watch stream of one service and subscribes at the same moment, with the sign of another list
than the servers have, as after a network failure. While the switch is on it keeps what it holds as told, and asks
again when told. Bytes are those of the streams' messages as they arrive here. Heartbeats and registrations (of
another service) go on at fixed times, on a thread and connections of their own; their latency counts from when they
were due, first for a quiet span and then from the beginning of the storm until the last watcher is current.

The switch is set for the bench's own group (bench-...), which is deleted at the end, also after Ctrl-C. Servers bound
the streams of a connection, connections of an address, and open files: see ulimit -n.";

/// Streams of one connection, below the servers' default bound.
const STREAMS_PER_CONNECTION: usize = 200;
/// How often a server is asked whether it has heard how the switch was set.
const LOOK: Duration = Duration::from_millis(20);
/// Between two positions, for what the last one left behind.
const SETTLE: Duration = Duration::from_secs(2);

/// Arguments of `rollcall bench storm`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StormBench {
    /// Positions of the switch, one run each
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        default_value = "off,on"
    )]
    switch: Vec<Position>,
    /// Share of the watchers that the switch serves at a time, while it is on
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = basis_points)]
    share: u32,
    /// Watch streams
    #[arg(long, value_name = "COUNT", default_value_t = 5_000, value_parser = positive)]
    watchers: usize,
    /// TCP connections they share, spread over the servers of --addr (default: one for 200 of them)
    #[arg(long, value_name = "COUNT", value_parser = positive)]
    connections: Option<usize>,
    /// Nodes of the service they watch
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = positive)]
    nodes: usize,
    /// Bytes of metadata of each node
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = metadata_bytes)]
    metadata_bytes: usize,
    /// How long heartbeats and registrations are measured before the storm
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    quiet: Duration,
    /// Heartbeats per second
    #[arg(long, value_name = "PER-SECOND", default_value = "200", value_parser = rate)]
    heartbeats: f64,
    /// Registrations per second
    #[arg(long, value_name = "PER-SECOND", default_value = "50", value_parser = rate)]
    registrations: f64,
    /// Sessions that the heartbeats renew in turn
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    sessions: usize,
    /// Longest wait for the last watcher
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = positive_duration)]
    patience: Duration,
}

/// A position of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Position {
    /// Everyone is served at once
    Off,
    /// In turn
    On,
    /// In turn once a server is pressed
    Auto,
}

impl Position {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Auto => "auto",
        }
    }

    fn mode(self) -> wire::StormMode {
        match self {
            Self::Off => wire::StormMode::Off,
            Self::On => wire::StormMode::On,
            Self::Auto => wire::StormMode::Auto,
        }
    }
}

pub(crate) async fn run(context: &Context, bench: &StormBench, interrupt: Interrupt) -> Result<(), Failure> {
    let ground = Ground::lay(context, 2, bench.nodes + 1_000).await?;
    let measured = measure(context, bench, &ground, interrupt).await;
    let group = ground.group().to_owned();
    // A group that is gone has no switch.
    if let Err(failure) = set(context, &group, wire::StormMode::Inherited, 0).await {
        say(format_args!(
            "the storm switch of group {group} stays set: {failure}"
        ));
    }
    ground.clear_up().await;
    let runs = measured?;
    let report = StormReport {
        bench: "storm",
        settings: Settings {
            watchers: bench.watchers,
            connections: bench.connections(),
            nodes: bench.nodes,
            metadata_bytes: bench.metadata_bytes,
            share_basis_points: bench.share,
            quiet_s: bench.quiet.as_secs_f64(),
            heartbeats_per_s: bench.heartbeats,
            registrations_per_s: bench.registrations,
            sessions: bench.sessions,
            group,
        },
        runs,
    };
    context.printer.print(&report, || report.table())?;
    match report.runs.iter().find(|run| run.current < bench.watchers as u64) {
        None => Ok(()),
        Some(run) => Err(Failure::failed(format!(
            "with the switch {} only {} of {} watchers became current: {}",
            run.switch,
            run.current,
            bench.watchers,
            errors_text(&run.errors, 0)
        ))),
    }
}

impl StormBench {
    fn connections(&self) -> usize {
        let enough = self.watchers.div_ceil(STREAMS_PER_CONNECTION);
        self.connections.unwrap_or(enough).min(self.watchers)
    }
}

async fn measure(
    context: &Context,
    bench: &StormBench,
    ground: &Ground,
    mut interrupt: Interrupt,
) -> Result<Vec<Run>, Failure> {
    let [watched, other] = ground.services() else {
        return Err(Failure::failed("the bench has not got its two services"));
    };
    ground
        .fill_one(watched, bench.nodes, &filler(bench.metadata_bytes))
        .await?;
    let timeout = context.servers.timeout();
    let addresses = context.servers.addresses();
    let address = addresses
        .first()
        .ok_or_else(|| Failure::usage("--addr names no server"))?;
    let pulse = Pulse::start(PulseSettings {
        address: address.clone(),
        sessions: bench.sessions,
        heartbeats_per_s: bench.heartbeats,
        registrations_per_s: bench.registrations,
        service: other.clone(),
        timeout,
    })
    .await?;
    let mut runs = Vec::new();
    let measuring = async {
        for (number, position) in bench.switch.iter().enumerate() {
            if number > 0 {
                tokio::time::sleep(SETTLE).await;
            }
            set(context, ground.group(), position.mode(), bench.share).await?;
            for address in addresses {
                wait_until_heard(address, ground.group(), position.mode(), timeout).await?;
            }
            let herd = Herd::gather(HerdSettings {
                addresses: addresses.to_vec(),
                connections: bench.connections(),
                watchers: bench.watchers,
                service: watched.clone(),
                patience: bench.patience,
                timeout,
            })
            .await?;
            runs.push(one_run(*position, herd, &pulse, bench).await?);
        }
        Ok(())
    };
    let measured = tokio::select! {
        measured = measuring => measured,
        () = interrupt.requested() => Err(Failure::failed("interrupted before the figures were whole")),
    };
    pulse.close().await;
    measured.map(|()| runs)
}

async fn one_run(position: Position, herd: Herd, pulse: &Pulse, bench: &StormBench) -> Result<Run, Failure> {
    let progress = Progress::of(bench.watchers as u64, position.name());
    let (over, is_over) = watch::channel(false);
    let (quiet, ()) = tokio::join!(pulse.measure(is_over), async {
        tokio::time::sleep(bench.quiet).await;
        over.send_replace(true);
    });
    let quiet = quiet?;
    let (over, is_over) = watch::channel(false);
    let (storm, stampede) = tokio::join!(pulse.measure(is_over), herd.stampede(progress.clone(), over));
    progress.finish();
    Ok(Run::new(position.name(), &quiet, &storm?, &stampede?))
}

async fn set(context: &Context, group: &str, mode: wire::StormMode, share: u32) -> Result<(), Failure> {
    let mut setting = StormSetting::new(mode);
    setting.group = Some(group.into());
    setting.share_basis_points = share;
    setting.reason = "rollcall bench storm".into();
    match context.servers.registry().set_storm(&setting, plain()).await {
        Ok(_) => Ok(()),
        Err(Error::GroupNotFound { .. }) if mode == wire::StormMode::Inherited => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Each server follows the record by itself.
async fn wait_until_heard(
    address: &str,
    group: &str,
    mode: wire::StormMode,
    timeout: Duration,
) -> Result<(), Failure> {
    let registry = registry_of(&[address], timeout)?;
    let heard = async {
        loop {
            let storm = registry.storm(ReadOptions::local()).await?;
            let records = &mut storm.records.iter();
            if records.any(|record| record.group == group && record.mode() == mode) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let in_time = tokio::time::timeout(timeout, heard).await;
    in_time.unwrap_or_else(|_| {
        Err(Failure::timeout(format!(
            "{address} did not hear in time how the switch was set"
        )))
    })
}
