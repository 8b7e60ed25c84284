//! Simulated clusters from the command line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rollcall_sim::{Findings, Options, Totals, campaign, run, shrink};

/// Runs clusters of real servers on simulated time, network and disk. Everything follows from a seed.
#[derive(Debug, Parser)]
#[command(name = "rollcall-sim", version)]
struct Arguments {
    /// The first seed; drawn if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, from the first on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// How long faults and load go on, in simulated milliseconds; the end in peace comes on top.
    #[arg(long, default_value_t = 15_000)]
    length_ms: u64,
    /// How many servers; otherwise the seed chooses 3 or 5.
    #[arg(long)]
    servers: Option<usize>,
    /// Clients of each workload.
    #[arg(long, default_value_t = 2)]
    clients: u64,
    /// What runs, separated by commas: registers, heartbeats, followers, ap, takeover; otherwise the first three.
    #[arg(long, value_delimiter = ',')]
    workload: Option<Vec<String>>,
    /// What is done, separated by commas: single, halves, bridge, ring, mute, deaf, slow, lossy, kill, kill-all, power,
    /// power-all, pause, clock, slow-disk, failing-disk, restart; otherwise the seed chooses some.
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
    /// A bug that is planted in the servers, to see whether it is found. Needs the feature mutants.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<rollcall_core::mutants::Mutant>,
}

fn options(arguments: &Arguments) -> anyhow::Result<Options> {
    let numbers = |list: &String| -> anyhow::Result<Vec<usize>> {
        let numbers = list.split(',').filter(|number| *number != "none");
        Ok(numbers
            .map(|number| number.trim().parse())
            .collect::<Result<_, _>>()?)
    };
    Ok(Options {
        length: Duration::from_millis(arguments.length_ms),
        servers: arguments.servers,
        clients: arguments.clients,
        workloads: arguments.workload.clone(),
        kinds: arguments.nemesis.clone(),
        faults: arguments.faults.as_ref().map(numbers).transpose()?,
        reads: arguments.reads.clone(),
    })
}

/// From the machine's randomness, by the seeds of the standard library's hashers.
fn drawn() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % 1_000_000_000
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    #[cfg(feature = "mutants")]
    rollcall_core::mutants::plant(arguments.mutant);
    let options = options(&arguments)?;
    let first = arguments.seed.unwrap_or_else(drawn);
    println!("seed {first}");
    if arguments.seeds == 1 {
        one(first, &options, &arguments)
    } else {
        many(first, &options, &arguments)
    }
}

fn one(seed: u64, options: &Options, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let findings = run(seed, options)?;
    print(&findings, began.elapsed());
    if arguments.twice {
        let again = run(seed, options)?;
        println!("the second run has digest {:016x}", again.digest);
        if (again.digest, again.events) != (findings.digest, findings.events) {
            println!("THE RUNS DIFFER");
            return Ok(ExitCode::FAILURE);
        }
    }
    if findings.is_good() {
        return Ok(ExitCode::SUCCESS);
    }
    explain(findings, options, arguments)?;
    Ok(ExitCode::FAILURE)
}

fn many(first: u64, options: &Options, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let bar = ProgressBar::new(arguments.seeds);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left {msg}",
    )?);
    let mut failures = Vec::new();
    let mut differ = Vec::new();
    let each = |findings: &Findings, totals: &Totals| {
        bar.inc(1);
        bar.set_message(format!("{} failed", totals.failed.len()));
        if !findings.is_good() {
            bar.println(format!(
                "seed {}: {}",
                findings.seed,
                findings.violations.join("\n  ")
            ));
            failures.push(findings.clone());
        }
        if arguments.twice
            && run(findings.seed, options).map_or(true, |again| again.digest != findings.digest)
        {
            differ.push(findings.seed);
        }
    };
    let totals = campaign(first, arguments.seeds, arguments.jobs, options, each)?;
    bar.finish();
    println!(
        "{} seeds in {:.1} s, {:.2} hours of simulated time; {} failed, {} things undecided",
        totals.seeds,
        began.elapsed().as_secs_f64(),
        totals.simulated.as_secs_f64() / 3_600.0,
        totals.failed.len(),
        totals.undecided
    );
    println!("faults: {}", listed(totals.faults.iter()));
    println!("{}", listed(totals.figures.iter()));
    if !differ.is_empty() {
        println!("SEEDS WHOSE SECOND RUN DIFFERS: {differ:?}");
    }
    println!("failed seeds: {:?}", totals.failed);
    // One is explained; the others are likely of the same kind, and their seeds are printed.
    if let Some(findings) = failures.into_iter().next() {
        explain(findings, options, arguments)?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(if differ.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn listed<'a>(of: impl Iterator<Item = (&'a &'static str, &'a u64)>) -> String {
    let parts: Vec<_> = of.map(|(name, count)| format!("{name} {count}")).collect();
    parts.join(", ")
}

fn print(findings: &Findings, took: Duration) {
    println!(
        "digest {:016x} of {} events; {:.1} s of simulated time in {took:.1?}",
        findings.digest,
        findings.events,
        findings.simulated.as_secs_f64()
    );
    for (_, planned) in &findings.plan {
        println!("  {planned}");
    }
    println!("{}", listed(findings.figures.iter()));
    for verdict in &findings.verdicts {
        println!(
            "{}: {} findings in {} ({})",
            verdict.checker,
            verdict.findings.len(),
            verdict.judged,
            verdict.figures.join("; ")
        );
    }
    for undecided in &findings.undecided {
        println!("undecided: {undecided}");
    }
    for violation in &findings.violations {
        println!("VIOLATION {violation}");
    }
}

/// Runs again with less and less, and prints the smallest that still fails.
fn explain(findings: Findings, options: &Options, arguments: &Arguments) -> anyhow::Result<()> {
    const ATTEMPTS: u64 = 60;
    let seed = findings.seed;
    if arguments.no_shrink {
        println!("replay with: {}", options.command_line(seed));
        return Ok(());
    }
    println!("seed {seed} fails; looking for a smaller plan");
    let smaller = shrink(findings, options, ATTEMPTS)?;
    println!("the smallest found in {} runs:", smaller.attempts);
    for (_, planned) in &smaller.findings.plan {
        println!("  {planned}");
    }
    for violation in &smaller.findings.violations {
        println!("  VIOLATION {violation}");
    }
    println!("replay with: {}", smaller.options.command_line(seed));
    Ok(())
}
