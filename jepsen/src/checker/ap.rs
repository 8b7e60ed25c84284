//! Groups that any server may write to: nothing acknowledged gets lost, nothing that was taken back returns, and in the
//! end all servers show the same (design, section 5).
//!
//! The last writer wins. Who is last is clear where one write was acknowledged before the other was sent; writes that
//! overlap in time (or touch: stamps count milliseconds) are *concurrent*, and any of them may win, but the same one
//! everywhere. A write of which nobody knows what became of it is concurrent with everything after it. So of each node
//! what may be there in the end is the content of the writes that no acknowledged write followed. Registering a node
//! that is already there just like that is a write like any other.
//!
//! That takes wall clocks that agree. Where one was behind the others, only writes at one server have an order; where one
//! was ahead, what its server writes reaches others later, by as much, so that nothing is asked of the end.
//!
//! Disks are taken to last: a kill -9 loses nothing, and an acknowledgement by one server is as good as one by two.
//! A server that shows something newer never goes back: neither to what it showed before, nor, once it has
//! acknowledged a write itself, to what that write followed. What a crash may take back is a change that it showed a
//! moment before it was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::clocks::Clocks;
use super::verdict::Verdict;
use crate::history::{Ap, Fault};

/// Two moments that are closer may have the same stamp.
const APART: Duration = Duration::from_millis(2);
/// How long after a fault a server may still lack what others have.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// After its ttl, a session of a server that is gone: the time to notice, to wait for clients, to grant a full ttl.
const SUCCESSION: Duration = Duration::from_secs(8);
/// How long after everything has healed, and after its client fell silent, a session of this ttl may still be there:
/// somebody may have to take it over, and to grant it a full ttl.
#[must_use]
pub fn gone_within(ttl: Duration) -> Duration {
    ttl.saturating_mul(2) + SUCCESSION
}

/// Shown for so long, it is synced.
const SYNCED_AFTER: Duration = Duration::from_millis(900);

/// Faults that take what was written and not synced, or more.
const LOSSES: [&str; 6] = [
    "power-loss",
    "torn-tail",
    "lost-tail",
    "bit-rot",
    "dead-disk",
    "sync-errors",
];

/// Faults after which a server may lack what it had acknowledged: another one took its place, or the disk forgot what it
/// had said was on it. The others have it.
const FORGETTING: [&str; 4] = ["membership", "resize", "lost-tail", "bit-rot"];

/// Faults that keep no server from another. A wrong clock does: whose clock is behind takes nobody's word, and who is ahead is
/// not believed (decision 0012).
const HARMLESS: [&str; 3] = ["client-", "no-clients", "transfer"];

/// What may be asked.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// The group moves between modes.
    moves: bool,
    /// What a server has shown for a while is on its disk.
    durable: bool,
}

#[derive(Clone, Debug)]
struct Write {
    value: Option<u64>,
    server: u64,
    sent: Duration,
    end: Option<Duration>,
    /// Whether its server's clock agreed with those of the others.
    true_clock: bool,
}

impl Write {
    /// Whether it came before another one for certain.
    fn precedes(&self, other: &Self) -> bool {
        let comparable = self.true_clock || self.server == other.server;
        comparable && self.end.is_some_and(|end| end + APART <= other.sent)
    }
}

#[derive(Debug)]
struct View<'a> {
    server: u64,
    epoch: u64,
    sent: Duration,
    end: Duration,
    nodes: &'a BTreeMap<String, u64>,
    sign: (u64, u64),
    remembers_from: Duration,
}

#[derive(Debug, Default)]
struct Life {
    ttl: Duration,
    /// When it was registered for certain.
    registered: Option<Duration>,
    /// When acknowledged heartbeats were sent.
    beats: Vec<Duration>,
    stopped: Option<Duration>,
}

#[derive(Debug, Default)]
struct Sorted<'a> {
    writes: BTreeMap<&'a str, Vec<Write>>,
    lives: BTreeMap<&'a str, Life>,
    views: Vec<View<'a>>,
    removed: Vec<(&'a str, u64, Duration)>,
    healed: Option<Duration>,
}

/// Judges what was written to one group and what was shown of it.
#[must_use]
pub fn check(lines: &[Ap], group: &str, faults: &[Fault]) -> Verdict {
    judge(lines, group, faults, Verdict::new("groups that merge"), false)
}

/// The same for a group that moves between modes. A server that was away during a move may show less for a moment
/// (decision 0016), and says so of itself.
#[must_use]
pub fn check_moving(lines: &[Ap], group: &str, faults: &[Fault]) -> Verdict {
    judge(lines, group, faults, Verdict::new("groups that move"), true)
}

