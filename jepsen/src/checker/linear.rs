//! Linearizability of registers, record by record (linearizability is local: Herlihy and Wing 1990).
//!
//! The search is Wing and Gong's with Lowe's memory (2017): at each point some operation that nothing finished
//! precedes may take effect next; configurations seen before (what took effect, and the value) are not searched
//! again. It is bounded by [`STEPS_MAX`] per record; beyond, the record is undecided, which is no pass.
//!
//! Operations of unknown outcome may take effect any time after they began, or never. One whose value nobody ever
//! observed is left out: had it taken effect, its effect was overwritten unseen, so any order with it is an order
//! without it. This needs values that are never written twice.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Function, Operation, Outcome, pair};

/// Most configurations searched for one record.
pub const STEPS_MAX: usize = 2_000_000;

/// Judges every record of a history.
#[must_use]
pub fn check(operations: &[Operation]) -> Verdict {
    let mut verdict = Verdict::new("linearizable registers");
    let mut keys: BTreeMap<u64, Vec<(&Operation, Outcome)>> = BTreeMap::new();
    for (operation, outcome) in pair(operations) {
        keys.entry(operation.key).or_default().push((operation, outcome));
    }
    verdict.figures.push(format!("{} registers", keys.len()));
    for (key, of) in keys {
        verdict.judged += of
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Ok { .. }))
            .count();
        match Search::new(&of).run(STEPS_MAX) {
            Found::Order => {}
            Found::None { longest, stuck } => {
                let at = stuck.first().map_or(Duration::ZERO, |stuck| stuck.begin);
                verdict.find(at, explain(key, &longest, &stuck));
            }
            Found::TooMuch => verdict
                .undecided
                .push(format!("register {key}: more than {STEPS_MAX} configurations")),
        }
    }
    verdict
}

/// An operation as the search sees it.
#[derive(Clone, Debug)]
struct Step {
    process: u64,
    begin: Duration,
    /// `None`: it may take effect any time later, or never.
    end: Option<Duration>,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Sees(Option<u64>),
    Writes(u64),
    Changes(Option<u64>, u64),
}

impl Effect {
    /// The value afterwards; `None`: it cannot take effect now.
    fn on(self, value: Option<u64>) -> Option<Option<u64>> {
        match self {
            Self::Sees(seen) => (seen == value).then_some(value),
            Self::Writes(new) => Some(Some(new)),
            Self::Changes(old, new) => (old == value).then_some(Some(new)),
        }
    }

    fn written(self) -> Option<u64> {
        match self {
            Self::Sees(_) => None,
            Self::Writes(new) | Self::Changes(_, new) => Some(new),
        }
    }
}

struct Search {
    /// By begin.
    steps: Vec<Step>,
}

enum Found {
    Order,
    /// The longest beginning that can be ordered, and what cannot follow it.
    None {
        longest: Vec<Step>,
        stuck: Vec<Step>,
    },
    TooMuch,
}

impl Search {
    fn new(of: &[(&Operation, Outcome)]) -> Self {
        let mut steps = Vec::new();
        for (operation, outcome) in of {
            let (seen, end) = match outcome {
                Outcome::Fail => continue,
                Outcome::Ok { value, at, .. } => (*value, Some(*at)),
                Outcome::Unknown if operation.function == Function::Read => continue,
                Outcome::Unknown => (None, None),
            };
            let effect = match operation.function {
                Function::Read => Effect::Sees(seen),
                Function::Write(new) => Effect::Writes(new),
                Function::Cas(old, new) => Effect::Changes(old, new),
            };
            steps.push(Step {
                process: operation.process,
                begin: operation.time,
                end,
                effect,
            });
        }
        let observed: HashSet<u64> = steps
            .iter()
            .filter_map(|step| match step.effect {
                Effect::Sees(value) | Effect::Changes(value, _) => value,
                Effect::Writes(_) => None,
            })
            .collect();
        let matters = |step: &Step| step.effect.written().is_none_or(|new| observed.contains(&new));
        steps.retain(|step| step.end.is_some() || matters(step));
        steps.sort_by_key(|step| step.begin);
        Self { steps }
    }

