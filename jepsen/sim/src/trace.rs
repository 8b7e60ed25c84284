//! A digest of everything that happened in a world, so that two runs can be compared.

/// Takes in numbers; equal sequences give equal digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    digest: u64,
    /// How many numbers were taken in.
    pub(crate) length: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            digest: 0xcbf2_9ce4_8422_2325,
            length: 0,
        }
    }
}

impl Trace {
    pub(crate) fn note(&mut self, number: u64) {
        self.length += 1;
        let mixed = (self.digest ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.digest = mixed ^ (mixed >> 32);
    }

    pub(crate) fn digest(self) -> u64 {
        self.digest
    }
}
