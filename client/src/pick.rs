//! Which node to call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::node::{Node, NodeState};
use crate::view::ServiceView;

/// How to choose among the nodes that qualify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, equally likely.
    Random,
}

/// A node that was chosen.
#[derive(Clone, Debug)]
pub struct Picked {
    /// The node.
    pub node: Arc<Node>,
    /// No node is up: this is one of those that are suspect, draining or down, better than none.
    pub panic: bool,
}

/// Chooses nodes from views. Nodes that are up qualify, unless disabled or of weight 0. When none is up, all
/// nodes qualify that are not disabled and have a weight (panic mode): the registry may be wrong about all of
/// them at once.
#[derive(Debug, Default)]
pub struct Picker {
    choice: Choice,
    turn: AtomicUsize,
}

impl Picker {
    /// Begins anywhere, so that consumers that start together do not all call the first node.
    #[must_use]
    pub fn new(choice: Choice) -> Self {
        Self {
            choice,
            turn: AtomicUsize::new(rand::random_range(0..1 << 16)),
        }
    }

    /// A node; `None`: there is none that an operator would allow.
    #[must_use]
    pub fn pick(&self, view: &ServiceView) -> Option<Picked> {
        self.pick_from(view, |_| true)
    }

    /// A node that passes `filter`, which comes before everything else: panic mode stays within it.
    #[must_use]
    pub fn pick_from(&self, view: &ServiceView, filter: impl Fn(&Node) -> bool) -> Option<Picked> {
        let allowed = |node: &&Arc<Node>| !node.disabled && node.weight > 0 && filter(node);
        let up = |node: &&Arc<Node>| node.state == NodeState::Up;
        let up_count = view.nodes.iter().filter(allowed).filter(up).count();
        if up_count > 0 {
            let node = view
                .nodes
                .iter()
                .filter(allowed)
                .filter(up)
                .nth(self.next(up_count))?;
            return Some(Picked {
                node: Arc::clone(node),
                panic: false,
            });
        }
        let count = view.nodes.iter().filter(allowed).count();
        if count == 0 {
            return None;
        }
        let node = view.nodes.iter().filter(allowed).nth(self.next(count))?;
        Some(Picked {
            node: Arc::clone(node),
            panic: true,
        })
    }

    fn next(&self, count: usize) -> usize {
        match self.choice {
            Choice::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % count,
            Choice::Random => rand::random_range(0..count),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rollcall_proto::v1;

    use super::*;
    use crate::key::ServiceKey;

    fn view(nodes: &[(&str, v1::NodeState, u32, bool)]) -> ServiceView {
        let node = |(id, state, weight, disabled): &(&str, v1::NodeState, u32, bool)| {
            let node = v1::Node {
                id: (*id).into(),
                state: (*state).into(),
                weight: *weight,
                disabled: *disabled,
                ..Default::default()
            };
            Arc::new(Node::from(node))
        };
        let nodes = nodes.iter().map(node).collect();
        ServiceView {
            nodes,
            ..ServiceView::unknown(ServiceKey::new("g", "s"))
        }
    }

    fn picked(choice: Choice, view: &ServiceView) -> BTreeMap<(String, bool), usize> {
        let picker = Picker::new(choice);
        let mut counts = BTreeMap::new();
        for picked in (0..300).filter_map(|_| picker.pick(view)) {
            *counts
                .entry((picked.node.id.to_string(), picked.panic))
                .or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn only_nodes_that_are_up_enabled_and_weighted_are_called() {
        use v1::NodeState::{Down, Draining, Suspect, Up};
        let view = view(&[
            ("a", Up, 100, false),
            ("b", Up, 1, false),
            ("disabled", Up, 100, true),
            ("down", Down, 100, false),
            ("draining", Draining, 100, false),
            ("suspect", Suspect, 100, false),
            ("zero", Up, 0, false),
        ]);
        let expected = BTreeMap::from([(("a".into(), false), 150), (("b".into(), false), 150)]);
        assert_eq!(picked(Choice::RoundRobin, &view), expected);
        let random = picked(Choice::Random, &view);
        assert_eq!(random.len(), 2);
        assert!(random.values().all(|count| *count > 60), "{random:?}");
    }

    #[test]
    fn when_none_is_up_everything_that_is_not_disabled_is_called() {
        use v1::NodeState::{Down, Suspect, Up};
        let view = view(&[
            ("a", Suspect, 100, false),
            ("b", Down, 100, false),
            ("c", Up, 100, true),
            ("d", Up, 0, false),
        ]);
        let expected = BTreeMap::from([(("a".into(), true), 150), (("b".into(), true), 150)]);
        assert_eq!(picked(Choice::RoundRobin, &view), expected);
    }

    #[test]
    fn a_filter_comes_before_panic() {
        use v1::NodeState::{Suspect, Up};
        let view = view(&[("a", Suspect, 100, false), ("b", Up, 100, false)]);
        let picker = Picker::new(Choice::RoundRobin);
        let picked = picker.pick_from(&view, |node| node.id.as_ref() == "a").unwrap();
        assert!(picked.panic && picked.node.id.as_ref() == "a");
        assert!(picker.pick_from(&view, |_| false).is_none());
        assert!(
            picker
                .pick(&ServiceView::unknown(ServiceKey::new("g", "s")))
                .is_none()
        );
    }
}
