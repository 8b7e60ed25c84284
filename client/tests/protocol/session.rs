//! The provider's side.

use std::time::Duration;

use crate::fake::{Cluster, Server, eventually};
use rollcall_client::{
    Error, NodeKind, Registration, Registry, RegistryConfig, RequestId, ServiceKey, Session, SessionEvent,
    SessionEvents, SessionOptions, SessionStatus, WriteOptions, v1,
};

pub(crate) fn key() -> ServiceKey {
    ServiceKey::new("prod/feed", "ranker")
}

pub(crate) fn node(port: u16) -> Registration {
    Registration::new("http", "127.0.0.1", port)
}

pub(crate) fn registry(servers: &[&Server]) -> Registry {
    Registry::connect(RegistryConfig::new(
        servers.iter().map(|server| server.address.to_string()),
    ))
    .unwrap()
}

pub(crate) async fn open(registry: &Registry, ttl: Duration) -> Session {
    registry.open_session(SessionOptions::ttl(ttl)).await.unwrap()
}

pub(crate) async fn wait_for(
    events: &mut SessionEvents,
    wanted: impl Fn(&SessionEvent) -> bool,
) -> SessionEvent {
    let found = async {
        loop {
            let event = events.next().await.expect("the session lives");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .expect("the event comes")
}

fn attached_to(session: &Session, servers: &[&Server]) -> usize {
    let SessionStatus::Attached { server } = session.status() else {
        panic!("{:?}", session.status())
    };
    servers
        .iter()
        .position(|one| one.address.to_string() == server)
        .unwrap()
}

#[tokio::test]
async fn nodes_are_registered_kept_alive_and_taken_out() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    assert_eq!((session.id(), session.ttl()), (1, Duration::from_secs(2)));
    let written = session.register(&key(), node(1)).await.unwrap();
    assert!(written.changed && written.revision == 1);
    session.register(&key(), node(2)).await.unwrap();
    session.drain(&key().node("127.0.0.1:2")).await.unwrap();
    session.deregister(&key().node("127.0.0.1:1")).await.unwrap();
    assert_eq!(session.nodes(), [key().node("127.0.0.1:2")]);
    let draining = i32::from(v1::NodeState::Draining);
    {
        let cluster = cluster.lock();
        let nodes = &cluster.sessions[&1].nodes;
        assert_eq!(nodes.len(), 1);
        assert_eq!(
            nodes["127.0.0.1:2"].registration.as_ref().unwrap().state,
            draining
        );
    }
    eventually("two heartbeats", || cluster.lock().sessions[&1].renewals >= 2).await;
    session.close().await.unwrap();
    assert!(cluster.lock().sessions.is_empty());
}

#[tokio::test]
async fn a_dropped_session_is_closed() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    drop(session);
    eventually("the session is closed", || cluster.lock().sessions.is_empty()).await;
}

#[tokio::test]
async fn when_its_server_dies_it_attaches_to_another_and_keeps_its_nodes() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let session = open(&registry(&servers), Duration::from_secs(10)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    let first = attached_to(&session, &servers);
    servers[first].kill();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reattached { .. })
    })
    .await;
    assert_ne!(attached_to(&session, &servers), first);
    session.register(&key(), node(2)).await.unwrap();
    assert_eq!(session.id(), 1);
    let cluster = cluster.lock();
    assert_eq!(
        (cluster.sessions[&1].nodes.len(), cluster.sessions[&1].attached),
        (2, 1)
    );
}

/// A session at the first of two servers, which is cut off, with a node in an AP group.
async fn at_a_server_that_is_cut_off(servers: [&Server; 2]) -> Session {
    servers[0].cut_off(true);
    servers[1].mute(true);
    let addresses = servers.map(|server| server.address.to_string());
    let config = RegistryConfig::new(addresses).call_timeout(Duration::from_secs(60));
    let session = open(&Registry::connect(config).unwrap(), Duration::from_secs(60)).await;
    assert_eq!(attached_to(&session, &servers), 0);
    session
        .register(&ServiceKey::new("ap", "ranker"), node(1))
        .await
        .unwrap();
    servers[1].mute(false);
    session
}

