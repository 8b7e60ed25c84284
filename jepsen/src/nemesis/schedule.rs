//! When what begins and ends.

use std::time::Duration;

use super::kind::Kind;
use crate::seed::Seeded;

/// The load runs alone for so long at first.
const CALM: Duration = Duration::from_secs(3);
/// Most faults at a time.
const OVERLAP_MAX: usize = 3;

/// One fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub kind: Kind,
    /// When, from the start of the run.
    pub begin: Duration,
    /// Until when.
    pub end: Duration,
    /// Decides whom it meets and how hard.
    pub draw: u64,
}

/// A schedule of these kinds within `length`. The same seed gives the same one. Kinds come in an order shuffled anew
/// for each round, but for those that have to wait for another's end: all have had their turn before one comes again.
#[must_use]
pub fn schedule(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Planned> {
    let mut random = Seeded::fork(seed, 0x7363_6865);
    let mut plan: Vec<Planned> = Vec::new();
    let mut round: Vec<Kind> = Vec::new();
    let mut at = CALM;
    while !kinds.is_empty() && at < length {
        if round.is_empty() {
            round = kinds.to_vec();
            random.shuffle(&mut round);
        }
        let active: Vec<Kind> = plan
            .iter()
            .filter(|planned| planned.end > at)
            .map(|planned| planned.kind)
            .collect();
        let fits = |kind: &Kind| active.iter().all(|other| !other.excludes(*kind));
        let turn = round.iter().rposition(fits);
        let Some(turn) = turn.filter(|_| active.len() < OVERLAP_MAX) else {
            at += Duration::from_millis(250);
            continue;
        };
        let kind = round.remove(turn);
        let end = at + Duration::from_millis(random.between(1_500, 7_000));
        if end > length {
            break;
        }
        plan.push(Planned {
            kind,
            begin: at,
            end,
            draw: random.next(),
        });
        at += Duration::from_millis(random.between(700, 4_000));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_with_every_kind_and_bounded_overlap() {
        let length = Duration::from_secs(300);
        let plan = schedule(5, length, &Kind::ALL);
        assert_eq!(plan, schedule(5, length, &Kind::ALL));
        assert_ne!(plan, schedule(6, length, &Kind::ALL));
        assert!(
            Kind::ALL
                .iter()
                .all(|kind| plan.iter().any(|planned| planned.kind == *kind))
        );
        let mut overlapping = 0;
        for planned in &plan {
            assert!(planned.begin >= CALM && planned.end <= length);
            let during = |other: &&Planned| other.begin <= planned.begin && other.end > planned.begin;
            let active: Vec<_> = plan.iter().filter(during).collect();
            assert!(active.len() <= OVERLAP_MAX);
            assert!(
                active
                    .iter()
                    .filter(|other| other.kind.excludes(planned.kind))
                    .count()
                    <= 1
            );
            overlapping += usize::from(active.len() > 1);
        }
        assert!(
            overlapping > plan.len() / 3,
            "{overlapping} of {} overlap",
            plan.len()
        );
        assert!(schedule(5, length, &[]).is_empty());
    }
}
