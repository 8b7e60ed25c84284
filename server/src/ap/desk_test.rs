//! Desks of several servers, without network, disk or time of their own.

use std::time::{Duration, Instant};

use rollcall_core::ap::{Key, Record, Seq, SessionSeed, Stamp, Standing, THE_LOG, Value};
use rollcall_core::directory::{
    Address, Command, Directory, Expected, GroupMode, GroupSettings, Labels, Limits, LoggedRequest, NodeKind,
    NodeState, Refusal, RegisterNode, Registration, Request, ServiceSettings,
};
use rollcall_core::guard::GuardSettings;
use rollcall_core::ids::{RequestId, ServerId, ServiceKey, SessionId};

use super::committer::{Job, carry_out};
use super::contract::Introduction;
use super::desk::{Desk, Footing, Now, Resolve, Work};
use super::inner::AtAGlance;
use super::rows::{self, Found, Life, Memory, Numbered};
use crate::raft::ProposeError;
use crate::session::{TICK, Word};
use crate::store::RowBatch;

const TTL: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(3_600);
const SESSION: SessionId = SessionId(7);

/// One server: its desk and view, and what reached its disk.
struct Site {
    desk: Desk,
    view: Directory,
    now: Now,
    synced: bool,
    rows: RowBatch,
}

fn service() -> ServiceKey {
    ServiceKey {
        group: "edge".parse().expect("a good name"),
        service: "feed".parse().expect("a good name"),
    }
}

fn view() -> Directory {
    Directory::new(Limits::default()).serving(GroupMode::Ap)
}

impl Site {
    fn new(server: u64) -> Self {
        let now = Now {
            instant: Instant::now(),
            wall_ms: 1_000_000,
        };
        Self::begin(server, Found::default(), now)
    }

    fn begin(server: u64, found: Found, now: Now) -> Self {
        let mut site = Self::bare(server, found, now);
        if site.desk.footing() == Footing::Unsure {
            site.work(|desk, work| desk.resolve(work, Resolve::Keep));
        }
        site.define(GuardSettings::off());
        site
    }

    /// It has asked nobody what counts, and knows of no group.
    fn bare(server: u64, found: Found, now: Now) -> Self {
        let mut view = view();
        let bounds = (Duration::from_millis(500), RETENTION);
        let desk = Desk::new(ServerId(server), bounds, found, &mut view, now);
        Self {
            desk,
            view,
            now,
            synced: false,
            rows: RowBatch::default(),
        }
    }

    fn define(&mut self, guard: GuardSettings) {
        let settings = GroupSettings {
            mode: GroupMode::Ap,
            auto_create: true,
            defaults: ServiceSettings {
                guard,
                ..ServiceSettings::default()
            },
            ..GroupSettings::default()
        };
        let group = Command::PutGroup {
            group: service().group,
            settings,
            expected: Expected::Any,
        };
        assert_eq!(self.work(|desk, work| desk.define(work, vec![group])), []);
    }

