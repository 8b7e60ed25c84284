//! Many clients lose a server at once, by its word or without one: they come to the others spread over time, no
//! session is lost, and every watcher is current again.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::{Duration, Instant};

use rollcall_client::{
    Registration, Registry, ServiceKey, ServiceWatch, Session, SessionOptions, SessionStatus, Source,
};
use rollcall_jepsen::lab::{WAIT_MAX, eventually, one_clean_of};
use support::{GROUP, Stage, cluster, registry};

/// Each with a session and a watch, over streams of its own.
const CLIENTS: usize = 60;
const TTL: Duration = Duration::from_secs(10);
/// How often the clients are looked at.
const LOOK: Duration = Duration::from_millis(5);

struct Client {
    session: Session,
    watch: ServiceWatch,
    id: u64,
    _registry: Registry,
}

impl Client {
    async fn open(addresses: &[String], number: usize) -> Self {
        let registry = registry(addresses, number);
        let key = ServiceKey::new(GROUP, "feed");
        let session = registry.open_session(SessionOptions::ttl(TTL)).await.unwrap();
        let node = Registration::new("http", format!("10.0.0.{number}"), 80);
        session.register(&key, node).await.unwrap();
        Self {
            id: session.id(),
            watch: registry.watch_service(&key).await.unwrap(),
            session,
            _registry: registry,
        }
    }

    /// Where its session is, if it is anywhere.
    fn at(&self) -> Option<String> {
        match self.session.status() {
            SessionStatus::Attached { server } => Some(server),
            _ => None,
        }
    }

    fn current(&self) -> bool {
        let view = self.watch.view();
        view.source == Source::Live && view.nodes.len() == CLIENTS
    }
}

/// When these sessions, which were at `gone`, are at another server, in the order of coming.
async fn arrivals(mut waiting: Vec<&Client>, gone: &str, from: Instant) -> Vec<Duration> {
    let mut arrivals = Vec::new();
    while !waiting.is_empty() {
        assert!(
            from.elapsed() < WAIT_MAX,
            "{} sessions are nowhere",
            waiting.len()
        );
        tokio::time::sleep(LOOK).await;
        waiting.retain(|client| {
            let there = client.at().is_some_and(|at| at != gone);
            if there {
                arrivals.push(from.elapsed());
            }
            !there
        });
    }
    arrivals
}

async fn all_current(clients: &[Client]) {
    eventually("every watcher is current", WAIT_MAX, || async {
        clients.iter().all(Client::current).then_some(())
    })
    .await
    .unwrap();
    for client in clients {
        assert_eq!(client.session.id(), client.id, "a session was lost");
    }
}

/// Whose sessions are at this server.
fn at<'a>(clients: &'a [Client], address: &str) -> Vec<&'a Client> {
    let here = |client: &&Client| client.at().as_deref() == Some(address);
    clients.iter().filter(here).collect()
}

/// The follower with the most sessions.
async fn follower(cluster: &mut Stage, clients: &[Client]) -> (u64, String) {
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let servers = cluster.servers().filter(|server| server.id() != leader);
    let fullest = servers
        .max_by_key(|server| at(clients, server.address()).len())
        .unwrap();
    (fullest.id(), fullest.address().to_owned())
}

/// Killed: nobody was told anything.
async fn loses_a_server(cluster: &mut Stage, clients: &[Client]) -> Result<(), String> {
    let (id, address) = follower(cluster, clients).await;
    let there = at(clients, &address);
    assert!(there.len() >= CLIENTS / 10, "{} of {CLIENTS}", there.len());
    let from = Instant::now();
    cluster.server(id).kill9().await.unwrap();
    let arrivals = arrivals(there, &address, from).await;
    all_current(clients).await;
    cluster.server(id).restart().await.unwrap();
    // After a moment in which this process stood still, all of them come at once.
    if *arrivals.last().unwrap() - arrivals[0] < Duration::from_millis(150) {
        return Err(format!("{arrivals:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_lost_server_spread_and_lose_nothing() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let opening = (0..CLIENTS).map(|number| Client::open(&addresses, number));
    let clients = futures_util::future::join_all(opening).await;
    all_current(&clients).await;

    one_clean_of(3, async || loses_a_server(&mut cluster, &clients).await).await;

    // The leader: nobody can renew until there is another.
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let address = cluster.server(leader).address().to_owned();
    let (there, from) = (at(&clients, &address), Instant::now());
    cluster.server(leader).kill9().await.unwrap();
    arrivals(there, &address, from).await;
    all_current(&clients).await;
    cluster.server(leader).restart().await.unwrap();

    // Stopped in order: each has a slot and addresses.
    let (id, address) = follower(&mut cluster, &clients).await;
    let (there, from) = (at(&clients, &address), Instant::now());
    cluster.server(id).stop().await.unwrap();
    arrivals(there, &address, from).await;
    all_current(&clients).await;
}
