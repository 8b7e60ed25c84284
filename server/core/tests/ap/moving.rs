//! A group moves from Raft to gossip and back: nothing is lost, nothing changes on the way, nobody sees nodes leave.

use rollcall_core::directory::{
    Command, Directory, Expected, GroupMode, GroupSettings, Limits, Override, Refusal, Sign,
};
use rollcall_core::ids::{GroupName, Revision, SessionId};

use crate::scene::{self, Scene};
use crate::server::{Server, assert_same, settle};

const STAMP_MS: u64 = 1_000_100;

fn group() -> GroupName {
    scene::group("move")
}

fn settings() -> GroupSettings {
    GroupSettings {
        auto_create: true,
        ..GroupSettings::default()
    }
}

fn sign_of(directory: &Directory) -> Sign {
    directory.group(&group()).unwrap().sign
}

fn since(directory: &Directory) -> Revision {
    directory.group(&group()).unwrap().moving.unwrap().since
}

/// Ten sessions with a node each, one of them a suspect, one node disabled by an operator.
fn under_raft() -> Scene {
    let mut log = Scene::new(Limits::default());
    log.done(Command::PutGroup {
        group: group(),
        settings: settings(),
        expected: Expected::Any,
    });
    for session in 1..=10 {
        if session > 2 {
            log.done(scene::open_session());
        }
        log.done(scene::register(session, &[&format!("move/feed/n{session}:1")]));
    }
    log.done(scene::register(1, &["move/pay/only:1"]));
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    log.done(scene::set_override("move/feed/n2:1", over));
    log
}

fn begin(log: &mut Scene, to: GroupMode) {
    log.done(Command::BeginMove {
        group: group(),
        to,
        stamp_ms: STAMP_MS,
    });
}

fn end(log: &mut Scene, done: bool) {
    let since = since(&log.directory);
    log.done(Command::EndMove {
        group: group(),
        since,
        done,
    });
}

fn define(server: &mut Server, command: &Command) {
    server.replica.define(&mut server.view, command).unwrap();
}

/// What every server does when it learns that the group moves to gossip.
fn take_over(server: &mut Server, log: &Scene) {
    if server.view.group(&group()).is_none() {
        define(
            server,
            &Command::PutGroup {
                group: group(),
                settings: settings(),
                expected: Expected::Any,
            },
        );
    }
    let moving = log.directory.group(&group()).unwrap().moving.unwrap();
    define(
        server,
        &Command::BeginMove {
            group: group(),
            to: moving.to,
            stamp_ms: moving.stamp_ms,
        },
    );
    let merged = server
        .replica
        .adopt(&mut server.view, &log.directory, &group(), moving.stamp_ms);
    server.keep(merged.stored);
}

fn end_here(server: &mut Server, done: bool) {
    let since = since(&server.view);
    define(
        server,
        &Command::EndMove {
            group: group(),
            since,
            done,
        },
    );
}

