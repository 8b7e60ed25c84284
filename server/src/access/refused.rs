//! Registrations that admission lists did not let in lately: a bounded list for operators.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_core::admission::Rule;
use rollcall_core::ids::{Environment, GroupName, NodeKey};

/// Most registrants remembered. Beyond it the one that was refused longest ago is forgotten.
const ENTRIES_MAX: usize = 512;
/// A registrant that goes on trying is logged again after so long, with its count.
const LOG_AGAIN: Duration = Duration::from_secs(30);
/// Log lines about all registrants together: so many at once, and one more each such time.
const LOG_BURST: u32 = 20;
const LOG_SPACING: Duration = Duration::from_millis(200);

/// Who was refused where, and by which rule. Node ids are left out, or one registrant could fill the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) group: GroupName,
    pub(crate) rule: Rule,
    pub(crate) address: Option<IpAddr>,
    pub(crate) token: String,
    pub(crate) environment: Option<Environment>,
}

/// What is remembered of it.
#[derive(Clone, Debug)]
pub(crate) struct RefusedEntry {
    /// The last node.
    pub(crate) node: NodeKey,
    /// The name of the last session's client; empty: there was no session.
    pub(crate) client: String,
    /// As it was told the last time.
    pub(crate) reason: String,
    /// Only reported, the last time.
    pub(crate) dry_run: bool,
    pub(crate) count: u64,
    pub(crate) first_at: Instant,
    pub(crate) last_at: Instant,
    /// Grows with each attempt of anybody: tells who was last where the clock cannot.
    turn: u64,
    logged_at: Option<Instant>,
}

/// The list. Shared by reference.
#[derive(Debug, Default)]
pub(crate) struct RefusedList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Attempt, RefusedEntry>,
    turns: u64,
    forgotten: u64,
    lines: Option<Lines>,
}

/// Room for log lines.
#[derive(Clone, Copy, Debug)]
struct Lines {
    left: u32,
    at: Instant,
}

impl RefusedList {
    /// Remembers an attempt. `Some`: it is worth a log line, and so often it happened.
    pub(crate) fn note(
        &self,
        attempt: Attempt,
        node: NodeKey,
        client: String,
        reason: String,
        dry_run: bool,
        now: Instant,
    ) -> Option<u64> {
        let mut state = self.state.lock();
        state.turns += 1;
        let turn = state.turns;
        if state.entries.len() >= ENTRIES_MAX && !state.entries.contains_key(&attempt) {
            state.forget_oldest();
        }
        let entry = state.entries.entry(attempt).or_insert_with(|| RefusedEntry {
            node: node.clone(),
            client: String::new(),
            reason: String::new(),
            dry_run,
            count: 0,
            first_at: now,
            last_at: now,
            turn,
            logged_at: None,
        });
        entry.node = node;
        entry.client = client;
        entry.reason = reason;
        entry.dry_run = dry_run;
        entry.count += 1;
        entry.last_at = now;
        entry.turn = turn;
        let count = entry.count;
        let due = entry
            .logged_at
            .is_none_or(|at| now.saturating_duration_since(at) >= LOG_AGAIN);
        if due {
            entry.logged_at = Some(now);
        }
        (due && state.take_line(now)).then_some(count)
    }

    /// Those of groups at or below a prefix, the last first; and how many registrants were forgotten.
    pub(crate) fn within(&self, prefix: &str) -> (Vec<(Attempt, RefusedEntry)>, u64) {
        let state = self.state.lock();
        let mut found: Vec<_> = state
            .entries
            .iter()
            .filter(|(attempt, _)| attempt.group.is_within(prefix))
            .map(|(attempt, entry)| (attempt.clone(), entry.clone()))
            .collect();
        found.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.turn));
        (found, state.forgotten)
    }
}

impl State {
    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.turn);
        if let Some(oldest) = oldest.map(|(attempt, _)| attempt.clone()) {
            self.entries.remove(&oldest);
            self.forgotten += 1;
        }
    }

    fn take_line(&mut self, now: Instant) -> bool {
        let full = Lines {
            left: LOG_BURST,
            at: now,
        };
        let lines = self.lines.get_or_insert(full);
        let earned = now.saturating_duration_since(lines.at).as_nanos() / LOG_SPACING.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            lines.left = lines.left.saturating_add(earned).min(LOG_BURST);
            lines.at = now;
        }
        let some = lines.left > 0;
        lines.left = lines.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollcall_core::ids::ServiceKey;

    fn attempt(group: &str, address: u32) -> Attempt {
        Attempt {
            group: group.parse().unwrap(),
            rule: Rule::Address,
            address: Some(IpAddr::V4(address.into())),
            token: String::new(),
            environment: None,
        }
    }

    fn note(list: &RefusedList, attempt: Attempt, node: &str, now: Instant) -> Option<u64> {
        let service = ServiceKey {
            group: attempt.group.clone(),
            service: "feed".parse().unwrap(),
        };
        let node = NodeKey {
            service,
            node: node.parse().unwrap(),
        };
        list.note(attempt, node, "client".into(), "reason".into(), false, now)
    }

    #[test]
    fn one_registrant_is_one_line_with_its_count_and_last_node() {
        let (list, now) = (RefusedList::default(), Instant::now());
        for n in 1..=3 {
            note(&list, attempt("prod", 1), &format!("n{n}"), now);
        }
        note(&list, attempt("prod/feed", 2), "x", now);
        let (found, forgotten) = list.within("");
        assert_eq!((found.len(), forgotten), (2, 0));
        assert_eq!(found[0].0, attempt("prod/feed", 2), "the last first");
        assert_eq!((found[1].1.count, found[1].1.node.node.as_str()), (3, "n3"));
        assert_eq!(list.within("prod/feed").0.len(), 1);
        assert_eq!(list.within("production").0.len(), 0);
    }

    #[test]
    fn the_list_is_bounded_and_forgets_whom_it_saw_longest_ago() {
        let (list, now) = (RefusedList::default(), Instant::now());
        let bound = u32::try_from(ENTRIES_MAX).unwrap();
        for address in 0..bound {
            note(&list, attempt("prod", address), "n", now);
        }
        note(&list, attempt("prod", 0), "n", now);
        for address in bound..bound + 3 {
            note(&list, attempt("prod", address), "n", now);
        }
        let (found, forgotten) = list.within("");
        assert_eq!((found.len(), forgotten), (ENTRIES_MAX, 3));
        let has = |address| found.iter().any(|(kept, _)| *kept == attempt("prod", address));
        assert!(has(0), "it was seen again");
        assert!(!has(1) && !has(2) && !has(3) && has(4));
    }

    #[test]
    fn log_lines_are_rationed_by_registrant_and_over_all() {
        let (list, start) = (RefusedList::default(), Instant::now());
        assert_eq!(note(&list, attempt("prod", 1), "n", start), Some(1));
        for _ in 0..1_000 {
            assert_eq!(note(&list, attempt("prod", 1), "n", start), None);
        }
        assert_eq!(
            note(&list, attempt("prod", 1), "n", start + LOG_AGAIN),
            Some(1_002)
        );
        let now = start + LOG_AGAIN;
        let lines = (2..1_000).filter(|address| note(&list, attempt("prod", *address), "n", now).is_some());
        assert_eq!(lines.count(), LOG_BURST as usize - 1);
        let later = now + LOG_SPACING * 2;
        let lines =
            (1_000..2_000).filter(|address| note(&list, attempt("prod", *address), "n", later).is_some());
        assert_eq!(lines.count(), 2);
    }
}