fn judge(lines: &[Ap], group: &str, faults: &[Fault], mut verdict: Verdict, moves: bool) -> Verdict {
    let clocks = Clocks::of(faults);
    let rules = Rules {
        moves,
        durable: !faults
            .iter()
            .any(|fault| LOSSES.iter().any(|loss| fault.what.starts_with(loss))),
    };
    let sorted = sort(lines, group, clocks, faults);
    if clocks < Clocks::Ahead {
        agreement(&sorted, &mut verdict);
        endings(&sorted, &mut verdict);
    }
    for (id, writes) in &sorted.writes {
        returns(id, writes, &sorted, rules, &mut verdict);
    }
    if clocks < Clocks::Ahead {
        for (id, life) in &sorted.lives {
            lives(id, life, &sorted, faults, rules, &mut verdict);
        }
    }
    if clocks == Clocks::Ahead {
        let what = "a wall clock was ahead: nothing was asked of the end, nor of sessions";
        verdict.figures.push(what.into());
    }
    removals(&sorted, faults, clocks, &mut verdict);
    verdict.judged += sorted.views.len();
    let writes: Vec<&Write> = sorted.writes.values().flatten().collect();
    let unknown = writes.iter().filter(|write| write.end.is_none()).count();
    verdict.figures.push(format!(
        "{} nodes, {} writes acknowledged, {unknown} of unknown outcome, {} sessions, {} views",
        sorted.writes.len(),
        writes.len() - unknown,
        sorted.lives.len(),
        sorted.views.len()
    ));
    verdict
}

/// Since when a server knows all that it has acknowledged, as seen at a time.
fn remembers_from(faults: &[Fault], at: Duration) -> Duration {
    let forgetting = faults
        .iter()
        .filter(|fault| fault.time < at && FORGETTING.iter().any(|kind| fault.what.starts_with(kind)));
    forgetting.map(|fault| fault.end).max().unwrap_or_default()
}

fn sort<'a>(lines: &'a [Ap], group: &str, clocks: Clocks, faults: &[Fault]) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    for line in lines.iter().filter(|line| line.group() == group) {
        match line {
            Ap::Write {
                id,
                ttl: Some(ttl),
                sent,
                end,
                ..
            } => {
                let life = sorted.lives.entry(id).or_default();
                life.ttl = *ttl;
                life.registered = *end;
                life.beats.extend(end.map(|_| *sent));
            }
            Ap::Write {
                id,
                value,
                server,
                sent,
                end,
                ..
            } => sorted.writes.entry(id).or_default().push(Write {
                value: *value,
                server: *server,
                sent: *sent,
                end: *end,
                true_clock: clocks == Clocks::True,
            }),
            Ap::Beat { id, sent, .. } => sorted.lives.entry(id).or_default().beats.push(*sent),
            Ap::Stop { id, time, .. } => sorted.lives.entry(id).or_default().stopped = Some(*time),
            Ap::Heal { time, .. } => sorted.healed = Some(*time),
            Ap::Moved { .. } => {}
            Ap::View {
                server,
                epoch,
                sent,
                end,
                nodes,
                sign,
                ..
            } => sorted.views.push(View {
                server: *server,
                epoch: *epoch,
                sent: *sent,
                end: *end,
                nodes,
                sign: *sign,
                remembers_from: remembers_from(faults, *end),
            }),
            Ap::Removed { server, id, time, .. } => sorted.removed.push((id, *server, *time)),
        }
    }
    sorted.views.sort_by_key(|view| view.sent);
    sorted
}

impl<'a> Sorted<'a> {
    /// The first view of every server after everything.
    fn first_views(&self) -> BTreeMap<u64, &View<'a>> {
        let healed = self.healed.unwrap_or(Duration::MAX);
        let after = self.views.iter().rev().filter(|view| view.sent >= healed);
        after.map(|view| (view.server, view)).collect()
    }

    /// The last view of every server, after everything.
    fn last_views(&self) -> BTreeMap<u64, &View<'a>> {
        let healed = self.healed.unwrap_or(Duration::MAX);
        let after = self.views.iter().filter(|view| view.sent >= healed);
        after.map(|view| (view.server, view)).collect()
    }
}

