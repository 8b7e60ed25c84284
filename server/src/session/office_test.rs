//! Judging without a cluster: a directory, its log, and time that the test tells.

use rollcall_core::directory::{
    Address, ChangeLogBounds, Command, Expected, GroupSettings, Labels, Limits, NodeState, RegisterNode,
    Registration, Request,
};
use rollcall_core::ids::{LogIndex, LogPosition, RequestId};

use super::*;

const HERE: ServerId = ServerId(1);
const TTL: Duration = Duration::from_secs(10);
const GRANT: Spread = Spread {
    extra: Duration::from_secs(1),
    over: Duration::ZERO,
};

fn feed() -> ServiceKey {
    ServiceKey {
        group: "test".parse().expect("a good name"),
        service: "feed".parse().expect("a good name"),
    }
}

/// A directory and the log that made it.
struct Log {
    directory: Directory,
    at: LogPosition,
}

impl Log {
    fn with_sessions(count: u64) -> Self {
        let mut log = Self {
            directory: Directory::new(Limits::default()),
            at: LogPosition::default(),
        };
        (0..count).for_each(|_| log.open());
        log
    }

    fn open(&mut self) {
        self.apply(Command::OpenSession {
            secret_digest: [0; 32],
            ttl_ms: 10_000,
            client: "test".into(),
        });
    }

    fn apply(&mut self, command: Command) {
        self.at = LogPosition {
            term: Term(1),
            index: LogIndex(self.at.index.0 + 1),
        };
        let request = Request {
            id: RequestId(self.at.index.0.into()),
            command,
        };
        self.directory.apply(self.at, &request).result.expect("applied");
    }

    /// One node of `test/feed` for each session, in their order.
    fn register_one_each(&mut self, count: u64) {
        let settings = GroupSettings {
            auto_create: true,
            ..GroupSettings::default()
        };
        let group = feed().group;
        self.apply(Command::PutGroup {
            group,
            settings,
            expected: Expected::Any,
        });
        for session in 1..=count {
            self.register(session, feed(), &format!("node-{session:06}"));
        }
    }

    fn register(&mut self, session: u64, key: ServiceKey, id: &str) {
        let registration = Registration {
            id: id.parse().expect("a good name"),
            addresses: vec![Address {
                name: "http".into(),
                host: "127.0.0.1".into(),
                port: 80,
            }]
            .into(),
            weight: 100,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: None,
            state: NodeState::Up,
        };
        self.apply(Command::Register {
            session: Some(SessionId(session)),
            nodes: vec![RegisterNode {
                key,
                registration,
                expected: Expected::Any,
            }],
        });
    }

    fn states(&self) -> Vec<NodeState> {
        let service = self.directory.service(&feed()).expect("there");
        service.nodes.values().map(|node| node.state).collect()
    }

    fn office(&self, now: Instant) -> Office {
        Office::take(Term(1), &self.directory, GRANT, now)
    }
}

#[test]
fn an_override_that_was_set_again_unseen_ends_in_its_own_time() {
    let mut log = Log::with_sessions(1);
    log.register_one_each(1);
    let bounds = ChangeLogBounds {
        revisions_max: 2,
        ..ChangeLogBounds::default()
    };
    log.directory =
        std::mem::replace(&mut log.directory, Directory::new(Limits::default())).with_change_log(bounds);
    let set = |log: &mut Log, ttl_ms| {
        let key = NodeKey {
            service: feed(),
            node: "node-000001".parse().expect("a good name"),
        };
        let over = Override {
            disabled: Some(true),
            ttl_ms,
            ..Override::default()
        };
        log.apply(Command::SetOverride { key, over });
    };
    set(&mut log, 60_000);
    let start = Instant::now();
    let mut office = log.office(start);
    set(&mut log, 600_000);
    (0..3).for_each(|_| log.open());
    assert!(
        log.directory.changes().floor() > office.seen,
        "more than is retained"
    );
    office.catch_up(&log.directory, start);
    let said_after = |office: &mut Office, from, until| {
        let words = words(office, &log.directory, from, until);
        words.iter().any(|word| matches!(word, Word::Outlived(_)))
    };
    let minute = Duration::from_secs(60);
    assert!(
        !said_after(&mut office, start, minute + TICK * 2),
        "that was the first one's time"
    );
    assert!(said_after(&mut office, start + minute + TICK * 2, minute * 9));
}

