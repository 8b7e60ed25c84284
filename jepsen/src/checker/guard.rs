//! The removal guard (design, section 3): in one window no more than `max(1, floor(share x baseline))` nodes of a service
//! lapse away, never the last one; words of registrants and operators are neither blocked nor counted; and it lets go by
//! itself.
//!
//! In CP groups the ledger is replicated, so what watchers were told is replayed revision by revision, whoever led when.
//! The windows judged last longer than a run, so no clock is needed: there is one, and it begins with the first removal
//! by lapse. In AP groups each server counts what it removed and what it heard of. So the bound is that of one server if
//! one server alone held all sessions and nothing happened to anybody; otherwise it is one for each life of a server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::changes::{Change, changes};
use super::clocks::Clocks;
use super::verdict::Verdict;
use crate::history::{Fault, Following, Guarding};

/// From a word on for so long other servers of an AP group may not have heard of it.
const SPREAD: Duration = Duration::from_secs(10);
/// While faults go on, others hear of it within a time without any: it goes from one to the next, and who has just come back asks.
const CALM: Duration = Duration::from_secs(5);

/// After its ttl whoever is silent is shown as what it is, and after a confirmation who was held is gone: a last heartbeat
/// under way, a tick, a commit, a watch, and a busy machine.
const SHOWN_WITHIN: Duration = Duration::from_secs(4);
/// What a new leader adds to the ttl that it gives everybody again.
const LEADER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Service<'a> {
    ap: bool,
    share: u32,
    ttl: Duration,
    one_holder: bool,
    set: Duration,
    joined: BTreeMap<&'a str, (Duration, Option<Duration>)>,
    silent: BTreeMap<&'a str, Duration>,
    left: BTreeMap<&'a str, Left>,
    blocked: Vec<(&'a str, &'a str, Duration)>,
    returned: Option<Duration>,
    confirmed: Option<Duration>,
    /// The first answer to that, and why it was refused.
    answered: Option<(Duration, Option<&'a str>)>,
    views: Vec<(u64, u64, Duration, BTreeSet<&'a str>)>,
    /// Of each view of a server the time, and who of those it lists is up.
    up: Vec<(u64, Duration, BTreeSet<&'a str>)>,
    said: Vec<Said>,
}

/// A deregistration.
#[derive(Clone, Copy, Debug)]
struct Left {
    sent: Duration,
    end: Option<Duration>,
    revision: Option<u64>,
}

/// How a node went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By a word.
    Word,
    /// It lapsed.
    Lapse,
    /// By either: nobody knows what became of the word.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    server: u64,
    time: Duration,
    engaged: bool,
    removed: Option<u32>,
    revision: u64,
}

/// How many had lapsed away by which revision, at least and at most.
type Ledger = BTreeMap<u64, (usize, usize)>;

/// Judges every guarded service. `leaders`: when each was first seen to lead.
#[must_use]
pub fn check(lines: &[Guarding], following: &[Following], faults: &[Fault], leaders: &[Duration]) -> Verdict {
    let peace = Peace { faults, leaders };
    let mut verdict = Verdict::new("removal guard");
    let services = sort(lines);
    let told = changes(following);
    let none = BTreeMap::new();
    let mut removed = 0;
    let mut silent = 0;
    for (name, service) in &services {
        silent += service.silent.len();
        words(name, service, &mut verdict);
        let ledger = if service.ap {
            unnoticed(name, service, &service.up, peace, &mut verdict);
            removed += merged(name, service, faults, &mut verdict);
            Ledger::new()
        } else {
            let told = told.get(*name).unwrap_or(&none);
            let ledger = replay(name, service, told, &mut verdict);
            let shown = Told::of(told, known_until(name, service, told, following));
            unnoticed(name, service, &shown.up(service), peace, &mut verdict);
            confirmations(name, service, &shown, peace, &mut verdict);
            removed += ledger.values().map(|(least, _)| *least).max().unwrap_or(0);
            ledger
        };
        promises(name, service, &ledger, faults, &mut verdict);
    }
    verdict.figures.push(format!(
        "{} services, {silent} nodes fell silent, {removed} lapsed away",
        services.len()
    ));
    verdict
}

fn sort(lines: &[Guarding]) -> BTreeMap<&str, Service<'_>> {
    let mut services: BTreeMap<&str, Service<'_>> = BTreeMap::new();
    for line in lines {
        let of = services.entry(line.service()).or_default();
        match line {
            Guarding::Set {
                ap,
                share,
                ttl,
                one_holder,
                time,
                ..
            } => {
                (of.ap, of.share, of.ttl) = (*ap, *share, *ttl);
                (of.one_holder, of.set) = (*one_holder, *time);
            }
            Guarding::Joined { id, sent, end, .. } => drop(of.joined.insert(id, (*sent, *end))),
            Guarding::Silent { ids, time, .. } => {
                of.silent.extend(ids.iter().map(|id| (id.as_str(), *time)));
            }
            Guarding::Left {
                id,
                sent,
                end,
                revision,
                ..
            } => {
                let left = Left {
                    sent: *sent,
                    end: *end,
                    revision: *revision,
                };
                of.left.insert(id, left);
            }
            Guarding::Blocked { id, why, time, .. } => of.blocked.push((id, why, *time)),
            Guarding::Returned { time, .. } => of.returned = Some(*time),
            Guarding::Confirmed { sent, .. } => of.confirmed = Some(*sent),
            Guarding::Answered { refused, time, .. } => {
                of.answered.get_or_insert((*time, refused.as_deref()));
            }
            Guarding::Listed {
                server,
                epoch,
                end,
                ids,
                suspects,
                ..
            } => {
                of.views
                    .push((*server, *epoch, *end, ids.iter().map(String::as_str).collect()));
                let up = ids.iter().filter(|id| !suspects.contains(*id));
                of.up.push((*server, *end, up.map(String::as_str).collect()));
            }
            Guarding::Said {
                server,
                time,
                engaged,
                removed,
                revision,
                ..
            } => of.said.push(Said {
                server: *server,
                time: *time,
                engaged: *engaged,
                removed: *removed,
                revision: *revision,
            }),
        }
    }
    services
}

