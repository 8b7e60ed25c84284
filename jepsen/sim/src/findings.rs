//! What came of a run, in a form that one process can tell another, and that can be kept.

use std::collections::BTreeMap;
use std::fmt;

use rollcall_jepsen::checker::Verdict;
use rollcall_jepsen::checker::floors::Happened;
use serde::{Deserialize, Serialize};

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The seed.
    pub seed: u64,
    /// What was violated, by the word of judges and invariants.
    pub violations: Vec<Violation>,
    /// What could not be decided.
    pub undecided: Vec<String>,
    /// Equal for runs in which the same happened at the same times: 16 hexadecimal digits.
    pub digest: String,
    /// How much was taken into the digest.
    pub events: u64,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Real time, in milliseconds.
    pub took_ms: u64,
    /// What ran.
    pub workloads: Vec<String>,
    /// Figures for readers, by name.
    pub figures: BTreeMap<String, u64>,
    /// Faults done, by kind.
    pub faults: BTreeMap<String, u64>,
    /// The plan of faults, as sentences with their numbers.
    pub plan: Vec<(usize, String)>,
    /// What the judges looked at.
    pub judged: Vec<Judged>,
}

impl Findings {
    /// Whether nothing was violated, and everything there was could be decided. A short seed may have had nothing for a judge:
    /// that counts over many ([`crate::Totals::idle`]).
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    /// Who found something, each once.
    #[must_use]
    pub fn finders(&self) -> Vec<&str> {
        let mut finders: Vec<&str> = self.violations.iter().map(|of| of.by.as_str()).collect();
        finders.sort_unstable();
        finders.dedup();
        finders
    }

    /// How often something happened that a workload is there for. Too seldom counts as never.
    pub(crate) fn take_happened(&mut self, of: &Happened) {
        self.judged.push(Judged {
            checker: of.what.to_owned(),
            judged: if of.is_enough() { of.times as u64 } else { 0 },
            findings: 0,
            figures: Vec::new(),
        });
    }

    /// A judge's word.
    pub(crate) fn take(&mut self, verdict: &Verdict) {
        let by = verdict.checker;
        self.violations
            .extend(verdict.findings.iter().map(|finding| Violation {
                by: by.to_owned(),
                what: format!("at {:?}: {}", finding.at, finding.what),
            }));
        let undecided = verdict.undecided.iter().map(|what| format!("{by}: {what}"));
        self.undecided.extend(undecided);
        self.judged.push(Judged {
            checker: by.to_owned(),
            judged: verdict.judged as u64,
            findings: verdict.findings.len() as u64,
            figures: verdict.figures.clone(),
        });
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Who found it.
    pub by: String,
    /// What, as sentences.
    pub what: String,
}

/// Who finds what can be seen only by who looks into all servers at once.
const INVARIANTS: &str = "all servers at once";

impl Violation {
    /// Of an invariant.
    pub(crate) fn seen(what: &str) -> Self {
        Self {
            by: INVARIANTS.to_owned(),
            what: what.to_owned(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.by, self.what)
    }
}

/// What a judge looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Which one.
    pub checker: String,
    /// How many things; a word on nothing proves nothing.
    pub judged: u64,
    /// How many violations.
    pub findings: u64,
    /// Figures of its own.
    pub figures: Vec<String>,
}
