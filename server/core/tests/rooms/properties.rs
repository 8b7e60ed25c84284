//! What holds for every log.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rollcall_core::directory::{
    Command, DeregisterNode, Directory, Expected, ExpiryFence, GroupField, GroupMode, GroupSettings,
    GuardEvent, Limits, NodeChange, NodeKind, NodeState, Override, RegisterNode, Request, RevisionChanges,
    RevivalFence, Service, ServiceFate, ServiceField, ServiceSettings, SessionChange, Sign, UpdateNode,
};
use rollcall_core::guard::{GuardSettings, GuardStatus};
use rollcall_core::ids::{
    Incarnation, LogIndex, LogPosition, NodeId, NodeKey, RequestId, Revision, ServiceKey, SessionId, Term,
};
use rollcall_core::storm::{Mode, Scope, Share};

use crate::scene;

/// Small numbers everywhere, so that limits, tombstones and repeats are met often.
fn limits() -> Limits {
    Limits {
        groups_max: 2,
        services_per_group_max: 2,
        nodes_per_service_max: 4,
        overrides_per_service_max: 2,
        sessions_max: 4,
        nodes_per_session_max: 5,
        tombstones_per_service_max: 2,
        requests_max: 6,
        ..Limits::default()
    }
}

fn session() -> impl Strategy<Value = SessionId> {
    (1u64..8).prop_map(SessionId)
}

fn service() -> impl Strategy<Value = ServiceKey> {
    prop::sample::select(vec!["a/x", "a/y", "b/x", "b/z", "c/x"]).prop_map(scene::service)
}

fn node() -> impl Strategy<Value = NodeKey> {
    (service(), 0..6u8).prop_map(|(service, n)| NodeKey {
        service,
        node: format!("n{n}:80").parse().unwrap(),
    })
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        6 => Just(Expected::Any),
        1 => Just(Expected::Absent),
        2 => (0u64..20).prop_map(|revision| Expected::Revision(Revision(revision))),
    ]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-c]", "[x-z]", 0..2)
}

fn state() -> impl Strategy<Value = NodeState> {
    prop::sample::select(vec![
        NodeState::Up,
        NodeState::Up,
        NodeState::Draining,
        NodeState::Down,
    ])
}

fn register_node() -> impl Strategy<Value = RegisterNode> {
    let kind = prop::sample::select(vec![
        None,
        None,
        None,
        Some(NodeKind::Persistent),
        Some(NodeKind::Static),
    ]);
    (node(), 0u16..2, labels(), kind, state(), expected()).prop_map(
        |(key, weight, labels, kind, state, expected)| {
            let mut registration = scene::registration(key.node.as_str());
            (registration.weight, registration.labels) = (weight, labels.into());
            (registration.kind, registration.state) = (kind, state);
            RegisterNode {
                key: key.service,
                registration,
                expected,
            }
        },
    )
}

fn update_node() -> impl Strategy<Value = UpdateNode> {
    let labels = prop::collection::btree_map("[a-c]", prop::option::of("[x-z]"), 0..2);
    (
        node(),
        prop::option::of(0u16..2),
        prop::option::of(state()),
        labels,
        expected(),
    )
        .prop_map(|(key, weight, state, labels, expected)| UpdateNode {
            key,
            expected,
            weight,
            state,
            labels,
            metadata: BTreeMap::new(),
        })
}

fn over() -> impl Strategy<Value = Override> {
    (
        prop::option::of(any::<bool>()),
        prop::option::of(0u16..2),
        labels(),
        0u64..2,
    )
        .prop_map(|(disabled, weight, labels, ttl_ms)| Override {
            disabled,
            weight,
            labels: labels.into(),
            ttl_ms,
            ..Override::default()
        })
}

fn guard() -> impl Strategy<Value = GuardSettings> {
    (prop::sample::select(vec![0, 3_000, 5_000, 10_000]), any::<bool>()).prop_map(|(share, keep_last)| {
        GuardSettings {
            share,
            keep_last,
            ..GuardSettings::default()
        }
    })
}

