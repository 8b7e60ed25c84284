//! A directory with services of a hundred nodes, as production has them.

use rollcall_core::directory::{
    Address, Command, Directory, Expected, GroupMode, GroupSettings, Limits, NodeState, RegisterNode,
    Registration, Request,
};
use rollcall_core::ids::{LogIndex, LogPosition, NodeKey, RequestId, ServiceKey, SessionId, Term};

pub(super) const NODES_PER_SERVICE: u64 = 100;
/// Nodes of one session.
pub(super) const NODES_PER_SESSION: u64 = 10;

pub(super) struct Ground {
    pub(super) directory: Directory,
    index: u64,
}

impl Ground {
    /// A group, and nothing in it.
    pub(super) fn new() -> Self {
        let mut ground = Self {
            directory: Directory::new(Limits::default()),
            index: 0,
        };
        ground.apply(define_group(GroupMode::Cp));
        ground
    }

    /// So many nodes, and their sessions.
    pub(super) fn with(nodes: u64) -> (Self, Vec<SessionId>) {
        let mut ground = Self::new();
        let sessions: Vec<_> = (0..nodes.div_ceil(NODES_PER_SESSION))
            .map(|_| ground.open())
            .collect();
        for number in 0..nodes {
            let session = sessions[(number / NODES_PER_SESSION) as usize];
            ground.apply(register(session, number));
        }
        (ground, sessions)
    }

    pub(super) fn open(&mut self) -> SessionId {
        let open = Command::OpenSession {
            secret_digest: [7; 32],
            ttl_ms: 15_000,
            client: "bench".into(),
        };
        self.apply(open).expect("a session was opened")
    }

    pub(super) fn position(&mut self) -> LogPosition {
        self.index += 1;
        LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        }
    }

    /// Applies a command that cannot be refused; the session it opened, if it did.
    pub(super) fn apply(&mut self, command: Command) -> Option<SessionId> {
        let at = self.position();
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        let outcome = self.directory.apply(at, &request).result;
        outcome.expect("nothing here is refused").session
    }
}

pub(super) fn define_group(mode: GroupMode) -> Command {
    Command::PutGroup {
        group: "bench".parse().expect("a group's name"),
        settings: GroupSettings {
            mode,
            auto_create: true,
            ..GroupSettings::default()
        },
        expected: Expected::Any,
    }
}

pub(super) fn service(number: u64) -> ServiceKey {
    ServiceKey {
        group: "bench".parse().expect("a group's name"),
        service: format!("service-{}", number / NODES_PER_SERVICE)
            .parse()
            .expect("a service's name"),
    }
}

pub(super) fn key(number: u64) -> NodeKey {
    NodeKey {
        service: service(number),
        node: format!("node-{number}").parse().expect("a node's id"),
    }
}

pub(super) fn registration(number: u64) -> Registration {
    let address = Address {
        name: "http".into(),
        host: "10.0.0.1".into(),
        port: 8080,
    };
    Registration {
        id: key(number).node,
        addresses: vec![address].into(),
        weight: 100,
        labels: [("zone".into(), "a".into()), ("version".into(), "1.2.3".into())].into(),
        metadata: [("data".into(), "m".repeat(180))].into(),
        kind: None,
        state: NodeState::Up,
    }
}

pub(super) fn register(session: SessionId, number: u64) -> Command {
    let node = RegisterNode {
        key: service(number),
        registration: registration(number),
        expected: Expected::Any,
    };
    Command::Register {
        session: Some(session),
        nodes: vec![node],
    }
}
