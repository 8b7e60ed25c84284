//! Shorthand for building requests and applying them as a log would.

use rollcall_core::directory::{
    Address, Applied, Command, DeregisterNode, Directory, Expected, ExpiryFence, GroupSettings, Labels,
    Limits, NodeState, Outcome, Override, Refusal, RegisterNode, Registration, Request, ServiceSettings,
    UpdateNode, WEIGHT_DEFAULT,
};
use rollcall_core::guard::GuardSettings;
use rollcall_core::ids::{GroupName, LogIndex, LogPosition, NodeKey, RequestId, ServiceKey, SessionId, Term};

pub(crate) fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// `prod/feed` is service `feed` of group `prod`.
pub(crate) fn service(path: &str) -> ServiceKey {
    let (group, service) = path.rsplit_once('/').unwrap();
    ServiceKey {
        group: group.parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

/// `prod/feed/a:80` is node `a:80` of service `prod/feed`.
pub(crate) fn node(path: &str) -> NodeKey {
    let (path, node) = path.rsplit_once('/').unwrap();
    NodeKey {
        service: service(path),
        node: node.parse().unwrap(),
    }
}

pub(crate) fn registration(id: &str) -> Registration {
    Registration {
        id: id.parse().unwrap(),
        addresses: vec![Address {
            name: "http".into(),
            host: "127.0.0.1".into(),
            port: 80,
        }]
        .into(),
        weight: WEIGHT_DEFAULT,
        labels: Labels::new(),
        metadata: Labels::new(),
        kind: None,
        state: NodeState::Up,
    }
}

pub(crate) fn register_node(path: &str) -> RegisterNode {
    let NodeKey { service, node } = node(path);
    RegisterNode {
        key: service,
        registration: registration(node.as_str()),
        expected: Expected::Any,
    }
}

pub(crate) fn update_node(path: &str) -> UpdateNode {
    UpdateNode {
        key: node(path),
        expected: Expected::Any,
        weight: None,
        state: None,
        labels: [].into(),
        metadata: [].into(),
    }
}

/// A group that creates services by itself, with the default guard.
pub(crate) fn put_group(name: &str) -> Command {
    put_group_with(name, GuardSettings::default())
}

/// The same, with services that no guard holds.
pub(crate) fn put_unguarded_group(name: &str) -> Command {
    put_group_with(name, GuardSettings::off())
}

/// The same, with services guarded like this.
pub(crate) fn put_group_with(name: &str, guard: GuardSettings) -> Command {
    let defaults = ServiceSettings {
        guard,
        ..ServiceSettings::default()
    };
    let settings = GroupSettings {
        auto_create: true,
        defaults,
        ..GroupSettings::default()
    };
    Command::PutGroup {
        group: group(name),
        settings,
        expected: Expected::Any,
    }
}

pub(crate) fn open_session() -> Command {
    Command::OpenSession {
        secret_digest: [7; 32],
        ttl_ms: 15_000,
        client: "test".into(),
    }
}

pub(crate) fn register(session: u64, paths: &[&str]) -> Command {
    Command::Register {
        session: Some(SessionId(session)),
        nodes: paths.iter().map(|path| register_node(path)).collect(),
    }
}

pub(crate) fn deregister(session: Option<u64>, path: &str) -> Command {
    let nodes = vec![DeregisterNode {
        key: node(path),
        expected: Expected::Any,
    }];
    Command::Deregister {
        session: session.map(SessionId),
        nodes,
    }
}

pub(crate) fn expire(term: u64, session: u64, last_renewal: u64) -> Command {
    let fence = ExpiryFence {
        session: SessionId(session),
        last_renewal: LogIndex(last_renewal),
    };
    Command::ExpireSessions {
        term: Term(term),
        sessions: vec![fence],
        following: Vec::new(),
    }
}

pub(crate) fn set_override(path: &str, over: Override) -> Command {
    Command::SetOverride {
        key: node(path),
        over,
    }
}

/// A directory with a log: each command is one entry of term 1, under a request id of its own.
pub(crate) struct Scene {
    pub(crate) directory: Directory,
    pub(crate) index: u64,
}

impl Scene {
    /// With group `prod`, which creates services by itself, and sessions 1 and 2.
    pub(crate) fn new(limits: Limits) -> Self {
        let mut scene = Self {
            directory: Directory::new(limits),
            index: 0,
        };
        scene.done(put_group("prod"));
        scene.done(open_session());
        scene.done(open_session());
        scene
    }

    pub(crate) fn apply(&mut self, command: Command) -> Applied {
        let id = RequestId(u128::from(self.index) + 1);
        self.apply_as(id, command)
    }

    pub(crate) fn apply_as(&mut self, id: RequestId, command: Command) -> Applied {
        self.index += 1;
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        self.directory.apply(at, &Request { id, command })
    }

    pub(crate) fn done(&mut self, command: Command) -> Outcome {
        self.apply(command).result.unwrap()
    }

    /// Applies a command that must be refused, and checks that it changed nothing.
    pub(crate) fn refused(&mut self, command: Command) -> Refusal {
        let (before, hash) = (self.directory.encode_snapshot(), self.directory.state_hash());
        let applied = self.apply(command);
        assert!(applied.changes.is_none(), "a refusal has no changes");
        assert_eq!(self.directory.state_hash(), hash, "a refusal changes nothing");
        assert_eq!(
            self.directory.encode_snapshot(),
            before,
            "a refusal changes nothing"
        );
        applied.result.unwrap_err()
    }
}