#[tokio::test]
async fn at_a_server_that_is_cut_off_it_stays_no_longer_than_until_another_one_can_write() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let session = at_a_server_that_is_cut_off(servers).await;
    let mut events = session.events();
    session.register(&key(), node(2)).await.unwrap();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { .. })
    })
    .await;
    assert_eq!((session.id(), attached_to(&session, &servers)), (2, 1));
    let nodes: Vec<String> = cluster.lock().sessions[&2].nodes.keys().cloned().collect();
    assert_eq!(nodes, ["127.0.0.1:1", "127.0.0.1:2"]);
}

#[tokio::test]
async fn while_no_server_can_write_it_stays_where_it_is_heard() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let session = at_a_server_that_is_cut_off(servers).await;
    servers[1].cut_off(true);
    let service = key();
    let registering = session.register(&service, node(2));
    let stays = async |asked: u64| {
        let asked = cluster.lock().explained + asked;
        eventually("they are asked", || cluster.lock().explained >= asked).await;
        let refused = cluster.lock().requests.len() + 3;
        eventually("it is refused again", || cluster.lock().requests.len() >= refused).await;
        assert_eq!((session.id(), attached_to(&session, &servers)), (1, 0));
        assert_eq!(cluster.lock().sessions[&1].attached, 0);
    };
    let refusals = async {
        stays(1).await;
        // Both hear a leader again, who finds no quorum.
        cluster.lock().no_quorum = true;
        servers.iter().for_each(|server| server.cut_off(false));
        stays(2).await;
        cluster.lock().no_quorum = false;
    };
    let (registered, ()) = tokio::join!(registering, refusals);
    registered.unwrap();
    assert_eq!(session.id(), 1);
}

#[tokio::test]
async fn when_its_server_closes_in_order_it_attaches_where_and_when_it_was_told() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
        &Server::start(3, &cluster).await,
    ];
    let session = open(&registry(&servers), Duration::from_secs(10)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    let first = attached_to(&session, &servers);
    let advised = (first + 2) % 3;
    let told_at = std::time::Instant::now();
    servers[first]
        .move_on(700, &[servers[advised].address.to_string()])
        .await;
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reattached { .. })
    })
    .await;
    let elapsed = told_at.elapsed();
    assert!(elapsed >= Duration::from_millis(700), "{elapsed:?}");
    assert_eq!(attached_to(&session, &servers), advised);
    assert_eq!(cluster.lock().sessions[&1].nodes.len(), 1);
}

#[tokio::test]
async fn when_its_server_is_mute_it_attaches_to_another_within_the_ttl() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let ttl = Duration::from_secs(12);
    let session = open(&registry(&servers), ttl).await;
    let mut events = session.events();
    let first = attached_to(&session, &servers);
    eventually("a heartbeat", || cluster.lock().sessions[&1].renewals >= 1).await;
    let renewed_at = tokio::time::Instant::now();
    servers[first].mute(true);
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reattached { .. })
    })
    .await;
    assert!(renewed_at.elapsed() < ttl, "{:?}", renewed_at.elapsed());
    assert_ne!(attached_to(&session, &servers), first);
}

#[tokio::test]
async fn a_forgotten_session_is_reopened_and_everything_registered_again() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    let mut events = session.events();
    let entries = (0..250).map(|port| rollcall_client::Entry::new(key(), node(port)));
    session
        .register_all(entries.collect(), WriteOptions::default())
        .await
        .unwrap();
    session.deregister(&key().node("127.0.0.1:7")).await.unwrap();
    cluster.lock().sessions.clear();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Lost { session: 1 })
    })
    .await;
    let event = wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { .. })
    })
    .await;
    assert!(
        matches!(event, SessionEvent::Reregistered { nodes: 249 }),
        "{event:?}"
    );
    assert_eq!(session.id(), 2);
    let cluster = cluster.lock();
    assert_eq!(cluster.sessions[&2].nodes.len(), 249);
    assert!(
        !cluster.sessions[&2].nodes.contains_key("127.0.0.1:7"),
        "what was taken out stays out"
    );
}

