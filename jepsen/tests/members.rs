//! Three servers become five, and three others than before, under load and faults. As root each has a host and a disk of
//! its own; otherwise they are on loopback. Needs a `rollcalld` that was built before.

use std::time::Duration;

use rollcall_jepsen::campaign::{Options, Workload, run};
use rollcall_jepsen::history::Record;
use rollcall_jepsen::nemesis::Kind;
use rollcall_jepsen::report::page;
use rollcall_proto::v1::ReadMode;

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_others_under_load_and_faults() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        seed: 31,
        length: Duration::from_secs(30),
        servers: 3,
        workloads: vec![Workload::Registers, Workload::Heartbeats, Workload::Followers],
        kinds: vec![Kind::Resize, Kind::Delay, Kind::OneWay, Kind::ClientCut],
        reads: ReadMode::Linearizable,
        clients: 4,
        ttl: Duration::from_secs(4),
        keep: true,
        folder: folder.path().into(),
        binary: None,
        upgrade_to: None,
        loopback: false,
    };
    println!("seed {}", options.seed);
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
    let resized = findings.records.iter().find_map(|record| match record {
        Record::Fault(fault) if fault.what.starts_with("resize") => Some(fault),
        _ => None,
    });
    let resized = resized.unwrap();
    println!("{}: {}", resized.what, resized.effect);
    // Two and two came, each time two others went, and whoever led was the first of them.
    assert!(resized.bit);
    assert_eq!(resized.effect.matches(" came").count(), 4, "{}", resized.effect);
    assert_eq!(resized.effect.matches(" went").count(), 4, "{}", resized.effect);
    assert!(resized.effect.contains(" led"), "{}", resized.effect);
}