impl Service<'_> {
    fn allowed(&self, baseline: usize) -> usize {
        let share = usize::try_from(self.share).unwrap_or(10_000);
        (baseline * share / 10_000).max(1)
    }

    /// Whether somebody's word may have taken this node away before this moment. A confirmation takes whatever is held.
    fn by_word(&self, id: &str, held: bool, time: Duration) -> bool {
        self.left.get(id).is_some_and(|left| left.sent <= time)
            || (held && self.confirmed.is_some_and(|sent| sent <= time))
    }

    /// How a node went that watchers of a CP service were told to be gone at this revision. A word that lay under way
    /// when the node lapsed took nothing away: its answer says whether it did, and when.
    fn way(&self, id: &str, held: bool, time: Duration, revision: u64) -> Way {
        if held && self.confirmed.is_some_and(|sent| sent <= time) {
            return Way::Word;
        }
        match self.left.get(id) {
            Some(left) if left.end.is_none() && left.sent <= time => Way::Unknown,
            Some(left) if left.revision.is_some_and(|of_word| of_word <= revision) => Way::Word,
            Some(_) | None => Way::Lapse,
        }
    }
}

/// Every removal of a CP service in the order of revisions.
fn replay(name: &str, service: &Service<'_>, told: &BTreeMap<u64, Change>, verdict: &mut Verdict) -> Ledger {
    let mut ledger = Ledger::new();
    // Who is listed, and whether it is held.
    let mut listed: BTreeMap<&str, bool> = BTreeMap::new();
    let (mut removed, mut unknown) = (0, 0);
    // Of the window, once something lapsed away.
    let mut baseline: Option<usize> = None;
    for (revision, change) in told {
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        for id in change.removed.iter().map(String::as_str) {
            let Some(held) = listed.get(id).copied() else {
                continue;
            };
            match service.way(id, held, change.time, *revision) {
                Way::Lapse => gone.push(id),
                Way::Word => left.push(id),
                Way::Unknown => {
                    unknown += 1;
                    left.push(id);
                }
            }
        }
        if !gone.is_empty() && baseline.is_none() {
            baseline = Some(listed.len());
        }
        let joined = change
            .put
            .iter()
            .filter(|of| !listed.contains_key(of.id.as_str()))
            .count();
        if let Some(baseline) = &mut baseline {
            *baseline = (*baseline + joined).saturating_sub(left.len());
        }
        for id in gone.iter().chain(&left) {
            listed.remove(id);
        }
        listed.extend(change.put.iter().map(|of| (of.id.as_str(), of.suspect)));
        removed += gone.len();
        ledger.insert(*revision, (removed, removed + unknown));
        verdict.judged += gone.len();
        let allowed = service.allowed(baseline.unwrap_or(0));
        if !gone.is_empty() && removed > allowed {
            verdict.find(
                change.time,
                format!(
                    "{name}: at revision {revision} {removed} nodes have lapsed away in one window, {allowed} may \
                     ({} of 10,000 of {}); the last ones: {}",
                    service.share,
                    baseline.unwrap_or(0),
                    gone.join(", ")
                ),
            );
            return ledger;
        }
        if !gone.is_empty() && listed.is_empty() {
            verdict.find(
                change.time,
                format!(
                    "{name}: at revision {revision} the last node lapsed away: {}",
                    gone.join(", ")
                ),
            );
            return ledger;
        }
    }
    // Words are kept: whoever was acknowledged to be gone is not listed.
    for (id, left) in &service.left {
        if let Some(end) = left.end.filter(|_| listed.contains_key(id)) {
            verdict.find(
                end,
                format!("{name}: node {id} was deregistered, acknowledged at {end:?}, and is still listed in the end"),
            );
        }
    }
    ledger
}

