//! Linearizability of registers, record by record (linearizability is local: Herlihy and Wing 1990).
//!
//! The search is Wing and Gong's with Lowe's memory (2017): at each point some operation that nothing finished
//! precedes may take effect next; configurations seen before (what took effect, and the value) are not searched
//! again. It is bounded per record: by [`STEPS_MAX`] configurations, of which 16 bytes each are remembered (well under
//! 128 MiB), and by [`LOOKS_MAX`] operations looked at (seconds); beyond, the record is undecided, which is no pass.
//!
//! Operations of unknown outcome may take effect any time after they began, or never. One whose value nobody observed
//! for certain is left out, unless a value that somebody did could not have come to be without it: had it taken effect,
//! its effect was overwritten unseen, so any order with it is an order without it. And one whose value somebody observed
//! may as well take effect right before the first who did, since nothing else can come between: so it is tried only
//! there, and a history may have thousands of them. This needs values that are never written twice.
//!
//! Configurations are remembered by a 128-bit hash. Two of a record's with one hash would hide a branch, at worst as a
//! violation that is none; with all the configurations there may be, that is one chance in 10^26.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Function, Operation, Outcome, pair};
use crate::seed::Seeded;

/// What its verdicts are called.
pub const NAME: &str = "linearizable registers";
/// Most configurations searched for one record.
pub const STEPS_MAX: usize = 2_000_000;
/// Most operations looked at in the search for one record.
pub const LOOKS_MAX: usize = 100_000_000;

/// Judges every record of a history.
#[must_use]
pub fn check(operations: &[Operation]) -> Verdict {
    let mut verdict = Verdict::new(NAME);
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
        match Search::new(&of).run(STEPS_MAX, LOOKS_MAX) {
            Found::Order => {}
            Found::None { longest, stuck } => {
                let at = stuck.first().map_or(Duration::ZERO, |stuck| stuck.begin);
                verdict.find(at, explain(key, &longest, &stuck));
            }
            Found::TooMuch => verdict
                .undecided
                .push(format!("register {key}: too many configurations")),
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

    /// The value that it needs to find, if it needs any.
    fn finds(self) -> Option<u64> {
        match self {
            Self::Sees(value) | Self::Changes(value, _) => value,
            Self::Writes(_) => None,
        }
    }

    fn written(self) -> Option<u64> {
        match self {
            Self::Sees(_) => None,
            Self::Writes(new) | Self::Changes(_, new) => Some(new),
        }
    }
}

/// The values that somebody observed for certain, and those without which these could not have come to be.
fn needed(steps: &[Step]) -> HashSet<u64> {
    let before: HashMap<u64, u64> = steps
        .iter()
        .filter(|step| step.end.is_none())
        .filter_map(|step| Some((step.effect.written()?, step.effect.finds()?)))
        .collect();
    let certain = steps.iter().filter(|step| step.end.is_some());
    let mut needed = HashSet::new();
    for found in certain.filter_map(|step| step.effect.finds()) {
        let mut next = Some(found);
        while let Some(value) = next.filter(|value| needed.insert(*value)) {
            next = before.get(&value).copied();
        }
    }
    needed
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
        let matters = needed(&steps);
        steps.retain(|step| {
            step.end.is_some() || step.effect.written().is_none_or(|new| matters.contains(&new))
        });
        steps.sort_by_key(|step| step.begin);
        Self { steps }
    }

    fn run(&self, steps_max: usize, looks_max: usize) -> Found {
        let mut open = Open::new(self.steps.len());
        let mut hashes = Hashes::new(self.steps.len());
        let mut seen: HashSet<u128> = HashSet::new();
        let mut looks = 0;
        let mut order: Vec<usize> = Vec::new();
        let mut longest: Vec<usize> = Vec::new();
        // A branch: what may be tried next there, the last first, and the value before.
        let mut branches = vec![(self.next(&open, &mut looks), None)];
        let must = self.steps.iter().filter(|step| step.end.is_some()).count();
        let mut certain = 0;
        while certain < must {
            let Some((choices, value)) = branches.last_mut() else {
                return self.stuck(&longest);
            };
            let Some(step) = choices.pop() else {
                branches.pop();
                if let Some(undone) = order.pop() {
                    open.put_back(undone);
                    hashes.turn(undone);
                    certain -= usize::from(self.steps[undone].end.is_some());
                }
                continue;
            };
            let Some(after) = self.steps[step].effect.on(*value) else {
                continue;
            };
            hashes.turn(step);
            if !seen.insert(hashes.with(after)) {
                hashes.turn(step);
                continue;
            }
            if seen.len() > steps_max || looks > looks_max {
                return Found::TooMuch;
            }
            open.take(step);
            certain += usize::from(self.steps[step].end.is_some());
            order.push(step);
            if order.len() > longest.len() {
                longest.clone_from(&order);
            }
            branches.push((self.next(&open, &mut looks), after));
        }
        Found::Order
    }

    /// What may take effect next: begun before anything open has ended. In the reverse order of their ends, since
    /// what ended first most likely took effect first and the last of the list is tried first.
    fn next(&self, open: &Open, looks: &mut usize) -> Vec<usize> {
        let mut choices = Vec::new();
        let mut first_end = Duration::MAX;
        for index in open.iter() {
            let step = &self.steps[index];
            *looks += 1;
            if step.begin > first_end {
                break;
            }
            first_end = first_end.min(step.end.unwrap_or(Duration::MAX));
            choices.push(index);
        }
        choices.retain(|index| self.steps[*index].begin <= first_end);
        // Whatever nobody knows takes effect right before somebody finds it.
        let found: HashSet<u64> = choices
            .iter()
            .filter_map(|index| self.steps[*index].effect.finds())
            .collect();
        choices.retain(|index| {
            let step = &self.steps[*index];
            step.end.is_some() || step.effect.written().is_some_and(|new| found.contains(&new))
        });
        choices.sort_by_key(|index| std::cmp::Reverse(self.steps[*index].end.unwrap_or(Duration::MAX)));
        choices
    }

    fn stuck(&self, longest: &[usize]) -> Found {
        let mut open = Open::new(self.steps.len());
        longest.iter().for_each(|step| open.take(*step));
        let steps = |of: &[usize]| of.iter().map(|index| self.steps[*index].clone()).collect();
        let mut stuck = self.next(&open, &mut 0);
        stuck.reverse();
        Found::None {
            longest: steps(longest),
            stuck: steps(&stuck),
        }
    }
}

