//! Runs without root: servers on loopback, and a proxy in this process that cuts, slows and breaks off. Needs a `rollcalld`
//! that was built before.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use rollcall_jepsen::campaign::Options;
use rollcall_jepsen::nemesis::Kind;
use support::{assert_local_reads_are_found_out, faults, run_well};
use tokio::sync::Mutex;

/// They judge delays: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

fn options(seed: u64, seconds: u64, kinds: &[Kind], folder: &Path) -> Options {
    Options {
        loopback: true,
        ..support::options(seed, seconds, kinds, folder)
    }
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
    let (findings, _folder) = run_well(&options, folder).await;
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
    let options = options(9, 15, &[Kind::Single, Kind::Halves], folder.path());
    let findings = assert_local_reads_are_found_out(options).await;
    assert!(faults(&findings).any(|fault| fault.bit));
}
