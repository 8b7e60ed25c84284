//! Findings and totals in words.

use std::time::Duration;

use rollcall_sim::{Findings, Totals};

fn listed<'a>(of: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    let parts: Vec<_> = of.map(|(name, count)| format!("{name} {count}")).collect();
    parts.join(", ")
}

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}

/// Everything about one seed.
pub(crate) fn one(findings: &Findings) {
    println!(
        "digest {} of {} events; {:.1} s of simulated time in {:.1} s",
        findings.digest,
        findings.events,
        seconds(findings.simulated_ms),
        seconds(findings.took_ms)
    );
    println!("workloads: {}", findings.workloads.join(", "));
    for (_, planned) in &findings.plan {
        println!("  {planned}");
    }
    println!("{}", listed(findings.figures.iter()));
    for of in &findings.judged {
        let found = match (of.findings, of.judged) {
            (0, 0) => "had nothing to judge".to_owned(),
            (found, judged) => format!("{found} findings in {judged}"),
        };
        println!("{}: {found} ({})", of.checker, of.figures.join("; "));
    }
    for undecided in &findings.undecided {
        println!("undecided: {undecided}");
    }
    for violation in &findings.violations {
        println!("VIOLATION {violation}");
    }
}

/// What fails, and under what.
pub(crate) fn failure(findings: &Findings) {
    println!("  workloads: {}", findings.workloads.join(", "));
    for (_, planned) in &findings.plan {
        println!("  {planned}");
    }
    for violation in &findings.violations {
        println!("  VIOLATION {violation}");
    }
}

/// What many seeds came to. `took`: this time.
pub(crate) fn totals(totals: &Totals, took: Duration) {
    println!(
        "{} seeds, {:.2} hours of simulated time; {} failed, {} things undecided; {:.1} s, and {:.2} s of a process for \
         each seed",
        totals.seeds,
        seconds(totals.simulated_ms) / 3_600.0,
        totals.failed.len(),
        totals.undecided,
        took.as_secs_f64(),
        seconds(totals.took_ms) / totals.seeds.max(1) as f64
    );
    println!("faults: {}", listed(totals.faults.iter()));
    println!("seeds by what ran in them: {}", listed(totals.workloads.iter()));
    for (checker, (seeds, judged)) in &totals.judged {
        println!("{checker}: {judged} judged in {seeds} seeds");
    }
    println!("{}", listed(totals.figures.iter()));
    println!("failed seeds: {:?}", totals.failed);
}