/// Until when it is known what watchers of a CP service are told: as long as one hears anything, and while a server says that
/// there is nothing newer than what they were told.
fn known_until(
    name: &str,
    service: &Service<'_>,
    told: &BTreeMap<u64, Change>,
    following: &[Following],
) -> Duration {
    let last = told.keys().next_back().copied().unwrap_or(0);
    let said = service.said.iter().filter(|said| said.revision <= last);
    let heard = following.iter().filter_map(|line| match line {
        Following::Bookmark { watch, time, .. } if is_of(watch, name) => Some(*time),
        _ => None,
    });
    let changed = told.values().map(|change| change.time);
    let known = said.map(|said| said.time).chain(heard).chain(changed);
    known.max().unwrap_or_default()
}

/// Watchers of a guarded service bear its name.
fn is_of(watch: &str, name: &str) -> bool {
    watch.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
}

/// What watchers of a CP service were told, as time went by.
struct Told<'a> {
    told: &'a BTreeMap<u64, Change>,
    until: Duration,
}

impl<'a> Told<'a> {
    fn of(told: &'a BTreeMap<u64, Change>, until: Duration) -> Self {
        Self { told, until }
    }

    /// Who was listed then, and whether it was held.
    fn at(&self, time: Duration) -> BTreeMap<&'a str, bool> {
        let mut listed = BTreeMap::new();
        for change in self.told.values().filter(|change| change.time <= time) {
            for id in &change.removed {
                listed.remove(id.as_str());
            }
            listed.extend(change.put.iter().map(|of| (of.id.as_str(), of.suspect)));
        }
        listed
    }

    /// Who was up at last before the silent returned, as servers' views show it.
    fn up(&self, service: &Service<'_>) -> Vec<(u64, Duration, BTreeSet<&'a str>)> {
        let at = service
            .returned
            .map_or(self.until, |returned| returned.min(self.until));
        let up = self.at(at).into_iter().filter(|(_, held)| !held);
        vec![(0, at, up.map(|(id, _)| id).collect())]
    }
}

/// What tells when nothing held anything up.
#[derive(Clone, Copy)]
struct Peace<'a> {
    faults: &'a [Fault],
    leaders: &'a [Duration],
}

