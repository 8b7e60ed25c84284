//! Static nodes: whatever becomes of sessions, terms and guards, they stay until they are told to go.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rollcall_core::directory::{
    Command, Directory, Expected, ExpiryFence, Limits, NodeKind, NodeState, Request, RevivalFence,
    ServiceSettings,
};
use rollcall_core::guard::GuardSettings;
use rollcall_core::ids::{LogIndex, LogPosition, NodeId, RequestId, SessionId, Term};

use crate::scene;

const SERVICE: &str = "prod/feed";

/// One thing that happens. Numbers choose among the sessions and node ids there are.
#[derive(Clone, Debug)]
enum Event {
    Open,
    Close(u64),
    /// All sessions from this one on, as a leader that heard from nobody would say.
    ExpireFrom(u64),
    ReviveAll,
    Release,
    CloseWindow,
    Confirm,
    Register {
        session: Option<u64>,
        node: u8,
        kind: Option<NodeKind>,
        state: NodeState,
    },
    Update {
        session: Option<u64>,
        node: u8,
        state: NodeState,
    },
    Deregister {
        session: Option<u64>,
        node: u8,
    },
    PutService {
        default_kind: NodeKind,
        guarded: bool,
    },
    NextTerm,
    Reload,
}

fn kind() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        Just(NodeKind::Ephemeral),
        Just(NodeKind::Persistent),
        Just(NodeKind::Static)
    ]
}

fn state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        Just(NodeState::Up),
        Just(NodeState::Draining),
        Just(NodeState::Down)
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let session = || proptest::option::of(0_u64..8);
    prop_oneof![
        3 => Just(Event::Open),
        1 => (0_u64..8).prop_map(Event::Close),
        3 => (0_u64..8).prop_map(Event::ExpireFrom),
        1 => Just(Event::ReviveAll),
        1 => Just(Event::Release),
        1 => Just(Event::CloseWindow),
        1 => Just(Event::Confirm),
        6 => (session(), 0_u8..10, proptest::option::of(kind()), state())
            .prop_map(|(session, node, kind, state)| Event::Register { session, node, kind, state }),
        2 => (session(), 0_u8..10, state())
            .prop_map(|(session, node, state)| Event::Update { session, node, state }),
        1 => (session(), 0_u8..10).prop_map(|(session, node)| Event::Deregister { session, node }),
        1 => (kind(), any::<bool>()).prop_map(|(default_kind, guarded)| Event::PutService { default_kind, guarded }),
        1 => Just(Event::NextTerm),
        1 => Just(Event::Reload),
    ]
}

struct Play {
    directory: Directory,
    at: LogPosition,
    /// What each static node must be.
    expected: BTreeMap<NodeId, NodeState>,
    default_kind: NodeKind,
}

impl Play {
    fn new() -> Self {
        let mut play = Self {
            directory: Directory::new(Limits::default()),
            at: LogPosition {
                term: Term(1),
                index: LogIndex(0),
            },
            expected: BTreeMap::new(),
            default_kind: NodeKind::Ephemeral,
        };
        assert!(play.apply(scene::put_group("prod")));
        play
    }

    /// Whether it was applied.
    fn apply(&mut self, command: Command) -> bool {
        self.at.index.0 += 1;
        let id = RequestId(self.at.index.0.into());
        self.directory
            .apply(self.at, &Request { id, command })
            .result
            .is_ok()
    }

    /// One of the sessions there are; one that never was, if there is none.
    fn session(&self, choice: u64) -> SessionId {
        let sessions: Vec<SessionId> = self.directory.sessions().map(|session| session.id).collect();
        match sessions.len() as u64 {
            0 => SessionId(999),
            len => sessions[usize::try_from(choice % len).unwrap()],
        }
    }

