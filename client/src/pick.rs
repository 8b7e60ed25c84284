//! Which node to call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::node::{Node, NodeState};
use crate::view::ServiceView;

/// How to choose among the nodes that qualify. A node of twice the weight is chosen twice as often, whichever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// In turn, with the turns of a node spread evenly among those of the others (smooth weighted round robin).
    #[default]
    RoundRobin,
    /// Any.
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

/// Chooses nodes from views, each as often as its weight says. Nodes that are up qualify, unless disabled or of weight 0.
/// When none is up, all nodes qualify that are not disabled and have a weight (panic mode): the registry may be wrong
/// about all of them at once.
///
/// One for each service: two that are called in turn would have half of the turns each, and by one picker always the same.
#[derive(Debug, Default)]
pub struct Picker {
    choice: Choice,
    turn: AtomicU64,
}

impl Picker {
    /// Begins anywhere, so that consumers that start together do not all call the first node.
    #[must_use]
    pub fn new(choice: Choice) -> Self {
        Self {
            choice,
            turn: AtomicU64::new(rand::random_range(0..1 << 16)),
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
        let up = |node: &&Arc<Node>| node.state == NodeState::Up && allowed(node);
        let nodes = || view.nodes.iter();
        let node = self
            .choose(|| nodes().filter(up))
            .or_else(|| self.choose(|| nodes().filter(allowed)))?;
        Some(Picked {
            node: Arc::clone(node),
            panic: node.state != NodeState::Up,
        })
    }

    /// One of these: they lie side by side, each as long as its weight, and this turn's point falls into it. They are gone
    /// through twice; if fewer are there the second time, it is the last of them.
    fn choose<'a, I: Iterator<Item = &'a Arc<Node>>>(&self, nodes: impl Fn() -> I) -> Option<&'a Arc<Node>> {
        let mut point = self.point(&Weights::of(nodes())?);
        let mut chosen = None;
        for node in nodes() {
            chosen = Some(node);
            let weight = u64::from(node.weight);
            if point < weight {
                break;
            }
            point -= weight;
        }
        chosen
    }

    /// Below the sum of the weights.
    fn point(&self, weights: &Weights) -> u64 {
        match self.choice {
            Choice::Random => rand::random_range(0..weights.sum),
            Choice::RoundRobin => weights.point_of(self.turn.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// 2^64 divided by the golden ratio.
const GOLDEN_SECTION: u64 = 0x9e37_79b9_7f4a_7c15;

/// The weights of the nodes that qualify.
struct Weights {
    sum: u64,
    /// That of each of them, where it is the same.
    each: Option<u64>,
}

impl Weights {
    /// `None`: nobody qualifies.
    fn of<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>) -> Option<Self> {
        let mut weights = nodes.map(|node| u64::from(node.weight));
        let first = weights.next()?;
        let (sum, equal) = weights.fold((first, true), |(sum, equal), weight| {
            (sum + weight, equal && weight == first)
        });
        Some(Self {
            sum,
            each: equal.then_some(first),
        })
    }

    /// Where all weigh the same, one after the other. Otherwise turns go around all of them by the golden section, which
    /// spreads points more evenly than any other step (Knuth, TAOCP 3, section 6.4): however long one counts, a node has had
    /// its share of the turns, give or take a few.
    fn point_of(&self, turn: u64) -> u64 {
        if let Some(each) = self.each {
            return turn % (self.sum / each) * each;
        }
        let around = u128::from(turn.wrapping_mul(GOLDEN_SECTION));
        ((around * u128::from(self.sum)) >> 64) as u64
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
            ("b", Up, 50, false),
            ("disabled", Up, 100, true),
            ("down", Down, 100, false),
            ("draining", Draining, 100, false),
            ("suspect", Suspect, 100, false),
            ("zero", Up, 0, false),
        ]);
        let a = ("a".to_owned(), false);
        let in_turn = picked(Choice::RoundRobin, &view);
        assert_eq!(in_turn.len(), 2);
        assert!(in_turn[&a].abs_diff(200) < 5, "{in_turn:?}");
        let random = picked(Choice::Random, &view);
        assert_eq!(random.len(), 2);
        // Six standard deviations.
        assert!(random[&a].abs_diff(200) < 50, "{random:?}");
    }

    /// Chosen at random they would be some twenty off.
    #[test]
    fn a_node_has_its_share_of_the_turns_however_long_one_counts() {
        use v1::NodeState::Up;
        let weights = [("a", 100), ("b", 100), ("canary", 10), ("c", 300), ("d", 7)];
        let view = view(&weights.map(|(id, weight)| (id, Up, weight, false)));
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let picker = Picker::new(Choice::RoundRobin);
        let mut counts = BTreeMap::new();
        for turns in 1..=2_000 {
            let picked = picker.pick(&view).unwrap().node.id.to_string();
            *counts.entry(picked).or_insert(0) += 1;
            for (id, weight) in weights {
                let due = f64::from(turns * weight) / f64::from(sum);
                let had = f64::from(counts.get(id).copied().unwrap_or(0));
                assert!((had - due).abs() < 5.0, "{id} had {had} of {turns}, due {due}");
            }
        }
    }

    #[test]
    fn nodes_of_one_weight_have_their_turns_one_after_the_other() {
        use v1::NodeState::Up;
        let view = view(&["a", "b", "c"].map(|id| (id, Up, 100, false)));
        let picker = Picker::default();
        let picked: Vec<_> = (0..6)
            .map(|_| picker.pick(&view).unwrap().node.id.to_string())
            .collect();
        assert_eq!(picked.concat(), "abcabc");
    }

    #[test]
    fn points_lie_below_the_sum_however_large() {
        for sum in [1, 2, 3, 65_535, 65_535 * 10_000, u64::MAX] {
            let weights = Weights { sum, each: None };
            assert!((0..1_000).all(|turn| weights.point_of(u64::MAX - turn) < sum));
        }
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

    /// It may look at what others change.
    #[test]
    fn a_filter_that_changes_its_mind_does_not_make_panic() {
        use v1::NodeState::{Down, Up};
        let view = view(&[
            ("a", Up, 1, false),
            ("b", Up, 1_000, false),
            ("c", Down, 100, false),
        ]);
        let picker = Picker::new(Choice::Random);
        for _ in 0..100 {
            let asked = std::cell::Cell::new(0);
            let filter = |node: &Node| {
                asked.set(asked.get() + 1);
                asked.get() <= 2 || node.id.as_ref() == "a"
            };
            let picked = picker.pick_from(&view, filter).unwrap();
            assert!(!picked.panic && picked.node.id.as_ref() == "a");
        }
    }

    #[test]
    fn a_filter_that_passes_nobody_who_is_up_any_more_makes_panic() {
        use v1::NodeState::{Suspect, Up};
        let view = view(&[("a", Up, 100, false), ("b", Suspect, 100, false)]);
        let picker = Picker::default();
        let passed = std::cell::Cell::new(false);
        let once = |node: &Node| node.id.as_ref() == "b" || !passed.replace(true);
        let picked = picker.pick_from(&view, once).unwrap();
        assert!(picked.panic && picked.node.id.as_ref() == "b");
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