impl Peace<'_> {
    /// Whether there was peace between these moments, and before, so that nobody had been given a ttl again.
    fn lasted(self, ttl: Duration, from: Duration, to: Duration) -> bool {
        let disturbs = |began: Duration, ended: Duration| began <= to && ended + ttl + LEADER >= from;
        !self.faults.iter().any(|fault| disturbs(fault.time, fault.end))
            && !self.leaders.iter().any(|leads| disturbs(*leads, *leads))
    }
}

/// Who has been silent for long is shown as a suspect, or not at all. `up`: who was, at which server (0: all), and when.
fn unnoticed(
    name: &str,
    service: &Service<'_>,
    up: &[(u64, Duration, BTreeSet<&str>)],
    peace: Peace<'_>,
    verdict: &mut Verdict,
) {
    let mut last: BTreeMap<u64, (Duration, &BTreeSet<&str>)> = BTreeMap::new();
    let returned = service.returned.unwrap_or(Duration::MAX);
    for (server, time, up) in up.iter().filter(|(_, time, _)| *time <= returned) {
        last.insert(*server, (*time, up));
    }
    for (server, (seen, up)) in last {
        let overdue = |silent: Duration| {
            let due = silent + service.ttl + SHOWN_WITHIN;
            due <= seen && peace.lasted(service.ttl, silent, due)
        };
        let silent = service.silent.iter().filter(|(_, silent)| overdue(**silent));
        let silent: Vec<(&str, Duration)> = silent.map(|(id, silent)| (*id, *silent)).collect();
        verdict.judged += silent.len();
        let dead: Vec<&str> = silent
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| up.contains(id) && !service.left.contains_key(id))
            .collect();
        if !dead.is_empty() {
            let since = silent.iter().map(|(_, silent)| *silent).min().unwrap_or_default();
            let by = match server {
                0 => String::new(),
                server => format!(" by server {server}"),
            };
            verdict.find(
                seen,
                format!(
                    "{name}: {} nodes fell silent from {since:?} on, their ttl is {:?}, and at {seen:?} they are shown as up{by}: \
                     {}",
                    dead.len(),
                    service.ttl,
                    dead.join(", ")
                ),
            );
        }
    }
}

/// An operator's confirmation is not refused while anything is held, and takes it.
fn confirmations(
    name: &str,
    service: &Service<'_>,
    shown: &Told<'_>,
    peace: Peace<'_>,
    verdict: &mut Verdict,
) {
    let (Some(sent), Some((answered, refused))) = (service.confirmed, service.answered) else {
        return;
    };
    let due = answered + SHOWN_WITHIN;
    let from = sent.saturating_sub(SHOWN_WITHIN);
    if due > shown.until || !peace.lasted(service.ttl, from, due) {
        return;
    }
    // Held for a while: somebody may have been about to lapse, or to be let go.
    let (before, after) = (shown.at(from), shown.at(due));
    let held = shown.at(sent);
    let held = held
        .iter()
        .filter(|(id, held)| **held && before.get(*id) == Some(&true));
    let held: Vec<&str> = held.map(|(id, _)| *id).collect();
    verdict.judged += held.len();
    let stay: Vec<&str> = held.into_iter().filter(|id| after.contains_key(id)).collect();
    if stay.is_empty() {
        return;
    }
    let answer = refused.map_or("and it was acknowledged".into(), |why| {
        format!("but it was refused: {why}")
    });
    verdict.find(
        answered,
        format!(
            "{name}: an operator confirmed that what is held is gone, {answer}; {} nodes that were held are still listed at \
             {due:?}: {}",
            stay.len(),
            stay.join(", ")
        ),
    );
}

