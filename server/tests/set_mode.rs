//! A group moves to gossip and back on real processes, under load: nothing acknowledged is lost, nobody sees a node
//! leave, and what lives goes on living on the other side.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_client::v1::GroupMode;
use rollcall_client::{
    Error, ReadOptions, Registration, ServiceKey, SessionOptions, SessionStatus, WatchEvent, WriteOptions,
};
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{GROUP, Load, Stage, cluster, fleet, registry};

const TTL: Duration = Duration::from_secs(4);
const STEADY: &str = "steady";
const BUSY: &str = "busy";

/// What a consumer of the whole group was told of nodes that left or services that went.
struct Consumer {
    gone: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeSet<String>>,
}

impl Consumer {
    async fn start(addresses: &[String], first: usize) -> Self {
        let mut watch = registry(addresses, first)
            .watch(rollcall_client::WatchTarget::Group(GROUP.into()))
            .await
            .unwrap();
        let (gone, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (told, stopped) = (gone.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            loop {
                let event = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
                match event {
                    Ok(WatchEvent::Snapshot { view, .. }) => {
                        let names: BTreeSet<String> =
                            view.nodes.iter().map(|node| node.id.to_string()).collect();
                        let service = view.key.service.clone();
                        let of_service =
                            |name: &String| name.starts_with(if &*service == STEADY { 'f' } else { 'w' });
                        let lost = seen
                            .iter()
                            .filter(|name| of_service(name) && !names.contains(*name));
                        told.lock()
                            .extend(lost.map(|name| format!("{name} is not in a snapshot of {service}")));
                        seen.extend(names);
                    }
                    Ok(WatchEvent::Changed { put, removed, .. }) => {
                        seen.extend(put.iter().map(|node| node.id.to_string()));
                        told.lock()
                            .extend(removed.iter().map(|node| format!("{} was removed", node.id)));
                    }
                    Ok(WatchEvent::Gone { view }) => told.lock().push(format!("{} is gone", view.key)),
                    Ok(_) => {}
                    Err(_) if stopped.load(Ordering::Acquire) => return seen,
                    Err(_) => {}
                }
            }
        });
        Self { gone, stop, task }
    }

    async fn finish(self) -> (Vec<String>, BTreeSet<String>) {
        self.stop.store(true, Ordering::Release);
        let seen = self.task.await.unwrap();
        let gone = self.gone.lock().clone();
        (gone, seen)
    }
}

async fn set_mode(cluster: &Stage, mode: GroupMode) -> rollcall_client::v1::SetGroupModeResponse {
    let moved = registry(&cluster.addresses(), 1)
        .set_group_mode(GROUP, mode, Duration::from_secs(30))
        .await;
    match moved {
        Ok(moved) => moved,
        Err(error) => panic!("not moved: {error}\n{}", cluster.log_tails()),
    }
}

