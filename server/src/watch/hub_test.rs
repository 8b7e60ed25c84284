//! The hub against a real directory, with a client that believes only what it is sent.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use prost::Message;
use rollcall_core::directory::{
    Address, ChangeLogBounds, Command, DeregisterNode, Expected, ExpiryFence, GroupSettings, Labels, Limits,
    NodeKind, NodeState, RegisterNode, Registration, Request, RevivalFence,
};
use rollcall_core::ids::{LogIndex, LogPosition, NodeKey, RequestId, SessionId, Term};
use rollcall_core::storm::{Mode, Scope, Share};
use rollcall_proto::v1::watch_frame::Frame;

use super::*;
use crate::config::StormConfig;
use crate::grpc::convert;
use crate::storm::StormMetrics;

#[path = "fanout_test.rs"]
mod fanout;

struct World {
    directory: Arc<SharedDirectory>,
    hub: WatchHub,
    storm: StormDesk,
    index: u64,
}

fn key(group: &str, service: &str) -> ServiceKey {
    ServiceKey {
        group: group.parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

fn small() -> WatchConfig {
    WatchConfig {
        backlog_frames: 8,
        response_bytes: 600,
        ..WatchConfig::default()
    }
}

impl World {
    fn new(limits: WatchConfig, retained: usize) -> Self {
        let bounds = ChangeLogBounds {
            revisions_max: retained,
            ..ChangeLogBounds::default()
        };
        let directory = Directory::new(Limits::default()).with_change_log(bounds);
        let directory = Arc::new(SharedDirectory::new(directory));
        let storm = StormDesk::new(&StormConfig::default(), StormMetrics::default());
        let hub = WatchHub::new(
            directory.clone(),
            limits,
            32 << 20,
            WatchMetrics::default(),
            storm.clone(),
        );
        let mut world = Self {
            directory,
            hub,
            storm,
            index: 0,
        };
        for group in ["a", "a/b", "c"] {
            let settings = GroupSettings {
                auto_create: true,
                ..GroupSettings::default()
            };
            let group = group.parse().unwrap();
            world.apply(Command::PutGroup {
                group,
                settings,
                expected: Expected::Any,
            });
        }
        world
    }

    fn apply(&mut self, command: Command) -> Revision {
        self.index += 1;
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let mut directory = self.directory.write();
        let _ = directory.apply(at, &request);
        directory.revision()
    }

    fn put(&mut self, key: &ServiceKey, node: &str, weight: u16) -> Revision {
        self.put_under(None, key, node, weight)
    }

    fn put_under(
        &mut self,
        session: Option<SessionId>,
        key: &ServiceKey,
        node: &str,
        weight: u16,
    ) -> Revision {
        let kind = session.map_or(NodeKind::Persistent, |_| NodeKind::Ephemeral);
        let registration = Registration {
            id: node.parse().unwrap(),
            addresses: vec![Address {
                name: "http".into(),
                host: "h".into(),
                port: 80,
            }]
            .into(),
            weight,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: Some(kind),
            state: NodeState::Up,
        };
        let node = RegisterNode {
            key: key.clone(),
            registration,
            expected: Expected::Any,
        };
        self.apply(Command::Register {
            session,
            nodes: vec![node],
        })
    }

    /// A node that may lapse.
    fn join(&mut self, key: &ServiceKey, node: &str) -> SessionId {
        self.apply(Command::OpenSession {
            secret_digest: [0; 32],
            ttl_ms: 2_000,
            client: String::new(),
        });
        let session = self.directory.read().sessions().last().unwrap().id;
        self.put_under(Some(session), key, node, 1);
        session
    }

    fn lapse(&mut self, sessions: &[SessionId]) {
        let fences = {
            let directory = self.directory.read();
            let found = sessions.iter().filter_map(|id| directory.session(*id));
            let fence = |session: &Arc<rollcall_core::directory::Session>| ExpiryFence {
                session: session.id,
                last_renewal: session.last_renewal,
            };
            found.map(fence).collect()
        };
        self.apply(Command::ExpireSessions {
            term: Term(1),
            sessions: fences,
            following: Vec::new(),
        });
    }

    /// Those of all lapsed sessions whose number is even.
    fn revive(&mut self) {
        let sessions = {
            let directory = self.directory.read();
            let fence = |session: &Arc<rollcall_core::directory::Session>| {
                Some(RevivalFence {
                    session: session.id,
                    lapsed: session.lapsed?,
                })
            };
            let even = directory.sessions().filter(|session| session.id.0 % 2 == 0);
            even.filter_map(fence).collect()
        };
        self.apply(Command::ReviveSessions {
            term: Term(1),
            sessions,
        });
    }

    fn close_windows(&mut self) {
        let windows = {
            let directory = self.directory.read();
            let window = |service: &Arc<Service>| Some((service.key.clone(), service.guard.window()?.began));
            directory.guarded_services().filter_map(window).collect()
        };
        self.apply(Command::CloseGuardWindows {
            term: Term(1),
            windows,
        });
    }

    fn confirm(&mut self, key: &ServiceKey) {
        self.apply(Command::ConfirmRemoval {
            service: key.clone(),
            since: None,
            author: String::new(),
            reason: String::new(),
        });
    }

    fn remove(&mut self, key: &ServiceKey, node: &str) -> Revision {
        let key = NodeKey {
            service: key.clone(),
            node: node.parse().unwrap(),
        };
        let nodes = vec![DeregisterNode {
            key,
            expected: Expected::Any,
        }];
        self.apply(Command::Deregister { session: None, nodes })
    }

    fn delete(&mut self, key: &ServiceKey) -> Revision {
        self.apply(Command::DeleteService {
            key: key.clone(),
            expected: Expected::Any,
        })
    }

    fn set_storm(&mut self, mode: Mode) {
        self.apply(Command::SetStorm {
            scope: Scope::Cluster,
            mode,
            author: "test".into(),
            reason: "test".into(),
        });
        self.storm.follow(&self.directory);
    }

    fn open(&self) -> Client {
        Client::new(
            self.hub
                .open("test", v1::ResponseHeader::default(), CancellationToken::new())
                .unwrap(),
        )
    }

    fn pull(&self) {
        while self.hub.pull() {}
    }

    /// What a client that follows `target` must hold.
    fn truth(&self, target: &Target) -> Picture {
        truth(&self.directory, target)
    }
}

/// Of each service the sign, the number of nodes, and what its guard says.
type Picture = BTreeMap<ServiceKey, (Sign, usize, Option<v1::GuardStatus>)>;

fn truth(directory: &SharedDirectory, target: &Target) -> Picture {
    let directory = directory.read();
    let picture = |service: &Arc<Service>| {
        let guard = convert::service_guard(service);
        (service.key.clone(), (service.sign, service.nodes.len(), guard))
    };
    let shown = Shown::new(&directory, GroupMode::Cp);
    shown.services(target).map(picture).collect()
}

fn follow(id: u64, target: Target) -> Subscription {
    Subscription {
        id,
        target,
        after: Revision(0),
        directory: Revision(0),
        known: Vec::new(),
    }
}

/// One service, as a client holds it.
#[derive(Clone, Default)]
struct Held {
    sign: Sign,
    nodes: BTreeMap<String, v1::Node>,
    guard: Option<v1::GuardStatus>,
}

/// A client's picture, built from frames alone; it checks the guarantees as they come.
struct Client {
    stream: WatchStream,
    handle: super::super::StreamHandle,
    services: BTreeMap<ServiceKey, Held>,
    /// Up to where each service is known.
    seen: BTreeMap<ServiceKey, u64>,
    /// The last of all frames.
    last: u64,
    /// From where this client may resume.
    resume: u64,
    log: Vec<&'static str>,
    rejected: Vec<v1::Rejected>,
    kept: Vec<v1::KeepCache>,
    /// Changes may come merged: nodes that came and went in between are said to be gone.
    merged: bool,
}

fn key_from(key: Option<v1::ServiceKey>) -> ServiceKey {
    convert::service_key_from("key", key.as_ref()).unwrap()
}

impl Client {
    fn new(stream: WatchStream) -> Self {
        let handle = stream.handle();
        Self {
            stream,
            handle,
            services: BTreeMap::new(),
            seen: BTreeMap::new(),
            last: 0,
            resume: 0,
            log: Vec::new(),
            rejected: Vec::new(),
            kept: Vec::new(),
            merged: false,
        }
    }

    fn follow(&self, subscription: Subscription) {
        self.handle.subscribe(subscription).unwrap();
    }

    /// Reads one message, if one is ready.
    fn read(&mut self) -> bool {
        let next = tokio::task::unconstrained(self.stream.next()).now_or_never();
        let Some(Some(response)) = next else { return false };
        for bytes in response.unwrap().frames {
            let frame = v1::WatchFrame::decode(bytes).unwrap().frame.unwrap();
            self.take(frame);
        }
        if self.log.last() == Some(&"delta") {
            // Messages end where revisions end.
            self.resume = self.last;
        }
        true
    }

    /// Reads on until there is a change more.
    async fn read_until_delta(&mut self) {
        let before = self.deltas();
        while self.deltas() == before {
            let next = tokio::time::timeout(Duration::from_secs(10), self.stream.next());
            for bytes in next.await.unwrap().unwrap().unwrap().frames {
                self.take(v1::WatchFrame::decode(bytes).unwrap().frame.unwrap());
            }
        }
    }

    fn deltas(&self) -> usize {
        self.log.iter().filter(|what| **what == "delta").count()
    }

    fn read_all(&mut self) {
        while self.read() {}
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Started(started) => {
                self.log.push(if started.kind() == v1::StartKind::Resumed {
                    "resumed"
                } else {
                    "current"
                });
                self.in_order(started.revision);
                self.resume = started.revision;
                let exist: Vec<ServiceKey> = started
                    .services
                    .into_iter()
                    .map(|key| key_from(Some(key)))
                    .collect();
                assert!(
                    exist.iter().all(|key| self.services.contains_key(key)),
                    "a service is missing at its start"
                );
                // What went while changes were lost is told by its absence here.
                self.services.retain(|key, _| exist.contains(key));
                // An equal sign says nothing of the guards.
                self.services.values_mut().for_each(|held| held.guard = None);
                for guard in started.guards {
                    let held = self.services.get_mut(&key_from(guard.key)).unwrap();
                    held.guard = guard.guard;
                }
            }
            Frame::Snapshot(snapshot) => {
                self.log.push(if snapshot.lagged { "lagged" } else { "snapshot" });
                self.in_order(snapshot.revision);
                let view = snapshot.view.unwrap();
                let key = key_from(view.key);
                self.seen.insert(key.clone(), snapshot.revision);
                let nodes = view
                    .nodes
                    .into_iter()
                    .map(|node| (node.id.clone(), node))
                    .collect();
                let held = Held {
                    sign: convert::sign_from(&view.sign.unwrap()),
                    nodes,
                    guard: view.guard,
                };
                self.services.insert(key, held);
            }
            Frame::Delta(delta) => {
                self.log.push("delta");
                self.in_order(delta.revision);
                let key = key_from(delta.key);
                let seen = self.seen.insert(key.clone(), delta.revision).unwrap_or(0);
                assert!(
                    delta.revision > seen,
                    "revision {} of {key} came after {seen}",
                    delta.revision
                );
                if delta.created {
                    assert!(!self.services.contains_key(&key));
                    self.services.insert(key.clone(), Default::default());
                }
                let held = self
                    .services
                    .get_mut(&key)
                    .expect("a delta for an unknown service");
                for removed in delta.removed {
                    assert!(held.nodes.remove(&removed.id).is_some() || self.merged);
                }
                let put = delta.put.into_iter().map(|node| (node.id.clone(), node));
                held.nodes.extend(put);
                held.sign = convert::sign_from(&delta.sign.unwrap());
                if let Some(guard) = delta.guard {
                    held.guard = (guard.held_since > 0 || guard.window_began > 0).then_some(guard);
                }
            }
            Frame::Gone(gone) => {
                self.log.push("gone");
                self.in_order(gone.revision);
                self.services.remove(&key_from(gone.key));
            }
            Frame::Bookmark(bookmark) => {
                self.log.push("bookmark");
                self.in_order(bookmark.revision);
                self.resume = bookmark.revision;
            }
            Frame::Rejected(rejected) => self.rejected.push(rejected),
            Frame::KeepCache(keep) => self.kept.push(keep),
            Frame::MoveOn(_) => self.log.push("move on"),
        }
    }

    fn in_order(&mut self, revision: u64) {
        assert!(
            revision >= self.last,
            "revision {revision} came after {}",
            self.last
        );
        self.last = revision;
    }

    fn picture(&self) -> Picture {
        self.services
            .iter()
            .map(|(key, held)| (key.clone(), (held.sign, held.nodes.len(), held.guard)))
            .collect()
    }

    fn known(&self) -> Vec<(ServiceKey, Sign)> {
        self.services
            .iter()
            .map(|(key, held)| (key.clone(), held.sign))
            .collect()
    }
}

/// Very many subscriptions in one stream cost little: no names of their own where the directory has them, and no room
/// for what was said once.
#[test]
fn a_subscription_keeps_next_to_nothing() {
    let mut world = World::new(WatchConfig::default(), 100);
    for number in 0..200 {
        world.put(&key("a", &format!("service-{number}")), "node", 1);
    }
    let mut client = world.open();
    for number in 0..201 {
        let target = Target::Service(key("a", &format!("service-{number}")));
        client.follow(follow(number + 1, target));
    }
    let places = |client: &Client| client.handle.shared.backlog.lock().places();
    assert!(places(&client) >= 400, "a list and a start for each");
    client.read_all();
    let count = |what: &str| client.log.iter().filter(|said| **said == what).count();
    assert_eq!((count("snapshot"), count("current")), (200, 201));
    assert!(places(&client) <= 16, "{}", places(&client));
    let directory = world.directory.read();
    let backlog = client.handle.shared.backlog.lock();
    for target in backlog.subscriptions.values() {
        let Target::Service(followed) = target else {
            panic!("services are followed");
        };
        let group = directory.group(&followed.group).unwrap();
        assert_eq!(followed.group.as_str().as_ptr(), group.name.as_str().as_ptr());
        if let Some(service) = directory.service(followed) {
            let known = service.key.service.as_str();
            assert_eq!(followed.service.as_str().as_ptr(), known.as_ptr());
        }
    }
}

#[tokio::test]
async fn state_comes_first_then_changes() {
    let mut world = World::new(small(), 100);
    let (one, other) = (key("a", "one"), key("a/b", "two"));
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Prefix("a".into())));
    world.put(&other, "n1", 1);
    world.put(&key("c", "elsewhere"), "n1", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log, ["snapshot", "current", "delta"]);
    assert_eq!(client.picture(), world.truth(&Target::Prefix("a".into())));
}