/// In the end all servers answer, and show the same. When they are looked at first, sessions may still be about to lapse.
fn agreement(sorted: &Sorted<'_>, verdict: &mut Verdict) {
    let last = sorted.last_views();
    let servers: BTreeSet<u64> = sorted.views.iter().map(|view| view.server).collect();
    for server in servers.iter().filter(|server| !last.contains_key(server)) {
        let at = sorted.healed.unwrap_or_default();
        verdict.find(
            at,
            format!("server {server} showed nothing any more after everything had healed"),
        );
    }
    let lives_on = |id: &String| !sorted.lives.contains_key(id.as_str());
    same(&sorted.first_views(), lives_on, sorted.healed, verdict);
    same(&last, |_| true, sorted.healed, verdict);
}

/// Whether these views show the same of the nodes that count.
fn same(
    views: &BTreeMap<u64, &View<'_>>,
    counts: impl Fn(&String) -> bool,
    healed: Option<Duration>,
    verdict: &mut Verdict,
) {
    let mut views = views.values();
    let Some(first) = views.next() else { return };
    verdict.judged += 1;
    for other in views {
        verdict.judged += 1;
        let differing = differing(first.nodes, other.nodes, &counts);
        if !differing.is_empty() {
            verdict.find(
                other.sent,
                format!(
                    "servers {} and {} still differ {:?} after everything had healed, in {} nodes: {}",
                    first.server,
                    other.server,
                    other.sent.saturating_sub(healed.unwrap_or_default()),
                    differing.len(),
                    differing[..differing.len().min(4)].join(", ")
                ),
            );
        } else if first.nodes == other.nodes && other.sign != first.sign {
            verdict.find(
                other.sent,
                format!(
                    "servers {} and {} show the same nodes and different signs",
                    first.server, other.server
                ),
            );
        }
    }
}

fn differing(
    one: &BTreeMap<String, u64>,
    other: &BTreeMap<String, u64>,
    counts: impl Fn(&String) -> bool,
) -> Vec<String> {
    let ids: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    ids.into_iter()
        .filter(|id| counts(id) && one.get(*id) != other.get(*id))
        .map(|id| {
            format!(
                "{id} ({} and {})",
                shown(one.get(id).copied()),
                shown(other.get(id).copied())
            )
        })
        .collect()
}

/// What each node carries in the end is what the last writer said.
fn endings(sorted: &Sorted<'_>, verdict: &mut Verdict) {
    let last = sorted.last_views();
    for (id, writes) in &sorted.writes {
        let possible = possible_ends(writes);
        verdict.judged += 1;
        for view in last.values() {
            let found = view.nodes.get(*id).copied();
            if possible.contains(&found) {
                continue;
            }
            let what = if found.is_none() {
                "an acknowledged registration is lost"
            } else if possible.iter().all(Option::is_none) {
                "a deregistered node is back"
            } else {
                "an older write has won"
            };
            verdict.find(
                view.sent,
                format!(
                    "{what}: in the end server {} shows node {id} as {}, and it has to be {}. What was written last:\n{}",
                    view.server,
                    shown(found),
                    possible.iter().map(|of| shown(*of)).collect::<Vec<_>>().join(" or "),
                    tail(writes)
                ),
            );
            break;
        }
    }
    let known =
        |id: &String| sorted.writes.contains_key(id.as_str()) || sorted.lives.contains_key(id.as_str());
    for view in last.values() {
        for id in view.nodes.keys().filter(|id| !known(id)) {
            verdict.find(
                view.sent,
                format!("server {} shows node {id}, which nobody registered", view.server),
            );
        }
    }
}

fn possible_ends(writes: &[Write]) -> BTreeSet<Option<u64>> {
    let followed = |one: &Write| {
        writes
            .iter()
            .any(|other| other.end.is_some() && one.precedes(other))
    };
    let mut possible: BTreeSet<Option<u64>> = writes
        .iter()
        .filter(|write| !followed(write))
        .map(|write| write.value)
        .collect();
    if writes.iter().all(|write| write.end.is_none()) {
        possible.insert(None);
    }
    possible
}

/// No server goes back to what it has left behind.
fn returns(id: &str, writes: &[Write], sorted: &Sorted<'_>, rules: Rules, verdict: &mut Verdict) {
    let servers: BTreeSet<u64> = sorted.views.iter().map(|view| view.server).collect();
    for server in servers {
        let mut left: BTreeMap<u64, Spell> = BTreeMap::new();
        let mut current: Option<(u64, Spell)> = None;
        for view in sorted.views.iter().filter(|view| view.server == server) {
            let found = view.nodes.get(id).copied();
            let broken = changed(found, writes, view, rules, &mut current, &mut left)
                .or_else(|| overtaken(found, writes, view, rules));
            if let Some(what) = broken {
                verdict.find(
                    view.sent,
                    format!(
                        "node {id} at server {server}: {what}, and at {:?} it shows {}. What was written last:\n{}",
                        view.sent,
                        shown(found),
                        tail(writes)
                    ),
                );
                return;
            }
        }
    }
}

