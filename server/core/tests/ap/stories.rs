//! What users were promised of AP groups, told as stories.

use rollcall_core::ap::{Key, Record, Standing};
use rollcall_core::directory::{Command, NodeState, Override, Refusal, UpdateNode};
use rollcall_core::ids::{ServerId, SessionId};

use crate::scene;
use crate::server::{AHEAD_MAX_MS, Server, assert_same, settle, two};

fn three() -> Vec<Server> {
    (1..=3).map(Server::new).collect()
}

fn records_of(server: &Server) -> Vec<Record> {
    let range = server.replica.range(Default::default(), usize::MAX);
    range.records.iter().map(|record| Record::clone(record)).collect()
}

/// Ten sessions with a node each, so that one may lapse away.
fn ten_nodes(server: &mut Server) {
    for session in 1..=10 {
        server.claim(session).unwrap();
        server
            .register(session, &format!("prod/feed/n{session}:1"))
            .unwrap();
    }
}

#[test]
fn both_sides_of_a_partition_take_writes_and_nothing_is_lost() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    servers[2].claim(2).unwrap();
    servers[2].register(2, "prod/feed/b:1").unwrap();
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        assert_eq!(server.state("prod/feed/a:1"), Some(NodeState::Up));
        assert_eq!(server.state("prod/feed/b:1"), Some(NodeState::Up));
    }
}

#[test]
fn a_deregistered_node_does_not_come_back_by_comparing() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    settle(&mut servers);
    servers[0].now_ms += 1;
    servers[1].now_ms += 2;
    servers[1].deregister("prod/feed/a:1").unwrap();
    settle(&mut servers);
    assert!(
        servers
            .iter()
            .all(|server| server.state("prod/feed/a:1").is_none())
    );
}

#[test]
fn a_lapse_is_void_once_another_server_has_claimed_the_session_whatever_the_clocks_say() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    settle(&mut servers);
    // The client went over to the second server, whose clock is behind.
    servers[1].claim(1).unwrap();
    // The first has not heard of it and finds the session lapsed, later by its clock.
    servers[0].now_ms += 400;
    servers[0].lapse(&[1]);
    assert_eq!(servers[0].state("prod/feed/n1:1"), None);
    settle(&mut servers);
    assert_same(&servers);
    assert_eq!(servers[2].state("prod/feed/n1:1"), Some(NodeState::Up));
    assert_eq!(
        servers[0].replica.session(SessionId(1)).unwrap().holder,
        ServerId(2)
    );
}

#[test]
fn all_nodes_of_a_session_leave_in_one_revision_everywhere() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    servers[0].claim(99).unwrap();
    for service in ["pay", "mail"] {
        for other in 1..=9 {
            servers[0]
                .register(1, &format!("prod/{service}/o{other}:1"))
                .unwrap();
        }
        servers[0].register(99, &format!("prod/{service}/z:1")).unwrap();
    }
    settle(&mut servers);
    servers[0].lapse(&[99]);
    let before = servers[1].view.revision();
    let records = records_of(&servers[0]);
    let merged = servers[1].hear(records);
    assert_eq!(servers[1].view.revision(), before.next());
    let removed = merged
        .changes
        .unwrap()
        .services
        .iter()
        .map(|service| service.nodes.len())
        .sum::<usize>();
    assert_eq!(removed, 2);
}

#[test]
fn a_holder_that_was_cut_off_brings_its_nodes_back_with_one_heartbeat() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    settle(&mut servers);
    // The others took it for dead, one of them judged.
    servers[1].claim(1).unwrap();
    servers[1].lapse(&[1]);
    settle(&mut servers);
    assert!(
        servers
            .iter()
            .all(|server| server.state("prod/feed/n1:1").is_none())
    );
    servers[0].claim(1).unwrap();
    settle(&mut servers);
    assert!(
        servers
            .iter()
            .all(|server| server.state("prod/feed/n1:1") == Some(NodeState::Up))
    );
    assert_same(&servers);
}

#[test]
fn the_guard_holds_a_mass_lapse_everywhere_and_a_heartbeat_ends_it_for_its_node() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    settle(&mut servers);
    let all: Vec<u64> = (1..=10).collect();
    servers[0].lapse(&all);
    settle(&mut servers);
    let key = scene::service("prod/feed");
    for server in &servers {
        let service = server.view.service(&key).unwrap();
        assert!(
            service
                .nodes
                .values()
                .all(|node| node.state == NodeState::Suspect)
        );
        assert!(service.guard_status().engaged.is_some());
    }
    servers[0].revive(4);
    settle(&mut servers);
    for server in &servers {
        assert_eq!(server.state("prod/feed/n4:1"), Some(NodeState::Up));
        assert_eq!(server.state("prod/feed/n5:1"), Some(NodeState::Suspect));
    }
    assert_same(&servers);
}