#[tokio::test]
async fn what_a_guard_says_reaches_watchers_also_when_no_node_changes() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    let sessions: Vec<SessionId> = (0..10).map(|n| world.join(&one, &format!("n{n}"))).collect();
    let target = Target::Service(one.clone());
    let (mut client, mut other) = (world.open(), world.open());
    client.follow(follow(1, target.clone()));
    other.follow(follow(1, target.clone()));
    let guard = |client: &Client| client.services[&one].guard;
    let said = |world: &World| {
        let service = world.directory.read().service(&one).cloned().unwrap();
        let bytes = world.hub.view(&service);
        v1::ServiceView::decode(bytes).unwrap().guard
    };
    client.read_all();
    assert_eq!((guard(&client), said(&world)), (None, None));

    // Two of ten may go: a window begins.
    world.lapse(&sessions[..2]);
    world.pull();
    client.read_all();
    let window = guard(&client).expect("a window is under way");
    assert_eq!((window.removed, window.engaged), (2, false));
    assert_eq!(said(&world), Some(window));

    // Of the rest five lapse at once: held. And one joins: its counts are told too.
    world.lapse(&sessions[2..7]);
    world.join(&one, "n10");
    world.pull();
    client.read_all();
    let engaged = guard(&client).unwrap();
    assert!(engaged.engaged && engaged.engaged_since > 0, "{engaged:?}");
    assert_eq!((engaged.held, engaged.up, engaged.listed), (5, 4, 9));
    assert_eq!(said(&world), Some(engaged));
    assert_eq!(client.picture(), world.truth(&target));

    // The window ends: no node changes, the sign stays, and yet everyone learns of it; the cached view as well.
    let sign = client.services[&one].sign;
    let resume = Revision(client.resume);
    world.close_windows();
    world.pull();
    client.read_all();
    assert_eq!(guard(&client).unwrap().window_began, 0);
    assert_eq!(client.services[&one].sign, sign);
    assert_eq!(said(&world), guard(&client));
    // Who resumes gets it too, from retained changes or by its equal sign.
    let held = |guard| {
        let mut held = client.services.clone();
        held.get_mut(&one).unwrap().guard = guard;
        held
    };
    for (after, log) in [(resume, &["delta", "resumed"][..]), (Revision(0), &["current"])] {
        let mut again = world.open();
        again.services = held(Some(engaged));
        again.follow(Subscription {
            after,
            known: client.known(),
            ..follow(1, target.clone())
        });
        again.read_all();
        assert_eq!(again.log, log);
        assert_eq!(again.picture(), world.truth(&target));
    }

    // An operator confirms: nothing is left to say, and a laggard's snapshot says nothing either.
    world.confirm(&one);
    for client in [&mut client, &mut other] {
        world.pull();
        client.read_all();
        assert_eq!(guard(client), None);
        assert_eq!(client.picture(), world.truth(&target));
    }
    assert_eq!(said(&world), None);
}

