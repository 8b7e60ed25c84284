//! Simulated clusters from the command line.

mod told;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rollcall_sim::mutants::{Hunt, hunt};
use rollcall_sim::{Alone, Findings, Options, REFUSED, Results, Totals, campaign, missing, run, shrink};

/// Attempts at a smaller plan for a seed that fails.
const ATTEMPTS: u64 = 60;

/// Runs clusters of real servers on simulated time, network and disk. Everything follows from a seed.
#[derive(Debug, Parser)]
#[command(name = "rollcall-sim", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    seeds: SeedArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Seeks bugs that were planted on purpose, and prints a table of who found what. Ends with 1 if one escaped. Needs the
    /// feature mutants.
    Mutants(MutantsArguments),
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
    /// How many seeds at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// How long a seed may take, in seconds.
    #[arg(long, default_value_t = 600)]
    wall_seconds: u64,
}

#[derive(Debug, clap::Args)]
struct SeedArguments {
    /// The first seed; drawn if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, from the first on; each runs in a process of its own.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// How long a seed may take, in seconds; beyond, it is ended, and that is a finding.
    #[arg(long, default_value_t = 600)]
    wall_seconds: u64,
    /// Writes a line of JSON for each seed into a file: its options, violations, figures, digest.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Goes on with a campaign that was cut: runs only the seeds that the results do not hold yet, and counts those in.
    /// Otherwise results are begun anew.
    #[arg(long, requires = "results")]
    resume: bool,
    /// How long faults and load go on, in simulated milliseconds; the end in peace comes on top.
    #[arg(long, default_value_t = 15_000)]
    length_ms: u64,
    /// How many servers; otherwise the seed chooses 3 or 5.
    #[arg(long)]
    servers: Option<usize>,
    /// Clients of each workload.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    clients: u64,
    /// What runs, separated by commas: all (but storm), none, registers, heartbeats, followers, ap, guard, takeover,
    /// mode-switch, resumes, batches, retries, racers, ages, storm; otherwise the first three and what the seed adds, or a
    /// storm.
    #[arg(long, value_delimiter = ',')]
    workload: Option<Vec<String>>,
    /// What is done, separated by commas: none, single, halves, bridge, ring, mute, deaf, slow, lossy, kill, kill-all,
    /// power, power-all, pause, clock, slow-disk, failing-disk, restart; otherwise the seed chooses some.
    #[arg(long, value_delimiter = ',')]
    nemesis: Option<Vec<String>>,
    /// Only these faults of the plan, by their numbers, separated by commas, or none.
    #[arg(long)]
    faults: Option<String>,
    /// How registers are read: linearizable, leased, or local, under which the judges should find something; otherwise
    /// the seed chooses one of the first two.
    #[arg(long)]
    reads: Option<String>,
    /// Runs each seed twice and compares everything that happened.
    #[arg(long)]
    twice: bool,
    /// Does not look for a smaller plan when a seed fails.
    #[arg(long)]
    no_shrink: bool,
    /// Writes the history of one seed into a file, in the form of the lab's.
    #[arg(long, conflicts_with_all = ["seeds", "results"])]
    history: Option<PathBuf>,
    /// Prints what came of one seed as a line of JSON, and nothing else.
    #[arg(long, conflicts_with_all = ["seeds", "results", "twice"])]
    json: bool,
    /// Ends when the process does that started it.
    #[arg(long, hide = true)]
    ends_with_parent: bool,
    /// A bug that is planted in the servers, to see whether it is found. Needs the feature mutants.
    #[arg(long)]
    mutant: Option<String>,
}

impl SeedArguments {
    fn options(&self) -> anyhow::Result<Options> {
        let numbers = |list: &String| -> anyhow::Result<Vec<usize>> {
            let numbers = list.split(',').filter(|number| *number != "none");
            Ok(numbers
                .map(|number| number.trim().parse())
                .collect::<Result<_, _>>()?)
        };
        Ok(Options {
            length: Duration::from_millis(self.length_ms),
            servers: self.servers,
            clients: self.clients,
            workloads: self.workload.clone(),
            kinds: self.nemesis.clone(),
            faults: self.faults.as_ref().map(numbers).transpose()?,
            reads: self.reads.clone(),
            mutant: self.mutant.clone(),
        })
    }
}

/// From the machine's randomness, by the seeds of the standard library's hashers.
fn drawn() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % 1_000_000_000
}

/// Runs seeds with this program, in processes of their own.
fn alone(wall_seconds: u64) -> anyhow::Result<Alone> {
    let program = std::env::current_exe().context("looking for this program")?;
    Ok(Alone::new(program, Duration::from_secs(wall_seconds)))
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Command::Mutants(of)) = arguments.command {
        let hunt_for = Hunt {
            only: of.only,
            seeds_max: of.seeds,
            first_seed: of.seed,
            jobs: of.jobs,
            alone: alone(of.wall_seconds)?,
        };
        return Ok(code(hunt(&hunt_for)?));
    }
    let arguments = arguments.seeds;
    let options = arguments.options()?;
    if arguments.seeds > 1 || arguments.results.is_some() {
        return many(&options, &arguments);
    }
    let seed = arguments.seed.unwrap_or_else(drawn);
    if arguments.json {
        return Ok(here(seed, &options, &arguments));
    }
    println!("seed {seed}");
    one(seed, &options, &arguments)
}