#[tokio::test]
async fn after_a_loss_what_somebody_else_has_registered_is_left_to_them() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let registry = registry(&[&server]);
    let session = open(&registry, Duration::from_secs(2)).await;
    let mut events = session.events();
    let entries = (0..3).map(|port| rollcall_client::Entry::new(key(), node(port)));
    session
        .register_all(entries.collect(), WriteOptions::default())
        .await
        .unwrap();
    let other = open(&registry, Duration::from_secs(60)).await;
    other.register(&key(), node(1)).await.unwrap();
    cluster.lock().sessions.remove(&1);
    let event = wait_for(&mut events, |event| {
        matches!(event, SessionEvent::NodesTaken { .. })
    })
    .await;
    assert!(
        matches!(&event, SessionEvent::NodesTaken { nodes } if *nodes == [key().node("127.0.0.1:1")]),
        "{event:?}"
    );
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { .. })
    })
    .await;
    let cluster = cluster.lock();
    assert_eq!(cluster.owner("127.0.0.1:1"), Some(other.id()));
    assert_eq!(cluster.sessions[&session.id()].nodes.len(), 2);
}

#[tokio::test]
async fn after_a_loss_what_a_guard_holds_is_taken_over() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    let mut events = session.events();
    let entries = (0..150).map(|port| rollcall_client::Entry::new(key(), node(port)));
    session
        .register_all(entries.collect(), WriteOptions::default())
        .await
        .unwrap();
    cluster.lock().requests.clear();
    cluster.lock().hold_all();
    let event = wait_for(&mut events, |event| {
        matches!(
            event,
            SessionEvent::Reregistered { .. }
                | SessionEvent::NodesTaken { .. }
                | SessionEvent::NodeRefused { .. }
        )
    })
    .await;
    assert!(
        matches!(event, SessionEvent::Reregistered { nodes: 150 }),
        "{event:?}"
    );
    let cluster = cluster.lock();
    assert_eq!(cluster.sessions[&2].nodes.len(), 150);
    assert_eq!(cluster.requests.len(), 4, "two calls, refused once each");
}

#[tokio::test]
async fn what_a_server_of_an_ap_group_hears_of_late_is_asked_about_at_that_server() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().mode = v1::GroupMode::Ap;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    let mut events = session.events();
    for port in 1..21 {
        session.register(&key(), node(port)).await.unwrap();
    }
    cluster.lock().names_nothing = true;
    server.break_streams();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reattached { .. })
    })
    .await;
    eventually("it is asked about them", || cluster.lock().explained == 20).await;
    // What is written behind the answers comes behind them.
    session.register(&key(), node(99)).await.unwrap();
    assert_eq!(session.nodes().len(), 21);
    assert_eq!(cluster.lock().sessions[&1].attached, 1, "once is enough");
}

/// Registered in another session meanwhile, or taken out by an operator.
#[tokio::test]
async fn what_a_server_does_not_name_as_ours_is_let_go_when_it_says_so_again() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let registry = registry(&[&server]);
    let session = open(&registry, Duration::from_secs(10)).await;
    let mut events = session.events();
    for port in 1..4 {
        session.register(&key(), node(port)).await.unwrap();
    }
    let other = open(&registry, Duration::from_secs(60)).await;
    other.register(&key(), node(1)).await.unwrap();
    cluster
        .lock()
        .sessions
        .get_mut(&1)
        .unwrap()
        .nodes
        .remove("127.0.0.1:2");
    server.break_streams();
    let event = wait_for(&mut events, |event| {
        matches!(
            event,
            SessionEvent::NodesTaken { .. } | SessionEvent::Reregistered { .. }
        )
    })
    .await;
    let gone = [1, 2].map(|port| key().node(format!("127.0.0.1:{port}")));
    assert!(
        matches!(&event, SessionEvent::NodesTaken { nodes } if *nodes == gone),
        "{event:?}"
    );
    assert_eq!(session.nodes(), [key().node("127.0.0.1:3")]);
}

