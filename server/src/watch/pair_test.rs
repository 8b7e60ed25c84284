//! Two hubs over two real directories, and clients that believe only what they are sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use prost::Message;
use rollcall_core::directory::{
    Address, ChangeLogBounds, Command, Directory, Expected, GroupSettings, Labels, Limits, NodeKind,
    NodeState, RegisterNode, Registration, Request, Sign,
};
use rollcall_core::ids::{GroupName, LogIndex, LogPosition, RequestId, Term};
use rollcall_proto::v1::watch_frame::Frame;

use super::*;
use crate::config::{StormConfig, WatchConfig};
use crate::grpc::convert;
use crate::raft::SharedDirectory;
use crate::storm::{StormDesk, StormMetrics};
use crate::watch::{Division, KnownSigns, WatchMetrics, left_behind, shown_within};

const EPOCH: u64 = 77;

struct World {
    raft: Arc<SharedDirectory>,
    view: Arc<SharedDirectory>,
    watches: Watches,
    index: u64,
}

fn key(group: &str, service: &str) -> ServiceKey {
    ServiceKey {
        group: group.parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

fn named(group: &str) -> GroupName {
    group.parse().unwrap()
}

impl World {
    fn new(limits: WatchConfig, retained: usize) -> Self {
        let bounds = ChangeLogBounds {
            revisions_max: retained,
            ..ChangeLogBounds::default()
        };
        let directory = |mode| {
            let directory = Directory::new(Limits::default()).serving(mode);
            Arc::new(SharedDirectory::new(directory.with_change_log(bounds)))
        };
        let (raft, view) = (directory(GroupMode::Cp), directory(GroupMode::Ap));
        let storm = StormDesk::new(&StormConfig::default(), StormMetrics::default());
        let cp = WatchHub::new(raft.clone(), limits, 32 << 20, WatchMetrics::default(), storm);
        let ap = cp.beside(view.clone(), WatchMetrics::default());
        let mut world = Self {
            raft,
            view,
            watches: Watches::new(cp, ap),
            index: 0,
        };
        world.put_group("c", GroupMode::Cp);
        world.put_group("a", GroupMode::Ap);
        world
    }

    fn side(&self, mode: GroupMode) -> Arc<SharedDirectory> {
        match mode {
            GroupMode::Cp => self.raft.clone(),
            GroupMode::Ap => self.view.clone(),
        }
    }

    /// Applies a command to the directory that keeps the nodes of this mode.
    fn apply(&mut self, mode: GroupMode, command: Command) -> Revision {
        self.index += 1;
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let directory = self.side(mode);
        let mut directory = directory.write();
        let applied = directory.apply(at, &request);
        assert!(applied.result.is_ok(), "{request:?}: {:?}", applied.result);
        directory.revision()
    }

    /// Defines it, and has the view take it over.
    fn put_group(&mut self, group: &str, mode: GroupMode) {
        self.put_group_at(GroupMode::Cp, group, mode);
        if mode == GroupMode::Ap {
            self.put_group_at(GroupMode::Ap, group, mode);
        }
    }

    fn put_group_at(&mut self, at: GroupMode, group: &str, mode: GroupMode) {
        let settings = GroupSettings {
            auto_create: true,
            mode,
            ..GroupSettings::default()
        };
        let group = named(group);
        let expected = Expected::Any;
        self.apply(
            at,
            Command::PutGroup {
                group,
                settings,
                expected,
            },
        );
    }

    fn put(&mut self, mode: GroupMode, key: &ServiceKey, node: &str) -> Revision {
        let registration = Registration {
            id: node.parse().unwrap(),
            addresses: vec![Address {
                name: "http".into(),
                host: "h".into(),
                port: 80,
            }]
            .into(),
            weight: 1,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: Some(NodeKind::Persistent),
            state: NodeState::Up,
        };
        let node = RegisterNode {
            key: key.clone(),
            registration,
            expected: Expected::Any,
        };
        let nodes = vec![node];
        self.apply(mode, Command::Register { session: None, nodes })
    }

    /// A group goes from one side to the other, as it is.
    fn move_group(&mut self, group: &str, to: GroupMode) {
        let since = self.move_group_at_cp(group, to);
        self.move_group_at_ap(group, to, since);
    }

    /// The replicated directory knows first. Since when the group moves for the view.
    fn move_group_at_cp(&mut self, group: &str, to: GroupMode) -> Revision {
        let from = match to {
            GroupMode::Cp => GroupMode::Ap,
            GroupMode::Ap => GroupMode::Cp,
        };
        if to == GroupMode::Ap {
            // The view takes it over, hidden.
            self.put_group_at(to, group, from);
        }
        let mut since = BTreeMap::new();
        for side in [from, to] {
            let begin = Command::BeginMove {
                group: named(group),
                to,
                stamp_ms: 1,
            };
            since.insert(side, self.apply(side, begin));
        }
        let adoptions = self.side(from).read().adoptions(&named(group), since[&to], 100);
        for adoption in adoptions {
            self.apply(to, adoption);
        }
        self.end_move(GroupMode::Cp, group, since[&GroupMode::Cp]);
        since[&GroupMode::Ap]
    }

    fn end_move(&mut self, side: GroupMode, group: &str, since: Revision) {
        let end = Command::EndMove {
            group: named(group),
            since,
            done: true,
        };
        self.apply(side, end);
    }

    fn move_group_at_ap(&mut self, group: &str, to: GroupMode, since: Revision) {
        self.end_move(GroupMode::Ap, group, since);
        if to == GroupMode::Cp {
            // Nothing of it is left in the view.
            let services: Vec<ServiceKey> = {
                let view = self.view.read();
                let group = view.group(&named(group)).unwrap();
                group
                    .services
                    .values()
                    .map(|service| service.key.clone())
                    .collect()
            };
            for key in services {
                let expected = Expected::Any;
                self.apply(GroupMode::Ap, Command::DeleteService { key, expected });
            }
            let group = named(group);
            let expected = Expected::Any;
            self.apply(GroupMode::Ap, Command::DeleteGroup { group, expected });
        }
    }

    fn pull(&self) {
        for mode in [GroupMode::Cp, GroupMode::Ap] {
            while self.watches.of(mode).pull() {}
        }
    }

    fn open(&self) -> Client {
        let header = |mode: v1::GroupMode, epoch| v1::ResponseHeader {
            cluster: "test".into(),
            mode: mode.into(),
            epoch,
            ..v1::ResponseHeader::default()
        };
        let headers = (header(v1::GroupMode::Cp, 0), header(v1::GroupMode::Ap, EPOCH));
        let stream = self.watches.open(headers.0, headers.1, CancellationToken::new());
        Client::new(stream.unwrap())
    }

    fn sign(&self, mode: GroupMode, key: &ServiceKey) -> Sign {
        self.side(mode).read().service(key).unwrap().sign
    }
}

fn put_service(key: &ServiceKey) -> Command {
    Command::PutService {
        key: key.clone(),
        settings: None,
        expected: Expected::Any,
    }
}

fn service(id: u64, key: &ServiceKey) -> Subscription {
    Subscription {
        id,
        target: Target::Service(key.clone()),
        after: Revision(0),
        directory: Revision(0),
        known: KnownSigns::default(),
        known_metadata: Arc::default(),
        division: None,
    }
}

fn prefix(id: u64, prefix: &str) -> Parts {
    let one = Subscription {
        id,
        target: Target::Prefix(prefix.into()),
        after: Revision(0),
        directory: Revision(0),
        known: KnownSigns::default(),
        known_metadata: Arc::default(),
        division: None,
    };
    Parts::Both {
        cp: one.clone(),
        ap: one,
    }
}

/// The same, as it was divided when these were its AP groups.
fn divided(parts: Parts, ap_groups: &[&str], at: Revision) -> Parts {
    let Parts::Both { cp, ap } = parts else {
        panic!("only prefixes are divided");
    };
    let ap_groups = ap_groups.iter().map(|group| named(group)).collect();
    let division = Some(Division { ap_groups, at });
    let with = |one| Subscription {
        division: division.clone(),
        ..one
    };
    Parts::Both {
        cp: with(cp),
        ap: with(ap),
    }
}

/// The same, by a client that holds something already.
fn knowing(parts: Parts, cp: &[(ServiceKey, Sign)], ap: &[(ServiceKey, Sign)]) -> Parts {
    let with = |one, known: &[(ServiceKey, Sign)]| Subscription {
        known: Arc::new(known.iter().cloned().collect()),
        ..one
    };
    match parts {
        Parts::Cp(one) => Parts::Cp(with(one, cp)),
        Parts::Ap(one) => Parts::Ap(with(one, ap)),
        Parts::Both { cp: one, ap: other } => Parts::Both {
            cp: with(one, cp),
            ap: with(other, ap),
        },
    }
}

struct Client {
    stream: PairedStream,
    handle: PairedHandle,
    /// What was said, in the order of each mode.
    log: BTreeMap<GroupMode, Vec<String>>,
    revisions: BTreeMap<GroupMode, u64>,
    nodes: BTreeMap<ServiceKey, Vec<String>>,
    kept: Vec<v1::KeepCache>,
}

impl Client {
    fn new(stream: PairedStream) -> Self {
        let handle = stream.handle();
        Self {
            stream,
            handle,
            log: BTreeMap::new(),
            revisions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            kept: Vec::new(),
        }
    }

    fn read_all(&mut self) {
        loop {
            let next = tokio::task::unconstrained(self.stream.next()).now_or_never();
            let Some(Some(response)) = next else { return };
            self.take(response.unwrap());
        }
    }

    fn take(&mut self, response: WatchResponse) {
        let mode = match response.mode() {
            v1::GroupMode::Ap => GroupMode::Ap,
            v1::GroupMode::Cp => GroupMode::Cp,
            v1::GroupMode::Unspecified => panic!("a message without a mode"),
        };
        assert_eq!(response.epoch, if mode == GroupMode::Ap { EPOCH } else { 0 });
        let first = !self.log.contains_key(&mode);
        assert_eq!(response.cluster.is_empty(), !first, "it is named once");
        self.log.entry(mode).or_default();
        for bytes in response.frames {
            let frame = v1::WatchFrame::decode(bytes).unwrap().frame.unwrap();
            let (what, revision) = self.tell(frame);
            if let Some(revision) = revision {
                let before = self.revisions.insert(mode, revision).unwrap_or(0);
                assert!(before <= revision, "{what}: {revision} came after {before}");
            }
            self.log.get_mut(&mode).unwrap().push(what);
        }
    }

    fn tell(&mut self, frame: Frame) -> (String, Option<u64>) {
        let name = |key: Option<v1::ServiceKey>| {
            let key = key.unwrap();
            format!("{}/{}", key.group, key.service)
        };
        match frame {
            Frame::Started(started) => {
                let services: Vec<String> = started.services.into_iter().map(|key| name(Some(key))).collect();
                let half = if started.half { "half " } else { "" };
                let listed = services.join(" ");
                let what = format!("started {half}{} [{listed}]", started.subscription);
                (what, Some(started.revision))
            }
            Frame::Snapshot(snapshot) => {
                let view = snapshot.view.unwrap();
                let key = convert::service_key_from("key", view.key.as_ref()).unwrap();
                let nodes = view.nodes.into_iter().map(|node| node.id).collect();
                self.nodes.insert(key, nodes);
                (format!("list {}", name(view.key)), Some(snapshot.revision))
            }
            Frame::Delta(delta) => {
                let key = convert::service_key_from("key", delta.key.as_ref()).unwrap();
                let nodes = self.nodes.entry(key).or_default();
                nodes.retain(|id| !delta.removed.iter().any(|removed| removed.id == *id));
                nodes.extend(delta.put.into_iter().map(|node| node.id));
                (format!("change {}", name(delta.key)), Some(delta.revision))
            }
            Frame::Gone(gone) => {
                let key = convert::service_key_from("key", gone.key.as_ref()).unwrap();
                self.nodes.remove(&key);
                (format!("gone {}", name(gone.key)), Some(gone.revision))
            }
            Frame::Bookmark(bookmark) => ("bookmark".into(), Some(bookmark.revision)),
            Frame::KeepCache(keep) => {
                self.kept.push(keep);
                (format!("over {}", keep.subscription), None)
            }
            Frame::Rejected(rejected) => (format!("rejected {}", rejected.subscription), None),
            Frame::MoveOn(_) => ("move on".into(), None),
        }
    }

    /// What was said of groups of this mode since this was last asked.
    fn said(&mut self, mode: GroupMode) -> Vec<String> {
        self.read_all();
        self.log.get_mut(&mode).map(std::mem::take).unwrap_or_default()
    }

    fn followed(&self) -> (usize, usize) {
        let count = |handle: &StreamHandle| handle.shared.backlog.lock().subscriptions.len();
        (count(&self.handle.cp), count(&self.handle.ap))
    }
}

use GroupMode::{Ap, Cp};

/// So that silence means that a server is cut off, and not that nothing happens.
#[tokio::test]
async fn who_hears_of_no_change_is_told_so_while_the_server_is_in_touch() {
    let limits = WatchConfig {
        bookmark_interval: Duration::from_millis(10),
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 100);
    world.put(Cp, &key("c", "one"), "n1");
    world.put(Ap, &key("a", "other"), "n1");
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    for mode in [Cp, Ap] {
        world.watches.of(mode).bookmark();
    }
    assert!(
        [Cp, Ap]
            .map(|mode| client.said(mode).pop())
            .iter()
            .all(|said| said.as_deref() == Some("bookmark"))
    );

    let (say, said) = tokio::sync::mpsc::channel(1);
    let said = Arc::new(tokio::sync::Mutex::new(said));
    let is_in_touch = move || {
        let said = said.clone();
        async move { said.lock().await.recv().await.unwrap_or(false) }
    };
    let stop = CancellationToken::new();
    let assuring = tokio::spawn(world.watches.clone().assure(is_in_touch, stop.clone()));
    // With the third one taken in, the first was acted upon.
    for _ in 0..3 {
        say.send(false).await.unwrap();
    }
    assert_eq!(
        [Cp, Ap].map(|mode| client.said(mode)),
        [vec![], vec![] as Vec<String>]
    );
    let mut heard = Vec::new();
    while heard.len() < 4 {
        say.send(true).await.unwrap();
        heard.extend([Cp, Ap].into_iter().flat_map(|mode| client.said(mode)));
    }
    assert!(heard.iter().all(|said| said == "bookmark"), "{heard:?}");
    stop.cancel();
    drop(say);
    tokio::time::timeout(Duration::from_secs(30), assuring)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_prefix_spans_both_modes_and_each_message_says_what_its_revisions_count() {
    let mut world = World::new(WatchConfig::default(), 100);
    let (one, other) = (key("c", "one"), key("a", "other"));
    world.put(Cp, &one, "n1");
    world.put(Ap, &other, "n1");
    // What an AP group's service is, is defined in the replicated directory, where it has no nodes.
    world.apply(
        Cp,
        Command::PutService {
            key: other.clone(),
            settings: None,
            expected: Expected::Any,
        },
    );
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    assert_eq!(client.said(Cp), ["list c/one", "started half 1 [c/one]"]);
    assert_eq!(client.said(Ap), ["list a/other", "started half 1 [a/other]"]);

    world.put(Ap, &other, "n2");
    world.put(Cp, &one, "n2");
    let settings = Some(rollcall_core::directory::ServiceSettings {
        metadata: Labels::from([("owner".into(), "me".into())]),
        ..rollcall_core::directory::ServiceSettings::default()
    });
    world.apply(
        Cp,
        Command::PutService {
            key: other.clone(),
            settings,
            expected: Expected::Any,
        },
    );
    world.pull();
    assert_eq!(
        client.said(Cp),
        ["change c/one"],
        "nothing of what is only defined here"
    );
    assert_eq!(client.said(Ap), ["change a/other"]);
    assert_eq!(client.nodes[&one], ["n1", "n2"]);
    assert_eq!(client.nodes[&other], ["n1", "n2"]);
    let single = client.handle.subscribe(Parts::Cp(service(2, &other)));
    assert_eq!(single, Err(SubscribeError::Elsewhere { group: named("a") }));
    client.handle.unsubscribe(1);
    assert_eq!(client.followed(), (0, 0));
}

#[tokio::test]
async fn a_group_that_moves_takes_its_watchers_along_and_no_node_is_said_to_leave() {
    let mut world = World::new(WatchConfig::default(), 100);
    let (moving, staying) = (key("c", "one"), key("a", "other"));
    world.put(Cp, &moving, "n1");
    world.put(Cp, &moving, "n2");
    world.put(Ap, &staying, "n1");
    let mut client = world.open();
    let mut bystander = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    client.handle.subscribe(Parts::Cp(service(2, &moving))).unwrap();
    bystander
        .handle
        .subscribe(Parts::Ap(service(1, &staying)))
        .unwrap();
    client.read_all();
    bystander.read_all();
    let (sign, other) = (world.sign(Cp, &moving), world.sign(Ap, &staying));
    client.log.values_mut().for_each(Vec::clear);
    bystander.log.values_mut().for_each(Vec::clear);

    let mut number = 2;
    for to in [Ap, Cp, Ap] {
        world.move_group("c", to);
        world.pull();
        let (from, arrived) = match to {
            Ap => (client.said(Cp), client.said(Ap)),
            Cp => (client.said(Ap), client.said(Cp)),
        };
        let over = [format!("over {}", number - 1), format!("over {number}")];
        let mut said: Vec<&String> = from.iter().chain(&arrived).collect();
        said.sort();
        said.dedup();
        assert_eq!(said, over.iter().collect::<Vec<_>>(), "to {to:?}");
        assert!(client.kept.iter().all(|keep| keep.retry_after_ms <= 1_001));
        assert_eq!(client.followed(), (0, 0), "the other half ended too");
        assert_eq!(world.sign(to, &moving), sign);

        // They subscribe again with what they hold: equal signs bring nothing.
        let known = |mode| {
            let mut known = Vec::new();
            if mode == to {
                known.push((moving.clone(), sign));
            }
            if mode == Ap {
                known.push((staying.clone(), other));
            }
            known
        };
        let again = knowing(prefix(number + 1, ""), &known(Cp), &known(Ap));
        client.handle.subscribe(again).unwrap();
        number += 2;
        let single = service(number, &moving);
        let single = if to == Ap {
            Parts::Ap(single)
        } else {
            Parts::Cp(single)
        };
        let single = knowing(single, &known(Cp)[..], &[(moving.clone(), sign)]);
        client.handle.subscribe(single).unwrap();
        for mode in [Cp, Ap] {
            let said = client.said(mode);
            assert!(said.iter().all(|what| what.starts_with("started")), "{said:?}");
        }
    }
    let revision = world.put(Ap, &moving, "n3");
    world.pull();
    assert_eq!(
        client.said(Ap),
        ["change c/one"],
        "told once, though followed twice"
    );
    assert_eq!(client.revisions[&Ap], revision.0);
    assert_eq!(client.nodes[&moving], ["n1", "n2", "n3"]);
    assert_eq!((bystander.said(Cp).len(), bystander.said(Ap).len()), (0, 0));
}

/// Its stream owes it what changed before the group moved; by then the view has neither the group nor its services.
#[tokio::test]
async fn who_lags_behind_a_group_that_moves_is_not_told_that_its_services_are_gone() {
    let limits = WatchConfig {
        backlog_frames: 2,
        ..WatchConfig::default()
    };
    let other = key("a", "other");
    for parts in [Parts::Ap(service(1, &other)), prefix(1, "")] {
        let mut world = World::new(limits.clone(), 100);
        world.put(Ap, &other, "n0");
        let mut client = world.open();
        client.handle.subscribe(parts).unwrap();
        client.read_all();
        client.log.values_mut().for_each(Vec::clear);
        for n in 1..=5 {
            world.put(Ap, &other, &format!("n{n}"));
        }
        world.pull();
        assert!(client.handle.ap.shared.backlog.lock().lagging());
        world.move_group("a", Cp);
        world.pull();
        let said = client.said(Ap);
        assert_eq!(said, ["over 1", "bookmark"]);
        assert_eq!(
            client.nodes[&other],
            ["n0"],
            "it keeps what it has until it asks again"
        );
    }
}

/// Nobody else is to tell of a group that was deleted.
#[tokio::test]
async fn who_lags_behind_a_deleted_group_is_told_that_its_services_are_gone() {
    let limits = WatchConfig {
        backlog_frames: 2,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 100);
    let other = key("a", "other");
    for n in 1..=5 {
        world.apply(Ap, put_service(&key("a", &format!("s{n}"))));
    }
    world.apply(Ap, put_service(&other));
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);
    let names: Vec<String> = (1..=5).map(|n| format!("s{n}")).chain(["other".into()]).collect();
    for side in [Cp, Ap] {
        let (group, expected) = (named("a"), Expected::Any);
        if side == Ap {
            for name in &names {
                let key = key("a", name);
                world.apply(Ap, Command::DeleteService { key, expected });
            }
        }
        world.apply(side, Command::DeleteGroup { group, expected });
    }
    world.pull();
    assert!(client.handle.ap.shared.backlog.lock().lagging());
    let mut said = client.said(Ap);
    assert_eq!(said.pop().as_deref(), Some("bookmark"));
    said.sort();
    let mut gone: Vec<String> = names.iter().map(|name| format!("gone a/{name}")).collect();
    gone.sort();
    assert_eq!(said, gone);
}

#[tokio::test]
async fn who_waits_for_a_service_is_sent_to_its_group_when_that_comes_and_prefixes_are_not_disturbed() {
    let mut world = World::new(WatchConfig::default(), 100);
    let new = key("new", "one");
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    client.handle.subscribe(Parts::Cp(service(2, &new))).unwrap();
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);
    world.put_group("new", Ap);
    world.put(Ap, &new, "n1");
    world.pull();
    assert_eq!(client.said(Cp), ["over 2"]);
    assert_eq!(client.said(Ap), ["change new/one"]);
    client.handle.subscribe(Parts::Ap(service(3, &new))).unwrap();
    assert_eq!(client.said(Ap), ["list new/one", "started 3 [new/one]"]);
}

/// It was divided before the move, and begins behind it.
#[tokio::test]
async fn a_prefix_that_straddles_a_move_is_not_told_that_what_moved_is_gone() {
    let mut world = World::new(WatchConfig::default(), 100);
    let other = key("a", "other");
    world.put(Ap, &other, "n1");
    let mut client = world.open();
    let known = [(other.clone(), world.sign(Ap, &other))];
    client.nodes.insert(other.clone(), vec!["n1".into()]);
    world.move_group("a", Cp);
    client
        .handle
        .subscribe(knowing(prefix(1, ""), &[], &known))
        .unwrap();
    assert_eq!(client.said(Cp), ["list a/other", "started half 1 [a/other]"]);
    assert_eq!(client.said(Ap), ["started half 1 []"]);
    assert_eq!(client.nodes[&other], ["n1"]);
}

#[tokio::test]
async fn a_prefix_is_divided_anew_if_a_group_moved_before_it_began() {
    let mut world = World::new(WatchConfig::default(), 100);
    let mut client = world.open();
    let at = world.raft.read().revision();
    let subscribe = |client: &Client| {
        let divided = divided(prefix(1, ""), &["a"], at);
        client.handle.subscribe(divided)
    };
    // What is new, or deleted, was nowhere else.
    world.put_group("new", Ap);
    subscribe(&client).unwrap();
    client.handle.unsubscribe(1);
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);
    for (group, to) in [("c", Ap), ("a", Cp)] {
        let elsewhere = Err(SubscribeError::Elsewhere { group: named(group) });
        world.move_group(group, to);
        assert_eq!(subscribe(&client), elsewhere);
        assert_eq!((client.said(Cp).len(), client.said(Ap).len()), (0, 0));
        // It comes back, though with settings of today.
        let back = if to == Ap { Cp } else { Ap };
        world.move_group(group, back);
    }
    for side in [Cp, Ap] {
        let (group, expected) = (named("a"), Expected::Any);
        world.apply(side, Command::DeleteGroup { group, expected });
    }
    subscribe(&client).unwrap();
    assert_eq!(client.said(Cp), ["started half 1 []"]);
    assert_eq!(client.said(Ap), ["started half 1 []"]);
}

