//! Membership of real processes: who joins, leaves, dies, sleeps, comes back, or is there twice.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rollcall_jepsen::fuzz::{Plan, Report, Stand, StandOptions, attack};
use rollcall_jepsen::lab::{Cluster, ClusterOptions, Endpoints, Process, WAIT_MAX, eventually, one_clean_of};
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::{GossipMember, GossipState, MembersRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

/// From a member's death until all know, at the `local` preset: two rounds of probes, the failing probe, the
/// suspicion, the news on their way, each doubled for a machine that is busy with other tests.
const DETECTION_MAX: Duration = Duration::from_secs(10);
/// Longer than the suspicion of the `local` preset and all that stretches it.
const LONG_PAUSE: Duration = Duration::from_secs(6);

/// How many clusters run at a time: the tests mostly wait, but a starved member is a slow one.
static ROOM: Semaphore = Semaphore::const_new(2);

async fn room() -> SemaphorePermit<'static> {
    ROOM.acquire().await.unwrap()
}

struct Gossiping {
    cluster: Cluster,
    _room: SemaphorePermit<'static>,
}

async fn gossiping(servers: u64, settings: &[&str]) -> Gossiping {
    let room = room().await;
    let settings = ["gossip.preset=\"local\""].iter().chain(settings);
    let options = ClusterOptions {
        binary: Some(env!("CARGO_BIN_EXE_rollcalld").into()),
        arguments: settings
            .flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()])
            .collect(),
        ..ClusterOptions::servers(servers)
    };
    let cluster = Cluster::start_with(options).await.unwrap();
    let mut gossiping = Gossiping { cluster, _room: room };
    gossiping.wait_all_alive().await;
    gossiping
}

async fn gossip_at(address: &str) -> Option<Vec<GossipMember>> {
    let mut client = ClusterClient::connect(format!("http://{address}")).await.ok()?;
    Some(client.members(MembersRequest {}).await.ok()?.into_inner().gossip)
}

impl Gossiping {
    /// What each running server says, by the server asked.
    async fn views(&mut self) -> BTreeMap<u64, Vec<GossipMember>> {
        let mut views = BTreeMap::new();
        for server in self.cluster.servers_mut() {
            if server.is_running()
                && !server.is_paused()
                && let Some(view) = gossip_at(server.address()).await
            {
                views.insert(server.id(), view);
            }
        }
        views
    }

