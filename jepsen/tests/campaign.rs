//! A short run of everything, as root with faults in the network. Needs a `rollcalld` that was built before.

use std::time::Duration;

use rollcall_jepsen::campaign::{Options, Workload, run};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;

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
        clients: 6,
        ttl: Duration::from_secs(4),
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
