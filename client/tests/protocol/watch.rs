//! The consumer's side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fake::{Cluster, Server, eventually};
use rollcall_client::{
    Error, Node, PollOptions, ReadOptions, Registry, RegistryConfig, ServiceKey, ServiceView, ServiceWatch,
    Sign, Source, Watch, WatchEvent, WatchTarget, v1,
};
use v1::watch_frame::Frame;

pub(crate) fn key() -> ServiceKey {
    ServiceKey::new("prod/feed", "ranker")
}

pub(crate) fn config(servers: &[&Server]) -> RegistryConfig {
    RegistryConfig::new(servers.iter().map(|server| server.address.to_string()))
}

pub(crate) fn nodes(ids: &[&str]) -> Vec<v1::Node> {
    ids.iter()
        .map(|id| v1::Node {
            id: (*id).into(),
            weight: 100,
            kind: 1,
            state: 1,
            ..Default::default()
        })
        .collect()
}

pub(crate) fn sign(ids: &[&str]) -> Option<v1::Sign> {
    let nodes: Vec<Node> = nodes(ids).into_iter().map(Node::from).collect();
    Some(Sign::of_nodes(&nodes).into())
}

pub(crate) fn frame(frame: Frame) -> v1::WatchFrame {
    v1::WatchFrame { frame: Some(frame) }
}

pub(crate) fn started(kind: v1::StartKind, revision: u64, exists: bool) -> v1::WatchFrame {
    let services = if exists { vec![(&key()).into()] } else { Vec::new() };
    frame(Frame::Started(v1::Started {
        subscription: 0,
        kind: kind.into(),
        revision,
        services,
        ..v1::Started::default()
    }))
}

pub(crate) fn snapshot(ids: &[&str], revision: u64) -> v1::WatchFrame {
    let view = v1::ServiceView {
        key: Some((&key()).into()),
        sign: sign(ids),
        revision,
        settings: None,
        nodes: nodes(ids),
        guard: None,
    };
    frame(Frame::Snapshot(v1::ServiceSnapshot {
        view: Some(view),
        revision,
        lagged: false,
    }))
}

pub(crate) fn delta(revision: u64, put: &[&str], removed: &[&str], after: &[&str]) -> v1::WatchFrame {
    let removed = removed
        .iter()
        .map(|id| v1::RemovedNode {
            id: (*id).into(),
            ..Default::default()
        })
        .collect();
    frame(Frame::Delta(v1::ServiceDelta {
        key: Some((&key()).into()),
        revision,
        sign: sign(after),
        put: nodes(put),
        removed,
        ..Default::default()
    }))
}

pub(crate) fn current(ids: &[&str], revision: u64) -> Vec<v1::WatchFrame> {
    vec![
        snapshot(ids, revision),
        started(v1::StartKind::Current, revision, true),
    ]
}

pub(crate) fn ids(view: &ServiceView) -> Vec<&str> {
    view.nodes.iter().map(|node| node.id.as_ref()).collect()
}

pub(crate) async fn until(
    watch: &mut ServiceWatch,
    wanted: impl Fn(&ServiceView) -> bool,
) -> Arc<ServiceView> {
    let found = async {
        loop {
            let view = watch.view();
            if wanted(&view) {
                return view;
            }
            watch.changed().await.expect("the watch lives");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .expect("the view comes")
}

pub(crate) async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(30), watch.next())
        .await
        .expect("an event comes")
}

#[tokio::test]
async fn changes_arrive_in_order_and_are_acknowledged() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch(key()).await.unwrap();
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Snapshot { view, lagged: false } if ids(&view) == ["a"])
    );
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Live {
            revision: 5,
            resumed: false,
            server: 1
        }
    ));
    server
        .send(vec![
            delta(6, &["b"], &[], &["a", "b"]),
            delta(7, &[], &["a"], &["b"]),
        ])
        .await;
    let WatchEvent::Changed { view, put, removed } = next(&mut watch).await else {
        panic!("a change")
    };
    assert_eq!(
        (view.revision, ids(&view), put.len(), removed.len()),
        (6, vec!["a", "b"], 1, 0)
    );
    let WatchEvent::Changed { view, put, removed } = next(&mut watch).await else {
        panic!("a change")
    };
    assert_eq!(
        (view.revision, ids(&view), put.len(), removed.len()),
        (7, vec!["b"], 0, 1)
    );
    eventually("the acknowledgement", || cluster.lock().acks.last() == Some(&7)).await;
    server
        .send(vec![frame(Frame::Bookmark(v1::Bookmark { revision: 19 }))])
        .await;
    eventually("the bookmark's acknowledgement", || {
        cluster.lock().acks.last() == Some(&19)
    })
    .await;
}