/// Ticks in time for so long, collecting what is to be said.
fn words(office: &mut Office, directory: &Directory, from: Instant, until: Duration) -> Vec<Word> {
    let mut words = Vec::new();
    let mut now = from;
    while now < from + until {
        now += TICK;
        office.tick(now);
        office.catch_up(directory, now);
        words.extend(office.take_words(directory, now));
    }
    words
}

/// The same; those that lapse.
fn run(office: &mut Office, directory: &Directory, from: Instant, until: Duration) -> Vec<ExpiryFence> {
    words(office, directory, from, until)
        .into_iter()
        .flat_map(|word| match word {
            Word::Lapsed(fences, _) => fences,
            other => panic!("nothing but lapses was expected, not {other:?}"),
        })
        .collect()
}

fn lapsed(fences: &[ExpiryFence]) -> Word {
    Word::Lapsed(fences.to_vec(), Vec::new())
}

#[test]
fn a_new_leader_grants_a_full_ttl_and_one_election_timeout() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    assert_eq!(
        run(&mut office, &log.directory, start, TTL + GRANT.extra - TICK),
        []
    );
    let later = start + TTL + GRANT.extra - TICK;
    assert_eq!(run(&mut office, &log.directory, later, TICK * 2).len(), 1);
}

#[test]
fn a_pause_of_this_server_moves_every_deadline() {
    let log = Log::with_sessions(3);
    let start = Instant::now();
    let mut office = log.office(start);
    let resumed = start + TTL * 3;
    office.tick(resumed);
    assert_eq!(office.take_words(&log.directory, resumed), []);
    assert_eq!(run(&mut office, &log.directory, resumed, TTL).len(), 0);
    assert_eq!(
        run(&mut office, &log.directory, resumed + TTL, GRANT.extra * 2).len(),
        3
    );
}

#[test]
fn a_leader_that_lost_its_quorum_begins_anew() {
    let log = Log::with_sessions(3);
    let start = Instant::now();
    let mut office = log.office(start);
    let almost = TTL + GRANT.extra - TICK;
    assert_eq!(run(&mut office, &log.directory, start, almost), []);
    let again = start + almost + TTL;
    office.tick(again);
    office.grant_anew(&log.directory, GRANT, again);
    assert_eq!(run(&mut office, &log.directory, again, almost), []);
    assert_eq!(
        run(&mut office, &log.directory, again + almost, TICK * 2).len(),
        3
    );
}

#[test]
fn lapses_found_without_a_quorum_are_withdrawn() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let fences = run(&mut office, &log.directory, start, TTL * 2);
    assert_eq!(fences.len(), 1);
    let now = start + TTL * 2;
    office.withdraw(&lapsed(&fences), 0, &log.directory, now);
    assert_eq!(office.deaf_since, Some(now));
    let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
    assert_eq!(verdict, RenewalVerdict::default());
}

/// It is over, and the quorum has just been heard.
#[test]
fn a_word_from_before_a_silence_that_is_over_begins_none() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let fences = run(&mut office, &log.directory, start, TTL * 2);
    let mut now = start + TTL * 2;
    lose_quorum(&mut office, &log, &mut now, TICK * 3);
    office.withdraw(&lapsed(&fences), 0, &log.directory, now);
    assert_eq!((office.deaf_since, office.silences), (None, 1));
    assert!(office.is_counting(SessionId(1)));
}

/// There was no room for a word about it.
#[test]
fn who_was_overdue_before_a_silence_begins_anew() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let mut now = start;
    while now < start + TTL * 2 {
        now += TICK;
        office.tick(now);
    }
    assert!(!lose_quorum(&mut office, &log, &mut now, TICK * 3));
    assert_eq!(run(&mut office, &log.directory, now, TTL - TICK), []);
    assert_eq!(
        run(&mut office, &log.directory, now + TTL - TICK, SILENCE.0 * 2).len(),
        1
    );
}