#[tokio::test]
async fn everything_ready_goes_out_in_one_message() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    for weight in 0..20 {
        world.put(&one, "n1", weight);
    }
    world.pull();
    assert!(client.read());
    assert_eq!(client.log, [&["current"][..], &["delta"; 20][..]].concat());
    assert!(!client.read());
}

#[tokio::test]
async fn a_stream_that_follows_a_service_twice_gets_each_change_once() {
    let mut world = World::new(small(), 100);
    let one = key("a/b", "one");
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.follow(follow(2, Target::Prefix("a".into())));
    client.follow(follow(3, Target::Prefix(String::new())));
    world.put(&one, "n2", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log.iter().filter(|kind| **kind == "delta").count(), 1);
    client.handle.unsubscribe(1);
    client.handle.unsubscribe(2);
    world.put(&one, "n3", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.picture(), world.truth(&Target::Prefix(String::new())));
}

#[tokio::test]
async fn a_resume_within_retention_gets_exactly_what_it_missed() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    let after = Revision(client.last);
    world.put(&one, "n2", 1);
    world.put(&one, "n3", 1);
    let mut again = world.open();
    again.services = client.services.clone();
    again.seen = client.seen.clone();
    again.follow(Subscription {
        after,
        ..follow(1, Target::Service(one.clone()))
    });
    again.read_all();
    assert_eq!(again.log, ["delta", "delta", "resumed"]);
    assert_eq!(again.picture(), world.truth(&Target::Service(one)));
}

