//! What arrived when, added up in slices of time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The length of a slice.
pub(super) const SLICE: Duration = Duration::from_millis(100);
/// Slices of a second.
const SECOND: usize = 10;

/// Bytes by slice, counted by many tasks at once. What comes after the last slice counts into it.
#[derive(Debug)]
pub(super) struct Egress {
    began: Instant,
    slices: Vec<AtomicU64>,
}

impl Egress {
    /// From `began`, for so long.
    pub(super) fn new(began: Instant, lasting: Duration) -> Self {
        let slices = lasting.as_millis() / SLICE.as_millis() + 1;
        let slices = usize::try_from(slices).unwrap_or(1);
        Self {
            began,
            slices: (0..slices).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) fn count(&self, bytes: usize, at: Instant) {
        let slice = at.saturating_duration_since(self.began).as_millis() / SLICE.as_millis();
        let slice = usize::try_from(slice)
            .unwrap_or(usize::MAX)
            .min(self.slices.len() - 1);
        self.slices[slice].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.read().sum()
    }

    /// The most of any slice.
    pub(super) fn peak_slice(&self) -> u64 {
        self.read().max().unwrap_or(0)
    }

    /// The most of any second, wherever it begins.
    pub(super) fn peak_second(&self) -> u64 {
        let slices: Vec<u64> = self.read().collect();
        let whole = slices.windows(SECOND).map(|second| second.iter().sum()).max();
        whole.unwrap_or_else(|| slices.iter().sum())
    }

    fn read(&self) -> impl Iterator<Item = u64> + '_ {
        self.slices.iter().map(|slice| slice.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_begins_anywhere() {
        let began = Instant::now();
        let egress = Egress::new(began, Duration::from_secs(3));
        for (millis, bytes) in [(0, 5), (950, 10), (1_840, 20), (2_999, 1), (9_000, 2)] {
            egress.count(bytes, began + Duration::from_millis(millis));
        }
        assert_eq!(
            (egress.total(), egress.peak_slice(), egress.peak_second()),
            (38, 20, 30)
        );
    }

    #[test]
    fn what_lasts_less_than_a_second_is_its_own_peak() {
        let began = Instant::now();
        let egress = Egress::new(began, Duration::from_millis(250));
        egress.count(7, began);
        egress.count(8, began + SLICE * 2);
        assert_eq!((egress.peak_slice(), egress.peak_second()), (8, 15));
    }
}
