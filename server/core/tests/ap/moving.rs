//! A group moves from Raft to gossip and back: nothing is lost, nothing changes on the way, nobody sees nodes leave.

use rollcall_core::ap::{Standing, THE_LOG};
use rollcall_core::directory::{
    Command, Directory, Expected, ExpiryFence, GroupMode, GroupSettings, Limits, NodeState, Override,
    Refusal, Request, RevivalFence, SessionChange, Sign, UpdateNode,
};
use rollcall_core::ids::{GroupName, Incarnation, RequestId, Revision, SessionId, Term};

use crate::scene::{self, Scene};
use crate::server::{AHEAD_MAX_MS, Server, assert_same, settle, two};

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
    let merged = server.replica.adopt(
        &mut server.view,
        (server.now_ms, AHEAD_MAX_MS),
        &log.directory,
        &group(),
        moving.stamp_ms,
    );
    server.keep(merged.unwrap().stored);
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
    assert_eq!(
        adopted.nodes.keys().collect::<Vec<_>>(),
        [scene::node("move/feed/late:1")]
    );
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
    let merged = server.replica.adopt(
        &mut server.view,
        (server.now_ms, AHEAD_MAX_MS),
        &log.directory,
        &group(),
        moving.stamp_ms + 1,
    );
    server.keep(merged.unwrap().stored);
    assert_eq!(sign_of(&server.view), sign_of(&log.directory));
    assert!(server.state("move/feed/n1:1").is_none());
}

