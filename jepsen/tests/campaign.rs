//! A short run of everything, as root with faults in the network. Needs a `rollcalld` that was built before.

use std::path::Path;
use std::time::Duration;

use rollcall_jepsen::campaign::{Findings, Options, Workload, run};
use rollcall_jepsen::history::{Record, export};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::net::Net;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;
use tempfile::TempDir;

fn options(seed: u64, seconds: u64, kinds: &[Kind], folder: &Path) -> Options {
    println!("seed {seed}");
    Options {
        seed,
        length: Duration::from_secs(seconds),
        servers: 3,
        workloads: vec![Workload::Registers, Workload::Heartbeats, Workload::Followers],
        kinds: kinds.to_vec(),
        reads: ReadMode::Linearizable,
        clients: 6,
        ttl: Duration::from_secs(4),
        keep: true,
        folder: folder.into(),
        binary: None,
        upgrade_to: None,
        loopback: false,
    }
}

/// Runs it; nothing must be violated.
async fn run_well(options: &Options, folder: TempDir) -> (Findings, TempDir) {
    let findings = match run(options).await {
        Ok(findings) => findings,
        Err(reason) => panic!("the run could not be carried out: {reason:#}"),
    };
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

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_under_overlapping_faults_violates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.is_network() || !kind.is_disk() || *kind == Kind::FullDisk)
        .collect();
    let options = options(7, 20, &kinds, folder.path());
    let (findings, folder) = run_well(&options, folder).await;
    let history = std::fs::read_to_string(folder.path().join("history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), findings.records.len());
    assert!(
        history
            .lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    let exported = export(history.as_bytes(), std::io::sink()).unwrap();
    assert!(exported.operations > 100 && exported.faults > 0, "{exported:?}");
    let html = page(&options, &findings);
    assert!(html.contains("no violation") && html.contains("class=\"fault"));
}

/// What was acknowledged was synced, and a server that cannot trust its disk says so.
#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_and_bad_disks_lose_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        Kind::PowerLoss,
        Kind::PowerLossAll,
        Kind::HungDisk,
        Kind::SyncErrors,
        Kind::LostTail,
        Kind::BitRot,
        Kind::Membership,
    ];
    let options = options(3, 25, &kinds, folder.path());
    let (findings, _folder) = run_well(&options, folder).await;
    let faults = findings.records.iter().filter_map(|record| match record {
        Record::Fault(fault) => Some(fault),
        _ => None,
    });
    let bit = faults
        .filter(|fault| fault.bit && !fault.effect.is_empty())
        .count();
    // Where the machine has no loop devices, or this is not root, it said so above, and less could be done.
    assert!(bit >= 1, "{:?}", findings.figures);
}

/// What the judges are there for: a server that is cut off answers local reads, and they are old.
#[tokio::test(flavor = "multi_thread")]
async fn local_reads_under_partitions_are_found_out() {
    // Only to say why it is skipped.
    let Some(_) = Net::start_or_skip(1, 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        workloads: vec![Workload::Registers],
        reads: ReadMode::Local,
        keep: false,
        ..options(9, 15, &[Kind::Single, Kind::Halves], folder.path())
    };
    let findings = run(&options).await.unwrap();
    let found = |checker| {
        findings
            .verdicts
            .iter()
            .any(|of| of.checker == checker && !of.findings.is_empty())
    };
    assert!(found("linearizable registers"), "{:#?}", findings.verdicts);
    assert!(found("revisions in real time"), "{:#?}", findings.verdicts);
    let equal = findings
        .verdicts
        .iter()
        .find(|of| of.checker == "survival and equal state")
        .unwrap();
    assert!(equal.is_good(), "{equal:?}");
}
