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

#[derive(Debug, Default)]
struct Service<'a> {
    ap: bool,
    share: u32,
    one_holder: bool,
    set: Duration,
    joined: BTreeMap<&'a str, (Duration, Option<Duration>)>,
    silent: BTreeMap<&'a str, Duration>,
    left: BTreeMap<&'a str, Left>,
    blocked: Vec<(&'a str, &'a str, Duration)>,
    confirmed: Option<Duration>,
    views: Vec<(u64, u64, Duration, BTreeSet<&'a str>)>,
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

/// Judges every guarded service.
#[must_use]
pub fn check(lines: &[Guarding], following: &[Following], faults: &[Fault]) -> Verdict {
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
            removed += merged(name, service, faults, &mut verdict);
            Ledger::new()
        } else {
            let ledger = replay(name, service, told.get(*name).unwrap_or(&none), &mut verdict);
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
                one_holder,
                time,
                ..
            } => (of.ap, of.share, of.one_holder, of.set) = (*ap, *share, *one_holder, *time),
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
            Guarding::Confirmed { sent, .. } => of.confirmed = Some(*sent),
            Guarding::Listed {
                server,
                epoch,
                end,
                ids,
                ..
            } => of
                .views
                .push((*server, *epoch, *end, ids.iter().map(String::as_str).collect())),
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
        if said.engaged && service.ap && !was_calm(faults, said.time.saturating_sub(CALM), said.time) {
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
