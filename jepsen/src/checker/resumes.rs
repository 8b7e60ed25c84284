//! Watchers that leave and come back (design, section 6): whoever resumes behind a revision is told everything behind it,
//! once and in order, or is given the whole state; nobody is ever taken back in time. And a whole state is what the changes
//! up to its revision make of the one before, whoever was told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Answer, Following, Shown};

/// The nodes that are there, by their ids.
type State<'a> = BTreeMap<&'a str, &'a Shown>;

#[derive(Debug, Default)]
struct Watcher<'a> {
    service: &'a str,
    /// Everything up to here was told, or is part of a state that was.
    position: u64,
    /// Spans of revisions of which every change was promised: behind the first, up to the second.
    promised: Vec<(u64, u64)>,
    /// What it was told of each revision.
    changes: BTreeMap<u64, String>,
    state: State<'a>,
    /// Whether it was ever told of a state to begin with.
    knows: bool,
    resumed: usize,
    /// The whole states that it was given, with their revisions.
    wholes: Vec<(u64, State<'a>)>,
    /// What it was told of each revision, to be done again.
    deltas: BTreeMap<u64, (&'a [Shown], &'a [String])>,
    broken: Option<(Duration, String)>,
}

/// Judges all watchers in a history. `answers`: what of the services that they follow was acknowledged.
#[must_use]
pub fn check(following: &[Following], answers: &[Answer], ended: Duration) -> Verdict {
    let mut verdict = Verdict::new("watchers that resume");
    let mut watchers: BTreeMap<&str, Watcher<'_>> = BTreeMap::new();
    let told = |line: &&Following| !matches!(line, Following::Silent { .. });
    for line in following.iter().filter(told) {
        watchers.entry(line.watch()).or_default().take(line);
    }
    let mut log: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for answer in answers {
        if let Answer::Wrote {
            service, revision, ..
        } = answer
        {
            log.entry(service).or_default().insert(*revision);
        }
    }
    for of in watchers.values() {
        log.entry(of.service).or_default().extend(of.changes.keys());
    }
    agreement(&watchers, ended, &mut verdict);
    if verdict.findings.is_empty() {
        whole_states(&watchers, ended, &mut verdict);
    }
    for (name, of) in &watchers {
        verdict.judged += of.changes.len() + of.resumed;
        if let Some((at, what)) = &of.broken {
            verdict.find(*at, format!("watcher {name} of {}: {what}", of.service));
            continue;
        }
        let none = BTreeSet::new();
        let log = log.get(of.service).unwrap_or(&none);
        let promised = of
            .promised
            .iter()
            .flat_map(|(from, to)| log.range(from + 1..=*to));
        let missing: Vec<u64> = promised
            .filter(|revision| !of.changes.contains_key(revision))
            .copied()
            .collect();
        if let Some(first) = missing.first() {
            verdict.find(
                ended,
                format!(
                    "watcher {name} of {} was never told of {} changes, the first of revision {first}, and heard of later \
                     ones",
                    of.service,
                    missing.len()
                ),
            );
        }
    }
    let sum = |count: fn(&Watcher<'_>) -> usize| watchers.values().map(count).sum::<usize>();
    verdict.figures.push(format!(
        "{} watchers, {} changes told, {} times resumed, {} times given the whole state",
        watchers.len(),
        sum(|of| of.changes.len()),
        sum(|of| of.resumed),
        sum(|of| of.wholes.len())
    ));
    verdict
}

impl<'a> Watcher<'a> {
    fn take(&mut self, line: &'a Following) {
        if self.broken.is_some() {
            return;
        }
        let broken = match line {
            Following::Open { service, from, .. } => {
                self.service = service;
                self.resumed += usize::from(*from > 0);
                // A state that came before the stream broke was not sealed by a start: it may be told again.
                self.position = *from;
                None
            }
            Following::Event {
                revision,
                whole: true,
                put,
                ..
            } => self.replace(*revision, put),
            Following::Event {
                revision,
                put,
                removed,
                ..
            } => self.change(*revision, put, removed),
            Following::Bookmark { revision, .. } => self.advance("a bookmark", *revision),
            Following::Silent { .. } | Following::Close { .. } => None,
        };
        if let Some(what) = broken {
            let time = match line {
                Following::Open { time, .. }
                | Following::Event { time, .. }
                | Following::Bookmark { time, .. }
                | Following::Silent { time, .. }
                | Following::Close { time, .. } => *time,
            };
            self.broken = Some((time, what));
        }
    }

    fn advance(&mut self, what: &str, revision: u64) -> Option<String> {
        if revision < self.position {
            return Some(format!(
                "it was taken back: {what} of revision {revision} came after {}",
                self.position
            ));
        }
        if self.knows && revision > self.position {
            self.promised.push((self.position, revision));
        }
        // A subscription without a resume point begins where it is said to.
        self.knows = true;
        self.position = revision;
        None
    }

    fn replace(&mut self, revision: u64, put: &'a [Shown]) -> Option<String> {
        if revision < self.position {
            return Some(format!(
                "it was taken back: the state of revision {revision} came after {}",
                self.position
            ));
        }
        self.state = put.iter().map(|of| (of.id.as_str(), of)).collect();
        self.wholes.push((revision, self.state.clone()));
        self.knows = true;
        self.position = revision;
        None
    }

    fn change(&mut self, revision: u64, put: &'a [Shown], removed: &'a [String]) -> Option<String> {
        if !self.knows {
            return Some(format!(
                "a change of revision {revision} came before anything else"
            ));
        }
        if revision <= self.position {
            return Some(format!(
                "a change of revision {revision} came after {} had been told",
                self.position
            ));
        }
        let mut parts: Vec<String> = put
            .iter()
            .map(|of| format!("+{}={}@{}.{}", of.id, of.value, of.session, of.incarnation))
            .chain(removed.iter().map(|id| format!("-{id}")))
            .collect();
        parts.sort();
        self.changes.insert(revision, parts.join(" "));
        self.deltas.insert(revision, (put, removed));
        for id in removed {
            if self.state.remove(id.as_str()).is_none() {
                return Some(format!(
                    "revision {revision} removed node {id}, which it had never been told of"
                ));
            }
        }
        self.state.extend(put.iter().map(|of| (of.id.as_str(), of)));
        self.advance("a change", revision)
    }
}

/// What two watchers of a service were told of one revision is the same, and so is what they know in the end.
fn agreement(watchers: &BTreeMap<&str, Watcher<'_>>, ended: Duration, verdict: &mut Verdict) {
    let mut told: BTreeMap<(&str, u64), (&str, &str)> = BTreeMap::new();
    let mut knows: BTreeMap<&str, (&str, u64, &State<'_>)> = BTreeMap::new();
    for (name, of) in watchers {
        for (revision, change) in &of.changes {
            let (first, other) = *told.entry((of.service, *revision)).or_insert((name, change));
            if other != change {
                verdict.find(
                    ended,
                    format!("revision {revision}: watcher {first} was told {other}, watcher {name} was told {change}"),
                );
                return;
            }
        }
        if of.broken.is_some() {
            continue;
        }
        let last = of
            .changes
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0)
            .max(of.position);
        let (first, at, state) = *knows.entry(of.service).or_insert((name, last, &of.state));
        if at == last && *state != of.state {
            let node = differing(state, &of.state);
            verdict.find(
                ended,
                format!(
                    "at revision {last} watchers {first} and {name} know different things of node {node}"
                ),
            );
        }
    }
}

/// A node that two states show differently.
fn differing<'a>(one: &State<'a>, other: &State<'a>) -> &'a str {
    let ids = one.keys().chain(other.keys());
    ids.copied()
        .find(|id| one.get(id) != other.get(id))
        .unwrap_or_default()
}

/// What is known of a service by all its watchers together.
#[derive(Debug, Default)]
struct Known<'a> {
    /// Whole states in the order of their revisions, and who was given each.
    wholes: BTreeMap<u64, Vec<(&'a str, &'a State<'a>)>>,
    deltas: BTreeMap<u64, (&'a [Shown], &'a [String])>,
    /// Spans of revisions of which somebody was promised every change.
    promised: Vec<(u64, u64)>,
}

impl<'a> Known<'a> {
    /// How far behind this revision every change is known.
    fn known_to(&self, from: u64) -> u64 {
        // They are sorted.
        self.promised.iter().fold(from, |reached, (after, to)| {
            if *after <= reached {
                reached.max(*to)
            } else {
                reached
            }
        })
    }

    /// What the changes behind `from`, up to `to`, make of a state.
    fn go_on(&self, state: &mut State<'a>, from: u64, to: u64) {
        let between = (Bound::Excluded(from), Bound::Included(to));
        for (put, removed) in self.deltas.range(between).map(|(_, delta)| delta) {
            for id in *removed {
                state.remove(id.as_str());
            }
            state.extend(put.iter().map(|of| (of.id.as_str(), of)));
        }
    }
}

/// Each whole state against the one before it and the changes between, where somebody was told all of them.
fn whole_states<'a>(watchers: &'a BTreeMap<&'a str, Watcher<'a>>, ended: Duration, verdict: &mut Verdict) {
    let mut services: BTreeMap<&str, Known<'a>> = BTreeMap::new();
    for (name, of) in watchers.iter().filter(|(_, of)| of.broken.is_none()) {
        let known = services.entry(of.service).or_default();
        for (revision, state) in &of.wholes {
            known.wholes.entry(*revision).or_default().push((name, state));
        }
        known.deltas.extend(&of.deltas);
        known.promised.extend(&of.promised);
    }
    for (service, known) in &mut services {
        known.promised.sort_unstable();
        let mut before: Option<(u64, State<'a>)> = None;
        for (revision, (name, whole)) in known
            .wholes
            .iter()
            .flat_map(|(revision, wholes)| wholes.iter().map(move |whole| (*revision, *whole)))
        {
            if let Some((from, mut state)) = before.take()
                && known.known_to(from) >= revision
            {
                verdict.judged += 1;
                known.go_on(&mut state, from, revision);
                if state != *whole {
                    verdict.find(
                        ended,
                        format!(
                            "watcher {name} of {service} was given the whole state of revision {revision}, and the state of \
                             revision {from} with all changes since then is another: of node {}",
                            differing(&state, whole)
                        ),
                    );
                    break;
                }
            }
            before = Some((revision, whole.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(watch: &str, from: u64) -> Following {
        Following::Open {
            watch: watch.into(),
            service: "g/s".into(),
            server: 1,
            from,
            time: Duration::ZERO,
        }
    }

    fn event(watch: &str, revision: u64, whole: bool, put: &[(&str, u64)], removed: &[&str]) -> Following {
        let shown = |(id, value): &(&str, u64)| Shown {
            id: (*id).into(),
            value: *value,
            session: 0,
            incarnation: 1,
            suspect: false,
        };
        Following::Event {
            watch: watch.into(),
            revision,
            whole,
            put: put.iter().map(shown).collect(),
            removed: removed.iter().map(|id| (*id).into()).collect(),
            time: Duration::from_secs(revision),
        }
    }

    fn bookmark(watch: &str, revision: u64) -> Following {
        Following::Bookmark {
            watch: watch.into(),
            revision,
            time: Duration::from_secs(revision),
        }
    }

    fn wrote(revision: u64) -> Answer {
        Answer::Wrote {
            service: "g/s".into(),
            revision,
            time: Duration::ZERO,
        }
    }

    fn judged(lines: &[Following], answers: &[Answer]) -> Verdict {
        check(lines, answers, Duration::from_secs(99))
    }

    /// A watcher that is told everything: x at 3, y at 5, x gone at 7.
    fn whole_story(watch: &str) -> Vec<Following> {
        vec![
            open(watch, 0),
            event(watch, 2, true, &[], &[]),
            bookmark(watch, 2),
            event(watch, 3, false, &[("x", 1)], &[]),
            event(watch, 5, false, &[("y", 2)], &[]),
            event(watch, 7, false, &[], &["x"]),
            bookmark(watch, 9),
        ]
    }

    #[test]
    fn streams_that_resume_pass_and_so_does_the_whole_state_instead() {
        let mut lines = whole_story("a");
        lines.extend([
            open("b", 0),
            event("b", 3, true, &[("x", 1)], &[]),
            bookmark("b", 3),
            // Behind the resume point, from another server.
            open("b", 3),
            event("b", 5, false, &[("y", 2)], &[]),
            // Too far behind: the state, twice, since the first stream broke before it had started.
            open("b", 5),
            event("b", 8, true, &[("y", 2)], &[]),
            open("b", 5),
            event("b", 8, true, &[("y", 2)], &[]),
            bookmark("b", 9),
        ]);
        let verdict = judged(&lines, &[wrote(3), wrote(5), wrote(7)]);
        assert!(verdict.is_good(), "{verdict:?}");
    }

    #[test]
    fn gaps_repeats_and_steps_back_are_caught() {
        let bad = |story: Vec<Following>, answers: &[Answer], wanted: &str| {
            let mut lines = whole_story("a");
            lines.push(open("b", 0));
            lines.extend(story);
            let verdict = judged(&lines, answers);
            assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
            assert!(verdict.findings[0].what.contains(wanted), "{verdict:?}");
        };
        let begin = || vec![event("b", 3, true, &[("x", 1)], &[]), bookmark("b", 3)];
        let with = |more: Vec<Following>| [begin(), more].concat();
        // One revision lost on resuming.
        bad(
            with(vec![open("b", 3), event("b", 7, false, &[], &["x"])]),
            &[],
            "never told of 1 changes, the first of revision 5",
        );
        // Nobody was told of an acknowledged change.
        bad(
            with(vec![bookmark("b", 3)]),
            &[wrote(4)],
            "never told of 1 changes, the first of revision 4",
        );
        // A bookmark that promises what was not sent.
        bad(with(vec![bookmark("b", 6)]), &[], "first of revision 5");
        bad(
            with(vec![
                event("b", 5, false, &[("y", 2)], &[]),
                event("b", 5, false, &[("y", 2)], &[]),
            ]),
            &[],
            "had been told",
        );
        bad(
            with(vec![
                bookmark("b", 4),
                open("b", 4),
                event("b", 2, true, &[], &[]),
            ]),
            &[],
            "taken back",
        );
        bad(
            with(vec![event("b", 5, false, &[("y", 9)], &[])]),
            &[],
            "revision 5: watcher a was told",
        );
        bad(
            with(vec![
                open("b", 3),
                event("b", 9, true, &[("z", 2)], &[]),
                bookmark("b", 9),
            ]),
            &[],
            "know different things",
        );
        assert!(!judged(&[], &[]).is_good(), "nothing was judged");
    }

    #[test]
    fn a_whole_state_is_what_the_changes_make_of_the_one_before() {
        let with = |more: &[Following]| {
            let lines = [&whole_story("a")[..], &[open("b", 0)], more].concat();
            judged(&lines, &[])
        };
        // Torn: y is not in it, though it came at this revision. Later states are right again.
        let torn = [
            event("b", 5, true, &[("x", 1)], &[]),
            bookmark("b", 5),
            open("b", 5),
            event("b", 8, true, &[("y", 2)], &[]),
            bookmark("b", 9),
        ];
        let verdict = with(&torn);
        assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
        assert!(
            verdict.findings[0].what.contains("whole state of revision 5"),
            "{verdict:?}"
        );
        let whole = [event("b", 5, true, &[("x", 1), ("y", 2)], &[]), bookmark("b", 5)];
        assert!(with(&whole).is_good());
        // Older content, and a node too many.
        for put in [&[("x", 1), ("y", 1)][..], &[("x", 1), ("y", 2), ("z", 3)][..]] {
            let verdict = with(&[event("b", 5, true, put, &[]), bookmark("b", 5)]);
            assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
        }
        // Behind what anybody was told of nothing is known.
        let later = [event("b", 12, true, &[("z", 3)], &[]), bookmark("b", 12)];
        assert!(with(&later).is_good());
    }
}
