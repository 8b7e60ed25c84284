//! Every way to be refused, each checked to change nothing; and what is never refused.

use std::collections::BTreeMap;

use rollcall_core::directory::{
    Address, Addresses, Command, Expected, GroupSettings, Limits, NodeKind, NodeState, Override, Refusal,
    Request, ServiceSettings,
};
use rollcall_core::ids::{GroupName, LogPosition, NameError, RequestId, Revision, SessionId};

use crate::scene::{
    Scene, deregister, group, node, open_session, put_group, register, register_node, registration, service,
    set_override, update_node,
};

type Change = dyn Fn(&mut rollcall_core::directory::Registration);

fn scene() -> Scene {
    let mut scene = Scene::new(Limits::default());
    scene.done(register(1, &["prod/feed/a:80"]));
    scene
}

fn field_of(refusal: Refusal) -> String {
    match refusal {
        Refusal::Invalid { field, .. } => field,
        other => panic!("expected an invalid field, found: {other}"),
    }
}

#[test]
fn unknown_groups_services_nodes_and_sessions_are_named() {
    let mut scene = scene();
    let closed = Command::PutGroup {
        group: group("closed"),
        settings: GroupSettings::default(),
        expected: Expected::Any,
    };
    scene.done(closed);
    assert_eq!(
        scene.refused(register(1, &["none/feed/a:80"])),
        Refusal::GroupNotFound { group: group("none") }
    );
    let missing = Refusal::ServiceNotFound {
        key: service("closed/feed"),
    };
    assert_eq!(scene.refused(register(1, &["closed/feed/a:80"])), missing);
    assert_eq!(scene.refused(deregister(None, "closed/feed/a:80")), missing);
    assert_eq!(
        scene.refused(set_override("closed/feed/a:80", Override::default())),
        missing
    );
    assert_eq!(
        scene.refused(Command::ClearOverride {
            key: node("closed/feed/a:80")
        }),
        missing
    );
    let update = Command::Update {
        session: None,
        nodes: vec![update_node("prod/feed/z:80")],
    };
    assert_eq!(
        scene.refused(update),
        Refusal::NodeNotFound {
            key: node("prod/feed/z:80")
        }
    );
    let missing = Refusal::SessionNotFound {
        session: SessionId(9),
    };
    assert_eq!(scene.refused(register(9, &["prod/feed/a:80"])), missing);
    assert_eq!(scene.refused(deregister(Some(9), "prod/feed/a:80")), missing);
    assert_eq!(
        scene.refused(Command::CloseSession {
            session: SessionId(9)
        }),
        missing
    );
}

#[test]
fn stale_conditions_tell_what_the_record_is_at() {
    let mut scene = scene();
    let mut stale = register_node("prod/feed/a:80");
    stale.expected = Expected::Revision(Revision(1));
    assert_eq!(
        scene.refused(Command::Register {
            session: Some(SessionId(1)),
            nodes: vec![stale.clone()]
        }),
        Refusal::RevisionMismatch {
            subject: "node prod/feed/a:80".into(),
            expected: Revision(1),
            current: Revision(4)
        }
    );
    stale.expected = Expected::Absent;
    assert_eq!(
        scene.refused(Command::Register {
            session: Some(SessionId(1)),
            nodes: vec![stale]
        }),
        Refusal::AlreadyExists {
            subject: "node prod/feed/a:80".into(),
            current: Revision(4)
        }
    );
    let delete = Command::DeleteGroup {
        group: group("prod"),
        expected: Expected::Revision(Revision(0)),
    };
    assert!(matches!(scene.refused(delete), Refusal::RevisionMismatch { .. }));
    let mut absent = update_node("prod/feed/a:80");
    absent.expected = Expected::Absent;
    assert_eq!(
        field_of(scene.refused(Command::Update {
            session: None,
            nodes: vec![absent]
        })),
        "expected"
    );
}

