//! Watches of AP groups on real processes: at whichever server, they see what is registered at any, and resume
//! elsewhere by the sign of what they hold.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use rollcall_client::v1::watch_client::WatchClient;
use rollcall_client::v1::watch_frame::Frame;
use rollcall_client::v1::{self, GroupMode, GroupSettings};
use rollcall_client::{
    Entry, Expected, NodeKey, NodeKind, Registration, Registry, RegistryConfig, Removal, ServiceKey,
    ServiceView, Source, Watch, WatchEvent, WatchTarget, WriteOptions,
};
use rollcall_jepsen::lab::reading::connect;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{GROUP, Stage, cluster, registry};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How soon what was registered is to be seen by everyone.
const SOON: Duration = Duration::from_secs(15);
const EDGE: &str = "edge";

fn service() -> ServiceKey {
    ServiceKey::new(EDGE, "feed")
}

async fn put_group(registry: &Registry, group: &str, mode: GroupMode) {
    let settings = GroupSettings {
        mode: mode.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    registry
        .put_group(group, settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
}

async fn stage(servers: u64) -> Stage {
    let cluster = cluster(servers).await;
    put_group(&registry(&cluster.addresses(), 0), EDGE, GroupMode::Ap).await;
    cluster
}

fn only(address: &str) -> Registry {
    Registry::connect(RegistryConfig::new([address])).unwrap()
}

async fn register(registry: &Registry, service: &ServiceKey, id: &str) {
    let registration = Registration::new("tcp", "127.0.0.1", 80)
        .id(id)
        .kind(NodeKind::Persistent);
    registry
        .register_persistent(
            &[Entry::new(service.clone(), registration)],
            WriteOptions::default(),
        )
        .await
        .unwrap();
}

async fn deregister(registry: &Registry, service: &ServiceKey, id: &str) {
    let removal = Removal::from(NodeKey::new(&*service.group, &*service.service, id));
    registry
        .deregister(&[removal], WriteOptions::default())
        .await
        .unwrap();
}

fn ids(view: &ServiceView) -> BTreeSet<String> {
    view.nodes.iter().map(|node| node.id.to_string()).collect()
}

/// A consumer that writes down what it was told.
struct Consumer {
    // Its streams last as long as this.
    _registry: Registry,
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    views: Vec<Arc<ServiceView>>,
    /// As of the last event.
    told: BTreeMap<ServiceKey, Arc<ServiceView>>,
    /// Where it is live.
    server: u64,
    interruptions: u32,
    lives: u32,
    /// Nodes that were said to leave, and services that were said to be gone.
    losses: Vec<String>,
    /// Revisions that went back, of one service in one epoch.
    disorder: Vec<String>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Consumer {
    async fn start(addresses: &[String], first: usize, target: impl Into<WatchTarget>) -> Self {
        let registry = registry(addresses, first);
        let mut watch = registry.watch(target).await.unwrap();
        let told = Arc::<Mutex<Told>>::default();
        let shared = Arc::clone(&told);
        let task = tokio::spawn(async move {
            loop {
                let event = watch.next().await;
                shared.lock().unwrap().take(event, &watch);
            }
        });
        Self {
            _registry: registry,
            told,
            task,
        }
    }

    fn look<R>(&self, look: impl FnOnce(&Told) -> R) -> R {
        look(&self.told.lock().unwrap())
    }

    fn view(&self, service: &ServiceKey) -> Option<Arc<ServiceView>> {
        self.look(|told| told.views.iter().find(|view| view.key == *service).cloned())
    }

    async fn wait_for(&self, service: &ServiceKey, wanted: &BTreeSet<String>) -> Arc<ServiceView> {
        let found = eventually("the consumer has the list", SOON, || async {
            self.view(service)
                .filter(|view| view.source == Source::Live && ids(view) == *wanted)
        })
        .await;
        found.unwrap_or_else(|_| {
            let held = self.view(service);
            panic!("{service}: wanted {wanted:?}, it holds {held:?}")
        })
    }
}

impl Told {
    fn take(&mut self, event: WatchEvent, watch: &Watch) {
        match event {
            WatchEvent::Snapshot { view, .. } => {
                if let Some(before) = self.told.get(&view.key) {
                    let gone: Vec<String> = ids(before).difference(&ids(&view)).cloned().collect();
                    if !gone.is_empty() {
                        let how = format!("{gone:?} at {} of {:x}", view.revision, view.epoch);
                        self.losses.push(how);
                    }
                }
                self.note(view);
            }
            WatchEvent::Changed { view, removed, .. } => {
                self.losses.extend(removed.into_iter().map(|removed| removed.id));
                self.note(view);
            }
            // At first it does not exist yet.
            WatchEvent::Gone { view } => {
                let before = self.told.remove(&view.key);
                self.losses.extend(before.map(|before| before.key.to_string()));
            }
            WatchEvent::Live { server, .. } => {
                self.lives += 1;
                self.server = server;
            }
            WatchEvent::Interrupted { .. } => self.interruptions += 1,
            WatchEvent::Lagged { .. } => panic!("few events are told here"),
            _ => {}
        }
        self.views = watch.views();
    }

    fn note(&mut self, view: Arc<ServiceView>) {
        let held = self.told.insert(view.key.clone(), view.clone());
        if let Some(held) = held.filter(|held| held.epoch == view.epoch && held.mode == view.mode)
            && view.revision < held.revision
        {
            let (key, before, after) = (&view.key, held.revision, view.revision);
            self.disorder.push(format!("{key}: {after} after {before}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_at_every_server_see_what_is_registered_at_any_and_resume_when_theirs_is_killed() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let registries: Vec<Registry> = addresses.iter().map(|address| only(address)).collect();
    let mut consumers = Vec::new();
    for first in 0..3 {
        consumers.push(Consumer::start(&addresses, first, service()).await);
    }
    let mut all = BTreeSet::new();
    for n in 0..30 {
        let id = format!("n{n:02}");
        register(&registries[n % 3], &service(), &id).await;
        all.insert(id);
    }
    let mut signs = BTreeSet::new();
    for consumer in &consumers {
        let view = consumer.wait_for(&service(), &all).await;
        assert_eq!(view.mode, GroupMode::Ap);
        assert_ne!(view.epoch, 0);
        signs.insert(view.sign);
    }
    assert_eq!(signs.len(), 1, "one content has one sign");

    // Each server in turn: its watchers go elsewhere with what they hold, miss nothing, and are told nothing twice. Where
    // they go everything has arrived: who watches where is chance, so that is for those to say who watch one server alone.
    let mut witnesses = Vec::new();
    for address in &addresses {
        witnesses.push(Consumer::start(std::slice::from_ref(address), 0, service()).await);
    }
    for id in cluster.ids() {
        for witness in &witnesses {
            witness.wait_for(&service(), &all).await;
        }
        cluster.server(id).kill9().await.unwrap();
        let others: Vec<usize> = (0..3).filter(|n| *n as u64 + 1 != id).collect();
        for n in 0..10 {
            let id = format!("while-{id}-{n}");
            register(&registries[others[n % 2]], &service(), &id).await;
            all.insert(id);
        }
        for consumer in &consumers {
            consumer.wait_for(&service(), &all).await;
        }
        cluster.server(id).restart().await.unwrap();
    }
    register(&registries[0], &service(), "last").await;
    all.insert("last".into());
    for consumer in &consumers {
        consumer.wait_for(&service(), &all).await;
        consumer.look(|told| {
            assert!(told.interruptions > 0, "its server was never killed");
            assert!(told.losses.is_empty(), "nobody left: {:?}", told.losses);
            assert!(told.disorder.is_empty(), "{:?}", told.disorder);
        });
    }
    // And what leaves, leaves everywhere.
    deregister(&registries[1], &service(), "n00").await;
    all.remove("n00");
    for consumer in &consumers {
        consumer.wait_for(&service(), &all).await;
        consumer.look(|told| assert_eq!(told.losses, ["n00"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_spans_both_modes_also_when_its_server_is_killed() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let writer = registry(&addresses, 1);
    put_group(&writer, "mix/ap", GroupMode::Ap).await;
    put_group(&writer, "mix/cp", GroupMode::Cp).await;
    let (ap, cp) = (ServiceKey::new("mix/ap", "one"), ServiceKey::new("mix/cp", "one"));
    let consumer = Consumer::start(&addresses, 0, WatchTarget::group("mix")).await;
    let mut all = BTreeSet::new();
    for n in 0..5 {
        let id = format!("n{n}");
        register(&writer, &ap, &id).await;
        register(&writer, &cp, &id).await;
        all.insert(id);
    }
    for (service, mode) in [(&ap, GroupMode::Ap), (&cp, GroupMode::Cp)] {
        assert_eq!(consumer.wait_for(service, &all).await.mode, mode);
    }
    assert_eq!(consumer.look(|told| told.lives), 1, "live once both modes are");
    let epoch = consumer.view(&ap).unwrap().epoch;
    // What is on one disk alone goes with it, for a while.
    let everywhere = writer.wait_converged(std::slice::from_ref(&ap), 0, SOON).await;
    assert!(everywhere.unwrap().agrees());
    let served_by = consumer.look(|told| told.server);
    cluster.server(served_by).kill9().await.unwrap();
    let others = (1..).zip(&addresses).filter(|(id, _)| *id != served_by);
    let others: Vec<String> = others.map(|(_, address)| address.clone()).collect();
    let writer = registry(&others, 0);
    register(&writer, &ap, "more").await;
    register(&writer, &cp, "more").await;
    all.insert("more".into());
    for (service, mode) in [(&ap, GroupMode::Ap), (&cp, GroupMode::Cp)] {
        assert_eq!(consumer.wait_for(service, &all).await.mode, mode);
    }
    assert_ne!(consumer.view(&ap).unwrap().epoch, epoch, "another server counts");
    consumer.look(|told| {
        assert!(told.losses.is_empty(), "{:?}", told.losses);
        assert!(told.disorder.is_empty(), "{:?}", told.disorder);
    });
    // A group of the other test's kind is none of its business.
    register(&writer, &ServiceKey::new(GROUP, "other"), "x").await;
    assert!(consumer.look(|told| told.views.iter().all(|view| view.key == ap || view.key == cp)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_changes_its_mode_takes_its_watchers_along() {
    let cluster = stage(3).await;
    let addresses = cluster.addresses();
    let mut consumers = Vec::new();
    for first in 0..3 {
        consumers.push(Consumer::start(&addresses, first, service()).await);
        consumers.push(Consumer::start(&addresses, first, WatchTarget::group("")).await);
    }
    let writer = registry(&addresses, 0);
    let mut all = BTreeSet::new();
    for n in 0..10 {
        let id = format!("n{n}");
        register(&writer, &service(), &id).await;
        all.insert(id);
    }
    for consumer in &consumers {
        consumer.wait_for(&service(), &all).await;
    }
    for (turn, mode) in [GroupMode::Cp, GroupMode::Ap].into_iter().enumerate() {
        writer.set_group_mode(EDGE, mode, Duration::ZERO).await.unwrap();
        let id = format!("moved-{turn}");
        register(&writer, &service(), &id).await;
        all.insert(id);
        for consumer in &consumers {
            assert_eq!(consumer.wait_for(&service(), &all).await.mode, mode);
        }
    }
    for consumer in &consumers {
        consumer.look(|told| {
            assert!(told.losses.is_empty(), "nobody left: {:?}", told.losses);
            assert!(told.disorder.is_empty(), "{:?}", told.disorder);
            assert_eq!(told.interruptions, 0, "the streams went on");
        });
    }
}

/// A subscription, frame by frame.
struct Frames {
    answers: Streaming<v1::WatchResponse>,
    _requests: mpsc::Sender<v1::WatchRequest>,
    ready: std::collections::VecDeque<Frame>,
    epoch: u64,
}

impl Frames {
    async fn open(address: &str, subscribe: v1::Subscribe) -> Self {
        let (requests, outgoing) = mpsc::channel(4);
        let first = v1::WatchRequest {
            request: Some(v1::watch_request::Request::Subscribe(subscribe)),
            ..v1::WatchRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = WatchClient::new(connect(address).await.unwrap());
        let answers = client.watch(ReceiverStream::new(outgoing)).await.unwrap();
        Self {
            answers: answers.into_inner(),
            _requests: requests,
            ready: std::collections::VecDeque::new(),
            epoch: 0,
        }
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return frame;
            }
            let answer = tokio::time::timeout(SOON, self.answers.message()).await;
            let answer = answer
                .expect("a message comes")
                .unwrap()
                .expect("the stream lives");
            assert_eq!(answer.mode(), GroupMode::Ap);
            self.epoch = answer.epoch;
            for frame in answer.frames {
                self.ready.extend(v1::WatchFrame::decode(frame).unwrap().frame);
            }
        }
    }

    async fn started(&mut self) -> v1::Started {
        match self.next().await {
            Frame::Started(started) => started,
            other => panic!("a start was expected, not {other:?}"),
        }
    }
}

fn subscribe() -> v1::Subscribe {
    let target = v1::watch_target::Target::Service((&service()).into());
    v1::Subscribe {
        subscription: 1,
        target: Some(v1::WatchTarget { target: Some(target) }),
        ..v1::Subscribe::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_a_restarted_server_with_an_equal_sign_is_sent_nothing() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let writer = only(&addresses[0]);
    for n in 0..5 {
        register(&writer, &service(), &format!("n{n}")).await;
    }
    let mut frames = Frames::open(&addresses[0], subscribe()).await;
    let Frame::Snapshot(list) = frames.next().await else {
        panic!("the list comes first")
    };
    let (view, before) = (list.view.unwrap(), frames.started().await);
    assert_eq!(view.nodes.len(), 5);
    assert_eq!(before.kind(), v1::StartKind::Current);
    assert!(before.directory_revision > 0 && !before.half);
    let header = before.header.clone().unwrap();
    assert_eq!((header.mode(), header.epoch), (GroupMode::Ap, frames.epoch));

    // In the same life of the server, what was missed follows.
    let resume = |epoch| v1::Subscribe {
        ap_after_revision: before.revision,
        ap_epoch: epoch,
        known: vec![v1::KnownSign {
            key: view.key.clone(),
            sign: view.sign,
            ..v1::KnownSign::default()
        }],
        ..subscribe()
    };
    let epoch = frames.epoch;
    let mut resumed = Frames::open(&addresses[0], resume(epoch)).await;
    assert_eq!(resumed.started().await.kind(), v1::StartKind::Resumed);
    // At another one, and in another life, the sign decides.
    let mut elsewhere = Frames::open(&addresses[1], resume(epoch)).await;
    let moved = eventually("the other server has the list too", SOON, || async {
        let mut again = Frames::open(&addresses[1], resume(epoch)).await;
        match again.next().await {
            Frame::Started(started) => Some(started),
            _ => None,
        }
    });
    assert_eq!(moved.await.unwrap().kind(), v1::StartKind::Current);
    drop(elsewhere.next().await);
    cluster.server(1).kill9().await.unwrap();
    cluster.server(1).restart().await.unwrap();
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    let again = eventually("the restarted server shows the group", SOON, || async {
        let mut again = Frames::open(&addresses[0], resume(epoch)).await;
        match again.next().await {
            // Until it is sure of what it has it says so, and shows nothing.
            Frame::Rejected(rejected) => {
                assert_eq!(rejected.error.unwrap().code(), v1::ErrorCode::NotReady);
                None
            }
            first => Some((again, first)),
        }
    });
    let (mut again, first) = again.await.unwrap();
    let Frame::Started(started) = first else {
        panic!("nothing changed, and yet {first:?} came")
    };
    assert_eq!(started.kind(), v1::StartKind::Current);
    assert_ne!(again.epoch, epoch);
    register(&writer, &service(), "more").await;
    let Frame::Delta(delta) = again.next().await else {
        panic!("the change comes next")
    };
    assert_eq!(delta.put.len(), 1);
    assert!(delta.revision > started.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_has_seen_it_once_all_servers_show_the_same_and_their_watchers_acknowledged_it() {
    let cluster = stage(3).await;
    let addresses = cluster.addresses();
    let mut consumers = Vec::new();
    for first in 0..3 {
        consumers.push(Consumer::start(&addresses, first, service()).await);
    }
    register(&only(&addresses[2]), &service(), "a").await;
    for consumer in &consumers {
        consumer
            .wait_for(&service(), &BTreeSet::from(["a".to_owned()]))
            .await;
    }
    let writer = only(&addresses[1]);
    register(&writer, &service(), "b").await;
    let convergence = registry(&addresses, 0)
        .wait_converged(&[service()], 0, SOON)
        .await
        .unwrap();
    assert!(convergence.is_complete(), "{convergence:?}");
    assert_eq!((convergence.subscribers(), convergence.current()), (3, 3));
    let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    for consumer in &consumers {
        assert_eq!(ids(&consumer.view(&service()).unwrap()), both);
    }
}
