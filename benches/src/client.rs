//! What a consumer does, and the wire.

use std::hint::black_box;

use bytes::Bytes;
use prost::Message;
use rollcall_client::measured::Held;
use rollcall_client::{Choice, Node, Picker, ServiceView, Sign, v1};

use crate::Case;

const CHANGES: u64 = 2_000;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("client/pick of 100, round robin", 10_000, || {
            pick(Choice::RoundRobin)
        }),
        case("client/pick of 100, random", 10_000, || pick(Choice::Random)),
        case("client/take a change of 1 of 100", CHANGES, take_change),
        case("wire/decode a view of 100", 200, decode_view),
        case("wire/encode a delta", 5_000, encode_delta),
        case("wire/encode an answer with a view of 100", 5_000, encode_answer),
        case("wire/decode an answer with a view of 100", 5_000, decode_answer),
        case("wire/decode a query", 10_000, decode_query),
        case("wire/decode a registration", 5_000, decode_registration),
    ]
}

fn node(number: u32) -> v1::Node {
    let address = v1::Address {
        name: "http".into(),
        host: "10.0.0.1".into(),
        port: 8080,
    };
    v1::Node {
        id: format!("node-{number}"),
        addresses: vec![address],
        weight: 100,
        metadata: [("data".to_owned(), "m".repeat(180))].into(),
        kind: v1::NodeKind::Ephemeral.into(),
        state: v1::NodeState::Up.into(),
        incarnation: 1,
        created_revision: 5,
        modified_revision: 5,
        session: 9,
        ..v1::Node::default()
    }
}

fn key() -> v1::ServiceKey {
    v1::ServiceKey {
        group: "bench".into(),
        service: "service".into(),
    }
}

fn view() -> v1::ServiceView {
    v1::ServiceView {
        key: Some(key()),
        sign: Some(v1::Sign { high: 1, low: 2 }),
        revision: 7,
        nodes: (0..100).map(node).collect(),
        ..v1::ServiceView::default()
    }
}

fn pick(choice: Choice) -> Box<dyn FnMut()> {
    let view = ServiceView::given(view());
    let picker = Picker::new(choice);
    Box::new(move || {
        black_box(picker.pick(black_box(&view)));
    })
}

fn decode_view() -> Box<dyn FnMut()> {
    let bytes = view().encode_to_vec();
    Box::new(move || {
        let view = v1::ServiceView::decode(black_box(&bytes[..])).expect("it was encoded");
        black_box(ServiceView::given(view));
    })
}

/// One node changes its weight, to and fro.
fn take_change() -> Box<dyn FnMut()> {
    let mut given = view();
    let mut changed = given.nodes[50].clone();
    let sign_with = |weight: u32| {
        let mut nodes = given.nodes.clone();
        nodes[50].weight = weight;
        let nodes: Vec<Node> = nodes.into_iter().map(Node::from).collect();
        Some(Sign::of_nodes(&nodes).into())
    };
    let signs: [Option<v1::Sign>; 2] = [sign_with(100), sign_with(101)];
    given.sign = signs[0];
    let frames: Vec<Vec<u8>> = (1..=CHANGES)
        .map(|change| {
            changed.weight = 100 + (change % 2) as u32;
            changed.modified_revision = given.revision + change;
            let delta = v1::ServiceDelta {
                key: Some(key()),
                revision: given.revision + change,
                sign: signs[(change % 2) as usize],
                put: vec![changed.clone()],
                ..v1::ServiceDelta::default()
            };
            frame(delta).encode_to_vec()
        })
        .collect();
    let mut held = Held::given(given);
    let mut next = 0;
    Box::new(move || {
        assert!(held.take(black_box(&frames[next])), "it follows on what is held");
        next += 1;
    })
}

fn frame(delta: v1::ServiceDelta) -> v1::WatchFrame {
    v1::WatchFrame {
        frame: Some(v1::watch_frame::Frame::Delta(delta)),
    }
}

/// The view is encoded already, as servers have it.
fn answer() -> v1::DiscoverResponse {
    let found = v1::QueryResponse {
        header: Some(v1::ResponseHeader {
            cluster: "bench".into(),
            server: 1,
            revision: 7,
            read_mode: v1::ReadMode::Local.into(),
            ..v1::ResponseHeader::default()
        }),
        view: Some(view().encode_to_vec().into()),
        ..v1::QueryResponse::default()
    };
    v1::DiscoverResponse {
        call: 7,
        answer: Some(v1::discover_response::Answer::Found(found)),
    }
}

fn encode_answer() -> Box<dyn FnMut()> {
    let answer = answer();
    Box::new(move || {
        black_box(black_box(&answer).encode_to_vec());
    })
}

/// Without the view in it: that is decoded by itself.
fn decode_answer() -> Box<dyn FnMut()> {
    let bytes = Bytes::from(answer().encode_to_vec());
    Box::new(move || {
        let answer = v1::DiscoverResponse::decode(black_box(bytes.clone()));
        black_box(answer).expect("it was encoded");
    })
}

fn decode_query() -> Box<dyn FnMut()> {
    let query = v1::QueryRequest {
        key: Some(key()),
        read: Some(v1::ReadOptions {
            mode: v1::ReadMode::Local.into(),
            ..v1::ReadOptions::default()
        }),
        known_sign: Some(v1::Sign { high: 1, low: 2 }),
        consumer: "0123456789abcdef0123456789abcdef".into(),
        ..v1::QueryRequest::default()
    };
    let bytes = v1::DiscoverRequest {
        call: 7,
        query: Some(query),
        timeout_ms: 1_000,
    }
    .encode_to_vec();
    Box::new(move || {
        black_box(v1::DiscoverRequest::decode(black_box(&bytes[..]))).expect("it was encoded");
    })
}

fn encode_delta() -> Box<dyn FnMut()> {
    let delta = v1::ServiceDelta {
        key: Some(key()),
        revision: 7,
        sign: Some(v1::Sign { high: 1, low: 2 }),
        put: vec![node(1)],
        ..v1::ServiceDelta::default()
    };
    let frame = frame(delta);
    Box::new(move || {
        black_box(black_box(&frame).encode_to_vec());
    })
}

fn decode_registration() -> Box<dyn FnMut()> {
    let given = node(1);
    let registration = v1::Registration {
        id: given.id,
        addresses: given.addresses,
        metadata: given.metadata,
        ..v1::Registration::default()
    };
    let register = v1::RegisterRequest {
        nodes: vec![v1::RegisterNode {
            key: Some(key()),
            registration: Some(registration),
            expected: None,
        }],
        ..v1::RegisterRequest::default()
    };
    let bytes = v1::SessionRequest {
        call: 7,
        session: 9,
        request: Some(v1::session_request::Request::Register(register)),
    }
    .encode_to_vec();
    Box::new(move || {
        black_box(v1::SessionRequest::decode(black_box(&bytes[..]))).expect("it was encoded");
    })
}
