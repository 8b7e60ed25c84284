//! Both layers of a node as one: what consumers see.

use std::borrow::Cow;

use super::labels::Labels;
use super::record::{Node, Override, Service};
use crate::ids::NodeId;

/// A node with its override, merged as it is read.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// The lower layer.
    pub node: &'a Node,
    /// The upper layer, if there is one.
    pub over: Option<&'a Override>,
}

impl<'a> NodeView<'a> {
    /// The two layers of one node.
    #[must_use]
    pub fn new(node: &'a Node, over: Option<&'a Override>) -> Self {
        Self { node, over }
    }

    /// The operator's weight, or else the registrant's.
    #[must_use]
    pub fn weight(&self) -> u16 {
        self.over
            .and_then(|over| over.weight)
            .unwrap_or(self.node.registration.weight)
    }

    /// Whether an operator took the node out of the choice.
    #[must_use]
    pub fn disabled(&self) -> bool {
        self.over.and_then(|over| over.disabled).unwrap_or(false)
    }

    /// The registrant's labels with the operator's laid over them.
    #[must_use]
    pub fn labels(&self) -> Cow<'a, Labels> {
        match self.over {
            Some(over) if !over.labels.is_empty() => {
                let mut labels = self.node.registration.labels.clone();
                labels.extend(
                    over.labels
                        .iter()
                        .map(|(key, value)| (key.to_owned(), value.to_owned())),
                );
                Cow::Owned(labels)
            }
            Some(_) | None => Cow::Borrowed(&self.node.registration.labels),
        }
    }
}

impl Service {
    /// Its nodes as consumers see them, in the order of their ids.
    pub fn views(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes
            .iter()
            .map(|(id, node)| NodeView::new(node, self.overrides.get(id).map(AsRef::as_ref)))
    }

    /// One node as consumers see it.
    #[must_use]
    pub fn view(&self, id: &NodeId) -> Option<NodeView<'_>> {
        let node = self.nodes.get(id)?;
        Some(NodeView::new(node, self.overrides.get(id).map(AsRef::as_ref)))
    }
}
