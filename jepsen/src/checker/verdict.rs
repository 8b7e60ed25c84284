//! What a checker says.

use std::time::Duration;

/// A violation, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was violated and how, as sentences, with the smallest piece of history that shows it.
    pub what: String,
    /// When it showed.
    pub at: Duration,
}

/// What a checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Which checker.
    pub checker: &'static str,
    /// How many things were judged; a verdict on nothing proves nothing.
    pub judged: usize,
    /// What could not be decided within the checker's bounds.
    pub undecided: Vec<String>,
    /// Violations. Empty is good.
    pub findings: Vec<Finding>,
    /// Further figures for readers.
    pub figures: Vec<String>,
}

impl Verdict {
    pub(super) fn new(checker: &'static str) -> Self {
        Self {
            checker,
            ..Self::default()
        }
    }

    pub(super) fn find(&mut self, at: Duration, what: String) {
        self.findings.push(Finding { what, at });
    }

    /// Whether something was judged, everything was decided, and nothing was violated.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.judged > 0 && self.undecided.is_empty() && self.findings.is_empty()
    }
}
