//! A guarded service under leaders that come and go, watched by someone who knows only the changes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rollcall_core::directory::{
    Command, Directory, ExpiryFence, Limits, NodeChange, NodeState, Outcome, Override, Refusal, RemovalCause,
    Request, RevisionChanges, RevivalFence, ServiceChange, SessionChange,
};
use rollcall_core::guard::{GuardSettings, GuardStatus};
use rollcall_core::ids::{LogIndex, LogPosition, NodeId, RequestId, Revision, SessionId, Term};

use crate::scene;

const SERVICE: &str = "prod/feed";

#[derive(Clone, Debug)]
enum Step {
    /// New clients, each with a session and a node.
    Join(u8),
    /// Clients fall silent, or are heard again.
    Silence(Vec<u8>),
    Return(Vec<u8>),
    /// The leader looks at its clock: whoever is silent lapses, in commands of at most so many sessions.
    Tick(usize),
    /// The leader looks at its mail: lapsed sessions whose clients speak again are revived.
    Mail,
    /// A client writes under its session.
    Write(u8),
    /// A client takes its node back, an operator does, or another client takes it over.
    Leave(u8),
    Strike(u8),
    TakeOver(u8, u8),
    WindowOver,
    HoldOver,
    Confirm,
    /// All that leaders ever said of windows, holds and sessions is said again, in the old term.
    Repeat,
    Elect,
    Reload,
    Settings(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(any::<u8>(), 1..12);
    prop_oneof![
        3 => (1u8..4).prop_map(Step::Join),
        4 => some().prop_map(Step::Silence),
        3 => some().prop_map(Step::Return),
        8 => (1usize..6).prop_map(Step::Tick),
        3 => Just(Step::Mail),
        1 => any::<u8>().prop_map(Step::Write),
        1 => any::<u8>().prop_map(Step::Leave),
        1 => any::<u8>().prop_map(Step::Strike),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(node, by)| Step::TakeOver(node, by)),
        3 => Just(Step::WindowOver),
        2 => Just(Step::HoldOver),
        1 => Just(Step::Confirm),
        1 => Just(Step::Repeat),
        1 => Just(Step::Elect),
        1 => Just(Step::Reload),
        1 => prop::sample::select(vec![0u32, 2_000, 3_000, 5_000]).prop_map(Step::Settings),
    ]
}

/// What the watcher knows: the nodes, and what was removed in which window.
#[derive(Default)]
struct Watcher {
    nodes: BTreeMap<NodeId, NodeState>,
    status: GuardStatus,
    /// Of the window under way.
    removed: u32,
    baseline: u32,
}