/// Whoever shows all nodes at once, because it was away, knows of how many the suspects are.
#[test]
fn a_server_that_comes_while_the_guard_is_engaged_knows_of_how_many() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    servers[0].lapse(&[1, 2, 3, 4]);
    settle(&mut servers);
    servers[2].restart();
    let late = Server::new(4);
    servers.push(late);
    let records = records_of(&servers[0]);
    servers[3].hear(records);
    let status = |server: &Server| {
        let service = server.view.service(&scene::service("prod/feed")).unwrap();
        service.guard_status()
    };
    for server in &mut servers {
        let engaged = status(server).engaged.unwrap();
        assert_eq!((engaged.lapsed, engaged.of, engaged.needed), (4, 10, 7));
        // Six are up, which is not enough, whatever else is written.
        server.now_ms += 1;
        let weighs = UpdateNode {
            weight: Some(7),
            ..scene::update_node("prod/feed/n9:1")
        };
        let update = Command::Update {
            session: None,
            nodes: vec![weighs],
        };
        assert!(server.write(update).unwrap().changed);
        assert!(status(server).engaged.is_some(), "server {:?}", server.id);
    }
    // One that comes back is enough.
    settle(&mut servers);
    servers[0].revive(4);
    settle(&mut servers);
    assert!(servers.iter().all(|server| status(server).engaged.is_none()));
}

/// Also if it hears them piece by piece, as a server does that is new: suspects first, then those that are up.
#[test]
fn a_server_that_hears_suspects_before_the_rest_knows_of_how_many_once_it_has_caught_up() {
    let mut first = Server::new(1);
    ten_nodes(&mut first);
    first.lapse(&[1, 2, 3, 4]);
    let engaged = |server: &Server| {
        let service = server.view.service(&scene::service("prod/feed")).unwrap();
        let engaged = service.guard_status().engaged;
        engaged.map(|engaged| (engaged.lapsed, engaged.of, engaged.needed))
    };
    assert_eq!(engaged(&first), Some((4, 10, 7)));
    let is_late = |record: &Record| match &record.key {
        Key::Node(key) => key.node.as_str() > "n4:1",
        Key::Session(_) | Key::Override(_) => false,
    };
    for pieces in [1, 2, 7] {
        let mut late = Server::new(4);
        let (rest, early): (Vec<Record>, Vec<Record>) = records_of(&first).into_iter().partition(is_late);
        late.hear(early);
        for piece in rest.chunks(rest.len().div_ceil(pieces)) {
            late.hear(piece.to_vec());
        }
        late.replica.caught_up(&mut late.view);
        assert_eq!(engaged(&late), Some((4, 10, 7)), "{pieces} pieces");
        // Six are up, which is not enough; one that comes back is.
        assert!(late.write(scene::deregister(None, "prod/feed/unknown:1")).is_ok());
        assert!(engaged(&late).is_some());
        late.revive(4);
        assert_eq!(engaged(&late), None);
        // What is left over is counted with all that are listed, and enough are up.
        late.replica.caught_up(&mut late.view);
        assert_eq!(engaged(&late), None);
    }
}

#[test]
fn a_confirmed_removal_closes_the_sessions_so_that_a_late_client_registers_anew() {
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    let all: Vec<u64> = (1..=10).collect();
    servers[0].lapse(&all);
    settle(&mut servers);
    servers[2]
        .write(Command::ConfirmRemoval {
            service: scene::service("prod/feed"),
            since: None,
            author: "ops".into(),
            reason: "the rack is gone".into(),
        })
        .unwrap();
    settle(&mut servers);
    assert_same(&servers);
    assert!(servers.iter().all(|server| server.view.totals().nodes == 0));
    assert_eq!(
        servers[0].replica.session(SessionId(3)).unwrap().standing,
        Standing::Closed
    );
    assert_eq!(
        servers[0].claim(3),
        Err(Refusal::SessionNotFound {
            session: SessionId(3)
        })
    );
}

