//! Servers on hosts of their own. Needs root, and a `rollcalld` that was built before.

use std::sync::Arc;
use std::time::Instant;

use rollcall_jepsen::lab::{Cluster, ClusterOptions, PEER_PORT, WAIT_MAX};
use rollcall_jepsen::net::{HARNESS, Net, Protocol};

#[tokio::test(flavor = "multi_thread")]
async fn servers_on_hosts_elect_anew_when_the_leader_is_cut_off_and_agree_after_the_heal() {
    let Some(net) = Net::start_or_skip(3, 1) else {
        return;
    };
    let net = Arc::new(net);
    let mut cluster = Cluster::start_with(ClusterOptions::servers(3).on(&net))
        .await
        .unwrap();
    assert_eq!(cluster.addresses()[1], format!("{}:7400", net.address(2)));
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();

    let cut_at = Instant::now();
    let before = net.port_traffic(leader, Protocol::Tcp, PEER_PORT);
    net.partition(&[leader], &others);
    let successor = cluster.leader_among(&others, WAIT_MAX).await.unwrap();
    println!("server {successor} leads {:?} after the cut", cut_at.elapsed());
    // The cut-off server is there for the test, which no longer follows it.
    let status = cluster.server(leader).status().await.unwrap();
    assert!(status.term < cluster.server(successor).status().await.unwrap().term);

    net.heal();
    let healed_at = Instant::now();
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    cluster.wait_converged(WAIT_MAX).await.unwrap();
    println!(
        "the same state everywhere {:?} after the heal",
        healed_at.elapsed()
    );
    assert!(healed_at.elapsed() < WAIT_MAX);
    assert!(net.port_traffic(leader, Protocol::Tcp, PEER_PORT).bytes > before.bytes);
    assert!(net.traffic(leader, others[0]).cut.frames > 0);
    assert!(net.bytes(HARNESS, leader) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_joins_on_a_host_that_was_free() {
    let Some(net) = Net::start_or_skip(2, 1) else {
        return;
    };
    let net = Arc::new(net);
    let mut cluster = Cluster::start_with(ClusterOptions::servers(1).on(&net))
        .await
        .unwrap();
    assert_eq!(cluster.grow().await.unwrap(), 2);
    cluster.wait_converged(WAIT_MAX).await.unwrap();
}