#[tokio::test]
async fn a_resume_below_retention_gets_nothing_for_equal_signs_and_a_snapshot_for_others() {
    let mut world = World::new(WatchConfig::default(), 3);
    let (one, two, three) = (key("a", "one"), key("a", "two"), key("a", "three"));
    for service in [&one, &two, &three] {
        world.put(service, "n1", 1);
    }
    let all = Target::Prefix("a".into());
    let mut client = world.open();
    client.follow(follow(1, all.clone()));
    client.read_all();
    let after = Revision(client.last);
    world.put(&two, "n2", 1);
    world.remove(&three, "n1");
    world.delete(&three);
    for weight in 0..5 {
        world.put(&key("c", "elsewhere"), "n1", weight);
    }
    let mut again = world.open();
    again.services = client.services.clone();
    again.follow(Subscription {
        after,
        known: client.known(),
        ..follow(1, all.clone())
    });
    again.read_all();
    assert_eq!(again.log, ["gone", "snapshot", "current"]);
    assert_eq!(again.picture(), world.truth(&all));
}

#[tokio::test]
async fn a_laggard_gets_the_current_state_once_and_costs_a_bounded_backlog() {
    let mut world = World::new(small(), 10_000);
    let (one, two) = (key("a", "one"), key("a", "two"));
    let mut slow = world.open();
    let mut quick = world.open();
    for client in [&slow, &quick] {
        client.follow(follow(1, Target::Prefix("a".into())));
    }
    slow.read_all();
    quick.read_all();
    for weight in 0..500 {
        world.put(&one, "n1", weight);
        world.put(&two, "n1", weight);
        world.pull();
        quick.read_all();
        let (frames, _) = slow.handle.shared.backlog.lock().waiting();
        assert!(frames <= 8, "{frames} frames wait");
    }
    assert_eq!(quick.log.len(), 1_001, "the laggard cost another its changes");
    slow.read_all();
    assert_eq!(slow.log, ["current", "lagged", "lagged", "bookmark"]);
    assert_eq!(slow.picture(), world.truth(&Target::Prefix("a".into())));
    // And from here on changes again.
    world.put(&one, "n2", 1);
    world.pull();
    slow.read_all();
    assert_eq!(slow.log.last(), Some(&"delta"));
}

