//! What is on a server's disk of AP groups when it answers.

use std::time::Duration;

use rollcall_core::ap::Key;
use rollcall_core::ids::NodeKey;

use super::Ap;
use super::cluster_test::{Cluster, listed, register, service, write};
use super::rows::Found;

/// Whether a server would find a node if it were started now.
fn is_on_disk(ap: &Ap, id: &str) -> bool {
    let key = Key::Node(NodeKey {
        service: service(),
        node: id.parse().expect("a good name"),
    });
    let found = Found::read(ap.inner.consensus.store()).expect("it can be read");
    found.records.iter().any(|(record, _)| record.key == key)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_syncs_and_each_is_on_disk_when_it_is_answered() {
    let cluster = Cluster::start(1, |_| {}).await;
    let ap = cluster.ap(1).clone();
    let writers = (0..40).map(|writer| {
        let ap = ap.clone();
        tokio::spawn(async move {
            for turn in 0..20 {
                let id = format!("n{writer:02}-{turn:02}");
                write(&ap, register(None, &id)).await;
                if turn % 10 == 9 {
                    assert!(is_on_disk(&ap, &id), "{id}");
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("all are written");
    }
    assert_eq!(listed(&ap).len(), 800);
    assert!(ap.inner.desk.lock().batch < 800, "some went together");
    tokio::time::timeout(Duration::from_secs(10), write(&ap, register(None, "alone")))
        .await
        .expect("one alone does not wait for company that does not come");
    cluster.stop().await;
}
