//! Formats that outlive this version: the log's requests, the snapshot, the sign.
//!
//! A difference here means that servers of another version could not read what this one writes, or would take
//! equal content for different. Add a format; never change one.

use std::collections::BTreeSet;
use std::path::Path;

use rollcall_core::admission::AdmissionList;
use rollcall_core::directory::{
    AdoptedNode, AdoptedSession, Command, GroupField, GroupSettings, Node, ServiceField, ServiceSettings,
};
use rollcall_core::directory::{
    Directory, Expected, ExpiryFence, GroupMode, Limits, NodeKind, NodeState, NodeView, Override, Request,
    RevivalFence, Sign, UpdateNode,
};
use rollcall_core::guard::GuardSettings;
use rollcall_core::ids::{Incarnation, LogIndex, LogPosition, RequestId, Revision, SessionId, Term};
use rollcall_core::storm::{Mode, Scope, Share};

use crate::scene::{
    deregister, expire, group, node, open_session, register, registration, service, set_override, update_node,
};

fn assert_golden(name: &str, bytes: &[u8]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let lines: Vec<String> = bytes
        .chunks(32)
        .map(|chunk| chunk.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    let actual = lines.join("\n") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, actual).unwrap();
    } else {
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            actual,
            "{} differs",
            file.display()
        );
    }
}

fn fence(session: u64, last_renewal: u64) -> ExpiryFence {
    ExpiryFence {
        session: SessionId(session),
        last_renewal: LogIndex(last_renewal),
    }
}

/// One of each command, in the order of the enum, and every field in use somewhere.
fn commands() -> Vec<Command> {
    let mut full = registration("a:80");
    full.labels.insert("zone".into(), "east".into());
    full.metadata.insert("commit".into(), "4f1e".into());
    full.kind = Some(NodeKind::Persistent);
    full.state = NodeState::Draining;
    let over = Override {
        disabled: Some(true),
        weight: Some(3),
        labels: [("zone".to_owned(), "west".to_owned())].into(),
        reason: "bad disk".into(),
        author: "ann".into(),
        ttl_ms: 60_000,
        set_at: Revision(0),
    };
    let settings = ServiceSettings {
        default_kind: NodeKind::Ephemeral,
        metadata: [].into(),
        nodes_max: 9,
        guard: GuardSettings {
            share: 2_000,
            window_ms: 60_000,
            keep_last: true,
            hold_max_ms: 3_600_000,
        },
    };
    let group_settings = GroupSettings {
        mode: GroupMode::Cp,
        auto_create: true,
        defaults: settings.clone(),
        services_max: 7,
        metadata: [("team".to_owned(), "feed".to_owned())].into(),
        admission: AdmissionList {
            cidrs: ["10.1.0.0/16", "2001:db8::/32"]
                .map(|cidr| cidr.parse().unwrap())
                .into(),
            scopes: ["register:prod".parse().unwrap()].into(),
            environments: ["prod".parse().unwrap()].into(),
            dry_run: true,
        },
    };
    let update = UpdateNode {
        weight: Some(5),
        state: Some(NodeState::Down),
        labels: [
            ("zone".to_owned(), None),
            ("rack".to_owned(), Some("7".to_owned())),
        ]
        .into(),
        ..update_node("prod/feed/a:80")
    };
    let persistent = rollcall_core::directory::RegisterNode {
        key: service("prod/feed"),
        registration: full,
        expected: Expected::Absent,
    };
    vec![
        Command::PutGroup {
            group: group("prod"),
            settings: group_settings,
            expected: Expected::Absent,
        },
        Command::PutService {
            key: service("prod/feed"),
            settings: Some(settings),
            expected: Expected::Any,
        },
        open_session(),
        open_session(),
        open_session(),
        Command::Register {
            session: None,
            nodes: vec![persistent],
        },
        register(1, &["prod/feed/b:80", "prod/web/c:80"]),
        register(2, &["prod/feed/d:80"]),
        Command::Update {
            session: None,
            nodes: vec![update],
        },
        set_override("prod/feed/a:80", over),
        deregister(Some(1), "prod/web/c:80"),
        Command::DeleteService {
            key: service("prod/web"),
            expected: Expected::Revision(Revision(7)),
        },
        expire(1, 2, 8),
        Command::CloseSession {
            session: SessionId(3),
        },
        set_override(
            "prod/feed/x:80",
            Override {
                weight: Some(0),
                ..Override::default()
            },
        ),
        Command::ClearOverride {
            key: node("prod/feed/x:80"),
        },
        Command::ExpireOverrides {
            term: Term(1),
            overrides: vec![(node("prod/feed/a:80"), Revision(1))],
        },
        Command::DeleteGroup {
            group: group("prod"),
            expected: Expected::Any,
        },
        Command::SetLimits {
            limits: Limits {
                sessions_max: 2_000_000,
                ..Limits::default()
            },
        },
        // The guard: one held and revived, then held for good; a word about a window that is not; a confirmation
        // that comes too late; and a release that finds the share used up.
        Command::ExpireSessions {
            term: Term(1),
            sessions: vec![fence(1, 11)],
            following: vec![(service("prod/feed"), 1)],
        },
        Command::ReviveSessions {
            term: Term(1),
            sessions: vec![RevivalFence {
                session: SessionId(1),
                lapsed: Revision(18),
            }],
        },
        Command::ExpireSessions {
            term: Term(1),
            sessions: vec![fence(1, 21)],
            following: vec![],
        },
        Command::CloseGuardWindows {
            term: Term(1),
            windows: vec![(service("prod/feed"), Revision(1))],
        },
        Command::ConfirmRemoval {
            service: service("prod/feed"),
            since: Some(Revision(18)),
            author: "ann".into(),
            reason: "rack 7 burned down".into(),
        },
        Command::ReleaseHeld {
            term: Term(1),
            holds: vec![(service("prod/feed"), Revision(20))],
        },
        Command::SetStorm {
            scope: Scope::Cluster,
            mode: Mode::Auto {
                share: Share::default(),
            },
            author: "ann".into(),
            reason: "the network flaps".into(),
        },
        // A group that moves to gossip and stays where it was, and one of another move's words.
        Command::BeginMove {
            group: group("prod"),
            to: GroupMode::Ap,
            stamp_ms: 1_000_000,
        },
        Command::EndMove {
            group: group("prod"),
            since: Revision(23),
            done: false,
        },
        Command::BeginMove {
            group: group("prod"),
            to: GroupMode::Ap,
            stamp_ms: 1_000_001,
        },
        Command::AdoptNodes {
            group: group("prod"),
            since: Revision(23),
            sessions: vec![AdoptedSession {
                id: SessionId(SessionId::GOSSIPED | 7),
                secret_digest: [9; 32],
                ttl_ms: 15_000,
                client: "feed-8".into(),
                lapsed: false,
            }],
            nodes: vec![AdoptedNode {
                key: node("prod/feed/z:80"),
                registration: registration("z:80"),
                kind: NodeKind::Ephemeral,
                session: Some(SessionId(SessionId::GOSSIPED | 7)),
                incarnation: Incarnation(4),
                state: NodeState::Up,
            }],
            overrides: vec![(node("prod/feed/z:80"), Override::default())],
        },
        Command::ChangeGroup {
            group: group("late"),
            settings: GroupSettings::default(),
            fields: BTreeSet::from([
                GroupField::AutoCreate,
                GroupField::Default(ServiceField::NodesMax),
            ]),
            expected: Expected::Any,
        },
        Command::ChangeService {
            key: service("late/feed"),
            settings: ServiceSettings::default(),
            fields: BTreeSet::from([ServiceField::GuardWindow]),
            expected: Expected::Any,
        },
    ]
}