/// Until then the view has the group as it was when it was frozen; who comes to its prefix waits.
#[tokio::test]
async fn a_group_that_has_moved_is_left_behind_until_the_view_follows() {
    let mut world = World::new(WatchConfig::default(), 100);
    world.put(Ap, &key("a", "other"), "n1");
    let left = |world: &World, prefix: &str| {
        left_behind(&world.raft.read(), shown_within(&world.view.read(), prefix))
    };
    assert_eq!(left(&world, ""), None);
    let since = world.move_group_at_cp("a", Cp);
    assert_eq!(left(&world, ""), Some(named("a")));
    assert_eq!(left(&world, "c"), None);
    world.move_group_at_ap("a", Cp, since);
    assert_eq!(left(&world, ""), None);
    // On the way to the view, it is never shown too early.
    let since = world.move_group_at_cp("c", Ap);
    assert_eq!(left(&world, ""), None);
    world.move_group_at_ap("c", Ap, since);
    assert_eq!(left(&world, ""), None);
}

/// One half has begun by then, and who reads it must not take it for the whole.
#[tokio::test]
async fn a_prefix_begins_anew_if_a_group_moved_between_its_halves() {
    let mut world = World::new(WatchConfig::default(), 100);
    let mut client = world.open();
    world.put_group_at(Cp, "x", Ap);
    let at = world.raft.read().revision();
    let divided = divided(prefix(1, ""), &["a", "x"], at);
    client.handle.subscribe(divided).unwrap();
    assert_eq!(client.said(Cp), ["started half 1 []", "over 1"]);
    assert_eq!(client.said(Ap), [""; 0], "the view does not show it");
    assert_eq!(client.followed(), (0, 0));
}