/// Taken out and registered again at once: the second word was asked for before the first was answered.
#[tokio::test]
async fn a_node_that_is_registered_while_it_is_on_its_way_out_stays() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    let first = key().node("127.0.0.1:1");
    let service = key();
    let (out, back) = tokio::join!(session.deregister(&first), session.register(&service, node(1)));
    out.unwrap();
    back.unwrap();
    server.break_streams();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reattached { .. })
    })
    .await;
    // What it may have to say of the others comes before this.
    session.register(&key(), node(2)).await.unwrap();
    assert_eq!(cluster.lock().owner("127.0.0.1:1"), Some(1));
    assert_eq!(session.nodes().len(), 2);
}

/// The same, and the second word is applied and its answer lost.
#[tokio::test]
async fn a_node_that_is_registered_again_and_nobody_says_so_stays() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    session.register(&key(), node(1)).await.unwrap();
    let first = key().node("127.0.0.1:1");
    // Registering waits until there is a quorum again.
    cluster.lock().no_quorum = true;
    let out = async {
        session.deregister(&first).await.unwrap();
        server.swallow(true);
        cluster.lock().no_quorum = false;
        eventually("it is applied", || cluster.lock().owner(&first.node).is_some()).await;
        server.swallow(false);
        server.break_streams();
    };
    let service = key();
    let ((), back) = tokio::join!(out, session.register(&service, node(1)));
    back.unwrap();
    session.register(&key(), node(2)).await.unwrap();
    assert_eq!(cluster.lock().owner(&first.node), Some(1));
}

/// The servers were started on a copy from before the last two writes: the session lives in it.
#[tokio::test]
async fn what_was_written_behind_a_copy_is_written_again() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let registry = registry(&[&server]);
    let session = open(&registry, Duration::from_secs(10)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    let copy = {
        let cluster = cluster.lock();
        (cluster.revision, cluster.sessions[&1].nodes.clone())
    };
    session.deregister(&key().node("127.0.0.1:1")).await.unwrap();
    session.register(&key(), node(2)).await.unwrap();
    {
        let mut cluster = cluster.lock();
        let session;
        (cluster.revision, session) = copy;
        cluster.moves_on_when_asked = true;
        cluster.sessions.get_mut(&1).unwrap().nodes = session;
        cluster.applied.clear();
    }
    server.break_streams();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { .. })
    })
    .await;
    eventually("what was taken out is taken out again", || {
        cluster.lock().owner("127.0.0.1:1").is_none()
    })
    .await;
    assert_eq!(cluster.lock().owner("127.0.0.1:2"), Some(1));
    assert_eq!(session.nodes(), [key().node("127.0.0.1:2")]);
}

/// The same, and in the copy there is not even the service.
#[tokio::test]
async fn what_is_behind_a_copy_without_its_service_is_written_again() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    session.register(&key(), node(1)).await.unwrap();
    {
        let mut cluster = cluster.lock();
        cluster.revision = 0;
        cluster.sessions.get_mut(&1).unwrap().nodes.clear();
        cluster.applied.clear();
        cluster.lost_services = true;
    }
    server.break_streams();
    eventually("it is registered again", || {
        cluster.lock().owner("127.0.0.1:1") == Some(1)
    })
    .await;
    assert_eq!(session.nodes(), [key().node("127.0.0.1:1")]);
}

#[tokio::test]
async fn all_nodes_that_are_ours_are_told_to_be_draining() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let registry = registry(&[&server]);
    let session = open(&registry, Duration::from_secs(10)).await;
    let gossiped = ServiceKey::new("ap/edge", "cache");
    session.register(&gossiped, node(50)).await.unwrap();
    for port in 0..5 {
        session.register(&key(), node(port)).await.unwrap();
    }
    let other = open(&registry, Duration::from_secs(10)).await;
    other.register(&key(), node(3)).await.unwrap();
    session.drain_all().await.unwrap();
    let cluster = cluster.lock();
    let nodes = &cluster.sessions[&1].nodes;
    assert_eq!(nodes.len(), 5);
    let draining = i32::from(v1::NodeState::Draining);
    for node in nodes.values() {
        assert_eq!(node.registration.as_ref().unwrap().state, draining, "{node:?}");
    }
}

