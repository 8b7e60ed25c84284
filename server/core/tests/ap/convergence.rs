//! Whatever three servers do, and in whatever pieces they hear of it, they end up the same.

use proptest::prelude::*;
use rollcall_core::directory::{Command, Override};
use rollcall_core::ids::{Revision, SessionId};

use crate::scene;
use crate::server::{Server, assert_same, settle, two};

#[derive(Clone, Debug)]
enum Step {
    Claim(u64),
    Register(u64, usize),
    Deregister(usize),
    Close(u64),
    Lapse(Vec<u64>),
    Revive(u64),
    Disable(usize, bool),
    Static(usize),
    Confirm,
    Follow(usize),
    Repair(usize),
    Wait(u64),
    Restart,
}

const NODES: [&str; 6] = [
    "prod/feed/a:1",
    "prod/feed/b:1",
    "prod/feed/c:1",
    "prod/feed/d:1",
    "prod/pay/a:1",
    "prod/pay/b:1",
];

fn step() -> impl Strategy<Value = (usize, Step)> {
    let session = || 1..4u64;
    let node = || 0..NODES.len();
    let step = prop_oneof![
        3 => session().prop_map(Step::Claim),
        6 => (session(), node()).prop_map(|(session, node)| Step::Register(session, node)),
        2 => node().prop_map(Step::Deregister),
        1 => session().prop_map(Step::Close),
        3 => prop::collection::vec(session(), 1..3).prop_map(Step::Lapse),
        2 => session().prop_map(Step::Revive),
        1 => (node(), any::<bool>()).prop_map(|(node, disabled)| Step::Disable(node, disabled)),
        1 => node().prop_map(Step::Static),
        1 => Just(Step::Confirm),
        4 => (0..3usize).prop_map(Step::Follow),
        2 => (0..3usize).prop_map(Step::Repair),
        2 => (0..300u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    (0..3usize, step)
}

fn take(servers: &mut [Server], at: usize, step: &Step) {
    let server = &mut servers[at];
    // A refusal is an answer like any other here.
    match step {
        Step::Claim(session) => _ = server.claim(*session),
        Step::Register(session, node) => _ = server.register(*session, NODES[*node]),
        Step::Deregister(node) => _ = server.deregister(NODES[*node]),
        Step::Close(session) => {
            _ = server.write(Command::CloseSession {
                session: SessionId(*session),
            });
        }
        Step::Lapse(sessions) => server.lapse(sessions),
        Step::Revive(session) => server.revive(*session),
        Step::Disable(node, disabled) => {
            let key = scene::node(NODES[*node]);
            _ = server.write(match disabled {
                true => Command::SetOverride {
                    key,
                    over: Override {
                        disabled: Some(true),
                        set_at: Revision(0),
                        ..Override::default()
                    },
                },
                false => Command::ClearOverride { key },
            });
        }
        Step::Static(node) => {
            let mut asked = scene::register_node(NODES[*node]);
            asked.registration.kind = Some(rollcall_core::directory::NodeKind::Static);
            _ = server.write(Command::Register {
                session: None,
                nodes: vec![asked],
            });
        }
        Step::Confirm => {
            _ = server.write(Command::ConfirmRemoval {
                service: scene::service("prod/feed"),
                since: None,
                author: String::new(),
                reason: String::new(),
            });
        }
        Step::Follow(from) if *from != at => {
            let (to, from) = two(servers, at, *from);
            to.follow(from);
        }
        Step::Repair(from) if *from != at => {
            let (to, from) = two(servers, at, *from);
            to.repair_from(from);
        }
        Step::Follow(_) | Step::Repair(_) => {}
        // Clocks of their own, never further apart than is accepted.
        Step::Wait(ms) => {
            let slowest = servers.iter().map(|server| server.now_ms).min().unwrap();
            servers[at].now_ms = (servers[at].now_ms + ms).min(slowest + 400);
        }
        Step::Restart => server.restart(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn servers_that_have_compared_everything_are_the_same(steps in prop::collection::vec(step(), 1..80)) {
        let mut servers: Vec<Server> = (1..=3).map(Server::new).collect();
        for (at, step) in &steps {
            take(&mut servers, *at, step);
        }
        settle(&mut servers);
        assert_same(&servers);
        // And from their disks.
        servers.iter_mut().for_each(Server::restart);
        assert_same(&servers);
    }
}