/// How long something lasted at a server, in one of its lives.
#[derive(Clone, Copy, Debug)]
struct Spell {
    epoch: u64,
    since: Duration,
    until: Duration,
}

impl Spell {
    fn begin(view: &View<'_>) -> Self {
        Self {
            epoch: view.epoch,
            since: view.end,
            until: view.end,
        }
    }

    /// Whether it counts in this view: a crash takes back what had not been synced.
    fn counts(self, view: &View<'_>, rules: Rules) -> bool {
        let synced = rules.durable && self.until.saturating_sub(self.since) >= SYNCED_AFTER;
        self.epoch == view.epoch || synced
    }
}

/// What a server shows after what it showed before; says what is wrong with it.
fn changed(
    found: Option<u64>,
    writes: &[Write],
    view: &View<'_>,
    rules: Rules,
    current: &mut Option<(u64, Spell)>,
    left: &mut BTreeMap<u64, Spell>,
) -> Option<String> {
    let once = |value: u64| writes.iter().filter(|write| write.value == Some(value)).count() == 1;
    if let Some((before, spell)) = *current
        && found != Some(before)
        && spell.counts(view, rules)
    {
        // Something that was written took its place.
        let took_its_place = |write: &Write| write.value != Some(before) && write.sent <= view.end;
        if writes.iter().any(took_its_place) {
            left.insert(before, Spell::begin(view));
        } else if !rules.moves {
            return Some(format!(
                "it was shown as {before}, nobody had written anything else"
            ));
        }
    }
    for spell in left.values_mut().filter(|spell| spell.epoch == view.epoch) {
        spell.until = view.end;
    }
    let Some(value) = found else {
        *current = None;
        return None;
    };
    if let Some(spell) = left.remove(&value)
        && once(value)
        && spell.counts(view, rules)
    {
        return Some(format!(
            "it is back: it was shown as {value}, and from {:?} on no more",
            spell.since
        ));
    }
    *current = Some(match *current {
        Some((before, spell)) if before == value && spell.epoch == view.epoch => (
            value,
            Spell {
                until: view.end,
                ..spell
            },
        ),
        _ => (value, Spell::begin(view)),
    });
    None
}

/// A write that this server had acknowledged before it showed this, and that followed whatever wrote this.
fn overtaken(found: Option<u64>, writes: &[Write], view: &View<'_>, rules: Rules) -> Option<String> {
    // Under Raft an acknowledgement comes from the leader, and says nothing of what this server has applied.
    if rules.moves && view.epoch == 0 {
        return None;
    }
    let known = |end| end >= view.remembers_from && end < view.sent;
    let own = writes
        .iter()
        .filter(|write| write.server == view.server && write.end.is_some_and(known));
    let own = own.max_by_key(|write| write.sent)?;
    let mut sources = writes.iter().filter(|write| write.value == found);
    let may_be = found.is_none()
        && writes
            .iter()
            .all(|write| write.value.is_some() && write.end.is_none());
    let all_before = sources.all(|source| source.precedes(own));
    (own.value != found && all_before && !may_be).then(|| {
        format!(
            "it was acknowledged there at {:?} to be {}",
            own.end.unwrap_or_default(),
            shown(own.value)
        )
    })
}

/// A node that lives with a session stays as long as that is heard from, and not for ever after.
fn lives(id: &str, life: &Life, sorted: &Sorted<'_>, faults: &[Fault], rules: Rules, verdict: &mut Verdict) {
    if life.registered.is_none() {
        return;
    }
    verdict.judged += life.beats.len();
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    for view in &sorted.views {
        if view.nodes.contains_key(id) {
            seen.insert(view.server);
            continue;
        }
        let alive = life
            .beats
            .iter()
            .rfind(|sent| **sent <= view.sent && **sent + life.ttl > view.end);
        let Some(sent) = alive.filter(|_| seen.contains(&view.server)) else {
            continue;
        };
        if !excused(view.sent, view.end, life.ttl, faults) {
            verdict.find(
                view.sent,
                format!(
                    "server {} struck node {id} off at {:?}, {:?} after an acknowledged heartbeat was sent; its ttl is \
                     {:?}, and no faults had kept servers apart for long enough",
                    view.server,
                    view.sent,
                    view.end - *sent,
                    life.ttl
                ),
            );
            return;
        }
    }
    let last_beat = life.beats.last().copied().unwrap_or_default();
    let stopped = life.stopped.unwrap_or(Duration::MAX);
    for view in sorted.last_views().values() {
        let there = view.nodes.contains_key(id);
        let alive = last_beat + life.ttl > view.end;
        if !there && alive && !excused(view.sent, view.end, life.ttl, faults) {
            verdict.find(
                view.sent,
                format!(
                    "in the end server {} does not show node {id}, whose session is alive: its last acknowledged \
                     heartbeat was sent at {last_beat:?}",
                    view.server
                ),
            );
            return;
        }
        let healed = sorted.healed.unwrap_or_default();
        // Each move may give it its time again.
        let disturbed = if rules.moves {
            healed
        } else {
            last_fault(faults).min(healed)
        };
        let due = stopped.max(disturbed).saturating_add(gone_within(life.ttl));
        if there && due < view.sent {
            verdict.find(
                view.sent,
                format!(
                    "server {} still shows node {id} at {:?}; its session stopped at {stopped:?}, and its ttl is {:?}",
                    view.server, view.sent, life.ttl
                ),
            );
            return;
        }
    }
}

