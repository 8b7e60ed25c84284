//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Doubling delays with full jitter in the upper half, up to a bound.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            failures: 0,
        }
    }

    /// One more failure: the delay before the next attempt, at least half of its step and at most `max`.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let step = self.next_step();
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    fn next_step(&mut self) -> Duration {
        let step = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        step
    }

    /// As [`Self::next_delay`], but anything up to the step: spreads many clients that lost the same server.
    pub(crate) fn next_delay_spread(&mut self) -> Duration {
        let step = self.next_step();
        step.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// `duration`, up to a tenth more or less.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// Clients that lost the same server, which gave them no slots, come to the others over so long.
pub(crate) const LOST_SPREAD: Duration = Duration::from_millis(500);

/// Anything up to `longest`: full jitter.
pub(crate) fn spread_over(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        for failure in 0..100 {
            let step = min.saturating_mul(1 << failure.min(16)).min(max);
            let delay = backoff.next_delay();
            assert!(
                delay >= step / 2 && delay <= step,
                "failure {failure}: {delay:?} of {step:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= min);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..100 {
            let jittered = jittered(Duration::from_millis(1000));
            assert!(jittered >= Duration::from_millis(899) && jittered <= Duration::from_millis(1101));
        }
    }
    #[test]
    fn clients_that_lost_a_server_spread_over_all_of_the_time() {
        let longest = Duration::from_millis(500);
        let mut tenths = [0; 10];
        for _ in 0..2_000 {
            let delay = spread_over(longest);
            assert!(delay <= longest);
            tenths[(delay.as_micros() / 50_000).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| *count > 100), "{tenths:?}");
        assert_eq!(spread_over(Duration::ZERO), Duration::ZERO);
    }
}
