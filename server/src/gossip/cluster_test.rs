//! Clusters in one process, on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use rollcall_core::ids::{LogIndex, Revision, ServerId, Term};
use rollcall_jepsen::lab::one_clean_of;
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::metrics::ReasonLabel;
use super::*;
use crate::config::{GossipConfig, GossipPreset};

const WAIT_MAX: Duration = Duration::from_secs(20);
/// From a member's death until all know, at the `local` preset with every server in good health: at most two
/// rounds of probes over the others, the failing probe, the suspicion, and the news on their way.
const DETECTION_MAX: Duration = Duration::from_millis(4 * 2 * 200 + 200 + 1_000 + 1_000);

struct Node {
    id: u64,
    address: SocketAddr,
    folder: TempDir,
    gossip: Gossip,
    metrics: GossipMetrics,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

async fn start(
    id: u64,
    bind: &str,
    folder: &Path,
    config: GossipConfig,
) -> (
    SocketAddr,
    Gossip,
    GossipMetrics,
    JoinHandle<()>,
    CancellationToken,
) {
    let socket = loop {
        // A port of a server that was just ended may take a moment.
        match UdpSocket::bind(bind).await {
            Ok(socket) => break socket,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (address, stop, metrics) = (
        socket.local_addr().unwrap(),
        CancellationToken::new(),
        GossipMetrics::default(),
    );
    let options = GossipOptions {
        cluster: "test".into(),
        server: ServerId(id),
        data: folder.to_owned(),
        advertise: address.to_string(),
        seeds: Seeds::fixed(config.seeds.clone()),
        config,
        metrics: metrics.clone(),
    };
    let (gossip, task) = Gossip::start(options, socket, stop.clone()).unwrap();
    (address, gossip, metrics, task, stop)
}

fn config(seeds: &[SocketAddr]) -> GossipConfig {
    GossipConfig {
        preset: GossipPreset::Local,
        seeds: seeds.iter().map(SocketAddr::to_string).collect(),
        ..GossipConfig::default()
    }
}

impl Node {
    async fn start(id: u64, config: GossipConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, gossip, metrics, task, stop) = start(id, "127.0.0.1:0", folder.path(), config).await;
        Self {
            id,
            address,
            folder,
            gossip,
            metrics,
            task,
            stop,
        }
    }

    /// As by SIGKILL.
    async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// At the same address, with the same folder.
    async fn restart(&mut self, config: GossipConfig) {
        let bind = self.address.to_string();
        let (_, gossip, metrics, task, stop) = start(self.id, &bind, self.folder.path(), config).await;
        (self.gossip, self.metrics, self.task, self.stop) = (gossip, metrics, task, stop);
    }

    fn view(&self, id: u64) -> Option<MemberView> {
        self.gossip
            .members()
            .into_iter()
            .find(|view| view.identity.server.0 == id)
    }

    fn sees(&self, id: u64, state: MemberState) -> bool {
        self.view(id).is_some_and(|view| view.state == state)
    }

    fn epoch(&self) -> u64 {
        self.gossip.own().identity.map_or(0, |identity| identity.epoch)
    }

    fn dropped(&self, reason: &'static str) -> u64 {
        self.metrics.dropped.get_or_create(&ReasonLabel { reason }).get()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) -> Duration {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    since.elapsed()
}

fn all_see_all(nodes: &[Node]) -> bool {
    let sees_all = |node: &Node| {
        nodes.iter().filter(|other| other.id != node.id).all(|other| {
            node.view(other.id)
                .is_some_and(|view| view.state == MemberState::Alive && view.identity.epoch == other.epoch())
        })
    };
    nodes.iter().all(sees_all)
}

/// Servers 1 to `count`, each of which knows but the first.
async fn cluster(count: u64) -> Vec<Node> {
    let mut nodes = vec![Node::start(1, config(&[])).await];
    let seed = nodes[0].address;
    for id in 2..=count {
        nodes.push(Node::start(id, config(&[seed])).await);
    }
    let took = until("all see all", || all_see_all(&nodes)).await;
    println!("{count} servers joined in {took:?}");
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_declared_down_by_all_in_time() {
    one_clean_of(3, dies_and_is_declared_down).await;
}

async fn dies_and_is_declared_down() -> Result<(), String> {
    let mut nodes = cluster(5).await;
    nodes[4].kill().await;
    let took = until("5 is down", || {
        nodes[..4].iter().all(|node| node.sees(5, MemberState::Down))
    })
    .await;
    println!("down on all after {took:?}, bound {DETECTION_MAX:?}");
    // The bound holds for servers in good health; a busy machine stretches timeouts up to five times.
    let health = nodes[..4]
        .iter()
        .map(|node| node.metrics.health.get())
        .max()
        .unwrap_or(0);
    let slept = nodes[..4]
        .iter()
        .map(|node| node.metrics.late_ms.get())
        .max()
        .unwrap_or(0);
    if health == 0 && slept == 0 && took >= DETECTION_MAX {
        return Err(format!("down on all after {took:?}"));
    }
    for node in &nodes[..4] {
        for other in (1..=4).filter(|other| *other != node.id) {
            if node.sees(other, MemberState::Down) {
                return Err(format!("server {} declared {other} down, which lives", node.id));
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_member_is_back_at_once_twenty_times() {
    let mut nodes = cluster(5).await;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let mut slowest = Duration::ZERO;
    for round in 0..20_usize {
        let index = round % 5;
        let before = nodes[index].epoch();
        nodes[index].kill().await;
        if round % 4 == 3 {
            // Some rounds it is away long enough to be declared down.
            until("it is down", || {
                (0..5)
                    .filter(|other| *other != index)
                    .all(|other| nodes[other].sees(nodes[index].id, MemberState::Down))
            })
            .await;
        }
        nodes[index].restart(config(&seeds)).await;
        let took = until("all see all again", || all_see_all(&nodes)).await;
        assert!(nodes[index].epoch() > before);
        slowest = slowest.max(took);
    }
    println!("20 restarts, the slowest back on all after {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_gone_at_once() {
    one_clean_of(5, leaves).await;
}

async fn leaves() -> Result<(), String> {
    let mut nodes = cluster(5).await;
    let leaver = nodes.pop().unwrap();
    let suspicions = || {
        nodes
            .iter()
            .map(|node| node.metrics.suspicions.get())
            .sum::<u64>()
    };
    let before = suspicions();
    let since = Instant::now();
    leaver.stop.cancel();
    leaver.task.await.unwrap();
    until("5 has left", || {
        nodes.iter().all(|node| node.sees(5, MemberState::Down))
    })
    .await;
    let took = since.elapsed();
    println!("gone on all after {took:?}");
    let suspected = suspicions() - before;
    if took < Duration::from_secs(1) && suspected == 0 {
        Ok(())
    } else {
        Err(format!("gone after {took:?} and {suspected} suspicions"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_shorter_than_the_suspicion_is_survived_by_all() {
    one_clean_of(3, pauses_one_by_one).await;
}

async fn pauses_one_by_one() -> Result<(), String> {
    let nodes = cluster(5).await;
    for node in &nodes {
        let paused = node.gossip.pause().await;
        // This is the length of the pause itself.
        tokio::time::sleep(Duration::from_millis(800)).await;
        drop(paused);
        until("no suspicion is left", || all_see_all(&nodes)).await;
    }
    match nodes.iter().find(|node| node.epoch() != 1) {
        Some(node) => Err(format!("server {} was declared down", node.id)),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_paused_for_long_blames_nobody_and_comes_back() {
    one_clean_of(3, is_paused_for_long).await;
}

async fn is_paused_for_long() -> Result<(), String> {
    let nodes = cluster(3).await;
    let paused = nodes[0].gossip.pause().await;
    until("1 is down", || {
        nodes[1..].iter().all(|node| node.sees(1, MemberState::Down))
    })
    .await;
    drop(paused);
    until("all see all", || nodes[0].epoch() >= 2 && all_see_all(&nodes)).await;
    until("its sleep is counted", || nodes[0].metrics.late_ms.get() > 500).await;
    match (nodes[1].epoch(), nodes[2].epoch()) {
        (1, 1) => Ok(()),
        epochs => Err(format!("a living one was declared down: {epochs:?}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_forgot_its_epoch_learns_it() {
    let mut nodes = cluster(3).await;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    for _ in 0..4 {
        nodes[2].kill().await;
        nodes[2].restart(config(&seeds)).await;
    }
    until("all see all", || all_see_all(&nodes)).await;
    let before = nodes[2].epoch();
    // One for each start, and perhaps some because a slow machine had it declared down.
    assert!(before >= 5, "{before}");
    nodes[2].kill().await;
    nodes[2].folder = tempfile::tempdir().unwrap();
    nodes[2].restart(config(&seeds)).await;
    until("all see it again", || {
        nodes[2].epoch() > before && all_see_all(&nodes)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_with_one_id_the_later_life_holds_and_all_is_said() {
    let nodes = cluster(3).await;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    // A copy of server 3's folder, started elsewhere: its epoch is 2.
    let folder = tempfile::tempdir().unwrap();
    let epoch = nodes[2].folder.path().join("gossip-epoch");
    std::fs::copy(epoch, folder.path().join("gossip-epoch")).unwrap();
    let (address, gossip, metrics, task, stop) = start(3, "127.0.0.1:0", folder.path(), config(&seeds)).await;
    until("the former one stands aside", || nodes[2].gossip.own().displaced).await;
    until("the others know the later one", || {
        nodes[..2].iter().all(|node| {
            node.view(3)
                .is_some_and(|view| view.identity.address == address && view.state == MemberState::Alive)
        })
    })
    .await;
    assert!(nodes[2].metrics.duplicates.get() > 0 && nodes[2].metrics.displaced.get() == 1);
    assert!(nodes[..2].iter().any(|node| node.metrics.duplicates.get() > 0));
    assert_eq!(metrics.displaced.get(), 0);
    assert_eq!(gossip.own().identity.unwrap().epoch, 2);
    // It asks the later one again and again, and stays aside while that answers. It hears nobody else meanwhile, and judges
    // nobody.
    let alarms = metrics.duplicates.get();
    until("the later one is asked", || metrics.duplicates.get() > alarms + 6).await;
    assert!(nodes[2].gossip.own().displaced);
    for other in [1, 2] {
        let state = nodes[2].view(other).map(|view| view.state);
        assert_eq!(
            state,
            Some(MemberState::Alive),
            "server {other} at the displaced one"
        );
    }
    stop.cancel();
    task.await.unwrap();
    until("the former one is back", || {
        !nodes[2].gossip.own().displaced && nodes[2].epoch() == 3 && all_see_all(&nodes)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_knows_how_far_every_other_is() {
    let nodes = cluster(4).await;
    let mut deliveries = nodes[0].gossip.subscribe();
    for revision in [7_u64, 8, 9] {
        for node in &nodes {
            let head = Head {
                revision: Revision(revision * node.id),
                applied: LogIndex(revision),
                term: Term(1),
                leader: Some(ServerId(1)),
            };
            node.gossip.publish(Topic::Head, &head.encode()).unwrap();
        }
    }
    until("the last heads are everywhere", || {
        nodes.iter().all(|node| {
            let heads = node.gossip.heads();
            heads.len() == 4
                && heads
                    .iter()
                    .all(|heard| heard.head.revision.0 == 9 * heard.server.0)
        })
    })
    .await;
    assert_ne!(deliveries.recv().await.unwrap().from, ServerId(1));
    let long = vec![0; NEWS_BYTES_MAX + 1];
    assert_eq!(
        nodes[0].gossip.publish(Topic::Head, &long),
        Err(PublishError::TooLong { bytes: 513 })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_under_way_and_strangers_stay_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = |name: &str, keys: &[u8]| {
        let path = folder.path().join(name);
        let lines: Vec<String> = keys
            .iter()
            .map(|key| base64::engine::general_purpose::STANDARD.encode([*key; 32]))
            .collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        path
    };
    let with = |seeds: &[SocketAddr], path: &Path| GossipConfig {
        key_file: Some(path.to_owned()),
        ..config(seeds)
    };
    let (old, both, stranger) = (keys("old", &[1]), keys("both", &[1, 2]), keys("stranger", &[9]));
    let new_first = keys("new", &[2, 1]);
    let mut nodes = vec![Node::start(1, with(&[], &old)).await];
    let seed = nodes[0].address;
    nodes.push(Node::start(2, with(&[seed], &both)).await);
    until("1 and 2 see each other", || all_see_all(&nodes)).await;
    nodes[0].kill().await;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    nodes[0].restart(with(&seeds, &new_first)).await;
    until("they still do", || all_see_all(&nodes)).await;

    let wrong_key = Node::start(3, with(&seeds, &stranger)).await;
    let no_key = Node::start(4, config(&seeds)).await;
    until("they were heard and not listened to", || {
        nodes[0].dropped("key") > 2 && nodes[0].dropped("plain") > 2
    })
    .await;
    assert!(
        nodes
            .iter()
            .all(|node| node.view(3).is_none() && node.view(4).is_none())
    );
    assert!(wrong_key.gossip.members().is_empty() && no_key.gossip.members().is_empty());
}