#[tokio::test]
async fn a_consumer_whose_turn_is_later_serves_what_it_has_and_asks_when_told() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    let wait = Duration::from_secs(3);
    let keep = v1::KeepCache {
        subscription: 0,
        retry_after_ms: u32::try_from(wait.as_millis()).unwrap(),
    };
    cluster.lock().script = vec![frame(Frame::KeepCache(keep))];
    let put_off_at = Instant::now();
    server.break_streams();
    eventually("the subscription is asked for", || {
        cluster.lock().subscriptions.len() == 2
    })
    .await;
    cluster.lock().script = current(&["a", "b"], 9);
    let view = watch.view();
    assert_eq!((ids(&view), view.source), (vec!["a"], Source::Cache));
    let view = until(&mut watch, |view| view.revision == 9).await;
    assert_eq!((ids(&view), view.source), (vec!["a", "b"], Source::Live));
    assert!(put_off_at.elapsed() + Duration::from_millis(50) >= wait);
    let cluster = cluster.lock();
    assert_eq!(
        cluster.subscriptions.len(),
        3,
        "it asked once more, and not before"
    );
    assert_eq!(cluster.subscriptions[2].1.known.len(), 1);
}

#[tokio::test]
async fn a_lost_stream_is_resumed_elsewhere_behind_what_was_seen() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&servers)).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    let first = servers
        .iter()
        .position(|server| server.id == cluster.lock().subscriptions[0].0)
        .unwrap();
    servers[first]
        .send(vec![delta(8, &["b"], &[], &["a", "b"])])
        .await;
    until(&mut watch, |view| view.revision == 8).await;
    // The other server resumes, repeats one change, and goes on.
    cluster.lock().script = vec![
        started(v1::StartKind::Resumed, 8, false),
        delta(8, &["b"], &[], &["a", "b"]),
        delta(9, &["c"], &[], &["a", "b", "c"]),
    ];
    servers[first].kill();
    let view = until(&mut watch, |view| view.revision == 9).await;
    assert_eq!((ids(&view), view.source), (vec!["a", "b", "c"], Source::Live));
    let cluster = cluster.lock();
    let (server, subscribe) = cluster.subscriptions.last().unwrap();
    assert_eq!((*server, subscribe.after_revision), (servers[1 - first].id, 8));
    assert_eq!(subscribe.known[0].sign, sign(&["a", "b"]));
}

/// The documented way out of a lost quorum: a new cluster under a new name, whose revisions begin anew.
#[tokio::test]
async fn in_a_new_cluster_nobody_waits_for_the_revisions_of_the_old_one() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 700_000);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    {
        let mut cluster = cluster.lock();
        (cluster.head, cluster.script) = (Some(40), current(&["b"], 40));
    }
    server.rename("new");
    server.break_streams();
    let view = until(&mut watch, |view| &*view.cluster == "new").await;
    assert_eq!(
        (ids(&view), view.revision, view.source),
        (vec!["b"], 40, Source::Live)
    );
    let cluster = cluster.lock();
    let asked = cluster.subscriptions.iter().map(|(_, one)| one.after_revision);
    assert_eq!(asked.collect::<Vec<_>>(), [0, 700_000, 0]);
}

