//! The removal guard on real processes: a mass lapse removes nobody, a few lapses do, and a new leader goes on.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use rollcall_client::v1;
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{GROUP, Stage, cluster};

const TTL: Duration = Duration::from_secs(3);

/// How many nodes of the service are in which state, at one server.
async fn counted(cluster: &mut Stage, server: u64) -> (usize, usize) {
    let address = cluster.server(server).address().to_owned();
    let view = local_view(&address, GROUP, "feed", 0).await.unwrap().unwrap();
    let of = |state: v1::NodeState| view.nodes.iter().filter(|node| node.state() == state).count();
    (of(v1::NodeState::Up), of(v1::NodeState::Suspect))
}

async fn wait_counted(cluster: &mut Stage, server: u64, up: usize, suspect: usize) {
    let address = cluster.server(server).address().to_owned();
    eventually(&format!("{up} up and {suspect} suspect"), WAIT_MAX, || async {
        let view = local_view(&address, GROUP, "feed", 0).await.ok()??;
        let of = |state: v1::NodeState| view.nodes.iter().filter(|node| node.state() == state).count();
        (of(v1::NodeState::Up) == up && of(v1::NodeState::Suspect) == suspect).then_some(())
    })
    .await
    .unwrap();
}

/// Sends the heartbeats of these providers for so long.
async fn beat(providers: &mut [Attending], turns: u32) {
    for _ in 0..turns {
        for provider in providers.iter_mut() {
            assert!(provider.renew().await.unwrap(), "a living session was struck off");
        }
        tokio::time::sleep(TTL / 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_service_falls_silent_and_is_held_whoever_leads_until_it_returns() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let home = addresses[usize::try_from(other - 1).unwrap()].clone();
    let mut providers = Vec::new();
    for number in 0..10 {
        let mut provider = Attending::open(&home, TTL).await.unwrap();
        provider
            .register(GROUP, "feed", &format!("node-{number}"))
            .await
            .unwrap();
        providers.push(provider);
    }
    let mut silent = providers.split_off(5);

    // Five of ten: more than the share. They may lapse in two ticks, and three of the first may go.
    beat(&mut providers, 12).await;
    let (up, held) = counted(&mut cluster, other).await;
    assert_eq!(up, 5);
    assert!((2..=5).contains(&held), "{held} of 5 are held");

    // A new leader goes on with the same account, for two ttls and more.
    cluster.server(leader).kill9().await.unwrap();
    beat(&mut providers, 16).await;
    assert_eq!(counted(&mut cluster, other).await, (5, held));
    cluster.server(leader).restart().await.unwrap();

    let mut returned = 0;
    for provider in &mut silent {
        returned += usize::from(provider.renew().await.unwrap());
    }
    assert_eq!(returned, held, "held sessions that are alive");
    wait_counted(&mut cluster, other, 5 + held, 0).await;
}