impl Watcher {
    /// Every promise of the guard, at every revision.
    fn take_in(
        &mut self,
        changes: &RevisionChanges,
        share: u32,
        now: &GuardStatus,
    ) -> Result<(), TestCaseError> {
        let (listed, before) = (self.nodes.len(), self.status);
        for change in &changes.guards {
            self.status = change.status;
        }
        if self.status.window != before.window {
            (self.removed, self.baseline) = (0, u32::try_from(listed).unwrap());
        }
        let (mut struck, mut held) = (0, 0);
        for change in changes.services.iter().flat_map(|service| &service.nodes) {
            match change {
                NodeChange::Put { node, .. } => {
                    held += u32::from(node.state == NodeState::Suspect);
                    let id = node.registration.id.clone();
                    self.baseline += u32::from(self.nodes.insert(id, node.state).is_none());
                }
                NodeChange::Removed { id, cause, .. } => {
                    let was = self.nodes.remove(id).expect("it was listed");
                    match cause {
                        RemovalCause::Expired => {
                            struck += 1;
                            let released = was == NodeState::Suspect;
                            prop_assert!(
                                released || before.engaged.is_none(),
                                "nothing lapses away while engaged"
                            );
                            prop_assert!(!released || before.held > 0);
                        }
                        RemovalCause::Deregistered | RemovalCause::SessionClosed => self.baseline -= 1,
                    }
                }
            }
        }
        if struck > 0 {
            self.removed += struck;
            let within = u64::from(self.removed) * 10_000 <= u64::from(self.baseline) * u64::from(share);
            prop_assert!(
                self.removed <= 1 || within,
                "{} of {}",
                self.removed,
                self.baseline
            );
            prop_assert!(!self.nodes.is_empty(), "the last node never lapses away");
            prop_assert_eq!(self.removed, self.status.removed);
        }
        if let Some(engaged) = now.engaged {
            let up = self.nodes.values().filter(|state| **state == NodeState::Up);
            let enough = up.count() >= engaged.needed as usize;
            // Looked at with every write to the service but those that hold more of it: between two commands of
            // one tick the rest of its lapses is still to be told.
            let is_written =
                |service: &ServiceChange| !service.nodes.is_empty() || service.settings.is_some();
            let is_due = changes.services.iter().any(is_written) && held == 0;
            prop_assert!(
                !enough || !is_due,
                "it disengages as soon as enough are up: {now:?}"
            );
        }
        prop_assert_eq!(now.engaged.is_some(), self.status.engaged.is_some());
        let suspects = self
            .nodes
            .values()
            .filter(|state| **state == NodeState::Suspect)
            .count();
        prop_assert_eq!(self.status.held as usize, suspects);
        Ok(())
    }
}

struct World {
    directory: Directory,
    at: LogPosition,
    settings: GuardSettings,
    watcher: Watcher,
    clients: Vec<SessionId>,
    silent: BTreeSet<SessionId>,
    /// What leaders said.
    said: Vec<Command>,
}

impl World {
    fn commit(&mut self, command: Command) -> Result<Result<Outcome, Refusal>, TestCaseError> {
        self.at.index.0 += 1;
        let request = Request {
            id: RequestId(u128::from(self.at.index.0)),
            command,
        };
        let request = Request::decode(&request.encode()).expect("its own bytes");
        let reading = |directory: &Directory| {
            let service = directory.service(&scene::service(SERVICE))?;
            Some((service.modified, service.sign, service.guard_said()))
        };
        let before = reading(&self.directory);
        let applied = self.directory.apply(self.at, &request);
        if let (Some(before), Some(now)) = (before, reading(&self.directory))
            && before.0 == now.0
        {
            prop_assert_eq!(
                before,
                now,
                "what is told of a service is known by when it was modified"
            );
        }
        if let Some(changes) = &applied.changes {
            prop_assert!(
                changes.services.len() <= 1,
                "one change of the service in a revision"
            );
            let now = self.directory.service(&scene::service(SERVICE));
            let now = now.map(|service| service.guard_status()).unwrap_or_default();
            for guard in changes
                .services
                .iter()
                .filter_map(|service| service.guard.as_deref().copied())
            {
                prop_assert_eq!(guard, now, "what watchers are told is what it says");
            }
            self.watcher.take_in(changes, self.settings.share, &now)?;
        }
        Ok(applied.result)
    }

    fn say(&mut self, command: Command) -> Result<(), TestCaseError> {
        self.said.push(command.clone());
        let said = self.commit(command)?;
        prop_assert!(said.is_ok());
        Ok(())
    }

    fn join(&mut self) -> Result<(), TestCaseError> {
        let session = self.commit(scene::open_session())?.unwrap().session.unwrap();
        let path = format!("{SERVICE}/n{session}:80");
        self.commit(scene::register(session.0, &[&path]))?.unwrap();
        self.clients.push(session);
        Ok(())
    }

    fn chosen(&self, n: u8) -> Option<SessionId> {
        let n = usize::from(n).checked_rem(self.clients.len())?;
        Some(self.clients[n])
    }

