//! Randomness that follows from a seed, for ever.

/// `SplitMix64` (Steele, Lea and Flood 2014): small, and its sequence will never change with a library's version, so
/// a printed seed replays a schedule years later.
#[derive(Clone, Debug)]
pub struct Seeded {
    state: u64,
}

impl Seeded {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A sequence of its own for `purpose`: what one consumer draws does not move what another gets.
    #[must_use]
    pub fn fork(seed: u64, purpose: u64) -> Self {
        let mut mixed = Self::new(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self::new(mixed.next())
    }

    /// The next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so it is no iterator to loop over"
    )]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if `bound` is.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: as even as anybody here needs.
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// Whether something of this probability happens now.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits are what a double holds.
        let drawn = u32::try_from(self.next() >> 32).unwrap_or(0);
        probability > 0.0 && f64::from(drawn) < probability * 4_294_967_296.0
    }

    /// One of `choices`; `None` if there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        choices.get(index)
    }

    /// Brings `items` into some order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        let mut seeded = Seeded::new(1_234_567);
        let drawn: Vec<_> = (0..3).map(|_| seeded.next()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn chances_and_bounds_hold() {
        let mut seeded = Seeded::new(7);
        let hits = (0..10_000).filter(|_| seeded.chance(0.2)).count();
        assert!((1_800..2_200).contains(&hits), "{hits} of 10,000 at 20 %");
        assert!((0..1_000).all(|_| !seeded.chance(0.0)));
        assert!((0..1_000).all(|_| seeded.chance(1.0)));
        assert!((0..1_000).all(|_| (3..=5).contains(&seeded.between(3, 5))));
        assert_eq!(seeded.below(0), 0);
    }
}