/// Groups of mode AP need none.
#[tokio::test]
async fn without_a_quorum_those_that_need_none_are_told_to_be_draining() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let mut config = RegistryConfig::new([server.address.to_string()]);
    config.call_timeout = Duration::from_secs(1);
    let session = open(&Registry::connect(config).unwrap(), Duration::from_secs(10)).await;
    let gossiped = ServiceKey::new("ap/edge", "cache");
    session.register(&gossiped, node(50)).await.unwrap();
    session.register(&key(), node(1)).await.unwrap();
    cluster.lock().no_quorum = true;
    let error = session.drain_all().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let states = |cluster: &Cluster| {
        let nodes = &cluster.lock().sessions[&1].nodes;
        let state = |node: &v1::RegisterNode| node.registration.as_ref().unwrap().state();
        ["127.0.0.1:50", "127.0.0.1:1"].map(|node| state(&nodes[node]))
    };
    let [ap, cp] = states(&cluster);
    assert_eq!(ap, v1::NodeState::Draining);
    assert_ne!(cp, v1::NodeState::Draining);
}

#[tokio::test]
async fn deadlines_are_kept_whatever_is_in_flight() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let mut config = RegistryConfig::new([server.address.to_string()]);
    config.writes_in_flight_max = 1;
    config.call_timeout = Duration::from_millis(500);
    let mut options = SessionOptions::ttl(Duration::from_secs(60));
    options.timeout = Some(Duration::from_secs(20));
    let session = Registry::connect(config)
        .unwrap()
        .open_session(options)
        .await
        .unwrap();
    server.mute(true);
    let write = |port, timeout| {
        let session = session.clone();
        let options = WriteOptions {
            timeout: Some(timeout),
            ..WriteOptions::default()
        };
        let entries = vec![rollcall_client::Entry::new(key(), node(port))];
        tokio::spawn(async move { session.register_all(entries, options).await })
    };
    let patient = write(1, Duration::from_secs(60));
    tokio::task::yield_now().await;
    let soon = Duration::from_secs(10);
    let hasty = tokio::time::timeout(soon, write(2, Duration::from_millis(300))).await;
    let error = hasty.expect("in time").unwrap().unwrap_err();
    assert!(matches!(error, Error::Overloaded { .. }), "{error}");
    let closed = tokio::time::timeout(soon, session.close()).await;
    // The last word was said, though a write was not answered.
    let error = closed.expect("in time").unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    let error = patient.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

#[tokio::test]
async fn a_write_that_is_refused_while_the_session_is_closed_does_not_leave_it_open() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let options = SessionOptions::ttl(Duration::from_secs(10)).mode(v1::GroupMode::Ap);
    let session = registry(&[&server]).open_session(options).await.unwrap();
    session.register(&key(), node(1)).await.unwrap();
    cluster.lock().registers_nothing = vec![v1::GroupMode::Ap];
    let service = key();
    let (written, closed) = tokio::join!(
        biased;
        session.register(&service, node(2)),
        session.clone().close()
    );
    assert!(matches!(written.unwrap_err(), Error::SessionNotFound { .. }));
    closed.unwrap();
    assert!(cluster.lock().sessions.is_empty());
}

