//! Transcripts of the clock and of the directory; the scenarios are in `tests/transcripts`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rollcall_core::directory::{
    Command, DeregisterNode, Directory, Expected, ExpiryFence, GroupSettings, Limits, NodeChange, NodeKind,
    NodeState, NodeView, Outcome, Override, RegisterNode, Request, RevisionChanges, RevivalFence,
    ServiceSettings, SessionChange,
};
use rollcall_core::guard::{EngagedStatus, GuardSettings, GuardStatus};
use rollcall_core::ids::{LogIndex, LogPosition, RequestId, Revision, ServiceKey, SessionId, Term};
use rollcall_core::session::{Pace, SessionClock, Spread};

use crate::scene;
use crate::script::{Line, duration, play};

#[test]
fn session_clock_transcripts() {
    play("clock", || {
        let mut player = ClockPlayer::new();
        move |line: &Line<'_>| player.run(line)
    });
}

#[test]
fn directory_transcripts() {
    play("directory", || {
        let mut player = DirectoryPlayer::new();
        move |line: &Line<'_>| player.run(line)
    });
}

/// A clock that is ticked every 100 ms, tolerating another 100 ms.
struct ClockPlayer {
    clock: SessionClock,
    now: Instant,
    max: usize,
}

impl ClockPlayer {
    fn new() -> Self {
        let now = Instant::now_for_test();
        let pace = Pace {
            tick_interval: TICK,
            lateness_tolerance: TICK,
        };
        Self {
            clock: SessionClock::new(now, pace),
            now,
            max: 1_000,
        }
    }

    fn run(&mut self, line: &Line<'_>) -> String {
        let session = SessionId(line.number("session").unwrap_or(1));
        match line.verb {
            "start" => {
                self.clock
                    .start(session, line.duration("ttl").expect("ttl="), self.now);
                self.left(session)
            }
            "take-over" => {
                let spread = Spread {
                    extra: line.duration("extra").unwrap_or_default(),
                    over: line.duration("over").unwrap_or_default(),
                };
                self.clock
                    .start_spread(session, line.duration("ttl").expect("ttl="), spread, self.now);
                self.left(session)
            }
            "renew" => match self.clock.renew(&session, self.now) {
                Ok(left) => format!("left {left:?}"),
                Err(error) => format!("session {session}: {error}"),
            },
            "forget" => {
                self.clock.forget(&session);
                self.left(session)
            }
            "left" => self.left(session),
            // Time passes with a tick in time, every time.
            "advance" => {
                let mut lapsed = Vec::new();
                let mut rest = duration(line.places[0]);
                while !rest.is_zero() {
                    let step = rest.min(TICK);
                    self.now += step;
                    rest -= step;
                    self.clock.tick(self.now);
                    lapsed.extend(self.clock.take_lapsed(self.now, self.max));
                }
                format!("lapsed {:?}", lapsed.iter().map(|id| id.0).collect::<Vec<_>>())
            }
            // The whole process sleeps; the next tick comes when it wakes up.
            "sleep" => {
                self.now += duration(line.places[0]);
                let tick = self.clock.tick(self.now);
                let lapsed = self.clock.take_lapsed(self.now, self.max);
                let lapsed: Vec<_> = lapsed.iter().map(|id| id.0).collect();
                format!(
                    "late {:?}, shifted {:?}, lapsed {lapsed:?}",
                    tick.lateness, tick.shifted
                )
            }
            "at-most" => {
                self.max = line.places[0].parse().expect("a number");
                String::new()
            }
            verb => panic!("unknown verb {verb:?}"),
        }
    }

    fn left(&self, session: SessionId) -> String {
        match self.clock.remaining(&session, self.now) {
            Some(left) => format!("left {left:?}"),
            None => format!("session {session} does not count down"),
        }
    }
}

const TICK: Duration = Duration::from_millis(100);

/// Tests may ask for the time; the rooms may not.
trait NowForTest {
    fn now_for_test() -> Instant;
}