/// Lists of a catch-up come one after another; the stream breaks between two of them.
#[tokio::test]
async fn a_catch_up_that_breaks_off_is_resumed_before_it() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch(WatchTarget::group("prod")).await.unwrap();
    until_live(&mut watch).await;
    let resumed_behind = || {
        let cluster = cluster.lock();
        cluster.subscriptions.last().map(|(_, one)| one.after_revision)
    };
    let Some(Frame::Snapshot(list)) = snapshot(&["b"], 10).frame else {
        unreachable!()
    };
    let lagged = || {
        frame(Frame::Snapshot(v1::ServiceSnapshot {
            lagged: true,
            ..list.clone()
        }))
    };
    server.send(vec![lagged()]).await;
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Snapshot { view, lagged: true } if ids(&view) == ["b"])
    );
    let begins = |ids: &[&str], changed: u64, at: u64| {
        cluster.lock().script = vec![snapshot(ids, changed), started(v1::StartKind::Current, at, true)];
    };
    begins(&["b"], 10, 11);
    server.break_streams();
    until_live(&mut watch).await;
    assert_eq!(
        resumed_behind(),
        Some(5),
        "another service's list may have been on its way"
    );
    assert!(cluster.lock().acks.iter().all(|ack| [5, 11].contains(ack)));

    // The bookmark ends the catch-up.
    server
        .send(vec![
            lagged(),
            frame(Frame::Bookmark(v1::Bookmark { revision: 12 })),
        ])
        .await;
    eventually("the bookmark's acknowledgement", || {
        cluster.lock().acks.last() == Some(&12)
    })
    .await;
    server.break_streams();
    until_live(&mut watch).await;
    assert_eq!(resumed_behind(), Some(12));

    // So do changes, if they are a message's last word.
    let change = || delta(13, &["c"], &[], &["b", "c"]);
    server.send(vec![change(), lagged()]).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Changed { .. }));
    begins(&["b", "c"], 13, 14);
    server.break_streams();
    until_live(&mut watch).await;
    assert_eq!(resumed_behind(), Some(11), "where the script started");
    server.send(vec![delta(15, &["d"], &[], &["b", "c", "d"])]).await;
    eventually("the change's acknowledgement", || {
        cluster.lock().acks.last() == Some(&15)
    })
    .await;
    begins(&["b", "c", "d"], 15, 15);
    server.break_streams();
    until_live(&mut watch).await;
    assert_eq!(resumed_behind(), Some(15));
}

pub(crate) async fn until_live(watch: &mut Watch) {
    while !matches!(next(watch).await, WatchEvent::Live { .. }) {}
}

#[tokio::test]
async fn a_closing_server_is_left_at_once_and_the_next_is_asked_in_the_slot_it_gave() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
        &Server::start(3, &cluster).await,
    ];
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&servers)).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    let asked = || cluster.lock().subscriptions.last().map(|(server, _)| *server);
    let first = asked().unwrap();
    let advised = servers.iter().rfind(|server| server.id != first).unwrap();
    let closing = servers.iter().find(|server| server.id == first).unwrap();
    let slot = Duration::from_millis(700);
    let told_at = std::time::Instant::now();
    closing.move_on(700, &[advised.address.to_string()]).await;
    until(&mut watch, |view| view.source == Source::Cache).await;
    eventually("another server is asked", || asked() != Some(first)).await;
    assert!(told_at.elapsed() >= slot, "{:?}", told_at.elapsed());
    assert_eq!(asked(), Some(advised.id));
    until(&mut watch, |view| view.source == Source::Live).await;
}

/// However long all servers were down, the first to come back is found within about a second.
#[tokio::test]
async fn servers_that_are_down_are_looked_for_at_short_and_bounded_intervals() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    server.kill();
    until(&mut watch, |view| view.source == Source::Cache).await;
    // Somebody else's program has the port and hangs up on everyone.
    let mut listener = None;
    while listener.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        listener = tokio::net::TcpListener::bind(server.address).await.ok();
    }
    let listener = listener.unwrap();
    // A machine that stands still for a moment delays attempts, but not always.
    let mut gaps = Vec::new();
    for _ in 0..3 {
        gaps.push(longest_gap(&listener).await);
        if gaps.last() < Some(&Duration::from_millis(1500)) {
            return;
        }
    }
    panic!("between two attempts: {gaps:?}");
}