/// Runs a seed in this process, the first and the last of it.
fn here(seed: u64, options: &Options, arguments: &SeedArguments) -> ExitCode {
    if arguments.ends_with_parent {
        // Without it the process goes on to its end; that is all.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let began = Instant::now();
    let found = run(seed, options, arguments.history.as_deref()).and_then(|findings| {
        Ok(serde_json::to_string(&Findings {
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..findings
        })?)
    });
    match found {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(u8::try_from(REFUSED).unwrap_or(u8::MAX))
        }
    }
}

fn one(seed: u64, options: &Options, arguments: &SeedArguments) -> anyhow::Result<ExitCode> {
    let alone = alone(arguments.wall_seconds)?;
    let speaking = Alone {
        speaks: true,
        history: arguments.history.clone(),
        ..alone.clone()
    };
    let findings = speaking.run(seed, options)?;
    told::one(&findings);
    if arguments.twice {
        let again = alone.run(seed, options)?;
        println!("the second run has digest {}", again.digest);
        if (&again.digest, again.events) != (&findings.digest, findings.events) {
            println!("THE RUNS DIFFER");
            return Ok(ExitCode::FAILURE);
        }
    }
    let good = findings.is_good();
    if !good {
        explain(findings, options, &alone, arguments)?;
    }
    Ok(code(good))
}

fn many(options: &Options, arguments: &SeedArguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let alone = alone(arguments.wall_seconds)?;
    let mut totals = Totals::default();
    let mut failures = Vec::new();
    let (mut results, done) = match &arguments.results {
        None => (None, Vec::new()),
        Some(path) if arguments.resume => {
            let (results, done) = Results::resume(path, options)?;
            (Some(results), done)
        }
        Some(path) => (Some(Results::create(path, options)?), Vec::new()),
    };
    let known = done.iter().map(|findings| findings.seed).min();
    let first = arguments.seed.or(known).unwrap_or_else(drawn);
    println!("seed {first}");
    let bar = ProgressBar::new(arguments.seeds);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left {msg}",
    )?);
    let range = first..first.saturating_add(arguments.seeds);
    for findings in done.iter().filter(|findings| range.contains(&findings.seed)) {
        totals.add(findings);
    }
    if totals.seeds > 0 {
        println!(
            "{} seeds are done, {} of them failed",
            totals.seeds,
            totals.failed.len()
        );
    }
    bar.set_position(totals.seeds);
    bar.reset_eta();
    let mut differ = Vec::new();
    campaign(
        &missing(range, &done),
        arguments.jobs,
        options,
        &alone,
        |findings| {
            totals.add(findings);
            if let Some(results) = &mut results {
                results.add(findings)?;
            }
            bar.inc(1);
            bar.set_message(format!("{} failed", totals.failed.len()));
            if !findings.is_good() {
                let violations: Vec<_> = findings.violations.iter().map(ToString::to_string).collect();
                bar.suspend(|| println!("seed {}: {}", findings.seed, violations.join("\n  ")));
                failures.push(findings.clone());
            }
            if arguments.twice && alone.run(findings.seed, options)?.digest != findings.digest {
                differ.push(findings.seed);
            }
            Ok(())
        },
    )?;
    bar.finish();
    told::totals(&totals, began.elapsed());
    if !differ.is_empty() {
        println!("SEEDS WHOSE SECOND RUN DIFFERS: {differ:?}");
    }
    for idle in totals.idle() {
        println!("HAD NOTHING TO JUDGE in any seed: {idle}");
    }
    // One is explained; the others are likely of the same kind, and their seeds are printed.
    if let Some(findings) = failures.into_iter().next() {
        explain(findings, options, &alone, arguments)?;
    }
    Ok(code(
        totals.failed.is_empty() && differ.is_empty() && totals.idle().is_empty(),
    ))
}

/// Runs again with less and less, and prints the smallest that still fails.
fn explain(
    findings: Findings,
    options: &Options,
    alone: &Alone,
    arguments: &SeedArguments,
) -> anyhow::Result<()> {
    let seed = findings.seed;
    if arguments.no_shrink {
        println!("replay with: {}", options.command_line(seed));
        return Ok(());
    }
    println!("seed {seed} fails; looking for a smaller plan");
    let smaller = shrink(findings, options, alone, ATTEMPTS)?;
    println!("the smallest found in {} runs:", smaller.attempts);
    told::failure(&smaller.findings);
    println!("replay with: {}", smaller.options.command_line(seed));
    Ok(())
}
