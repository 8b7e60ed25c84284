//! Revisions over all records: no two writes share one, later writes have higher ones, and no read answers from
//! before a write that had been acknowledged when the read began.

use std::collections::BTreeMap;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Function, Operation, Outcome, pair};

/// Judges a history's revisions. This takes one pass, where [`super::linear`] searches.
#[must_use]
pub fn check(operations: &[Operation]) -> Verdict {
    let mut verdict = Verdict::new("revisions in real time");
    let mut ended: Vec<(Duration, u64, &Operation)> = Vec::new();
    let mut writers: BTreeMap<u64, &Operation> = BTreeMap::new();
    let paired = pair(operations);
    for (operation, outcome) in &paired {
        let Outcome::Ok { revision, at, .. } = *outcome else {
            continue;
        };
        if revision == 0 {
            continue;
        }
        verdict.judged += 1;
        if operation.function == Function::Read {
            continue;
        }
        ended.push((at, revision, *operation));
        if let Some(other) = writers.insert(revision, operation) {
            verdict.find(
                at,
                format!(
                    "two writes have revision {revision}: of register {} by process {}, of register {} by process {}",
                    other.key, other.process, operation.key, operation.process
                ),
            );
        }
    }
    ended.sort_by_key(|(at, ..)| *at);
    // The highest revision acknowledged before each beginning; beginnings come in order.
    let mut floor = (0, None::<&Operation>);
    let mut ended = ended.into_iter().peekable();
    for (operation, outcome) in &paired {
        while let Some((_, revision, write)) = ended.next_if(|(at, ..)| *at < operation.time) {
            if revision > floor.0 {
                floor = (revision, Some(write));
            }
        }
        let Outcome::Ok { revision, at, .. } = *outcome else {
            continue;
        };
        if revision == 0 {
            continue;
        }
        let is_read = operation.function == Function::Read;
        let late = if is_read {
            revision < floor.0
        } else {
            revision <= floor.0
        };
        if let Some(before) = floor.1.filter(|_| late) {
            verdict.find(
                at,
                format!(
                    "process {} {} register {} at revision {revision}, and revision {} (register {}, process {}) had \
                     been acknowledged before it began at {:?}",
                    operation.process,
                    if is_read { "read" } else { "wrote" },
                    operation.key,
                    floor.0,
                    before.key,
                    before.process,
                    operation.time
                ),
            );
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Phase;

    /// (process, key, write?, begin, end, revision)
    fn history(of: &[(u64, u64, bool, u64, u64, u64)]) -> Vec<Operation> {
        let mut lines = Vec::new();
        for (process, key, write, begin, end, revision) in of {
            let function = if *write {
                Function::Write(*revision)
            } else {
                Function::Read
            };
            let at = |phase, time: u64| Operation {
                process: *process,
                key: *key,
                function: function.clone(),
                phase,
                time: Duration::from_millis(time),
            };
            lines.push(at(Phase::Invoke, *begin));
            let ok = Phase::Ok {
                value: None,
                revision: *revision,
            };
            lines.push(at(ok, *end));
        }
        lines.sort_by_key(|line| line.time);
        lines
    }

    #[test]
    fn concurrent_writes_may_take_any_order_and_later_ones_may_not() {
        assert!(
            check(&history(&[
                (1, 1, true, 0, 10, 6),
                (2, 2, true, 1, 9, 5),
                (3, 1, false, 11, 12, 6)
            ]))
            .is_good()
        );
        let verdict = check(&history(&[(1, 1, true, 0, 10, 6), (2, 2, true, 11, 12, 5)]));
        assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
    }

    #[test]
    fn shared_revisions_and_old_reads_are_caught() {
        let shared = check(&history(&[(1, 1, true, 0, 10, 6), (2, 2, true, 0, 10, 6)]));
        assert_eq!(shared.findings.len(), 1, "{shared:?}");
        let old = check(&history(&[(1, 1, true, 0, 10, 6), (2, 2, false, 11, 12, 5)]));
        assert_eq!(old.findings.len(), 1, "{old:?}");
        assert!(!check(&[]).is_good(), "nothing was judged");
    }
}