#[test]
fn what_is_not_empty_stays() {
    let mut scene = scene();
    let delete = Command::DeleteGroup {
        group: group("prod"),
        expected: Expected::Any,
    };
    assert_eq!(
        scene.refused(delete),
        Refusal::NotEmpty {
            subject: "group prod".into(),
            children: "1 services".into()
        }
    );
    let delete = Command::DeleteService {
        key: service("prod/feed"),
        expected: Expected::Any,
    };
    assert_eq!(
        scene.refused(delete),
        Refusal::NotEmpty {
            subject: "service prod/feed".into(),
            children: "1 nodes".into()
        }
    );
}

#[test]
fn foreign_nodes_are_left_alone() {
    let mut scene = scene();
    let refusal = Refusal::NotOwner {
        key: node("prod/feed/a:80"),
    };
    assert_eq!(scene.refused(deregister(Some(2), "prod/feed/a:80")), refusal);
    let update = Command::Update {
        session: Some(SessionId(2)),
        nodes: vec![update_node("prod/feed/a:80")],
    };
    assert_eq!(scene.refused(update), refusal);
}

#[test]
fn a_request_id_names_one_request() {
    let mut scene = scene();
    let first = scene.apply_as(RequestId(77), open_session());
    let again = scene.apply_as(RequestId(77), open_session());
    let (first, again) = (first.result.unwrap(), again.result.unwrap());
    assert_eq!(
        (again.session, again.revision, again.repeated),
        (first.session, first.revision, true)
    );
    let hash = scene.directory.state_hash();
    let other = scene.apply_as(RequestId(77), put_group("other"));
    assert_eq!(other.result, Err(Refusal::RequestIdReused { id: RequestId(77) }));
    assert_eq!(scene.directory.state_hash(), hash);
}

#[test]
fn the_oldest_request_is_forgotten_first() {
    let mut scene = Scene::new(Limits {
        requests_max: 1_500,
        ..Limits::default()
    });
    scene.done(register(1, &["prod/feed/a:80"]));
    for request in 10_000..11_500 {
        scene
            .apply_as(RequestId(request), deregister(None, "prod/feed/z:80"))
            .result
            .unwrap();
    }
    assert_eq!(scene.directory.totals().requests, 1_500);
    let first = scene
        .apply_as(RequestId(10_000), deregister(None, "prod/feed/z:80"))
        .result
        .unwrap();
    assert!(first.repeated);
    scene.apply_as(RequestId(20_000), open_session()).result.unwrap();
    let first = scene
        .apply_as(RequestId(10_000), deregister(None, "prod/feed/z:80"))
        .result
        .unwrap();
    assert!(!first.repeated, "its place was needed");
    let limits = Limits {
        requests_max: 1,
        ..scene.directory.limits().clone()
    };
    scene.done(Command::SetLimits { limits });
    assert_eq!(scene.directory.totals().requests, 1);
}

#[test]
fn too_large_names_size_and_bound() {
    let mut scene = scene();
    let mut big = register_node("prod/feed/b:80");
    big.registration.metadata.insert("k".into(), "v".repeat(4_096));
    let refusal = scene.refused(Command::Register {
        session: Some(SessionId(1)),
        nodes: vec![big],
    });
    assert_eq!(
        refusal,
        Refusal::TooLarge {
            what: "metadata".into(),
            size: 4_097,
            size_max: 4_096
        }
    );
    assert_eq!(refusal.to_string(), "metadata is 4097, at most 4096 is allowed");
    let batch: Vec<_> = (0..1_001)
        .map(|n| register_node(&format!("prod/feed/n{n}:80")))
        .collect();
    let refusal = scene.refused(Command::Register {
        session: Some(SessionId(1)),
        nodes: batch,
    });
    assert_eq!(
        refusal,
        Refusal::TooLarge {
            what: "nodes".into(),
            size: 1_001,
            size_max: 1_000
        }
    );
    // Updates may not grow a node beyond it either.
    let mut update = update_node("prod/feed/a:80");
    update.metadata = BTreeMap::from([("k".into(), Some("v".repeat(4_096)))]);
    let refusal = scene.refused(Command::Update {
        session: None,
        nodes: vec![update],
    });
    assert!(matches!(refusal, Refusal::TooLarge { .. }));
}

