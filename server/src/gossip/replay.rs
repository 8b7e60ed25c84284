//! Which packets of a sender were here before.

const WINDOW: u64 = 1_024;
const WORDS: usize = (WINDOW / 64) as usize;

/// The counters seen of one sender's life, back from the highest (RFC 6479's idea: a ring of bits).
#[derive(Clone, Debug)]
pub(crate) struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// Begins with a first packet, which counts as seen, as do all before it.
    pub(crate) fn starting_at(counter: u64) -> Self {
        Self {
            highest: counter,
            seen: [u64::MAX; WORDS],
        }
    }

    /// Takes note of a packet. False: it was here before, or is so old that it may have been.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            if ahead >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for passed in self.highest + 1..counter {
                    self.set(passed, false);
                }
            }
            self.highest = counter;
            self.set(counter, true);
            return true;
        }
        if self.highest - counter >= WINDOW || self.is_set(counter) {
            return false;
        }
        self.set(counter, true);
        true
    }

    fn place(counter: u64) -> (usize, u64) {
        let bit = counter % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_set(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.seen[word] & bit != 0
    }

    fn set(&mut self, counter: u64, seen: bool) {
        let (word, bit) = Self::place(counter);
        if seen {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_taken_twice_and_nothing_recent_is_refused(counters in proptest::collection::vec(100..4_000_u64, 1..400)) {
            let mut window = ReplayWindow::starting_at(100);
            let mut seen = BTreeSet::from([100]);
            let mut highest = 100;
            for counter in counters {
                let fresh = !seen.contains(&counter) && counter + WINDOW > highest;
                prop_assert_eq!(window.accept(counter), fresh);
                seen.insert(counter);
                highest = highest.max(counter);
            }
        }
    }

    #[test]
    fn what_came_before_the_first_counts_as_seen() {
        let mut window = ReplayWindow::starting_at(500);
        assert!(!window.accept(500) && !window.accept(499) && !window.accept(1));
        assert!(window.accept(501) && !window.accept(501) && window.accept(u64::MAX));
        assert!(!window.accept(501));
    }
}
