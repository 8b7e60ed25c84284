//! How much one address may ask for: a token bucket each, in a table of bounded size.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Most addresses remembered. Beyond it those with full buckets are forgotten (which changes nothing for
/// them); if none is full, strangers share one bucket.
const ADDRESSES_MAX: usize = 16_384;

/// Limits the rate at which each address may do something.
pub(crate) struct AddressLimiter {
    per_second: f64,
    burst: f64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    buckets: HashMap<IpAddr, Bucket>,
    strangers: Option<Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl AddressLimiter {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: per_second.into(),
            burst: burst.into(),
            table: Mutex::default(),
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; there will be after the returned time.
    pub(crate) fn try_take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut table = self.table.lock();
        if table.buckets.len() >= ADDRESSES_MAX && !table.buckets.contains_key(&address) {
            table
                .buckets
                .retain(|_, bucket| self.level(*bucket, now) < self.burst);
        }
        let fresh = Bucket {
            tokens: self.burst,
            at: now,
        };
        let full = table.buckets.len() >= ADDRESSES_MAX && !table.buckets.contains_key(&address);
        let Table { buckets, strangers } = &mut *table;
        let bucket = if full {
            strangers.get_or_insert(fresh)
        } else {
            buckets.entry(address).or_insert(fresh)
        };
        bucket.tokens = self.level(*bucket, now);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn level(&self, bucket: Bucket, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + elapsed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limiter = AddressLimiter::new(10, 3);
        let now = Instant::now();
        for _ in 0..3 {
            limiter.try_take(address(1), now).unwrap();
        }
        assert_eq!(limiter.try_take(address(1), now), Err(Duration::from_millis(100)));
        limiter.try_take(address(2), now).unwrap();
        limiter
            .try_take(address(1), now + Duration::from_millis(101))
            .unwrap();
        assert!(
            limiter
                .try_take(address(1), now + Duration::from_millis(102))
                .is_err()
        );
    }

    #[test]
    fn the_table_stays_bounded_and_strangers_share() {
        let limiter = AddressLimiter::new(1, 2);
        let now = Instant::now();
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            limiter.try_take(address(number), now).unwrap();
        }
        limiter.try_take(address(9_000_000), now).unwrap();
        limiter.try_take(address(9_000_001), now).unwrap();
        assert!(limiter.try_take(address(9_000_002), now).is_err());
        assert_eq!(limiter.table.lock().buckets.len(), ADDRESSES_MAX);
        // Once their buckets are full again, the addresses are forgotten and there is room.
        limiter
            .try_take(address(9_000_003), now + Duration::from_secs(2))
            .unwrap();
        assert_eq!(limiter.table.lock().buckets.len(), 1);
    }
}