#[tokio::test]
async fn a_hub_that_fell_below_the_changes_starts_everyone_from_state() {
    let mut world = World::new(WatchConfig::default(), 4);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    world.put(&key("a", "two"), "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Prefix("a".into())));
    client.read_all();
    for weight in 0..50 {
        world.put(&one, "n1", weight);
    }
    world.pull();
    client.read_all();
    assert_eq!(
        client.log,
        [
            "snapshot", "snapshot", "current", "lagged", "lagged", "current", "bookmark"
        ]
    );
    assert_eq!(client.picture(), world.truth(&Target::Prefix("a".into())));
}

#[tokio::test]
async fn bad_subscriptions_are_refused_and_change_nothing() {
    let limits = WatchConfig {
        subscriptions_max: 2,
        ..small()
    };
    let world = World::new(limits, 100);
    let client = world.open();
    let target = Target::Prefix(String::new());
    let subscribe = |id, after| {
        client.handle.subscribe(Subscription {
            after,
            ..follow(id, target.clone())
        })
    };
    assert_eq!(subscribe(0, Revision(0)), Err(SubscribeError::ZeroId));
    subscribe(1, Revision(0)).unwrap();
    assert_eq!(
        subscribe(1, Revision(0)),
        Err(SubscribeError::Duplicate { id: 1 })
    );
    assert!(matches!(
        subscribe(2, Revision(99)),
        Err(SubscribeError::Ahead { .. })
    ));
    subscribe(2, Revision(0)).unwrap();
    assert_eq!(
        subscribe(3, Revision(0)),
        Err(SubscribeError::TooMany { subscriptions_max: 2 })
    );
}

#[tokio::test]
async fn streams_are_bounded_and_make_room_when_they_end() {
    let world = World::new(
        WatchConfig {
            streams_max: 1,
            ..small()
        },
        100,
    );
    let client = world.open();
    client.follow(follow(1, Target::Prefix(String::new())));
    assert!(
        world
            .hub
            .open("", v1::ResponseHeader::default(), CancellationToken::new())
            .is_err()
    );
    drop(client);
    assert_eq!(world.hub.streams(), 0);
    world.open();
}

#[tokio::test]
async fn a_client_that_asks_without_reading_is_sent_away() {
    let world = World::new(
        WatchConfig {
            subscriptions_max: 4,
            ..small()
        },
        100,
    );
    let mut client = world.open();
    for _ in 0..200 {
        client.handle.reject(1, v1::Error::default());
    }
    assert!(matches!(
        client.stream.next().await,
        Some(Err(StreamEnd::Unread { .. }))
    ));
    assert!(client.stream.next().await.is_none());
}

#[tokio::test]
async fn closing_tells_every_stream_where_to_go_and_when() {
    let world = World::new(small(), 100);
    let mut first = world.open();
    let mut second = world.open();
    let servers = ["a:1".to_owned(), "b:1".to_owned()];
    world.hub.close(&servers, 1_000);
    // They are few, so they need not be spread over the whole second.
    for (client, after_ms, server) in [(&mut first, 0, "a:1"), (&mut second, 2, "b:1")] {
        let response = client.stream.next().await.unwrap().unwrap();
        let frame = v1::WatchFrame::decode(response.frames[0].clone()).unwrap().frame;
        let Some(Frame::MoveOn(advice)) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!((advice.after_ms, advice.servers[0].as_str()), (after_ms, server));
        assert!(client.stream.next().await.is_none());
    }
}

#[tokio::test]
async fn convergence_counts_acknowledgements() {
    let mut world = World::new(small(), 100);
    let one = key("a", "one");
    let revision = world.put(&one, "n1", 1);
    let two = key("a", "two");
    let keys = [one.clone(), two];
    let (first, second) = (world.open(), world.open());
    first.handle.name("first");
    second.handle.name("second");
    first.follow(follow(1, Target::Service(one.clone())));
    second.follow(follow(1, Target::Prefix("a".into())));
    second.follow(follow(2, Target::Service(one.clone())));
    let behind = |name: &str| (name.to_owned(), Revision(0), GroupMode::Cp);
    assert_eq!(
        world.hub.convergence(&keys, revision),
        Convergence {
            subscribers: 2,
            current: 0,
            oldest: Some(Revision(0)),
            behind: vec![behind("first"), behind("second")],
        }
    );
    first.handle.ack(revision);
    let half = world.hub.convergence(&keys, revision);
    assert_eq!(
        (half.current, half.behind.as_slice()),
        (1, &[behind("second")][..])
    );
    assert!(!half.complete());
    second.handle.ack(revision);
    assert!(world.hub.convergence(&keys, revision).complete());
    assert_eq!(
        world.hub.convergence(&[key("b", "one")], revision),
        Convergence::default()
    );
}

#[tokio::test]
async fn large_services_wait_for_their_turn_and_a_reader_that_hoards_one_is_cut_off() {
    let limits = WatchConfig {
        response_bytes: 100,
        large_bytes_max: 500,
        stall_max: Default::default(),
        ..small()
    };
    let mut world = World::new(limits, 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    world.put(&one, "n2", 1);
    let (mut first, mut second) = (world.open(), world.open());
    first.follow(follow(1, Target::Service(one.clone())));
    second.follow(follow(1, Target::Service(one.clone())));
    assert!(first.read());
    assert!(!second.read(), "there is room for one at a time");
    world.hub.bookmark();
    assert!(first.handle.shared.cut.is_cancelled() && !second.handle.shared.cut.is_cancelled());
    drop(first);
    second.read_all();
    assert_eq!(second.log, ["snapshot", "current", "bookmark"]);
}

#[tokio::test]
async fn a_bookmark_says_only_what_was_sent_before_it() {
    let mut world = World::new(small(), 100);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key("a", "one"))));
    client.read_all();
    let head = world.put(&key("c", "elsewhere"), "n1", 1);
    world.pull();
    world.hub.bookmark();
    client.read_all();
    assert_eq!(client.resume, head.0);
    world.hub.bookmark();
    assert!(!client.read(), "nothing new, nothing said");
}