#[test]
fn a_renewal_while_the_expiry_is_under_way_waits_for_the_log() {
    let mut log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let fences = run(&mut office, &log.directory, start, TTL * 2);
    let now = start + TTL * 2;
    let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
    assert_eq!(verdict.undecided, [SessionId(1)]);
    log.apply(Command::ExpireSessions {
        term: Term(1),
        sessions: fences.clone(),
        following: Vec::new(),
    });
    office.settle(&lapsed(&fences), &log.directory, now);
    let verdict = office.renew(HERE, &[SessionId(1)], &log.directory, now);
    assert_eq!(verdict.not_found, [SessionId(1)]);
}

#[test]
fn a_void_expiry_counts_down_anew() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let fences = run(&mut office, &log.directory, start, TTL * 2);
    let now = start + TTL * 2;
    office.settle(&lapsed(&fences), &log.directory, now);
    assert_eq!(
        office.renew(HERE, &[SessionId(1)], &log.directory, now),
        RenewalVerdict::default()
    );
    assert_eq!(run(&mut office, &log.directory, now, TTL - TICK), []);
}

#[test]
fn a_closed_session_is_not_renewed_even_if_nobody_told_the_clock() {
    let mut log = Log::with_sessions(2);
    let now = Instant::now();
    let mut office = log.office(now);
    log.apply(Command::CloseSession {
        session: SessionId(1),
    });
    let verdict = office.renew(HERE, &[SessionId(1), SessionId(2)], &log.directory, now);
    assert_eq!(verdict.not_found, [SessionId(1)]);
    assert!(office.sessions.contains(&SessionId(2)));
}

#[test]
fn sessions_opened_after_the_office_was_taken_count_down_too() {
    let mut log = Log::with_sessions(0);
    let now = Instant::now();
    let mut office = log.office(now);
    log.open();
    office.catch_up(&log.directory, now);
    assert_eq!(office.sessions.remaining(&SessionId(1), now), Some(TTL));
    log.apply(Command::CloseSession {
        session: SessionId(1),
    });
    office.catch_up(&log.directory, now);
    assert!(office.sessions.is_empty());
}

#[test]
fn a_mass_lapse_is_proposed_in_bounded_pieces() {
    let count = WORDS_MAX * PROPOSALS_MAX + 1;
    let mut log = Log::with_sessions(count as u64);
    log.register_one_each(count as u64);
    let start = Instant::now();
    let mut office = log.office(start);
    let later = start + TTL * 2;
    let mut now = start;
    while now < later {
        now += TICK;
        office.tick(now);
    }
    let said = office.take_words(&log.directory, later);
    let pieces: Vec<_> = said
        .iter()
        .map(|word| match word {
            Word::Lapsed(fences, following) => {
                (fences.len(), following.first().map_or(0, |(_, count)| *count))
            }
            other => panic!("nothing but lapses was expected, not {other:?}"),
        })
        .collect();
    assert_eq!(pieces, [(500, 1_500), (500, 1_000), (500, 500), (500, 0)]);
    assert_eq!(office.take_words(&log.directory, later), []);
    office.settle(&said[0], &log.directory, later);
    assert_eq!(office.take_words(&log.directory, later).len(), 1);
}

/// Three of three lapse: the guard holds them all. One is heard from and revived; the others stay held, and
/// nothing counts down for them.
#[test]
fn a_held_session_is_undecided_until_the_log_has_revived_it() {
    let mut log = Log::with_sessions(3);
    log.register_one_each(3);
    let start = Instant::now();
    let mut office = log.office(start);
    let fences = run(&mut office, &log.directory, start, TTL * 2);
    let mut now = start + TTL * 2;
    log.apply(lapsed(&fences).command(Term(1)));
    office.catch_up(&log.directory, now);
    office.settle(&lapsed(&fences), &log.directory, now);
    assert_eq!(office.counts(), (0, 0));
    assert_eq!(log.states(), [NodeState::Suspect; 3]);

    let heard = SessionId(2);
    let verdict = office.renew(HERE, &[heard], &log.directory, now);
    assert_eq!(verdict.undecided, [heard]);
    now += TICK;
    office.tick(now);
    let said = office.take_words(&log.directory, now);
    let [word @ Word::Heard(_)] = said.as_slice() else {
        panic!("a revival was expected, not {said:?}");
    };
    log.apply(word.command(Term(1)));
    office.catch_up(&log.directory, now);
    office.settle(word, &log.directory, now);
    assert_eq!(
        log.states(),
        [NodeState::Suspect, NodeState::Up, NodeState::Suspect]
    );
    assert_eq!(
        office.renew(HERE, &[heard], &log.directory, now),
        RenewalVerdict::default()
    );
    assert_eq!(office.counts(), (1, 0));
}