fn refusal(code: v1::ErrorCode) -> v1::Error {
    v1::Error {
        code: code.into(),
        effect: v1::Effect::None.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_does_not_undo_what_was_asked_for_later() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    cluster.lock().refuse = vec![refusal(v1::ErrorCode::Unavailable); 7];
    let registering = tokio::spawn({
        let session = session.clone();
        async move { session.register(&key(), node(1)).await }
    });
    eventually("it was refused", || cluster.lock().refuse.len() < 5).await;
    registering.abort();
    assert!(registering.await.unwrap_err().is_cancelled());
    session.deregister(&key().node("127.0.0.1:1")).await.unwrap();
    // What was refused last would be said again by now.
    session.register(&key(), node(2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(cluster.lock().owner("127.0.0.1:1"), None);
    assert_eq!(session.nodes(), [key().node("127.0.0.1:2")]);
}

#[tokio::test]
async fn no_write_overtakes_an_earlier_one_to_the_same_node() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    cluster.lock().refuse = vec![refusal(v1::ErrorCode::Unavailable); 3];
    let (id, other) = (key().node("127.0.0.1:1"), key().node("127.0.0.1:2"));
    let service = key();
    let (registered, elsewhere, deregistered) = tokio::join!(
        biased;
        session.register(&service, node(1)),
        session.deregister(&other),
        session.deregister(&id)
    );
    let revisions = [registered, elsewhere, deregistered].map(|written| written.unwrap().revision);
    assert!(revisions[0] < revisions[2], "{revisions:?}");
    assert_eq!(cluster.lock().owner("127.0.0.1:1"), None);
}

#[tokio::test]
async fn what_is_asked_to_go_is_not_registered_again_though_that_had_begun() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    session.register(&key(), node(2)).await.unwrap();
    {
        let mut cluster = cluster.lock();
        cluster.refuse = vec![refusal(v1::ErrorCode::DiskFull); 1000];
        cluster.requests.clear();
        cluster.sessions.clear();
    }
    eventually("they are to be registered again", || {
        !cluster.lock().requests.is_empty()
    })
    .await;
    let options = WriteOptions {
        timeout: Some(Duration::from_millis(100)),
        ..WriteOptions::default()
    };
    let removal = key().node("127.0.0.1:1").into();
    session.deregister_all(vec![removal], options).await.unwrap_err();
    cluster.lock().refuse.clear();
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { nodes: 1 })
    })
    .await;
    assert_eq!(session.nodes(), [key().node("127.0.0.1:2")]);
    assert_eq!(cluster.lock().owner("127.0.0.1:1"), None);
}

/// The call that registered it again had gone before, and its answer comes behind.
#[tokio::test]
async fn what_is_asked_to_go_while_it_is_registered_again_is_taken_out_again() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let mut config = RegistryConfig::new([server.address.to_string()]);
    config.attempt_timeout = Duration::from_millis(500);
    let session = open(&Registry::connect(config).unwrap(), Duration::from_secs(2)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    server.swallow(true);
    cluster.lock().sessions.clear();
    eventually("it is registered again", || {
        cluster.lock().owner("127.0.0.1:1").is_some()
    })
    .await;
    let options = WriteOptions {
        timeout: Some(Duration::from_millis(100)),
        ..WriteOptions::default()
    };
    let removal = key().node("127.0.0.1:1").into();
    session.deregister_all(vec![removal], options).await.unwrap_err();
    server.swallow(false);
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { nodes: 0 })
    })
    .await;
    assert!(session.nodes().is_empty());
    assert_eq!(cluster.lock().owner("127.0.0.1:1"), None);
}

#[tokio::test]
async fn a_node_that_is_refused_when_registered_again_does_not_hold_up_the_others() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    session.register(&key(), node(2)).await.unwrap();
    {
        let refusal = v1::Error {
            code: v1::ErrorCode::ServiceNotFound.into(),
            effect: v1::Effect::None.into(),
            ..Default::default()
        };
        let mut cluster = cluster.lock();
        // The batch of both, then the first of its halves.
        cluster.refuse = vec![refusal.clone(), refusal];
        cluster.sessions.clear();
    }
    let refused = wait_for(&mut events, |event| {
        matches!(event, SessionEvent::NodeRefused { .. })
    })
    .await;
    assert!(matches!(refused, SessionEvent::NodeRefused { node, .. } if node == key().node("127.0.0.1:1")));
    wait_for(&mut events, |event| {
        matches!(event, SessionEvent::Reregistered { nodes: 1 })
    })
    .await;
    assert_eq!(session.nodes(), [key().node("127.0.0.1:2")]);
}

/// Its group was moved to CP, where a session for AP groups alone is not known.
#[tokio::test]
async fn a_session_for_ap_groups_is_exchanged_for_a_full_one_when_its_group_has_moved() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let options = SessionOptions::ttl(Duration::from_secs(2)).mode(v1::GroupMode::Ap);
    let session = registry(&[&server]).open_session(options).await.unwrap();
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    {
        let mut cluster = cluster.lock();
        cluster.registers_nothing = vec![v1::GroupMode::Ap];
        cluster.sessions.clear();
    }
    let event = wait_for(&mut events, |event| {
        matches!(
            event,
            SessionEvent::Reregistered { .. } | SessionEvent::NodeRefused { .. }
        )
    })
    .await;
    assert!(
        matches!(event, SessionEvent::Reregistered { nodes: 1 }),
        "{event:?}"
    );
    let cluster = cluster.lock();
    assert_eq!(cluster.last_session, 3);
    assert_eq!(cluster.sessions[&3].mode, v1::GroupMode::Unspecified);
    assert_eq!(cluster.sessions[&3].nodes.len(), 1);
}