#[test]
fn quotas_hold_for_everything_that_can_pile_up() {
    let limits = Limits {
        groups_max: 2,
        services_per_group_max: 2,
        nodes_per_service_max: 2,
        overrides_per_service_max: 1,
        sessions_max: 3,
        nodes_per_session_max: 3,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    let quota = |scene: &mut Scene, command| match scene.refused(command) {
        Refusal::QuotaExceeded { subject, quota, of } => format!("{subject}: {quota} {of}"),
        other => panic!("expected a quota, found: {other}"),
    };
    scene.done(put_group("other"));
    assert_eq!(quota(&mut scene, put_group("third")), "the cluster: 2 groups");
    scene.done(open_session());
    assert_eq!(quota(&mut scene, open_session()), "the cluster: 3 sessions");
    let three = register(1, &["prod/a/1:80", "prod/b/1:80", "prod/c/1:80"]);
    assert_eq!(quota(&mut scene, three), "group prod: 2 services");
    let three = register(1, &["prod/a/1:80", "prod/a/2:80", "prod/a/3:80"]);
    assert_eq!(quota(&mut scene, three), "service prod/a: 2 nodes");
    scene.done(register(1, &["prod/a/1:80", "prod/a/2:80", "prod/b/1:80"]));
    assert_eq!(
        quota(&mut scene, register(1, &["prod/b/2:80"])),
        "session 1: 3 nodes"
    );
    scene.done(set_override(
        "prod/a/1:80",
        Override {
            weight: Some(1),
            ..Override::default()
        },
    ));
    let second = set_override("prod/a/2:80", Override::default());
    assert_eq!(quota(&mut scene, second), "service prod/a: 1 overrides");
    // What is there may be said again, taken over and replaced.
    scene.done(register(1, &["prod/a/1:80", "prod/a/2:80", "prod/b/1:80"]));
    scene.done(register(2, &["prod/a/1:80"]));
    scene.done(set_override(
        "prod/a/1:80",
        Override {
            weight: Some(2),
            ..Override::default()
        },
    ));
    // A service's own quota goes before the limit.
    let settings = Some(ServiceSettings {
        nodes_max: 3,
        ..ServiceSettings::default()
    });
    scene.done(Command::PutService {
        key: service("prod/a"),
        settings,
        expected: Expected::Any,
    });
    scene.done(register(1, &["prod/a/3:80"]));
    assert_eq!(
        quota(&mut scene, register(2, &["prod/a/4:80"])),
        "service prod/a: 3 nodes"
    );
}

/// It may have come with more from the other mode, or the limit was lowered.
#[test]
fn a_session_with_more_nodes_than_it_may_have_says_again_what_it_has_and_gains_nothing() {
    let mut scene = Scene::new(Limits::default());
    let three = ["prod/a/1:80", "prod/a/2:80", "prod/b/1:80"];
    scene.done(register(1, &three));
    let limits = Limits {
        nodes_per_session_max: 2,
        ..Limits::default()
    };
    scene.done(Command::SetLimits { limits });
    scene.done(register(1, &three));
    let mut heavier = register_node("prod/a/1:80");
    heavier.registration.weight = 7;
    assert!(
        scene
            .done(Command::Register {
                session: Some(SessionId(1)),
                nodes: vec![heavier],
            })
            .changed
    );
    let refused = scene.refused(register(1, &["prod/a/1:80", "prod/a/3:80"]));
    assert!(
        matches!(refused, Refusal::QuotaExceeded { quota: 2, .. }),
        "{refused}"
    );
}

#[test]
fn wrong_fields_are_named() {
    let mut scene = scene();
    let mut wrong = |change: &dyn Fn(&mut rollcall_core::directory::Registration)| {
        let mut node = register_node("prod/feed/b:80");
        change(&mut node.registration);
        let session = Some(SessionId(1));
        match scene.refused(Command::Register {
            session,
            nodes: vec![node],
        }) {
            Refusal::Invalid { field, .. } => field,
            Refusal::TooLarge { what, .. } => format!("{what} too large"),
            other => panic!("unexpected: {other}"),
        }
    };
    assert_eq!(wrong(&|r| r.addresses = Addresses::new()), "addresses");
    let mut wrong_address = |change: &dyn Fn(&mut Vec<Address>)| {
        wrong(&|r| {
            let mut addresses = Vec::from(&r.addresses);
            change(&mut addresses);
            r.addresses = addresses.into();
        })
    };
    assert_eq!(wrong_address(&|a| a.push(a[0].clone())), "address.name");
    assert_eq!(wrong_address(&|a| a[0].port = 0), "address.port");
    assert_eq!(wrong_address(&|a| a[0].host.clear()), "address.host");
    assert_eq!(wrong_address(&|a| a[0].host = "a b".into()), "address.host");
    assert_eq!(
        wrong_address(&|a| a[0].host = "h".repeat(254)),
        "address.host too large"
    );
    let many = |n: u16| Address {
        name: format!("p{n}"),
        host: "h".into(),
        port: 1,
    };
    assert_eq!(
        wrong_address(&|a| *a = (0..17).map(many).collect()),
        "addresses too large"
    );
    assert_eq!(wrong(&|r| r.state = NodeState::Suspect), "state");
    assert_eq!(
        wrong(&|r| drop(r.labels.insert(String::new(), "v".into()))),
        "labels"
    );
    assert_eq!(
        wrong(&|r| drop(r.labels.insert("k".into(), "a\nb".into()))),
        "labels"
    );
    assert_eq!(
        wrong(&|r| drop(r.labels.insert("k".into(), "v".repeat(1_025)))),
        "labels too large"
    );
    assert_eq!(
        wrong(&|r| drop(r.labels.insert("k".repeat(129), "v".into()))),
        "labels too large"
    );
    assert_eq!(
        wrong(&|r| r.labels = (0..65).map(|n| (n.to_string(), "v".into())).collect()),
        "labels too large"
    );
}

#[test]
fn wrong_commands_are_named() {
    let mut scene = scene();
    let node = register_node("prod/feed/b:80");
    let no_session = Command::Register {
        session: None,
        nodes: vec![node.clone()],
    };
    assert_eq!(field_of(scene.refused(no_session)), "session");
    let twice = Command::Register {
        session: Some(SessionId(1)),
        nodes: vec![node.clone(), node],
    };
    assert_eq!(field_of(scene.refused(twice)), "nodes");
    assert_eq!(field_of(scene.refused(register(1, &[]))), "nodes");
    let no_ttl = Command::OpenSession {
        secret_digest: [0; 32],
        ttl_ms: 0,
        client: String::new(),
    };
    assert_eq!(field_of(scene.refused(no_ttl)), "ttl_ms");
    let limits = Limits {
        batch_max: 0,
        ..Limits::default()
    };
    assert_eq!(
        field_of(scene.refused(Command::SetLimits { limits })),
        "limits.batch_max"
    );
    let no_session_kind = {
        let mut node = register_node("prod/feed/b:80");
        node.registration.kind = Some(NodeKind::Persistent);
        Command::Register {
            session: None,
            nodes: vec![node],
        }
    };
    scene.done(no_session_kind);
}

#[test]
fn names_are_refused_where_they_are_read() {
    let deep = "a/b/c/d/e/f/g/h/i".parse::<GroupName>().unwrap_err();
    assert!(matches!(deep, NameError::TooDeep { segments: 9, .. }));
    let refusal = Refusal::from(deep);
    assert_eq!(Refusal::decode(&refusal.encode()), Ok(refusal.clone()));
    assert_eq!(
        refusal.to_string(),
        "group \"a/b/c/d/e/f/g/h/i\" has 9 segments, at most 8 are allowed"
    );
    assert!("a//b".parse::<GroupName>().is_err());
    assert!("".parse::<GroupName>().is_err());
    assert!("a".repeat(129).parse::<GroupName>().is_err());
    // A name inside bytes is checked as well.
    let request = Request {
        id: RequestId(1),
        command: put_group("prod"),
    };
    let mut bytes = request.encode().to_vec();
    let place = bytes.windows(4).position(|window| window == b"prod").unwrap();
    bytes[place] = b' ';
    assert!(Request::decode(&bytes).is_err());
}

#[test]
fn a_held_clone_never_changes() {
    let mut scene = scene();
    let held = scene.directory.clone();
    let (bytes, hash) = (held.encode_snapshot(), held.state_hash());
    let service_before = held.service(&service("prod/feed")).unwrap().clone();
    scene.done(register(2, &["prod/feed/a:80", "prod/web/b:80"]));
    scene.done(Command::CloseSession {
        session: SessionId(1),
    });
    scene.done(set_override(
        "prod/feed/a:80",
        Override {
            weight: Some(0),
            ..Override::default()
        },
    ));
    assert_eq!((held.encode_snapshot(), held.state_hash()), (bytes, hash));
    assert_eq!(service_before.nodes.len(), 1);
    assert_eq!(held.revision(), Revision(4));
}

#[test]
fn changes_are_kept_within_bounds_and_found_by_revision() {
    let mut scene = Scene::new(Limits::default());
    let bounds = rollcall_core::directory::ChangeLogBounds {
        revisions_max: 5,
        bytes_max: 1 << 20,
    };
    scene.directory = scene.directory.with_change_log(bounds);
    for n in 0..20 {
        scene.done(register(1, &[&format!("prod/feed/n{n}:80")]));
    }
    let changes = scene.directory.changes();
    assert_eq!(
        (changes.floor(), changes.head(), changes.len()),
        (Revision(18), Revision(23), 5)
    );
    let revisions = |after, max| {
        let range = changes.range(Revision(after), max)?;
        Ok::<_, rollcall_core::directory::BelowFloor>(
            range.iter().map(|change| change.revision.0).collect::<Vec<_>>(),
        )
    };
    assert_eq!(revisions(18, 100), Ok(vec![19, 20, 21, 22, 23]));
    assert_eq!(revisions(20, 2), Ok(vec![21, 22]));
    assert_eq!(revisions(23, 100), Ok(vec![]));
    assert!(revisions(17, 100).is_err());
    assert!(
        revisions(24, 100).is_err(),
        "a reader from another history must read the state"
    );
    let bounds = rollcall_core::directory::ChangeLogBounds {
        revisions_max: 5,
        bytes_max: 1,
    };
    let small = scene.directory.clone().with_change_log(bounds);
    assert_eq!(small.changes().len(), 1, "the newest revision is always kept");
}

fn change_address(registration: &mut rollcall_core::directory::Registration, change: impl Fn(&mut Address)) {
    let mut addresses = Vec::from(&registration.addresses);
    change(&mut addresses[0]);
    registration.addresses = addresses.into();
}

#[test]
fn signs_ignore_who_and_when_but_nothing_that_consumers_see() {
    let mut scene = scene();
    let sign = |scene: &Scene| scene.directory.service(&service("prod/feed")).unwrap().sign;
    let original = sign(&scene);
    scene.done(register(2, &["prod/feed/a:80"]));
    assert_eq!(sign(&scene), original, "another owner and incarnation");
    let base = registration("a:80");
    let changed: Vec<Box<Change>> = vec![
        Box::new(|r| r.weight = 1),
        Box::new(|r| change_address(r, |a| a.port = 81)),
        Box::new(|r| change_address(r, |a| a.name = "grpc".into())),
        Box::new(|r| change_address(r, |a| a.host = "127.0.0.2".into())),
        Box::new(|r| drop(r.labels.insert("a".into(), "b".into()))),
        Box::new(|r| drop(r.metadata.insert("a".into(), "b".into()))),
        Box::new(|r| r.kind = Some(NodeKind::Static)),
        Box::new(|r| r.state = NodeState::Draining),
    ];
    let mut signs = std::collections::BTreeSet::from([original]);
    for change in changed {
        let mut node = register_node("prod/feed/a:80");
        node.registration = base.clone();
        change(&mut node.registration);
        scene.done(Command::Register {
            session: Some(SessionId(2)),
            nodes: vec![node],
        });
        assert!(signs.insert(sign(&scene)), "every field shows");
    }
    scene.done(register(2, &["prod/feed/a:80"]));
    assert_eq!(sign(&scene), original);
    let shown = Override {
        disabled: Some(true),
        ..Override::default()
    };
    scene.done(set_override("prod/feed/a:80", shown));
    assert!(signs.insert(sign(&scene)));
    let hidden = Override {
        reason: "why".into(),
        disabled: Some(false),
        ..Override::default()
    };
    scene.done(set_override("prod/feed/a:80", hidden));
    assert_eq!(sign(&scene), original, "reasons are not for consumers");
}

#[test]
fn a_group_sign_shows_where_a_node_is() {
    let sign = |paths: &[&str]| {
        let mut scene = Scene::new(Limits::default());
        for path in ["prod/one", "prod/two"] {
            scene.done(Command::PutService {
                key: service(path),
                settings: None,
                expected: Expected::Any,
            });
        }
        scene.done(register(1, paths));
        scene.directory.group(&group("prod")).unwrap().sign
    };
    assert_ne!(sign(&["prod/one/a:80"]), sign(&["prod/two/a:80"]));
    assert_eq!(
        sign(&["prod/one/a:80", "prod/two/b:80"]),
        sign(&["prod/two/b:80", "prod/one/a:80"])
    );
}

#[test]
fn other_formats_are_refused_by_name() {
    use rollcall_core::directory::{DecodeError, Directory, Outcome, SnapshotError};
    assert_eq!(Request::decode(&[]), Err(DecodeError::Empty { what: "request" }));
    assert_eq!(
        Request::decode(&[9, 1]),
        Err(DecodeError::UnknownFormat {
            what: "request",
            found: 9
        })
    );
    let outcome = Scene::new(Limits::default()).done(open_session());
    let mut bytes = outcome.encode().to_vec();
    assert_eq!(Outcome::decode(&bytes), Ok(outcome));
    bytes.push(0);
    assert!(matches!(
        Outcome::decode(&bytes),
        Err(DecodeError::TrailingBytes { trailing: 1, .. })
    ));
    let snapshot = scene().directory.encode_snapshot();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = snapshot.clone();
        change(&mut bytes);
        Directory::decode_snapshot(&bytes).unwrap_err()
    };
    assert!(matches!(
        refused(&|bytes| bytes[0] = b'X'),
        SnapshotError::NotASnapshot { .. }
    ));
    assert_eq!(
        refused(&|bytes| bytes[8] = 2),
        SnapshotError::UnknownFormat { found: 2 }
    );
    assert!(matches!(
        refused(&|bytes| bytes.push(0)),
        SnapshotError::TrailingBytes { trailing: 1 }
    ));
    assert!(matches!(
        refused(&|bytes| bytes.truncate(40)),
        SnapshotError::CutOff { bytes: 40, .. }
    ));
    assert!(matches!(
        refused(&|bytes| bytes.truncate(3)),
        SnapshotError::CutOff { bytes: 3, .. }
    ));
    assert!(matches!(
        refused(&|bytes| bytes[60] ^= 1),
        SnapshotError::Damaged { .. }
    ));
    assert!(matches!(
        refused(&|bytes| bytes[10..18].fill(255)),
        SnapshotError::CutOff { .. }
    ));
    // A right checksum over wrong records: the records are checked themselves.
    for place in 18..snapshot.len() - 16 {
        let refusal = refused(&|bytes| {
            bytes[place] ^= 1;
            let end = bytes.len() - 16;
            let checksum = xxhash_rust::xxh3::xxh3_128(&bytes[..end]);
            bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        });
        assert!(
            matches!(
                refusal,
                SnapshotError::Malformed { .. } | SnapshotError::Inconsistent { .. }
            ),
            "byte {place}: {refusal}"
        );
    }
}