/// Of a session's two nodes the guard of one service lets go, that of the other holds: whoever speaks under it again is told
/// to register both anew, also by a new leader, and nothing of it is revived meanwhile.
#[test]
fn a_session_that_lost_a_node_is_not_found_though_another_is_held() {
    let mut log = Log::with_sessions(4);
    log.register_one_each(4);
    let alone = ServiceKey {
        service: "alone".parse().expect("a good name"),
        ..feed()
    };
    log.register(1, alone.clone(), "last");
    let start = Instant::now();
    let mut office = log.office(start);
    let silent = SessionId(1);
    let now = start + TTL * 2;
    office.expiring.insert(silent);
    let word = lapsed(&[ExpiryFence {
        session: silent,
        last_renewal: log.directory.session(silent).expect("there").last_renewal,
    }]);
    log.apply(word.command(Term(1)));
    let owned = log
        .directory
        .session(silent)
        .expect("of which a node is held")
        .nodes
        .len();
    assert_eq!((owned, log.states().len()), (1, 3), "one is held, the other went");
    assert_eq!(
        office.renew(HERE, &[silent], &log.directory, now).undecided,
        [silent]
    );
    office.catch_up(&log.directory, now);
    office.settle(&word, &log.directory, now);
    for mut office in [office, log.office(now)] {
        let verdict = office.renew(HERE, &[silent], &log.directory, now);
        assert_eq!((verdict.not_found, verdict.undecided), (vec![silent], vec![]));
        let words = words(&mut office, &log.directory, now, TICK * 4);
        assert!(words.is_empty(), "{words:?}");
    }
    let held = log.directory.service(&alone).expect("there").guard_status().held;
    assert_eq!(held, 1);
}

/// Bounds of a silence of the quorum: the lease, and what is short.
const SILENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));

/// Time goes on for so long while the quorum is not heard, and is heard again. Whether all was granted anew.
fn lose_quorum(office: &mut Office, log: &Log, now: &mut Instant, deaf: Duration) -> bool {
    office.fall_silent(*now);
    *now += deaf;
    office.hear_again(SILENCE, &log.directory, GRANT, *now)
}

/// What was left of a ttl when the quorum fell silent is left when it is heard again, however little that was.
#[test]
fn nobody_lapses_in_the_look_that_hears_the_quorum_again() {
    let log = Log::with_sessions(1);
    let mut now = Instant::now();
    let mut office = log.office(now);
    let left = TICK * 2;
    assert_eq!(
        run(&mut office, &log.directory, now, TTL + GRANT.extra - left),
        []
    );
    now += TTL + GRANT.extra - left;
    assert!(!lose_quorum(&mut office, &log, &mut now, TICK * 3));
    assert_eq!(office.take_words(&log.directory, now), []);
    assert_eq!(run(&mut office, &log.directory, now, SILENCE.0 + TICK * 2), []);
    let later = now + SILENCE.0 + TICK * 2;
    assert_eq!(run(&mut office, &log.directory, later, left + TICK * 3).len(), 1);
}

