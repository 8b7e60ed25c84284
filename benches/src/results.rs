//! What was measured: runs of a workload, one row for each product, dialect and number of servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One run: what is measured, by name; units are in the names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run(pub(crate) BTreeMap<String, f64>);

impl Run {
    pub(crate) fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }
}

/// Median and range of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of no values there is none.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            *values.get(middle)?
        } else {
            (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0
        };
        Some(Self {
            median,
            min: *values.first()?,
            max: *values.last()?,
        })
    }
}

/// A workload on a product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) servers: usize,
    pub(crate) product: String,
    /// Empty: the usual one.
    pub(crate) dialect: String,
    pub(crate) runs: Vec<Run>,
    /// Why runs are missing, or what is to be known.
    pub(crate) note: Option<String>,
    /// Load average when it began.
    pub(crate) load: f64,
}

impl Row {
    pub(crate) fn spread(&self, metric: &str) -> Option<Spread> {
        Spread::of(
            self.runs
                .iter()
                .filter_map(|run| run.0.get(metric).copied())
                .collect(),
        )
    }
}

/// A product that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entrant {
    pub(crate) product: String,
    pub(crate) version: String,
    pub(crate) settings: String,
}

/// Everything of one go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) began: String,
    pub(crate) took_s: f64,
    pub(crate) machine: serde_json::Value,
    pub(crate) scale: String,
    pub(crate) sizes: serde_json::Value,
    pub(crate) entrants: Vec<Entrant>,
    /// Products that could not be measured at all, and why.
    pub(crate) absent: BTreeMap<String, String>,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    pub(crate) fn row(&self, workload: &str, servers: usize, product: &str, dialect: &str) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.workload == workload
                && row.servers == servers
                && row.product == product
                && row.dialect == dialect
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(Spread::of(vec![]), None);
        let spread = Spread::of(vec![9.0, 1.0, 2.0, 4.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 9.0));
        assert_eq!(Spread::of(vec![5.0, 7.0, 6.0]).unwrap().median, 6.0);
    }
}