/// The reader of the stream hears of the move, and has nothing to end at the other hub yet.
#[tokio::test]
async fn a_prefix_of_which_one_half_ended_before_the_other_began_begins_anew() {
    let mut world = World::new(WatchConfig::default(), 100);
    let mut client = world.open();
    let Parts::Both { cp, ap } = prefix(1, "") else {
        panic!("it spans both");
    };
    client.handle.cp.subscribe(cp).unwrap();
    world.move_group("c", Ap);
    world.pull();
    assert_eq!(client.said(Cp), ["started half 1 []", "over 1"]);
    client.handle.subscribe_beside(ap).unwrap();
    assert_eq!(client.followed(), (0, 0));
    assert_eq!(client.said(Ap), ["started half 1 []", "over 1"]);
    client.handle.subscribe(prefix(1, "")).unwrap();
}

#[tokio::test]
async fn a_move_among_changes_that_the_hub_lost_is_noticed() {
    let mut world = World::new(WatchConfig::default(), 2);
    let moving = key("c", "one");
    world.put(Cp, &moving, "n1");
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "c")).unwrap();
    client.handle.subscribe(Parts::Cp(service(2, &moving))).unwrap();
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);
    world.move_group("c", Ap);
    for n in 0..5 {
        world.put_group(&format!("g{n}"), Cp);
    }
    world.pull();
    let said = client.said(Cp);
    assert!(said.contains(&"over 2".to_owned()), "{said:?}");
    assert!(said.contains(&"over 1".to_owned()), "{said:?}");
    let quiet = |what: &String| what.starts_with("over") || what == "bookmark";
    assert!(said.iter().all(quiet), "{said:?}");
    assert_eq!(client.followed(), (0, 0));
}