    fn work<T>(&mut self, work: impl FnOnce(&mut Desk, &mut Work<'_>) -> T) -> T {
        let mut rows = RowBatch::default();
        let done = work(
            &mut self.desk,
            &mut Work {
                view: &mut self.view,
                rows: &mut rows,
                now: self.now,
            },
        );
        self.synced = rows.sync;
        self.rows = rows;
        done
    }

    fn claim(&mut self) {
        self.work(|desk, work| desk.claim(work, vec![seed()]))
            .expect("it is not closed");
        assert!(self.synced, "what this server says is synced before it is told");
    }

    /// It is about to write here.
    fn introduce(&mut self, attends: bool) -> Result<(), Refusal> {
        let session = seed().into();
        let who = Introduction { session, attends };
        self.work(|desk, work| desk.introduce(work, &who))
    }

    fn register(&mut self) {
        let registration = Registration {
            id: "a".parse().expect("a good name"),
            addresses: vec![Address {
                name: "grpc".into(),
                host: "10.0.0.1".into(),
                port: 80,
            }]
            .into(),
            weight: 100,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: Some(NodeKind::Ephemeral),
            state: NodeState::Up,
        };
        let request = Request {
            id: RequestId(rand::random()),
            command: Command::Register {
                session: Some(SESSION),
                nodes: vec![RegisterNode {
                    key: service(),
                    registration,
                    expected: Expected::Any,
                }],
            },
        };
        self.work(|desk, work| desk.write(work, &LoggedRequest::of(request).0))
            .expect("it is registered");
    }

    /// Time passes; whoever is silent for too long is judged.
    fn pass(&mut self, time: Duration) {
        let until = self.now.instant + time;
        while self.now.instant < until {
            self.now.instant += TICK;
            self.now.wall_ms += TICK.as_millis() as u64;
            self.desk.office.tick(self.now.instant);
            self.desk.office.catch_up(&self.view, self.now.instant);
            for word in self.desk.office.take_words(&self.view, self.now.instant) {
                self.work(|desk, work| desk.say(work, &word));
                assert!(self.synced || self.desk.footing() == Footing::Unsure);
                self.desk.office.catch_up(&self.view, self.now.instant);
                self.desk.office.settle(&word, &self.view, self.now.instant);
            }
        }
    }

    /// Time passes until somebody was silent for too long: what is to be said of it.
    fn found_silent(&mut self) -> Word {
        for _ in 0..1_000 {
            self.now.instant += TICK;
            self.desk.office.tick(self.now.instant);
            let mut words = self.desk.office.take_words(&self.view, self.now.instant);
            if let Some(word) = words.pop() {
                return word;
            }
        }
        panic!("nobody was found silent");
    }

    fn beat(&mut self) -> bool {
        let verdict = self.desk.renew(&[SESSION], &self.view, self.now.instant);
        verdict == Default::default()
    }

    fn records(&self) -> Vec<Record> {
        let keys = [
            Key::Session(SESSION),
            Key::Node(rollcall_core::ids::NodeKey {
                service: service(),
                node: "a".parse().expect("a good name"),
            }),
        ];
        let records = keys.iter().filter_map(|key| self.desk.replica.record(key));
        records.map(|record| Record::clone(record)).collect()
    }

    fn hear(&mut self, other: &Self) {
        // Their clocks agree.
        self.now.wall_ms = self.now.wall_ms.max(other.now.wall_ms);
        let records = other.records();
        let heard = self.work(|desk, work| desk.hear(work, records, None));
        assert_eq!(heard.refused, None);
    }

    fn lists(&self) -> bool {
        self.view
            .service(&service())
            .is_some_and(|service| !service.nodes.is_empty())
    }

    fn standing(&self) -> (ServerId, u64, Standing) {
        let session = self.desk.replica.session(SESSION).expect("it is known");
        (session.holder, session.claim, session.standing.clone())
    }
}

fn seed() -> SessionSeed {
    SessionSeed {
        id: SESSION,
        secret_digest: [1; 32],
        ttl_ms: TTL.as_millis() as u32,
        client: "client".into(),
    }
}

fn lapsed() -> Standing {
    Standing::Lapsed { held: Vec::new() }
}

/// What it fetches comes piece by piece, and what it held in an earlier life is among it.
#[test]
fn a_server_that_is_unsure_judges_nothing_and_its_guards_count_all_that_it_fetched() {
    let (mut before, mut other) = (Site::new(2), Site::new(1));
    before.claim();
    before.register();
    other.hear(&before);
    let mut anew = Site::bare(2, Found::default(), other.now);
    anew.define(GuardSettings::default());
    anew.hear(&other);
    anew.pass(TTL * 3);
    assert!(anew.desk.replica.is_empty());

    let forgot_before_ms = None;
    anew.work(|desk, work| desk.resolve(work, Resolve::Drop { forgot_before_ms }));
    assert_eq!(anew.standing(), (ServerId(2), 1, Standing::Held));
    let revision = anew.view.revision();
    anew.pass(TTL * 3);
    let guard = |site: &Site| {
        site.view
            .service(&service())
            .expect("it is listed")
            .guard_status()
    };
    assert_eq!(guard(&anew).engaged.map(|engaged| engaged.of), Some(1));
    assert!(anew.view.revision() > revision);
    // It missed a group's move, and has fetched that.
    let since = guard(&anew).held_since;
    anew.work(|desk, work| desk.resolve(work, Resolve::Fetched));
    assert!(guard(&anew).held_since > since, "it was counted anew");
}

#[test]
fn only_the_holder_judges() {
    let (mut holder, mut other) = (Site::new(1), Site::new(2));
    holder.claim();
    holder.register();
    other.hear(&holder);
    assert!(other.lists());
    holder.pass(TTL * 2);
    other.pass(TTL * 2);
    assert!(!holder.lists());
    assert!(other.lists(), "it waits for the holder's word");
    other.hear(&holder);
    assert!(!other.lists());
    assert_eq!(other.standing(), (ServerId(1), 1, lapsed()));
}

#[test]
fn who_writes_is_vouched_for_where_its_stream_is_and_once() {
    let (mut first, mut second) = (Site::new(1), Site::new(2));
    assert_eq!(first.introduce(false), Ok(()), "nobody knew it");
    assert_eq!(first.standing(), (ServerId(1), 1, Standing::Held));
    assert_eq!(first.introduce(true), Ok(()));
    assert_eq!(first.standing().1, 1, "it is held here already");
    second.hear(&first);
    assert_eq!(second.introduce(false), Ok(()));
    assert_eq!(
        second.standing().0,
        ServerId(1),
        "a visitor stays with its holder"
    );
    assert_eq!(second.introduce(true), Ok(()));
    assert_eq!(second.standing(), (ServerId(2), 2, Standing::Held));
    second.register();
    assert!(second.lists());

    let close = Request {
        id: RequestId(rand::random()),
        command: Command::CloseSession { session: SESSION },
    };
    let closed = second.work(|desk, work| desk.write(work, &LoggedRequest::of(close).0));
    closed.expect("it is there");
    let gone = Refusal::SessionNotFound { session: SESSION };
    assert_eq!(second.introduce(true), Err(gone), "it is dead");
}

#[test]
fn at_a_glance_is_known_which_groups_create_their_services() {
    let mut site = Site::new(1);
    let glance = AtAGlance::of(&site.desk, &site.view);
    let group = service().group;
    assert!(glance.creates_services_of(&group));
    for auto_create in [false, true] {
        let settings = GroupSettings {
            mode: GroupMode::Ap,
            auto_create,
            ..GroupSettings::default()
        };
        let put = Command::PutGroup {
            group: group.clone(),
            settings,
            expected: Expected::Any,
        };
        assert_eq!(site.work(|desk, work| desk.define(work, vec![put])), []);
        glance.follow(&site.desk, &site.view);
        assert_eq!(glance.creates_services_of(&group), auto_create);
    }
    let delete = Command::DeleteGroup {
        group: group.clone(),
        expected: Expected::Any,
    };
    assert_eq!(site.work(|desk, work| desk.define(work, vec![delete])), []);
    glance.follow(&site.desk, &site.view);
    assert!(!glance.creates_services_of(&group), "it is gone");
}

#[test]
fn a_claim_voids_the_judgement_of_the_holder_before() {
    let (mut first, mut second) = (Site::new(1), Site::new(2));
    first.claim();
    first.register();
    second.hear(&first);
    second.claim();
    first.pass(TTL * 2);
    assert!(!first.lists());
    second.hear(&first);
    first.hear(&second);
    assert!(first.lists() && second.lists());
    assert_eq!(first.standing(), (ServerId(2), 2, Standing::Held));
    first.pass(TTL * 2);
    assert!(first.lists(), "it judges it no more");
    second.pass(TTL * 2);
    assert!(!second.lists());
}

/// A judgement waits its turn to be written. Meanwhile another server claims the session, and its client comes back here.
#[test]
fn a_judgement_that_waits_is_void_once_the_session_went_and_came_back() {
    let (mut first, mut second) = (Site::new(1), Site::new(2));
    first.claim();
    first.register();
    second.hear(&first);
    let word = first.found_silent();
    second.claim();
    first.hear(&second);
    first.claim();
    assert!(first.beat());
    first.work(|desk, work| desk.say(work, &word));
    assert!(!first.synced, "nothing is left to be said");
    first.desk.office.settle(&word, &first.view, first.now.instant);
    assert!(first.lists());
    assert_eq!(first.standing(), (ServerId(1), 3, Standing::Held));
    // It is judged here as before.
    first.pass(TTL - TICK * 2);
    assert!(first.lists());
    first.pass(TICK * 4);
    assert!(!first.lists());
}

/// The other side of a partition took the session over and found it lapsed. Its client was here all the time.
#[test]
fn a_lapse_elsewhere_of_what_is_heard_here_is_contradicted_in_the_same_breath() {
    let (mut holder, mut other) = (Site::new(1), Site::new(2));
    holder.claim();
    holder.register();
    other.hear(&holder);
    other.claim();
    other.pass(TTL * 2);
    assert_eq!(other.standing(), (ServerId(2), 2, lapsed()));
    for _ in 0..4 {
        holder.pass(TTL / 2);
        assert!(holder.beat());
    }
    let before = holder.view.revision();
    holder.hear(&other);
    assert!(holder.synced, "its claim is a record of its own");
    assert!(holder.lists());
    assert!(holder.view.revision() > before);
    assert_eq!(holder.standing(), (ServerId(1), 3, Standing::Held));
    other.hear(&holder);
    assert!(other.lists());
    // And it is judged here as before.
    holder.pass(TTL * 2);
    assert!(!holder.lists());
}

#[test]
fn after_a_restart_a_lapse_elsewhere_holds_until_a_heartbeat_comes() {
    let (mut holder, mut other) = (Site::new(1), Site::new(2));
    holder.claim();
    holder.register();
    other.hear(&holder);
    other.claim();
    other.pass(TTL * 2);
    let found = Found {
        records: holder.records().into_iter().map(stored).collect(),
        ..Found::default()
    };
    let mut holder = Site::begin(1, found, holder.now);
    assert!(holder.lists());
    holder.hear(&other);
    assert!(!holder.lists());
    assert!(!holder.beat(), "undecided until it is claimed");
    let seeds = holder.desk.take_claims(10);
    assert_eq!(seeds.len(), 1);
    holder
        .work(|desk, work| desk.claim(work, seeds))
        .expect("it is not closed");
    assert!(holder.lists() && holder.beat());
    assert_eq!(holder.desk.take_claims(10), []);
    other.hear(&holder);
    assert!(other.lists());
}

fn stored(record: Record) -> Numbered {
    (record.into(), Some(Seq(1)))
}

/// The holder was cut off and is back. It hears its client at its next heartbeat, so the successor waits for that.
#[test]
fn a_holder_that_is_back_has_a_full_ttl_to_say_that_it_heard_its_client() {
    let (mut holder, mut successor) = (Site::new(1), Site::new(2));
    holder.claim();
    holder.register();
    successor.hear(&holder);
    let seeds = successor.desk.left_by(ServerId(1), |_| true);
    let taken = successor.work(|desk, work| desk.take_over(work, ServerId(1), seeds.clone()));
    assert_eq!(
        (taken, successor.standing()),
        (1, (ServerId(2), 2, Standing::Held))
    );
    assert_eq!(successor.desk.left_by(ServerId(1), |_| true), []);
    successor.pass(TTL - TICK * 2);
    let (view, now) = (successor.view.clone(), successor.now.instant);
    assert_eq!(successor.desk.regrant(ServerId(1), &view, now), 1);
    assert_eq!(successor.desk.regrant(ServerId(1), &view, now), 0, "once");
    successor.pass(TTL - TICK * 2);
    assert!(successor.lists());
    // What has moved meanwhile is not taken over.
    let again = successor.work(|desk, work| desk.take_over(work, ServerId(1), seeds));
    assert_eq!(again, 0);
    successor.pass(TICK * 4);
    assert!(!successor.lists());
}

#[test]
fn a_restarted_server_grants_a_full_ttl_to_what_it_held() {
    let mut before = Site::new(1);
    before.claim();
    before.register();
    before.pass(TTL - TICK * 2);
    let found = Found {
        records: before.records().into_iter().map(stored).collect(),
        ..Found::default()
    };
    let mut after = Site::begin(1, found, before.now);
    after.pass(TTL - TICK);
    assert!(after.lists());
    after.pass(TTL);
    assert!(!after.lists());
}

/// A group came from the log with a session whose client had fallen silent: nobody hears it, so nobody claims it by
/// itself.
#[test]
fn a_session_that_came_with_a_group_is_left_to_a_successor_until_somebody_has_it() {
    let mut site = Site::new(1);
    site.claim();
    site.register();
    let mut came = site.records();
    let Value::Session(session) = &mut came[0].value else {
        panic!("a session was expected");
    };
    (session.holder, session.claim) = (THE_LOG, 0);

    let mut site = Site::new(2);
    let heard = site.work(|desk, work| desk.hear(work, came, None));
    assert_eq!(heard.refused, None);
    site.pass(TTL * 3);
    assert!(site.lists(), "it is nobody's to judge");
    let long = TTL * 3 + TICK;
    assert!(!site.desk.has_unclaimed(long, site.now.instant));
    assert!(site.desk.has_unclaimed(TTL, site.now.instant));
    let seeds = site.desk.left_by(THE_LOG, |_| true);
    assert_eq!(site.work(|desk, work| desk.take_over(work, THE_LOG, seeds)), 1);
    assert!(!site.desk.has_unclaimed(TTL, site.now.instant));
    site.pass(TTL - TICK);
    assert!(site.lists(), "it is given a full ttl");
    site.pass(TICK * 3);
    assert!(!site.lists());
}

/// Its node was held when the group moved to the log, which judges it now. Whoever speaks under it lives there.
#[test]
fn a_session_whose_suspects_moved_to_the_log_is_not_called_dead_here() {
    let mut site = Site::new(1);
    site.define(GuardSettings::default());
    site.claim();
    site.register();
    site.pass(TTL * 2);
    assert!(site.lists(), "the last one is held");
    assert!(matches!(&site.standing().2, Standing::Lapsed { held } if held.len() == 1));
    let group = service().group;
    let begin = Command::BeginMove {
        group: group.clone(),
        to: GroupMode::Cp,
        stamp_ms: 0,
    };
    assert_eq!(site.work(|desk, work| desk.define(work, vec![begin])), []);
    let since = site.view.revision();
    let end = Command::EndMove {
        group: group.clone(),
        since,
        done: true,
    };
    assert_eq!(site.work(|desk, work| desk.define(work, vec![end])), []);
    site.work(|desk, work| desk.forget(work, &group));
    assert!(!site.lists() && site.view.session(SESSION).is_none());

    let verdict = site.desk.renew(&[SESSION], &site.view, site.now.instant);
    assert_eq!((verdict.not_found, verdict.undecided), (vec![], vec![SESSION]));
    let seeds = site.desk.take_claims(10);
    site.work(|desk, work| desk.claim(work, seeds))
        .expect("it is not closed");
    assert!(site.beat());
}

#[test]
fn a_closed_session_is_not_found_by_a_heartbeat_or_a_claim() {
    let mut site = Site::new(1);
    site.claim();
    site.register();
    let close = Request {
        id: RequestId(1),
        command: Command::CloseSession { session: SESSION },
    };
    site.work(|desk, work| desk.write(work, &LoggedRequest::of(close).0))
        .expect("it is closed");
    assert!(!site.lists());
    let verdict = site.desk.renew(&[SESSION], &site.view, site.now.instant);
    assert_eq!(verdict.not_found, [SESSION]);
    let seed = SessionSeed {
        id: SESSION,
        secret_digest: [1; 32],
        ttl_ms: 1,
        client: String::new(),
    };
    assert!(site.work(|desk, work| desk.claim(work, vec![seed])).is_err());
}

/// A server that was alive until then, by its own clock.
fn away_since(alive_ms: u64, memory: Option<Memory>, now: Now) -> Site {
    let life = Life {
        log: 9,
        head: Seq(1),
        latest: Stamp::default(),
        alive_ms,
        followed: Default::default(),
    };
    let found = Found {
        life: Some(life),
        memory,
        missed: Default::default(),
        retired: false,
        records: Vec::new(),
    };
    Site::bare(2, found, now)
}

fn retention_ms() -> u64 {
    RETENTION.as_millis() as u64
}

#[test]
fn who_was_away_for_long_is_outlived_by_whoever_has_forgotten_since() {
    let mut now = Site::new(1).now;
    let alive_ms = now.wall_ms;
    now.wall_ms += 2 * retention_ms();
    let mut site = away_since(alive_ms, None, now);
    assert_eq!(site.desk.footing(), Footing::Unsure);
    assert!(!site.desk.is_outlived(Some(alive_ms)));
    assert!(site.desk.is_outlived(Some(alive_ms + 1)));
    assert!(site.desk.is_outlived(None), "an earlier program does not say");
    let forgot_before_ms = alive_ms.saturating_sub(retention_ms());
    site.work(Desk::purge);
    assert_eq!(
        site.desk.forgot_before_ms(),
        forgot_before_ms,
        "it has only been away"
    );
    site.work(|desk, work| desk.resolve(work, Resolve::Keep));
    site.work(Desk::purge);
    assert_eq!(site.desk.forgot_before_ms(), forgot_before_ms, "not yet");
    let memory = Memory {
        forgot_before_ms,
        keeps_until_ms: site.desk.keeps_until_ms(),
    };
    let mut site = away_since(now.wall_ms, Some(memory), now);
    assert_eq!(site.desk.footing(), Footing::Sure);
    site.work(Desk::purge);
    assert_eq!(
        site.desk.forgot_before_ms(),
        forgot_before_ms,
        "nor in its next life"
    );
    site.now.wall_ms += retention_ms();
    site.work(Desk::purge);
    assert!(site.desk.forgot_before_ms() > alive_ms);
}

/// A server that was away for long, with a session and its node on its disk. And another that had them, too.
fn away_with_records() -> (Site, Site) {
    let (mut before, mut other) = (Site::new(2), Site::new(1));
    before.claim();
    before.register();
    other.hear(&before);
    let life = Life {
        log: 9,
        head: Seq(2),
        latest: Stamp::default(),
        alive_ms: before.now.wall_ms,
        followed: Default::default(),
    };
    let found = Found {
        life: Some(life),
        memory: None,
        missed: Default::default(),
        retired: false,
        records: before.records().into_iter().map(stored).collect(),
    };
    other.now.wall_ms += 2 * retention_ms();
    let mut away = Site::bare(2, found, other.now);
    away.define(GuardSettings::off());
    assert_eq!(away.desk.footing(), Footing::Unsure);
    (away, other)
}

/// The one that knows better may be gone before all of it is here, and this one be started anew meanwhile.
#[test]
fn what_an_unsure_server_had_stays_until_all_that_another_has_is_here() {
    let (mut site, mut other) = away_with_records();
    let before_ms = site.desk.forgot_before_ms();
    other.pass(TTL);
    other.claim();
    site.hear(&other);
    assert!(site.rows.is_empty(), "on disk it takes the place of nothing");
    assert_eq!(site.desk.gathered().len(), 2);
    assert!(!site.lists());
    site.work(|desk, work| desk.resolve(work, Resolve::Keep));
    assert_eq!(site.desk.footing(), Footing::Sure);
    assert!(site.lists());
    assert_eq!(site.standing(), (ServerId(1), 2, Standing::Held));
    let session = site.desk.replica.stored(&Key::Session(SESSION));
    let mut expected = RowBatch::default();
    rows::put_record(&mut expected, &session.expect("it is known"));
    site.desk.put_life(&mut expected);
    assert_eq!(site.rows, expected, "what was fetched in place of what it had");
    assert_eq!(site.desk.forgot_before_ms(), before_ms);

    let (mut site, other) = away_with_records();
    let (log, forgot_before_ms) = (site.desk.log(), Some(site.now.wall_ms - 1));
    site.work(|desk, work| desk.resolve(work, Resolve::Drop { forgot_before_ms }));
    assert_eq!(site.desk.footing(), Footing::Sure);
    assert!(!site.lists() && site.desk.replica.is_empty());
    let keys = other.records().into_iter().map(|record| record.key);
    let mut expected = RowBatch::default();
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        rows::remove_record(&mut expected, &key);
    }
    site.desk.put_life(&mut expected);
    assert_eq!(site.rows, expected);
    assert_ne!(site.desk.log(), log);
    assert_eq!(Some(site.desk.forgot_before_ms()), forgot_before_ms);
}

