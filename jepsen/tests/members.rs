//! Three servers become five, and three others than before, under load and faults. As root each has a host and a disk of
//! its own; otherwise they are on loopback. Needs a `rollcalld` that was built before.

mod support;

use rollcall_jepsen::nemesis::Kind;
use support::{faults, options, run_well};

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_others_under_load_and_faults() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [Kind::Resize, Kind::Delay, Kind::OneWay, Kind::ClientCut];
    let options = options(31, 30, &kinds, folder.path());
    let (findings, _folder) = run_well(&options, folder).await;
    let resized = faults(&findings)
        .find(|fault| fault.what.starts_with("resize"))
        .unwrap();
    println!("{}: {}", resized.what, resized.effect);
    // Two and two came, each time two others went, and whoever led was the first of them.
    assert!(resized.bit);
    assert_eq!(resized.effect.matches(" came").count(), 4, "{}", resized.effect);
    assert_eq!(resized.effect.matches(" went").count(), 4, "{}", resized.effect);
    assert!(resized.effect.contains(" led"), "{}", resized.effect);
}
