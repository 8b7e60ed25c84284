//! `rollcall-gossip-fuzz`: bad packets against the gossip ports of a running cluster, or of one of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use rollcall_jepsen::fuzz::{Plan, Report, Stand, StandOptions, Target, attack, read_key};

/// Throws bad packets at gossip ports (garbage, truncated, bit-flipped, replayed, oversized, unauthenticated,
/// of another cluster, of the far future) at a bounded rate, while members, counters, memory, heartbeats and
/// writes are watched. Ends with 0 if everything was kept.
///
/// Without --target it starts three servers of its own and throws at them.
#[derive(Debug, Parser)]
#[command(name = "rollcall-gossip-fuzz", version)]
struct Flags {
    /// A server to throw at, by its gossip, client and HTTP address; repeat it for each
    #[arg(long, value_name = "GOSSIP,CLIENT,HTTP", value_parser = target)]
    target: Vec<Target>,
    /// The name of the targets' cluster
    #[arg(long, value_name = "NAME", default_value = "rollcall")]
    cluster: String,
    /// The targets' gossip.key_file, if they have one
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of every packet; left out: any
    #[arg(long)]
    seed: Option<u64>,
    /// Packets a second, over all targets
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Forge packets of members as well; membership may suffer then, and must heal
    #[arg(long)]
    insider: bool,
    /// How many servers of its own
    #[arg(long, default_value_t = 3, conflicts_with = "target")]
    servers: u64,
    /// Its own servers have a gossip key
    #[arg(long, conflicts_with = "target")]
    sealed: bool,
    /// The gossip preset of its own servers
    #[arg(long, default_value = "lan", conflicts_with = "target")]
    preset: String,
}

fn target(text: &str) -> Result<Target, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let [gossip, client, http] = parts[..] else {
        return Err("three addresses are needed: GOSSIP,CLIENT,HTTP".into());
    };
    Ok(Target {
        gossip: gossip.parse().map_err(|_| format!("{gossip} is no address"))?,
        client: client.into(),
        http: http.into(),
        pid: None,
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(report) => {
            println!("{report}");
            match report.broken.is_empty() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<Report> {
    let seed = flags.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut plan = Plan {
        cluster: flags.cluster,
        key: flags.key_file.as_deref().map(read_key).transpose()?,
        seed,
        time: Duration::try_from_secs_f64(flags.minutes * 60.0).context("--minutes")?,
        rate: flags.rate,
        insider: flags.insider,
    };
    if !flags.target.is_empty() {
        return attack(&plan, &flags.target, &[]).await;
    }
    let options = StandOptions {
        servers: flags.servers,
        sealed: flags.sealed,
        preset: flags.preset,
        binary: None,
    };
    let mut stand = Stand::start(options).await?;
    plan.cluster = Stand::CLUSTER.into();
    plan.key = stand.key();
    let targets = stand.targets()?;
    let mut report = attack(&plan, &targets, &stand.relays).await?;
    stand.judge(&mut report);
    if !report.broken.is_empty() {
        let kept = stand.cluster.keep_folder();
        println!("data and logs are in {}", kept.display());
    }
    Ok(report)
}
