//! What a committed write costs: applying it, encoding it, snapshots. Run by `cargo bench`; `cargo test` runs it
//! with small numbers, to see that it works.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use rollcall_core::directory::{
    Address, Command, Directory, Expected, GroupSettings, Limits, NodeState, RegisterNode, Registration,
    Request, UpdateNode,
};
use rollcall_core::ids::{LogIndex, LogPosition, NodeKey, RequestId, ServiceKey, SessionId, Term};

/// Nodes of one service, and of the whole directory.
const NODES_PER_SERVICE: usize = 1_000;

struct Bench {
    directory: Directory,
    index: u64,
}

impl Bench {
    fn apply(&mut self, command: Command) -> anyhow::Result<Option<SessionId>> {
        self.index += 1;
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        Ok(self.directory.apply(at, &request).result?.session)
    }
}

fn main() -> anyhow::Result<()> {
    let nodes = if std::env::args().any(|argument| argument == "--bench") {
        100_000
    } else {
        2_000
    };
    let mut bench = Bench {
        directory: Directory::new(Limits::default()),
        index: 0,
    };
    bench.apply(Command::PutGroup {
        group: "bench".parse()?,
        settings: GroupSettings {
            auto_create: true,
            ..GroupSettings::default()
        },
        expected: Expected::Any,
    })?;
    let mut sessions = Vec::new();
    for _ in 0..nodes / 100 {
        let open = Command::OpenSession {
            secret_digest: [7; 32],
            ttl_ms: 15_000,
            client: "bench".into(),
        };
        sessions.extend(bench.apply(open)?);
    }

    let started = Instant::now();
    for number in 0..nodes {
        let command = Command::Register {
            session: Some(sessions[number / 100]),
            nodes: vec![node(number)?],
        };
        bench.apply(command)?;
    }
    report("register, one node", nodes, started.elapsed());

    let started = Instant::now();
    for number in 0..nodes {
        let key = NodeKey {
            service: service(number)?,
            node: format!("node-{number}").parse()?,
        };
        let update = UpdateNode {
            key,
            expected: Expected::Any,
            weight: Some(50),
            state: Some(NodeState::Up),
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        bench.apply(Command::Update {
            session: Some(sessions[number / 100]),
            nodes: vec![update],
        })?;
    }
    report("update, one node", nodes, started.elapsed());

    let request = Request {
        id: RequestId(1),
        command: Command::Register {
            session: Some(sessions[0]),
            nodes: vec![node(0)?],
        },
    };
    let encoded = request.encode();
    let started = Instant::now();
    for _ in 0..nodes {
        black_box(Request::decode(black_box(&encoded))?.encode());
    }
    report(
        &format!("decode and encode a request of {} bytes", encoded.len()),
        nodes,
        started.elapsed(),
    );

    let started = Instant::now();
    let snapshot = bench.directory.encode_snapshot();
    report(
        &format!("encode a snapshot of {} bytes, per node", snapshot.len()),
        nodes,
        started.elapsed(),
    );
    let started = Instant::now();
    let read = Directory::decode_snapshot(&snapshot)?;
    report("decode it, per node", nodes, started.elapsed());
    anyhow::ensure!(
        read.state_hash() == bench.directory.state_hash(),
        "the snapshot is another state"
    );
    Ok(())
}

fn service(number: usize) -> anyhow::Result<ServiceKey> {
    let service = format!("service-{}", number / NODES_PER_SERVICE).parse()?;
    Ok(ServiceKey {
        group: "bench".parse()?,
        service,
    })
}

fn node(number: usize) -> anyhow::Result<RegisterNode> {
    let address = Address {
        name: "http".into(),
        host: "10.0.0.1".into(),
        port: 8080,
    };
    let registration = Registration {
        id: format!("node-{number}").parse()?,
        addresses: vec![address],
        weight: 100,
        labels: [("zone".into(), "a".into()), ("version".into(), "1.2.3".into())].into(),
        metadata: Default::default(),
        kind: None,
        state: NodeState::Up,
    };
    Ok(RegisterNode {
        key: service(number)?,
        registration,
        expected: Expected::Any,
    })
}

fn report(what: &str, times: usize, took: Duration) {
    let each = took.as_secs_f64() / times as f64;
    println!(
        "{what:<55} {:>9.2} us each, {:>10.0} a second",
        each * 1e6,
        1.0 / each.max(1e-12)
    );
}