/// What became of the nodes of an AP service in the end; how many lapsed away.
fn merged(name: &str, service: &Service<'_>, faults: &[Fault], verdict: &mut Verdict) -> usize {
    let ended = service
        .views
        .iter()
        .map(|(_, _, end, _)| *end)
        .max()
        .unwrap_or_default();
    // Of each server: everything that it ever showed, and what it shows in the end.
    let mut shown: BTreeMap<u64, (BTreeSet<&str>, &BTreeSet<&str>)> = BTreeMap::new();
    for (server, _, _, ids) in &service.views {
        let of = shown.entry(*server).or_insert_with(|| (BTreeSet::new(), ids));
        of.0.extend(ids.iter());
        of.1 = ids;
    }
    let calm = service.one_holder
        && !faults
            .iter()
            .any(|fault| fault.end >= service.set && fault.time <= ended);
    let judges = if calm {
        1
    } else {
        let lives: BTreeSet<(u64, u64)> = service
            .views
            .iter()
            .map(|(server, epoch, ..)| (*server, *epoch))
            .collect();
        lives.len().max(1)
    };
    let allowed = service.allowed(service.joined.len()) * judges;
    let mut most = 0;
    for (server, (seen, ids)) in shown {
        let lapsed = |id: &&str| !ids.contains(id) && !service.by_word(id, true, ended);
        let gone: Vec<&str> = seen.into_iter().filter(lapsed).collect();
        verdict.judged += 1;
        most = most.max(gone.len());
        if gone.len() > allowed {
            verdict.find(
                ended,
                format!(
                    "{name}: at server {server} {} nodes have lapsed away, {allowed} may at most, with {judges} servers \
                     that judge: {}",
                    gone.len(),
                    gone.join(", ")
                ),
            );
        }
        if judges == 1 && !gone.is_empty() && ids.is_empty() {
            verdict.find(
                ended,
                format!("{name}: at server {server} the last node lapsed away"),
            );
        }
        for (id, left) in &service.left {
            // Whose clock was off may have been the last only by its own count.
            let spread = |end: Duration| end + SPREAD <= ended && was_calm(faults, end, ended);
            let counts = |end: &Duration| spread(*end) && Clocks::of(faults) == Clocks::True;
            if let Some(end) = left.end.filter(|end| counts(end) && ids.contains(id)) {
                verdict.find(
                    end,
                    format!(
                        "{name}: node {id} was deregistered, acknowledged at {end:?}, and is listed at server {server} \
                         in the end"
                    ),
                );
            }
        }
    }
    most
}

/// Whether there was a time without faults between these moments that lasted long enough for everybody to hear of everything.
fn was_calm(faults: &[Fault], from: Duration, to: Duration) -> bool {
    let starts = std::iter::once(from).chain(faults.iter().map(|fault| fault.end));
    let mut stretches = starts
        .filter(|start| *start >= from)
        .map(|start| (start, start + CALM));
    stretches.any(|(start, end)| {
        let at_work = |fault: &Fault| fault.time < end && fault.end > start;
        end <= to && !faults.iter().any(at_work)
    })
}

fn words(name: &str, service: &Service<'_>, verdict: &mut Verdict) {
    verdict.judged += service.left.len();
    for (id, why, time) in &service.blocked {
        verdict.find(
            *time,
            format!("{name}: the deregistration of node {id} was blocked: {why}"),
        );
    }
}

/// In the end every server says the same of it, which is what was counted, and holds nothing back.
fn promises(name: &str, service: &Service<'_>, ledger: &Ledger, faults: &[Fault], verdict: &mut Verdict) {
    for said in &service.said {
        let calm_before = |at: Duration| was_calm(faults, at.saturating_sub(CALM), at);
        // A confirmation takes who is held by then: a fault may have kept others who are silent from lapsing before it.
        let (was_heard_of, were_held) = (calm_before(said.time), service.confirmed.is_none_or(calm_before));
        if said.engaged && service.ap && !(was_heard_of && were_held) {
            continue;
        }
        verdict.judged += 1;
        if said.engaged {
            verdict.find(
                said.time,
                format!(
                    "{name}: the guard is still engaged at server {}, and enough nodes have returned or been replaced \
                     or given up",
                    said.server
                ),
            );
        }
        // Only of a revision that watchers were told of.
        let (Some(claimed), Some((least, most))) = (said.removed, ledger.get(&said.revision)) else {
            continue;
        };
        let agrees = usize::try_from(claimed).is_ok_and(|claimed| (*least..=*most).contains(&claimed));
        if !agrees {
            verdict.find(
                said.time,
                format!(
                    "{name}: server {} says that {claimed} nodes had lapsed away in this window at revision {}, and \
                     watchers were told of {least} to {most}",
                    said.server, said.revision
                ),
            );
        }
    }
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod tests;
