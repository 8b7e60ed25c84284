//! A group moves to gossip and back on real processes, under load: nothing acknowledged is lost, nobody sees a node
//! leave, and what lives goes on living on the other side.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use rollcall_client::v1::GroupMode;
use rollcall_client::{
    Error, ReadOptions, Registration, ServiceKey, SessionOptions, SessionStatus, WatchEvent, WriteOptions,
};
use rollcall_jepsen::lab::reading::{connect, local_view};
use rollcall_jepsen::lab::{ClusterOptions, WAIT_MAX, eventually};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{QueryRequest, ReadMode, ServiceView};
use support::{GROUP, Load, Stage, cluster, cluster_with, fleet, registry};
use tonic::transport::Channel;

/// Longer than this machine stands still when it is busy, which may lapse sessions rightly. The writers run dry after some
/// twenty seconds, so it cannot be much longer.
const TTL: Duration = Duration::from_secs(5);
const STEADY: &str = "steady";
const BUSY: &str = "busy";

/// What a consumer of the whole group was told: of nodes, and of nodes that left or services that went.
struct Consumer {
    seen: Arc<Mutex<BTreeSet<String>>>,
    gone: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Consumer {
    async fn start(addresses: &[String], first: usize) -> Self {
        let mut watch = registry(addresses, first)
            .watch(rollcall_client::WatchTarget::Group(GROUP.into()))
            .await
            .unwrap();
        let (seen, gone) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let (known, told, stopped): (Arc<Mutex<BTreeSet<String>>>, _, _) =
            (Arc::clone(&seen), gone.clone(), stop.clone());
        let task = tokio::spawn(async move {
            loop {
                let event = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
                match event {
                    Ok(WatchEvent::Snapshot { view, .. }) => {
                        let names: BTreeSet<String> =
                            view.nodes.iter().map(|node| node.id.to_string()).collect();
                        let service = view.key.service.clone();
                        let of_service =
                            |name: &String| name.starts_with(if &*service == STEADY { 'f' } else { 'w' });
                        let mut seen = known.lock();
                        let lost = seen
                            .iter()
                            .filter(|name| of_service(name) && !names.contains(*name));
                        told.lock()
                            .extend(lost.map(|name| format!("{name} is not in a snapshot of {service}")));
                        seen.extend(names);
                    }
                    Ok(WatchEvent::Changed { put, removed, .. }) => {
                        known.lock().extend(put.iter().map(|node| node.id.to_string()));
                        told.lock()
                            .extend(removed.iter().map(|node| format!("{} was removed", node.id)));
                    }
                    Ok(WatchEvent::Gone { view }) => told.lock().push(format!("{} is gone", view.key)),
                    Ok(_) => {}
                    Err(_) if stopped.load(Ordering::Acquire) => return,
                    Err(_) => {}
                }
            }
        });
        Self {
            seen,
            gone,
            stop,
            task,
        }
    }

    async fn wait_seen(&self, wanted: &BTreeSet<String>) {
        eventually("a consumer is told of everything", WAIT_MAX, || async {
            wanted.is_subset(&self.seen.lock()).then_some(())
        })
        .await
        .unwrap();
    }

    async fn finish(self) -> (Vec<String>, BTreeSet<String>) {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap();
        (self.gone.lock().clone(), self.seen.lock().clone())
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
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
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

/// The one that stands still learns of the end of the move before it has any of the records, and nothing but that makes
/// it ask for them: it does not compare by itself for as long as the test lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_during_a_move_shows_all_of_the_group_or_nothing() {
    let arguments = ["ap.repair_interval=1h", "gossip.preset=local"];
    let arguments = arguments.iter().flat_map(|set| ["--set", set]);
    let mut cluster = cluster_with(ClusterOptions {
        arguments: arguments.map(str::to_owned).collect(),
        ..ClusterOptions::servers(3)
    })
    .await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let away = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let there = cluster.server(away).address().to_owned();
    let here: Vec<String> = cluster
        .addresses()
        .into_iter()
        .filter(|of| *of != there)
        .collect();
    let mut nodes: BTreeSet<String> = (0..40)
        .flat_map(|n| (1..=5).map(move |port| format!("f{n}-{port}")))
        .collect();
    let fleet = fleet(&here, STEADY, 40, 5, TTL * 8).await;
    wait_listed(&cluster, STEADY, &nodes).await;
    let consumer = Consumer::start(std::slice::from_ref(&there), 0).await;
    consumer.wait_seen(&nodes).await;

    cluster.server(away).pause().await.unwrap();
    let moved = registry(&here, 0)
        .set_group_mode(GROUP, GroupMode::Ap, Duration::from_secs(60))
        .await
        .unwrap();
    assert!(moved.changed);
    cluster.server(away).resume().unwrap();

    // Asked without a pause from the first moment on, at eight places at once.
    let mut askers = tokio::task::JoinSet::new();
    let asked_until = Instant::now() + WAIT_MAX;
    for _ in 0..8 {
        let (there, listed) = (there.clone(), nodes.len());
        askers.spawn(async move {
            let mut registry = RegistryClient::new(connect(&there).await.unwrap());
            while Instant::now() < asked_until {
                let Ok((mode, found)) = ask(&mut registry).await else {
                    continue;
                };
                assert_eq!(found, listed, "it answers as {mode:?}, and lacks nodes");
                if mode == GroupMode::Ap {
                    return;
                }
            }
            panic!("it does not show the group by records in time");
        });
    }
    while let Some(asked) = askers.join_next().await {
        assert!(asked.is_ok(), "{asked:?}\n{}", cluster.log_tails());
    }

    // Its consumers are told of what came later, and of nothing that left.
    let late = Registration::new("tcp", "127.0.0.1", 6).id("f0-6");
    let service = ServiceKey::new(GROUP, STEADY);
    let written = fleet[0].register(&service, late).await.unwrap();
    assert_eq!(written.mode, GroupMode::Ap);
    nodes.insert("f0-6".into());
    consumer.wait_seen(&nodes).await;
    let (gone, _) = consumer.finish().await;
    assert_eq!(gone, Vec::<String>::new());
}

/// In which mode the service is shown, and how many nodes it has.
async fn ask(registry: &mut RegistryClient<Channel>) -> Result<(GroupMode, usize), tonic::Status> {
    let request = QueryRequest {
        key: Some(rollcall_proto::v1::ServiceKey {
            group: GROUP.into(),
            service: STEADY.into(),
        }),
        read: Some(rollcall_proto::v1::ReadOptions {
            mode: ReadMode::Local.into(),
            ..rollcall_proto::v1::ReadOptions::default()
        }),
        ..QueryRequest::default()
    };
    let answer = match registry.query(request).await {
        Ok(answer) => answer.into_inner(),
        // No such service: nothing is listed.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok((GroupMode::Unspecified, 0)),
        Err(status) => return Err(status),
    };
    let view = ServiceView::decode(answer.view.unwrap_or_default());
    let mode = answer.header.unwrap_or_default().mode();
    Ok((mode, view.map_or(0, |view| view.nodes.len())))
}
