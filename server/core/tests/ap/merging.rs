//! Merging two records: commutes, associates, repeats freely, and keeps nothing that is not sound.

use proptest::prelude::*;
use rollcall_core::ap::{Key, NodeValue, Record, SessionValue, Stamp, Standing, Value};
use rollcall_core::directory::NodeKind;
use rollcall_core::ids::{Incarnation, NodeKey, ServerId, SessionId};

use crate::scene;

/// Few values, so that ranks, claims and stamps are often equal. Nobody gives a stamp out twice, so records with the
/// same stamp are the same: what they say follows from it.
fn stamp() -> impl Strategy<Value = Stamp> {
    (0..3u64, 0..2u16, 1..4u64).prop_map(|(millis, counter, server)| Stamp {
        millis,
        counter,
        server: ServerId(server),
    })
}

fn seed_of(stamp: Stamp) -> u64 {
    stamp.millis * 7 + u64::from(stamp.counter) * 3 + stamp.server.0
}

fn held(bits: u64) -> Vec<NodeKey> {
    let nodes = ["prod/feed/a:1", "prod/feed/b:1", "prod/feed/c:1"];
    (0..3)
        .filter(|at| bits >> at & 1 == 1)
        .map(|at| scene::node(nodes[at]))
        .collect()
}

fn session() -> impl Strategy<Value = Record> {
    stamp().prop_map(|stamp| {
        let seed = seed_of(stamp);
        let standing = match seed % 7 {
            0 | 1 => Standing::Held,
            6 => Standing::Closed,
            bits => Standing::Lapsed {
                held: held(bits + seed / 2),
            },
        };
        let value = SessionValue {
            secret_digest: [0; 32],
            ttl_ms: 10_000,
            client: "test".into(),
            holder: stamp.server,
            claim: 1 + seed % 2,
            standing,
        };
        Record {
            key: Key::Session(SessionId(1)),
            value: Value::Session(Box::new(value)),
            stamp,
        }
    })
}

fn node() -> impl Strategy<Value = Record> {
    stamp().prop_map(|stamp| {
        let seed = seed_of(stamp);
        let value = (!seed.is_multiple_of(3)).then(|| {
            Box::new(NodeValue {
                registration: scene::registration("a:1"),
                kind: NodeKind::Ephemeral,
                session: Some(SessionId(seed % 2)),
                incarnation: Incarnation(seed),
            })
        });
        Record {
            key: Key::Node(scene::node("prod/feed/a:1")),
            value: Value::Node(value),
            stamp,
        }
    })
}

fn three() -> impl Strategy<Value = (Record, Record, Record)> {
    prop_oneof![(session(), session(), session()), (node(), node(), node())]
}

proptest! {
    #[test]
    fn merging_commutes_associates_and_repeats_freely((a, b, c) in three()) {
        prop_assert_eq!(a.merged(&b), b.merged(&a));
        prop_assert_eq!(a.merged(&b).merged(&c), a.merged(&b.merged(&c)));
        let both = a.merged(&b);
        prop_assert_eq!(both.merged(&a), both.clone());
        prop_assert_eq!(both.merged(&b), both.clone());
        prop_assert!(both.is_sound());
    }

    #[test]
    fn a_record_comes_back_from_its_bytes_and_from_nothing_shorter(record in prop_oneof![session(), node()]) {
        let bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes).unwrap(), record);
        for end in 0..bytes.len() {
            prop_assert!(Record::decode(&bytes[..end]).is_err());
        }
    }
}

#[test]
fn a_value_of_another_kind_or_another_node_is_not_sound() {
    let tombstone = Record {
        key: Key::Session(SessionId(1)),
        value: Value::Node(None),
        stamp: Stamp::default(),
    };
    assert!(!tombstone.is_sound());
    let elsewhere = Record {
        key: Key::Node(scene::node("prod/feed/b:1")),
        value: Value::Node(Some(Box::new(NodeValue {
            registration: scene::registration("a:1"),
            kind: NodeKind::Static,
            session: None,
            incarnation: Incarnation(1),
        }))),
        stamp: Stamp::default(),
    };
    assert!(!elsewhere.is_sound());
}
