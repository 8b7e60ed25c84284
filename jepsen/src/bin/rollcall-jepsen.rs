//! The lab from the command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rollcall_jepsen::campaign::{Findings, Options, Workload, run};
use rollcall_jepsen::history::{Exported, export};
use rollcall_jepsen::mutants::{Hunt, Program, hunt};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;

/// Judges Rollcall from outside: real servers, real faults, histories, and checkers that can fail.
#[derive(Debug, Parser)]
#[command(name = "rollcall-jepsen", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs workloads on a cluster of real servers while faults happen to it, and judges what came of it. As root each
    /// server has a network namespace of its own, and a disk; otherwise all share loopback, a proxy in this process stands
    /// between them, and what needs root is named and left out.
    Lab(LabArguments),
    /// Writes a history in another form.
    Export(ExportArguments),
    /// Seeks bugs that were planted on purpose: builds a server that can have them, has the lab and the tests look at each, and
    /// prints a table of who found what. Ends with 1 if one escaped.
    Mutants(MutantsArguments),
    /// Whole clusters in one process on simulated time, network and disk: runs rollcall-sim, which lies beside this program.
    #[command(disable_help_flag = true)]
    Sim {
        /// Its arguments: rollcall-jepsen sim --help tells of them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, clap::Args)]
struct MutantsArguments {
    /// Only this one; repeat it for more.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// At most so many seeds for each; otherwise as many as each is worth.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where histories go; made if it is not there.
    #[arg(long, default_value = "jepsen-out/mutants")]
    out: PathBuf,
    /// A server that was built before, with the feature mutants; otherwise one is built.
    #[arg(long)]
    server: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ExportArguments {
    /// The history of a run: history.jsonl in its folder.
    #[arg(long, value_name = "HISTORY.jsonl")]
    edn: PathBuf,
    /// Where it goes; otherwise next to it, with the ending edn.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct LabArguments {
    /// Decides everything that chance decides; drawn if it is not given. The same seed gives the same schedule.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on; the recovery and the last reads come on top.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many servers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    servers: u64,
    /// What runs, separated by commas: all (but storm, which runs alone), registers, heartbeats, followers, ap, guard,
    /// takeover, mode-switch, resumes, batches, retries, racers, ages, storm.
    #[arg(long, default_value = "all")]
    workload: String,
    /// What is done to the servers and their clients, separated by commas, and a minus before what is not (all,-clock): all, none, halves, single, bridge, ring,
    /// one-way, no-clients, no-gossip, loss, delay, mangle, narrow, reset, client-cut, client-loss, client-slow, pause, kill,
    /// kill-all, rolling-restart, rolling-upgrade, membership, resize, transfer, full-disk, power-loss, power-loss-all,
    /// hung-disk, dead-disk, sync-errors, torn-tail, lost-tail, bit-rot, starved, memory, descriptors, clock, clock-rate.
    #[arg(long, default_value = "all")]
    nemesis: String,
    /// A second server program: what rolling upgrades install.
    #[arg(long, value_name = "PATH")]
    upgrade_to: Option<PathBuf>,
    /// How registers are read: linearizable, leased, mixed (half of each), or local, under which the judges should find
    /// something.
    #[arg(long, default_value = "mixed", value_parser = read_mode)]
    reads: ReadMode,
    /// Clients of each workload.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=200))]
    clients: u64,
    /// Time to live of the sessions, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=600))]
    ttl: u64,
    /// Where the history and the page go; made if it is not there.
    #[arg(long, default_value = "jepsen-out")]
    out: PathBuf,
    /// The server program; otherwise the one next to this, or the one that ROLLCALLD names.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Loopback and the proxy also where this is root.
    #[arg(long)]
    loopback: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Lab(arguments) => lab(arguments).await,
        Command::Export(ExportArguments { edn, out }) => {
            let out = out.unwrap_or_else(|| edn.with_extension("edn"));
            let exported = write_edn(&edn, &out)?;
            println!(
                "{}: {} lines of operations, {} of faults; {} lines are about something else",
                out.display(),
                exported.operations,
                exported.faults,
                exported.left_out
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Mutants(arguments) => mutants(arguments).await,
        Command::Sim { arguments } => Err(simulate(&arguments)),
    }
}

/// Becomes the program that simulates; comes back only if it cannot.
fn simulate(arguments: &[OsString]) -> anyhow::Error {
    let beside = match std::env::current_exe() {
        Ok(this) => this.with_file_name("rollcall-sim"),
        Err(error) => return anyhow::Error::from(error).context("looking for this program"),
    };
    let failed = process::Command::new(&beside).args(arguments).exec();
    anyhow::Error::from(failed).context(format!(
        "starting {}; it is built with: cargo build --release -p rollcall-sim",
        beside.display()
    ))
}

async fn mutants(arguments: MutantsArguments) -> anyhow::Result<ExitCode> {
    let program = match &arguments.server {
        Some(path) => Program::at(path)?,
        None => Program::build()?,
    };
    let all_caught = hunt(&Hunt {
        program,
        only: arguments.only,
        seeds_max: arguments.seeds,
        first_seed: arguments.seed,
        out: arguments.out,
    })
    .await?;
    Ok(if all_caught {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn lab(arguments: LabArguments) -> anyhow::Result<ExitCode> {
    let seed = arguments.seed.unwrap_or_else(drawn);
    println!("seed {seed}");
    let options = Options {
        seed,
        length: Duration::from_secs(arguments.seconds),
        servers: arguments.servers,
        workloads: names(&arguments.workload, &Workload::TOGETHER)?,
        kinds: names(&arguments.nemesis, &Kind::ALL)?,
        reads: arguments.reads,
        clients: arguments.clients,
        ttl: Duration::from_secs(arguments.ttl),
        keep: true,
        folder: arguments.out,
        binary: arguments.server,
        upgrade_to: arguments.upgrade_to,
        loopback: arguments.loopback,
    };
    std::fs::create_dir_all(&options.folder)
        .with_context(|| format!("creating {}", options.folder.display()))?;
    let findings = run(&options).await?;
    let report = options.folder.join("report.html");
    std::fs::write(&report, page(&options, &findings)).context("writing the page")?;
    let history = options.folder.join("history.jsonl");
    write_edn(&history, &history.with_extension("edn"))?;
    print(&findings);
    println!("history and page are in {}", options.folder.display());
    Ok(if findings.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_edn(history: &Path, edn: &Path) -> anyhow::Result<Exported> {
    let lines = File::open(history).with_context(|| format!("opening {}", history.display()))?;
    let edn = File::create(edn).with_context(|| format!("creating {}", edn.display()))?;
    export(BufReader::new(lines), BufWriter::new(edn))
        .with_context(|| format!("exporting {}", history.display()))
}

fn read_mode(name: &str) -> Result<ReadMode, String> {
    match name {
        "linearizable" => Ok(ReadMode::Linearizable),
        "leased" => Ok(ReadMode::Leased),
        "mixed" => Ok(ReadMode::Unspecified),
        "local" => Ok(ReadMode::Local),
        _ => Err("there are: linearizable, leased, mixed, local".into()),
    }
}

/// From the machine's randomness, by the seeds of the standard library's hashers.
fn drawn() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % 1_000_000_000
}

fn names<T: FromStr<Err = String> + Copy + Ord>(list: &str, all: &[T]) -> anyhow::Result<Vec<T>> {
    let mut chosen = BTreeSet::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "all" => chosen.extend(all.iter().copied()),
            "none" => {}
            name if name.starts_with('-') => {
                chosen.remove(&name[1..].parse().map_err(anyhow::Error::msg)?);
            }
            name => drop(chosen.insert(name.parse().map_err(anyhow::Error::msg)?)),
        }
    }
    Ok(chosen.into_iter().collect())
}

fn print(findings: &Findings) {
    for figure in &findings.figures {
        println!("{figure}");
    }
    for verdict in &findings.verdicts {
        let found = (verdict.findings.len(), verdict.undecided.len(), verdict.judged);
        let found = match found {
            (0, 0, 0) => "HAD NOTHING TO JUDGE".to_owned(),
            (0, 0, _) => "no violation".to_owned(),
            (found, undecided, _) => format!("{found} VIOLATIONS, {undecided} undecided"),
        };
        println!(
            "{}: {found} in {} ({})",
            verdict.checker,
            verdict.judged,
            verdict.figures.join("; ")
        );
        for finding in &verdict.findings {
            println!("  at {:?}: {}", finding.at, finding.what);
        }
        for undecided in &verdict.undecided {
            println!("  undecided: {undecided}");
        }
    }
}
