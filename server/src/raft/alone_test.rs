//! Who leads nobody but itself does without Raft's ticks.

use std::time::Duration;

use super::Freshness;
use super::servers_test::{Server, leader_of, soon, start, write};

#[tokio::test]
async fn a_server_alone_needs_no_ticks_and_serves_without() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 1, |_| {}).await;
    let alone = &servers[0].consensus;
    write(alone, 1).await;
    assert!(!alone.inner.needs_ticks());
    // Longer than any lease or election timeout.
    tokio::time::sleep(Duration::from_secs(2)).await;
    write(alone, 2).await;
    for freshness in [Freshness::Linearizable, Freshness::Leased] {
        alone.confirm(freshness, soon()).await.unwrap();
    }
    assert!(alone.hears_quorum() && alone.leadership().borrow().leading);
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_server_among_others_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 3, |_| {}).await;
    leader_of(&servers).await;
    assert!(servers.iter().all(|server| server.consensus.inner.needs_ticks()));
    servers.into_iter().map(Server::kill).for_each(drop);
}