/// Random histories, readers of random speed, disconnects and resumes: every client's picture is the
/// directory's, and no guarantee is broken on the way ([`Client::take`] checks).
#[tokio::test]
async fn whatever_happens_pictures_end_up_equal() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut world = World::new(small(), 5 + random.below(60));
        let services = [
            key("a", "one"),
            key("a", "two"),
            key("a/b", "one"),
            key("c", "one"),
        ];
        let targets = [
            Target::Prefix(String::new()),
            Target::Prefix("a".into()),
            Target::Prefix("a/b".into()),
            Target::Service(services[0].clone()),
        ];
        let mut clients: Vec<(usize, Client)> = Vec::new();
        for _ in 0..400 {
            match random.below(14) {
                10 => {
                    let node = format!("e{}", random.below(9));
                    _ = world.join(&services[random.below(4)], &node);
                }
                11 => {
                    let open: Vec<SessionId> = {
                        let directory = world.directory.read();
                        directory.sessions().map(|session| session.id).collect()
                    };
                    let some = random.below(3) == 0;
                    let lapsed = open.iter().filter(|id| some || id.0 % 3 == 0);
                    world.lapse(&lapsed.copied().collect::<Vec<_>>());
                }
                12 => world.revive(),
                13 if random.below(2) == 0 => world.close_windows(),
                13 => world.confirm(&services[random.below(4)]),
                0..=3 => {
                    _ = world.put(
                        &services[random.below(4)],
                        &format!("n{}", random.below(5)),
                        random.below(9) as u16,
                    )
                }
                4 => _ = world.remove(&services[random.below(4)], &format!("n{}", random.below(5))),
                5 => {
                    let service = &services[random.below(4)];
                    (0..5).for_each(|node| _ = world.remove(service, &format!("n{node}")));
                    (0..9).for_each(|node| _ = world.remove(service, &format!("e{node}")));
                    world.delete(service);
                }
                6 => world.pull(),
                7 if clients.len() < 6 => {
                    let target = random.below(4);
                    let client = world.open();
                    client.follow(follow(1, targets[target].clone()));
                    clients.push((target, client));
                }
                8 if !clients.is_empty() => {
                    let at = random.below(clients.len());
                    clients[at].1.read();
                }
                9 if !clients.is_empty() => {
                    let at = random.below(clients.len());
                    let (target, old) = clients.swap_remove(at);
                    let mut client = world.open();
                    client.services = old.services.clone();
                    // Between the snapshots of a catch-up there is no revision to resume from.
                    let after = if old.resume == old.last {
                        Revision(old.resume)
                    } else {
                        Revision(0)
                    };
                    client.follow(Subscription {
                        after,
                        known: old.known(),
                        ..follow(1, targets[target].clone())
                    });
                    clients.push((target, client));
                }
                _ => _ = world.hub.bookmark(),
            }
        }
        world.pull();
        for (target, client) in &mut clients {
            client.read_all();
            assert_eq!(client.picture(), world.truth(&targets[*target]), "seed {seed}");
            kinds.extend(client.log.iter().copied());
        }
    }
    assert_eq!(
        kinds.len(),
        7,
        "every kind of frame should have come up: {kinds:?}"
    );
}