fn command() -> impl Strategy<Value = Command> {
    let group = || prop::sample::select(vec!["a", "b", "c"]).prop_map(scene::group);
    let fence = (session(), 0u64..60).prop_map(|(session, index)| ExpiryFence {
        session,
        last_renewal: LogIndex(index),
    });
    let nodes_max = prop::option::of(0u32..3);
    prop_oneof![
        4 => (group(), any::<bool>(), guard(), expected()).prop_map(|(group, auto, guard, expected)| {
            let defaults = ServiceSettings { guard, ..ServiceSettings::default() };
            let settings = GroupSettings { auto_create: auto, defaults, ..GroupSettings::default() };
            Command::PutGroup { group, settings, expected }
        }),
        1 => (group(), expected()).prop_map(|(group, expected)| Command::DeleteGroup { group, expected }),
        2 => (service(), nodes_max, guard(), expected()).prop_map(|(key, nodes_max, guard, expected)| {
            let settings =
                nodes_max.map(|nodes_max| ServiceSettings { nodes_max, guard, ..ServiceSettings::default() });
            Command::PutService { key, settings, expected }
        }),
        1 => (service(), expected()).prop_map(|(key, expected)| Command::DeleteService { key, expected }),
        1 => (service(), guard(), expected()).prop_map(|(key, guard, expected)| Command::ChangeService {
            key,
            settings: ServiceSettings { guard, nodes_max: 3, ..ServiceSettings::default() },
            fields: BTreeSet::from([ServiceField::GuardShare, ServiceField::GuardKeepLast]),
            expected,
        }),
        1 => (group(), any::<bool>(), expected()).prop_map(|(group, auto_create, expected)| Command::ChangeGroup {
            group,
            settings: GroupSettings { auto_create, services_max: 1, ..GroupSettings::default() },
            fields: BTreeSet::from([GroupField::AutoCreate]),
            expected,
        }),
        4 => Just(scene::open_session()),
        1 => session().prop_map(|session| Command::CloseSession { session }),
        3 => (1u64..3, prop::collection::vec(fence, 1..4))
            .prop_map(|(term, sessions)| Command::ExpireSessions { term: Term(term), sessions, following: Vec::new() }),
        12 => (prop::option::weighted(0.9, session()), prop::collection::vec(register_node(), 1..4))
            .prop_map(|(session, nodes)| Command::Register { session, nodes }),
        4 => (prop::option::of(session()), prop::collection::vec((node(), expected()), 1..3)).prop_map(
            |(session, nodes)| {
                let nodes = nodes.into_iter().map(|(key, expected)| DeregisterNode { key, expected }).collect();
                Command::Deregister { session, nodes }
            }
        ),
        4 => (prop::option::of(session()), prop::collection::vec(update_node(), 1..3))
            .prop_map(|(session, nodes)| Command::Update { session, nodes }),
        3 => (node(), over()).prop_map(|(key, over)| Command::SetOverride { key, over }),
        1 => node().prop_map(|key| Command::ClearOverride { key }),
        1 => (node(), 0u64..40).prop_map(|(key, at)| Command::ExpireOverrides {
            term: Term(1),
            overrides: vec![(key, Revision(at))],
        }),
        3 => (1u64..3, prop::collection::vec((session(), 0u64..60), 1..4)).prop_map(|(term, sessions)| {
            let fence = |(session, lapsed)| RevivalFence { session, lapsed: Revision(lapsed) };
            Command::ReviveSessions { term: Term(term), sessions: sessions.into_iter().map(fence).collect() }
        }),
        1 => (service(), 0u64..60).prop_map(|(key, began)| Command::CloseGuardWindows {
            term: Term(1),
            windows: vec![(key, Revision(began))],
        }),
        1 => (service(), 0u64..60).prop_map(|(key, since)| Command::ReleaseHeld {
            term: Term(1),
            holds: vec![(key, Revision(since))],
        }),
        1 => (service(), prop::option::weighted(0.2, 0u64..60)).prop_map(|(service, since)| {
            let since = since.map(Revision);
            Command::ConfirmRemoval { service, since, author: "ann".into(), reason: String::new() }
        }),
        1 => (1u32..8).prop_map(|requests_max| Command::SetLimits { limits: Limits { requests_max, ..limits() } }),
        1 => (prop::option::of(prop::sample::select(vec!["a", "b", "c"])), 0u16..4).prop_map(|(group, mode)| {
            let share = Share::default();
            Command::SetStorm {
                scope: group.map_or(Scope::Cluster, |group| Scope::Group(scene::group(group))),
                mode: [Mode::Off, Mode::On { share }, Mode::Auto { share }, Mode::Inherited][usize::from(mode)],
                author: "ann".into(),
                reason: String::new(),
            }
        }),
        1 => prop::sample::select(vec!["a", "b", "c"]).prop_map(|group| Command::BeginMove {
            group: scene::group(group),
            to: GroupMode::Ap,
            stamp_ms: 7,
        }),
        2 => (prop::sample::select(vec!["a", "b"]), 0u64..60).prop_map(|(group, since)| Command::EndMove {
            group: scene::group(group),
            since: Revision(since),
            done: false,
        }),
    ]
}