/// It was cut off while it fetched, and what it has fetched may have ended and been forgotten.
#[test]
fn what_was_fetched_before_others_forgot_does_not_count() {
    let (mut site, other) = away_with_records();
    let began_ms = site.now.wall_ms;
    assert!(
        site.desk
            .goes_on_fetching(Some(began_ms - retention_ms()), began_ms)
    );
    site.hear(&other);
    site.now.wall_ms += 2 * retention_ms();
    assert!(site.desk.goes_on_fetching(Some(began_ms), site.now.wall_ms));
    assert_eq!(site.desk.gathered().len(), 2);
    let forgot_before_ms = Some(began_ms + 1);
    assert!(!site.desk.goes_on_fetching(forgot_before_ms, site.now.wall_ms));
    assert!(site.desk.gathered().is_empty());
    assert!(site.desk.goes_on_fetching(forgot_before_ms, site.now.wall_ms));
    site.work(|desk, work| desk.resolve(work, Resolve::Drop { forgot_before_ms }));
    assert!(!site.lists() && site.desk.replica.is_empty());
}

/// It may not count, nor may what it has fetched until now.
#[test]
fn an_unsure_server_tells_nobody_what_it_has() {
    let (mut site, other) = away_with_records();
    site.hear(&other);
    assert!(site.desk.told().is_none() && other.desk.told().is_some());
}