/// The quorum falls silent for a moment in each ttl. Deadlines move by it and by the lease before it, and no further.
#[test]
fn short_silences_of_the_quorum_keep_nobody_for_ever_and_shorten_nothing() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let deaf = Duration::from_millis(150);
    let mut now = start;
    let mut silences = 0;
    let lapsed = loop {
        assert!(now < start + TTL * 4, "kept by {silences} silences");
        let lapsed = run(&mut office, &log.directory, now, TTL / 2);
        if !lapsed.is_empty() {
            break lapsed;
        }
        now += TTL / 2;
        assert!(!lose_quorum(&mut office, &log, &mut now, deaf));
        silences += 1;
    };
    assert_eq!((lapsed.len(), silences), (1, 2));
    // In the silences, and the leases before them, nobody could be heard.
    let heard = TTL + GRANT.extra - (now - start - (deaf + SILENCE.0) * silences);
    let mut office = log.office(start);
    let mut now = start;
    for _ in 0..silences {
        assert_eq!(run(&mut office, &log.directory, now, TTL / 2), []);
        now += TTL / 2;
        lose_quorum(&mut office, &log, &mut now, deaf);
    }
    assert_eq!(run(&mut office, &log.directory, now, heard), [], "too early");
}

/// Silences that follow one another do not add up: when the last one is over, so is what they moved.
#[test]
fn silences_in_a_row_keep_nobody_for_longer_than_the_last_of_them() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let mut now = start;
    for _ in 0..200 {
        now += Duration::from_millis(250);
        assert!(!lose_quorum(
            &mut office,
            &log,
            &mut now,
            Duration::from_millis(50)
        ));
    }
    let lapsed = run(
        &mut office,
        &log.directory,
        now,
        TTL + GRANT.extra + SILENCE.0 * 2,
    );
    assert_eq!(lapsed.len(), 1);
}