/// The longest time between two attempts within five seconds.
async fn longest_gap(listener: &tokio::net::TcpListener) -> Duration {
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    let (mut last, mut longest, mut attempts) = (tokio::time::Instant::now(), Duration::ZERO, 0);
    while let Ok(accepted) = tokio::time::timeout_at(end, listener.accept()).await {
        drop(accepted.unwrap());
        (longest, attempts) = (longest.max(last.elapsed()), attempts + 1);
        last = tokio::time::Instant::now();
    }
    assert!(attempts < 60, "{attempts} attempts within 5 s");
    longest.max(last.elapsed())
}

#[tokio::test]
async fn while_no_server_answers_the_cache_stays_and_says_so() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    server.kill();
    let view = until(&mut watch, |view| view.source == Source::Cache).await;
    assert_eq!(ids(&view), ["a"]);
    assert_eq!(ids(&registry.discover(&key()).await.unwrap()), ["a"]);
}

#[tokio::test]
async fn an_empty_list_that_is_not_newer_never_replaces_nodes() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    server
        .send(vec![
            snapshot(&[], 5),
            snapshot(&[], 0),
            snapshot(&[], 4),
            delta(6, &["b"], &[], &["a", "b"]),
        ])
        .await;
    let view = until(&mut watch, |view| view.revision == 6).await;
    assert_eq!(ids(&view), ["a", "b"], "the change fits what was held all along");
    server.send(vec![snapshot(&[], 7)]).await;
    let view = until(&mut watch, |view| view.revision == 7).await;
    assert!(
        view.exists && view.nodes.is_empty(),
        "confirmed at a newer revision"
    );
}

#[tokio::test]
async fn a_missed_change_is_noticed_and_the_full_list_asked_for() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    cluster.lock().script = current(&["a", "b", "c"], 7);
    // Revision 6, which put `b`, is missing.
    server.send(vec![delta(7, &["c"], &[], &["a", "b", "c"])]).await;
    let view = until(&mut watch, |view| view.revision == 7).await;
    assert_eq!(ids(&view), ["a", "b", "c"]);
    let cluster = cluster.lock();
    let (_, again) = cluster.subscriptions.last().unwrap();
    assert_eq!(
        (
            cluster.subscriptions.len(),
            again.after_revision,
            again.known.len()
        ),
        (2, 0, 0)
    );
}

#[tokio::test]
async fn a_slow_reader_gets_the_state_instead_of_the_history() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let mut config = config(&[&server]);
    config.watch_events_max = 3;
    let registry = Registry::connect(config).unwrap();
    let mut slow = registry.watch(WatchTarget::group("prod")).await.unwrap();
    let mut latest = registry.watch_service(&key()).await.unwrap();
    until(&mut latest, |view| view.source == Source::Live).await;
    for revision in 6..60 {
        let put = if revision % 2 == 0 { ["b"] } else { ["a"] };
        let after: &[&str] = if revision % 2 == 0 { &["b"] } else { &["a"] };
        let removed = if revision % 2 == 0 { ["a"] } else { ["b"] };
        server.send(vec![delta(revision, &put, &removed, after)]).await;
    }
    until(&mut latest, |view| view.revision == 59).await;
    let WatchEvent::Lagged { views } = next(&mut slow).await else {
        panic!("the reader was slow")
    };
    assert_eq!((views.len(), views[0].revision), (1, 59));
    assert!(
        matches!(next(&mut slow).await, WatchEvent::Live { .. }),
        "left out before"
    );
    server.send(vec![delta(60, &["b"], &[], &["a", "b"])]).await;
    assert!(matches!(next(&mut slow).await, WatchEvent::Changed { view, .. } if view.revision == 60));
}

