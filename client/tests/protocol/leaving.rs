//! The provider's side: what is asked to go when the session was lost, and nodes of it are still listed.

use std::time::Duration;

use crate::fake::{Cluster, Server, eventually};
use crate::session::{key, node, open, registry, wait_for};
use rollcall_client::{
    Entry, Error, NodeKey, Registry, RegistryConfig, Removal, Session, SessionEvent, SessionEvents,
    WriteOptions,
};

const NODES: u16 = 3;

fn id(port: u16) -> NodeKey {
    key().node(format!("127.0.0.1:{port}"))
}

/// Three nodes in one session, of which servers are patient.
async fn provider(cluster: &Cluster) -> (Server, Session, SessionEvents) {
    provider_with(cluster, Duration::from_secs(20)).await
}

async fn provider_with(cluster: &Cluster, call_timeout: Duration) -> (Server, Session, SessionEvents) {
    let server = Server::start(1, cluster).await;
    let mut config = RegistryConfig::new([server.address.to_string()]);
    config.call_timeout = call_timeout;
    let session = open(&Registry::connect(config).unwrap(), Duration::from_secs(2)).await;
    let events = session.events();
    let entries = (0..NODES).map(|port| Entry::new(key(), node(port))).collect();
    session
        .register_all(entries, WriteOptions::default())
        .await
        .unwrap();
    (server, session, events)
}

/// The first node is gone with its session, the others are held.
fn lose(cluster: &Cluster) {
    let mut cluster = cluster.lock();
    cluster.registered.clear();
    cluster.requests.clear();
    cluster.hold_all();
    cluster.held.remove("127.0.0.1:0");
}

/// They wait for space to be registered again.
async fn lose_with_a_full_disk(cluster: &Cluster) {
    cluster.lock().disk_full = true;
    lose(cluster);
    eventually("they are to be registered again", || {
        !cluster.lock().requests.is_empty()
    })
    .await;
}

fn assert_nothing_is_listed(cluster: &Cluster) {
    let cluster = cluster.lock();
    let listed: Vec<_> = (0..NODES)
        .filter(|port| cluster.owner(&id(*port).node).is_some())
        .collect();
    assert!(listed.is_empty(), "{listed:?}, held {:?}", cluster.held);
    assert!(cluster.sessions.is_empty(), "{:?}", cluster.sessions);
    let absent = &id(0).node;
    assert!(
        !cluster.registered.iter().any(|node| **node == **absent),
        "what was gone is registered"
    );
}

/// The events until the session has ended tell nothing of nodes that are on their way out.
async fn assert_no_confusion(mut events: SessionEvents) {
    while let Some(event) = events.next().await {
        let confuses = matches!(
            event,
            SessionEvent::Reregistered { .. }
                | SessionEvent::NodesTaken { .. }
                | SessionEvent::NodeRefused { .. }
        );
        assert!(!confuses, "{event:?}");
    }
}

#[tokio::test]
async fn what_is_asked_to_go_while_it_waits_to_be_registered_again_goes_from_the_lost_session() {
    let cluster = Cluster::default();
    let (_server, session, mut events) = provider(&cluster).await;
    lose_with_a_full_disk(&cluster).await;
    let (gone, held) = (id(0), id(1));
    let space = async {
        eventually("both are off the roll", || session.nodes() == [id(2)]).await;
        cluster.lock().disk_full = false;
    };
    let (first, second, ()) = tokio::join!(session.deregister(&gone), session.deregister(&held), space);
    first.unwrap();
    second.unwrap();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { nodes: 1 })
    })
    .await;
    let cluster = cluster.lock();
    let owners = [0, 1, 2].map(|port| cluster.owner(&id(port).node));
    assert_eq!(owners, [None, None, Some(2)]);
    assert!(
        !cluster.registered.iter().any(|node| **node == *gone.node),
        "it was not there"
    );
}