#[test]
fn after_a_long_silence_of_the_quorum_everybody_has_a_full_ttl() {
    let log = Log::with_sessions(1);
    let start = Instant::now();
    let mut office = log.office(start);
    let mut now = start + TTL - TICK;
    assert_eq!(run(&mut office, &log.directory, start, TTL - TICK), []);
    assert!(lose_quorum(&mut office, &log, &mut now, SILENCE.1 + TICK * 3));
    assert_eq!(
        run(&mut office, &log.directory, now, TTL + GRANT.extra - TICK),
        []
    );
    let later = now + TTL + GRANT.extra - TICK;
    assert_eq!(run(&mut office, &log.directory, later, TICK * 3).len(), 1);
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Two of two are held for so long, in hours, since the moment that is given back; an office looks at them.
fn held_for(hold_max: u32) -> (Log, Office, Instant) {
    let mut log = Log::with_sessions(2);
    log.register_one_each(2);
    set_hold_max(&mut log, hold_max);
    let fences = [1, 2].map(|id| ExpiryFence {
        session: SessionId(id),
        last_renewal: log.directory.session(SessionId(id)).expect("there").last_renewal,
    });
    log.apply(lapsed(&fences).command(Term(1)));
    let now = Instant::now();
    let office = log.office(now);
    (log, office, now)
}

fn set_hold_max(log: &mut Log, hours: u32) {
    let service = log.directory.service(&feed()).expect("there");
    let mut settings = service.settings.clone();
    settings.guard.hold_max_ms = (HOUR * hours).as_millis() as u64;
    log.apply(Command::PutService {
        key: feed(),
        settings: Some(settings),
        expected: Expected::Any,
    });
}

/// Whether it is said within this time that the nodes were held enough.
fn held_enough(office: &mut Office, log: &Log, from: Instant, until: Duration) -> bool {
    let mut said = words(office, &log.directory, from, until);
    said.retain(|word| matches!(word, Word::HeldEnough(_)));
    !said.is_empty()
}

#[test]
fn an_operator_who_gives_held_nodes_more_time_is_heard() {
    for hours in [0, 24] {
        let (mut log, mut office, start) = held_for(2);
        assert!(!held_enough(&mut office, &log, start, HOUR));
        set_hold_max(&mut log, hours);
        assert!(
            !held_enough(&mut office, &log, start + HOUR, HOUR * 2),
            "they go after 2 hours, although it was set to {hours}"
        );
    }
}

#[test]
fn an_operator_who_gives_held_nodes_less_time_is_heard() {
    let (mut log, mut office, start) = held_for(5);
    assert!(!held_enough(&mut office, &log, start, HOUR));
    set_hold_max(&mut log, 2);
    // It counts from when they were first held.
    let later = start + HOUR;
    assert!(!held_enough(&mut office, &log, later, HOUR - TICK * 2));
    assert!(held_enough(&mut office, &log, later + HOUR - TICK * 2, TICK * 4));
}

#[test]
fn an_operator_who_sets_an_end_to_a_hold_that_had_none_is_heard() {
    let (mut log, mut office, start) = held_for(0);
    assert!(!held_enough(&mut office, &log, start, HOUR));
    set_hold_max(&mut log, 1);
    let later = start + HOUR;
    assert!(!held_enough(&mut office, &log, later, HOUR - TICK));
    assert!(held_enough(&mut office, &log, later + HOUR - TICK, TICK * 4));
}

/// Without sessions nobody needs to tick. One that is opened meanwhile lasts its full ttl, however long the rest was,
/// and the rest is no pause.
#[test]
fn a_rest_is_no_pause_and_shortens_nothing() {
    let mut log = Log::with_sessions(0);
    let start = Instant::now();
    let mut office = log.office(start);
    let mut now = start;
    for _ in 0..IDLE_LOOKS {
        assert!(!office.is_resting());
        now += TICK;
        office.tick(now);
        assert_eq!(office.take_words(&log.directory, now), []);
        office.rest_if_idle(&log.directory);
    }
    assert!(office.is_resting() && office.is_idle(&log.directory));

    let opened = now + TTL * 10;
    log.open();
    assert!(!office.is_idle(&log.directory));
    office.catch_up(&log.directory, opened);
    let woken = opened + TICK;
    assert_eq!(office.tick(woken), Duration::ZERO, "no pause");
    office.rest_if_idle(&log.directory);
    assert!(!office.is_resting());
    let mut now = woken;
    while now < opened + TTL - TICK {
        now += TICK;
        assert_eq!(office.tick(now), Duration::ZERO);
        assert_eq!(office.take_words(&log.directory, now), []);
    }
    let late = office.tick(now + TTL);
    assert!(late >= TTL - TICK * 2, "{late:?}: a pause is one again");
    let lapsed = run(&mut office, &log.directory, now + TTL, TICK * 5);
    assert_eq!(lapsed.len(), 1);
}

/// A window that began is closed when its time is over, and by a new leader after its full time again.
#[test]
fn the_window_of_a_guard_is_closed_when_its_time_is_over() {
    let mut log = Log::with_sessions(4);
    log.register_one_each(4);
    let start = Instant::now();
    let mut office = log.office(start);
    for alive in 0..8 {
        let now = start + TTL / 2 * alive;
        office.tick(now);
        let verdict = office.renew(
            HERE,
            &[SessionId(2), SessionId(3), SessionId(4)],
            &log.directory,
            now,
        );
        assert_eq!(verdict, RenewalVerdict::default());
        for word in words(&mut office, &log.directory, now, TTL / 2) {
            log.apply(word.command(Term(1)));
            office.catch_up(&log.directory, now);
            office.settle(&word, &log.directory, now);
        }
    }
    assert_eq!(log.states().len(), 3, "one of four may go");
    let later = start + TTL * 4;
    let mut successor = log.office(later);
    let until = Duration::from_millis(600_000) + TICK;
    let mut over = None;
    let mut now = later;
    while now < later + until {
        now += TICK;
        successor.tick(now);
        let _ = successor.renew(
            HERE,
            &[SessionId(2), SessionId(3), SessionId(4)],
            &log.directory,
            now,
        );
        over = over.or(successor
            .take_words(&log.directory, now)
            .pop()
            .map(|word| (word, now)));
    }
    let (word, at) = over.expect("the window was closed");
    assert!(
        matches!(&word, Word::Over(windows) if windows.len() == 1),
        "{word:?}"
    );
    assert!(at >= later + Duration::from_millis(600_000));
    log.apply(word.command(Term(1)));
    let service = log.directory.service(&feed()).expect("there");
    assert_eq!(service.guard_status().window, None);
}
