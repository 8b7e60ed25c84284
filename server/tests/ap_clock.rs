//! A server whose wall clock is behind another's loses none of its writes to those that it had seen before: stamps follow
//! what was heard, not the clock alone.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use rollcall_client::v1::{GroupMode, GroupSettings};
use rollcall_client::{
    Entry, Expected, NodeKey, NodeKind, NodeUpdate, Registration, Registry, RegistryConfig, Removal,
    ServiceKey, WriteOptions,
};
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{ClusterOptions, WAIT_MAX, eventually};
use support::cluster_with;

const EDGE: &str = "edge";
/// How far the first server's clock is ahead of the others': no further than they believe (`ap.clock_skew_max`).
const AHEAD_MS: i64 = 450;
const ROUNDS: usize = 5;

fn only(address: &str) -> Registry {
    Registry::connect(RegistryConfig::new([address])).unwrap()
}

/// Waits until a server shows the node with this weight, or shows that it is gone.
async fn wait_weight(address: &str, id: &str, weight: Option<u32>) {
    let shown = eventually("the last word", WAIT_MAX, || async {
        let view = local_view(address, EDGE, "feed", 0).await.ok()??;
        let node = view.nodes.iter().find(|node| node.id == id);
        (node.map(|node| node.weight) == weight).then_some(())
    });
    assert!(shown.await.is_ok(), "{address} does not show {id} as {weight:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_is_behind_has_the_last_word_on_what_it_has_seen() {
    let mut cluster = cluster_with(ClusterOptions {
        own_clocks: true,
        ..ClusterOptions::servers(3)
    })
    .await;
    let addresses = cluster.addresses();
    let Some(clock) = cluster.server(1).clock().cloned() else {
        return eprintln!("skipped: libfaketime is not installed");
    };
    clock.set_ms(AHEAD_MS).unwrap();
    let (ahead, behind) = (only(&addresses[0]), only(&addresses[1]));
    let settings = GroupSettings {
        mode: GroupMode::Ap.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    ahead
        .put_group(EDGE, settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
    for round in 0..ROUNDS {
        let id = format!("n{round}");
        let node = Registration::new("tcp", "127.0.0.1", 80)
            .id(&id)
            .kind(NodeKind::Persistent)
            .weight(1);
        let entry = Entry::new(ServiceKey::new(EDGE, "feed"), node);
        ahead
            .register_persistent(&[entry], WriteOptions::default())
            .await
            .unwrap();
        wait_weight(&addresses[1], &id, Some(1)).await;
        let key = NodeKey::new(EDGE, "feed", &id);
        let written = match round % 2 {
            0 => {
                let update = NodeUpdate::new(key).weight(2);
                behind.update(&[update], WriteOptions::default()).await
            }
            _ => {
                let removal = Removal::from(key);
                behind.deregister(&[removal], WriteOptions::default()).await
            }
        };
        written.unwrap();
    }
    for round in 0..ROUNDS {
        let last = (round % 2 == 0).then_some(2);
        for address in &addresses {
            wait_weight(address, &format!("n{round}"), last).await;
        }
    }
}