/// The stamp of a move is the word of one server's clock. If that is wild, the others do not follow: their own writes go on
/// being credible.
#[test]
fn a_move_by_a_wild_clock_moves_no_other_clock() {
    let mut log = under_raft();
    let (mut server, mut other) = (Server::new(1), Server::new(2));
    begin(&mut log, GroupMode::Ap);
    define(
        &mut server,
        &Command::PutGroup {
            group: group(),
            settings: settings(),
            expected: Expected::Any,
        },
    );
    let (latest, now_ms) = (server.replica.latest(), server.now_ms);
    let clock = (now_ms, AHEAD_MAX_MS);
    let wild_ms = now_ms + 10_000;
    let refused = server
        .replica
        .adopt(&mut server.view, clock, &log.directory, &group(), wild_ms)
        .unwrap_err();
    assert_eq!(refused.ahead_ms, 10_000);
    assert_eq!(server.replica.latest(), latest);
    assert!(server.replica.is_empty() && server.view.totals().nodes == 0);
    server.claim(1).unwrap();
    server.register(1, "prod/feed/a:1").unwrap();
    other.follow(&server);
    assert_eq!(other.state("prod/feed/a:1"), Some(NodeState::Up));
    // As far ahead as a record may be, it is taken over.
    let credible_ms = now_ms + AHEAD_MAX_MS;
    let adopted = server
        .replica
        .adopt(&mut server.view, clock, &log.directory, &group(), credible_ms);
    server.keep(adopted.unwrap().stored);
    assert_eq!(sign_of(&server.view), sign_of(&log.directory));
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

/// A session that fell silent may lapse among the records a moment before the log, which began to count later, finds
/// the same. If the group moves in that moment, what the log lists is what moves.
#[test]
fn what_lapsed_here_and_is_still_listed_in_the_log_moves_and_is_given_its_time_again() {
    let mut log = under_raft();
    let mut servers: Vec<Server> = (1..=3).map(Server::new).collect();
    servers[0].claim(3).unwrap();
    settle(&mut servers);
    servers[0].lapse(&[3]);
    // The third has not heard yet that it lapsed.
    let (second, first) = two(&mut servers, 1, 0);
    second.follow(first);

    begin(&mut log, GroupMode::Ap);
    let before = sign_of(&log.directory);
    for server in &mut servers {
        take_over(server, &log);
        take_over(server, &log);
        assert_eq!(sign_of(&server.view), before, "server {:?}", server.id);
    }
    // It hears so now, in one breath with what came after.
    let (third, first) = two(&mut servers, 2, 0);
    third.follow(first);
    assert_eq!(sign_of(&third.view), before);
    settle(&mut servers);
    assert_same(&servers);
    let session = servers[1].replica.session(SessionId(3)).unwrap();
    assert_eq!((session.holder, session.claim), (THE_LOG, 2));
    assert_eq!(session.standing, Standing::Held);
}

/// While a session owned nothing in the log the leader may not have heard of it: what comes with it is not struck off
/// by what the leader counted until then.
#[test]
fn a_session_that_comes_back_to_the_log_with_nodes_is_judged_anew() {
    let mut log = under_raft();
    begin(&mut log, GroupMode::Ap);
    let mut server = Server::new(1);
    take_over(&mut server, &log);
    end(&mut log, true);
    end_here(&mut server, true);
    let found_silent = log.directory.session(SessionId(3)).unwrap().last_renewal;

    begin(&mut log, GroupMode::Cp);
    define(
        &mut server,
        &Command::BeginMove {
            group: group(),
            to: GroupMode::Cp,
            stamp_ms: 0,
        },
    );
    let revision = log.directory.revision();
    let moving = since(&log.directory);
    for command in server.view.adoptions(&group(), moving, 100) {
        log.done(command);
    }
    let changes = log.directory.changes().range(revision, usize::MAX).unwrap();
    let told = changes.iter().flat_map(|changes| &changes.sessions);
    let granted = SessionChange::Revived {
        session: SessionId(3),
        ttl_ms: log.directory.session(SessionId(3)).unwrap().ttl_ms,
        held: 0,
    };
    assert_eq!(told.filter(|change| **change == granted).count(), 1);
    // Said again, it grants nothing.
    let revision = log.directory.revision();
    for command in server.view.adoptions(&group(), moving, 100) {
        log.done(command);
    }
    assert_eq!(log.directory.revision(), revision);
    end(&mut log, true);
    let outcome = log.done(scene::expire(1, 3, found_silent.0));
    assert_eq!(outcome.voided, [SessionId(3)]);
}

/// Suspects of the log that were adopted once are not adopted again as something newer, and the guard knows of how
/// many they are.
#[test]
fn suspects_are_adopted_once() {
    let mut log = ten_of_which_four_are_suspect();
    begin(&mut log, GroupMode::Ap);
    let mut server = Server::new(1);
    take_over(&mut server, &log);
    let once = server.replica.session(SessionId(1)).cloned();
    assert!(matches!(once.as_ref().unwrap().standing, Standing::Lapsed { .. }));
    take_over(&mut server, &log);
    assert_eq!(server.replica.session(SessionId(1)).cloned(), once);
    assert_eq!(sign_of(&server.view), sign_of(&log.directory));
    assert_eq!(engaged(&server.view), (4, 10, 7));
}

fn ten_of_which_four_are_suspect() -> Scene {
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
    let fence = |id| ExpiryFence {
        session: SessionId(id),
        last_renewal: log.directory.session(SessionId(id)).unwrap().last_renewal,
    };
    log.done(Command::ExpireSessions {
        term: Term(1),
        sessions: [1, 5, 7, 9].map(fence).to_vec(),
        following: Vec::new(),
    });
    assert_eq!(engaged(&log.directory), (4, 10, 7));
    log
}

/// Lapsed, of how many, and how many are needed.
fn engaged(directory: &Directory) -> (u32, u32, u32) {
    let service = directory.service(&scene::service("move/feed")).unwrap();
    let engaged = service.guard_status().engaged.unwrap();
    (engaged.lapsed, engaged.of, engaged.needed)
}

/// In whatever pieces they come: those of the later ones are no replacements.
#[test]
fn suspects_that_come_in_pieces_are_counted_with_all_that_come() {
    for most in [1, 2, 3, 4, 7, 100] {
        let mut log = ten_of_which_four_are_suspect();
        begin(&mut log, GroupMode::Ap);
        let mut server = Server::new(1);
        take_over(&mut server, &log);
        end(&mut log, true);
        end_here(&mut server, true);
        go_to_log(&mut log, &mut server, most);
        assert_eq!(engaged(&log.directory), (4, 10, 7), "pieces of {most}");
        end(&mut log, true);
        assert_of_one_mind(&log.directory);
        log.done(scene::register(2, &["move/feed/another:1"]));
        // Seven are up, one of which is a replacement.
        let service = log.directory.service(&scene::service("move/feed")).unwrap();
        assert!(service.guard_status().engaged.is_none(), "pieces of {most}");
    }
}

/// Session 1 owns `cp/one` in the log and `move/feed` among the records, each the last of its service.
fn owner_of_both() -> (Scene, Server) {
    let mut log = Scene::new(Limits::default());
    log.done(scene::put_group("cp"));
    log.done(Command::PutGroup {
        group: group(),
        settings: GroupSettings {
            mode: GroupMode::Ap,
            ..settings()
        },
        expected: Expected::Any,
    });
    log.done(scene::register(1, &["cp/one/a:1"]));
    let mut server = Server::new(1);
    server.define("move");
    server.claim(1).unwrap();
    server.register(1, "move/feed/b:1").unwrap();
    (log, server)
}

fn lapse_in_log(log: &mut Scene, session: u64) {
    let life = log.directory.session(SessionId(session)).unwrap().last_renewal;
    log.done(scene::expire(1, session, life.0));
}

/// All that the view lists goes to the log.
fn go_to_log(log: &mut Scene, server: &mut Server, most: usize) {
    begin(log, GroupMode::Cp);
    define(
        server,
        &Command::BeginMove {
            group: group(),
            to: GroupMode::Cp,
            stamp_ms: 0,
        },
    );
    let moving = since(&log.directory);
    for command in server.view.adoptions(&group(), moving, most) {
        log.done(command);
    }
    assert_eq!(sign_of(&log.directory), sign_of(&server.view));
}

/// A session and all its nodes are of one mind, and a snapshot can be read again.
fn assert_of_one_mind(directory: &Directory) {
    for session in directory.sessions() {
        for key in session.nodes.keys() {
            let suspect = directory.node(&key).unwrap().state == NodeState::Suspect;
            assert_eq!(suspect, session.lapsed.is_some(), "{key}");
        }
    }
    let snapshot = Directory::decode_snapshot(&directory.encode_snapshot()).unwrap();
    assert_eq!(snapshot.state_hash(), directory.state_hash());
}

/// A leader that is new counts longer than the server that held the session.
#[test]
fn a_session_that_lapsed_among_the_records_and_not_in_the_log_is_held_in_all_its_groups() {
    let (mut log, mut server) = owner_of_both();
    server.lapse(&[1]);
    assert_eq!(server.state("move/feed/b:1"), Some(NodeState::Suspect));
    go_to_log(&mut log, &mut server, 100);
    assert_of_one_mind(&log.directory);
    end(&mut log, true);
    assert_of_one_mind(&log.directory);
    // One heartbeat brings all of it back.
    let lapsed = log.directory.session(SessionId(1)).unwrap().lapsed.unwrap();
    log.done(Command::ReviveSessions {
        term: Term(1),
        sessions: vec![RevivalFence {
            session: SessionId(1),
            lapsed,
        }],
    });
    for node in ["cp/one/a:1", "move/feed/b:1"] {
        let node = log.directory.node(&scene::node(node)).unwrap();
        assert_eq!(node.state, NodeState::Up);
    }
    assert_of_one_mind(&log.directory);
}

/// A leader that was cut off from the session's server did not hear what that one did.
#[test]
fn a_session_that_lapsed_in_the_log_and_not_among_the_records_is_alive_in_all_its_groups() {
    let (mut log, mut server) = owner_of_both();
    lapse_in_log(&mut log, 1);
    let revision = log.directory.revision();
    go_to_log(&mut log, &mut server, 100);
    assert_of_one_mind(&log.directory);
    let one = log.directory.node(&scene::node("cp/one/a:1")).unwrap();
    assert_eq!(one.state, NodeState::Up);
    // The leader counts for it again, so that it does not stay if nobody is there.
    let changes = log.directory.changes().range(revision, usize::MAX).unwrap();
    let told = changes.iter().flat_map(|changes| &changes.sessions);
    let revived = |change: &&SessionChange| matches!(change, SessionChange::Revived { session, .. } if *session == SessionId(1));
    assert_eq!(told.filter(revived).count(), 1);
    end(&mut log, false);
    assert_of_one_mind(&log.directory);
}

/// A coordinator died after it had told a part, and the session was heard from or fell silent before the next one went on.
#[test]
fn a_move_goes_on_though_a_session_of_its_own_is_judged_otherwise_meanwhile() {
    let (mut log, mut server) = owner_of_both();
    for session in 2..=10 {
        if session > 2 {
            log.done(scene::open_session());
        }
        server.claim(session).unwrap();
        server
            .register(session, &format!("move/feed/n{session}:1"))
            .unwrap();
    }
    server.lapse(&[1, 2, 8, 9]);
    assert_eq!(engaged(&server.view), (4, 10, 7));
    begin(&mut log, GroupMode::Cp);
    let moving = since(&log.directory);
    let tell = |log: &mut Scene, server: &Server, pieces: usize| {
        for command in server
            .view
            .adoptions(&group(), moving, 4)
            .into_iter()
            .take(pieces)
        {
            log.done(command);
        }
        assert_of_one_mind(&log.directory);
    };
    let state = |log: &Scene| log.directory.node(&scene::node("move/feed/b:1")).unwrap().state;
    tell(&mut log, &server, 1);
    assert_eq!(state(&log), NodeState::Suspect);
    server.claim(1).unwrap();
    tell(&mut log, &server, 1);
    assert_eq!(state(&log), NodeState::Up);
    // Three of the four that are here are up, but there is more to come: the guard waits.
    let guard = |log: &Scene| {
        let service = log.directory.service(&scene::service("move/feed")).unwrap();
        service.guard_status()
    };
    assert!(guard(&log).engaged.is_some());
    server.lapse(&[1, 3, 4, 5]);
    tell(&mut log, &server, 1);
    assert_eq!(state(&log), NodeState::Suspect);
    tell(&mut log, &server, 100);
    assert_eq!(sign_of(&log.directory), sign_of(&server.view));
    end(&mut log, true);
    assert_of_one_mind(&log.directory);
}

/// Of two groups that move at once, what is frozen stays as it is.
#[test]
fn a_session_is_not_judged_anew_in_a_group_that_is_frozen() {
    let (mut log, mut server) = owner_of_both();
    server.lapse(&[1]);
    log.done(Command::BeginMove {
        group: scene::group("cp"),
        to: GroupMode::Ap,
        stamp_ms: STAMP_MS,
    });
    begin(&mut log, GroupMode::Cp);
    let moving = since(&log.directory);
    for command in server.view.adoptions(&group(), moving, 100) {
        let refused = log.refused(command);
        assert_eq!(
            refused,
            Refusal::Moving {
                group: scene::group("cp")
            }
        );
    }
}

/// A write in another group is a sign of life for all that the session owns, and waits, too.
#[test]
fn a_lapsed_session_revives_nothing_in_a_group_that_is_frozen() {
    let mut log = Scene::new(Limits::default());
    log.done(Command::PutGroup {
        group: group(),
        settings: settings(),
        expected: Expected::Any,
    });
    log.done(scene::register(1, &["move/feed/a:1", "prod/pay/a:1"]));
    lapse_in_log(&mut log, 1);
    begin(&mut log, GroupMode::Ap);
    let moved = |log: &Scene| {
        let service = log.directory.service(&scene::service("move/feed")).unwrap();
        (service.sign, service.modified)
    };
    let before = moved(&log);
    let moving = Refusal::Moving { group: group() };
    let update = || Command::Update {
        session: Some(SessionId(1)),
        nodes: vec![UpdateNode {
            weight: Some(7),
            ..scene::update_node("prod/pay/a:1")
        }],
    };
    assert_eq!(log.refused(scene::register(1, &["prod/pay/b:1"])), moving);
    assert_eq!(log.refused(update()), moving);
    assert_eq!(log.refused(scene::deregister(Some(1), "prod/pay/a:1")), moving);
    // Whoever is alive writes as ever.
    log.done(scene::register(2, &["prod/pay/b:1"]));
    assert_eq!(moved(&log), before);
    end(&mut log, false);
    log.done(update());
    assert_of_one_mind(&log.directory);
    let node = log.directory.node(&scene::node("move/feed/a:1")).unwrap();
    assert_eq!(node.state, NodeState::Up);
}

/// A server of records that starts again has forgotten how often a node was registered. The log has not.
#[test]
fn incarnations_do_not_fall_on_the_way_back_to_the_log() {
    let incarnation =
        |directory: &Directory, node: &str| directory.node(&scene::node(node)).unwrap().incarnation;
    let (again, stayed) = ("move/feed/n3:1", "move/feed/n4:1");
    let mut log = under_raft();
    for _ in 0..4 {
        for (session, node) in [(3, again), (4, stayed)] {
            log.done(scene::deregister(None, node));
            log.done(scene::register(session, &[node]));
        }
    }
    assert_eq!(incarnation(&log.directory, again), Incarnation(5));
    begin(&mut log, GroupMode::Ap);
    let mut server = Server::new(1);
    take_over(&mut server, &log);
    end(&mut log, true);
    end_here(&mut server, true);
    server.now_ms += 1_000;
    server.claim(3).unwrap();
    server.deregister(again).unwrap();
    server.restart();
    server.define("move");
    server.register(3, again).unwrap();
    assert_eq!(incarnation(&server.view, again), Incarnation(1));

    begin(&mut log, GroupMode::Cp);
    let moving = since(&log.directory);
    for command in server.view.adoptions(&group(), moving, 4) {
        log.done(command.clone());
        let revision = log.directory.revision();
        log.done(command);
        assert_eq!(
            log.directory.revision(),
            revision,
            "said again, it changes nothing"
        );
    }
    assert_eq!(sign_of(&log.directory), sign_of(&server.view));
    end(&mut log, true);
    assert_eq!(incarnation(&log.directory, again), Incarnation(6));
    // One that was not registered anew is what it was.
    assert_eq!(incarnation(&log.directory, stayed), Incarnation(5));
    assert_of_one_mind(&log.directory);
}

/// What others wrote before they froze is still heard where it is frozen.
#[test]
fn a_guard_holds_nothing_once_the_last_suspect_is_gone_though_its_group_moves() {
    let mut servers: Vec<Server> = (1..=2).map(Server::new).collect();
    for server in &mut servers {
        server.define("move");
    }
    servers[0].claim(1).unwrap();
    servers[0].register(1, "move/feed/b:1").unwrap();
    servers[0].lapse(&[1]);
    settle(&mut servers);
    let confirm = Command::ConfirmRemoval {
        service: scene::service("move/feed"),
        since: None,
        author: "ops".into(),
        reason: "gone".into(),
    };
    assert!(servers[1].write(confirm).unwrap().changed);
    define(
        &mut servers[0],
        &Command::BeginMove {
            group: group(),
            to: GroupMode::Cp,
            stamp_ms: 0,
        },
    );
    let (first, second) = two(&mut servers, 0, 1);
    first.follow(second);
    let service = first.view.service(&scene::service("move/feed")).unwrap();
    assert!(service.nodes.is_empty() && service.guard_status().is_idle());
}

/// A registration created the service where there was no leader, and an operator spoke of the node, which went.
#[test]
fn a_word_on_a_service_that_the_log_does_not_have_goes_there_as_well() {
    let mut log = under_raft();
    begin(&mut log, GroupMode::Ap);
    end(&mut log, true);
    begin(&mut log, GroupMode::Cp);
    let key = scene::node("move/elsewhere/n1:1");
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    log.done(Command::AdoptNodes {
        group: group(),
        since: since(&log.directory),
        sessions: Vec::new(),
        nodes: Vec::new(),
        overrides: vec![(key.clone(), over)],
    });
    let service = log.directory.service(&key.service).unwrap();
    assert_eq!(service.overrides.get(&key.node).unwrap().disabled, Some(true));
    assert_eq!(log.directory.totals().overrides, 1);
}

#[test]
fn large_nodes_are_adopted_in_pieces_that_fit_into_requests() {
    let mut log = Scene::new(Limits::default());
    let labels = |number: usize| {
        let label = |label: usize| (format!("label-{number}-{label}"), "x".repeat(1_000));
        (0..60).map(label).collect()
    };
    let mut expected = Vec::new();
    for number in 0..40 {
        let mut node = scene::register_node(&format!("prod/feed/n{number:02}:1"));
        node.registration.labels = labels(number);
        expected.push(node.registration.id.clone());
        log.done(Command::Register {
            session: Some(SessionId(1)),
            nodes: vec![node],
        });
    }
    let pieces = log.directory.adoptions(&scene::group("prod"), Revision(1), 100);
    assert!(pieces.len() > 1);
    let mut adopted = Vec::new();
    for command in pieces {
        let Command::AdoptNodes { nodes, .. } = &command else {
            panic!("{command:?}");
        };
        adopted.extend(nodes.iter().map(|node| node.registration.id.clone()));
        let id = RequestId(1);
        assert!(Request { id, command }.encode().len() <= 1 << 20);
    }
    assert_eq!(adopted, expected);
    let one_each = log.directory.adoptions(&scene::group("prod"), Revision(1), 1);
    assert_eq!(one_each.len(), 40);
}
