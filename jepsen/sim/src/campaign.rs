//! Many seeds, on several threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::run::{Findings, Options, run};

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
    pub faults: BTreeMap<&'static str, u64>,
    /// Sums of the runs' figures; of the highest term, the highest.
    pub figures: BTreeMap<&'static str, u64>,
    /// Simulated time.
    pub simulated: Duration,
}

impl Totals {
    fn add(&mut self, findings: &Findings) {
        self.seeds += 1;
        if !findings.is_good() {
            self.failed.push(findings.seed);
        }
        self.undecided += findings.undecided.len() as u64;
        for (kind, count) in &findings.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (name, figure) in &findings.figures {
            let sum = self.figures.entry(name).or_default();
            *sum = match *name {
                "highest term" => (*sum).max(*figure),
                _ => *sum + figure,
            };
        }
        self.simulated += findings.simulated;
    }
}

/// Runs `count` seeds from `first` on, on `jobs` threads; `each` hears of every one as it is done.
///
/// # Errors
/// A run could not be carried out.
pub fn campaign(
    first: u64,
    count: u64,
    jobs: usize,
    options: &Options,
    mut each: impl FnMut(&Findings, &Totals),
) -> anyhow::Result<Totals> {
    let next = AtomicU64::new(0);
    let (done, runs) = mpsc::sync_channel(jobs.max(1));
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || done.send(run(first.wrapping_add(index), options)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for findings in runs {
            let findings = findings?;
            totals.add(&findings);
            each(&findings, &totals);
        }
        anyhow::Ok(())
    })?;
    totals.failed.sort_unstable();
    Ok(totals)
}