#[tokio::test]
async fn sessions_that_take_no_node_are_not_opened_for_ever() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(2)).await;
    let mut events = session.events();
    session.register(&key(), node(1)).await.unwrap();
    {
        let mut cluster = cluster.lock();
        cluster.registers_nothing = vec![v1::GroupMode::Unspecified];
        cluster.sessions.clear();
    }
    let refused = wait_for(&mut events, |event| {
        matches!(event, SessionEvent::NodeRefused { .. })
    })
    .await;
    assert!(
        matches!(&refused, SessionEvent::NodeRefused { node, error }
            if *node == key().node("127.0.0.1:1") && matches!(**error, Error::SessionNotFound { .. })),
        "{refused:?}"
    );
    assert_eq!(cluster.lock().last_session, 4, "the first one, and three more");
}

/// The servers swallowed the answer of the first attempt, whatever the second is told.
async fn unanswered_then(
    servers: [&Server; 2],
    cluster: &Cluster,
    kind: Option<NodeKind>,
    between: impl FnOnce(&Cluster),
    told: v1::ErrorCode,
) -> Error {
    let session = open(&registry(&servers), Duration::from_secs(10)).await;
    let first = attached_to(&session, &servers);
    servers[first].swallow(true);
    let write = {
        let session = session.clone();
        let mut registration = node(1);
        registration.kind = kind;
        let entry = rollcall_client::Entry::new(key(), registration);
        tokio::spawn(async move { session.register_all(vec![entry], WriteOptions::default()).await })
    };
    eventually("the write is applied", || !cluster.lock().applied.is_empty()).await;
    between(cluster);
    cluster.lock().refuse = vec![v1::Error {
        code: told.into(),
        effect: v1::Effect::None.into(),
        ..Default::default()
    }];
    servers[first].kill();
    write.await.unwrap().unwrap_err()
}

/// It may be the first attempt's own revision that the second one met: in mode AP other servers do not know its id.
#[tokio::test]
async fn another_revision_than_expected_does_not_deny_an_attempt_without_an_answer() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let told = v1::ErrorCode::RevisionMismatch;
    let error = unanswered_then(servers, &cluster, None, |_| {}, told).await;
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

/// Nodes that are not ephemeral outlive the session under which they were registered.
#[tokio::test]
async fn a_lost_session_does_not_deny_an_attempt_without_an_answer() {
    let forget = |cluster: &Cluster| cluster.lock().sessions.clear();
    let told = v1::ErrorCode::AlreadyExists;
    for (kind, unknown) in [(NodeKind::Static, true), (NodeKind::Ephemeral, false)] {
        let cluster = Cluster::default();
        let servers = [
            &Server::start(1, &cluster).await,
            &Server::start(2, &cluster).await,
        ];
        let error = unanswered_then(servers, &cluster, Some(kind), forget, told).await;
        assert_eq!(matches!(error, Error::OutcomeUnknown { .. }), unknown, "{error}");
    }
}

#[tokio::test]
async fn a_write_without_an_answer_is_repeated_elsewhere_under_the_same_id() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let session = open(&registry(&servers), Duration::from_secs(10)).await;
    let first = attached_to(&session, &servers);
    servers[first].swallow(true);
    let id = RequestId(77);
    let write = {
        let session = session.clone();
        let options = WriteOptions {
            request_id: Some(id),
            timeout: Some(Duration::from_secs(20)),
            ..WriteOptions::default()
        };
        let entries = vec![rollcall_client::Entry::new(key(), node(1))];
        tokio::spawn(async move { session.register_all(entries, options).await })
    };
    eventually("the write is applied", || !cluster.lock().applied.is_empty()).await;
    servers[first].kill();
    let written = write.await.unwrap().unwrap();
    assert!(written.repeated && written.revision == 1);
    let cluster = cluster.lock();
    assert_eq!(cluster.requests, vec![77_u128.to_be_bytes().to_vec(); 2]);
}

