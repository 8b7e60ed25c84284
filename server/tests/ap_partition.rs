//! Five servers cut in two, AP nodes changed on both sides, and healed: how long until all have the same, and is
//! everything that was acknowledged there? `ROLLCALL_TEST_NODES` sets how many (1,000 if not set). Needs root; without it
//! the test says so and passes.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_client::v1::registry_client::RegistryClient;
use rollcall_client::v1::{self, GroupMode, GroupSettings, ReadMode};
use rollcall_client::{
    Entry, Expected, NodeKey, NodeUpdate, Registration, Registry, RegistryConfig, Removal, ServiceKey,
    Session, SessionOptions, SessionStatus, WriteOptions,
};
use rollcall_jepsen::lab::reading::{connect, local_view};
use rollcall_jepsen::lab::{ClusterOptions, WAIT_MAX, eventually};
use rollcall_jepsen::net::Net;
use support::cluster_with;
use tonic::transport::Channel;

const EDGE: &str = "edge";
const SERVERS: u64 = 5;
const SERVICES: usize = 4;
/// Sessions at each server.
const SESSIONS_EACH: usize = 4;
/// Longer than the cut, so that nobody is judged: whom a cut strikes off is another test's matter.
const TTL: Duration = Duration::from_secs(60);

fn nodes_wanted() -> usize {
    let set = std::env::var("ROLLCALL_TEST_NODES").ok();
    set.map_or(1_000, |nodes| nodes.parse().unwrap())
}

fn service(number: usize) -> ServiceKey {
    ServiceKey::new(EDGE, format!("feed-{}", number % SERVICES))
}

/// A provider that knows one server, and what it was told is done.
struct Provider {
    name: String,
    session: Session,
    /// Nodes by number; `None`: deregistered.
    acknowledged: BTreeMap<usize, Option<u32>>,
}