impl NowForTest for Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point; nothing depends on its value"
    )]
    fn now_for_test() -> Instant {
        Instant::now()
    }
}

struct DirectoryPlayer {
    directory: Directory,
    at: LogPosition,
    /// The last one made up.
    request: u128,
}

impl DirectoryPlayer {
    fn new() -> Self {
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(0),
        };
        Self {
            directory: Directory::new(Limits::default()),
            at,
            request: 1_000,
        }
    }

    fn run(&mut self, line: &Line<'_>) -> String {
        match line.verb {
            "term" => {
                self.at.term = Term(line.places[0].parse().expect("a number"));
                String::new()
            }
            "limit" => self.limit(line),
            "show" => self.show(line.places[0]),
            "reload" => self.reload(),
            "crowd" => self.crowd(line),
            "lapse" => self.lapse(line),
            "revive-lapsed" => self.revive_lapsed(line),
            "release-held" => self.release_held(line),
            "close" if line.places.len() == 1 => self.close_window(line),
            "same-sign" => self.same_sign(line.places[0], line.places[1]),
            _ => self.apply(line),
        }
    }

    fn apply(&mut self, line: &Line<'_>) -> String {
        self.at.index.0 += 1;
        self.request += 1;
        let id = RequestId(line.number("request").map_or(self.request, u128::from));
        let command = command(line);
        let applied = self.directory.apply(self.at, &Request { id, command });
        let mut text = match applied.result {
            Err(refusal) => return format!("refused: {refusal}\n"),
            Ok(outcome) => {
                let changed = if outcome.changed { "changed" } else { "as it was" };
                let repeated = if outcome.repeated { ", repeated" } else { "" };
                let session = outcome
                    .session
                    .map_or(String::new(), |session| format!(", session {session}"));
                let voided: Vec<_> = outcome.voided.iter().map(|session| session.0).collect();
                let voided = if voided.is_empty() {
                    String::new()
                } else {
                    format!(", voided {voided:?}")
                };
                format!(
                    "revision {}: {changed}{repeated}{session}{voided}\n",
                    outcome.revision
                )
            }
        };
        if line.options.contains_key("short") {
            return self.summary(applied.changes.as_deref());
        }
        if let Some(changes) = &applied.changes {
            describe(&mut text, changes);
        }
        text
    }

    fn limit(&mut self, line: &Line<'_>) -> String {
        let mut limits = self.directory.limits().clone();
        let tombstones = line.number("tombstones").expect("tombstones=");
        limits.tombstones_per_service_max = u32::try_from(tombstones).unwrap();
        self.at.index.0 += 1;
        self.request += 1;
        let request = Request {
            id: RequestId(self.request),
            command: Command::SetLimits { limits },
        };
        match self.directory.apply(self.at, &request).result {
            Ok(outcome) => format!("revision {}\n", outcome.revision),
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn show(&self, place: &str) -> String {
        if let Some(id) = place.strip_prefix("session:") {
            let id = SessionId(id.parse().expect("a number"));
            return match self.directory.session(id) {
                None => "no such session".into(),
                Some(session) => {
                    let nodes: Vec<_> = session.nodes.keys().map(|key| key.to_string()).collect();
                    let lapsed = session
                        .lapsed
                        .map_or(String::new(), |at| format!("lapsed at {at}, "));
                    format!("{lapsed}last renewal {}, nodes {nodes:?}", session.last_renewal)
                }
            };
        }
        if let Some(path) = place.strip_prefix("guard:") {
            let service = self.directory.service(&scene::service(path)).expect("a service");
            return describe_guard(&service.guard_status());
        }
        let Some(service) = self.directory.service(&scene::service(place)) else {
            return "no such service".into();
        };
        let mut text = String::new();
        for view in service.views() {
            let _ = writeln!(text, "{}", describe_node(view));
        }
        if text.is_empty() { "no nodes".into() } else { text }
    }

    fn reload(&mut self) -> String {
        let (bytes, hash) = (self.directory.encode_snapshot(), self.directory.state_hash());
        self.directory = Directory::decode_snapshot(&bytes).expect("its own snapshot");
        assert_eq!(self.directory.state_hash(), hash);
        assert_eq!(self.directory.encode_snapshot(), bytes);
        format!("revision {}, the same state", self.directory.revision())
    }

    /// So many sessions more, each with a node of the service.
    fn crowd(&mut self, line: &Line<'_>) -> String {
        let count: u64 = line.places[0].parse().expect("a number");
        let mut last = SessionId(0);
        for _ in 0..count {
            last = self.do_apply(scene::open_session()).session.expect("a session");
            let path = format!("{}/n{last}:80", line.places[1]);
            self.do_apply(scene::register(last.0, &[&path]));
        }
        let first = last.0 + 1 - count;
        format!(
            "sessions {first} to {last}, revision {}",
            self.directory.revision()
        )
    }

    fn do_apply(&mut self, command: Command) -> Outcome {
        self.at.index.0 += 1;
        self.request += 1;
        let id = RequestId(self.request);
        let applied = self.directory.apply(self.at, &Request { id, command });
        applied.result.expect("nothing against it")
    }

    /// The leader finds these sessions lapsed, `3` or `3-7`, and nothing happens before its word is applied.
    /// Told in short.
    fn lapse(&mut self, line: &Line<'_>) -> String {
        let fence = |id| {
            let session = self.directory.session(SessionId(id)).expect("a session");
            ExpiryFence {
                session: session.id,
                last_renewal: session.last_renewal,
            }
        };
        let sessions = line.places.iter().flat_map(range).map(fence).collect();
        let following = line
            .number("following")
            .map(|more| (scene::service("prod/feed"), u32::try_from(more).unwrap()));
        let command = Command::ExpireSessions {
            term: self.at.term,
            sessions,
            following: following.into_iter().collect(),
        };
        self.apply_in_short(command)
    }

    /// All of these lapsed sessions are heard from.
    fn revive_lapsed(&mut self, line: &Line<'_>) -> String {
        let fence = |id| {
            let session = self.directory.session(SessionId(id)).expect("a session");
            RevivalFence {
                session: session.id,
                lapsed: session.lapsed.expect("it lapsed"),
            }
        };
        let command = Command::ReviveSessions {
            term: self.at.term,
            sessions: line.places.iter().flat_map(range).map(fence).collect(),
        };
        self.apply_in_short(command)
    }

    /// The leader finds that what is held now was held long enough.
    fn release_held(&mut self, line: &Line<'_>) -> String {
        let key = scene::service(line.places[0]);
        let service = self.directory.service(&key).expect("a service");
        let since = service.guard.hold().expect("nodes are held").since;
        let command = Command::ReleaseHeld {
            term: self.at.term,
            holds: vec![(key, since)],
        };
        self.apply_in_short(command)
    }

    /// The leader finds that the window under way is over.
    fn close_window(&mut self, line: &Line<'_>) -> String {
        let key = scene::service(line.places[0]);
        let service = self.directory.service(&key).expect("a service");
        let began = service.guard.window().expect("a window is under way").began;
        let command = Command::CloseGuardWindows {
            term: self.at.term,
            windows: vec![(key, began)],
        };
        self.apply_in_short(command)
    }

    fn apply_in_short(&mut self, command: Command) -> String {
        self.at.index.0 += 1;
        self.request += 1;
        let id = RequestId(self.request);
        let applied = self.directory.apply(self.at, &Request { id, command });
        self.summary(applied.changes.as_deref())
    }

    /// How many nodes and sessions changed how, and what the guards say.
    fn summary(&self, changes: Option<&RevisionChanges>) -> String {
        let Some(changes) = changes else {
            return format!("revision {}: as it was", self.directory.revision());
        };
        let mut text = format!("revision {}:", changes.revision);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for node in changes.services.iter().flat_map(|service| &service.nodes) {
            let what = match node {
                NodeChange::Put { node, .. } => format!("{:?}", node.state),
                NodeChange::Removed { cause, .. } => format!("{cause:?}"),
            };
            *counts.entry(format!("nodes {what}")).or_default() += 1;
        }
        for session in &changes.sessions {
            let what = match session {
                SessionChange::Opened { .. } => "opened",
                SessionChange::Ended { .. } => "ended",
                SessionChange::Lapsed { .. } => "lapsed",
                SessionChange::Revived { .. } => "revived",
            };
            *counts.entry(format!("sessions {what}")).or_default() += 1;
        }
        for (what, count) in counts {
            let _ = write!(text, " {count} {what},");
        }
        text.push('\n');
        for guard in &changes.guards {
            let (event, status) = (&guard.event, describe_guard(&guard.status));
            let _ = writeln!(text, "guard of {} {event:?}: {status}", guard.service);
        }
        text
    }

    fn same_sign(&self, one: &str, other: &str) -> String {
        let sign = |path| {
            self.directory
                .service(&scene::service(path))
                .expect("a service")
                .sign
        };
        (if sign(one) == sign(other) { "yes" } else { "no" }).into()
    }
}

fn command(line: &Line<'_>) -> Command {
    let session = line.number("session").map(SessionId);
    let expected = match line.options.get("expect") {
        None => Expected::Any,
        Some(&"absent") => Expected::Absent,
        Some(revision) => Expected::Revision(Revision(revision.parse().expect("a revision or absent"))),
    };
    let weight = line
        .number("weight")
        .map(|weight| u16::try_from(weight).expect("a weight"));
    let state = line.options.get("state").map(|state| match *state {
        "up" => NodeState::Up,
        "draining" => NodeState::Draining,
        "down" => NodeState::Down,
        "suspect" => NodeState::Suspect,
        other => panic!("unknown state {other:?}"),
    });
    let kind = line.options.get("kind").map(|kind| match *kind {
        "ephemeral" => NodeKind::Ephemeral,
        "persistent" => NodeKind::Persistent,
        "static" => NodeKind::Static,
        other => panic!("unknown kind {other:?}"),
    });
    let zone = line.options.get("zone").map(|zone| (*zone).to_owned());
    match line.verb {
        "put-group" => {
            let settings = GroupSettings {
                auto_create: line.options.contains_key("auto"),
                defaults: ServiceSettings {
                    guard: guard_settings(line).unwrap_or_default(),
                    ..ServiceSettings::default()
                },
                ..GroupSettings::default()
            };
            Command::PutGroup {
                group: scene::group(line.places[0]),
                settings,
                expected,
            }
        }
        "delete-group" => Command::DeleteGroup {
            group: scene::group(line.places[0]),
            expected,
        },
        "put-service" => {
            let nodes_max = line.number("nodes-max").map(|most| u32::try_from(most).unwrap());
            let guard = guard_settings(line);
            let settings = (nodes_max.is_some() || guard.is_some()).then(|| ServiceSettings {
                nodes_max: nodes_max.unwrap_or_default(),
                guard: guard.unwrap_or_default(),
                ..ServiceSettings::default()
            });
            Command::PutService {
                key: scene::service(line.places[0]),
                settings,
                expected,
            }
        }
        "delete-service" => Command::DeleteService {
            key: scene::service(line.places[0]),
            expected,
        },
        "open" => scene::open_session(),
        "close" => Command::CloseSession {
            session: session.expect("session="),
        },
        "expire" => {
            let fence = |place: &&str| {
                let (session, seen) = place.split_once('@').expect("session@last-renewal");
                ExpiryFence {
                    session: SessionId(session.parse().expect("a session")),
                    last_renewal: LogIndex(seen.parse().expect("a log index")),
                }
            };
            let term = Term(line.number("term").expect("term="));
            let following = line.options.get("following").map(|following| {
                let (service, more) = following.split_once(':').expect("service:number");
                (scene::service(service), more.parse().expect("a number"))
            });
            Command::ExpireSessions {
                term,
                sessions: line.places.iter().map(fence).collect(),
                following: following.into_iter().collect(),
            }
        }
        "revive" => {
            let fence = |place: &&str| {
                let (session, lapsed) = place.split_once('@').expect("session@lapsed");
                RevivalFence {
                    session: SessionId(session.parse().expect("a session")),
                    lapsed: Revision(lapsed.parse().expect("a revision")),
                }
            };
            Command::ReviveSessions {
                term: Term(line.number("term").expect("term=")),
                sessions: line.places.iter().map(fence).collect(),
            }
        }
        "close-window" => Command::CloseGuardWindows {
            term: Term(line.number("term").expect("term=")),
            windows: line.places.iter().map(|place| service_at(place)).collect(),
        },
        "release" => Command::ReleaseHeld {
            term: Term(line.number("term").expect("term=")),
            holds: line.places.iter().map(|place| service_at(place)).collect(),
        },
        "confirm" => Command::ConfirmRemoval {
            service: scene::service(line.places[0]),
            since: line.number("since").map(Revision),
            author: line.options.get("author").copied().unwrap_or_default().into(),
            reason: line.options.get("reason").copied().unwrap_or_default().into(),
        },
        "register" => {
            let node = |place: &&str| {
                let mut node = RegisterNode {
                    expected,
                    ..scene::register_node(place)
                };
                node.registration.weight = weight.unwrap_or(node.registration.weight);
                node.registration.state = state.unwrap_or_default();
                node.registration.kind = kind;
                node.registration
                    .labels
                    .extend(zone.clone().map(|zone| ("zone".to_owned(), zone)));
                node
            };
            Command::Register {
                session,
                nodes: line.places.iter().map(node).collect(),
            }
        }
        "deregister" => {
            let node = |place: &&str| DeregisterNode {
                key: scene::node(place),
                expected,
            };
            Command::Deregister {
                session,
                nodes: line.places.iter().map(node).collect(),
            }
        }
        "update" => {
            let node = |place: &&str| {
                let mut node = scene::update_node(place);
                (node.expected, node.weight, node.state) = (expected, weight, state);
                node.labels
                    .extend(zone.clone().map(|zone| ("zone".to_owned(), Some(zone))));
                node
            };
            Command::Update {
                session,
                nodes: line.places.iter().map(node).collect(),
            }
        }
        "override" => {
            let mut over = Override {
                disabled: line.options.get("disabled").map(|disabled| *disabled == "yes"),
                weight,
                ttl_ms: line
                    .duration("ttl")
                    .map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap()),
                ..Override::default()
            };
            over.labels.extend(zone.map(|zone| ("zone".to_owned(), zone)));
            Command::SetOverride {
                key: scene::node(line.places[0]),
                over,
            }
        }
        "clear-override" => Command::ClearOverride {
            key: scene::node(line.places[0]),
        },
        "expire-override" => {
            let (place, set_at) = line.places[0].rsplit_once('@').expect("node@revision");
            let set_at = Revision(set_at.parse().expect("a revision"));
            let term = Term(line.number("term").expect("term="));
            Command::ExpireOverrides {
                term,
                overrides: vec![(scene::node(place), set_at)],
            }
        }
        verb => panic!("unknown verb {verb:?}"),
    }
}

