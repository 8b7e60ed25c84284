//! State hashes at fixed log positions, so that replicas can be compared.
//!
//! Every server notes the hash of its directory after each entry whose index is a multiple of `every`.
//! Followers compare theirs with the leader's; one that differs stops serving.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::watch;

/// How many are remembered: enough for a follower that compares about once a second under load.
const REMEMBERED_MAX: usize = 256;

/// The hash of the directory right after the entry at `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) index: u64,
    pub(crate) hash: u128,
}

/// The last checkpoints of this server.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    every: u64,
    recent: Mutex<VecDeque<Checkpoint>>,
    newest: watch::Sender<Option<u64>>,
}

impl Checkpoints {
    /// `every` must be the same on all servers; 0 turns comparing off.
    pub(crate) fn new(every: u64) -> Self {
        Self {
            every,
            recent: Mutex::default(),
            newest: watch::Sender::new(None),
        }
    }

    pub(crate) fn is_due(&self, index: u64) -> bool {
        self.every != 0 && index.is_multiple_of(self.every)
    }

    pub(crate) fn record(&self, index: u64, hash: u128) {
        let mut recent = self.recent.lock();
        if recent.len() == REMEMBERED_MAX {
            recent.pop_front();
        }
        recent.push_back(Checkpoint { index, hash });
        self.newest.send_replace(Some(index));
    }

    /// Another state took this one's place.
    pub(crate) fn clear(&self) {
        self.recent.lock().clear();
    }

    pub(crate) fn recent(&self) -> Vec<Checkpoint> {
        self.recent.lock().iter().copied().collect()
    }

    pub(crate) fn newest(&self) -> watch::Receiver<Option<u64>> {
        self.newest.subscribe()
    }

    /// The first index at which `theirs` and ours were both noted and differ.
    pub(crate) fn difference(&self, theirs: &[Checkpoint]) -> Option<u64> {
        let ours = self.recent.lock();
        let differs = |their: &&Checkpoint| {
            ours.iter()
                .any(|our| our.index == their.index && our.hash != their.hash)
        };
        theirs.iter().find(differs).map(|their| their.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashes_of_the_same_index_are_compared() {
        let ours = Checkpoints::new(10);
        assert!(ours.is_due(20) && !ours.is_due(21));
        ours.record(10, 1);
        ours.record(20, 2);
        let at = |index, hash| Checkpoint { index, hash };
        assert_eq!(ours.difference(&[at(10, 1), at(20, 2), at(30, 9)]), None);
        assert_eq!(ours.difference(&[at(10, 1), at(20, 3)]), Some(20));
        ours.clear();
        assert_eq!(ours.difference(&[at(20, 3)]), None);
    }
}
