//! The place of a leader whose process has ended is filled at once; that of a silent one is left to the timeout.

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::servers_test::{Server, soon, start, steady_leader_of, write};

/// Three servers of which nobody seeks election because a time has passed.
async fn without_timeouts(folder: &std::path::Path) -> (Vec<Server>, usize) {
    let servers = start(folder, 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leader = steady_leader_of(&servers).await;
    (servers, leader)
}

fn seek_election(servers: &[Server], may: bool) {
    for server in servers {
        server.consensus.inner.raft.runtime_config().elect(may);
    }
}

/// Waits for somebody who connects and says nothing: who wants something of a leader begins to speak.
async fn look(port: &TcpListener) {
    loop {
        let (mut connection, _) = port.accept().await.unwrap();
        if matches!(connection.read(&mut [0]).await, Ok(0)) {
            return;
        }
    }
}

#[tokio::test]
async fn a_leader_that_ended_is_replaced_without_an_election_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let (mut servers, leader) = without_timeouts(folder.path()).await;
    let term = servers[leader].consensus.leadership().borrow().term;
    servers.remove(leader).vanish();
    for server in &servers {
        let mut known = server.consensus.leadership();
        let next = known.wait_for(|now| now.term > term && now.leader.is_some());
        tokio::time::timeout_at(soon(), next).await.unwrap().unwrap();
    }
    write(&servers[0].consensus, 2).await;
    servers.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_leader_that_is_only_silent_keeps_its_place_until_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let (mut servers, leader) = without_timeouts(folder.path()).await;
    let term = servers[leader].consensus.leadership().borrow().term;
    // Its connections end, but its port still answers: as behind a proxy, or at the limit of its descriptors.
    let port = TcpListener::from_std(servers.remove(leader).kill()).unwrap();
    for _ in &servers {
        let looked = tokio::time::timeout_at(soon(), look(&port)).await;
        looked.expect("whoever loses a leader looks whether it has ended");
    }
    // Who had taken it for vacant would have asked for it by then.
    let options = &servers[0].consensus.inner.options;
    let due = options.lease() + options.heartbeat_interval * 5;
    for server in &servers {
        let mut known = server.consensus.leadership();
        let changed = known.wait_for(|now| now.term > term);
        assert!(
            tokio::time::timeout(due, changed).await.is_err(),
            "a port that takes connections is no sign of an end"
        );
    }
    seek_election(&servers, true);
    write(&servers[0].consensus, 2).await;
    drop(port);
    servers.into_iter().map(Server::kill).for_each(drop);
}