/// A log that begins with groups and sessions, so that the rest has something to work on. Request ids repeat.
fn log() -> impl Strategy<Value = Vec<(LogPosition, Request)>> {
    let entry = (command(), prop::option::weighted(0.1, 0u128..10));
    prop::collection::vec(entry, 1..100).prop_map(|entries| {
        let start = [
            scene::put_group("a"),
            scene::put_group("b"),
            scene::open_session(),
            scene::open_session(),
        ];
        let start = start.into_iter().map(|command| (command, None));
        let entries = start.chain(entries).enumerate().map(|(n, (command, repeat))| {
            let term = Term(1 + u64::from(n > 60));
            let at = LogPosition {
                term,
                index: LogIndex(n as u64 + 1),
            };
            (
                at,
                Request {
                    id: RequestId(repeat.unwrap_or(1_000 + n as u128)),
                    command,
                },
            )
        });
        entries.collect()
    })
}

fn replay(directory: &mut Directory, log: &[(LogPosition, Request)]) {
    for (at, request) in log {
        directory.apply(*at, request);
    }
}

/// Everything that is kept up with writes, computed anew.
fn check_sums(directory: &Directory) {
    let (mut services, mut nodes, mut overrides) = (0, 0, 0);
    let mut owned: BTreeMap<SessionId, Vec<NodeKey>> = BTreeMap::new();
    for group in directory.groups() {
        let mut sign = Sign::default();
        let mut group_nodes = 0;
        for (name, service) in &group.services {
            // In the opposite order: the sign must not care.
            let views: Vec<_> = service.views().collect();
            let expected = views
                .into_iter()
                .rev()
                .map(Sign::of_node)
                .fold(Sign::default(), Sign::plus);
            assert_eq!(service.sign, expected);
            sign = sign.plus(Sign::of_service(name, service.sign));
            group_nodes += service.nodes.len() as u64;
            services += 1;
            overrides += service.overrides.len() as u64;
            assert!(service.tombstones.len() <= 2);
            check_ledger(directory, service);
            for (id, node) in &service.nodes {
                assert!(service.tombstones.of(id).is_none());
                let key = NodeKey {
                    service: service.key.clone(),
                    node: id.clone(),
                };
                assert_eq!(node.kind == NodeKind::Ephemeral, node.session().is_some());
                if let Some(session) = node.session() {
                    owned.entry(session).or_default().push(key);
                }
            }
        }
        assert_eq!((group.sign, group.nodes), (sign, group_nodes));
        nodes += group_nodes;
    }
    for session in directory.sessions() {
        assert_eq!(
            session.nodes.keys().collect::<Vec<_>>(),
            owned.remove(&session.id).unwrap_or_default()
        );
    }
    assert!(owned.is_empty(), "nodes of sessions that are gone: {owned:?}");
    let totals = directory.totals();
    assert_eq!(
        (totals.services, totals.nodes, totals.overrides),
        (services, nodes, overrides)
    );
    assert_eq!(totals.sessions, directory.sessions().count() as u64);
    let guarded: Vec<_> = directory.guarded_services().collect();
    let held = guarded.iter().map(|service| u64::from(service.guard.held()));
    let engaged = guarded.iter().filter(|service| service.guard.engaged().is_some());
    assert_eq!(
        (totals.held, totals.engaged),
        (held.sum(), engaged.count() as u64)
    );
    for session in directory.sessions().filter(|session| session.lapsed.is_some()) {
        assert!(
            !session.nodes.is_empty(),
            "a lapsed session ends with its last node"
        );
    }
    assert_eq!(directory.changes().head(), directory.revision());
}

