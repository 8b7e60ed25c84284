//! The smallest piece of a register's history that is still wrong.
//!
//! Only what cannot make a right history wrong is taken away: everything behind some moment (a beginning of a
//! linearizable history is linearizable), reads, and writes whose value nobody of the rest observed. So whatever
//! is left is wrong by itself, and shows what went wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checker::linear;
use crate::history::{Function, Operation, Outcome, Phase, pair};

/// Most histories that are judged on the way.
const TRIALS_MAX: usize = 3_000;

/// One operation of the piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) process: u64,
    pub(super) function: Function,
    pub(super) begin: Duration,
    /// When it was answered, and what a read saw; `None`: nobody knows.
    pub(super) end: Option<(Duration, Option<u64>)>,
}

impl Piece {
    fn observed(&self) -> Option<u64> {
        match (&self.function, self.end) {
            (Function::Read, Some((_, seen))) => seen,
            (Function::Cas(old, _), _) => *old,
            (Function::Read | Function::Write(_), _) => None,
        }
    }

    fn written(&self) -> Option<u64> {
        match self.function {
            Function::Read => None,
            Function::Write(new) | Function::Cas(_, new) => Some(new),
        }
    }
}

/// Reduces the history of one register; `None`: it is right, or cannot be decided.
pub(super) fn smallest(operations: &[&Operation]) -> Option<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (operation, outcome) in pair(operations.iter().copied()) {
        let end = match outcome {
            Outcome::Ok { value, at, .. } => Some((at, value)),
            Outcome::Unknown if operation.function != Function::Read => None,
            Outcome::Unknown | Outcome::Fail => continue,
        };
        pieces.push(Piece {
            process: operation.process,
            function: operation.function.clone(),
            begin: operation.time,
            end,
        });
    }
    let mut trials = 0;
    let mut is_wrong = |pieces: &[Piece]| {
        trials += 1;
        trials <= TRIALS_MAX && is_wrong(pieces)
    };
    if !is_wrong(&pieces) {
        return None;
    }
    let mut pieces = shortest_beginning(&pieces, &mut is_wrong);
    let mut size = pieces.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut shrunk = false;
        while from < pieces.len() {
            let to = (from + size).min(pieces.len());
            let rest = [&pieces[..from], &pieces[to..]].concat();
            if may_go(&pieces[from..to], &rest) && is_wrong(&rest) {
                pieces = rest;
                shrunk = true;
            } else {
                from = to;
            }
        }
        if size == 1 && !shrunk {
            return Some(pieces);
        }
        size = size.div_ceil(2).max(1);
    }
}

/// What had happened by the first moment at which it was wrong.
fn shortest_beginning(pieces: &[Piece], is_wrong: &mut impl FnMut(&[Piece]) -> bool) -> Vec<Piece> {
    let ends: BTreeSet<Duration> = pieces
        .iter()
        .filter_map(|piece| piece.end.map(|(at, _)| at))
        .collect();
    let ends: Vec<Duration> = ends.into_iter().collect();
    let beginning = |until: Duration| -> Vec<Piece> {
        let began = pieces.iter().filter(|piece| piece.begin <= until);
        let cut = began.map(|piece| Piece {
            end: piece.end.filter(|(at, _)| *at <= until),
            ..piece.clone()
        });
        cut.filter(|piece| piece.end.is_some() || piece.function != Function::Read)
            .collect()
    };
    let (mut right, mut wrong) = (0, ends.len().saturating_sub(1));
    while right < wrong {
        let middle = usize::midpoint(right, wrong);
        if is_wrong(&beginning(ends[middle])) {
            wrong = middle;
        } else {
            right = middle + 1;
        }
    }
    let shortest = ends.get(wrong).map(|until| beginning(*until));
    match shortest {
        Some(shortest) if is_wrong(&shortest) => shortest,
        _ => pieces.to_vec(),
    }
}

fn may_go(going: &[Piece], rest: &[Piece]) -> bool {
    let written: BTreeSet<u64> = going.iter().filter_map(Piece::written).collect();
    let needed = |piece: &Piece| piece.observed().is_some_and(|value| written.contains(&value));
    !rest.iter().any(needed)
}

fn is_wrong(pieces: &[Piece]) -> bool {
    // Each piece by a process of its own: who did it does not matter to linearizability.
    let mut lines = Vec::new();
    for (process, piece) in (0..).zip(pieces) {
        let line = |phase, time| Operation {
            process,
            key: 0,
            function: piece.function.clone(),
            phase,
            time,
        };
        lines.push(line(Phase::Invoke, piece.begin));
        if let Some((at, value)) = piece.end {
            lines.push(line(Phase::Ok { value, revision: 0 }, at));
        }
    }
    lines.sort_by_key(|line| line.time);
    !linear::check(&lines).findings.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seeded;

    fn done(process: u64, function: Function, seen: Option<u64>, begin: u64, end: u64) -> [Operation; 2] {
        let line = |phase, time| Operation {
            process,
            key: 3,
            function: function.clone(),
            phase,
            time: Duration::from_millis(time),
        };
        let phase = Phase::Ok {
            value: seen,
            revision: 0,
        };
        [line(Phase::Invoke, begin), line(phase, end)]
    }

    /// A right history of one write and one read after the other, with a stale read planted at its middle.
    fn stale(plant: bool) -> Vec<Operation> {
        let mut random = Seeded::new(7);
        let mut lines = Vec::new();
        for turn in 0..60 {
            let (at, value) = (turn * 10, turn + 1);
            lines.extend(done(0, Function::Write(value), None, at, at + 3));
            let seen = if plant && turn == 30 { value - 1 } else { value };
            lines.extend(done(
                1 + random.below(3),
                Function::Read,
                Some(seen),
                at + 4,
                at + 6,
            ));
        }
        lines
    }

    #[test]
    fn a_stale_read_is_cut_down_to_two_writes_and_itself() {
        let lines = stale(true);
        let lines: Vec<&Operation> = lines.iter().collect();
        let pieces = smallest(&lines).unwrap();
        let functions: Vec<_> = pieces.iter().map(|piece| piece.function.clone()).collect();
        assert_eq!(
            functions,
            [Function::Write(30), Function::Write(31), Function::Read]
        );
        assert_eq!(pieces[2].end.unwrap().1, Some(30));
    }

    #[test]
    fn a_right_history_has_no_wrong_piece() {
        let lines = stale(false);
        let lines: Vec<&Operation> = lines.iter().collect();
        assert_eq!(smallest(&lines), None);
    }
}
