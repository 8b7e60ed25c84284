//! Finds a smaller plan of faults, and a shorter run, that still fail.
//!
//! Workloads are left out, then parts of the plan, large ones first (Zeller's delta debugging, 2002), then the run is cut. Each
//! attempt is a whole run, so their number is bounded, and what is found is a small plan, not always the smallest. Only
//! what the same judge finds counts: another failure is another story.

use std::time::Duration;

use crate::alone::Alone;
use crate::findings::Findings;
use crate::options::Options;

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

struct Search<'a> {
    seed: u64,
    alone: &'a Alone,
    /// Who is to find something.
    finders: Vec<String>,
    best: Smaller,
    attempts_max: u64,
}

impl Search<'_> {
    /// Whether it fails, too; then it is the best so far.
    fn attempt(&mut self, options: Options) -> anyhow::Result<bool> {
        if self.best.attempts >= self.attempts_max {
            return Ok(false);
        }
        self.best.attempts += 1;
        let findings = self.alone.run(self.seed, &options)?;
        let fails = findings
            .finders()
            .iter()
            .any(|of| self.finders.iter().any(|by| by == of));
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

    fn leave_out_workloads(&mut self) -> anyhow::Result<()> {
        for workload in self.best.findings.workloads.clone() {
            let mut kept = self.best.findings.workloads.clone();
            kept.retain(|of| *of != workload);
            let options = Options {
                workloads: Some(kept),
                ..self.best.options.clone()
            };
            self.attempt(options)?;
        }
        Ok(())
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
pub fn shrink(
    findings: Findings,
    options: &Options,
    alone: &Alone,
    attempts_max: u64,
) -> anyhow::Result<Smaller> {
    let mut search = Search {
        seed: findings.seed,
        alone,
        finders: findings.finders().into_iter().map(str::to_owned).collect(),
        best: Smaller {
            options: options.clone(),
            findings,
            attempts: 0,
        },
        attempts_max,
    };
    search.leave_out_workloads()?;
    search.leave_out_faults()?;
    search.cut_short()?;
    search.leave_out_faults()?;
    Ok(search.best)
}