/// `3` or `3-7`.
fn range(place: &&str) -> std::ops::RangeInclusive<u64> {
    let (first, last) = place.split_once('-').unwrap_or((place, place));
    first.parse().expect("a number")..=last.parse().expect("a number")
}

fn service_at(place: &str) -> (ServiceKey, Revision) {
    let (service, revision) = place.split_once('@').expect("service@revision");
    (
        scene::service(service),
        Revision(revision.parse().expect("a revision")),
    )
}

/// `guard=off`, or any of `share=` in percent and `keep-last=no`.
fn guard_settings(line: &Line<'_>) -> Option<GuardSettings> {
    let (share, keep_last) = (line.number("share"), line.options.get("keep-last"));
    if line.options.get("guard") == Some(&"off") {
        return Some(GuardSettings::off());
    }
    (share.is_some() || keep_last.is_some()).then(|| GuardSettings {
        share: share.map_or(3_000, |share| u32::try_from(share).unwrap() * 100),
        keep_last: keep_last.is_none_or(|keep| *keep == "yes"),
        ..GuardSettings::default()
    })
}

fn describe_guard(status: &GuardStatus) -> String {
    let GuardStatus {
        listed,
        up,
        held,
        window,
        baseline,
        removed,
        allowed,
        engaged,
        held_since,
        overdue,
    } = status;
    let mut text = format!("listed {listed}, up {up}, held {held}");
    if let Some(since) = held_since {
        let _ = write!(text, " since {since}{}", if *overdue { ", overdue" } else { "" });
    }
    if let Some(engaged) = engaged {
        let EngagedStatus {
            since,
            reason,
            lapsed,
            of,
            needed,
        } = engaged;
        let _ = write!(
            text,
            "; engaged at {since}: {lapsed} of {of}, {reason:?}, until {needed} are up"
        );
    }
    if let Some(began) = window {
        let _ = write!(
            text,
            "; window {began}: removed {removed}, allowed {allowed} of {baseline}"
        );
    }
    text
}