    /// All of the tick's lapses go, or none, however many commands tell them.
    fn tick(&mut self, chunk: usize) -> Result<(), TestCaseError> {
        let lapses = |id: &&SessionId| self.directory.session(**id).is_some_and(|s| s.lapsed.is_none());
        let silent: Vec<SessionId> = self.silent.iter().filter(lapses).copied().collect();
        let nodes_of = |world: &Self, ids: &[SessionId]| -> usize {
            let sessions = ids.iter().filter_map(|id| world.directory.session(*id));
            sessions.map(|session| session.nodes.len()).sum()
        };
        let all = nodes_of(self, &silent);
        let (mut told, mut struck) = (0, 0);
        for ids in silent.chunks(chunk) {
            let count = nodes_of(self, ids);
            told += count;
            let fence = |id: &SessionId| ExpiryFence {
                session: *id,
                last_renewal: self.directory.session(*id).unwrap().last_renewal,
            };
            let following = u32::try_from(all - told).unwrap();
            let following = (following > 0).then(|| (scene::service(SERVICE), following));
            let command = Command::ExpireSessions {
                term: self.at.term,
                sessions: ids.iter().map(fence).collect(),
                following: following.into_iter().collect(),
            };
            let listed = self.watcher.nodes.len();
            self.say(command)?;
            let gone = listed - self.watcher.nodes.len();
            prop_assert!(gone == 0 || gone == count, "all of a command's lapses or none");
            struck += gone;
        }
        prop_assert!(
            struck == 0 || struck == all,
            "all of a tick's lapses or none: {struck} of {all}"
        );
        Ok(())
    }

    /// Who lost a node is told that its session is gone: what it still has goes to another one, at once.
    fn reopen(&mut self, lost: SessionId) -> Result<(), TestCaseError> {
        let owned: Vec<String> = {
            let session = self.directory.session(lost).expect("it is there");
            session.nodes.keys().map(|key| key.to_string()).collect()
        };
        let paths: Vec<&str> = owned.iter().map(String::as_str).collect();
        let session = self.commit(scene::open_session())?.unwrap().session.unwrap();
        self.commit(scene::register(session.0, &paths))?.unwrap();
        for path in paths {
            let node = self.directory.node(&scene::node(path)).expect("it never left");
            prop_assert_eq!((node.state, node.session()), (NodeState::Up, Some(session)));
        }
        prop_assert!(self.directory.session(lost).is_none() && self.directory.has_lost_nodes(lost));
        self.clients.retain(|client| *client != lost);
        self.clients.push(session);
        Ok(())
    }

    fn mail(&mut self) -> Result<(), TestCaseError> {
        let lost = self.directory.sessions().filter(|session| session.lost_nodes);
        let lost: Vec<SessionId> = lost.map(|session| session.id).collect();
        for id in lost
            .into_iter()
            .filter(|id| !self.silent.contains(id))
            .collect::<Vec<_>>()
        {
            self.reopen(id)?;
        }
        let speaks = |id: &SessionId| !self.silent.contains(id);
        let lapsed = self.directory.sessions().filter(|session| speaks(&session.id));
        let fences: Vec<RevivalFence> = lapsed
            .filter_map(|session| {
                let (session, lapsed) = (session.id, session.lapsed?);
                Some(RevivalFence { session, lapsed })
            })
            .collect();
        if fences.is_empty() {
            return Ok(());
        }
        let term = self.at.term;
        self.say(Command::ReviveSessions {
            term,
            sessions: fences.clone(),
        })?;
        for fence in fences {
            let session = self.directory.session(fence.session).expect("it goes on");
            prop_assert!(session.lapsed.is_none() && session.last_renewal == self.at.index);
        }
        Ok(())
    }

