//! Finds a smaller plan of faults, and a shorter run, that still fail.
//!
//! Parts of the plan are left out, large ones first (Zeller's delta debugging, 2002), then the run is cut. Each attempt
//! is a whole run, so their number is bounded, and what is found is a small plan, not always the smallest.

use std::time::Duration;

use crate::run::{Findings, Options, run};

/// A smaller failure.
#[derive(Debug)]
pub struct Smaller {
    /// How to run it again.
    pub options: Options,
    /// What it finds.
    pub findings: Findings,
    /// How many runs it took to find it.
    pub attempts: u64,
}

struct Search {
    seed: u64,
    best: Smaller,
    attempts_max: u64,
}

impl Search {
    /// Whether it fails, too; then it is the best so far.
    fn attempt(&mut self, options: Options) -> anyhow::Result<bool> {
        if self.best.attempts >= self.attempts_max {
            return Ok(false);
        }
        self.best.attempts += 1;
        let findings = run(self.seed, &options)?;
        let fails = !findings.is_good();
        if fails {
            (self.best.options, self.best.findings) = (options, findings);
        }
        Ok(fails)
    }

    fn faults(&self) -> Vec<usize> {
        self.best
            .findings
            .plan
            .iter()
            .map(|(number, _)| *number)
            .collect()
    }

    fn leave_out_faults(&mut self) -> anyhow::Result<()> {
        let mut size = self.faults().len();
        while size > 0 {
            let mut from = 0;
            while from < self.faults().len() {
                let mut kept = self.faults();
                kept.drain(from..(from + size).min(kept.len()));
                let options = Options {
                    faults: Some(kept),
                    ..self.best.options.clone()
                };
                if !self.attempt(options)? {
                    from += size;
                }
            }
            size /= 2;
        }
        Ok(())
    }

    /// A run's plan depends on its length only in that faults beyond the end are not there.
    fn cut_short(&mut self) -> anyhow::Result<()> {
        for percent in [40, 60, 80] {
            let length = self.best.options.length * percent / 100;
            let options = Options {
                length: length.max(Duration::from_secs(3)),
                ..self.best.options.clone()
            };
            if self.attempt(options)? {
                break;
            }
        }
        Ok(())
    }
}

/// Shrinks a run that fails, in at most `attempts_max` runs.
///
/// # Errors
/// A run could not be carried out.
pub fn shrink(findings: Findings, options: &Options, attempts_max: u64) -> anyhow::Result<Smaller> {
    let mut search = Search {
        seed: findings.seed,
        best: Smaller {
            options: options.clone(),
            findings,
            attempts: 0,
        },
        attempts_max,
    };
    search.leave_out_faults()?;
    search.cut_short()?;
    search.leave_out_faults()?;
    Ok(search.best)
}
