//! What the demo itself knows of its nodes, independent of the registry: who lives, whom it killed, who was told
//! to leave. What the registry says is judged against this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// Most wrong removals told one by one; all are counted.
const TOLD_MAX: usize = 50;

/// What the demo did with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its process lives and wants to be listed.
    Alive,
    /// Its process was killed.
    Killed(Instant),
    /// It is leaving, or has left, by its own word.
    Leaving(Instant),
}

/// The judge of removals. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    fates: BTreeMap<String, Fate>,
    wrongly_removed: BTreeMap<String, String>,
    wrong_count: u64,
}

impl Truth {
    /// `node` (named `group/service/id`) lives from now on.
    pub(crate) fn alive(&self, node: &str) {
        self.inner.lock().fates.insert(node.into(), Fate::Alive);
    }

    pub(crate) fn killed(&self, node: &str) {
        self.inner
            .lock()
            .fates
            .insert(node.into(), Fate::Killed(Instant::now()));
    }

    pub(crate) fn leaving(&self, node: &str) {
        self.inner
            .lock()
            .fates
            .insert(node.into(), Fate::Leaving(Instant::now()));
    }

    pub(crate) fn fate(&self, node: &str) -> Option<Fate> {
        self.inner.lock().fates.get(node).copied()
    }

    /// Somebody saw `node` removed. Returns whether that was wrong: the node lives.
    pub(crate) fn judge_removal(&self, node: &str, seen_by: &str, cause: &str) -> bool {
        let mut inner = self.inner.lock();
        let wrong = inner.fates.get(node) == Some(&Fate::Alive);
        if wrong {
            inner.wrong_count += 1;
            if inner.wrongly_removed.len() < TOLD_MAX {
                inner
                    .wrongly_removed
                    .entry(node.into())
                    .or_insert_with(|| format!("{seen_by}: {cause}"));
            }
        }
        wrong
    }

    /// The nodes that were removed though they lived, each with who saw it first and why.
    pub(crate) fn wrongly_removed(&self) -> Vec<(String, String)> {
        self.inner.lock().wrongly_removed.clone().into_iter().collect()
    }

    /// Removals of living nodes, over all watchers.
    pub(crate) fn wrong_count(&self) -> u64 {
        self.inner.lock().wrong_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_removal_of_a_living_node_is_wrong() {
        let truth = Truth::default();
        for node in ["a", "b", "c"] {
            truth.alive(node);
        }
        truth.killed("a");
        truth.leaving("b");
        assert!(!truth.judge_removal("a", "server 1", "expired"));
        assert!(!truth.judge_removal("b", "server 1", "deregistered"));
        assert!(!truth.judge_removal("unheard of", "server 1", "expired"));
        assert!(truth.judge_removal("c", "server 1", "expired"));
        assert!(truth.judge_removal("c", "server 2", "expired"));
        assert_eq!((truth.wrong_count(), truth.wrongly_removed().len()), (2, 1));
    }
}