/// A server without a leader may have heard of no node that the session has in the log: it answers for AP groups.
#[tokio::test]
async fn a_session_with_nodes_in_the_log_is_closed_when_a_leader_says_so() {
    let cluster = Cluster::default();
    let (server, session, _) = provider(&cluster).await;
    server.cut_off(true);
    let leader_comes = async {
        eventually("it is asked again", || cluster.lock().requests.len() >= 3).await;
        server.cut_off(false);
    };
    let (closed, ()) = tokio::join!(session.close(), leader_comes);
    closed.unwrap();
    assert!(cluster.lock().sessions.is_empty());
}

/// Nobody had decided about it.
/// Its answer was lost, and the server that ends what it knows of without a leader may not have heard of it.
#[tokio::test]
async fn a_session_is_not_called_closed_by_a_server_without_a_leader_if_a_registration_may_be_in_the_log() {
    for unknown in [false, true] {
        let cluster = Cluster::default();
        let server = Server::start(1, &cluster).await;
        let mut config = RegistryConfig::new([server.address.to_string()]);
        config.call_timeout = Duration::from_secs(3);
        let session = open(&Registry::connect(config).unwrap(), Duration::from_secs(60)).await;
        if unknown {
            server.mute(true);
            let soon = WriteOptions {
                timeout: Some(Duration::from_millis(300)),
                ..WriteOptions::default()
            };
            let entries = vec![Entry::new(key(), node(1))];
            let error = session.register_all(entries, soon).await.unwrap_err();
            assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
            server.mute(false);
        }
        server.cut_off(true);
        let closed = session.close().await;
        assert_eq!(closed.is_err(), unknown, "{closed:?}");
    }
}

#[tokio::test]
async fn what_was_asked_to_go_in_vain_while_cut_off_goes_once_the_loss_is_known() {
    let cluster = Cluster::default();
    let (server, session, mut events) = provider(&cluster).await;
    server.mute(true);
    server.break_streams();
    let brief = WriteOptions {
        timeout: Some(Duration::from_millis(500)),
        ..WriteOptions::default()
    };
    let asked = session.deregister_all(vec![id(1).into()], brief).await;
    asked.unwrap_err();
    lose(&cluster);
    server.mute(false);
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { .. })
    })
    .await;
    eventually("it is taken out", || cluster.lock().owner(&id(1).node).is_none()).await;
}

#[tokio::test]
async fn what_is_asked_to_go_before_the_loss_is_known_goes_from_the_lost_session() {
    let cluster = Cluster::default();
    let (_server, session, mut events) = provider(&cluster).await;
    lose(&cluster);
    session.deregister(&id(1)).await.unwrap();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { nodes: 2 })
    })
    .await;
    assert_eq!(session.nodes(), [id(0), id(2)]);
    assert_eq!(cluster.lock().owner(&id(1).node), None);
}

#[tokio::test]
async fn what_somebody_else_has_registered_meanwhile_is_left_to_them() {
    let cluster = Cluster::default();
    let (server, session, _) = provider(&cluster).await;
    let other = open(&registry(&[&server]), Duration::from_secs(60)).await;
    other.register(&key(), node(1)).await.unwrap();
    cluster.lock().sessions.remove(&1);
    let error = session.deregister(&id(1)).await.unwrap_err();
    assert!(matches!(error, Error::NotOwner { .. }), "{error}");
    session.close().await.unwrap();
    assert_eq!(cluster.lock().owner(&id(1).node), Some(other.id()));
}

#[tokio::test]
async fn a_session_is_closed_with_what_it_had_though_it_was_lost_before() {
    let cluster = Cluster::default();
    let (_server, session, events) = provider(&cluster).await;
    lose(&cluster);
    session.close().await.unwrap();
    assert_nothing_is_listed(&cluster);
    assert_no_confusion(events).await;
}

#[tokio::test]
async fn a_session_is_closed_with_what_it_had_though_no_new_one_is_open_yet() {
    let cluster = Cluster::default();
    let (_server, session, mut events) = provider(&cluster).await;
    cluster.lock().opens_nothing = true;
    lose(&cluster);
    wait_for(&mut events, |event| matches!(event, SessionEvent::Lost { .. })).await;
    let handle = session.clone();
    let closing = tokio::spawn(session.close());
    eventually("it closes", || handle.nodes().is_empty()).await;
    cluster.lock().opens_nothing = false;
    closing.await.unwrap().unwrap();
    assert_nothing_is_listed(&cluster);
    assert_no_confusion(events).await;
}

