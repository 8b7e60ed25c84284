//! Bugs planted on purpose: what is to show each, and who found it.
//!
//! Every mutant is sought by the smallest workload and faults that should show it, seed by seed up to a bound. The control
//! is the same server without a bug under the same seeds: where that is not clean, nothing is proven.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use rollcall_core::mutants::Mutant;

use crate::alone::Alone;
use crate::disk;
use crate::findings::Findings;
use crate::options::Options;

/// What to seek.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Only these; empty: all that can show here.
    pub only: Vec<String>,
    /// At most so many seeds for each; `None`: as many as each is worth.
    pub seeds_max: Option<u64>,
    /// The first seed.
    pub first_seed: u64,
    /// How many at a time.
    pub jobs: usize,
    /// A program that was built with the feature `mutants`.
    pub alone: Alone,
}

/// One mutant and how it is sought.
#[derive(Clone, Debug)]
struct Sought {
    mutant: Mutant,
    options: Options,
    seeds_max: u64,
}

/// Mutants that no judge of the simulation can tell, and why.
const ELSEWHERE: [(Mutant, &str); 2] = [
    (
        Mutant::SecondAckUnasked,
        "judges go by what clients were told, and cannot tell on whose disks a write is",
    ),
    (
        Mutant::WallClockWins,
        "where a wall clock is behind, nothing is asked of who was last",
    ),
];

/// Whom to seek by what: workloads, faults, how long, with how many seeds at most.
fn sought() -> Vec<Sought> {
    let cut = &["single", "halves", "mute", "deaf"][..];
    let calm = &["none"][..];
    let of = |mutant, workload: &str, kinds: &[&str], seconds, seeds_max| Sought {
        mutant,
        options: Options {
            length: Duration::from_secs(seconds),
            servers: Some(3),
            clients: 3,
            workloads: Some(vec![workload.to_owned()]),
            kinds: Some(kinds.iter().map(|kind| (*kind).to_owned()).collect()),
            ..Options::default()
        },
        seeds_max,
    };
    let mut all = vec![
        of(Mutant::SkipFsync, "registers", &["power", "power-all"], 15, 40),
        of(
            Mutant::ForgetVote,
            "registers",
            &["kill", "kill-all", "restart"],
            20,
            100,
        ),
        of(Mutant::ForgetTail, "registers", &["kill", "kill-all"], 15, 40),
        of(Mutant::DivergentApply, "registers", calm, 8, 10),
        of(Mutant::StaleRead, "registers", cut, 15, 40),
        of(
            Mutant::EndlessLease,
            "registers",
            &["single", "deaf", "pause"],
            20,
            100,
        ),
        of(Mutant::IgnoreExpected, "registers", calm, 8, 10),
        of(Mutant::ForgetRequests, "retries", calm, 8, 10),
        of(Mutant::PartialBatch, "batches", calm, 8, 10),
        of(Mutant::UnrecordedHeartbeat, "heartbeats", calm, 10, 10),
        of(Mutant::DeposedHeartbeat, "heartbeats", cut, 20, 60),
        of(Mutant::LateHeartbeat, "racers", calm, 15, 40),
        of(Mutant::DeposedExpiry, "heartbeats", cut, 20, 60),
        of(Mutant::BlameForPause, "heartbeats", &["pause"], 20, 20),
        of(Mutant::TakeoverForgotten, "takeover", calm, 10, 10),
        of(Mutant::DropEvent, "followers", calm, 8, 10),
        of(Mutant::ResumeOffByOne, "resumes", calm, 10, 10),
        of(Mutant::GuardWithoutShare, "guard", calm, 25, 10),
        of(
            Mutant::GuardForgets,
            "guard",
            &["kill", "restart", "single"],
            30,
            40,
        ),
        of(Mutant::UnstoredAck, "ap", &["kill", "kill-all"], 15, 40),
        of(Mutant::Resurrect, "ap", &["single", "halves"], 20, 40),
        of(Mutant::UnfrozenMove, "mode-switch", calm, 20, 40),
        of(Mutant::StormUnrationed, "storm", calm, 20, 6),
    ];
    for of in &mut all {
        match of.mutant {
            Mutant::StaleRead => of.options.reads = Some("linearizable".into()),
            Mutant::EndlessLease => of.options.reads = Some("leased".into()),
            Mutant::BlameForPause => of.options.servers = Some(1),
            _ => {}
        }
    }
    all
}

