//! Clusters on a network of their own, cut and slowed under load. These need root; without it each says so and passes.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use rollcall_client::Session;
use rollcall_jepsen::lab::reading::{connect, local_view};
use rollcall_jepsen::lab::{ClusterOptions, WAIT_MAX, eventually};
use rollcall_jepsen::net::{HARNESS, Net};
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{
    self, Effect, ErrorCode, GossipState, MembersRequest, QueryRequest, ReadMode, ReadOptions, RegisterNode,
    RegisterRequest, WriteOptions,
};
use support::{Follower, GROUP, Load, Stage, cluster_with, fleet};
use tonic::transport::Channel;

const TTL: Duration = Duration::from_secs(4);
/// Longer than the ttl, so that whoever judged wrongly would have struck off by then.
const CUT: Duration = Duration::from_secs(7);
/// From a cut to another leader's first answer: election timeouts are 0.5 to 1 s, and a vote may be split.
const NEW_LEADER_MAX: Duration = WAIT_MAX;
/// From the end of a fault to equal state on all servers.
const HEAL_MAX: Duration = WAIT_MAX;

const SESSIONS: usize = 30;
const NODES_EACH: u16 = 5;
const NODES: usize = SESSIONS * NODES_EACH as usize;

/// A cluster on a network, providers that only want to stay, and a watcher at each server.
struct Stand {
    net: Arc<Net>,
    cluster: Stage,
    addresses: Vec<String>,
    fleet: Vec<Session>,
    ids: Vec<u64>,
    followers: Vec<Follower>,
}

async fn stand(servers: u64, seed: u64, ttl: Duration) -> Option<Stand> {
    let net = Arc::new(Net::start_or_skip(servers, seed)?);
    let arguments = ["--set", "gossip.preset=local"].map(str::to_owned);
    let options = ClusterOptions {
        arguments: arguments.to_vec(),
        ..ClusterOptions::servers(servers).on(&net)
    };
    let cluster = cluster_with(options).await;
    let addresses = cluster.addresses();
    let fleet = fleet(&addresses, "fleet", SESSIONS, NODES_EACH, ttl).await;
    let mut followers = Vec::new();
    for address in &addresses {
        let follower = Follower::start(std::slice::from_ref(address), "fleet", 0);
        follower.wait_nodes("fleet", NODES).await;
        followers.push(follower);
    }
    let ids = fleet.iter().map(Session::id).collect();
    Some(Stand {
        net,
        cluster,
        addresses,
        fleet,
        ids,
        followers,
    })
}

impl Stand {
    async fn leader(&mut self) -> (u64, Vec<u64>) {
        let leader = self.cluster.leader(WAIT_MAX).await.unwrap();
        let others = self.cluster.ids().into_iter().filter(|id| *id != leader);
        (leader, others.collect())
    }

    fn address(&self, server: u64) -> &str {
        &self.addresses[usize::try_from(server).unwrap() - 1]
    }

    /// Ends all faults, waits for equal state, and checks what no fault may have cost: an acknowledged write, or
    /// the place of somebody who was there all along.
    async fn heal_and_judge(mut self, load: Load) {
        let healed_at = Instant::now();
        self.net.heal();
        self.cluster.wait_ready(HEAL_MAX).await.unwrap();
        let ledger = load.stop().await;
        let stopped_at = healed_at.elapsed();
        let revision = self.cluster.wait_converged(HEAL_MAX).await.unwrap();
        let healed = healed_at.elapsed();
        println!("equal on all servers {healed:?} after the heal, writers stopped after {stopped_at:?}");
        assert!(healed < HEAL_MAX, "healed after {healed:?}");
        ledger.assert_kept(&mut self.cluster, "load").await;
        for server in self.cluster.servers() {
            let view = local_view(server.address(), GROUP, "fleet", revision).await;
            assert_eq!(
                view.unwrap().unwrap().nodes.len(),
                NODES,
                "at server {}",
                server.id()
            );
        }
        for follower in &self.followers {
            follower.wait_nodes("fleet", NODES).await;
            assert_eq!(follower.removals(), 0, "removals told");
        }
        let ids: Vec<u64> = self.fleet.iter().map(Session::id).collect();
        assert_eq!(ids, self.ids, "sessions, before and after");
        println!(
            "{} writes acknowledged, {} of unknown outcome",
            ledger.acknowledged().count(),
            ledger.nodes.len() - ledger.acknowledged().count()
        );
    }
}

/// Asks one server, and no other, for things that need a quorum.
#[derive(Default)]
struct Stranded {
    attempts: u16,
    refused: Vec<String>,
}

