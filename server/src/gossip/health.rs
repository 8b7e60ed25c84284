//! How far this server can trust its own judgement of others (Lifeguard's local health multiplier).
//!
//! A server that wakes late, or is suspected itself, probably misses the answers of others: it probes more
//! slowly and gives suspects more time. Each answer that comes in time wins trust back.

use std::time::Duration;

const SCORE_MAX: u32 = 4;

/// 0: well. Each point lengthens this server's own timeouts by their length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalHealth {
    score: u32,
}

impl LocalHealth {
    /// It woke late, or was suspected.
    pub(crate) fn worsen(&mut self) {
        self.score = (self.score + 1).min(SCORE_MAX);
    }

    /// An answer came in time.
    pub(crate) fn mend(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub(crate) fn score(self) -> u32 {
        self.score
    }

    /// A timeout, as this server should take it.
    pub(crate) fn stretch(self, timeout: Duration) -> Duration {
        timeout * (1 + self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_lost_and_won_back_within_bounds() {
        let mut health = LocalHealth::default();
        let second = Duration::from_secs(1);
        health.mend();
        assert_eq!(health.stretch(second), second);
        (0..100).for_each(|_| health.worsen());
        assert_eq!(health.stretch(second), second * 5);
        (0..8).for_each(|_| health.mend());
        assert_eq!(health.score(), 0);
    }
}