/// Seeks them, telling how it goes, and prints the table. Whether all were caught, under seeds that are clean without them.
///
/// # Errors
/// The program was built without mutants, or one is asked for that is not sought.
pub fn hunt(hunt: &Hunt) -> anyhow::Result<bool> {
    ensure!(
        cfg!(feature = "mutants"),
        "mutants are not in this program; build it with --features mutants"
    );
    let mut chosen = sought();
    for name in &hunt.only {
        let mutant: Mutant = name.parse()?;
        if let Some((_, why)) = ELSEWHERE.iter().find(|(of, _)| *of == mutant) {
            anyhow::bail!("{name} is not sought here: {why}");
        }
    }
    chosen.retain(|of| hunt.only.is_empty() || hunt.only.iter().any(|name| name == of.mutant.name()));
    disk::clear_all();
    let controls = Controls::default();
    let rows: Mutex<Vec<Row>> = Mutex::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..hunt.jobs.max(1))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    while let Some(of) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let row = seek(hunt, of, &controls).with_context(|| of.mutant.name())?;
                        println!("{}: {}", row.mutant, row.says());
                        lock(&rows).push(row);
                    }
                    Ok(())
                })
            })
            .collect();
        for lane in lanes {
            match lane.join() {
                Ok(ended) => ended?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        anyhow::Ok(())
    })?;
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|row| chosen.iter().position(|of| of.mutant.name() == row.mutant));
    println!("\n{HEAD}");
    for row in &rows {
        println!("{row}");
    }
    let caught = rows.iter().filter(|row| row.is_caught()).count();
    println!(
        "\n{caught} of {} caught; {} runs without a mutant",
        rows.len(),
        lock(&controls.0).len()
    );
    for (mutant, why) in ELSEWHERE {
        println!("{} is not sought here: {why}", mutant.name());
    }
    Ok(caught == rows.len())
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was found without a mutant, by options and seed; `None`: nothing.
#[derive(Default)]
struct Controls(Mutex<BTreeMap<(String, u64), Option<String>>>);

impl Controls {
    fn run(&self, alone: &Alone, seed: u64, options: &Options) -> anyhow::Result<Option<String>> {
        let key = (options.arguments().join(" "), seed);
        if let Some(known) = lock(&self.0).get(&key) {
            return Ok(known.clone());
        }
        let findings = alone.run(seed, options)?;
        let found = unclean(&findings);
        lock(&self.0).insert(key, found.clone());
        Ok(found)
    }
}

/// A control that had nothing to judge proves as little as one that found something.
fn unclean(findings: &Findings) -> Option<String> {
    if let Some(violation) = findings.violations.first() {
        return Some(violation.to_string());
    }
    let idle = findings.judged.iter().find(|of| of.judged == 0);
    idle.map(|of| format!("{} had nothing to judge", of.checker))
}

fn seek(hunt: &Hunt, of: &Sought, controls: &Controls) -> anyhow::Result<Row> {
    let with = Options {
        mutant: Some(of.mutant.name().to_owned()),
        ..of.options.clone()
    };
    let mut row = Row {
        mutant: of.mutant.name(),
        breaks: of.mutant.breaks(),
        trial: describe(&of.options),
        caught: None,
        unclean: None,
        seeds: 0,
        simulated_ms: 0,
        took_ms: 0,
    };
    let seeds_max = hunt.seeds_max.unwrap_or(of.seeds_max).max(1);
    for seed in hunt.first_seed..hunt.first_seed.saturating_add(seeds_max) {
        let findings = hunt.alone.run(seed, &with)?;
        row.seeds += 1;
        row.simulated_ms += findings.simulated_ms;
        row.took_ms += findings.took_ms;
        if row.unclean.is_none() {
            let found = controls.run(&hunt.alone, seed, &of.options)?;
            row.unclean = found.map(|what| format!("seed {seed}: {what}"));
        }
        if let Some(violation) = findings.violations.first() {
            row.caught = Some(Caught {
                by: findings.finders().join(", "),
                what: violation.what.lines().next().unwrap_or_default().to_owned(),
                seed,
            });
            break;
        }
    }
    Ok(row)
}