/// Its client is heard at the second server, of which the first, where the operator speaks, has not heard.
#[test]
fn an_operators_word_on_a_held_node_is_none_on_what_else_its_session_owns() {
    let words = [
        scene::deregister(None, "prod/pay/only:1"),
        Command::ConfirmRemoval {
            service: scene::service("prod/pay"),
            since: None,
            author: "ops".into(),
            reason: "the disk is broken".into(),
        },
    ];
    for word in words {
        let mut servers = three();
        ten_nodes(&mut servers[0]);
        servers[0].register(1, "prod/pay/only:1").unwrap();
        settle(&mut servers);
        servers[1].claim(1).unwrap();
        servers[0].now_ms += 1;
        servers[0].lapse(&[1]);
        assert_eq!(servers[0].state("prod/pay/only:1"), Some(NodeState::Suspect));
        assert_eq!(servers[0].state("prod/feed/n1:1"), None);
        servers[0].write(word.clone()).unwrap();
        settle(&mut servers);
        assert_same(&servers);
        for server in &servers {
            assert_eq!(server.state("prod/feed/n1:1"), Some(NodeState::Up), "{word:?}");
            assert_eq!(server.state("prod/pay/only:1"), None, "{word:?}");
        }
        servers[1].claim(1).unwrap();
    }
}

#[test]
fn two_lapses_of_one_claim_hold_what_both_hold() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    for node in ["a", "b", "c"] {
        servers[0].register(1, &format!("prod/{node}/x:1")).unwrap();
    }
    settle(&mut servers);
    // The last node of a service is held, so all three are suspects.
    servers[0].lapse(&[1]);
    settle(&mut servers);
    for (at, service) in [(1, "prod/a"), (2, "prod/b")] {
        servers[at]
            .write(Command::ConfirmRemoval {
                service: scene::service(service),
                since: None,
                author: String::new(),
                reason: String::new(),
            })
            .unwrap();
    }
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        assert_eq!(server.view.totals().nodes, 1);
        assert_eq!(server.state("prod/c/x:1"), Some(NodeState::Suspect));
    }
}

#[test]
fn a_stamp_from_the_far_future_is_refused_and_accepted_when_its_time_has_come() {
    let mut servers = three();
    servers[0].now_ms += 3_600_000;
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    let (wild, other) = two(&mut servers, 0, 1);
    let merged = other.hear(records_of(wild));
    assert_eq!(merged.taken, 0);
    assert_eq!(merged.refused.unwrap().ahead_ms, 3_600_000);
    assert_eq!(other.view.totals().nodes, 0);
    // It wins over nobody meanwhile.
    other.claim(2).unwrap();
    other.register(2, "prod/feed/a:1").unwrap();
    assert!(other.replica.latest().millis < wild.now_ms);
    other.now_ms += 3_600_000 - AHEAD_MAX_MS;
    assert!(other.hear(records_of(wild)).refused.is_none());
}

#[test]
fn numbers_are_not_given_out_twice_though_their_records_were_superseded() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    settle(&mut servers);
    let (one, two) = two(&mut servers, 0, 1);
    two.follow(one);
    two.now_ms += 10;
    two.claim(2).unwrap();
    two.register(2, "prod/feed/a:1").unwrap();
    one.follow(two);
    // Its last record is the other's now; its number is not free for all that.
    one.restart();
    one.now_ms += 20;
    one.register(1, "prod/feed/b:1")
        .unwrap_or_else(|refusal| panic!("{refusal}"));
    two.follow(one);
    assert_eq!(two.state("prod/feed/b:1"), Some(NodeState::Up));
}

/// Who vouches for a node may be another by now, whom whoever hears of the node has not heard.
#[test]
fn a_node_is_not_heard_of_before_its_session_though_that_was_claimed_elsewhere() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    settle(&mut servers);
    servers[1].now_ms += 1;
    servers[1].claim(2).unwrap();
    servers[1].register(2, "prod/feed/a:1").unwrap();
    let (third, second) = two(&mut servers, 2, 1);
    third.follow(second);
    third.claim(2).unwrap();
    second.follow(third);
    let (first, second) = two(&mut servers, 0, 1);
    first.follow(second);
    assert_eq!(first.state("prod/feed/a:1"), Some(NodeState::Up));
    assert_eq!(
        first.replica.session(SessionId(2)),
        second.replica.session(SessionId(2))
    );
}