/// Readers, subscribers, the hub and a writer on threads of their own: the guarantees hold whoever is faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_on_other_threads_get_whole_revisions_in_order() {
    const WRITES: u16 = 3_000;
    let mut world = World::new(small(), 200);
    let (hub, directory) = (world.hub.clone(), world.directory.clone());
    let (head, applied) = watch::channel(AppliedHead::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(hub.clone().run(applied, stop.clone()));
    let targets = [
        Target::Prefix(String::new()),
        Target::Prefix("a".into()),
        Target::Service(key("a", "one")),
    ];
    let readers: Vec<_> = (0..6)
        .map(|reader| {
            let target = targets[reader % 3].clone();
            let (mut client, directory) = (world.open(), directory.clone());
            tokio::spawn(async move {
                client.follow(follow(1, target.clone()));
                loop {
                    let truth = truth(&directory, &target);
                    let done = directory.read().revision().0 >= u64::from(WRITES);
                    client.read_all();
                    if done && client.picture() == truth {
                        return;
                    }
                    tokio::time::sleep(std::time::Duration::from_micros(50 * reader as u64)).await;
                }
            })
        })
        .collect();
    let writing = tokio::task::spawn_blocking(move || {
        let services = [key("a", "one"), key("a/b", "two"), key("c", "three")];
        for write in 0..WRITES {
            let revision = world.put(
                &services[usize::from(write % 3)],
                &format!("n{}", write % 7),
                write,
            );
            head.send_replace(AppliedHead {
                revision,
                position: None,
            });
        }
        (world, head)
    });
    let kept = writing.await.unwrap();
    for reader in readers {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), reader).await;
        ended.expect("every reader ends up with the truth").unwrap();
    }
    stop.cancel();
    running.await.unwrap();
    drop(kept);
}