async fn wait_listed(cluster: &Stage, service: &str, wanted: &BTreeSet<String>) {
    for address in cluster.addresses() {
        let listed = eventually("everything at every server", WAIT_MAX, || async {
            let view = local_view(&address, GROUP, service, 0).await.ok()??;
            let listed: BTreeSet<String> = view.nodes.iter().map(|node| node.id.to_string()).collect();
            wanted.is_subset(&listed).then_some(())
        });
        assert!(
            listed.await.is_ok(),
            "{address} lacks nodes of {service}\n{}",
            cluster.log_tails()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_to_gossip_and_back_under_load_and_loses_nothing() {
    let cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let fleet = fleet(&addresses, STEADY, 12, 3, TTL).await;
    let steady: BTreeSet<String> = (0..12)
        .flat_map(|n| (1..=3).map(move |port| format!("f{n}-{port}")))
        .collect();
    let load = Load::start(&addresses, BUSY, 4, TTL).await;
    load.wait_more(40).await;
    let mut consumers = Vec::new();
    for first in 0..3 {
        consumers.push(Consumer::start(&addresses, first).await);
    }

    for mode in [GroupMode::Ap, GroupMode::Cp, GroupMode::Ap] {
        let moved = set_mode(&cluster, mode).await;
        assert!(moved.changed);
        assert_eq!(moved.sign_before, moved.sign_after);
        assert_eq!(moved.servers.len(), 3);
        assert!(
            moved
                .servers
                .iter()
                .all(|server| server.ready && server.nodes == moved.nodes)
        );
        println!(
            "to {mode:?}: {} nodes, no writes for {} ms",
            moved.nodes, moved.frozen_ms
        );
        let again = set_mode(&cluster, mode).await;
        assert!(!again.changed);
        load.wait_more(40).await;
        wait_listed(&cluster, STEADY, &steady).await;
        // Longer than a ttl: the sessions are heard on the side where the group is now.
        tokio::time::sleep(TTL + TTL / 2).await;
        wait_listed(&cluster, STEADY, &steady).await;
        let read = ReadOptions::default();
        let answer = registry(&addresses, 2)
            .query(&ServiceKey::new(GROUP, STEADY), read)
            .await
            .unwrap();
        assert_eq!(answer.header.mode(), mode);
        load.wait_more(20).await;
    }

    let ledger = load.stop().await;
    let kept: BTreeSet<String> = ledger.acknowledged().map(|(id, _)| id.clone()).collect();
    assert!(kept.len() > 100);
    wait_listed(&cluster, BUSY, &kept).await;
    assert!(
        fleet
            .iter()
            .all(|session| matches!(session.status(), SessionStatus::Attached { .. }))
    );
    for consumer in consumers {
        let (gone, seen) = consumer.finish().await;
        assert_eq!(gone, Vec::<String>::new());
        assert!(kept.is_subset(&seen) && steady.is_subset(&seen));
    }

    // Whoever falls silent goes, also after all these moves.
    let mut fleet = fleet;
    fleet.swap_remove(0).close().await.unwrap();
    eventually("the nodes of a closed session leave", WAIT_MAX, || async {
        let view = local_view(&addresses[0], GROUP, STEADY, 0).await.ok()??;
        (view.nodes.len() == steady.len() - 3).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_raft_without_a_member_is_taken_back_and_nothing_changed() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    set_mode(&cluster, GroupMode::Ap).await;
    let session = registry(&addresses, 0)
        .open_session(SessionOptions::ttl(TTL))
        .await
        .unwrap();
    let service = ServiceKey::new(GROUP, STEADY);
    session
        .register(&service, Registration::new("tcp", "127.0.0.1", 80).id("a"))
        .await
        .unwrap();
    cluster.server(3).kill9().await.unwrap();
    let refused = registry(&addresses[..2], 0)
        .set_group_mode(GROUP, GroupMode::Cp, Duration::from_secs(3))
        .await;
    assert!(
        matches!(&refused, Err(Error::NotMoved { message }) if message.contains("server 3")),
        "{refused:?}"
    );
    let written = session.register_all(
        vec![rollcall_client::Entry::new(
            service,
            Registration::new("tcp", "127.0.0.1", 81).id("b"),
        )],
        WriteOptions::default(),
    );
    assert_eq!(written.await.unwrap().mode, GroupMode::Ap);
    // To gossip a majority is enough; it is there already.
    assert!(!set_mode(&cluster, GroupMode::Ap).await.changed);
    cluster.server(3).restart().await.unwrap();
    wait_listed(&cluster, STEADY, &["a", "b"].map(String::from).into()).await;
    assert!(set_mode(&cluster, GroupMode::Cp).await.changed);
    wait_listed(&cluster, STEADY, &["a", "b"].map(String::from).into()).await;
}

/// The one that stands still learns of the end of the move before it has any of the records.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_during_a_move_shows_all_of_the_group_or_nothing() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let away = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let there = cluster.server(away).address().to_owned();
    let here: Vec<String> = cluster
        .addresses()
        .into_iter()
        .filter(|of| *of != there)
        .collect();
    let nodes: BTreeSet<String> = (0..40)
        .flat_map(|n| (1..=5).map(move |port| format!("f{n}-{port}")))
        .collect();
    let fleet = fleet(&here, STEADY, 40, 5, TTL * 8).await;
    wait_listed(&cluster, STEADY, &nodes).await;
    cluster.server(away).pause().await.unwrap();
    let moved = registry(&here, 0)
        .set_group_mode(GROUP, GroupMode::Ap, Duration::from_secs(60))
        .await
        .unwrap();
    assert!(moved.changed);
    cluster.server(away).resume().unwrap();
    let shown = eventually(
        "the group by records, at the one that was away",
        WAIT_MAX,
        || async {
            let view = local_view(&there, GROUP, STEADY, 0).await.ok()?;
            let listed = view.map_or(0, |view| view.nodes.len());
            assert_eq!(
                listed,
                nodes.len(),
                "it answers, and lacks nodes\n{}",
                cluster.log_tails()
            );
            let read = ReadOptions::default();
            let answer = registry(std::slice::from_ref(&there), 0)
                .query(&ServiceKey::new(GROUP, STEADY), read)
                .await
                .ok()?;
            (answer.header.mode() == GroupMode::Ap).then_some(())
        },
    );
    shown.await.unwrap();
    drop(fleet);
}