    async fn until(
        &mut self,
        what: &str,
        bound: Duration,
        holds: impl Fn(u64, &[GossipMember]) -> bool,
    ) -> Duration {
        let since = Instant::now();
        loop {
            let views = self.views().await;
            if !views.is_empty() && views.iter().all(|(by, view)| holds(*by, view)) {
                return since.elapsed();
            }
            assert!(
                since.elapsed() < bound,
                "not within {bound:?}: {what}\n{views:#?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until every running server takes all running servers for alive, in the lives they are in.
    async fn wait_all_alive(&mut self) -> Duration {
        let since = Instant::now();
        loop {
            let views = self.views().await;
            let running = self
                .cluster
                .servers_mut()
                .filter_map(|server| server.is_running().then_some(server.id()))
                .count();
            let epochs: BTreeMap<u64, u64> = views.iter().map(|(id, view)| (*id, epoch(view, *id))).collect();
            let sees_all = |view: &Vec<GossipMember>| {
                epochs.iter().all(|(id, epoch)| {
                    view.iter().any(|member| {
                        member.server == *id && member.state() == GossipState::Alive && member.epoch == *epoch
                    })
                })
            };
            if views.len() == running && views.values().all(sees_all) {
                return since.elapsed();
            }
            assert!(since.elapsed() < WAIT_MAX, "{views:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn epochs(&mut self) -> BTreeMap<u64, u64> {
        let views = self.views().await;
        views.iter().map(|(id, view)| (*id, epoch(view, *id))).collect()
    }
}

fn epoch(view: &[GossipMember], id: u64) -> u64 {
    view.iter()
        .find(|member| member.server == id)
        .map_or(0, |member| member.epoch)
}

fn is(view: &[GossipMember], id: u64, state: GossipState) -> bool {
    view.iter()
        .any(|member| member.server == id && member.state() == state)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_is_down_in_time_and_back_in_a_later_life() {
    one_clean_of(3, is_killed_and_comes_back).await;
}

async fn is_killed_and_comes_back() -> Result<(), String> {
    let mut stage = gossiping(3, &[]).await;
    let before = stage.epochs().await[&3];
    stage.cluster.server(3).kill9().await.unwrap();
    let took = stage
        .until("3 is down on the others", WAIT_MAX, |_, view| {
            is(view, 3, GossipState::Down)
        })
        .await;
    println!("down on all after {took:?}");
    in_time(took)?;
    stage.cluster.server(3).restart().await.unwrap();
    let took = stage.wait_all_alive().await;
    let after = stage.epochs().await;
    println!("back on all {took:?} after it was ready");
    assert!(after[&3] > before, "{after:?}");
    blameless(&after, [1, 2])
}

/// Who is busy takes up to five times as long.
fn in_time(took: Duration) -> Result<(), String> {
    if took < DETECTION_MAX {
        Ok(())
    } else {
        Err(format!("down on all after {took:?}"))
    }
}

/// The others had no part in it. One that stood still for long may have been declared down all the same.
fn blameless(epochs: &BTreeMap<u64, u64>, others: [u64; 2]) -> Result<(), String> {
    if others.iter().all(|id| epochs[id] == 1) {
        Ok(())
    } else {
        Err(format!("a living one was declared down: {epochs:?}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_in_order_is_down_at_once_and_nobody_suspects_it() {
    one_clean_of(5, stops_in_order).await;
}

async fn stops_in_order() -> Result<(), String> {
    let mut stage = gossiping(3, &[]).await;
    let suspicions = metric(&stage, 1, "rollcall_gossip_suspicions_total").await;
    stage.cluster.server(3).stop().await.unwrap();
    let took = stage
        .until("3 has left", WAIT_MAX, |_, view| is(view, 3, GossipState::Down))
        .await;
    println!("gone on all {took:?} after its process ended");
    let suspected = metric(&stage, 1, "rollcall_gossip_suspicions_total").await - suspicions;
    let down = metric(&stage, 1, "rollcall_gossip_members{state=\"down\"}").await;
    if took < Duration::from_secs(2) && (suspected, down) == (0, 1) {
        Ok(())
    } else {
        Err(format!(
            "gone after {took:?}, {suspected} suspicions, {down} down"
        ))
    }
}

async fn restarts(times: usize) {
    let mut stage = gossiping(3, &[]).await;
    let mut took = Vec::new();
    for turn in 0..times {
        let id = 1 + (turn as u64) % 3;
        let before = stage.epochs().await[&id];
        stage.cluster.server(id).kill9().await.unwrap();
        let since = Instant::now();
        stage.cluster.server(id).restart().await.unwrap();
        stage.wait_all_alive().await;
        took.push(since.elapsed());
        assert!(stage.epochs().await[&id] > before);
    }
    took.sort_unstable();
    println!(
        "{times} restarts by kill -9: alive on all after median {:?}, slowest {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    let epochs = stage.epochs().await;
    let lives: u64 = epochs.values().sum();
    // One for each restart, and few that a member began because it was declared down.
    assert!(lives <= 3 + 2 * times as u64, "{epochs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_restarts_in_a_row_are_seen_by_all() {
    restarts(20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes"]
async fn two_hundred_restarts_in_a_row_are_seen_by_all() {
    restarts(200).await;
}

/// It is declared down, wakes, refutes by a new life, and held its own sleep against nobody.
#[tokio::test(flavor = "multi_thread")]
async fn who_sleeps_longer_than_the_suspicion_comes_back_by_itself_and_blames_nobody() {
    one_clean_of(3, sleeps_and_comes_back).await;
}

async fn sleeps_and_comes_back() -> Result<(), String> {
    let mut stage = gossiping(3, &[]).await;
    stage.cluster.server(2).pause().await.unwrap();
    let took = stage
        .until("2 is down on the others", WAIT_MAX, |_, view| {
            is(view, 2, GossipState::Down)
        })
        .await;
    in_time(took)?;
    // This is the length of the pause itself.
    tokio::time::sleep(LONG_PAUSE).await;
    stage.cluster.server(2).resume().unwrap();
    let took = stage.wait_all_alive().await;
    println!("alive on all {took:?} after it woke");
    let epochs = stage.epochs().await;
    assert!(epochs[&2] >= 2, "{epochs:?}");
    eventually("its sleep is counted", WAIT_MAX, || async {
        let slept = metric(&stage, 2, "rollcall_gossip_slept_milliseconds").await;
        (slept > 5_000).then_some(())
    })
    .await
    .unwrap();
    blameless(&epochs, [1, 3])
}

/// A second process with the id of the third server: the one that came later holds, the other stands aside, both say
/// so, and nobody flaps; when the later one ends, the former comes back.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_id_one_stands_aside_until_the_other_ends() {
    one_clean_of(3, has_a_twin).await;
}

async fn has_a_twin() -> Result<(), String> {
    let mut stage = gossiping(3, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(
        stage.cluster.server(3).data().join("gossip-epoch"),
        copy.join("gossip-epoch"),
    )
    .unwrap();
    let (mut second, at) = twin(&mut stage.cluster, 3, &copy, folder.path());
    stage
        .until("3 stands aside", WAIT_MAX, |by, view| {
            by != 3 || is(view, 3, GossipState::Displaced)
        })
        .await;
    stage
        .until("the others know the later one", WAIT_MAX, |by, view| {
            by == 3
                || view.iter().any(|member| {
                    member.server == 3 && member.state() == GossipState::Alive && member.address == at.peer
                })
        })
        .await;
    assert!(metric(&stage, 3, "rollcall_gossip_duplicates_total").await > 0);
    assert_eq!(metric(&stage, 3, "rollcall_gossip_displaced").await, 1);
    assert!(stage.cluster.server(3).log_tail(200).contains("RC-204"));
    let lives = stage.views().await[&1].clone();
    // As long as several rounds in which they might have flapped.
    tokio::time::sleep(LONG_PAUSE).await;
    let later = stage.views().await;
    if epoch(&later[&1], 3) != epoch(&lives, 3) || !is(&later[&3], 3, GossipState::Displaced) {
        // Or the later one stood still, and was declared down.
        return Err(format!("they flap: {lives:#?}\n{later:#?}"));
    }

    second.kill9().await.unwrap();
    let took = stage.wait_all_alive().await;
    println!("back {took:?} after the other one ended");
    assert!(is(&stage.views().await[&3], 3, GossipState::Alive));
    Ok(())
}

/// Another process under a server's id, on ports and data of its own.
fn twin(cluster: &mut Cluster, id: u64, data: &Path, folder: &Path) -> (Process, Endpoints) {
    let at = Endpoints::free().unwrap();
    let seeds = cluster
        .servers()
        .map(|server| format!("\"{}\"", server.endpoints().peer))
        .collect::<Vec<_>>()
        .join(",");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcalld"));
    command
        .args(["--id", &id.to_string(), "--cluster", "lab", "--join"])
        .args(["--listen-client", &at.client, "--listen-peer", &at.peer])
        .args(["--listen-http", &at.http, "--log-format", "text"])
        .args(["--set", "gossip.preset=\"local\""])
        .args(["--set", &format!("gossip.seeds=[{seeds}]")])
        .arg("--data")
        .arg(data);
    let process = Process::spawn("the twin", command, &folder.join("twin.log")).unwrap();
    (process, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_is_not_let_in() {
    let mut stage = gossiping(3, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let at = Endpoints::free().unwrap();
    let seeds = stage
        .cluster
        .servers()
        .map(|server| format!("\"{}\"", server.endpoints().peer))
        .collect::<Vec<_>>()
        .join(",");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcalld"));
    command
        .args(["--id", "9", "--cluster", "elsewhere", "--join"])
        .args(["--listen-client", &at.client, "--listen-peer", &at.peer])
        .args(["--listen-http", &at.http, "--set", "gossip.preset=\"local\""])
        .args(["--set", &format!("gossip.seeds=[{seeds}]")])
        .arg("--data")
        .arg(folder.path().join("data"));
    let _stranger = Process::spawn("the stranger", command, &folder.path().join("log")).unwrap();
    eventually("its packets are counted", WAIT_MAX, || async {
        let mut least = u64::MAX;
        for server in stage.cluster.servers() {
            let name = "rollcall_gossip_packets_dropped_total{reason=\"cluster\"}";
            least = least.min(metric_at(&server.endpoints().http, name).await);
        }
        (least >= 3).then_some(())
    })
    .await
    .unwrap();
    let views = stage.views().await;
    assert!(
        views
            .values()
            .all(|view| view.len() == 3 && view.iter().all(|member| member.server <= 3)),
        "{views:#?}"
    );
}

/// The new key behind the old, then first, then alone: one server after the other at each step, and at no time does
/// one of them fail to hear another.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_one_server_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gossip.keys");
    let write = |keys: &[&str]| std::fs::write(&path, keys.join("\n")).unwrap();
    let (old, new) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
    write(&[&old]);
    let setting = format!("gossip.key_file=\"{}\"", path.display());
    let mut stage = gossiping(3, &[&setting]).await;
    for keys in [vec![&*old, &*new], vec![&*new, &*old], vec![&*new]] {
        write(&keys);
        for id in 1..=3 {
            stage.cluster.server(id).restart().await.unwrap();
            stage.wait_all_alive().await;
        }
    }
    for id in 1..=3 {
        for reason in ["key", "plain", "sealed"] {
            let name = format!("rollcall_gossip_packets_dropped_total{{reason=\"{reason}\"}}");
            assert_eq!(metric(&stage, id, &name).await, 0, "{reason} at {id}");
        }
    }
}

/// The relay before the third server drops what the others send: it hears nobody, and everybody hears it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hears_nobody_is_down_takes_nobody_along_and_comes_back() {
    one_clean_of(3, hears_nobody).await;
}

async fn hears_nobody() -> Result<(), String> {
    let _room = room().await;
    let stand = stand("lan", true).await;
    let peers: Vec<SocketAddr> = stand
        .cluster
        .servers()
        .map(|server| server.endpoints().peer.parse().unwrap())
        .collect();
    let addresses = stand.cluster.addresses();
    stand.relays[2].be_deaf_to(peers[..2].iter().copied());
    eventually("3 is down on the others", WAIT_MAX, || {
        all_see(&addresses[..2], &[3], GossipState::Down)
    })
    .await
    .unwrap();
    eventually("it takes the others for down", WAIT_MAX, || {
        all_see(&addresses[2..], &[1, 2], GossipState::Down)
    })
    .await
    .unwrap();
    eventually("the others see each other", WAIT_MAX, || {
        all_see(&addresses[..2], &[1, 2], GossipState::Alive)
    })
    .await
    .unwrap();
    stand.relays[2].be_deaf_to([]);
    eventually("3 is back", WAIT_MAX, || {
        all_see(&addresses, &[1, 2, 3], GossipState::Alive)
    })
    .await
    .unwrap();
    let view = gossip_at(&addresses[0]).await.unwrap();
    assert!(epoch(&view, 3) >= 2);
    let epochs = [1, 2].map(|id| (id, epoch(&view, id)));
    blameless(&BTreeMap::from(epochs), [1, 2])
}

/// Whether the servers at these addresses see each of those in this state.
async fn all_see(at: &[String], of: &[u64], state: GossipState) -> Option<()> {
    for address in at {
        let view = gossip_at(address).await?;
        if !of.iter().all(|id| is(&view, *id, state)) {
            return None;
        }
    }
    Some(())
}

async fn stand(preset: &str, sealed: bool) -> Stand {
    let options = StandOptions {
        servers: 3,
        sealed,
        preset: preset.into(),
        binary: Some(env!("CARGO_BIN_EXE_rollcalld").into()),
    };
    Stand::start(options).await.unwrap()
}

async fn fuzzed(sealed: bool, insider: bool) -> Report {
    let _room = room().await;
    let mut stand = stand("local", sealed).await;
    let plan = Plan {
        cluster: Stand::CLUSTER.into(),
        key: stand.key(),
        seed: rand::random(),
        time: Duration::from_secs(10),
        rate: 1_000,
        insider,
    };
    println!("seed {}", plan.seed);
    let targets = stand.targets().unwrap();
    let mut report = attack(&plan, &targets, &stand.relays).await.unwrap();
    stand.judge(&mut report);
    println!("{report}");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_packets_are_counted_and_change_nothing() {
    let report = fuzzed(false, false).await;
    assert!(report.broken.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_packets_are_counted_and_change_nothing_where_there_is_a_key() {
    let report = fuzzed(true, false).await;
    assert!(report.broken.is_empty(), "{report}");
}

/// Without a key anybody can speak for a member. That is over when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn forged_packets_do_no_lasting_harm() {
    let report = fuzzed(false, true).await;
    assert!(report.broken.is_empty(), "{report}");
}

async fn metric(stage: &Gossiping, id: u64, name: &str) -> u64 {
    let server = stage.cluster.servers().find(|server| server.id() == id).unwrap();
    metric_at(&server.endpoints().http, name).await
}

/// A counter or gauge of the metrics page; one that is not there yet is 0.
async fn metric_at(http: &str, name: &str) -> u64 {
    let mut stream = TcpStream::connect(http).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0)
}