#[tokio::test]
async fn a_write_that_a_server_leaves_unanswered_goes_to_another() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let mut config = RegistryConfig::new(servers.iter().map(|server| server.address.to_string()));
    (config.attempt_timeout, config.call_timeout) = (Duration::from_secs(2), Duration::from_secs(20));
    let registry = Registry::connect(config).unwrap();
    let session = open(&registry, Duration::from_secs(60)).await;
    servers[attached_to(&session, &servers)].swallow(true);
    let written = session.register(&key(), node(1)).await.unwrap();
    assert!(written.repeated && written.revision == 1);
}

#[tokio::test]
async fn a_write_without_an_answer_until_its_deadline_is_unknown() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    server.swallow(true);
    let options = WriteOptions {
        request_id: Some(RequestId(5)),
        timeout: Some(Duration::from_millis(300)),
        ..WriteOptions::default()
    };
    let entries = vec![rollcall_client::Entry::new(key(), node(1))];
    let error = session.register_all(entries, options).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::OutcomeUnknown {
                request_id: RequestId(5),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn refusals_reach_the_caller_and_passing_ones_are_waited_out() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let session = open(&registry(&[&server]), Duration::from_secs(10)).await;
    let refusal = |code: v1::ErrorCode, effect: v1::Effect| v1::Error {
        code: code.into(),
        effect: effect.into(),
        current_revision: 41,
        ..Default::default()
    };
    cluster.lock().refuse = vec![refusal(v1::ErrorCode::RevisionMismatch, v1::Effect::None)];
    let error = session.register(&key(), node(1)).await.unwrap_err();
    assert!(
        matches!(error, Error::RevisionMismatch { current: 41, .. }),
        "{error}"
    );
    assert!(session.nodes().is_empty());
    cluster.lock().requests.clear();
    cluster.lock().refuse = vec![
        refusal(v1::ErrorCode::Unavailable, v1::Effect::None),
        refusal(v1::ErrorCode::OutcomeUnknown, v1::Effect::Unknown),
        refusal(v1::ErrorCode::Overloaded, v1::Effect::None),
    ];
    session.register(&key(), node(1)).await.unwrap();
    let requests = cluster.lock().requests.clone();
    assert!(
        requests.len() == 4 && requests.iter().all(|id| *id == requests[0]),
        "{requests:?}"
    );
}

#[tokio::test]
async fn without_any_server_opening_fails_in_time_and_says_why() {
    let registry = Registry::connect(RegistryConfig::new(["127.0.0.1:1"])).unwrap();
    let mut options = SessionOptions::ttl(Duration::from_secs(10));
    options.timeout = Some(Duration::from_millis(400));
    let error = registry.open_session(options).await.unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert_eq!(error.effect(), rollcall_client::Effect::None);
}

#[tokio::test]
async fn unary_writes_are_repeated_under_the_same_id_at_another_server() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let mut config = RegistryConfig::new(servers.iter().map(|server| server.address.to_string()));
    config.call_timeout = Duration::from_secs(20);
    let patient = Registry::connect(config.clone()).unwrap();
    config.attempt_timeout = Duration::from_millis(200);
    let registry = Registry::connect(config).unwrap();
    servers[0].mute(true);
    for _ in 0..4 {
        registry.end_session(9, WriteOptions::default()).await.unwrap();
    }
    servers[0].mute(false);
    let unknown = v1::Error {
        code: v1::ErrorCode::OutcomeUnknown.into(),
        effect: v1::Effect::Unknown.into(),
        ..Default::default()
    };
    cluster.lock().requests.clear();
    cluster.lock().refuse = vec![unknown];
    patient.end_session(9, WriteOptions::default()).await.unwrap();
    let requests = cluster.lock().requests.clone();
    assert!(requests.len() == 2 && requests[0] == requests[1], "{requests:?}");
}