#[test]
fn a_group_goes_to_gossip_and_comes_back_with_everything() {
    let mut log = under_raft();
    let before = sign_of(&log.directory);
    begin(&mut log, GroupMode::Ap);
    let refused = log.refused(scene::register(3, &["move/feed/late:1"]));
    assert_eq!(refused, Refusal::Moving { group: group() });
    let refused = log.refused(Command::CloseSession {
        session: SessionId(3),
    });
    assert_eq!(refused, Refusal::Moving { group: group() });
    let life = log.directory.session(SessionId(3)).unwrap().last_renewal;
    let outcome = log.done(scene::expire(1, 3, life.0));
    assert_eq!(outcome.voided, [SessionId(3)]);

    let mut servers: Vec<Server> = (1..=3).map(Server::new).collect();
    for server in &mut servers {
        take_over(server, &log);
        take_over(server, &log);
        assert_eq!(sign_of(&server.view), before);
    }
    assert_same(&servers);

    let revision = log.directory.revision();
    end(&mut log, true);
    let told = log.directory.changes().range(revision, 1).unwrap();
    assert!(told[0].services.is_empty(), "no node is said to leave");
    assert_eq!(log.directory.totals().nodes, 0);
    assert_eq!(log.directory.totals().overrides, 0);
    assert!(log.directory.session(SessionId(3)).unwrap().nodes.is_empty());
    let refused = log.refused(scene::register(3, &["move/feed/late:1"]));
    assert!(matches!(
        refused,
        Refusal::OtherMode {
            mode: GroupMode::Ap,
            ..
        }
    ));
    for server in &mut servers {
        end_here(server, true);
    }

    // It lives on: heard at one server, written at another.
    servers[0].claim(3).unwrap();
    servers[1].claim(1 << 63).unwrap();
    servers[1].register(1 << 63, "move/feed/late:1").unwrap();
    servers[2].now_ms += 200;
    servers[2].deregister("move/feed/n9:1").unwrap();
    settle(&mut servers);
    assert_same(&servers);

    // And back.
    let before = sign_of(&servers[0].view);
    begin(&mut log, GroupMode::Cp);
    let moving = since(&log.directory);
    for server in &mut servers {
        define(
            server,
            &Command::BeginMove {
                group: group(),
                to: GroupMode::Cp,
                stamp_ms: 0,
            },
        );
        let refused = server.register(1 << 63, "move/feed/later:1").unwrap_err();
        assert_eq!(refused, Refusal::Moving { group: group() });
    }
    for command in servers[2].view.adoptions(&group(), moving, 4) {
        log.done(command.clone());
        log.done(command);
    }
    assert_eq!(sign_of(&log.directory), before);
    end(&mut log, true);
    for server in &mut servers {
        end_here(server, true);
        assert_eq!(server.view.totals().nodes, 0);
        for key in server.replica.forget_group(&group()) {
            server.forget(&key);
        }
        server.restart();
        assert_eq!(server.view.totals().nodes, 0);
    }
    log.done(scene::register(3, &["move/feed/latest:1"]));
    assert_eq!(log.directory.totals().nodes, 12);
    let adopted = log.directory.session(SessionId(1 << 63)).unwrap();
    assert_eq!(adopted.nodes, [scene::node("move/feed/late:1")]);
    // What was replayed and what is in a snapshot are the same.
    let snapshot = Directory::decode_snapshot(&log.directory.encode_snapshot()).unwrap();
    assert_eq!(snapshot.state_hash(), log.directory.state_hash());
}

#[test]
fn a_move_that_is_taken_back_changes_nothing() {
    let mut log = under_raft();
    let before = sign_of(&log.directory);
    begin(&mut log, GroupMode::Ap);
    let mut server = Server::new(1);
    take_over(&mut server, &log);
    end(&mut log, false);
    end_here(&mut server, false);
    assert_eq!(sign_of(&log.directory), before);
    assert_eq!(server.view.totals().nodes, 0);
    log.done(scene::register(3, &["move/feed/late:1"]));
    log.done(scene::deregister(None, "move/feed/n1:1"));

    // What the first attempt left behind does not come back with the second.
    begin(&mut log, GroupMode::Ap);
    let moving = log.directory.group(&group()).unwrap().moving.unwrap();
    define(
        &mut server,
        &Command::BeginMove {
            group: group(),
            to: GroupMode::Ap,
            stamp_ms: moving.stamp_ms,
        },
    );
    let merged = server
        .replica
        .adopt(&mut server.view, &log.directory, &group(), moving.stamp_ms + 1);
    server.keep(merged.stored);
    assert_eq!(sign_of(&server.view), sign_of(&log.directory));
    assert!(server.state("move/feed/n1:1").is_none());
}

#[test]
fn a_word_of_another_move_is_void() {
    let mut log = under_raft();
    begin(&mut log, GroupMode::Ap);
    let earlier = since(&log.directory);
    end(&mut log, false);
    begin(&mut log, GroupMode::Ap);
    let refused = log.refused(Command::EndMove {
        group: group(),
        since: earlier,
        done: true,
    });
    assert!(matches!(refused, Refusal::RevisionMismatch { .. }), "{refused}");
    assert_eq!(
        log.directory.group(&group()).unwrap().settings.mode,
        GroupMode::Cp
    );
}