/// The same if the log tells of the session again, but only behind the node.
#[test]
fn a_node_is_not_heard_of_before_its_session_in_whatever_pieces_the_log_comes() {
    for bytes_max in [1, 64, 200, 100_000] {
        let mut servers = three();
        servers[0].claim(1).unwrap();
        servers[0].register(1, "prod/feed/a:1").unwrap();
        settle(&mut servers);
        let (first, second) = two(&mut servers, 0, 1);
        second.now_ms += 1;
        second.claim(2).unwrap();
        second.register(2, "prod/feed/a:1").unwrap();
        second.lapse(&[2]);
        second.revive(2);
        let mut after = Default::default();
        loop {
            let range = second.replica.range(after, bytes_max);
            let mut told = range
                .records
                .iter()
                .map(|record| record.key.clone())
                .collect::<Vec<_>>();
            told.sort();
            told.dedup();
            assert_eq!(told.len(), range.records.len(), "each is told once");
            assert_eq!(range.encoded().count(), told.len());
            first.hear(range.records.iter().map(|record| Record::clone(record)).collect());
            assert_eq!(first.state("prod/feed/a:1"), Some(NodeState::Up));
            after = range.through;
            if !range.more {
                break;
            }
        }
    }
}

/// With the sessions that stand before the records a piece is about as long as it may be.
#[test]
fn pieces_of_the_log_keep_their_bound_with_the_sessions_before_them() {
    const BYTES_MAX: usize = 4_096;
    let mut servers = three();
    for session in 1..=200 {
        servers[0].claim(session).unwrap();
        servers[0]
            .register(session, &format!("prod/feed/n{session}:1"))
            .unwrap();
    }
    settle(&mut servers);
    for session in 1..=200 {
        servers[1].claim(session).unwrap();
    }
    settle(&mut servers);
    let longest = |server: &Server| {
        let sizes = records_of(server).into_iter().map(|record| record.encode().len());
        sizes.max().unwrap()
    };
    let slack = longest(&servers[0]) + longest(&servers[1]);
    let (mut after, mut told) = (Default::default(), 0);
    loop {
        let range = servers[0].replica.range(after, BYTES_MAX);
        let bytes: usize = range.encoded().map(|record| record.len()).sum();
        assert!(bytes < 5 * BYTES_MAX + slack, "{bytes} bytes");
        told += range.records.len();
        after = range.through;
        if !range.more {
            break;
        }
    }
    assert_eq!(told, 400);
}

/// A session that lapsed names all of its nodes that are held: told again with each of them it would be more than the log.
#[test]
fn a_large_session_is_told_once_in_a_piece() {
    const BYTES_MAX: usize = 4_096;
    let mut servers = three();
    servers[0].claim(1).unwrap();
    for number in 0..300 {
        let node = format!("prod/feed/{}{number}:1", "n".repeat(100));
        servers[0].register(1, &node).unwrap();
    }
    servers[0].lapse(&[1]);
    let log: usize = records_of(&servers[0])
        .into_iter()
        .map(|record| record.encode().len())
        .sum();
    let (mut after, mut pieces, mut bytes) = (Default::default(), 0, 0);
    loop {
        let range = servers[0].replica.range(after, BYTES_MAX);
        pieces += 1;
        bytes += range.encoded().map(|record| record.len()).sum::<usize>();
        after = range.through;
        if !range.more {
            break;
        }
    }
    let session = records_of(&servers[0])
        .into_iter()
        .map(|record| record.encode().len())
        .max()
        .unwrap();
    assert!(
        session > 5 * BYTES_MAX,
        "it lapsed with all of its nodes: {session} bytes"
    );
    assert!(pieces <= log / BYTES_MAX + 2, "{pieces} pieces of {log} bytes");
    assert!(bytes <= log + pieces * session, "{bytes} bytes");
}

#[test]
fn what_is_dead_is_forgotten_everywhere_and_is_not_taken_in_again() {
    const RETENTION_MS: u64 = 60_000;
    let mut servers = three();
    ten_nodes(&mut servers[0]);
    servers[0].deregister("prod/feed/n2:1").unwrap();
    servers[0].lapse(&[3]);
    settle(&mut servers);
    let records = servers[0].replica.len();
    for server in &mut servers[..2] {
        server.now_ms += 2 * RETENTION_MS;
        server.purge(RETENTION_MS);
    }
    // A tombstone; a lapsed session and its node.
    assert_eq!(servers[0].replica.len(), records - 3);
    let (fresh, stale) = two(&mut servers, 0, 2);
    fresh.repair_from(stale);
    assert_eq!(fresh.replica.len(), records - 3);
    stale.now_ms = fresh.now_ms;
    stale.purge(RETENTION_MS);
    settle(&mut servers);
    assert_same(&servers);
    assert_eq!(servers[2].view.totals().nodes, 8);
}