/// The guard's counts, and that suspects are the nodes of lapsed sessions.
fn check_ledger(directory: &Directory, service: &Service) {
    let of_state = |state| service.nodes.values().filter(|node| node.state == state).count();
    let guard = &service.guard;
    let counted = (guard.listed(), guard.up(), guard.held());
    let counted = (counted.0 as usize, counted.1 as usize, counted.2 as usize);
    let held = of_state(NodeState::Suspect);
    assert_eq!(counted, (service.nodes.len(), of_state(NodeState::Up), held));
    assert_eq!(guard.hold().is_some(), held > 0);
    for node in service.nodes.values() {
        let owner = node.session().and_then(|session| directory.session(session));
        let lapsed = owner.is_some_and(|session| session.lapsed.is_some());
        assert_eq!(node.state == NodeState::Suspect, lapsed);
        if !lapsed {
            assert_eq!(node.state, node.registration.state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn replaying_the_log_equals_snapshot_plus_tail(log in log(), cut in any::<prop::sample::Index>()) {
        let mut whole = Directory::new(limits());
        replay(&mut whole, &log);
        let (head, tail) = log.split_at(cut.index(log.len() + 1));
        let mut before = Directory::new(limits());
        replay(&mut before, head);
        let mut resumed = Directory::decode_snapshot(&before.encode_snapshot()).unwrap();
        prop_assert_eq!(resumed.state_hash(), before.state_hash());
        prop_assert_eq!(resumed.totals(), before.totals());
        replay(&mut resumed, tail);
        check_sums(&resumed);
        prop_assert_eq!(resumed.state_hash(), whole.state_hash());
        prop_assert_eq!(resumed.encode_snapshot(), whole.encode_snapshot());
    }

    #[test]
    fn two_directories_say_the_same_and_sums_hold_at_each_step(log in log()) {
        let (mut one, mut other) = (Directory::new(limits()), Directory::new(limits()));
        for (step, (at, request)) in log.iter().enumerate() {
            let request = &Request::decode(&request.encode()).unwrap();
            // When records are counted in that were written is a server's own matter.
            if step % 3 == 1 {
                other.settle();
            }
            let before = one.clone();
            let (said, echoed) = (one.apply(*at, request), other.apply(*at, request));
            prop_assert_eq!(&said.result, &echoed.result);
            prop_assert_eq!(&said.changes, &echoed.changes);
            prop_assert_eq!(one.state_hash(), other.state_hash());
            check_sums(&one);
            match (&said.result, &said.changes) {
                (Ok(outcome), Some(changes)) => {
                    prop_assert!(outcome.changed && !outcome.repeated);
                    prop_assert_eq!(outcome.revision, before.revision().next());
                    prop_assert_eq!(changes.revision, one.revision());
                    prop_assert_eq!(changes.request, request.id);
                }
                (Ok(outcome), None) => {
                    prop_assert!(!outcome.changed || outcome.repeated);
                    prop_assert_eq!(one.revision(), before.revision());
                    if outcome.repeated {
                        prop_assert_eq!(one.state_hash(), before.state_hash());
                    }
                }
                (Err(_), changes) => {
                    prop_assert!(changes.is_none());
                    prop_assert_eq!(one.state_hash(), before.state_hash());
                    prop_assert_eq!(one.encode_snapshot(), before.encode_snapshot());
                }
            }
        }
        prop_assert_eq!(one.encode_snapshot(), other.encode_snapshot());
    }

    #[test]
    fn changes_are_all_that_a_watcher_needs(log in log()) {
        let mut directory = Directory::new(limits());
        let mut watcher = Watcher::default();
        for (at, request) in &log {
            if let Some(changes) = directory.apply(*at, request).changes {
                watcher.take_in(&changes);
            }
            watcher.compare(&directory);
        }
    }

    #[test]
    fn incarnations_only_grow(log in log()) {
        let mut directory = Directory::new(limits());
        let mut last: BTreeMap<NodeKey, (Incarnation, bool)> = BTreeMap::new();
        for (at, request) in &log {
            let Some(changes) = directory.apply(*at, request).changes else { continue };
            for service in &changes.services {
                for change in &service.nodes {
                    let key = |id: &NodeId| NodeKey { service: service.key.clone(), node: id.clone() };
                    match change {
                        NodeChange::Put { node, .. } => {
                            let before = last.insert(key(&node.registration.id), (node.incarnation, true));
                            let grown = match before {
                                None => node.incarnation > Incarnation(0),
                                Some((incarnation, true)) => node.incarnation >= incarnation,
                                Some((incarnation, false)) => node.incarnation > incarnation,
                            };
                            prop_assert!(grown, "{:?} came as {:?}", before, node.incarnation);
                        }
                        NodeChange::Removed { id, incarnation, .. } => {
                            let before = last.insert(key(id), (*incarnation, false));
                            prop_assert_eq!(before, Some((*incarnation, true)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic(
        log in log(),
        cut in any::<prop::sample::Index>(),
        flip in any::<prop::sample::Index>(),
        bit in 0u8..8,
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut directory = Directory::new(limits());
        replay(&mut directory, &log);
        let bytes = directory.encode_snapshot();
        prop_assert!(Directory::decode_snapshot(&bytes[..cut.index(bytes.len())]).is_err());
        let mut flipped = bytes.clone();
        flipped[flip.index(bytes.len())] ^= 1 << bit;
        prop_assert!(Directory::decode_snapshot(&flipped).is_err());
        prop_assert!(Directory::decode_snapshot(&noise).is_err());
        for (_, request) in &log {
            let mut bytes = request.encode().to_vec();
            prop_assert!(Request::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let place = flip.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let _ = Request::decode(&bytes);
        }
        let _ = Request::decode(&noise);
        let _ = rollcall_core::directory::Outcome::decode(&noise);
        let _ = rollcall_core::directory::Refusal::decode(&noise);
    }
}

/// Knows only what changes told it.
#[derive(Default)]
struct Watcher {
    services: BTreeMap<ServiceKey, (Sign, BTreeMap<NodeId, Sign>)>,
    sessions: Vec<SessionId>,
    lapsed: BTreeSet<SessionId>,
    guards: BTreeMap<ServiceKey, GuardStatus>,
    /// To the last count, as the changes of services tell it.
    said: BTreeMap<ServiceKey, GuardStatus>,
}

impl Watcher {
    fn take_in(&mut self, changes: &RevisionChanges) {
        for change in &changes.services {
            match change.fate {
                ServiceFate::Deleted => {
                    self.guards.remove(&change.key);
                    self.said.remove(&change.key);
                    let (_, nodes) = self.services.remove(&change.key).expect("it was announced");
                    assert!(nodes.is_empty());
                    continue;
                }
                ServiceFate::Created => assert!(!self.services.contains_key(&change.key)),
                ServiceFate::Kept => assert!(self.services.contains_key(&change.key)),
            }
            let (sign, nodes) = self.services.entry(change.key.clone()).or_default();
            *sign = change.sign;
            match change.guard.as_deref().copied() {
                Some(guard) if guard.is_idle() => _ = self.said.remove(&change.key),
                Some(guard) => _ = self.said.insert(change.key.clone(), guard),
                None => {}
            }
            for node in &change.nodes {
                match node {
                    NodeChange::Put { node, over } => {
                        let view = rollcall_core::directory::NodeView::new(node, over.as_deref());
                        nodes.insert(node.registration.id.clone(), Sign::of_node(view));
                    }
                    NodeChange::Removed { id, .. } => {
                        nodes.remove(id).expect("only what is there is removed");
                    }
                }
            }
        }
        for change in &changes.guards {
            let known = self.guards.insert(change.service.clone(), change.status);
            let engaged = (
                known.is_some_and(|status| status.engaged.is_some()),
                change.status.engaged.is_some(),
            );
            match change.event {
                GuardEvent::Engaged => assert_eq!(engaged, (false, true)),
                GuardEvent::Disengaged(_) => assert_eq!(engaged, (true, false)),
                GuardEvent::Confirmed { .. } => assert!(!engaged.1 && change.status.held == 0),
                GuardEvent::Changed => assert_eq!(engaged.0, engaged.1),
            }
        }
        for change in &changes.sessions {
            match change {
                SessionChange::Opened { session, .. } => self.sessions.push(*session),
                SessionChange::Ended { session, .. } => {
                    self.sessions.retain(|id| id != session);
                    self.lapsed.remove(session);
                }
                SessionChange::Lapsed { session, .. } => {
                    assert!(self.lapsed.insert(*session), "it lapses once");
                }
                SessionChange::Revived { session, .. } => {
                    assert!(self.lapsed.remove(session), "it had lapsed");
                }
            }
        }
    }

    fn compare(&self, directory: &Directory) {
        let services: Vec<_> = directory
            .groups()
            .flat_map(|group| group.services.values())
            .collect();
        assert_eq!(services.len(), self.services.len());
        for service in services {
            let (sign, nodes) = &self.services[&service.key];
            assert_eq!((*sign, nodes.len()), (service.sign, service.nodes.len()));
            assert_eq!(
                nodes.values().copied().fold(Sign::default(), Sign::plus),
                service.sign
            );
        }
        let sessions: Vec<_> = directory.sessions().map(|session| session.id).collect();
        assert_eq!(self.sessions, sessions);
        let lapsed = directory.sessions().filter(|session| session.lapsed.is_some());
        assert_eq!(self.lapsed, lapsed.map(|session| session.id).collect());
        for group in directory.groups() {
            for service in group.services.values() {
                let now = service.guard_status();
                let told = |status: &GuardStatus| {
                    (
                        status.window,
                        status.removed,
                        status.held,
                        status.held_since,
                        status.overdue,
                    )
                };
                let known = self.guards.get(&service.key).copied().unwrap_or_default();
                assert_eq!(told(&known), told(&now));
                assert_eq!(self.said.get(&service.key).copied(), service.guard_said());
            }
        }
    }
}

/// A leader judging from a state that may be old by the time its proposal is applied.
#[derive(Clone, Debug)]
enum Move {
    /// A client's write under its session is committed.
    Write(u64),
    /// The leader sees the session lapsed and proposes; the proposal stays in the pipe.
    Judge(u64),
    /// The oldest proposal is committed.
    Commit,
    /// Leadership changes; what the old leader proposed may still be committed by the new one.
    Elect,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_renewal_and_an_expiry_never_both_win(
        moves in prop::collection::vec(
            prop_oneof![
                3 => (1u64..4).prop_map(Move::Write),
                3 => (1u64..4).prop_map(Move::Judge),
                3 => Just(Move::Commit),
                1 => Just(Move::Elect),
            ],
            1..60,
        )
    ) {
        let mut directory = Directory::new(Limits::default());
        let mut log = Log::default();
        for command in [scene::put_unguarded_group("a"), scene::open_session(), scene::open_session(), scene::open_session()] {
            log.commit(&mut directory, command).unwrap();
        }
        // Per session: writes committed so far, and whether it was expired.
        let mut writes: BTreeMap<u64, u64> = BTreeMap::new();
        let mut dead: BTreeMap<u64, bool> = BTreeMap::new();
        let mut proposals: Vec<(u64, u64, Term, Command)> = Vec::new();
        for step in moves {
            match step {
                Move::Write(session) => {
                    let path = format!("a/x/n{session}:80");
                    let won = log.commit(&mut directory, scene::register(session, &[&path])).is_ok();
                    prop_assert_eq!(won, !dead.contains_key(&session), "a write wins exactly while the session lives");
                    *writes.entry(session).or_default() += u64::from(won);
                }
                Move::Judge(session) => {
                    let Some(state) = directory.session(SessionId(session)) else { continue };
                    let command = scene::expire(log.term.0, session, state.last_renewal.0);
                    let seen = writes.get(&session).copied().unwrap_or(0);
                    proposals.push((session, seen, log.term, command));
                }
                Move::Commit => {
                    if proposals.is_empty() {
                        continue;
                    }
                    let (session, seen, term, command) = proposals.remove(0);
                    let outcome = log.commit(&mut directory, command).unwrap();
                    let renewed_since = writes.get(&session).copied().unwrap_or(0) > seen;
                    let expired = outcome.voided.is_empty();
                    let may = !renewed_since && term == log.term && !dead.contains_key(&session);
                    prop_assert_eq!(expired, may);
                    if expired {
                        dead.insert(session, true);
                        let service = directory.service(&scene::service("a/x"));
                        let left = service.is_some_and(|s| s.nodes.values().any(|n| n.session() == Some(SessionId(session))));
                        prop_assert!(!left, "its nodes left with it");
                    }
                    prop_assert_eq!(directory.session(SessionId(session)).is_none(), dead.contains_key(&session));
                }
                Move::Elect => log.term.0 += 1,
            }
        }
    }
}

struct Log {
    term: Term,
    index: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            term: Term(1),
            index: 0,
        }
    }
}

impl Log {
    fn commit(
        &mut self,
        directory: &mut Directory,
        command: Command,
    ) -> Result<rollcall_core::directory::Outcome, rollcall_core::directory::Refusal> {
        self.index += 1;
        let at = LogPosition {
            term: self.term,
            index: LogIndex(self.index),
        };
        directory
            .apply(
                at,
                &Request {
                    id: RequestId(u128::from(self.index)),
                    command,
                },
            )
            .result
    }
}
