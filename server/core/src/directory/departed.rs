//! Sessions that lapsed here, lost nodes by it, and ended.
//!
//! One of them may live on elsewhere, by the records of AP groups, and its client must be told all the same. No part of
//! what is replicated: a server that starts from a snapshot does not know what came before it, and a client that comes
//! to it anew is told what it owns.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::ids::SessionId;

/// So many are remembered, the last ones.
const REMEMBERED_MAX: usize = 65_536;

/// Those that are remembered. A clone is cheap, as the directory's are.
#[derive(Clone, Debug, Default)]
pub(super) struct Departed(Arc<Remembered>);

#[derive(Clone, Debug, Default)]
struct Remembered {
    sessions: BTreeSet<SessionId>,
    /// In the order in which they ended.
    order: VecDeque<SessionId>,
}

impl Departed {
    pub(super) fn contains(&self, id: SessionId) -> bool {
        self.0.sessions.contains(&id)
    }

    pub(super) fn note(&mut self, id: SessionId) {
        let remembered = Arc::make_mut(&mut self.0);
        if !remembered.sessions.insert(id) {
            return;
        }
        remembered.order.push_back(id);
        if remembered.order.len() > REMEMBERED_MAX
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.sessions.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_and_no_more() {
        let mut departed = Departed::default();
        let held = departed.clone();
        let last = REMEMBERED_MAX as u64 + 1;
        (1..=last).for_each(|id| departed.note(SessionId(id)));
        departed.note(SessionId(last));
        assert!(!departed.contains(SessionId(1)));
        assert!(departed.contains(SessionId(2)) && departed.contains(SessionId(last)));
        assert_eq!(departed.0.order.len(), REMEMBERED_MAX);
        assert!(!held.contains(SessionId(last)));
    }
}
