//! Heartbeats by datagram, against real processes: they are worth what they are worth on a stream, and no more.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_client::v1::{GroupMode, GroupSettings};
use rollcall_client::{
    Entry, Expected, Heartbeats, NodeKind, Registration, ServiceKey, Session, SessionEvent, SessionOptions,
    SessionStatus, WriteOptions,
};
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{ClusterOptions, WAIT_MAX, eventually, one_clean_of};
use rollcall_jepsen::net::{HARNESS, Net, Protocol};
use rollcall_proto::heartbeat::{
    Answer, DATAGRAM_BYTES_MAX, EntriesWriter, HELLO_BYTES, HeartbeatKey, Kind, write_hello,
};
use support::{Follower, GROUP, Stage, cluster, cluster_with, registry};

const TTL: Duration = Duration::from_secs(4);
/// How late an expiry may come: a tick, a commit, a watch, and a machine that is busy with other tests.
const LATE_MAX: Duration = Duration::from_secs(2);
/// For an answer by datagram.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A node that stays, since the removal guard never lets the last one of a service lapse away.
async fn anchor(addresses: &[String]) {
    let registry = rollcall_client::connect(addresses).unwrap();
    let anchor = Registration::new("http", "127.0.0.1", 9).kind(NodeKind::Persistent);
    let entry = Entry::new(ServiceKey::new(GROUP, "feed"), anchor);
    registry
        .register_persistent(&[entry], WriteOptions::default())
        .await
        .unwrap();
}

/// Providers that would rather live by datagrams, each with one node.
async fn providers(addresses: &[String], count: usize) -> Vec<Session> {
    providers_with(TTL, addresses, count).await
}

async fn providers_with(ttl: Duration, addresses: &[String], count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for index in 0..count {
        let options = SessionOptions::ttl(ttl).heartbeats(Heartbeats::Datagram);
        let session = registry(addresses, index).open_session(options).await.unwrap();
        let node = Registration::new("http", format!("10.0.0.{index}"), 80);
        session
            .register(&ServiceKey::new(GROUP, "feed"), node)
            .await
            .unwrap();
        sessions.push(session);
    }
    sessions
}

async fn all_by_datagram(sessions: &[Session]) {
    eventually("every session by datagram", WAIT_MAX, || async {
        sessions.iter().all(Session::is_by_datagram).then_some(())
    })
    .await
    .unwrap();
}

async fn all_attached(sessions: &[Session]) {
    let attached = |session: &Session| matches!(session.status(), SessionStatus::Attached { .. });
    eventually("every session attached", WAIT_MAX, || async {
        sessions.iter().all(attached).then_some(())
    })
    .await
    .unwrap();
}

/// Open session streams, and client connections, of all servers.
async fn streams(cluster: &mut Stage) -> u64 {
    cluster
        .statuses()
        .await
        .iter()
        .map(|(_, status)| status.sessions_held)
        .sum()
}

