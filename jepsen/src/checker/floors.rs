//! Whether what a workload is there for happened at all. A group that never moved, or a server that never answered, breaks no
//! promise, and proves nothing either.

use std::collections::BTreeSet;

use super::verdict::Verdict;
use crate::history::{Answer, Ap, Following};

/// How often something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// What, as a sentence's end.
    pub what: &'static str,
    /// How often.
    pub times: usize,
    /// How often it must have, for the workload's word to count.
    pub least: usize,
}

impl Happened {
    /// Whether that is enough.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.times >= self.least
    }
}

/// What did not happen leaves undecided whether it is done right.
#[must_use]
pub fn check(happened: &[Happened]) -> Verdict {
    let mut verdict = Verdict::new("what was to happen");
    for of in happened {
        verdict.judged += of.times;
        verdict.figures.push(format!("{} {}", of.times, of.what));
        if !of.is_enough() {
            let Happened { what, times, least } = of;
            verdict
                .undecided
                .push(format!("{times} {what}, and {least} at least are needed"));
        }
    }
    verdict
}

/// Servers of which anybody ever saw what they list of a group.
#[must_use]
pub fn servers_seen(lines: &[Ap], group: &str, what: &'static str, servers: u64) -> Happened {
    let seen: BTreeSet<u64> = lines
        .iter()
        .filter_map(|line| match line {
            Ap::View {
                group: of, server, ..
            } if of == group => Some(*server),
            _ => None,
        })
        .collect();
    Happened {
        what,
        times: seen.len(),
        least: usize::try_from(servers).unwrap_or(usize::MAX),
    }
}

/// Moves of a group between modes.
#[must_use]
pub fn moves(lines: &[Ap], group: &str) -> Happened {
    let moved = |line: &&Ap| matches!(line, Ap::Moved { group: of, .. } if of == group);
    Happened {
        what: "moves between modes",
        times: lines.iter().filter(moved).count(),
        least: 1,
    }
}

/// Watchers of a service's group that came back behind a revision, and were told something then.
#[must_use]
pub fn resumptions(lines: &[Following], group: &str) -> Happened {
    let mut resumed: BTreeSet<&str> = BTreeSet::new();
    let mut times = 0;
    for line in lines {
        match line {
            Following::Open {
                watch, service, from, ..
            } => {
                if *from > 0 && service.split('/').next() == Some(group) {
                    resumed.insert(watch);
                } else {
                    resumed.remove(watch.as_str());
                }
            }
            Following::Event { watch, .. } | Following::Bookmark { watch, .. } => {
                times += usize::from(resumed.remove(watch.as_str()));
            }
            Following::Silent { .. } | Following::Close { .. } => {}
        }
    }
    Happened {
        what: "resumed watches",
        times,
        least: 1,
    }
}

/// Local reads whose answer claims an age, and those that named a greatest age and were answered.
#[must_use]
pub fn ages(answers: &[Answer]) -> [Happened; 2] {
    let local = |wanted: fn(bool, bool) -> bool| {
        let counts = |answer: &&Answer| match answer {
            Answer::Local {
                max_age,
                answer: Some((_, age)),
                ..
            } => wanted(age.is_some(), max_age.is_some()),
            _ => false,
        };
        answers.iter().filter(counts).count()
    };
    [
        Happened {
            what: "local reads of known age",
            times: local(|known, _| known),
            least: 1,
        },
        Happened {
            what: "answers to who named a greatest age",
            times: local(|_, bounded| bounded),
            least: 1,
        },
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn view(server: u64) -> Ap {
        Ap::View {
            group: "g".into(),
            server,
            epoch: 1,
            sent: Duration::ZERO,
            end: Duration::ZERO,
            nodes: BTreeMap::new(),
            sign: (0, 0),
        }
    }

    fn read(max_age: Option<u64>, answer: Option<Option<u64>>) -> Answer {
        Answer::Local {
            server: 1,
            sent: Duration::ZERO,
            end: Duration::ZERO,
            max_age: max_age.map(Duration::from_millis),
            answer: answer.map(|age| (7, age.map(Duration::from_millis))),
        }
    }

    #[test]
    fn a_server_that_nobody_saw_and_a_group_that_never_moved_leave_it_undecided() {
        let moved = Ap::Moved {
            group: "g".into(),
            ap: true,
            time: Duration::ZERO,
        };
        let seen = |lines: &[Ap]| check(&[servers_seen(lines, "g", "servers", 2), moves(lines, "g")]);
        assert!(seen(&[view(1), view(2), moved.clone()]).is_good());
        let unseen = seen(&[view(1), view(1), moved.clone()]);
        assert_eq!(unseen.undecided, ["1 servers, and 2 at least are needed"]);
        assert!(!seen(&[view(1), view(2)]).is_good(), "it never moved");
        assert_eq!(moves(&[moved], "h").times, 0);
    }

    #[test]
    fn who_never_resumed_and_who_was_never_told_an_age_prove_nothing() {
        let open = |from| Following::Open {
            watch: "w".into(),
            service: "g/s".into(),
            server: 1,
            from,
            time: Duration::ZERO,
        };
        let bookmark = Following::Bookmark {
            watch: "w".into(),
            revision: 9,
            time: Duration::ZERO,
        };
        let resumed = |lines: &[Following]| check(&[resumptions(lines, "g")]).is_good();
        assert!(resumed(&[open(0), bookmark.clone(), open(9), bookmark.clone()]));
        assert!(
            !resumed(&[open(0), bookmark.clone(), open(9)]),
            "it was told nothing"
        );
        assert!(!resumed(&[open(9), open(0), bookmark]), "from the beginning");

        let aged = |reads: &[Answer]| check(&ages(reads)).is_good();
        assert!(aged(&[read(Some(50), Some(Some(3)))]));
        assert!(
            !aged(&[read(None, Some(None)), read(Some(50), Some(None))]),
            "unknown"
        );
        assert!(
            !aged(&[read(None, Some(Some(3))), read(Some(50), None)]),
            "refused"
        );
        assert!(check(&[]).undecided.is_empty());
    }
}
