//! Apply, sign, codecs.

use std::hint::black_box;

use rollcall_core::directory::{
    Command, DeregisterNode, Directory, Expected, ExpiryFence, LoggedRequest, NodeState, NodeView, Request,
    Sign, UpdateNode,
};
use rollcall_core::ids::{RequestId, Term};

use super::ground::{Ground, NODES_PER_SERVICE, NODES_PER_SESSION, key, register};
use crate::Case;

const NODES: u64 = 10_000;

pub(super) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("directory/register", 5_000, register_one),
        case("directory/register again", NODES, register_again),
        case("directory/register 100 of a service", 50, register_batch),
        case(
            "directory/register 1,000 of as many services",
            5,
            register_scattered,
        ),
        case("directory/update", NODES, update_one),
        case("directory/deregister", 5_000, deregister_one),
        case("directory/expire a session", 500, expire_one),
        case("directory/sign", 10_000, sign),
        case("directory/decode a request", 10_000, decode),
        case("directory/encode a request", 10_000, encode),
        case("directory/encode a snapshot of 10,000", 3, encode_snapshot),
        case("directory/decode a snapshot of 10,000", 3, decode_snapshot),
    ]
}

/// Requests are made before, with their ids, as they come out of the log: what is measured is apply.
fn apply_each(mut ground: Ground, commands: impl Iterator<Item = Command>) -> Box<dyn FnMut()> {
    let requests: Vec<_> = commands
        .enumerate()
        .map(|(index, command)| {
            let id = RequestId((1 << 64) + index as u128);
            LoggedRequest::of(Request { id, command }).0
        })
        .collect();
    let mut next = 0;
    Box::new(move || {
        let at = ground.position();
        let applied = ground
            .directory
            .apply_logged(at, &requests[next % requests.len()]);
        assert!(applied.result.is_ok(), "{:?}", applied.result);
        next += 1;
    })
}

fn register_one() -> Box<dyn FnMut()> {
    let (mut ground, _) = Ground::with(NODES);
    let session = ground.open();
    // Every service has a hundred already, and gets one more now and then.
    let numbers = (0..NODES / 2).map(|number| 1_000_000 + number);
    apply_each(ground, numbers.map(move |number| register(session, number)))
}

/// What these register, as one command.
fn together(commands: impl Iterator<Item = Command>) -> Command {
    let mut session = None;
    let mut all = Vec::new();
    for command in commands {
        if let Command::Register { session: by, nodes } = command {
            session = by;
            all.extend(nodes);
        }
    }
    Command::Register { session, nodes: all }
}

fn register_batch() -> Box<dyn FnMut()> {
    let (mut ground, _) = Ground::with(NODES);
    let session = ground.open();
    let batches = (0..50).map(move |batch| {
        let numbers = 1_000_000 + batch * NODES_PER_SERVICE..1_000_000 + (batch + 1) * NODES_PER_SERVICE;
        together(numbers.map(|number| register(session, number)))
    });
    apply_each(ground, batches)
}

/// A node in each of a thousand services, in an order that is not theirs.
fn register_scattered() -> Box<dyn FnMut()> {
    let (mut ground, _) = Ground::with(10 * NODES);
    let session = ground.open();
    let batches = (0..5).map(move |batch| {
        let services = (0..1_000).rev();
        // Of an id that is new in its service.
        let nodes = services.map(move |of| {
            let mut command = register(session, of * NODES_PER_SERVICE);
            if let Command::Register { nodes, .. } = &mut command {
                nodes[0].registration.id = key(1_000_000 + batch * 1_000 + of).node;
            }
            command
        });
        together(nodes)
    });
    apply_each(ground, batches)
}

fn register_again() -> Box<dyn FnMut()> {
    let (ground, sessions) = Ground::with(NODES);
    let commands = (0..NODES).map(move |number| {
        let mut command = register(sessions[(number / NODES_PER_SESSION) as usize], number);
        if let Command::Register { nodes, .. } = &mut command {
            nodes[0].registration.weight = 7;
        }
        command
    });
    apply_each(ground, commands)
}

fn update_one() -> Box<dyn FnMut()> {
    let (ground, sessions) = Ground::with(NODES);
    let commands = (0..NODES).map(move |number| {
        let update = UpdateNode {
            key: key(number),
            expected: Expected::Any,
            weight: Some(50),
            state: Some(NodeState::Up),
            labels: Default::default(),
            metadata: Default::default(),
        };
        Command::Update {
            session: Some(sessions[(number / NODES_PER_SESSION) as usize]),
            nodes: vec![update],
        }
    });
    apply_each(ground, commands)
}

fn deregister_one() -> Box<dyn FnMut()> {
    let (ground, sessions) = Ground::with(NODES);
    let commands = (0..NODES / 2).map(move |number| Command::Deregister {
        session: Some(sessions[(number / NODES_PER_SESSION) as usize]),
        nodes: vec![DeregisterNode {
            key: key(number),
            expected: Expected::Any,
        }],
    });
    apply_each(ground, commands)
}

/// Sessions with ten nodes each; of every service two lapse, which its guard allows.
fn expire_one() -> Box<dyn FnMut()> {
    let (ground, sessions) = Ground::with(5 * NODES);
    let fences: Vec<_> = sessions
        .iter()
        .filter_map(|session| ground.directory.session(*session))
        .map(|session| ExpiryFence {
            session: session.id,
            last_renewal: session.last_renewal,
        })
        .collect();
    // The tenth session of each service: a tenth of its nodes.
    let chosen: Vec<_> = fences.into_iter().step_by(10).collect();
    let commands = chosen.into_iter().map(|fence| Command::ExpireSessions {
        term: Term(1),
        sessions: vec![fence],
        following: Vec::new(),
    });
    apply_each(ground, commands)
}

fn sign() -> Box<dyn FnMut()> {
    let (ground, _) = Ground::with(100);
    let node = ground
        .directory
        .node(&key(0))
        .cloned()
        .expect("it was registered");
    Box::new(move || {
        black_box(Sign::of_node(NodeView::new(black_box(&node), None)));
    })
}

fn request() -> Request {
    let mut ground = Ground::new();
    Request {
        id: RequestId(1 << 100),
        command: register(ground.open(), 1),
    }
}

fn decode() -> Box<dyn FnMut()> {
    let bytes = request().encode();
    Box::new(move || {
        black_box(LoggedRequest::decode(black_box(&bytes))).expect("it was encoded");
    })
}

fn encode() -> Box<dyn FnMut()> {
    let request = request();
    Box::new(move || {
        black_box(black_box(&request).encode());
    })
}

fn encode_snapshot() -> Box<dyn FnMut()> {
    let (ground, _) = Ground::with(NODES);
    Box::new(move || {
        black_box(ground.directory.encode_snapshot());
    })
}

fn decode_snapshot() -> Box<dyn FnMut()> {
    let (ground, _) = Ground::with(NODES);
    let bytes = ground.directory.encode_snapshot();
    Box::new(move || {
        black_box(Directory::decode_snapshot(black_box(&bytes))).expect("it was encoded");
    })
}