/// Nobody left, not even for a moment; no session was replaced.
async fn assert_nobody_left(cluster: &mut Stage, sessions: &[Session], ids: &[u64], follower: &Follower) {
    let revision = cluster.wait_converged(WAIT_MAX).await.unwrap();
    for server in cluster.servers() {
        let view = local_view(server.address(), GROUP, "feed", revision).await;
        assert_eq!(
            view.unwrap().unwrap().nodes.len(),
            sessions.len(),
            "at server {}",
            server.id()
        );
    }
    follower.wait_nodes("feed", sessions.len()).await;
    assert_eq!(follower.removals(), 0, "removals told");
    let now: Vec<u64> = sessions.iter().map(Session::id).collect();
    assert_eq!(now, ids, "sessions, before and after");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_live_by_datagrams_alone_without_a_stream_and_a_write_takes_it_up_again() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    // Long enough that a moment in which nothing is answered sends nobody to a stream.
    let ttl = Duration::from_secs(10);
    let sessions = providers_with(ttl, &addresses, 6).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let follower = Follower::start(&addresses, "feed", 0);
    follower.wait_nodes("feed", 6).await;
    let mut events = sessions[0].events();
    all_by_datagram(&sessions).await;
    tokio::time::sleep(ttl * 3 / 2).await;
    all_by_datagram(&sessions).await;
    assert_eq!(streams(&mut cluster).await, 0, "session streams");
    assert_nobody_left(&mut cluster, &sessions, &ids, &follower).await;

    let node = Registration::new("http", "10.0.0.0", 81);
    let service = ServiceKey::new(GROUP, "feed");
    sessions[0].register(&service, node).await.unwrap();
    follower.wait_nodes("feed", 7).await;
    all_by_datagram(&sessions).await;
    for session in sessions {
        session.close().await.unwrap();
    }
    follower.wait_nodes("feed", 0).await;
    // Nothing but the end was worth telling.
    while let Some(event) = events.next().await {
        assert!(matches!(event, SessionEvent::Closed), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_killed_and_every_server_restarted_cost_no_session() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let sessions = providers(&addresses, 9).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let follower = Follower::start(&addresses, "feed", 0);
    follower.wait_nodes("feed", 9).await;
    all_by_datagram(&sessions).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    cluster.server(leader).kill9().await.unwrap();
    cluster.leader_other_than(leader, WAIT_MAX).await.unwrap();
    tokio::time::sleep(TTL + LATE_MAX).await;
    cluster.server(leader).start().unwrap();
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    all_by_datagram(&sessions).await;
    for server in cluster.ids() {
        cluster.server(server).restart().await.unwrap();
        cluster.wait_ready(WAIT_MAX).await.unwrap();
    }
    tokio::time::sleep(TTL + LATE_MAX).await;
    all_by_datagram(&sessions).await;
    assert_nobody_left(&mut cluster, &sessions, &ids, &follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_that_is_restarted_is_spoken_to_again() {
    let mut cluster = cluster(1).await;
    let addresses = cluster.addresses();
    let sessions = providers(&addresses, 3).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let follower = Follower::start(&addresses, "feed", 0);
    follower.wait_nodes("feed", 3).await;
    all_by_datagram(&sessions).await;
    cluster.server(1).kill9().await.unwrap();
    cluster.server(1).start().unwrap();
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    tokio::time::sleep(TTL * 2).await;
    all_by_datagram(&sessions).await;
    assert_nobody_left(&mut cluster, &sessions, &ids, &follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_paused_beyond_the_ttl_strike_off_nobody() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let sessions = providers(&addresses, 6).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let follower = Follower::start(&addresses, "feed", 0);
    follower.wait_nodes("feed", 6).await;
    all_by_datagram(&sessions).await;
    for server in cluster.servers_mut() {
        server.pause().await.unwrap();
    }
    tokio::time::sleep(TTL * 3 / 2).await;
    for server in cluster.servers_mut() {
        server.resume().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    all_attached(&sessions).await;
    tokio::time::sleep(TTL + LATE_MAX).await;
    all_by_datagram(&sessions).await;
    assert_nobody_left(&mut cluster, &sessions, &ids, &follower).await;
}

/// Datagrams cut off, streams not: at once and while they were in use. Then the cable is mended.
#[tokio::test(flavor = "multi_thread")]
async fn where_datagrams_are_blocked_sessions_live_on_streams_and_come_back() {
    let Some(net) = Net::start_or_skip(3, 7) else {
        return;
    };
    let net = Arc::new(net);
    let mut cluster = cluster_with(ClusterOptions::servers(3).on(&net)).await;
    let addresses = cluster.addresses();
    let cut = || net.cut_port(&[HARNESS], &[1, 2, 3], Protocol::Udp, 7400);
    let fault = cut();
    let sessions = providers(&addresses, 6).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let follower = Follower::start(&addresses, "feed", 0);
    follower.wait_nodes("feed", 6).await;
    tokio::time::sleep(TTL * 2).await;
    assert!(
        !sessions.iter().any(Session::is_by_datagram),
        "nothing gets through"
    );
    all_attached(&sessions).await;
    net.lift(fault);
    eventually("every session by datagram", Duration::from_secs(60), || async {
        sessions.iter().all(Session::is_by_datagram).then_some(())
    })
    .await
    .unwrap();

    let mut events = sessions[0].events();
    let cut_at = Instant::now();
    cut();
    let mut told = Vec::new();
    while told.len() < 2 {
        match events.next().await.unwrap() {
            SessionEvent::Detached { reason, .. } => told.push(reason),
            SessionEvent::Reattached { .. } => told.push(String::new()),
            other => panic!("{other:?}"),
        }
    }
    assert!(told[0].contains("datagram") && told[1].is_empty(), "{told:?}");
    assert!(
        cut_at.elapsed() < TTL * 3 / 4,
        "on a stream after {:?}",
        cut_at.elapsed()
    );
    tokio::time::sleep(TTL * 2).await;
    assert!(!sessions.iter().any(Session::is_by_datagram));
    all_attached(&sessions).await;
    assert_nobody_left(&mut cluster, &sessions, &ids, &follower).await;
}

/// Of an AP group a server alone can keep the sessions, also while no leader does, and tell them so.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_ap_groups_live_by_datagrams_also_without_a_quorum() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let settings = GroupSettings {
        mode: GroupMode::Ap.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    registry(&addresses, 0)
        .put_group("edge", settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
    let mut sessions = Vec::new();
    for index in 0..3 {
        let options = SessionOptions::ttl(TTL).heartbeats(Heartbeats::Datagram);
        // Of the server that will be left, and no other.
        let session = registry(&addresses[..1], 0).open_session(options).await.unwrap();
        let node = Registration::new("http", format!("10.0.1.{index}"), 80);
        let service = ServiceKey::new("edge", "feed");
        session.register(&service, node).await.unwrap();
        sessions.push(session);
    }
    // Others, for which the leader has to answer, hold up none of these.
    let mut others = Vec::new();
    for index in 0..10 {
        let options = SessionOptions::ttl(TTL).heartbeats(Heartbeats::Datagram);
        let session = registry(&addresses[..1], 0).open_session(options).await.unwrap();
        let node = Registration::new("http", format!("10.0.2.{index}"), 80);
        session
            .register(&ServiceKey::new(GROUP, "feed"), node)
            .await
            .unwrap();
        others.push(session);
    }
    all_by_datagram(&others).await;
    let ids: Vec<_> = sessions.iter().map(Session::id).collect();
    let listed = || async {
        let view = local_view(&addresses[0], "edge", "feed", 0).await.unwrap();
        view.map_or(0, |view| view.nodes.len())
    };
    all_by_datagram(&sessions).await;
    tokio::time::sleep(TTL * 2).await;
    all_by_datagram(&sessions).await;
    assert_eq!((listed().await, streams(&mut cluster).await), (3, 0));
    for server in [2, 3] {
        cluster.server(server).kill9().await.unwrap();
    }
    tokio::time::sleep(TTL * 3).await;
    assert!(sessions.iter().all(Session::is_by_datagram));
    all_attached(&sessions).await;
    assert_eq!(listed().await, 3, "none was struck off");
    let now: Vec<u64> = sessions.iter().map(Session::id).collect();
    assert_eq!(now, ids, "sessions, before and after");
    for server in [2, 3] {
        cluster.server(server).start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    // And when they end, they end as others do.
    drop(sessions);
    eventually("nothing listed", WAIT_MAX, || async {
        (listed().await == 0).then_some(())
    })
    .await
    .unwrap();
}

/// A client of nothing but the wire contract.
struct Raw {
    socket: UdpSocket,
    key: HeartbeatKey,
    session: u64,
    counter: u64,
    number: u64,
}

impl Raw {
    fn new(address: &str, provider: &Attending) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let mut raw = Self {
            socket,
            key: HeartbeatKey::of_secret(&provider.secret),
            session: provider.session,
            counter: 0,
            number: 0,
        };
        raw.number = raw.learn_number();
        raw
    }

    fn learn_number(&self) -> u64 {
        let mut hello = Vec::new();
        write_hello(&mut hello, &[9; 16]);
        assert_eq!(hello.len(), HELLO_BYTES);
        match Answer::read(&self.ask(&hello).expect("an answer")) {
            Ok(Answer::Challenge { number, echo }) if echo == [9; 16] => number,
            other => panic!("{other:?}"),
        }
    }

    /// A heartbeat as it would be captured on the way.
    fn heartbeat(&mut self) -> Vec<u8> {
        self.counter += 1;
        let mut bytes = Vec::new();
        let entry = self
            .key
            .entry(Kind::Beats, self.number, self.session, self.counter);
        EntriesWriter::begin(&mut bytes, Kind::Beats, self.number).push(&mut bytes, &entry);
        bytes
    }

    fn ask(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(bytes).ok()?;
        self.hear()
    }

    fn hear(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }

    /// What a heartbeat is answered: the kind, if it is vouched for.
    fn beat(&mut self) -> Option<Kind> {
        let question = self.heartbeat();
        let mut answer = self.ask(&question)?;
        let (kind, number, entry) = loop {
            let Ok(Answer::Verdicts {
                kind,
                number,
                mut entries,
            }) = Answer::read(&answer)
            else {
                return None;
            };
            let entry = entries.next()?;
            if entry.counter >= self.counter {
                break (kind, number, entry);
            }
            // The late answer to an earlier one.
            answer = self.hear()?;
        };
        assert_eq!((entry.session, entry.counter), (self.session, self.counter));
        assert!(answer.len() <= question.len());
        let vouched = self.key.verifies(kind, number, &entry);
        assert_eq!(vouched, kind != Kind::Unknown);
        Some(kind)
    }
}

/// The silence of a client that lived by datagrams ends its session at its ttl, not before, and not much later; its
/// captured datagrams, said again at every server without an end, also after a restart, change nothing of that. Neither
/// do forged ones, nor those of another session.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_expires_at_its_ttl_whatever_is_replayed_or_forged() {
    one_clean_of(3, falls_silent_and_is_replayed).await;
}

async fn falls_silent_and_is_replayed() -> Result<(), String> {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    anchor(&addresses).await;
    let mut provider = Attending::open(&addresses[0], TTL).await.unwrap();
    provider.register(GROUP, "feed", "silent").await.unwrap();
    let other = Attending::open(&addresses[1], TTL * 10).await.unwrap();
    let follower = Follower::start(&addresses[2..], "feed", 0);
    follower.wait_nodes("feed", 2).await;

    let mut raw = Raw::new(&addresses[0], &provider);
    let mut captured = Vec::new();
    let mut last = Instant::now();
    let from = Instant::now();
    while from.elapsed() < TTL * 2 {
        captured.push(raw.heartbeat());
        last = Instant::now();
        let answer = raw.ask(captured.last().unwrap()).expect("an answer");
        assert!(
            matches!(
                Answer::read(&answer),
                Ok(Answer::Verdicts {
                    kind: Kind::Renewed,
                    ..
                })
            ),
            "{answer:?}"
        );
        tokio::time::sleep(TTL / 8).await;
    }
    follower.wait_nodes("feed", 2).await;
    assert_eq!(follower.removals(), 0, "alive by datagrams alone");
    drop(provider);

    // What an eavesdropper can make of it, at every server.
    let number = raw.number;
    let foreign = HeartbeatKey::of_secret(&other.secret);
    let mut hostile = captured.clone();
    for counter in [raw.counter + 1, raw.counter + 1_000, u64::MAX] {
        let own = raw.key.entry(Kind::Beats, number, raw.session, raw.counter);
        let moved = rollcall_proto::heartbeat::Entry { counter, ..own };
        let signed_by_another = foreign.entry(Kind::Beats, number, raw.session, counter);
        let reflected = raw.key.entry(Kind::Renewed, number, raw.session, counter);
        for entry in [moved, signed_by_another, reflected] {
            let mut bytes = Vec::new();
            EntriesWriter::begin(&mut bytes, Kind::Beats, number).push(&mut bytes, &entry);
            hostile.push(bytes);
        }
    }
    let targets = addresses.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let replaying = std::thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sent = 0_u64;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            for target in &targets {
                for bytes in &hostile {
                    // A server that is being restarted takes none.
                    sent += u64::from(socket.send_to(bytes, target).is_ok());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        sent
    });
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let restarted = if leader == 2 { 3 } else { 2 };
    cluster.server(restarted).restart().await.unwrap();
    follower.wait_nodes("feed", 1).await;
    let after = last.elapsed();
    assert!(after >= TTL, "struck off {after:?} after the last heartbeat");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(replaying.join().unwrap() > 1_000);
    assert_eq!(
        raw.beat(),
        Some(Kind::NotFound),
        "the server it spoke to vouches for that"
    );
    let elsewhere = Raw {
        socket: {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(&addresses[2]).unwrap();
            socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
            socket
        },
        ..raw
    };
    let mut elsewhere = Raw {
        number: elsewhere.learn_number(),
        ..elsewhere
    };
    assert_eq!(
        elsewhere.beat(),
        Some(Kind::Unknown),
        "one that it never spoke to only says that it knows nothing"
    );
    // A leader that is elected meanwhile grants a whole ttl anew.
    if after < TTL + LATE_MAX * 3 / 2 {
        Ok(())
    } else {
        Err(format!("struck off {after:?} after the last heartbeat"))
    }
}

/// Each server verifies what it never heard of before, by the replicated directory.
#[tokio::test(flavor = "multi_thread")]
async fn any_server_takes_the_heartbeats_of_a_session_and_none_takes_them_twice() {
    let cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let provider = Attending::open(&addresses[0], TTL * 5).await.unwrap();
    for address in &addresses {
        let mut raw = Raw::new(address, &provider);
        eventually("the session known", WAIT_MAX, || {
            let kind = raw.beat();
            async move { (kind == Some(Kind::Renewed)).then_some(()) }
        })
        .await
        .unwrap();
        let once = raw.heartbeat();
        assert!(raw.ask(&once).is_some());
        raw.socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        assert_eq!(raw.ask(&once), None, "said twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_told_not_to_takes_no_datagrams_and_says_so() {
    let options = ClusterOptions {
        arguments: vec!["--set".into(), "datagram.enabled=false".into()],
        ..ClusterOptions::servers(1)
    };
    let mut cluster = cluster_with(options).await;
    let addresses = cluster.addresses();
    let (_, status) = cluster.statuses().await.pop().unwrap();
    assert_eq!(status.heartbeat, "");
    let sessions = providers(&addresses, 1).await;
    tokio::time::sleep(TTL).await;
    assert!(!sessions[0].is_by_datagram());
    all_attached(&sessions).await;
    assert_eq!(streams(&mut cluster).await, 1);
}
