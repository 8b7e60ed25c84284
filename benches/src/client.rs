//! What a consumer does, and the wire.

use std::hint::black_box;

use prost::Message;
use rollcall_client::{Choice, Picker, ServiceView, v1};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("client/pick of 100, round robin", 10_000, || {
            pick(Choice::RoundRobin)
        }),
        case("client/pick of 100, random", 10_000, || pick(Choice::Random)),
        case("wire/decode a view of 100", 200, decode_view),
        case("wire/encode a delta", 5_000, encode_delta),
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

fn encode_delta() -> Box<dyn FnMut()> {
    let delta = v1::ServiceDelta {
        key: Some(key()),
        revision: 7,
        sign: Some(v1::Sign { high: 1, low: 2 }),
        put: vec![node(1)],
        ..v1::ServiceDelta::default()
    };
    let frame = v1::WatchFrame {
        frame: Some(v1::watch_frame::Frame::Delta(delta)),
    };
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
