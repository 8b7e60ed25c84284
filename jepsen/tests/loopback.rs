//! Runs without root: servers on loopback, and a proxy in this process that cuts, slows and breaks off. Needs a `rollcalld`
//! that was built before.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rollcall_jepsen::campaign::{Findings, Options, Workload, run};
use rollcall_jepsen::history::{Fault, Record};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;
use tokio::sync::Mutex;

/// They judge delays: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

fn options(seed: u64, seconds: u64, kinds: &[Kind], folder: &Path) -> Options {
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
        loopback: true,
    }
}

fn faults(findings: &Findings) -> impl Iterator<Item = &Fault> {
    findings.records.iter().filter_map(|record| match record {
        Record::Fault(fault) => Some(fault),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_behind_the_proxy_violates_nothing_and_its_faults_bite() {
    let _turn = TURN.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        Kind::Halves,
        Kind::Single,
        Kind::OneWay,
        Kind::NoGossip,
        Kind::Delay,
        Kind::Reset,
        Kind::ClientCut,
        Kind::Kill,
        Kind::Pause,
        // It needs frames, and is left out.
        Kind::Mangle,
    ];
    let options = options(21, 30, &kinds, folder.path());
    let findings = run(&options).await.unwrap();
    println!("{:#?}\n{:#?}", findings.left_out, findings.figures);
    if !findings.is_good() {
        let kept = folder.keep();
        std::fs::write(kept.join("report.html"), page(&options, &findings)).unwrap();
        panic!(
            "violations: {:#?}; history and page are in {}",
            findings.verdicts,
            kept.display()
        );
    }
    assert!(
        findings
            .left_out
            .iter()
            .any(|left_out| left_out.starts_with("mangle: "))
    );
    let bit: BTreeSet<&str> = faults(&findings)
        .filter(|fault| fault.bit)
        .filter_map(|fault| fault.what.split(':').next())
        .collect();
    for kind in [
        "halves",
        "single",
        "one-way",
        "no-gossip",
        "delay",
        "reset",
        "client-cut",
    ] {
        assert!(bit.contains(kind), "{kind} did not bite: {bit:?}");
    }
}

/// What the judges are there for: a server that the proxy has cut off answers local reads, and they are old.
#[tokio::test(flavor = "multi_thread")]
async fn local_reads_behind_the_proxy_are_found_out() {
    let _turn = TURN.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        workloads: vec![Workload::Registers],
        reads: ReadMode::Local,
        keep: false,
        ..options(9, 15, &[Kind::Single, Kind::Halves], folder.path())
    };
    let findings = run(&options).await.unwrap();
    for checker in ["linearizable registers", "revisions in real time"] {
        let verdict = findings.verdicts.iter().find(|of| of.checker == checker).unwrap();
        assert!(!verdict.findings.is_empty(), "{verdict:#?}");
    }
    assert!(faults(&findings).any(|fault| fault.bit));
}
