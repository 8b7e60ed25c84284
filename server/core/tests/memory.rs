//! What a node and a session take up. A test of its own, for nothing else may run in the process meanwhile.

#![cfg(target_os = "linux")]

use rollcall_core::directory::{
    Address, ChangeLogBounds, Command, Directory, Expected, GroupMode, GroupSettings, Limits, NodeState,
    RegisterNode, Registration, Request,
};
use rollcall_core::ids::{LogIndex, LogPosition, RequestId, ServiceKey, SessionId, Term};

const NODES: u64 = 40_000;
const SESSIONS: u64 = 40_000;
const NODES_PER_SERVICE: u64 = 100;
const NODES_PER_SESSION: u64 = 10;

/// Of a node with 200 bytes of metadata, what is remembered of its registration included: 667 when this was written.
const NODE_BYTES_MAX: u64 = 760;
/// Of a session that owns nothing, what is remembered of its opening included: 270.
const SESSION_BYTES_MAX: u64 = 310;

/// Memory of this process that no file stands for.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells of each process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes
        .and_then(|number| number.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

struct Ground {
    directory: Directory,
    index: u64,
}

impl Ground {
    fn apply(&mut self, command: Command) -> Option<SessionId> {
        self.index += 1;
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        // As it comes out of the log.
        let request = Request::decode(&request.encode()).expect("it was encoded");
        self.directory
            .apply(at, &request)
            .result
            .expect("it is allowed")
            .session
    }

    fn open(&mut self) -> SessionId {
        let open = Command::OpenSession {
            secret_digest: [7; 32],
            ttl_ms: 15_000,
            client: "feed-server-17".into(),
        };
        self.apply(open).expect("a session was opened")
    }
}

fn node(number: u64) -> RegisterNode {
    let address = Address {
        name: "http".into(),
        host: format!("10.{}.{}.{}", number >> 16, number >> 8 & 0xff, number & 0xff),
        port: 8080,
    };
    RegisterNode {
        key: ServiceKey {
            group: "prod".parse().expect("a name"),
            service: format!("service-{}", number / NODES_PER_SERVICE)
                .parse()
                .expect("a name"),
        },
        registration: Registration {
            id: format!("node-{number}").parse().expect("a name"),
            addresses: vec![address].into(),
            weight: 100,
            labels: [("zone".into(), "a".into()), ("version".into(), "1.2.3".into())].into(),
            metadata: [("data".into(), "m".repeat(196))].into(),
            kind: None,
            state: NodeState::Up,
        },
        expected: Expected::Any,
    }
}

#[test]
fn nodes_and_sessions_are_small() {
    let few = ChangeLogBounds {
        revisions_max: 1,
        bytes_max: 1,
    };
    let mut ground = Ground {
        directory: Directory::new(Limits::default()).with_change_log(few),
        index: 0,
    };
    ground.apply(Command::PutGroup {
        group: "prod".parse().expect("a name"),
        settings: GroupSettings {
            mode: GroupMode::Cp,
            auto_create: true,
            ..GroupSettings::default()
        },
        expected: Expected::Any,
    });
    let empty = resident();
    for _ in 0..SESSIONS {
        ground.open();
    }
    let with_sessions = resident();
    for number in 0..NODES {
        ground.apply(Command::Register {
            session: Some(SessionId(1 + number / NODES_PER_SESSION)),
            nodes: vec![node(number)],
        });
    }
    let session = (with_sessions - empty) / SESSIONS;
    let node = (resident() - with_sessions) / NODES;
    println!("a session takes {session} bytes, a node {node}");
    assert!(session <= SESSION_BYTES_MAX, "a session takes {session} bytes");
    assert!(node <= NODE_BYTES_MAX, "a node takes {node} bytes");
}