#[test]
fn requests_keep_their_first_format() {
    let mut bytes = Vec::new();
    for (n, command) in commands().into_iter().enumerate() {
        let request = Request {
            id: RequestId(0x0102_0304_0506 + n as u128),
            command,
        };
        let encoded = request.encode();
        assert_eq!(Request::decode(&encoded).unwrap(), request);
        bytes.extend_from_slice(&u32::try_from(encoded.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&encoded);
    }
    assert_golden("requests_v1.hex", &bytes);
}

#[test]
fn snapshots_keep_their_first_format() {
    let mut directory = Directory::new(Limits::default());
    let mut refused = Vec::new();
    for (n, command) in commands().into_iter().enumerate() {
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(n as u64 + 1),
        };
        let applied = directory.apply(
            at,
            &Request {
                id: RequestId(n as u128),
                command,
            },
        );
        refused.extend(applied.result.err().map(|refusal| refusal.to_string()));
    }
    assert_eq!(
        refused,
        [
            "group prod still has 1 services",
            "the hold of service prod/feed is at revision 20, expected 18",
            "the move of group prod is at revision 25, expected 23"
        ],
        "everything else shapes the snapshot"
    );
    let feed = directory.service(&service("prod/feed")).unwrap();
    let hold = feed.guard.hold().expect("nodes are held");
    assert!(
        hold.overdue && hold.since == Revision(20),
        "the guard's words were not void: {hold:?}"
    );
    let snapshot = directory.encode_snapshot();
    assert_golden("snapshot_v1.hex", &snapshot);
    let read = Directory::decode_snapshot(&snapshot).unwrap();
    assert_eq!(read.state_hash(), directory.state_hash());
    assert_eq!(read.totals(), directory.totals());
}

#[test]
fn signs_are_the_same_for_ever() {
    let mut registration = registration("a:80");
    registration.labels.insert("zone".into(), "east".into());
    registration.metadata.insert("commit".into(), "4f1e".into());
    let node = Node {
        registration,
        kind: NodeKind::Persistent,
        state: NodeState::Draining,
        owner: Some(SessionId(9)).into(),
        incarnation: Incarnation(3),
        created: Revision(4),
        modified: Revision(5),
    };
    let over = Override {
        disabled: Some(true),
        weight: Some(7),
        ..Override::default()
    };
    let plain = Sign::of_node(NodeView::new(&node, None));
    let merged = Sign::of_node(NodeView::new(&node, Some(&over)));
    let of_service = Sign::of_service(&"feed".parse().unwrap(), plain.plus(merged));
    let lines = [plain, merged, of_service]
        .map(|sign| sign.0.to_le_bytes())
        .concat();
    assert_golden("signs_v1.hex", &lines);
}