/// One server takes a node over before it has heard of the lapse by which another holds it.
fn a_session_whose_held_node_went_to_another() -> Vec<Server> {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    settle(&mut servers);
    servers[1].now_ms += 1;
    servers[1].claim(2).unwrap();
    servers[1].register(2, "prod/feed/a:1").unwrap();
    servers[0].lapse(&[1]);
    assert_eq!(servers[0].state("prod/feed/a:1"), Some(NodeState::Suspect));
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        let standing = &server.replica.session(SessionId(1)).unwrap().standing;
        assert!(matches!(standing, Standing::Lapsed { held } if held.len() == 1));
    }
    servers
}

/// Each at its own time, with comparisons in between.
fn purge_by_turns(servers: &mut [Server], retention_ms: u64) {
    for server in &mut *servers {
        server.now_ms += 2 * retention_ms;
    }
    for at in 0..servers.len() {
        servers[at].purge(retention_ms);
        settle(servers);
    }
}

#[test]
fn a_session_whose_held_node_went_to_another_is_forgotten_though_servers_do_not_purge_together() {
    const RETENTION_MS: u64 = 60_000;
    let mut servers = a_session_whose_held_node_went_to_another();
    // At first they all know that nothing is held any more...
    purge_by_turns(&mut servers, RETENTION_MS);
    assert_same(&servers);
    for server in &servers {
        let standing = &server.replica.session(SessionId(1)).unwrap().standing;
        assert_eq!(*standing, Standing::Lapsed { held: Vec::new() });
    }
    // ... and then forget it as any other.
    purge_by_turns(&mut servers, RETENTION_MS);
    assert_same(&servers);
    for server in &servers {
        assert!(server.replica.session(SessionId(1)).is_none());
        assert_eq!(server.state("prod/feed/a:1"), Some(NodeState::Up));
    }
}

/// Its client may come back while one server has purged it and the others have not.
#[test]
fn a_session_that_holds_nothing_any_more_is_claimed_after_its_last_claim() {
    const RETENTION_MS: u64 = 60_000;
    let mut servers = a_session_whose_held_node_went_to_another();
    for server in &mut servers {
        server.now_ms += 2 * RETENTION_MS;
    }
    servers[0].purge(RETENTION_MS);
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/m:1").unwrap();
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        assert_eq!(server.state("prod/feed/m:1"), Some(NodeState::Up));
    }
}

/// Whoever asks for a second disk is told nothing of a write that only this server's disk has.
#[test]
fn a_request_that_is_repeated_gives_what_it_was_about_as_it_is_now_and_writes_nothing() {
    let mut server = Server::new(1);
    server.claim(1).unwrap();
    server.claim(2).unwrap();
    let disabled = Override {
        disabled: Some(true),
        ..Override::default()
    };
    let over = scene::set_override("prod/feed/b:1", disabled);
    for (id, command) in [
        (1, scene::register(1, &["prod/feed/a:1"])),
        (2, scene::deregister(None, "prod/feed/c:1")),
        (3, over),
    ] {
        let written = server.request(id, command.clone());
        assert!(written.known.is_empty() && !written.stored.is_empty());
        let written: Vec<Record> = written
            .stored
            .iter()
            .map(|stored| Record::clone(&stored.record))
            .collect();
        let again = server.request(id, command);
        assert!(again.applied.result.unwrap().repeated && again.stored.is_empty());
        let known = |record: &Record| again.known.iter().any(|known| **known == *record);
        assert!(written.iter().all(known), "request {id}");
    }
    // Another took it over meanwhile: that is what a second disk must have.
    server.now_ms += 1;
    server.register(2, "prod/feed/a:1").unwrap();
    let again = server.request(1, scene::register(1, &["prod/feed/a:1"]));
    let keys: Vec<&Key> = again.known.iter().map(|record| &record.key).collect();
    assert_eq!(
        keys,
        [
            &Key::Session(SessionId(1)),
            &Key::Node(scene::node("prod/feed/a:1"))
        ]
    );
    assert!(again.known.iter().all(|record| {
        let now = server.replica.record(&record.key);
        now == Some(record)
    }));
}