#[test]
fn several_requests_of_one_entry_share_its_position() {
    let mut scene = scene();
    let at = LogPosition {
        index: rollcall_core::ids::LogIndex(50),
        ..LogPosition::default()
    };
    for (request, command) in [(500, open_session()), (501, register(3, &["prod/feed/q:80"]))] {
        let request = Request {
            id: RequestId(request),
            command,
        };
        scene.directory.apply(at, &request).result.unwrap();
    }
    assert_eq!(scene.directory.session(SessionId(3)).unwrap().last_renewal.0, 50);
}

#[test]
fn settings_that_are_not_named_stay() {
    use std::collections::BTreeSet;

    use rollcall_core::directory::{GroupField, ServiceField};
    use rollcall_core::guard::GuardSettings;

    let mut scene = scene();
    let guard = GuardSettings {
        window_ms: 5_000,
        ..GuardSettings::off()
    };
    let defaults = ServiceSettings {
        guard,
        nodes_max: 50,
        ..ServiceSettings::default()
    };
    let settings = GroupSettings {
        defaults: defaults.clone(),
        services_max: 9,
        ..GroupSettings::default()
    };
    let change_group = |settings: &GroupSettings, fields: &[GroupField]| Command::ChangeGroup {
        group: group("new"),
        settings: settings.clone(),
        fields: fields.iter().copied().collect(),
        expected: Expected::Any,
    };
    // A new group has the defaults for what is not named.
    let window = GroupField::Default(ServiceField::GuardWindow);
    scene.done(change_group(&settings, &[window, GroupField::AutoCreate]));
    let held = |scene: &Scene| scene.directory.group(&group("new")).unwrap().settings.clone();
    let mut expected = GroupSettings::default();
    expected.defaults.guard.window_ms = 5_000;
    assert_eq!(held(&scene), expected);
    let put = Command::PutGroup {
        group: group("new"),
        settings: settings.clone(),
        expected: Expected::Any,
    };
    scene.done(put);
    scene.done(change_group(
        &GroupSettings::default(),
        &[GroupField::ServicesMax],
    ));
    assert_eq!(
        held(&scene),
        GroupSettings {
            services_max: 0,
            ..settings
        }
    );

    // A new service has its group's defaults for it.
    let change =
        |settings: &ServiceSettings, fields: BTreeSet<ServiceField>, expected| Command::ChangeService {
            key: service("new/feed"),
            settings: settings.clone(),
            fields,
            expected,
        };
    let other = ServiceSettings {
        nodes_max: 3,
        ..ServiceSettings::default()
    };
    scene.done(change(&other, BTreeSet::new(), Expected::Absent));
    let held = |scene: &Scene| {
        scene
            .directory
            .service(&service("new/feed"))
            .unwrap()
            .settings
            .clone()
    };
    assert_eq!(held(&scene), defaults);
    scene.done(change(&other, [ServiceField::NodesMax].into(), Expected::Any));
    assert_eq!(
        held(&scene),
        ServiceSettings {
            nodes_max: 3,
            ..defaults
        }
    );
    // Conditions and ranges are those of a put.
    let fields = BTreeSet::from([ServiceField::GuardShare]);
    assert!(matches!(
        scene.refused(change(&other, fields.clone(), Expected::Absent)),
        Refusal::AlreadyExists { .. }
    ));
    let mut wrong = other;
    wrong.guard.share = 10_001;
    assert_eq!(
        field_of(scene.refused(change(&wrong, fields, Expected::Any))),
        "settings.guard.share"
    );
}