    fn word(&self, window: bool) -> Option<Command> {
        let key = scene::service(SERVICE);
        let guard = &self.directory.service(&key)?.guard;
        let term = self.at.term;
        if window {
            let windows = vec![(key, guard.window()?.began)];
            Some(Command::CloseGuardWindows { term, windows })
        } else {
            let holds = vec![(key, guard.hold()?.since)];
            Some(Command::ReleaseHeld { term, holds })
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Join(count) => (0..count).try_for_each(|_| self.join())?,
            Step::Silence(some) => self
                .silent
                .extend(some.iter().filter_map(|n| self.chosen(*n)).collect::<Vec<_>>()),
            Step::Return(some) => {
                for id in some.iter().filter_map(|n| self.chosen(*n)).collect::<Vec<_>>() {
                    self.silent.remove(&id);
                }
            }
            Step::Tick(chunk) => self.tick(chunk)?,
            Step::Mail => self.mail()?,
            Step::Write(n) => {
                let Some(id) = self.chosen(n) else { return Ok(()) };
                let found = self
                    .directory
                    .session(id)
                    .is_some_and(|session| !session.lost_nodes);
                let written = self.commit(scene::register(id.0, &[&format!("{SERVICE}/n{id}:80")]))?;
                prop_assert_eq!(written.is_ok(), found);
                let lapsed = self
                    .directory
                    .session(id)
                    .is_some_and(|session| session.lapsed.is_some());
                prop_assert!(!found || !lapsed, "a write is a sign of life");
            }
            Step::Leave(n) => {
                let Some(id) = self.chosen(n) else { return Ok(()) };
                let close = Command::CloseSession { session: id };
                let lives = self.directory.session(id).is_some();
                prop_assert_eq!(self.commit(close)?.is_ok(), lives, "leaving is never guarded");
            }
            Step::Strike(n) => {
                let Some(id) = self.chosen(n) else { return Ok(()) };
                let path = format!("{SERVICE}/n{id}:80");
                self.commit(scene::deregister(None, &path))?
                    .expect("an operator's word is never guarded");
                prop_assert!(self.directory.node(&scene::node(&path)).is_none());
            }
            Step::TakeOver(node, by) => {
                let (Some(node), Some(by)) = (self.chosen(node), self.chosen(by)) else {
                    return Ok(());
                };
                let path = format!("{SERVICE}/n{node}:80");
                if self.commit(scene::register(by.0, &[&path]))?.is_ok() {
                    let node = self
                        .directory
                        .node(&scene::node(&path))
                        .expect("it was registered");
                    prop_assert_eq!((node.state, node.session()), (NodeState::Up, Some(by)));
                }
            }
            Step::WindowOver => self.word(true).map_or(Ok(()), |word| self.say(word))?,
            Step::HoldOver => self.word(false).map_or(Ok(()), |word| self.say(word))?,
            Step::Confirm => {
                let since = self.watcher.status.held_since;
                let service = scene::service(SERVICE);
                let (author, reason) = ("ann".into(), "gone".into());
                self.commit(Command::ConfirmRemoval {
                    service,
                    since,
                    author,
                    reason,
                })?
                .unwrap();
                prop_assert_eq!((self.watcher.status.held, self.watcher.status.engaged), (0, None));
            }
            Step::Repeat => {
                let revision = self.directory.revision();
                for word in self.said.clone() {
                    self.commit(word)?.unwrap();
                }
                // A leader of the same term may have said what still stands; only the hold is told at once.
                if self.said.iter().all(|word| term_of(word) != self.at.term) {
                    prop_assert_eq!(
                        self.directory.revision(),
                        revision,
                        "an old leader's word is void"
                    );
                }
            }
            Step::Elect => self.at.term.0 += 1,
            Step::Reload => {
                let read = Directory::decode_snapshot(&self.directory.encode_snapshot()).unwrap();
                prop_assert_eq!(read.state_hash(), self.directory.state_hash());
                prop_assert_eq!(read.totals(), self.directory.totals());
                self.directory = read;
            }
            Step::Settings(share) => {
                self.settings.share = share;
                let settings = rollcall_core::directory::ServiceSettings {
                    guard: self.settings,
                    ..Default::default()
                };
                let put = Command::PutService {
                    key: scene::service(SERVICE),
                    settings: Some(settings),
                    expected: rollcall_core::directory::Expected::Any,
                };
                self.commit(put)?.unwrap();
            }
        }
        Ok(())
    }

