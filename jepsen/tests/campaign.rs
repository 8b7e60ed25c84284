//! A short run of everything, as root with faults in the network. Needs a `rollcalld` that was built before.

use std::time::Duration;

use rollcall_jepsen::campaign::{Options, Workload, run};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::net::Net;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_under_overlapping_faults_violates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut kinds = Kind::ALL.to_vec();
    // A server that is restarted while its disk has no free byte dies of an assertion in RocksDB.
    kinds.retain(|kind| *kind != Kind::FullDisk);
    let options = Options {
        seed: 7,
        length: Duration::from_secs(20),
        servers: 3,
        workloads: Workload::ALL.to_vec(),
        kinds,
        reads: ReadMode::Linearizable,
        clients: 6,
        ttl: Duration::from_secs(4),
        keep: true,
        folder: folder.path().into(),
        binary: None,
    };
    println!("seed {}", options.seed);
    let findings = run(&options).await.unwrap();
    println!(
        "{:#?}\n{:#?}\n{:#?}",
        findings.left_out, findings.figures, findings.verdicts
    );
    if !findings.is_good() {
        let kept = folder.keep();
        std::fs::write(kept.join("report.html"), page(&options, &findings)).unwrap();
        panic!("violations; history and page are in {}", kept.display());
    }
    let history = std::fs::read_to_string(folder.path().join("history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), findings.records.len());
    assert!(
        history
            .lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    let html = page(&options, &findings);
    assert!(html.contains("no violation") && html.contains("class=\"fault\""));
}

/// What the judges are there for: a server that is cut off answers local reads, and they are old.
#[tokio::test(flavor = "multi_thread")]
async fn local_reads_under_partitions_are_found_out() {
    // Only to say why it is skipped.
    let Some(_) = Net::start_or_skip(1, 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        seed: 9,
        length: Duration::from_secs(15),
        servers: 3,
        workloads: vec![Workload::Registers],
        kinds: vec![Kind::Single, Kind::Halves],
        reads: ReadMode::Local,
        clients: 6,
        ttl: Duration::from_secs(4),
        keep: false,
        folder: folder.path().into(),
        binary: None,
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
