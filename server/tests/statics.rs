//! Static nodes on real processes: silent servers, dead leaders and a restart of all strike none of them off.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_client::{Entry, NodeKind, NodeState, NodeUpdate, Registration, ServiceKey, WriteOptions, v1};
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{GROUP, Stage, cluster, registry};

const TTL: Duration = Duration::from_secs(2);

type Listed = BTreeMap<String, (v1::NodeKind, v1::NodeState)>;

async fn listed(cluster: &mut Stage, server: u64) -> Listed {
    let address = cluster.server(server).address().to_owned();
    let view = local_view(&address, GROUP, "feed", 0).await.unwrap().unwrap();
    let statics = view
        .nodes
        .iter()
        .filter(|node| node.kind() == v1::NodeKind::Static);
    statics
        .map(|node| (node.id.clone(), (node.kind(), node.state())))
        .collect()
}

fn fixed(id: &str) -> Registration {
    Registration::new("tcp", "127.0.0.1", 80)
        .id(id)
        .kind(NodeKind::Static)
}

#[tokio::test(flavor = "multi_thread")]
async fn static_nodes_outlive_silence_leaders_and_restarts_as_they_were() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let key = ServiceKey::new(GROUP, "feed");
    let tool = registry(&addresses, 0);
    // Half without a session, half under one that falls silent at once.
    let entries = ["free-up", "free-down"].map(|id| Entry::new(key.clone(), fixed(id)));
    tool.register_persistent(&entries, WriteOptions::default())
        .await
        .unwrap();
    let session = registry(&addresses, 1)
        .open_session(rollcall_client::SessionOptions::ttl(TTL))
        .await
        .unwrap();
    for id in ["held-up", "held-draining"] {
        session.register(&key, fixed(id)).await.unwrap();
    }
    session.drain(&key.node("held-draining")).await.unwrap();
    let down = NodeUpdate::new(key.node("free-down")).state(NodeState::Down);
    tool.update(&[down], WriteOptions::default()).await.unwrap();
    session.close().await.unwrap();
    let expected: Listed = [
        ("free-up", v1::NodeState::Up),
        ("free-down", v1::NodeState::Down),
        ("held-up", v1::NodeState::Up),
        ("held-draining", v1::NodeState::Draining),
    ]
    .map(|(id, state)| (id.to_owned(), (v1::NodeKind::Static, state)))
    .into();

    // A provider that goes silent beside them does lapse, and takes nobody along.
    let mut silent = Attending::open(&addresses[0], TTL).await.unwrap();
    silent.register(GROUP, "feed", "mortal").await.unwrap();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    lapsed(&mut cluster, other).await;
    assert_eq!(listed(&mut cluster, other).await, expected);

    // The leader sleeps for two ttls, another one takes over.
    cluster.server(leader).pause().await.unwrap();
    tokio::time::sleep(TTL * 2).await;
    cluster.server(leader).resume().unwrap();
    cluster.wait_converged(WAIT_MAX).await.unwrap();
    for id in cluster.ids() {
        assert_eq!(
            listed(&mut cluster, id).await,
            expected,
            "server {id} after the pause"
        );
    }

    // A leader dies, then all of them, for longer than any ttl.
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    cluster.server(leader).kill9().await.unwrap();
    let second = cluster.leader(WAIT_MAX).await.unwrap();
    assert_eq!(
        listed(&mut cluster, second).await,
        expected,
        "under another leader"
    );
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.server(id).kill9().await.unwrap();
    }
    tokio::time::sleep(TTL * 2).await;
    for id in cluster.ids() {
        cluster.server(id).start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    cluster.wait_converged(WAIT_MAX).await.unwrap();
    for id in cluster.ids() {
        assert_eq!(
            listed(&mut cluster, id).await,
            expected,
            "server {id} after the restart of all"
        );
    }
    // Deadlines run again: whoever is to lapse lapses, and they do not.
    let mut silent = Attending::open(&addresses[0], TTL).await.unwrap();
    silent.register(GROUP, "feed", "mortal").await.unwrap();
    lapsed(&mut cluster, second).await;
    assert_eq!(listed(&mut cluster, second).await, expected);
}

/// Waits until the ephemeral node has lapsed; the guard may hold it.
async fn lapsed(cluster: &mut Stage, server: u64) {
    let address = cluster.server(server).address().to_owned();
    eventually("the lapse of the silent provider", WAIT_MAX, || async {
        let view = local_view(&address, GROUP, "feed", 0).await.ok()??;
        let up = |node: &v1::Node| node.id == "mortal" && node.state() == v1::NodeState::Up;
        (!view.nodes.iter().any(up)).then_some(())
    })
    .await
    .unwrap();
}
