//! A short run of every workload that `campaign.rs` leaves out, as root with faults in the network. Needs a `rollcalld`
//! that was built before.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use rollcall_jepsen::campaign::{Findings, Options, Workload, run};
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;
use tokio::sync::Mutex;

/// They judge delays: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Runs them; nothing must be violated, and every judge must have had something to judge.
async fn run_well(seed: u64, seconds: u64, workloads: &[Workload], kinds: &[Kind]) -> Findings {
    let _turn = TURN.lock().await;
    let folder = tempfile::tempdir().unwrap();
    println!("seed {seed}");
    let options = Options {
        seed,
        length: Duration::from_secs(seconds),
        servers: 3,
        workloads: workloads.to_vec(),
        kinds: kinds.to_vec(),
        reads: ReadMode::Unspecified,
        clients: 4,
        ttl: Duration::from_secs(4),
        keep: true,
        folder: folder.path().into(),
        binary: None,
        upgrade_to: None,
        loopback: false,
    };
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
    findings
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_under_raft_keep_what_they_promise_under_faults() {
    let workloads = [
        Workload::Takeover,
        Workload::Resumes,
        Workload::Batches,
        Workload::Retries,
        Workload::Racers,
        Workload::Ages,
    ];
    let kinds = [Kind::Kill, Kind::Pause, Kind::Single, Kind::Delay];
    run_well(11, 20, &workloads, &kinds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_merge_or_move_keep_what_they_promise_under_faults() {
    let workloads = [Workload::Ap, Workload::ModeSwitch, Workload::Guard];
    let kinds = [Kind::Kill, Kind::Halves, Kind::OneWay];
    run_well(12, 25, &workloads, &kinds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_stays_within_its_budget() {
    run_well(13, 20, &[Workload::Storm], &[]).await;
}