#[tokio::test]
async fn a_consumer_starts_from_disk_while_all_servers_are_down() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a", "b"], 5);
    {
        let registry = Registry::connect(config(&[&server]).snapshot_folder(folder.path())).unwrap();
        assert_eq!(registry.discover(&key()).await.unwrap().nodes.len(), 2);
        let file = folder.path().join("prod~feed~ranker.roll");
        eventually("the snapshot is on disk", || file.exists()).await;
    }
    server.kill();
    let registry = Registry::connect(config(&[&server]).snapshot_folder(folder.path())).unwrap();
    let view = registry.discover(&key()).await.unwrap();
    assert_eq!(
        (ids(&view), view.source, view.revision),
        (vec!["a", "b"], Source::Disk, 5)
    );
    assert!(view.age().unwrap() < Duration::from_secs(60));
    let mut config = config(&[&server]).snapshot_folder(folder.path());
    config.call_timeout = Duration::from_millis(300);
    let registry = Registry::connect(config).unwrap();
    let unknown = registry
        .discover(&ServiceKey::new("prod/feed", "other"))
        .await
        .unwrap_err();
    assert!(matches!(unknown, Error::Unavailable { .. }), "{unknown}");
}

/// A pipe into which nobody writes hangs as a folder does whose machine is gone. Who reads it is let go when what is returned
/// is dropped; it must be removed before, or one that comes late would hang for good.
#[cfg(target_os = "linux")]
fn hanging(pipe: &std::path::Path) -> std::fs::File {
    let made = std::process::Command::new("mkfifo").arg(pipe).status();
    assert!(made.unwrap().success());
    let mut both = std::fs::OpenOptions::new();
    both.read(true).write(true).open(pipe).unwrap()
}

/// As many files hang as are read at once. The one behind them is read when they let go, though nobody waits for it by then.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_snapshot_whose_turn_comes_late_is_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    {
        let registry = Registry::connect(config(&[&server]).snapshot_folder(folder.path())).unwrap();
        assert_eq!(registry.discover(&key()).await.unwrap().nodes.len(), 1);
        let file = folder.path().join("prod~feed~ranker.roll");
        eventually("the snapshot is on disk", || file.exists()).await;
    }
    server.kill();
    let names: Vec<String> = (0..32).map(|number| format!("n{number}")).collect();
    let pipe = |name: &String| folder.path().join(format!("prod~feed~{name}.roll"));
    let held: Vec<std::fs::File> = names.iter().map(|name| hanging(&pipe(name))).collect();
    let registry = Registry::connect(config(&[&server]).snapshot_folder(folder.path())).unwrap();
    let keys: Vec<ServiceKey> = names
        .iter()
        .map(|name| ServiceKey::new("prod/feed", name))
        .collect();
    let others = futures_util::future::join_all(keys.iter().map(|key| registry.watch_service(key))).await;
    let mut watch = registry.watch_service(&key()).await.unwrap();
    names
        .iter()
        .for_each(|name| std::fs::remove_file(pipe(name)).unwrap());
    drop(held);
    assert_eq!(
        ids(&*until(&mut watch, |view| view.source == Source::Disk).await),
        ["a"]
    );
    drop(others);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_snapshot_folder_that_hangs_holds_up_no_discovery() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("prod~feed~ranker.roll");
    let held = hanging(&pipe);
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server]).snapshot_folder(folder.path())).unwrap();
    let service = key();
    let discovered = tokio::time::timeout(Duration::from_secs(30), registry.discover(&service));
    let view = discovered.await.expect("an answer").unwrap();
    assert_eq!((ids(&view), view.source), (vec!["a"], Source::Live));
    std::fs::remove_file(&pipe).unwrap();
    drop(held);
}

#[tokio::test]
async fn what_does_not_exist_is_told_apart_from_what_is_not_known() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = vec![started(v1::StartKind::Current, 5, false)];
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    let error = registry.discover(&key()).await.unwrap_err();
    assert!(matches!(error, Error::ServiceNotFound { .. }), "{error}");
    // It comes into being, and the same subscription tells.
    let Some(Frame::Delta(created)) = delta(6, &["a"], &[], &["a"]).frame else {
        unreachable!()
    };
    server
        .send(vec![frame(Frame::Delta(v1::ServiceDelta {
            created: true,
            ..created
        }))])
        .await;
    assert_eq!(ids(&*until(&mut watch, |view| view.revision == 6).await), ["a"]);
    assert_eq!(registry.discover(&key()).await.unwrap().nodes.len(), 1);
}

