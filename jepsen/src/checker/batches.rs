//! Batches and repeats (design, sections 1 and 5): a batch happens as a whole, in one revision, or not at all; a request
//! that is sent again is applied at most once, and says what it said.

use std::collections::BTreeMap;
use std::time::Duration;

use super::changes::{apply, changes};
use super::verdict::Verdict;
use crate::history::{Answer, Following};

/// Judges reads of sets of nodes that are only ever written together, and answers to requests that were sent again.
/// `group`: that of the sets, whose watchers are judged as well.
#[must_use]
pub fn check(answers: &[Answer], following: &[Following], group: &str) -> Verdict {
    let mut verdict = Verdict::new("batches and repeats");
    let mut repeats: BTreeMap<u64, Vec<(u64, bool, Duration)>> = BTreeMap::new();
    let mut reads = 0;
    for answer in answers {
        match answer {
            Answer::Batch { set, nodes, time } => {
                reads += 1;
                verdict.judged += 1;
                if nodes.iter().any(|node| node != &nodes[0]) {
                    verdict.find(
                        *time,
                        format!("a read showed half a batch of set {set}: {}", halves(nodes)),
                    );
                }
            }
            Answer::Repeat {
                request,
                revision,
                repeated,
                time,
            } => repeats
                .entry(*request)
                .or_default()
                .push((*revision, *repeated, *time)),
            Answer::Wrote { .. } | Answer::Local { .. } => {}
        }
    }
    let mut again = 0;
    for (request, answers) in &repeats {
        verdict.judged += answers.len();
        again += answers.len() - 1;
        let (first, _, _) = answers[0];
        let firsts = answers.iter().filter(|(_, repeated, _)| !repeated).count();
        let (_, _, last) = answers[answers.len() - 1];
        if let Some((other, _, time)) = answers.iter().find(|(revision, ..)| *revision != first) {
            verdict.find(
                *time,
                format!("request {request} was applied at revision {first} and again at revision {other}"),
            );
        } else if firsts > 1 {
            verdict.find(last, format!("request {request} was called new {firsts} times"));
        }
    }
    let told = watched(following, group, &mut verdict);
    verdict.figures.push(format!(
        "{reads} reads of sets, {told} changes of sets told; {} requests, sent again {again} times after an answer",
        repeats.len()
    ));
    verdict
}

fn halves(nodes: &[Option<(u64, u64)>]) -> String {
    let mut counts: BTreeMap<Option<(u64, u64)>, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(*node).or_default() += 1;
    }
    let part = |(node, count): (&Option<(u64, u64)>, &usize)| match node {
        Some((value, revision)) => format!("{count} nodes carry {value} since revision {revision}"),
        None => format!("{count} are absent"),
    };
    counts.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// After each revision that watchers were told of, all nodes of a set are alike, or none is there.
fn watched(following: &[Following], group: &str, verdict: &mut Verdict) -> usize {
    let mut told = 0;
    for (service, changes) in changes(following) {
        if service.split('/').next() != Some(group) {
            continue;
        }
        let mut state = BTreeMap::new();
        let mut size = None;
        for (revision, change) in &changes {
            told += 1;
            verdict.judged += 1;
            apply(&mut state, change);
            let first = state.values().next().map(|of| of.value);
            let alike = state.values().all(|of| Some(of.value) == first);
            let whole = state.is_empty() || *size.get_or_insert(state.len()) == state.len();
            if !alike || !whole {
                verdict.find(
                    change.time,
                    format!(
                        "a watcher was told of half a batch of {service} at revision {revision}: {} nodes put, {} removed, \
                         {} there",
                        change.put.len(),
                        change.removed.len(),
                        state.len()
                    ),
                );
                break;
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Shown;

    fn read(nodes: &[Option<(u64, u64)>]) -> Answer {
        Answer::Batch {
            set: 1,
            nodes: nodes.to_vec(),
            time: Duration::ZERO,
        }
    }

    fn repeat(revision: u64, repeated: bool) -> Answer {
        Answer::Repeat {
            request: 7,
            revision,
            repeated,
            time: Duration::ZERO,
        }
    }

    /// A revision, what it put, and what it removed.
    type Told<'a> = (u64, &'a [(&'a str, u64)], &'a [&'a str]);

    fn told(of: &[Told<'_>]) -> Vec<Following> {
        let mut lines = vec![Following::Open {
            watch: "w".into(),
            service: "g/s".into(),
            server: 1,
            from: 0,
            time: Duration::ZERO,
        }];
        lines.extend(of.iter().map(|(revision, put, removed)| {
            Following::Event {
                watch: "w".into(),
                revision: *revision,
                whole: false,
                put: put
                    .iter()
                    .map(|(id, value)| Shown {
                        id: (*id).into(),
                        value: *value,
                        session: 0,
                        incarnation: 1,
                        suspect: false,
                    })
                    .collect(),
                removed: removed.iter().map(|id| (*id).into()).collect(),
                time: Duration::ZERO,
            }
        }));
        lines
    }

    fn found(answers: &[Answer], following: &[Following]) -> usize {
        check(answers, following, "g").findings.len()
    }

    #[test]
    fn whole_batches_and_honest_repeats_pass() {
        let answers = [
            read(&[None, None]),
            read(&[Some((3, 9)), Some((3, 9))]),
            repeat(5, false),
            repeat(5, true),
        ];
        let following = told(&[
            (1, &[("a", 1), ("b", 1)], &[]),
            (2, &[("a", 2), ("b", 2)], &[]),
            (3, &[], &["a", "b"]),
        ]);
        assert!(check(&answers, &following, "g").is_good());
        // The answer to the first was not heard.
        assert_eq!(found(&[repeat(5, true), repeat(5, true)], &[]), 0);
        assert!(!check(&[], &[], "g").is_good(), "nothing was judged");
    }

    #[test]
    fn half_batches_and_requests_that_were_applied_twice_are_caught() {
        assert_eq!(found(&[read(&[Some((3, 9)), None])], &[]), 1);
        assert_eq!(found(&[read(&[Some((3, 9)), Some((4, 9))])], &[]), 1);
        // The same value, and not in one revision.
        assert_eq!(found(&[read(&[Some((3, 9)), Some((3, 10))])], &[]), 1);
        assert_eq!(found(&[repeat(5, false), repeat(8, false)], &[]), 1);
        assert_eq!(found(&[repeat(5, false), repeat(5, false)], &[]), 1);
        let whole: Told<'_> = (1, &[("a", 1), ("b", 1)], &[]);
        assert_eq!(found(&[], &told(&[whole, (2, &[("a", 2)], &[])])), 1);
        assert_eq!(found(&[], &told(&[whole, (2, &[], &["a"])])), 1);
    }
}
