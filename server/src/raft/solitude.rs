//! Whether this server is the whole cluster.
//!
//! Then its leadership needs nobody's word: as long as the committed membership is this server alone, nobody else can
//! have been elected, and only this server can begin to change that. Before it asks for the first other member it says
//! so here, and takes its own leadership for granted no more, in this life.

use std::sync::atomic::{AtomicU8, Ordering};

const UNKNOWN: u8 = 0;
const CERTAIN: u8 = 1;
const OVER: u8 = 2;

#[derive(Debug, Default)]
pub(super) struct Solitude(AtomicU8);

impl Solitude {
    /// Whether nobody else leads, or did until now since this server does.
    pub(super) fn is_certain(&self) -> bool {
        self.0.load(Ordering::SeqCst) == CERTAIN
    }

    /// What Raft shows. It shows a change a little after it began.
    pub(super) fn note(&self, alone: bool) {
        let (known, shown) = match alone {
            true => (UNKNOWN, CERTAIN),
            false => (CERTAIN, UNKNOWN),
        };
        // It fails where nothing changes, and where it is over.
        let _ = self
            .0
            .compare_exchange(known, shown, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Others are about to be let in.
    pub(super) fn end(&self) {
        self.0.store(OVER, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_about_to_let_others_in_is_never_certain_again() {
        let solitude = Solitude::default();
        assert!(!solitude.is_certain());
        solitude.note(true);
        assert!(solitude.is_certain());
        solitude.note(false);
        assert!(!solitude.is_certain());
        solitude.note(true);
        solitude.end();
        assert!(!solitude.is_certain());
        solitude.note(true);
        assert!(!solitude.is_certain(), "raft does not show yet what was begun");
    }
}