    /// The faults end: nothing is stuck.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        self.mail()?;
        let silent = |world: &Self| {
            let held = world
                .directory
                .sessions()
                .filter(|session| session.lapsed.is_some());
            held.map(|session| session.id)
                .all(|id| world.silent.contains(&id))
        };
        prop_assert!(silent(self), "whoever is heard from is revived");
        for _ in 0..30 {
            self.join()?;
        }
        // As many as there ever were are up: no guard is engaged any more, and time takes what is left over.
        let suspects = self.watcher.status.held;
        if suspects <= 10 {
            prop_assert!(self.watcher.status.engaged.is_none(), "{:?}", self.watcher.status);
        }
        for _ in 0..200 {
            for window in [false, true] {
                if let Some(word) = self.word(window) {
                    self.say(word)?;
                }
            }
        }
        prop_assert_eq!((self.watcher.status.held, self.watcher.status.engaged), (0, None));
        prop_assert!(self.directory.sessions().all(|session| session.lapsed.is_none()));
        prop_assert_eq!(self.directory.guarded_services().count(), 0);
        Ok(())
    }
}

fn term_of(word: &Command) -> Term {
    match word {
        Command::ExpireSessions { term, .. }
        | Command::ReviveSessions { term, .. }
        | Command::CloseGuardWindows { term, .. }
        | Command::ReleaseHeld { term, .. } => *term,
        other => panic!("no word of a leader: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_guarded_service_keeps_every_promise(nodes in 1u8..20, steps in prop::collection::vec(step(), 1..60)) {
        let settings = GuardSettings::default();
        let mut world = World {
            directory: Directory::new(Limits::default()),
            at: LogPosition { term: Term(1), index: LogIndex(0) },
            settings,
            watcher: Watcher::default(),
            clients: Vec::new(),
            silent: BTreeSet::new(),
            said: Vec::new(),
        };
        world.commit(scene::put_group_with("prod", settings))?.unwrap();
        world.step(Step::Join(nodes))?;
        for step in steps {
            world.step(step)?;
        }
        world.heal()?;
    }
}

/// Leaving is never guarded.
#[test]
fn a_session_that_lost_nodes_may_take_out_what_is_held_of_it() {
    let mut scene = scene::Scene::new(Limits::default());
    scene.done(scene::register(1, &["prod/alone/a:80", "prod/crowd/a:80"]));
    scene.done(scene::register(2, &["prod/crowd/b:80", "prod/crowd/c:80"]));
    scene.apply(scene::expire(1, 1, 4));
    let alone = scene::node("prod/alone/a:80");
    let not_owner = Refusal::NotOwner {
        key: scene::node("prod/crowd/b:80"),
    };
    assert_eq!(
        scene.refused(scene::deregister(Some(1), "prod/crowd/b:80")),
        not_owner
    );
    let changes = scene
        .apply(scene::deregister(Some(1), "prod/alone/a:80"))
        .changes
        .unwrap();
    assert!(scene.directory.node(&alone).is_none());
    assert!(
        scene.directory.session(SessionId(1)).is_none(),
        "it had nothing else"
    );
    let revived = |change: &SessionChange| matches!(change, SessionChange::Revived { .. });
    assert!(!changes.sessions.iter().any(revived), "{:?}", changes.sessions);
}

#[test]
fn a_session_of_which_one_service_holds_nodes_leaves_the_other() {
    let mut scene = scene::Scene::new(Limits::default());
    scene.done(scene::register(1, &["prod/alone/a:80", "prod/crowd/a:80"]));
    scene.done(scene::register(2, &["prod/crowd/b:80", "prod/crowd/c:80"]));
    let changes = scene.apply(scene::expire(1, 1, 4)).changes.unwrap();
    let lapsed = SessionChange::Lapsed {
        session: SessionId(1),
        held: 1,
    };
    assert_eq!(changes.sessions, [lapsed]);
    let session = scene.directory.session(SessionId(1)).unwrap();
    assert_eq!(
        session.nodes.keys().collect::<Vec<_>>(),
        [scene::node("prod/alone/a:80")]
    );
    assert_eq!((session.lapsed, session.lost_nodes), (Some(Revision(6)), true));
    assert!(scene.directory.node(&scene::node("prod/crowd/a:80")).is_none());
    assert_eq!(
        scene.directory.held_ttl_ms(&scene::service("prod/alone")),
        Some(15_000)
    );
    assert_eq!(scene.directory.held_ttl_ms(&scene::service("prod/crowd")), None);
    // Lapsed already: another expiry is void.
    assert_eq!(scene.done(scene::expire(1, 1, 4)).voided, [SessionId(1)]);
    // Its client does not know what left, so nothing is heard or written under it any more, after a restart as before.
    let revive = Command::ReviveSessions {
        term: Term(1),
        sessions: vec![RevivalFence {
            session: SessionId(1),
            lapsed: Revision(6),
        }],
    };
    let read = Directory::decode_snapshot(&scene.directory.encode_snapshot()).unwrap();
    assert_eq!(read.state_hash(), scene.directory.state_hash());
    scene.directory = read;
    assert_eq!(scene.done(revive).voided, [SessionId(1)]);
    let not_found = Refusal::SessionNotFound {
        session: SessionId(1),
    };
    assert_eq!(scene.refused(scene::register(1, &["prod/crowd/a:80"])), not_found);
    // It registers all of it under another, which takes over what was held.
    let session = scene.done(scene::open_session()).session.unwrap();
    let again = scene.apply(scene::register(
        session.0,
        &["prod/alone/a:80", "prod/crowd/a:80"],
    ));
    let changes = again.changes.unwrap();
    let mut nodes = changes.services.iter().flat_map(|service| &service.nodes);
    assert!(
        nodes.all(|node| matches!(node, NodeChange::Put { .. })),
        "{changes:?}"
    );
    let alone = scene.directory.node(&scene::node("prod/alone/a:80")).unwrap();
    assert_eq!((alone.state, alone.session()), (NodeState::Up, Some(session)));
    assert!(scene.directory.session(SessionId(1)).is_none());
    assert!(scene.directory.has_lost_nodes(SessionId(1)) && !scene.directory.has_lost_nodes(session));
}

/// Of two nodes of a session that a guard holds one is let go: it is not found from there on, as if the guard had let that
/// node go at once.
#[test]
fn a_session_of_which_a_held_node_is_let_go_is_not_revived_with_the_rest() {
    let mut scene = scene::Scene::new(Limits::default());
    scene.done(scene::register(1, &["prod/feed/a:80", "prod/feed/b:80"]));
    scene.done(scene::expire(1, 1, 4));
    let session = scene.directory.session(SessionId(1)).unwrap();
    assert!(!session.lost_nodes && session.nodes.len() == 2);
    let lapsed = session.lapsed.unwrap();
    let held = scene
        .directory
        .service(&scene::service("prod/feed"))
        .unwrap()
        .guard;
    scene.done(Command::ReleaseHeld {
        term: Term(1),
        holds: vec![(scene::service("prod/feed"), held.hold().unwrap().since)],
    });
    let session = scene.directory.session(SessionId(1)).unwrap();
    assert!(session.lost_nodes && session.nodes.len() == 1);
    let hash = scene.directory.state_hash();
    scene.directory.settle();
    assert_eq!(scene.directory.state_hash(), hash);
    let read = Directory::decode_snapshot(&scene.directory.encode_snapshot()).unwrap();
    assert_eq!(read.state_hash(), hash);
    let revive = Command::ReviveSessions {
        term: Term(1),
        sessions: vec![RevivalFence {
            session: SessionId(1),
            lapsed,
        }],
    };
    assert_eq!(scene.done(revive).voided, [SessionId(1)]);
}

/// What is overdue goes on leaving through a second mass lapse, and what that one holds does not go with it.
#[test]
fn a_second_mass_lapse_gives_no_more_time_to_what_is_overdue_and_takes_none_from_the_rest() {
    let mut scene = scene::Scene::new(Limits::default());
    let join = |scene: &mut scene::Scene, sessions: std::ops::RangeInclusive<u64>| {
        for session in sessions {
            if session > 2 {
                scene.done(scene::open_session());
            }
            scene.done(scene::register(session, &[&format!("{SERVICE}/n{session}:80")]));
        }
    };
    let lapse = |scene: &mut scene::Scene, sessions: std::ops::RangeInclusive<u64>| {
        let fence = |id| ExpiryFence {
            session: SessionId(id),
            last_renewal: scene.directory.session(SessionId(id)).unwrap().last_renewal,
        };
        let sessions = sessions.map(fence).collect();
        let (term, following) = (Term(1), Vec::new());
        scene.done(Command::ExpireSessions {
            term,
            sessions,
            following,
        });
    };
    let status = |scene: &scene::Scene| {
        let service = scene.directory.service(&scene::service(SERVICE)).unwrap();
        service.guard_status()
    };
    let release = |scene: &mut scene::Scene| {
        let holds = vec![(scene::service(SERVICE), status(scene).held_since.unwrap())];
        scene.done(Command::ReleaseHeld { term: Term(1), holds })
    };
    let close_window = |scene: &mut scene::Scene| {
        let windows = vec![(scene::service(SERVICE), status(scene).window.unwrap())];
        scene.done(Command::CloseGuardWindows {
            term: Term(1),
            windows,
        })
    };
    join(&mut scene, 1..=20);
    lapse(&mut scene, 1..=18);
    join(&mut scene, 21..=38);
    assert!(status(&scene).engaged.is_none(), "replaced");
    release(&mut scene);
    let first = status(&scene);
    assert_eq!((first.overdue, first.held), (true, 18 - 11));

    // Fifteen of the twenty that are up.
    lapse(&mut scene, 21..=35);
    let again = status(&scene);
    assert_eq!((again.overdue, again.held), (true, 7 + 15));
    assert_eq!(again.engaged.map(|engaged| engaged.needed), Some(14));
    // An operator who saw the first hold did not mean these.
    let refused = scene.refused(Command::ConfirmRemoval {
        service: scene::service(SERVICE),
        since: first.held_since,
        author: "ops".into(),
        reason: "gone".into(),
    });
    assert!(matches!(refused, Refusal::RevisionMismatch { .. }), "{refused}");

    // What an operator says of the dead gives them no more time.
    for session in 1..=18 {
        let node = format!("{SERVICE}/n{session}:80");
        if scene.directory.node(&scene::node(&node)).is_some() {
            let over = Override {
                disabled: Some(true),
                ..Override::default()
            };
            scene.done(scene::set_override(&node, over));
        }
    }
    // The share would be eight; seven are overdue.
    close_window(&mut scene);
    let left = status(&scene);
    assert_eq!((left.held, left.up, left.allowed), (15, 5, 8));
    for session in 21..=35 {
        let node = scene
            .directory
            .node(&scene::node(&format!("{SERVICE}/n{session}:80")));
        assert_eq!(node.unwrap().state, NodeState::Suspect);
    }
    // They are as many of as many as before, and the leader counts for them now.
    close_window(&mut scene);
    let counted = status(&scene);
    assert_eq!((counted.held, counted.overdue, counted.window), (15, false, None));
    assert_eq!(counted.engaged.map(|engaged| engaged.needed), Some(14));
    assert!(counted.held_since > again.held_since);
    let read = Directory::decode_snapshot(&scene.directory.encode_snapshot()).unwrap();
    assert_eq!(read.state_hash(), scene.directory.state_hash());
    // Their time comes, too.
    release(&mut scene);
    assert_eq!((status(&scene).held, status(&scene).overdue), (15 - 6, true));
}
