//! Histograms one below the other.

use std::fmt;

use crate::{Histogram, PercentileStats};

/// Named histograms, a line of percentiles each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// One without lines.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As much as there is to say: openraft asks for it where its statistics are turned on.
    #[must_use]
    pub fn detailed(&self) -> &Self {
        self
    }

    /// With one line more.
    #[must_use]
    pub fn add<T>(mut self, name: impl ToString, histogram: Histogram<T>) -> Self {
        self.lines.push((name.to_string(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.lines {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each() {
        let mut histogram = Histogram::<()>::new();
        histogram.record(7);
        let chart = AsciiChart::new().add("applied", histogram);
        assert_eq!(chart.to_string(), "applied: n=1 p50=7 p90=7 p99=7 p99.9=7\n");
    }
}