#[tokio::test]
async fn names_that_do_not_exist_use_up_no_subscriptions() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = vec![started(v1::StartKind::Current, 5, false)];
    let mut config = config(&[&server]);
    config.subscriptions_max = 2;
    let registry = Registry::connect(config).unwrap();
    for name in ["one", "two", "three"] {
        let unknown = ServiceKey::new("prod/feed", name);
        let error = registry.discover(&unknown).await.unwrap_err();
        assert!(matches!(error, Error::ServiceNotFound { .. }), "{error}");
    }
    cluster.lock().script = current(&["a"], 5);
    // The second time from memory.
    for _ in 0..2 {
        assert_eq!(ids(&registry.discover(&key()).await.unwrap()), ["a"]);
    }
    assert_eq!(cluster.lock().subscriptions.len(), 4);
}

#[tokio::test]
async fn a_poll_asks_for_a_list_only_when_its_sign_differs() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let view = |ids: &[&str], revision: u64| {
        let (key, sign, nodes) = (Some((&key()).into()), sign(ids), nodes(ids));
        Some(v1::ServiceView {
            key,
            sign,
            revision,
            settings: None,
            nodes,
            guard: None,
        })
    };
    let set = |ids: &[&str], revision: u64| {
        let mut cluster = cluster.lock();
        (cluster.view, cluster.revision) = (view(ids, revision), revision);
    };
    set(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let other = ServiceKey::new("prod/feed", "other");
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watches = registry.poll(&[key(), other], options).unwrap();
    let mut absent = watches.pop().unwrap();
    let mut watch = watches.pop().unwrap();
    assert_eq!(
        ids(&*until(&mut watch, |view| view.source == Source::Live).await),
        ["a"]
    );
    assert!(
        !until(&mut absent, |view| view.source == Source::Live)
            .await
            .exists
    );
    cluster.lock().revision = 9;
    until_confirmed(&watch, 9).await;
    assert_eq!(cluster.lock().queries, 1, "equal signs cost no list");
    set(&[], 5);
    until_confirmed(&absent, 5).await;
    eventually("the empty list was looked at", || cluster.lock().queries >= 2).await;
    assert_eq!(ids(&watch.view()), ["a"], "an empty list that is not newer");
    set(&["b"], 12);
    assert_eq!(ids(&*until(&mut watch, |view| view.revision == 12).await), ["b"]);
    drop((watch, absent));
    assert!(registry.poll(&[], PollOptions::every(Duration::ZERO)).is_err());
}

/// It knows that its list is another one by now.
#[tokio::test]
async fn a_poll_that_is_not_given_the_new_list_does_not_call_the_old_one_live() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let set = |ids: &[&str], revision: u64, keep_cache_ms: u32| {
        let mut cluster = cluster.lock();
        (cluster.revision, cluster.keep_cache_ms) = (revision, keep_cache_ms);
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(ids),
            revision,
            settings: None,
            nodes: nodes(ids),
            guard: None,
        });
    };
    set(&["a"], 5, 0);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    set(&["b"], 6, 300);
    let view = until(&mut watch, |view| view.source == Source::Cache).await;
    assert_eq!(ids(&view), ["a"]);
    cluster.lock().keep_cache_ms = 0;
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    assert_eq!(ids(&view), ["b"]);
}

#[tokio::test]
async fn what_is_polled_is_as_old_as_the_server_says() {
    const HOUR: Duration = Duration::from_secs(3600);
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let set = |age_ms: u64| {
        let mut cluster = cluster.lock();
        (cluster.revision, cluster.age_ms) = (5, age_ms);
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(&["a"]),
            revision: 5,
            nodes: nodes(&["a"]),
            ..v1::ServiceView::default()
        });
    };
    let young = |view: &ServiceView| view.age().is_some_and(|age| age < HOUR);
    set(u64::MAX);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    // Nobody knows how old it is: better than nothing, and no more.
    let view = until(&mut watch, |view| view.source != Source::Nothing).await;
    assert_eq!(
        (ids(&view), view.source, view.age()),
        (vec!["a"], Source::Cache, None)
    );
    let asked = registry.query(&key(), ReadOptions::local()).await.unwrap();
    assert_eq!(asked.value.age(), None);

    set(3_600_000);
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    assert!(view.age() >= Some(HOUR), "{:?}", view.age());
    let asked = registry.query(&key(), ReadOptions::local()).await.unwrap();
    assert!(asked.value.age() >= Some(HOUR), "{:?}", asked.value.age());

    // Another one is up to date; the word of one that is behind takes nothing back, nor does that of one that does not know.
    set(0);
    eventually("it is young", || young(&watch.view())).await;
    set(3_600_000);
    let rounds = cluster.lock().sign_calls + 3;
    eventually("it is asked again", || cluster.lock().sign_calls >= rounds).await;
    assert_eq!(watch.view().source, Source::Live);
    assert!(young(&watch.view()));
    set(u64::MAX);
    let view = until(&mut watch, |view| view.source != Source::Live).await;
    assert_eq!((ids(&view), view.source), (vec!["a"], Source::Cache));
    assert!(young(&view));
}

