//! What came of it, as a table.

use std::fmt;
use std::time::Duration;

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub mutant: String,
    /// What it does wrong.
    pub breaks: String,
    /// Under what it was sought.
    pub trial: String,
    /// Who found it, and in words what; `None`: nobody.
    pub caught: Option<Caught>,
    /// What the same trial found without a mutant: then it proves nothing.
    pub unclean: Option<String>,
    /// Seeds tried.
    pub seeds: u64,
    /// In so long.
    pub took: Duration,
}

/// Who found a mutant.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Checkers, or the test.
    pub by: Vec<String>,
    /// The first violation, in words.
    pub what: String,
}

impl Row {
    /// Whether somebody found it who finds nothing where nothing is planted.
    #[must_use]
    pub fn is_caught(&self) -> bool {
        self.caught.is_some() && self.unclean.is_none()
    }
}

impl fmt::Display for Row {
    /// A line of a table in Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match (&self.caught, &self.unclean) {
            (Some(caught), None) => caught.by.join(", "),
            (Some(_), Some(_)) => "**not proven**: so is a server without it".to_owned(),
            (None, _) => "**escaped**".to_owned(),
        };
        write!(
            f,
            "| `{}` | {} | {} | {by} | {} | {} |",
            self.mutant,
            self.breaks,
            self.trial,
            self.seeds,
            self.took.as_secs()
        )
    }
}

/// The head of the table.
pub(super) const HEAD: &str =
    "| mutant | what it does | sought by | caught by | seeds | seconds |\n|---|---|---|---|---|---|";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_escaped_cannot_be_overlooked() {
        let row = Row {
            mutant: "skip-fsync".into(),
            breaks: "it does not sync".into(),
            trial: "lab: registers; power".into(),
            caught: None,
            unclean: None,
            seeds: 3,
            took: Duration::from_millis(61_500),
        };
        assert_eq!(
            row.to_string(),
            "| `skip-fsync` | it does not sync | lab: registers; power | **escaped** | 3 | 61 |"
        );
    }
}
