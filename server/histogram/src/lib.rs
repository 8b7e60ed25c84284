//! Histograms for replication's statistics.
//!
//! openraft counts how large its batches are, with a crate whose name this one has. With the first histogram that crate lays
//! out tables for sixteen resolutions, of which one is used: 26 MB in each server. Here a bucket's bounds are reckoned
//! when they are asked for (docs/decisions/0025). Only what openraft calls is here.
//!
//! Buckets are those of an HDR histogram with two bits behind the leading one: values below 8 are exact, others to a
//! quarter of their power of two.

mod chart;
mod percentiles;

use std::marker::PhantomData;

pub use chart::AsciiChart;
pub use percentiles::PercentileStats;

/// Bits of a value that tell its bucket, the leading one among them.
const WIDTH: u32 = 3;
/// Buckets of one power of two.
const GROUP: u64 = 1 << (WIDTH - 1);
/// Buckets for every 64-bit value.
const BUCKETS: usize = 252;

/// How often which values were recorded. `T` is there for the name's sake: nothing is attached to a period here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    attached: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// An empty one, of 2 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
            attached: PhantomData,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so many times. Counts stop at the largest number there is.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.counts[bucket_of(value)];
        *count = count.saturating_add(times);
        self.total = self.total.saturating_add(times);
    }

    /// Values counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The usual percentiles; zeros while nothing was counted.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        let at = |permille| self.at_permille(permille);
        PercentileStats {
            samples: self.total,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    /// The least value of the bucket in which so many thousandths of what was counted have been seen.
    fn at_permille(&self, permille: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(permille))
            .div_ceil(1_000)
            .max(1);
        let mut seen = 0;
        let mut counts = self.counts.iter();
        let found = counts.position(|count| {
            seen += u128::from(*count);
            seen >= rank
        });
        found.map_or(0, least_of)
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket_of(value: u64) -> usize {
    let Some(shift) = (u64::BITS - value.leading_zeros()).checked_sub(WIDTH) else {
        return value as usize;
    };
    // The bits behind the leading one say which of the group's buckets it is.
    let within = (value >> shift) - GROUP;
    (GROUP * (1 + u64::from(shift)) + within) as usize
}

fn least_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    match (bucket / GROUP).checked_sub(1) {
        None => bucket,
        Some(shift) => (GROUP + bucket % GROUP) << shift,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_and_is_not_below_its_least() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        let powers = (0..u64::BITS).map(|power| 1_u64 << power);
        for value in powers.flat_map(|power| [power - 1, power, power + 1, power | power >> 1]) {
            let bucket = bucket_of(value);
            assert!(least_of(bucket) <= value, "{value}");
            assert!(bucket + 1 == BUCKETS || least_of(bucket + 1) > value, "{value}");
        }
        assert!((0..8).all(|value| least_of(bucket_of(value)) == value), "exact");
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        histogram.record_n(3, 899);
        histogram.record_n(100, 100);
        histogram.record(5_000);
        let found = histogram.percentile_stats();
        assert_eq!((found.samples, histogram.total()), (1_000, 1_000));
        assert_eq!((found.p50, found.p90, found.p99, found.p99_9), (3, 96, 96, 96));
        histogram.record_n(5_000, 1_000);
        assert_eq!(histogram.percentile_stats().p90, 4_096);
    }

    #[test]
    fn it_takes_as_much_as_it_counts() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(1, u64::MAX);
        histogram.record(1);
        assert_eq!(histogram.total(), u64::MAX);
        assert_eq!(histogram.percentile_stats().p99_9, 1);
    }
}
