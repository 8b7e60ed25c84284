//! Clusters of real processes under kill -9, restart and membership change.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_jepsen::lab::WAIT_MAX;
use support::{Follower, GROUP, Load, cluster};

const TTL: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_when_the_leader_and_a_follower_are_killed() {
    let mut cluster = cluster(3).await;
    let load = Load::start(&cluster.addresses(), "feed", 4, TTL).await;
    load.wait_more(100).await;

    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    cluster.server(leader).kill9().await.unwrap();
    load.wait_more(100).await;
    cluster.server(leader).restart().await.unwrap();

    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.server(follower).kill9().await.unwrap();
    load.wait_more(100).await;
    cluster.server(follower).restart().await.unwrap();

    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_all_servers_were_killed_at_once() {
    let mut cluster = cluster(3).await;
    let load = Load::start(&cluster.addresses(), "feed", 3, TTL).await;
    load.wait_more(200).await;
    for server in cluster.servers_mut() {
        server.kill9().await.unwrap();
    }
    for server in cluster.servers_mut() {
        server.start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    load.wait_more(50).await;
    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_restarts_from_disk_in_good_order_and_after_kill() {
    let mut cluster = cluster(1).await;
    let load = Load::start(&cluster.addresses(), "feed", 2, TTL).await;
    load.wait_more(50).await;
    cluster.server(1).restart().await.unwrap();
    load.wait_more(50).await;
    cluster.server(1).kill9().await.unwrap();
    cluster.server(1).restart().await.unwrap();
    load.wait_more(50).await;
    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_across_failover_without_gap_and_without_repeat() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let load = Load::start(&addresses, "feed", 3, TTL).await;
    load.wait_more(20).await;
    // One at each server; each goes to the next server whenever its stream ends.
    let followers: Vec<_> = (0..3)
        .map(|first| Follower::start(&addresses, "feed", first))
        .collect();
    load.wait_more(50).await;
    // Each in turn, the leader among them, so that every watcher loses its server once at least.
    for id in cluster.ids() {
        cluster.server(id).kill9().await.unwrap();
        load.wait_more(50).await;
        cluster.server(id).restart().await.unwrap();
        load.wait_more(50).await;
    }
    let ledger = load.stop().await;
    let last = ledger.acknowledged().map(|(_, revision)| revision).max().unwrap();

    for follower in &followers {
        follower.wait_revision(last).await;
        follower.look(|followed| {
            // Each node was registered once: told once, at its revision, in order; or it was there from the start.
            let mut told: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            let mut in_states = std::collections::BTreeSet::new();
            for change in &followed.told {
                for node in &change.put {
                    if change.as_delta {
                        told.entry(&node.id).or_default().push(change.revision);
                    } else {
                        in_states.insert(node.id.clone());
                    }
                }
            }
            for (id, revision) in ledger.acknowledged() {
                match told.get(id.as_str()) {
                    Some(revisions) => assert_eq!(revisions, &[revision], "changes told of node {id}"),
                    None => assert!(
                        in_states.contains(id),
                        "node {id} of revision {revision} was never told"
                    ),
                }
            }
            assert!(followed.streams >= 2, "this watcher was never moved");
        });
    }
    assert!(followers.iter().all(|follower| follower.removals() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load() {
    let mut cluster = cluster(1).await;
    let load = Load::start(&cluster.addresses(), "feed", 2, TTL).await;
    load.wait_more(50).await;
    for servers in 2..=5 {
        let id = cluster.grow().await.unwrap();
        assert_eq!(id, servers);
        load.wait_more(20).await;
    }
    assert_eq!(cluster.statuses().await.len(), 5);
    // The clients know server 1 only, so others are taken away.
    for id in [5, 4] {
        cluster.shrink(id).await.unwrap();
        load.wait_more(20).await;
    }
    assert_eq!(cluster.ids(), [1, 2, 3]);
    load.stop().await.assert_kept(&mut cluster, "feed").await;
    let view = rollcall_jepsen::lab::reading::local_view(cluster.server(3).address(), GROUP, "feed", 0).await;
    assert!(!view.unwrap().unwrap().nodes.is_empty());
}