fn describe(text: &mut String, changes: &RevisionChanges) {
    for (group, there) in &changes.groups {
        let _ = writeln!(text, "group {group} {}", if *there { "put" } else { "deleted" });
    }
    for session in &changes.sessions {
        let _ = match session {
            SessionChange::Opened { session, ttl_ms } => {
                writeln!(text, "session {session} opened for {ttl_ms} ms")
            }
            SessionChange::Ended { session, cause } => writeln!(text, "session {session} ended: {cause:?}"),
            SessionChange::Lapsed { session, held } => {
                writeln!(text, "session {session} lapsed, {held} nodes held")
            }
            SessionChange::Revived {
                session,
                ttl_ms,
                held,
            } => {
                writeln!(
                    text,
                    "session {session} revived for {ttl_ms} ms, {held} nodes return"
                )
            }
        };
    }
    for guard in &changes.guards {
        let (event, status) = (&guard.event, describe_guard(&guard.status));
        let _ = writeln!(text, "guard of {} {event:?}: {status}", guard.service);
    }
    for service in &changes.services {
        let settings = if service.settings.is_some() {
            ", settings"
        } else {
            ""
        };
        let guard = if service.guard.is_some() { ", guard" } else { "" };
        let _ = writeln!(
            text,
            "service {} {:?}{settings}{guard}",
            service.key, service.fate
        );
        for change in &service.nodes {
            let _ = match change {
                NodeChange::Put { node, over } => {
                    writeln!(text, "+ {}", describe_node(NodeView::new(node, over.as_deref())))
                }
                NodeChange::Removed {
                    id,
                    incarnation,
                    cause,
                } => {
                    writeln!(text, "- {id} incarnation {incarnation}: {cause:?}")
                }
            };
        }
    }
    for (key, over) in &changes.overrides {
        let what = over
            .as_ref()
            .map_or("gone".into(), |over| format!("for {} ms", over.ttl_ms));
        let _ = writeln!(text, "override of {key} {what}");
    }
}

fn describe_node(view: NodeView<'_>) -> String {
    let node = view.node;
    let mut text = format!(
        "{} {:?} {:?} weight {} incarnation {} modified {}",
        node.registration.id,
        node.kind,
        node.state,
        view.weight(),
        node.incarnation,
        node.modified
    );
    if let Some(session) = node.session() {
        let _ = write!(text, " session {session}");
    }
    if !view.labels().is_empty() {
        let _ = write!(text, " {:?}", view.labels());
    }
    if view.disabled() {
        text.push_str(" disabled");
    }
    text
}