/// The retention of its next life is longer, but what it forgot is gone.
#[test]
fn what_was_forgotten_stays_forgotten() {
    let mut now = Site::new(1).now;
    now.wall_ms += 10 * retention_ms();
    let memory = Memory {
        forgot_before_ms: now.wall_ms - 1,
        keeps_until_ms: 0,
    };
    let mut site = away_since(now.wall_ms, Some(memory), now);
    site.work(Desk::purge);
    assert_eq!(site.desk.forgot_before_ms(), now.wall_ms - 1);
}

#[test]
fn nobody_keeps_what_ended_for_longer_than_the_retention() {
    let mut site = Site::new(1);
    let now_ms = site.now.wall_ms;
    let until_ms = now_ms + retention_ms();
    site.desk.keep_ends_until(until_ms + 501, now_ms);
    assert_eq!(
        site.desk.keeps_until_ms(),
        until_ms,
        "that of a clock nobody believes"
    );
    site.desk.keep_ends_until(until_ms + 500, now_ms);
    site.desk.keep_ends_until(until_ms, now_ms);
    assert_eq!(site.desk.keeps_until_ms(), until_ms + 500);
    assert!(site.desk.keeps_ends(until_ms + 499) && !site.desk.keeps_ends(until_ms + 500));
    // Its own clock is set back, and counts anew.
    let now_ms = now_ms - 10_000;
    assert!(!site.desk.keeps_ends(now_ms));
    site.desk.keep_ends(now_ms);
    assert!(site.desk.keeps_ends(now_ms));
}

#[test]
fn a_clock_that_is_behind_does_not_tell_for_how_long_a_server_was_away() {
    let now = Site::new(1).now;
    let away = |alive_ms| away_since(alive_ms, None, now).desk.footing();
    assert_eq!(away(now.wall_ms - 1), Footing::Sure);
    assert_eq!(
        away(now.wall_ms + 500),
        Footing::Sure,
        "clocks are set now and then"
    );
    assert_eq!(away(now.wall_ms + 501), Footing::Unsure);
}

/// What was dropped with all that it had on disk would stay in its memory, and count for others as being on its disk.
#[test]
fn a_server_that_is_unsure_takes_no_group_over() {
    let mut other = Site::new(1);
    other.claim();
    other.register();
    let mut site = Site::bare(2, Found::default(), other.now);
    site.define(GuardSettings::off());
    let (done, mut answer) = tokio::sync::oneshot::channel();
    let adopt = Job::Adopt {
        from: Box::new(other.view.clone()),
        group: service().group,
        stamp_ms: site.now.wall_ms,
        done,
    };
    assert!(site.work(|desk, work| carry_out(desk, work, adopt)).is_none());
    let refused = answer.try_recv().expect("it is answered at once");
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(site.desk.replica.is_empty());
}