fn describe(options: &Options) -> String {
    let list = |names: &Option<Vec<String>>| names.as_deref().unwrap_or_default().join(", ");
    let kinds = list(&options.kinds);
    let kinds = if kinds == "none" { "no faults" } else { &kinds };
    let reads = options.reads.as_ref().filter(|reads| *reads == "leased");
    let servers = options.servers.filter(|servers| *servers != 3);
    format!(
        "{}{}{}; {kinds}; {} s",
        list(&options.workloads),
        reads.map(|reads| format!(", {reads}")).unwrap_or_default(),
        servers
            .map(|servers| format!(", {servers} server"))
            .unwrap_or_default(),
        options.length.as_secs()
    )
}

/// What became of one mutant.
#[derive(Debug)]
struct Row {
    mutant: &'static str,
    breaks: &'static str,
    trial: String,
    caught: Option<Caught>,
    /// What the same seeds find without it.
    unclean: Option<String>,
    seeds: u64,
    simulated_ms: u64,
    took_ms: u64,
}

#[derive(Debug)]
struct Caught {
    by: String,
    what: String,
    seed: u64,
}

const HEAD: &str = "| mutant | what it does | sought by | caught by | seeds | simulated s | s |\n|---|---|---|---|---|---|---|";

impl Row {
    fn is_caught(&self) -> bool {
        self.caught.is_some() && self.unclean.is_none()
    }

    fn says(&self) -> String {
        let caught = match &self.caught {
            Some(caught) => format!("seed {}, by {}: {}", caught.seed, caught.by, caught.what),
            None => format!("ESCAPED {} seeds", self.seeds),
        };
        match &self.unclean {
            Some(why) => format!("{caught}; NOT CLEAN WITHOUT IT: {why}"),
            None => caught,
        }
    }
}

impl fmt::Display for Row {
    /// A line of a table in Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match (&self.caught, &self.unclean) {
            (Some(caught), None) => caught.by.as_str(),
            (Some(_), Some(_)) => "**not proven**: so is a server without it",
            (None, _) => "**escaped**",
        };
        write!(
            f,
            "| `{}` | {} | {} | {by} | {} | {} | {} |",
            self.mutant,
            self.breaks,
            self.trial,
            self.seeds,
            self.simulated_ms / 1_000,
            self.took_ms / 1_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Setting;

    #[test]
    fn every_mutant_is_sought_once_or_is_known_not_to_show() {
        let sought = sought();
        for mutant in Mutant::ALL {
            let here = sought.iter().filter(|of| of.mutant == *mutant).count();
            let elsewhere = ELSEWHERE.iter().filter(|(of, _)| of == mutant).count();
            assert_eq!(here + elsewhere, 1, "{}", mutant.name());
        }
    }

    #[test]
    fn trials_can_be_set() {
        for of in sought() {
            assert!(Setting::new(1, &of.options).is_ok(), "{:?}", of.options);
        }
    }

    #[test]
    fn one_that_escaped_or_is_not_proven_cannot_be_overlooked() {
        let row = Row {
            mutant: "skip-fsync",
            breaks: "it does not sync",
            trial: "registers; power; 15 s".into(),
            caught: None,
            unclean: None,
            seeds: 40,
            simulated_ms: 61_500,
            took_ms: 1_000,
        };
        assert_eq!(
            row.to_string(),
            "| `skip-fsync` | it does not sync | registers; power; 15 s | **escaped** | 40 | 61 | 1 |"
        );
        assert!(!row.is_caught());
        let unclean = Row {
            caught: Some(Caught {
                by: "sessions".into(),
                what: "too early".into(),
                seed: 4,
            }),
            unclean: Some("seed 4: too early".into()),
            ..row
        };
        assert!(!unclean.is_caught() && unclean.to_string().contains("not proven"));
    }
}
