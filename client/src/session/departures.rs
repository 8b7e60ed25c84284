//! Which nodes a session took out last.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::NodeKey;

/// Most nodes that are remembered as taken out.
const DEPARTURES_MAX: usize = 1_024;

/// Nodes of CP groups that were taken out by our word and not asked for again, the last ones. Servers that are set back to
/// a copy list them again. (In an AP group the word that takes one out asks nobody whose the node is by then.)
#[derive(Debug, Default)]
pub(super) struct Departures {
    numbers: BTreeMap<NodeKey, u64>,
    by_number: BTreeMap<u64, NodeKey>,
    last: u64,
}

impl Departures {
    pub(super) fn remember(&mut self, node: &NodeKey) {
        self.forget(node);
        self.last += 1;
        self.numbers.insert(node.clone(), self.last);
        self.by_number.insert(self.last, node.clone());
        if self.numbers.len() > DEPARTURES_MAX
            && let Some((_, oldest)) = self.by_number.pop_first()
        {
            self.numbers.remove(&oldest);
        }
    }

    pub(super) fn forget(&mut self, node: &NodeKey) {
        if let Some(number) = self.numbers.remove(node) {
            self.by_number.remove(&number);
        }
    }

    pub(super) fn among(&self, nodes: &BTreeSet<NodeKey>) -> Vec<NodeKey> {
        let departed = self.numbers.keys().filter(|node| nodes.contains(*node));
        departed.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ServiceKey;

    #[test]
    fn the_last_ones_are_remembered_however_often_they_come_and_go() {
        let node = |number: usize| ServiceKey::new("g", "s").node(format!("h:{number}"));
        let all: BTreeSet<NodeKey> = (0..=DEPARTURES_MAX).map(node).collect();
        let mut departures = Departures::default();
        departures.remember(&node(0));
        for _ in 0..DEPARTURES_MAX * 2 {
            departures.forget(&node(1));
            departures.remember(&node(1));
            departures.remember(&node(1));
        }
        assert_eq!(departures.among(&all), [node(0), node(1)]);
        (2..=DEPARTURES_MAX).for_each(|number| departures.remember(&node(number)));
        assert_eq!(departures.among(&all).len(), DEPARTURES_MAX);
        assert!(!departures.among(&all).contains(&node(0)), "the oldest one");
        departures.forget(&node(1));
        assert!(!departures.among(&all).contains(&node(1)));
        assert_eq!(departures.by_number.len(), departures.numbers.len());
    }
}
