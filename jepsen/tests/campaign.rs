//! A short run of everything, as root with faults in the network. Needs a `rollcalld` that was built before.

mod support;

use std::path::Path;

use rollcall_jepsen::campaign::Options;
use rollcall_jepsen::history::export;
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::net::Net;
use rollcall_jepsen::report::page;
use support::{assert_local_reads_are_found_out, faults, run_well, verdict};

fn options(seed: u64, seconds: u64, kinds: &[Kind], folder: &Path) -> Options {
    Options {
        clients: 6,
        ..support::options(seed, seconds, kinds, folder)
    }
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
    let bit = faults(&findings)
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
    let options = options(9, 15, &[Kind::Single, Kind::Halves], folder.path());
    let findings = assert_local_reads_are_found_out(options).await;
    let equal = verdict(&findings, "survival and equal state");
    assert!(equal.is_good(), "{equal:?}");
}