    fn run(&self, steps_max: usize) -> Found {
        let mut seen: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
        let mut longest: Vec<usize> = Vec::new();
        // A branch: what may be tried next there, the last first, and the value before.
        let mut branches = vec![(self.next(&[]), None)];
        let mut order: Vec<usize> = Vec::new();
        let mut done = vec![0_u64; self.steps.len().div_ceil(64)];
        let must = self.steps.iter().filter(|step| step.end.is_some()).count();
        let mut certain = 0;
        while certain < must {
            let Some((choices, value)) = branches.last_mut() else {
                return self.stuck(&longest);
            };
            let Some(step) = choices.pop() else {
                branches.pop();
                if let Some(undone) = order.pop() {
                    done[undone / 64] &= !(1 << (undone % 64));
                    certain -= usize::from(self.steps[undone].end.is_some());
                }
                continue;
            };
            let Some(after) = self.steps[step].effect.on(*value) else {
                continue;
            };
            done[step / 64] |= 1 << (step % 64);
            if !seen.insert((done.clone(), after)) {
                done[step / 64] &= !(1 << (step % 64));
                continue;
            }
            if seen.len() > steps_max {
                return Found::TooMuch;
            }
            certain += usize::from(self.steps[step].end.is_some());
            order.push(step);
            if order.len() > longest.len() {
                longest.clone_from(&order);
            }
            branches.push((self.next(&done), after));
        }
        Found::Order
    }

    /// What may take effect next: begun before anything open has ended. In the reverse order of their ends, since
    /// what ended first most likely took effect first and the last of the list is tried first.
    fn next(&self, done: &[u64]) -> Vec<usize> {
        let is_done = |step: usize| {
            done.get(step / 64)
                .is_some_and(|word| word & (1 << (step % 64)) != 0)
        };
        let mut choices = Vec::new();
        let mut first_end = Duration::MAX;
        for (index, step) in self
            .steps
            .iter()
            .enumerate()
            .filter(|(index, _)| !is_done(*index))
        {
            if step.begin > first_end {
                break;
            }
            first_end = first_end.min(step.end.unwrap_or(Duration::MAX));
            choices.push(index);
        }
        choices.retain(|index| self.steps[*index].begin <= first_end);
        choices.sort_by_key(|index| std::cmp::Reverse(self.steps[*index].end.unwrap_or(Duration::MAX)));
        choices
    }

    fn stuck(&self, longest: &[usize]) -> Found {
        let mut done = vec![0_u64; self.steps.len().div_ceil(64)];
        for step in longest {
            done[step / 64] |= 1 << (step % 64);
        }
        let steps = |of: &[usize]| of.iter().map(|index| self.steps[*index].clone()).collect();
        let mut stuck = self.next(&done);
        stuck.reverse();
        Found::None {
            longest: steps(longest),
            stuck: steps(&stuck),
        }
    }
}

fn explain(key: u64, longest: &[Step], stuck: &[Step]) -> String {
    let value = longest
        .iter()
        .try_fold(None, |value, step| step.effect.on(value))
        .flatten();
    let mut text = format!(
        "register {key} is not linearizable. The longest order that fits has {} operations and leaves the value {}; \
         its last ones:\n",
        longest.len(),
        written(value)
    );
    for step in &longest[longest.len().saturating_sub(6)..] {
        let _ = writeln!(text, "  {}", sentence(step));
    }
    text.push_str("After it one of these must come next, and none can:\n");
    for step in stuck {
        let _ = writeln!(text, "  {}", sentence(step));
    }
    text
}

fn sentence(step: &Step) -> String {
    let effect = match step.effect {
        Effect::Sees(value) => format!("read {}", written(value)),
        Effect::Writes(value) => format!("wrote {value}"),
        Effect::Changes(old, new) => format!("changed {} to {new}", written(old)),
    };
    let end = step.end.map_or("unknown".into(), |end| format!("{end:?}"));
    format!("process {} {effect} ({:?} to {end})", step.process, step.begin)
}

fn written(value: Option<u64>) -> String {
    value.map_or("nothing".into(), |value| value.to_string())
}

#[cfg(test)]
#[path = "linear_test.rs"]
mod tests;