#[test]
fn definitions_and_openings_are_not_written_to_the_view() {
    let mut server = Server::new(1);
    let refusal = server.write(scene::put_group("other")).unwrap_err();
    assert!(refusal.to_string().contains("Raft directory"), "{refusal}");
}

/// Clients choose the ids of their requests as they like.
#[test]
fn no_request_id_of_a_client_stands_in_the_way_of_a_definition() {
    let mut server = Server::new(1);
    server.claim(1).unwrap();
    server.register(1, "prod/feed/a:1").unwrap();
    for n in 100..300 {
        let tiny = scene::deregister(None, "prod/feed/unknown:1");
        assert!(server.request(u128::MAX - n, tiny).applied.result.is_ok());
    }
    let requests = server.view.totals().requests;
    for n in 0..200 {
        server.define(&format!("late{n}"));
    }
    // And none is forgotten for them.
    assert_eq!(server.view.totals().requests, requests);
    let tiny = scene::deregister(None, "prod/feed/unknown:1");
    let again = server.request(u128::MAX - 100, tiny).applied.result.unwrap();
    assert!(again.repeated);
}

#[test]
fn a_group_that_is_defined_late_shows_what_was_heard_before() {
    let mut servers = three();
    servers[0].define("late");
    servers[0].claim(1).unwrap();
    servers[0].register(1, "late/feed/a:1").unwrap();
    settle(&mut servers);
    assert_eq!(servers[1].state("late/feed/a:1"), None);
    servers[1].define("late");
    assert_eq!(servers[1].state("late/feed/a:1"), Some(NodeState::Up));
}

/// The later word wins also if it changes nothing where it was said, because what came before it has not come there.
#[test]
fn words_that_change_nothing_where_they_are_said_win_over_earlier_ones_from_elsewhere() {
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, "prod/feed/a:1").unwrap();
    servers[0].register(1, "prod/feed/b:1").unwrap();
    settle(&mut servers);
    let later = |servers: &mut [Server]| servers.iter_mut().for_each(|server| server.now_ms += 1);
    // Nobody has heard anything of what follows. A node is deregistered at one server, then registered as it was.
    later(&mut servers);
    servers[1].deregister("prod/feed/a:1").unwrap();
    later(&mut servers);
    assert!(!servers[0].register(1, "prod/feed/a:1").unwrap().changed);
    // Another is registered at one server, then deregistered where nobody knows it.
    servers[0].register(1, "prod/feed/c:1").unwrap();
    later(&mut servers);
    assert!(!servers[2].deregister("prod/feed/c:1").unwrap().changed);
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        assert_eq!(server.state("prod/feed/a:1"), Some(NodeState::Up));
        assert_eq!(server.state("prod/feed/b:1"), Some(NodeState::Up));
        assert_eq!(server.state("prod/feed/c:1"), None);
    }
}

/// The same of updates and of an operator's word.
#[test]
fn updates_and_overrides_that_change_nothing_where_they_are_said_win_over_earlier_ones_from_elsewhere() {
    const NODE: &str = "prod/feed/a:1";
    let mut servers = three();
    servers[0].claim(1).unwrap();
    servers[0].register(1, NODE).unwrap();
    let weighs = |weight| Command::Update {
        session: None,
        nodes: vec![UpdateNode {
            weight: Some(weight),
            ..scene::update_node(NODE)
        }],
    };
    let overrides = |weight| {
        let over = Override {
            weight: Some(weight),
            ..Override::default()
        };
        scene::set_override(NODE, over)
    };
    servers[0].write(weighs(5)).unwrap();
    settle(&mut servers);
    let later = |servers: &mut [Server]| servers.iter_mut().for_each(|server| server.now_ms += 1);
    later(&mut servers);
    assert!(servers[1].write(weighs(7)).unwrap().changed);
    assert!(servers[1].write(overrides(9)).unwrap().changed);
    later(&mut servers);
    assert!(!servers[0].write(weighs(5)).unwrap().changed);
    let clear = Command::ClearOverride {
        key: scene::node(NODE),
    };
    assert!(!servers[2].write(clear).unwrap().changed);
    settle(&mut servers);
    assert_same(&servers);
    for server in &servers {
        let service = server.view.service(&scene::service("prod/feed")).unwrap();
        assert_eq!(service.view(&scene::node(NODE).node).unwrap().weight(), 5);
    }
}