#[tokio::test]
async fn both_halves_of_a_stream_stay_within_its_bounds_together() {
    let limits = WatchConfig {
        backlog_frames: 4,
        subscriptions_max: 3,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 100);
    let (one, other) = (key("c", "one"), key("a", "other"));
    world.put(Cp, &one, "n0");
    world.put(Ap, &other, "n0");
    let mut client = world.open();
    client.handle.subscribe(Parts::Cp(service(1, &one))).unwrap();
    client.handle.subscribe(Parts::Ap(service(2, &other))).unwrap();
    client.handle.subscribe(prefix(3, "c")).unwrap();
    let more = client.handle.subscribe(Parts::Ap(service(4, &other)));
    assert_eq!(more, Err(SubscribeError::TooMany { subscriptions_max: 3 }));
    let again = client.handle.subscribe(Parts::Ap(service(1, &other)));
    assert_eq!(again, Err(SubscribeError::Duplicate { id: 1 }));
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);

    // Three wait at one hub, and three more at the other: that is two too many.
    for n in 1..=3 {
        world.put(Cp, &one, &format!("n{n}"));
    }
    world.pull();
    for n in 1..=3 {
        world.put(Ap, &other, &format!("n{n}"));
    }
    world.pull();
    assert_eq!(client.said(Cp), ["change c/one"; 3]);
    assert_eq!(
        client.said(Ap),
        ["list a/other", "bookmark"],
        "the state instead of the history"
    );
    assert_eq!(client.nodes[&other], ["n0", "n1", "n2", "n3"]);
}

