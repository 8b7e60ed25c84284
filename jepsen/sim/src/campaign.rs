//! Many seeds, several at a time, each in a process of its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::alone::Alone;
use crate::disk;
use crate::findings::Findings;
use crate::options::Options;

/// In so many seeds a judge has something to look at in one, however short they are.
const ASKED_ENOUGH: u64 = 20;

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many seeds.
    pub seeds: u64,
    /// Seeds that failed.
    pub failed: Vec<u64>,
    /// Things that could not be judged, in all.
    pub undecided: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Seeds, by what ran in them.
    pub workloads: BTreeMap<String, u64>,
    /// Of each judge: in how many seeds it judged something, and how many things in all.
    pub judged: BTreeMap<String, (u64, u64)>,
    /// In how many seeds each judge was asked.
    pub asked: BTreeMap<String, u64>,
    /// Sums of the runs' figures; of the highest term, the highest.
    pub figures: BTreeMap<String, u64>,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Real time of all processes, in milliseconds.
    pub took_ms: u64,
}

impl Totals {
    /// Counts a run in.
    pub fn add(&mut self, findings: &Findings) {
        self.seeds += 1;
        if !findings.is_good() {
            self.failed.push(findings.seed);
        }
        self.undecided += findings.undecided.len() as u64;
        for (kind, count) in &findings.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        for workload in &findings.workloads {
            *self.workloads.entry(workload.clone()).or_default() += 1;
        }
        for of in &findings.judged {
            *self.asked.entry(of.checker.clone()).or_default() += 1;
        }
        for of in findings.judged.iter().filter(|of| of.judged > 0) {
            let (seeds, judged) = self.judged.entry(of.checker.clone()).or_default();
            (*seeds, *judged) = (*seeds + 1, *judged + of.judged);
        }
        for (name, figure) in &findings.figures {
            let sum = self.figures.entry(name.clone()).or_default();
            *sum = match name.as_str() {
                "highest term" => (*sum).max(*figure),
                _ => *sum + figure,
            };
        }
        self.simulated_ms += findings.simulated_ms;
        self.took_ms += findings.took_ms;
    }

    /// Judges that were asked in so many seeds that one of them should have had something for it, and never had. A word on
    /// nothing proves nothing.
    #[must_use]
    pub fn idle(&self) -> Vec<&str> {
        let asked = self.asked.iter().filter(|(_, seeds)| **seeds >= ASKED_ENOUGH);
        asked
            .map(|(checker, _)| checker.as_str())
            .filter(|checker| !self.judged.contains_key(*checker))
            .collect()
    }
}

/// Runs seeds, `jobs` at a time; `each` hears of every one as it is done, and ends the campaign with an error.
///
/// # Errors
/// A run could not be carried out, or `each` says so.
pub fn campaign(
    seeds: &[u64],
    jobs: usize,
    options: &Options,
    alone: &Alone,
    mut each: impl FnMut(&Findings) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    disk::clear_all();
    let next = AtomicUsize::new(0);
    let (done, runs) = mpsc::sync_channel(jobs.max(1));
    std::thread::scope(|scope| {
        // Dropped when this fails, so that nobody begins another.
        let runs = runs;
        for _ in 0..jobs.max(1) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if done.send(alone.run(*seed, options)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for findings in &runs {
            each(&findings?)?;
        }
        Ok(())
    })
}

/// The seeds of a range that are not among these.
#[must_use]
pub fn missing(range: Range<u64>, done: &[Findings]) -> Vec<u64> {
    let done: std::collections::BTreeSet<u64> = done.iter().map(|findings| findings.seed).collect();
    range.filter(|seed| !done.contains(seed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Judged;

    #[test]
    fn a_judge_that_never_had_anything_to_look_at_is_named() {
        let of = |checker: &str, judged| Judged {
            checker: checker.into(),
            judged,
            findings: 0,
            figures: Vec::new(),
        };
        let mut totals = Totals::default();
        for seed in 0..ASKED_ENOUGH {
            assert!(totals.idle().is_empty());
            let mut findings = Findings {
                seed,
                judged: vec![of("moves", 0), of("sessions", u64::from(seed == 3))],
                ..Findings::default()
            };
            findings.judged.extend((seed == 0).then(|| of("storm", 0)));
            totals.add(&findings);
        }
        assert_eq!(totals.idle(), ["moves"]);
    }
}