async fn until_confirmed(watch: &ServiceWatch, as_of: u64) {
    eventually("the view is confirmed", || watch.view().as_of >= as_of).await;
}

fn guard(held: u32, engaged_since: u64, up: u32) -> v1::GuardStatus {
    v1::GuardStatus {
        engaged: engaged_since > 0,
        engaged_since,
        held_since: engaged_since,
        held,
        up,
        ..Default::default()
    }
}

fn guarded(frame: v1::WatchFrame, guard: v1::GuardStatus) -> v1::WatchFrame {
    let guard = Some(guard);
    let frame = frame.frame.map(|frame| match frame {
        Frame::Delta(delta) => Frame::Delta(v1::ServiceDelta { guard, ..delta }),
        Frame::Started(started) => {
            let key = Some((&key()).into());
            let guards = vec![v1::ServiceGuard { key, guard }];
            Frame::Started(v1::Started { guards, ..started })
        }
        other => other,
    });
    v1::WatchFrame { frame }
}

#[tokio::test]
async fn a_guards_word_is_in_the_view_and_its_news_are_events() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch(key()).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot { view, .. } if view.guard.is_none()));
    assert!(matches!(next(&mut watch).await, WatchEvent::Live { .. }));

    // With a change of nodes: that first. A mere count is no event, and in the view. Without any node.
    server
        .send(vec![
            guarded(delta(6, &["b"], &[], &["a", "b"]), guard(1, 6, 1)),
            guarded(delta(7, &["c"], &[], &["a", "b", "c"]), guard(1, 6, 2)),
            guarded(delta(8, &[], &[], &["a", "b", "c"]), guard(0, 0, 2)),
        ])
        .await;
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Changed { view, .. } if view.guard == Some(guard(1, 6, 1)))
    );
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Guard { view, before: None } if view.revision == 6 && view.guard == Some(guard(1, 6, 1))
    ));
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Changed { view, .. } if view.guard == Some(guard(1, 6, 2)))
    );
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Guard { view, before } if view.revision == 8
            && view.guard.is_none()
            && before == Some(guard(1, 6, 2))
    ));
    assert_eq!(ids(&watch.views()[0]), ["a", "b", "c"]);

    // It engages while the stream is lost, and comes with an equal sign.
    cluster.lock().script = vec![guarded(started(v1::StartKind::Current, 9, true), guard(2, 9, 1))];
    server.break_streams();
    assert!(matches!(next(&mut watch).await, WatchEvent::Interrupted { .. }));
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Guard { view, before: None } if view.guard == Some(guard(2, 9, 1))
    ));
}