impl Provider {
    async fn open(address: &str, name: String) -> Self {
        let registry = Registry::connect(RegistryConfig::new([address])).unwrap();
        let options = SessionOptions::ttl(TTL).mode(GroupMode::Ap);
        Self {
            name,
            session: registry.open_session(options).await.unwrap(),
            acknowledged: BTreeMap::new(),
        }
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    fn key(&self, number: usize) -> NodeKey {
        let service = service(number);
        NodeKey::new(EDGE, &service.service, self.id(number))
    }

    async fn register(&mut self, numbers: std::ops::Range<usize>) {
        for piece in numbers.collect::<Vec<_>>().chunks(100) {
            let entries = piece.iter().map(|number| {
                let registration = Registration::new("tcp", "127.0.0.1", 80).id(self.id(*number));
                Entry::new(service(*number), registration)
            });
            let entries: Vec<Entry> = entries.collect();
            self.session
                .register_all(entries, WriteOptions::default())
                .await
                .unwrap();
            self.acknowledged
                .extend(piece.iter().map(|number| (*number, Some(100))));
        }
    }

    /// Changes every node: a tenth leaves, the others get another weight; and a tenth more comes.
    async fn change(&mut self, weight: u32) {
        let numbers: Vec<usize> = self.acknowledged.keys().copied().collect();
        let (leaving, staying): (Vec<usize>, Vec<usize>) =
            numbers.iter().partition(|number| *number % 10 == 3);
        for piece in staying.chunks(100) {
            let updates = piece
                .iter()
                .map(|number| NodeUpdate::new(self.key(*number)).weight(u16::try_from(weight).unwrap()));
            let updates: Vec<NodeUpdate> = updates.collect();
            self.session
                .update_all(updates, WriteOptions::default())
                .await
                .unwrap();
            self.acknowledged
                .extend(piece.iter().map(|number| (*number, Some(weight))));
        }
        for piece in leaving.chunks(100) {
            let removals = piece.iter().map(|number| Removal::from(self.key(*number)));
            let removals: Vec<Removal> = removals.collect();
            self.session
                .deregister_all(removals, WriteOptions::default())
                .await
                .unwrap();
            self.acknowledged
                .extend(piece.iter().map(|number| (*number, None)));
        }
        let next = numbers.len();
        self.register(next..next + next / 10).await;
    }
}

/// The signs of all services at one server.
async fn signs(client: &mut RegistryClient<Channel>) -> Option<Vec<(u64, u64)>> {
    let request = v1::SignsRequest {
        keys: (0..SERVICES).map(|number| (&service(number)).into()).collect(),
        read: Some(v1::ReadOptions {
            mode: ReadMode::Local.into(),
            ..v1::ReadOptions::default()
        }),
    };
    let answer = client.signs(request).await.ok()?.into_inner();
    let signs = answer
        .signs
        .into_iter()
        .map(|sign| sign.sign.map(|sign| (sign.high, sign.low)));
    signs.collect()
}

/// Waits until all servers have the same signs, which are told how long they took.
async fn wait_same(clients: &[RegistryClient<Channel>]) -> Duration {
    let from = Instant::now();
    loop {
        let mut found = BTreeSet::new();
        for client in clients {
            found.insert(signs(&mut client.clone()).await);
        }
        if found.len() == 1 && !found.contains(&None) {
            return from.elapsed();
        }
        assert!(from.elapsed() < WAIT_MAX, "not the same after {WAIT_MAX:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_cut_take_writes_and_are_soon_the_same_when_it_heals() {
    let Some(net) = Net::start_or_skip(SERVERS, 42) else {
        return;
    };
    let net = Arc::new(net);
    let arguments = ["--set", "gossip.preset=local"].map(str::to_owned);
    let cluster = cluster_with(ClusterOptions {
        arguments: arguments.to_vec(),
        ..ClusterOptions::servers(SERVERS).on(&net)
    })
    .await;
    let addresses = cluster.addresses();
    let settings = GroupSettings {
        mode: GroupMode::Ap.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    support::registry(&addresses, 0)
        .put_group(EDGE, settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
    let mut clients = Vec::new();
    for address in &addresses {
        clients.push(RegistryClient::new(connect(address).await.unwrap()));
    }
    let mut providers = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        for number in 0..SESSIONS_EACH {
            providers.push(Provider::open(address, format!("p{at}-{number}")).await);
        }
    }
    let each = nodes_wanted() / providers.len();
    for provider in &mut providers {
        provider.register(0..each).await;
    }
    println!(
        "{} nodes at all servers {:?} after the last was written",
        each * providers.len(),
        wait_same(&clients).await
    );

    net.partition(&[1, 2], &[3, 4, 5]);
    let cut_at = Instant::now();
    eventually("each side takes the other for down", WAIT_MAX, || async {
        // Two sides that differ are two sides that are cut.
        let (mut one, mut other) = (clients[0].clone(), clients[4].clone());
        let same = signs(&mut one).await? == signs(&mut other).await?;
        (cut_at.elapsed() > Duration::from_secs(3) && same).then_some(())
    })
    .await
    .unwrap();
    let mut changing = tokio::task::JoinSet::new();
    for mut provider in providers {
        changing.spawn(async move {
            provider.change(7).await;
            provider
        });
    }
    let providers = changing.join_all().await;
    let (mut one, mut other) = (clients[0].clone(), clients[4].clone());
    assert_ne!(
        signs(&mut one).await,
        signs(&mut other).await,
        "the sides know nothing of each other"
    );
    println!("changed on both sides, cut for {:?}", cut_at.elapsed());

    net.heal();
    let took = wait_same(&clients).await;
    println!("the same at all {SERVERS} servers {took:?} after the heal");

    let wanted: BTreeMap<String, u32> = providers
        .iter()
        .flat_map(|provider| {
            let there = provider.acknowledged.iter();
            there.filter_map(|(number, weight)| weight.map(|weight| (provider.id(*number), weight)))
        })
        .collect();
    for address in &addresses {
        let mut listed = BTreeMap::new();
        for number in 0..SERVICES {
            let name = service(number).service;
            let view = local_view(address, EDGE, &name, 0).await.unwrap().unwrap();
            listed.extend(view.nodes.into_iter().map(|node| (node.id, node.weight)));
        }
        let lost = wanted
            .iter()
            .filter(|(id, weight)| listed.get(*id) != Some(*weight))
            .count();
        let back = listed.keys().filter(|id| !wanted.contains_key(*id)).count();
        println!(
            "{address}: {} nodes, {lost} acknowledged lost, {back} deregistered back",
            listed.len()
        );
        assert_eq!((lost, back), (0, 0), "{}", cluster.log_tails());
    }
    let attached = |provider: &Provider| matches!(provider.session.status(), SessionStatus::Attached { .. });
    assert!(providers.iter().all(attached));
}
