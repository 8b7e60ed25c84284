//! Records that merge.

use std::hint::black_box;

use rollcall_core::ap::{Key, NodeValue, Record, Replica, Seq, Stamp, Value};
use rollcall_core::directory::{Directory, GroupMode, Limits, NodeKind};
use rollcall_core::ids::{Incarnation, ServerId};

use super::ground::{define_group, key, registration};
use crate::Case;

const NODES: u64 = 5_000;
const NOW_MS: u64 = 1_000_000;

pub(super) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("ap/merge a node", NODES, merge_new),
        case("ap/merge a newer word", NODES, merge_newer),
        case("ap/merge what is known", NODES, merge_known),
        case("ap/decode a record", NODES, decode),
    ]
}

/// Persistent, so that no session has to vouch for it.
fn record(number: u64, millis: u64) -> Record {
    let mut registration = registration(number);
    registration.kind = Some(NodeKind::Persistent);
    Record {
        key: Key::Node(key(number)),
        value: Value::Node(Some(Box::new(NodeValue {
            registration,
            kind: NodeKind::Persistent,
            session: None,
            incarnation: Incarnation(1),
        }))),
        stamp: Stamp {
            millis,
            counter: 0,
            server: ServerId(2),
        },
    }
}

/// Takes in records one by one, after those of `before`.
fn merge(before: Option<u64>, millis: u64) -> Box<dyn FnMut()> {
    let mut view = Directory::new(Limits::default()).serving(GroupMode::Ap);
    let floor = Stamp {
        millis: 0,
        counter: 0,
        server: ServerId(1),
    };
    let mut replica = Replica::new(ServerId(1), floor, Seq(0));
    let defined = replica.define(&mut view, &define_group(GroupMode::Ap));
    assert!(defined.is_ok(), "{defined:?}");
    if let Some(millis) = before {
        let known = (0..NODES).map(|number| record(number, millis)).collect();
        replica.merge(&mut view, NOW_MS, 500, known);
    }
    let mut records = (0..NODES)
        .map(|number| record(number, millis))
        .collect::<Vec<_>>()
        .into_iter();
    Box::new(move || {
        let one = records.by_ref().take(1).collect();
        assert_eq!(black_box(replica.merge(&mut view, NOW_MS, 500, one)).taken, 1);
    })
}

fn merge_new() -> Box<dyn FnMut()> {
    merge(None, NOW_MS)
}

fn merge_newer() -> Box<dyn FnMut()> {
    merge(Some(NOW_MS - 10), NOW_MS)
}

fn merge_known() -> Box<dyn FnMut()> {
    merge(Some(NOW_MS), NOW_MS)
}

fn decode() -> Box<dyn FnMut()> {
    let bytes = record(1, NOW_MS).encode();
    Box::new(move || {
        black_box(Record::decode(black_box(&bytes))).expect("it was encoded");
    })
}
