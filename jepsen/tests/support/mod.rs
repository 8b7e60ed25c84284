//! What the tests of whole runs share. They need a `rollcalld` that was built before.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rollcall_jepsen::campaign::{Findings, Options, Workload, run};
use rollcall_jepsen::checker::Verdict;
use rollcall_jepsen::history::{Fault, Record};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;
use tempfile::TempDir;

/// Three servers under these faults, read as linearizable.
pub(crate) fn options(seed: u64, seconds: u64, kinds: &[Kind], folder: &Path) -> Options {
    println!("seed {seed}");
    Options {
        seed,
        length: Duration::from_secs(seconds),
        servers: 3,
        workloads: vec![Workload::Registers, Workload::Heartbeats, Workload::Followers],
        kinds: kinds.to_vec(),
        reads: ReadMode::Linearizable,
        clients: 4,
        ttl: Duration::from_secs(4),
        keep: true,
        folder: folder.into(),
        binary: None,
        upgrade_to: None,
        loopback: false,
    }
}

async fn carried_out(options: &Options) -> Findings {
    match run(options).await {
        Ok(findings) => findings,
        Err(reason) => panic!("the run could not be carried out: {reason:#}"),
    }
}

/// Runs it; nothing must be violated. Otherwise what was found stays in the folder.
pub(crate) async fn run_well(options: &Options, folder: TempDir) -> (Findings, TempDir) {
    let findings = carried_out(options).await;
    println!(
        "{:#?}\n{:#?}\n{:#?}",
        findings.left_out, findings.figures, findings.verdicts
    );
    if !findings.is_good() {
        let kept = folder.keep();
        let written = std::fs::write(kept.join("report.html"), page(options, &findings));
        panic!(
            "violations; history and page ({written:?}) are in {}",
            kept.display()
        );
    }
    (findings, folder)
}

/// The faults there were.
pub(crate) fn faults(findings: &Findings) -> impl Iterator<Item = &Fault> {
    findings.records.iter().filter_map(|record| match record {
        Record::Fault(fault) => Some(fault),
        _ => None,
    })
}

/// What one of the judges found.
pub(crate) fn verdict<'a>(findings: &'a Findings, checker: &str) -> &'a Verdict {
    let found = findings.verdicts.iter().find(|of| of.checker == checker);
    found.unwrap_or_else(|| panic!("{checker} judged nothing: {:#?}", findings.verdicts))
}

/// Runs of so many seeds at most.
const RUNS_MAX: u64 = 5;

/// A server that is cut off answers local reads, and they are old: the judges of reads see that. Whether somebody reads there what
/// was just written elsewhere is chance, in a short run: there are several.
pub(crate) async fn assert_local_reads_are_found_out(options: Options) -> Findings {
    let mut unseen = BTreeSet::from(["linearizable registers", "revisions in real time"]);
    for run in 0..RUNS_MAX {
        let options = Options {
            seed: options.seed + run,
            workloads: vec![Workload::Registers],
            reads: ReadMode::Local,
            keep: false,
            ..options.clone()
        };
        let findings = carried_out(&options).await;
        unseen.retain(|checker| verdict(&findings, checker).findings.is_empty());
        if unseen.is_empty() {
            return findings;
        }
        println!("seed {}: nothing was found by {unseen:?}", options.seed);
    }
    panic!("in {RUNS_MAX} runs nothing was found by {unseen:?}");
}