fn last_fault(faults: &[Fault]) -> Duration {
    faults.iter().map(|fault| fault.end).max().unwrap_or_default()
}

/// Whether servers were kept apart for so long before it, all in all, that one may have judged a session that another
/// heard, and others may not have had the time to learn better.
///
/// Who holds a session strikes it off a ttl after it heard it last, unless it hears that another one does now. A client
/// whose heartbeat fails goes elsewhere after a third of its ttl and one wait for an answer, so that the word of that has to be
/// held up for half a ttl at least (decision 0012).
fn excused(sent: Duration, end: Duration, ttl: Duration, faults: &[Fault]) -> bool {
    let from = sent.saturating_sub(SETTLED_AFTER + ttl);
    apart(faults, from, end) >= ttl / 2
}

/// For how long there was a fault between these moments that may keep servers apart. Faults that overlap are one.
fn apart(faults: &[Fault], from: Duration, to: Duration) -> Duration {
    let keeps_apart = |fault: &&Fault| !HARMLESS.iter().any(|kind| fault.what.starts_with(kind));
    let mut spans: Vec<(Duration, Duration)> = faults
        .iter()
        .filter(keeps_apart)
        .map(|fault| (fault.time.max(from), fault.end.min(to)))
        .collect();
    spans.sort_unstable();
    let (mut covered, mut until) = (Duration::ZERO, from);
    for (began, ended) in spans {
        covered += ended.saturating_sub(began.max(until));
        until = until.max(ended);
    }
    covered
}

/// What watchers were told to be gone had a reason to go.
fn removals(sorted: &Sorted<'_>, faults: &[Fault], clocks: Clocks, verdict: &mut Verdict) {
    for (id, server, time) in &sorted.removed {
        let of_it = sorted.writes.get(id).into_iter().flatten();
        let mut before = of_it.filter(|write| write.sent <= *time);
        let is_session = sorted.lives.contains_key(id);
        // A view shows a change before it is on disk, and a crash takes back what nobody was told is done.
        if !is_session && before.clone().next().is_some() && before.clone().all(|write| write.end.is_none()) {
            continue;
        }
        verdict.judged += 1;
        let reason = match (sorted.writes.get(id), sorted.lives.get(id)) {
            (Some(_), _) => before.any(|write| write.value.is_none()),
            (None, Some(life)) => {
                let alive = life
                    .beats
                    .iter()
                    .any(|sent| *sent <= *time && *sent + life.ttl > *time);
                // Stamps do not go back with a clock that was ahead: its server is not believed for the rest of the run.
                !alive || clocks == Clocks::Ahead || excused(*time, *time, life.ttl, faults)
            }
            (None, None) => false,
        };
        if !reason {
            verdict.find(
                *time,
                format!(
                    "server {server} told a watcher that node {id} is gone, and nobody had deregistered it, nor had it \
                     lapsed"
                ),
            );
        }
    }
}

fn shown(value: Option<u64>) -> String {
    value.map_or("absent".into(), |value| value.to_string())
}

fn tail(writes: &[Write]) -> String {
    let last = &writes[writes.len().saturating_sub(6)..];
    let line = |write: &Write| {
        let end = write.end.map_or("unknown".into(), |end| format!("{end:?}"));
        let what = write
            .value
            .map_or("deregistered".into(), |value| format!("registered as {value}"));
        format!("  {what} at server {} ({:?} to {end})", write.server, write.sent)
    };
    last.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[path = "ap_test.rs"]
mod tests;