/// The operations that have not taken effect, by begin: a list from which any can be taken, and put back in the reverse
/// order (Knuth's dancing links).
struct Open {
    /// Index 0 is the list's own; operation `n` has index `n + 1`.
    next: Vec<usize>,
    before: Vec<usize>,
}

impl Open {
    fn new(count: usize) -> Self {
        Self {
            next: (0..=count).map(|index| (index + 1) % (count + 1)).collect(),
            before: (0..=count).map(|index| (index + count) % (count + 1)).collect(),
        }
    }

    fn take(&mut self, step: usize) {
        let (next, before) = (self.next[step + 1], self.before[step + 1]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn put_back(&mut self, step: usize) {
        let (next, before) = (self.next[step + 1], self.before[step + 1]);
        self.next[before] = step + 1;
        self.before[next] = step + 1;
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(self.next[0]), |index| Some(self.next[*index]))
            .take_while(|index| *index != 0)
            .map(|index| index - 1)
    }
}

/// A hash of what took effect, in whatever order (Zobrist 1970), and of the value that it left.
struct Hashes {
    of: Vec<u128>,
    now: u128,
}

impl Hashes {
    fn new(count: usize) -> Self {
        let mut random = Seeded::new(0x6c69_6e65_6172);
        Self {
            of: (0..count).map(|_| wide(&mut random)).collect(),
            now: 0,
        }
    }

    /// It took effect, or did not after all.
    fn turn(&mut self, step: usize) {
        self.now ^= self.of[step];
    }

    fn with(&self, value: Option<u64>) -> u128 {
        self.now ^ value.map_or(0, |value| wide(&mut Seeded::new(!value)))
    }
}

fn wide(random: &mut Seeded) -> u128 {
    u128::from(random.next()) << 64 | u128::from(random.next())
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