#[tokio::test]
async fn a_stream_that_follows_both_kinds_is_current_when_it_acknowledged_both() {
    let mut world = World::new(WatchConfig::default(), 100);
    let (one, other) = (key("c", "one"), key("a", "other"));
    let cp = [(one.clone(), world.put(Cp, &one, "n1"))];
    let ap = [(other.clone(), world.put(Ap, &other, "n1"))];
    let client = world.open();
    client.handle.name("both");
    client.handle.subscribe(prefix(1, "")).unwrap();
    let count = |world: &World| {
        let convergence = world.watches.convergence(&cp, &ap);
        (convergence.subscribers, convergence.current)
    };
    assert_eq!(count(&world), (1, 0));
    client.handle.ack(Cp, cp[0].1);
    assert_eq!(count(&world), (1, 0));
    let behind = world.watches.convergence(&cp, &ap).behind;
    assert_eq!(behind, [("both".to_owned(), Revision(0), Ap)]);
    client.handle.ack(Ap, ap[0].1);
    assert_eq!(count(&world), (1, 1));
}

#[tokio::test]
async fn a_closing_server_has_one_last_word_for_a_stream() {
    let world = World::new(WatchConfig::default(), 100);
    let mut client = world.open();
    client.handle.subscribe(prefix(1, "")).unwrap();
    client.read_all();
    client.log.values_mut().for_each(Vec::clear);
    world.watches.close(&["elsewhere:1".into()], 0);
    assert_eq!(client.said(Cp), ["move on"]);
    assert!(client.stream.next().now_or_never().unwrap().is_none());
    drop(client);
    assert_eq!(world.watches.streams(), 0);
    assert_eq!(world.watches.of(Ap).streams(), 0);
}