#[tokio::test]
async fn a_session_is_closed_with_what_it_had_though_it_is_lost_meanwhile() {
    let cluster = Cluster::default();
    let (server, session, events) = provider(&cluster).await;
    server.mute(true);
    server.break_streams();
    let handle = session.clone();
    let closing = tokio::spawn(session.close());
    eventually("it closes", || handle.nodes().is_empty()).await;
    lose(&cluster);
    server.mute(false);
    closing.await.unwrap().unwrap();
    assert_nothing_is_listed(&cluster);
    assert_no_confusion(events).await;
}

#[tokio::test]
async fn a_session_is_closed_with_what_waits_to_be_registered_again() {
    let cluster = Cluster::default();
    let (_server, session, events) = provider(&cluster).await;
    lose_with_a_full_disk(&cluster).await;
    cluster.lock().disk_full = false;
    // It waits a little before it is said again.
    session.close().await.unwrap();
    assert_eq!(cluster.lock().held.len(), 0);
    assert!(cluster.lock().sessions.is_empty());
    drop(events);
}

#[tokio::test]
async fn a_dropped_session_leaves_nothing_though_it_was_lost() {
    let cluster = Cluster::default();
    let (_server, session, events) = provider(&cluster).await;
    lose(&cluster);
    drop(session);
    eventually("nothing is held", || cluster.lock().held.is_empty()).await;
    assert_no_confusion(events).await;
    assert_nothing_is_listed(&cluster);
}

#[tokio::test]
async fn a_full_disk_does_not_keep_a_session_open() {
    let cluster = Cluster::default();
    let (_server, session, events) = provider(&cluster).await;
    lose_with_a_full_disk(&cluster).await;
    let error = session.close().await.unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    let listed = cluster.lock().held.len();
    assert_eq!(listed, 2, "which it says");
    assert!(cluster.lock().sessions.is_empty(), "the session is closed");
    assert_no_confusion(events).await;
}

/// A deregistration is repeated though its caller is gone, and here for longer than the session takes to be closed.
#[tokio::test]
async fn a_write_that_is_put_off_does_not_keep_a_session_open() {
    let cluster = Cluster::default();
    let (_server, session, _) = provider_with(&cluster, Duration::from_secs(8)).await;
    {
        let mut cluster = cluster.lock();
        cluster.requests.clear();
        cluster.deregisters_nothing = true;
    }
    let late = WriteOptions {
        timeout: Some(Duration::from_secs(60)),
        ..WriteOptions::default()
    };
    let node = id(0);
    tokio::select! {
        answer = session.deregister_all(vec![Removal::from(node)], late) => panic!("{answer:?}"),
        () = eventually("it is asked for", || !cluster.lock().requests.is_empty()) => {}
    }
    session.close().await.unwrap();
    assert!(cluster.lock().sessions.is_empty(), "the session is closed");
}

#[tokio::test]
async fn a_server_that_does_not_say_whose_nodes_are_does_not_keep_a_session_open() {
    let cluster = Cluster::default();
    let (_server, session, _) = provider_with(&cluster, Duration::from_secs(8)).await;
    cluster.lock().explains_nothing = true;
    lose(&cluster);
    let error = session.close().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(cluster.lock().sessions.is_empty(), "the session is closed");
}

#[tokio::test]
async fn sessions_that_cannot_be_closed_are_not_opened_for_ever() {
    let cluster = Cluster::default();
    let (_server, session, _) = provider(&cluster).await;
    {
        let mut cluster = cluster.lock();
        cluster.disk_full = true;
        cluster.closes_nothing = true;
    }
    lose(&cluster);
    let error = session.close().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(cluster.lock().last_session, 4, "the first one, and three more");
}