/// A small generator, so that a seed tells the whole story.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// One in ten thousand: whoever asks in a test has to wait.
fn nobody() -> Mode {
    Mode::On {
        share: Share::from_basis_points(1).unwrap(),
    }
}

fn everybody() -> Mode {
    Mode::On {
        share: Share::from_basis_points(10_000).unwrap(),
    }
}

#[tokio::test]
async fn who_has_another_list_waits_its_turn_and_keeps_what_it_has() {
    let mut world = World::new(WatchConfig::default(), 4);
    let key = key("a", "one");
    let target = Target::Service(key.clone());
    world.put(&key, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, target.clone()));
    client.read_all();
    let (known, resume) = (client.known(), Revision(client.resume));
    drop(client);
    world.set_storm(nobody());

    // An equal sign costs nothing and is no question.
    let mut client = world.open();
    let again = |id, known: &Vec<(ServiceKey, Sign)>, after| Subscription {
        after,
        known: known.clone(),
        ..follow(id, target.clone())
    };
    assert!(!client.handle.must_wait(&again(1, &known, Revision(0))).await);
    // Nor is a resume from retained changes.
    world.put(&key, "n2", 1);
    assert!(!client.handle.must_wait(&again(1, &known, resume)).await);
    // A full list is one.
    assert!(client.handle.must_wait(&again(2, &known, Revision(0))).await);
    client.read_all();
    assert!(client.log.is_empty(), "{:?}", client.log);
    let keep = client.kept.pop().unwrap();
    assert!(keep.subscription == 2 && keep.retry_after_ms > 0, "{keep:?}");
    let status = world.storm.status();
    assert_eq!((status.served, status.kept), (0, 1));

    // A cold one passes through the bucket.
    let cold = follow(3, target.clone());
    assert!(!client.handle.must_wait(&cold).await);
    client.follow(cold);
    client.read_all();
    assert_eq!(client.picture(), world.truth(&target));

    // Switched off, nobody waits.
    world.set_storm(Mode::Off);
    assert!(!client.handle.must_wait(&again(4, &known, Revision(0))).await);
}

#[tokio::test]
async fn changes_of_a_round_leave_as_one_for_each_service() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let (one, other) = (key("a", "one"), key("a/b", "two"));
    let target = Target::Prefix("a".into());
    world.put(&one, "n1", 1);
    world.put(&other, "n1", 1);
    let mut client = world.open();
    client.merged = true;
    client.follow(follow(1, target.clone()));
    client.read_all();
    world.set_storm(everybody());
    world.pull();
    client.log.clear();
    for weight in 1..50 {
        world.put(&one, "n1", weight);
        world.put(&one, "n2", weight);
    }
    world.put(&other, "n3", 1);
    world.remove(&one, "n2");
    // It goes and comes back.
    world.remove(&other, "n1");
    world.remove(&other, "n3");
    world.delete(&other);
    world.put(&other, "n4", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log, ["delta", "gone", "delta"]);
    assert_eq!(client.picture(), world.truth(&target));
    assert!(world.storm.status().coalesced > 90);

    // Resuming behind what came last misses nothing.
    let resume = Revision(client.resume);
    world.put(&one, "n5", 1);
    client.handle.unsubscribe(1);
    client.follow(Subscription {
        after: resume,
        ..follow(2, target.clone())
    });
    client.read_all();
    assert_eq!(client.picture(), world.truth(&target));
}

#[tokio::test]
async fn changes_wait_for_more_but_not_for_ever() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let key = key("a", "one");
    world.put(&key, "n1", 1);
    world.set_storm(everybody());
    let mut client = world.open();
    client.follow(follow(1, Target::Service(key.clone())));
    client.read_all();
    client.log.clear();
    let head = AppliedHead::default();
    let (applied, following) = watch::channel(head);
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(following, stop.clone()));
    let began = Instant::now();
    for weight in 2..5 {
        let revision = world.put(&key, "n1", weight);
        applied.send_replace(AppliedHead { revision, ..head });
        tokio::task::yield_now().await;
        client.read_all();
        assert_eq!(client.deltas(), 0);
    }
    client.read_until_delta().await;
    let waited = began.elapsed();
    let delay_max = StormConfig::default().delay_max;
    assert!(waited >= delay_max && waited < delay_max * 10, "{waited:?}");
    assert_eq!(client.deltas(), 1);
    // Off: at once.
    world.set_storm(Mode::Off);
    let revision = world.put(&key, "n1", 9);
    let began = Instant::now();
    applied.send_replace(AppliedHead { revision, ..head });
    client.read_until_delta().await;
    assert!(began.elapsed() < delay_max, "{:?}", began.elapsed());
    assert_eq!(client.deltas(), 2);
    stop.cancel();
    running.await.unwrap();
}
