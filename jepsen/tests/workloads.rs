//! A short run of every workload that `campaign.rs` leaves out, as root with faults in the network. Needs a `rollcalld`
//! that was built before.

mod support;

use rollcall_jepsen::campaign::{Options, Workload};
use rollcall_jepsen::nemesis::Kind;
use rollcall_proto::v1::ReadMode;
use tokio::sync::Mutex;

/// They judge delays: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Runs them; nothing must be violated, and every judge must have had something to judge.
async fn run_well(seed: u64, seconds: u64, workloads: &[Workload], kinds: &[Kind]) {
    let _turn = TURN.lock().await;
    let folder = tempfile::tempdir().expect("a folder for what is found");
    let options = Options {
        workloads: workloads.to_vec(),
        reads: ReadMode::Unspecified,
        ..support::options(seed, seconds, kinds, folder.path())
    };
    support::run_well(&options, folder).await;
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
