//! How much one address may ask for: token buckets in a table of fixed size.
//!
//! Nothing is kept per address, so addresses that are made up cost no memory: each falls into a bucket by a hash that
//! only this process can compute. Two that fall into one share it, which costs the innocent one its datagrams, and
//! not its session.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

const BUCKETS: usize = 4_096;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f32,
    at: Instant,
}

pub(super) struct Rates {
    buckets: Box<[Bucket]>,
    hash: RandomState,
    per_second: f32,
    burst: f32,
}

impl Rates {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = burst as f32;
        let full = Bucket {
            tokens: burst,
            at: now,
        };
        Self {
            buckets: vec![full; BUCKETS].into_boxed_slice(),
            hash: RandomState::new(),
            per_second: per_second as f32,
            burst,
        }
    }

    /// Takes so many tokens, if they are there.
    pub(super) fn try_take(&mut self, address: IpAddr, tokens: usize, now: Instant) -> bool {
        let wanted = tokens as f32;
        let (per_second, burst) = (self.per_second, self.burst);
        let bucket = self.bucket(address);
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f32();
        bucket.tokens = (bucket.tokens + elapsed * per_second).min(burst);
        bucket.at = now;
        if bucket.tokens < wanted {
            return false;
        }
        bucket.tokens -= wanted;
        true
    }

    /// Takes more than there may be: who wastes our time waits for it.
    pub(super) fn fine(&mut self, address: IpAddr, tokens: usize) {
        let burst = self.burst;
        let bucket = self.bucket(address);
        bucket.tokens = (bucket.tokens - tokens as f32).max(-burst);
    }

    fn bucket(&mut self, address: IpAddr) -> &mut Bucket {
        // Whoever has one address of IPv6 has a whole network of them.
        let network = match address.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        let at = self.hash.hash_one(network) as usize % BUCKETS;
        &mut self.buckets[at]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_a_fine_is_waited_for() {
        let now = Instant::now();
        let mut rates = Rates::new(100, 10, now);
        let one = address("10.0.0.1");
        assert!(rates.try_take(one, 10, now));
        assert!(!rates.try_take(one, 1, now));
        assert!(rates.try_take(one, 1, now + Duration::from_millis(11)));
        rates.fine(one, 1_000);
        assert!(!rates.try_take(one, 1, now + Duration::from_millis(100)));
        assert!(
            rates.try_take(one, 1, now + Duration::from_millis(250)),
            "a fine is bounded"
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_sender_and_so_is_a_mapped_address() {
        let now = Instant::now();
        let mut rates = Rates::new(1, 5, now);
        assert!(rates.try_take(address("2001:db8::1"), 5, now));
        assert!(!rates.try_take(address("2001:db8::2"), 1, now));
        assert!(rates.try_take(address("10.0.0.1"), 5, now));
        assert!(!rates.try_take(address("::ffff:10.0.0.1"), 1, now));
    }
}