#[tokio::test]
async fn an_older_server_that_names_no_metadata_confirms_lists_all_the_same() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    {
        let settings = v1::ServiceSettings {
            metadata: [("about".to_owned(), "old".to_owned())].into(),
            ..v1::ServiceSettings::default()
        };
        let mut cluster = cluster.lock();
        (cluster.revision, cluster.older) = (5, true);
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(&["a"]),
            revision: 5,
            settings: Some(settings),
            nodes: nodes(&["a"]),
            guard: None,
        });
    }
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    let live_since = Instant::now();
    eventually("further questions", || cluster.lock().queries >= 8).await;
    eventually("a list that was confirmed lately", || {
        let view = watch.view();
        view.source == Source::Live && view.age().is_some_and(|age| age < live_since.elapsed() / 2)
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_refused_spoils_no_poll() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().view = Some(v1::ServiceView {
        key: Some((&key()).into()),
        sign: sign(&["a"]),
        revision: 5,
        nodes: nodes(&["a"]),
        ..v1::ServiceView::default()
    });
    let registry = Registry::connect(config(&[&server])).unwrap();
    let bad = |at: usize| ServiceKey::new("prod", format!("no name {at}"));
    let keys = [bad(1), key(), bad(2)];
    let mut watches = registry
        .poll(&keys, PollOptions::every(Duration::from_millis(50)))
        .unwrap();
    until(&mut watches[1], |view| view.source == Source::Live).await;
    for at in [0, 2] {
        let error = tokio::time::timeout(Duration::from_secs(10), watches[at].live()).await;
        let error = error.expect("in time").unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{error}");
    }
}

#[tokio::test]
async fn discovery_tells_of_a_token_that_no_server_knows() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    cluster.lock().knows_no_token = true;
    // One is down, and says nothing of the token.
    let mut config = config(&servers);
    config.servers.push("127.0.0.1:1".into());
    // One is named twice, and says no more for it.
    config.servers.push(config.servers[0].clone());
    let registry = Registry::connect(config).unwrap();
    let group = WatchTarget::group("prod");
    let mut early = registry.watch(group.clone()).await.unwrap();
    let error = registry.discover(&key()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
    // A group's watch has no service to say it of; who comes later is told as well. Once each.
    let unknown = |event| matches!(event, WatchEvent::Rejected { error } if matches!(*error, Error::Unauthenticated { .. }));
    assert!(unknown(next(&mut early).await));
    let mut late = registry.watch(group).await.unwrap();
    assert!(unknown(next(&mut late).await));
    let before = cluster.lock().denials;
    eventually("further rounds", || cluster.lock().denials >= before + 6).await;
    // The servers learn of it.
    {
        let mut cluster = cluster.lock();
        cluster.knows_no_token = false;
        cluster.script = current(&["a"], 5);
    }
    eventually_found(&registry).await;
    for mut watch in [early, late] {
        let event = next(&mut watch).await;
        assert!(matches!(event, WatchEvent::Snapshot { .. }), "{event:?}");
    }
}

async fn eventually_found(registry: &Registry) {
    let mut watch = registry.watch_service(&key()).await.unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    registry.discover(&key()).await.unwrap();
}

#[tokio::test]
async fn a_poll_learns_of_metadata_that_changed_under_an_equal_sign() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let set = |about: &str, revision: u64| {
        let settings = v1::ServiceSettings {
            metadata: [("about".to_owned(), about.to_owned())].into(),
            ..v1::ServiceSettings::default()
        };
        let mut cluster = cluster.lock();
        cluster.revision = revision;
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(&["a"]),
            revision,
            settings: Some(settings),
            nodes: nodes(&["a"]),
            guard: None,
        });
    };
    set("old", 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    let says = |view: &ServiceView, about: &str| {
        view.source == Source::Live && view.metadata.get("about").is_some_and(|said| said == about)
    };
    until(&mut watch, |view| says(view, "old")).await;
    set("new", 6);
    until(&mut watch, |view| says(view, "new")).await;
    assert_eq!(cluster.lock().queries, 2, "one list each");
}

#[tokio::test]
async fn a_poll_learns_of_a_guard_whose_service_has_an_equal_sign() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let set = |guard: Option<v1::GuardStatus>, revision: u64| {
        let mut cluster = cluster.lock();
        cluster.revision = revision;
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(&["a"]),
            revision,
            settings: None,
            nodes: nodes(&["a"]),
            guard,
        });
    };
    set(None, 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    until(&mut watch, |view| view.source == Source::Live).await;
    for said in [Some(guard(1, 6, 0)), None] {
        set(said, 6);
        until(&mut watch, |view| view.guard == said).await;
    }
    assert_eq!(cluster.lock().queries, 1, "equal signs cost no list");
}