    fn run(&mut self, event: Event) {
        let term = self.at.term;
        let service = self.directory.service(&scene::service(SERVICE)).cloned();
        match event {
            Event::Open => _ = self.apply(scene::open_session()),
            Event::Close(choice) => {
                let session = self.session(choice);
                self.apply(Command::CloseSession { session });
            }
            Event::ExpireFrom(choice) => {
                let from = self.session(choice);
                let lapsing = self.directory.sessions().filter(|session| session.id >= from);
                let fence = |session: &std::sync::Arc<rollcall_core::directory::Session>| ExpiryFence {
                    session: session.id,
                    last_renewal: session.last_renewal,
                };
                let sessions = lapsing.map(fence).collect();
                self.apply(Command::ExpireSessions {
                    term,
                    sessions,
                    following: Vec::new(),
                });
            }
            Event::ReviveAll => {
                let lapsed = self.directory.sessions().filter_map(|session| {
                    Some(RevivalFence {
                        session: session.id,
                        lapsed: session.lapsed?,
                    })
                });
                let sessions = lapsed.collect();
                self.apply(Command::ReviveSessions { term, sessions });
            }
            Event::Release => {
                if let Some(hold) = service.as_ref().and_then(|service| service.guard.hold()) {
                    let holds = vec![(scene::service(SERVICE), hold.since)];
                    self.apply(Command::ReleaseHeld { term, holds });
                }
            }
            Event::CloseWindow => {
                if let Some(window) = service.as_ref().and_then(|service| service.guard.window()) {
                    let windows = vec![(scene::service(SERVICE), window.began)];
                    self.apply(Command::CloseGuardWindows { term, windows });
                }
            }
            Event::Confirm => {
                let service = scene::service(SERVICE);
                self.apply(Command::ConfirmRemoval {
                    service,
                    since: None,
                    author: "a".into(),
                    reason: "r".into(),
                });
            }
            Event::Register {
                session,
                node,
                kind,
                state,
            } => self.register(session, node, kind, state),
            Event::Update { session, node, state } => {
                let session = session.map(|choice| self.session(choice));
                let mut update = scene::update_node(&path(node));
                update.state = Some(state);
                let id = update.key.node.clone();
                if self.apply(Command::Update {
                    session,
                    nodes: vec![update],
                }) && let Some(expected) = self.expected.get_mut(&id)
                {
                    *expected = state;
                }
            }
            Event::Deregister { session, node } => {
                let session = session.map(|choice| self.session(choice).0);
                if self.apply(scene::deregister(session, &path(node))) {
                    self.expected.remove(&scene::node(&path(node)).node);
                }
            }
            Event::PutService {
                default_kind,
                guarded,
            } => {
                let guard = if guarded {
                    GuardSettings::default()
                } else {
                    GuardSettings::off()
                };
                let settings = Some(ServiceSettings {
                    default_kind,
                    guard,
                    ..ServiceSettings::default()
                });
                let key = scene::service(SERVICE);
                if self.apply(Command::PutService {
                    key,
                    settings,
                    expected: Expected::Any,
                }) {
                    self.default_kind = default_kind;
                }
            }
            Event::NextTerm => self.at.term.0 += 1,
            Event::Reload => {
                let bytes = self.directory.encode_snapshot();
                self.directory = Directory::decode_snapshot(&bytes).unwrap();
            }
        }
    }

    fn register(&mut self, session: Option<u64>, node: u8, kind: Option<NodeKind>, state: NodeState) {
        let session = session.map(|choice| self.session(choice));
        let mut asked = scene::register_node(&path(node));
        asked.registration.kind = kind;
        asked.registration.state = state;
        let id = asked.registration.id.clone();
        if self.apply(Command::Register {
            session,
            nodes: vec![asked],
        }) {
            match kind.unwrap_or(self.default_kind) {
                NodeKind::Static => _ = self.expected.insert(id, state),
                NodeKind::Ephemeral | NodeKind::Persistent => _ = self.expected.remove(&id),
            }
        }
    }

    fn listed(&self) -> BTreeMap<NodeId, NodeState> {
        let Some(service) = self.directory.service(&scene::service(SERVICE)) else {
            return BTreeMap::new();
        };
        let is_static =
            |node: &&std::sync::Arc<rollcall_core::directory::Node>| node.kind == NodeKind::Static;
        let statics = service.nodes.values().filter(is_static);
        statics
            .inspect(|node| assert_eq!(node.session(), None, "a static node belongs to nobody"))
            .map(|node| (node.registration.id.clone(), node.state))
            .collect()
    }
}

fn path(node: u8) -> String {
    format!("{SERVICE}/n{node}:80")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn static_nodes_change_by_the_word_about_them_alone(events in proptest::collection::vec(event(), 1..80)) {
        let mut play = Play::new();
        for event in events {
            let told = format!("{event:?}");
            play.run(event);
            prop_assert_eq!(play.listed(), play.expected.clone(), "after {}", told);
        }
    }
}
