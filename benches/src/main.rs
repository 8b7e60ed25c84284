//! The outside judge of speed: Rollcall side by side with what users would pick instead, on this machine, with the same
//! load. `scripts/bench.sh` installs the others and runs this; `benches/README.md` says what is measured and how.

mod bare;
mod board;
mod cluster;
mod course;
mod drive;
mod machine;
mod product;
mod report;
mod results;
mod server;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Mutex;

use crate::product::Programs;
use crate::results::{Entrant, Results};
use crate::workload::{Hold, Sizes};

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Measures, and writes results and report
    Compare(Compare),
    /// Writes the report of results that are there
    Report {
        /// What `compare` wrote
        results: PathBuf,
        #[arg(long, default_value = "benches")]
        report: PathBuf,
    },
    /// A client that is going to be killed
    #[command(hide = true)]
    Hold(Hold),
    /// The bare machine's echo
    #[command(hide = true)]
    Bare,
}

#[derive(clap::Args)]
struct Compare {
    /// How much of everything
    #[arg(long, value_enum, default_value = "standard")]
    scale: Scale,
    /// Only these, separated by commas: beginnings of workloads' names, names of products
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The server to measure
    #[arg(long, default_value = "target/release/rollcalld")]
    rollcalld: PathBuf,
    /// Where scripts/bench-peers.sh has put the others
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    /// Servers' folders, on the disk that is to be synced
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Results as JSON
    #[arg(long, default_value = "target/bench.json")]
    results: PathBuf,
    /// Folder of README.md and plots to renew; without it, the table is only printed
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scale {
    /// To see that all works: a minute or two, figures of no worth
    Quick,
    /// All rows of the table
    Standard,
    /// The same, with more runs and longer ones
    Full,
}

impl Scale {
    fn sizes(self) -> Sizes {
        let standard = Sizes {
            runs: 3,
            slow_runs: 3,
            connections: 64,
            depth: 16,
            nodes: 20_000,
            batch: 100,
            metadata_bytes: 200,
            window_ms: 1_000,
            processes: 5_000,
            paced_interval_ms: 5_000,
            watchers: 1_000,
            watchers_many: 5_000,
            changes: 5,
            burst: 1_000,
            stored: 100_000,
            expiring: 1_000,
            ttl_s: 30,
            short_ttl_s: 10,
        };
        match self {
            Self::Quick => Sizes {
                runs: 1,
                slow_runs: 1,
                connections: 16,
                nodes: 1_000,
                window_ms: 200,
                processes: 100,
                paced_interval_ms: 1_000,
                watchers: 80,
                watchers_many: 160,
                changes: 2,
                burst: 50,
                stored: 5_000,
                expiring: 100,
                short_ttl_s: 4,
                ..standard
            },
            Self::Standard => standard,
            Self::Full => Sizes {
                runs: 5,
                slow_runs: 5,
                window_ms: 5_000,
                changes: 20,
                ..standard
            },
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    raise_file_limit();
    if matches!(arguments.command, What::Bare) {
        return bare::serve();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            What::Hold(hold) => workload::hold(hold).await,
            What::Report { results, report } => {
                let results: Results = serde_json::from_slice(&std::fs::read(results)?)?;
                report::write(&results, &report)
            }
            What::Compare(compare) => run(compare).await,
            What::Bare => Ok(()),
        }
    })
}

/// Thousands of connections here, and in the servers, which inherit it.
fn raise_file_limit() {
    const WANTED: u64 = 65_536;
    let had = getrlimit(Resource::Nofile);
    let limits = [
        had.maximum.map_or(WANTED, |maximum| maximum.max(WANTED)),
        had.maximum.unwrap_or(WANTED),
    ];
    for maximum in limits {
        let limit = Rlimit {
            current: Some(maximum.min(WANTED)),
            maximum: Some(maximum),
        };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}

async fn run(compare: Compare) -> Result<()> {
    let started = Instant::now();
    let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| format!("{}", path.display()));
    let programs = Programs {
        peers: absolute(&compare.peers)?,
        rollcalld: absolute(&compare.rollcalld)?,
    };
    let data = absolute(&compare.data)?;
    std::fs::create_dir_all(&data)?;
    let all = product::all();
    let is_product = |name: &String| {
        all.iter()
            .any(|product| product.name().eq_ignore_ascii_case(name))
    };
    let (named, only): (Vec<_>, Vec<_>) = compare.only.iter().cloned().partition(is_product);
    let sizes = compare.scale.sizes();
    let mut results = Results {
        began: began(),
        machine: serde_json::to_value(machine::Machine::here()?)?,
        scale: format!("{:?}", compare.scale).to_lowercase(),
        sizes: serde_json::to_value(&sizes)?,
        ..Results::default()
    };
    let mut products = Vec::new();
    for product in &all {
        if !named.is_empty() && !named.iter().any(|name| name.eq_ignore_ascii_case(product.name())) {
            continue;
        }
        match product.version(&programs) {
            Ok(version) => {
                results.entrants.push(Entrant {
                    product: product.name().to_owned(),
                    version,
                    settings: product.settings().to_owned(),
                });
                products.push(Arc::clone(product));
            }
            Err(error) => {
                eprintln!("{} is left out: {error:#}", product.name());
                results
                    .absent
                    .insert(product.name().to_owned(), format!("{error:#}"));
            }
        }
    }
    let results = Arc::new(Mutex::new(results));
    let ground = workload::Ground::new(sizes, Arc::clone(&results), only);
    bare::measure(&ground, &data).await;
    course::run(&ground, &products, &programs, &data).await;
    let mut results = results.lock().await;
    results.took_s = started.elapsed().as_secs_f64().round();
    if let Some(folder) = compare.results.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&compare.results, serde_json::to_vec_pretty(&*results)?)?;
    println!("{}", report::table(&results));
    println!(
        "results are in {}, after {} s",
        compare.results.display(),
        results.took_s
    );
    if let Some(folder) = &compare.report {
        report::write(&results, folder)?;
    }
    Ok(())
}

/// The date, as the system says it.
fn began() -> String {
    let said = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%d %H:%M UTC"])
        .output();
    said.map_or_else(
        |_| String::new(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}