impl Stranded {
    /// Begins a write and a read every so often, for as long as `lasting`. None may succeed.
    async fn ask(address: String, lasting: Duration) -> Self {
        let channel = connect(&address).await.unwrap();
        let mut asked = tokio::task::JoinSet::new();
        let (from, mut attempts) = (Instant::now(), 0);
        while from.elapsed() < lasting {
            attempts += 1;
            asked.spawn(write_and_read(RegistryClient::new(channel.clone()), attempts));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let refused = asked.join_all().await.into_iter().flatten().collect();
        Self { attempts, refused }
    }

    /// What was refused for certain is nowhere.
    async fn assert_refusals_held(&self, stand: &mut Stand) {
        let revision = stand.cluster.wait_converged(HEAL_MAX).await.unwrap();
        for server in stand.cluster.servers() {
            let view = local_view(server.address(), GROUP, "stranded", revision)
                .await
                .unwrap();
            let nodes = view.map(|view| view.nodes).unwrap_or_default();
            for node in nodes {
                assert!(
                    !self.refused.contains(&node.id),
                    "{} was refused, and is listed",
                    node.id
                );
            }
        }
    }
}

/// A write and a read that may not succeed without a quorum; gives back the node that was surely not written.
async fn write_and_read(mut registry: RegistryClient<Channel>, attempt: u16) -> Option<String> {
    let id = format!("stranded-{attempt}");
    let node = RegisterNode {
        key: Some(key()),
        registration: Some(v1::Registration {
            id: id.clone(),
            addresses: vec![v1::Address {
                name: "tcp".into(),
                host: "127.0.0.1".into(),
                port: attempt.into(),
            }],
            kind: v1::NodeKind::Persistent.into(),
            ..Default::default()
        }),
        expected: None,
    };
    let register = RegisterRequest {
        options: Some(WriteOptions {
            timeout_ms: 500,
            ..WriteOptions::default()
        }),
        nodes: vec![node],
        ..RegisterRequest::default()
    };
    let refusal = registry.register(register).await;
    let refusal = error(&refusal.expect_err("a write was acknowledged without a quorum"));
    let never_ok = [ErrorCode::Unavailable, ErrorCode::OutcomeUnknown];
    assert!(never_ok.contains(&refusal.code()), "{refusal:?}");
    let surely_not = (refusal.effect() == Effect::None).then_some(id);
    let query = QueryRequest {
        key: Some(key()),
        read: Some(ReadOptions {
            mode: ReadMode::Linearizable.into(),
            ..ReadOptions::default()
        }),
        ..QueryRequest::default()
    };
    let refusal = registry.query(query).await;
    let refusal = error(&refusal.expect_err("a linearizable read was answered without a quorum"));
    assert_eq!(refusal.code(), ErrorCode::Unavailable, "{refusal:?}");
    surely_not
}

fn key() -> v1::ServiceKey {
    v1::ServiceKey {
        group: GROUP.into(),
        service: "stranded".into(),
    }
}

fn error(status: &tonic::Status) -> v1::Error {
    v1::Error::decode(status.details()).unwrap_or_else(|_| panic!("no error of the contract: {status:?}"))
}

/// Cuts the leader's links (all those of `cut`), and follows what must come of it.
async fn a_leader_without_its_followers(seed: u64, cut: impl Fn(&Net, u64, &[u64])) {
    let Some(mut stand) = stand(3, seed, TTL).await else {
        return;
    };
    let load = Load::start(&stand.addresses, "load", 4, TTL).await;
    load.wait_more(100).await;
    let (leader, others) = stand.leader().await;
    // Longer than a server takes to refuse a read; the cut lasts until all have been refused.
    let asking = Stranded::ask(stand.address(leader).to_owned(), CUT);

    let cut_at = Instant::now();
    cut(&stand.net, leader, &others);
    let asking = tokio::spawn(asking);
    let successor = stand.cluster.leader_among(&others, NEW_LEADER_MAX).await.unwrap();
    println!("server {successor} leads {:?} after the cut", cut_at.elapsed());
    load.wait_more(50).await;
    println!("further writes acknowledged {:?} after the cut", cut_at.elapsed());
    let stranded = asking.await.unwrap();
    println!(
        "{} writes refused for certain by the cut-off server, {} of unknown outcome",
        stranded.refused.len(),
        usize::from(stranded.attempts) - stranded.refused.len()
    );
    stand.net.heal();
    stranded.assert_refusals_held(&mut stand).await;
    stand.heal_and_judge(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_from_both_others_acknowledges_nothing_and_costs_nobody_its_place() {
    a_leader_without_its_followers(11, |net, leader, others| {
        net.partition(&[leader], others);
    })
    .await;
}

/// It hears the others, and they do not hear it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_not_heard_is_replaced() {
    a_leader_without_its_followers(12, |net, leader, others| {
        for other in others {
            net.one_way(leader, *other);
        }
    })
    .await;
}

/// They hear it, and it does not hear them.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_acknowledges_nothing_and_is_replaced() {
    a_leader_without_its_followers(13, |net, leader, others| {
        for other in others {
            net.one_way(*other, leader);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_that_bridges_two_halves_keeps_the_cluster_going() {
    let Some(mut stand) = stand(5, 14, TTL).await else {
        return;
    };
    let load = Load::start(&stand.addresses, "load", 4, TTL).await;
    load.wait_more(50).await;
    let (leader, others) = stand.leader().await;
    // The leader is in one of the halves, so the half without it elects, or follows the bridge's leader.
    let (bridge, near, far) = (others[0], [leader, others[1]], [others[2], others[3]]);
    stand.net.partition(&near, &far);
    let cut_at = Instant::now();
    load.wait_more(100).await;
    println!("100 writes acknowledged {:?} after the cut", cut_at.elapsed());
    tokio::time::sleep(CUT.saturating_sub(cut_at.elapsed())).await;
    load.wait_more(50).await;
    let leads = stand.cluster.leader(WAIT_MAX).await.unwrap();
    println!("bridge {bridge}, first leader {leader}, now {leads}");
    stand.heal_and_judge(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_of_the_frames_lost_and_thirty_milliseconds_of_jitter_cost_time_only() {
    let ttl = Duration::from_secs(10);
    let Some(mut stand) = stand(3, 15, ttl).await else {
        return;
    };
    let load = Load::start(&stand.addresses, "load", 4, ttl).await;
    load.wait_more(50).await;
    let term = stand.cluster.statuses().await.iter().map(|(_, of)| of.term).max();
    let quiet = stand.net.traffic(1, 2);
    stand
        .net
        .everywhere(true)
        .loss(0.2)
        .jitter(Duration::from_millis(30));
    let (from, before) = (Instant::now(), load.acknowledged());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let during = load.acknowledged() - before;
    println!("{during} writes acknowledged in {:?} of loss", from.elapsed());
    assert!(during > 0, "no write in 20 s");
    let traffic = stand.net.traffic(1, 2);
    let sent = traffic.sent.frames - quiet.sent.frames;
    let share = 100 * (traffic.lost.frames - quiet.lost.frames) / sent.max(1);
    assert!(
        (15..26).contains(&share),
        "{share} % of the frames from 1 to 2 were lost"
    );
    let now = stand.cluster.statuses().await.iter().map(|(_, of)| of.term).max();
    println!("term {term:?} before, {now:?} after; {traffic:?}");
    stand.heal_and_judge(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_no_client_reaches_keeps_leading_and_clients_move_on() {
    let Some(mut stand) = stand(3, 16, TTL).await else {
        return;
    };
    let load = Load::start(&stand.addresses, "load", 4, TTL).await;
    load.wait_more(50).await;
    let (leader, others) = stand.leader().await;
    let term = stand.cluster.statuses().await[0].1.term;
    stand.net.partition(&[leader], &[HARNESS]);
    let cut_at = Instant::now();
    load.wait_more(100).await;
    println!("100 writes acknowledged {:?} after the cut", cut_at.elapsed());
    tokio::time::sleep(CUT.saturating_sub(cut_at.elapsed())).await;
    // The others still follow it, in the same term.
    for other in others {
        let status = stand.cluster.server(other).status().await.unwrap();
        assert_eq!((status.leader, status.term), (leader, term), "at server {other}");
    }
    stand.heal_and_judge(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_sees_a_member_go_down_and_come_back() {
    let Some(mut stand) = stand(3, 17, TTL).await else {
        return;
    };
    let (leader, others) = stand.leader().await;
    let gone = others[0];
    let load = Load::start(&stand.addresses, "load", 1, TTL).await;
    stand.net.isolate(gone, false);
    let cut_at = Instant::now();
    wait_seen(stand.address(leader), gone, GossipState::Down).await;
    println!(
        "server {gone} is down for the others {:?} after the cut",
        cut_at.elapsed()
    );
    // It can say so of the others as well.
    wait_seen(stand.address(gone), leader, GossipState::Down).await;
    wait_seen(stand.address(leader), others[1], GossipState::Alive).await;
    stand.net.heal();
    let healed_at = Instant::now();
    for (at, of) in [
        (leader, gone),
        (others[1], gone),
        (gone, leader),
        (gone, others[1]),
    ] {
        wait_seen(stand.address(at), of, GossipState::Alive).await;
    }
    println!("all alive for all {:?} after the heal", healed_at.elapsed());
    stand.heal_and_judge(load).await;
}

async fn wait_seen(at: &str, server: u64, state: GossipState) {
    let what = format!("server {server} {state:?} as {at} sees it");
    let seen = eventually(&what, WAIT_MAX, || async {
        let mut cluster = ClusterClient::new(connect(at).await.ok()?);
        let members = cluster.members(MembersRequest {}).await.ok()?.into_inner();
        let of = members.gossip.iter().find(|member| member.server == server)?;
        (of.state() == state).then_some(())
    });
    seen.await.unwrap();
}
