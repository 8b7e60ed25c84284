//! What may replace what: the rules by which a consumer's view of a service changes.
//!
//! - Revisions of one count never go back, unless the servers were set back to a copy: what was lost to them goes
//!   when they have come as far again. Those of different counts (an AP group at another server, or in another
//!   of its lives; a group that changed its mode) are not compared: what is heard last holds, and equal signs
//!   are equal lists.
//! - A non-empty list is replaced by an empty one only on the word of a server whose state is newer, or that
//!   counts for itself and says that it is in touch with the others (until then it is not ready and says
//!   nothing): an empty list that is merely heard, or from another cluster, changes nothing.
//! - A change is applied to what it was made for: after it, the nodes' sign must be the frame's. The client
//!   computes signs itself. Should a later server sign differently than this client, already its full lists do
//!   not match; then changes are taken on trust.

use std::sync::Arc;

use rollcall_proto::v1;

use crate::key::ServiceKey;
use crate::node::Node;
use crate::sign::Sign;
use crate::view::{Confirmed, Counted, ServiceView, Source, said};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// There is a new view.
    Changed,
    /// The same nodes, confirmed.
    Confirmed,
    /// It is older than what is held.
    Older,
    /// An empty list that nobody vouches for.
    UnconfirmedEmpty,
    /// Something is missing between what is held and this: ask for the full list.
    Gap,
}

/// One service as it is held.
#[derive(Debug)]
pub(crate) struct Cached {
    view: Arc<ServiceView>,
    /// The nodes held have the sign that the server named.
    signed: bool,
    /// The service did change at the view's revision; otherwise not later than then.
    dated: bool,
}

impl Cached {
    pub(crate) fn unknown(key: ServiceKey) -> Self {
        Self {
            view: Arc::new(ServiceView::unknown(key)),
            signed: false,
            dated: true,
        }
    }

    pub(crate) fn of(view: ServiceView) -> Self {
        Self {
            signed: is_signed(&view),
            dated: true,
            view: Arc::new(view),
        }
    }

    pub(crate) fn view(&self) -> &Arc<ServiceView> {
        &self.view
    }

    /// A full list. `view.as_of` is the revision of the state that it was read from.
    pub(crate) fn take_full(&mut self, view: ServiceView) -> Merged {
        let held = &self.view;
        let other_cluster = is_other(&held.cluster, &view.cluster);
        let comparable = !other_cluster && !held.counted().differs(view.counted());
        // A state that is as new as what is held, in which it changed earlier than we saw it change, is of servers that
        // were set back: what we saw was lost.
        let earlier = self.dated && view.revision < held.revision;
        let older = view.as_of < held.revision || (earlier && view.as_of < held.as_of);
        if comparable && older {
            return Merged::Older;
        }
        let unconfirmed = other_cluster || (comparable && view.as_of <= held.revision);
        if view.nodes.is_empty() && !held.nodes.is_empty() && unconfirmed {
            return Merged::UnconfirmedEmpty;
        }
        let same = held.source != Source::Nothing
            && held.exists == view.exists
            && (held.revision == view.revision || !comparable || !self.dated)
            && held.sign == view.sign
            && held.metadata == view.metadata
            && held.guard == view.guard;
        *self = Self::of(view);
        if same { Merged::Confirmed } else { Merged::Changed }
    }

    /// One revision's change.
    pub(crate) fn take_delta(
        &mut self,
        delta: v1::ServiceDelta,
        (cluster, counted): (&Arc<str>, Counted),
        confirmed: Confirmed,
    ) -> Merged {
        let held = &self.view;
        if is_other(&held.cluster, cluster) {
            return Merged::Gap;
        }
        let other_count = held.counted().differs(counted);
        if other_count && held.exists {
            return Merged::Gap;
        }
        if !other_count && delta.revision <= held.revision && held.source != Source::Nothing {
            return Merged::Older;
        }
        if !held.exists && !delta.created {
            return Merged::Gap;
        }
        let mut next = if delta.created {
            ServiceView::unknown(held.key.clone())
        } else {
            ServiceView::clone(held)
        };
        let mut sum = if delta.created { Sign::default() } else { held.sign };
        for removed in &delta.removed {
            if let Ok(at) = next
                .nodes
                .binary_search_by(|node| node.id.as_ref().cmp(&removed.id))
            {
                let node = next.nodes.remove(at);
                sum = Sign(sum.0.wrapping_sub(Sign::of_node(&node).0));
            }
        }
        for node in delta.put {
            let node = Arc::new(Node::from(node));
            sum = Sign(sum.0.wrapping_add(Sign::of_node(&node).0));
            match next.nodes.binary_search_by(|held| held.id.cmp(&node.id)) {
                Ok(at) => {
                    let before = std::mem::replace(&mut next.nodes[at], node);
                    sum = Sign(sum.0.wrapping_sub(Sign::of_node(&before).0));
                }
                Err(at) => next.nodes.insert(at, node),
            }
        }
        let sign = delta.sign.unwrap_or_default().into();
        if self.signed && sum != sign {
            return Merged::Gap;
        }
        if let Some(settings) = delta.settings {
            next.metadata = settings.metadata;
        }
        if delta.guard.is_some() {
            next.guard = said(delta.guard);
        }
        next.exists = true;
        next.sign = sign;
        next.revision = delta.revision;
        next.as_of = delta.revision;
        next.mode = counted.mode();
        next.epoch = counted.epoch();
        next.source = Source::Live;
        next.confirmed = confirmed;
        if !cluster.is_empty() {
            next.cluster = Arc::clone(cluster);
        }
        self.signed = sum == sign;
        self.dated = true;
        self.view = Arc::new(next);
        Merged::Changed
    }

    /// The service was deleted, or does not exist, as of `revision`.
    pub(crate) fn take_gone(
        &mut self,
        revision: u64,
        (cluster, counted): (&Arc<str>, Counted),
        confirmed: Confirmed,
    ) -> Merged {
        let held = &self.view;
        let comparable = !held.counted().differs(counted);
        if is_other(&held.cluster, cluster) && !held.nodes.is_empty() {
            return Merged::UnconfirmedEmpty;
        }
        if comparable && held.source != Source::Nothing && revision <= held.revision && held.exists {
            return if revision < held.revision {
                Merged::Older
            } else {
                Merged::UnconfirmedEmpty
            };
        }
        let unchanged = held.source != Source::Nothing && !held.exists;
        let view = ServiceView {
            revision: if comparable {
                revision.max(held.revision)
            } else {
                revision
            },
            as_of: if comparable {
                revision.max(held.as_of)
            } else {
                revision
            },
            mode: counted.mode(),
            epoch: counted.epoch(),
            source: Source::Live,
            cluster: if cluster.is_empty() {
                Arc::clone(&held.cluster)
            } else {
                Arc::clone(cluster)
            },
            confirmed,
            ..ServiceView::unknown(held.key.clone())
        };
        *self = Self {
            view: Arc::new(view),
            signed: true,
            dated: true,
        };
        if unchanged {
            Merged::Confirmed
        } else {
            Merged::Changed
        }
    }

    /// What is held is still so, as of `revision`, by this cluster's word.
    pub(crate) fn confirm(
        &mut self,
        revision: u64,
        (cluster, counted): (&Arc<str>, Counted),
        confirmed: Confirmed,
    ) -> Merged {
        let held = &self.view;
        let comparable = !held.counted().differs(counted);
        if comparable && revision < held.revision {
            return Merged::Older;
        }
        let mut view = ServiceView::clone(held);
        if comparable {
            view.as_of = view.as_of.max(revision);
        } else {
            (view.revision, view.as_of) = (revision, revision);
            self.dated = false;
        }
        view.mode = counted.mode();
        view.epoch = counted.epoch();
        view.source = Source::Live;
        view.confirmed = confirmed;
        if !cluster.is_empty() {
            view.cluster = Arc::clone(cluster);
        }
        self.view = Arc::new(view);
        Merged::Confirmed
    }

    /// The removal guard's word, as of the revision that was just confirmed: it is no part of the sign.
    pub(crate) fn take_guard(&mut self, guard: Option<v1::GuardStatus>) {
        if self.view.guard != guard {
            self.view = Arc::new(ServiceView {
                guard,
                ..ServiceView::clone(&self.view)
            });
        }
    }

    /// The stream is gone; what it said stays.
    pub(crate) fn on_interrupted(&mut self) -> bool {
        if self.view.source != Source::Live {
            return false;
        }
        // What is heard of others from now on says nothing of this one.
        let confirmed = match &self.view.confirmed {
            Confirmed::Heard(heard) => Confirmed::Heard(heard.as_of_now()),
            before @ (Confirmed::Never | Confirmed::Written(_)) => before.clone(),
        };
        self.view = Arc::new(ServiceView {
            source: Source::Cache,
            confirmed,
            ..ServiceView::clone(&self.view)
        });
        true
    }

    /// The servers are of another cluster now, whose revisions count anew: its next full list replaces this, if
    /// it is not empty.
    pub(crate) fn on_other_cluster(&mut self, cluster: &Arc<str>) -> bool {
        is_other(&self.view.cluster, cluster)
    }
}

fn is_other(held: &str, heard: &str) -> bool {
    !held.is_empty() && !heard.is_empty() && held != heard
}

fn is_signed(view: &ServiceView) -> bool {
    let computed = Sign::of_nodes(view.nodes.iter().map(AsRef::as_ref));
    if computed != view.sign {
        tracing::debug!(service = %view.key, %computed, named = %view.sign, "a sign of another making");
    }
    computed == view.sign
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ServiceKey {
        ServiceKey::new("g", "s")
    }

    fn wire_node(id: &str, weight: u32) -> v1::Node {
        v1::Node {
            id: id.into(),
            weight,
            kind: 1,
            state: 1,
            ..Default::default()
        }
    }

    fn sign_of(nodes: &[v1::Node]) -> Sign {
        let nodes: Vec<Node> = nodes.iter().cloned().map(Node::from).collect();
        Sign::of_nodes(&nodes)
    }

    fn full(ids: &[&str], revision: u64, as_of: u64, cluster: &str) -> ServiceView {
        let nodes: Vec<_> = ids.iter().map(|id| wire_node(id, 100)).collect();
        let view = v1::ServiceView {
            key: Some((&key()).into()),
            sign: Some(sign_of(&nodes).into()),
            revision,
            settings: None,
            nodes,
            guard: None,
        };
        ServiceView::from_wire(
            view,
            as_of,
            (Arc::from(cluster), Counted::Cluster),
            Confirmed::Never,
        )
    }

    fn delta(revision: u64, put: &[&str], removed: &[&str], after: &[&str]) -> v1::ServiceDelta {
        let after: Vec<_> = after.iter().map(|id| wire_node(id, 100)).collect();
        v1::ServiceDelta {
            key: Some((&key()).into()),
            revision,
            sign: Some(sign_of(&after).into()),
            put: put.iter().map(|id| wire_node(id, 100)).collect(),
            removed: removed
                .iter()
                .map(|id| v1::RemovedNode {
                    id: (*id).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn ids(cached: &Cached) -> Vec<String> {
        cached
            .view()
            .nodes
            .iter()
            .map(|node| node.id.to_string())
            .collect()
    }

    fn take_of(cached: &mut Cached, delta: v1::ServiceDelta, counted: Counted) -> Merged {
        cached.take_delta(delta, (&Arc::from("c"), counted), Confirmed::Never)
    }

    fn take_gone(cached: &mut Cached, revision: u64, cluster: &str, counted: Counted) -> Merged {
        cached.take_gone(revision, (&Arc::from(cluster), counted), Confirmed::Never)
    }

    fn confirm(cached: &mut Cached, revision: u64, cluster: &str, counted: Counted) -> Merged {
        cached.confirm(revision, (&Arc::from(cluster), counted), Confirmed::Never)
    }

    fn of_server(view: ServiceView, epoch: u64) -> ServiceView {
        ServiceView {
            mode: v1::GroupMode::Ap,
            epoch,
            ..view
        }
    }

    fn take(cached: &mut Cached, delta: v1::ServiceDelta) -> Merged {
        take_of(cached, delta, Counted::Cluster)
    }

    #[test]
    fn revisions_never_go_back() {
        let mut cached = Cached::of(full(&["a", "b"], 7, 9, "c"));
        assert_eq!(cached.take_full(full(&["a"], 6, 8, "c")), Merged::Older);
        assert_eq!(cached.take_full(full(&["a"], 5, 5, "c")), Merged::Older);
        assert_eq!(take(&mut cached, delta(7, &["x"], &[], &["x"])), Merged::Older);
        assert_eq!(take_gone(&mut cached, 6, "c", Counted::Cluster), Merged::Older);
        assert_eq!(ids(&cached), ["a", "b"]);
        assert_eq!(cached.take_full(full(&["a"], 10, 10, "c")), Merged::Changed);
        assert_eq!(ids(&cached), ["a"]);
    }

    #[test]
    fn what_was_lost_goes_when_the_servers_have_come_as_far_again() {
        let mut cached = Cached::of(full(&["a", "lost"], 7, 9, "c"));
        assert_eq!(cached.take_full(full(&["a"], 3, 8, "c")), Merged::Older);
        assert_eq!(cached.take_full(full(&["a"], 3, 9, "c")), Merged::Changed);
        assert_eq!((ids(&cached), cached.view().revision), (vec!["a".to_owned()], 3));
    }

    #[test]
    fn an_unconfirmed_empty_never_replaces_nodes() {
        let mut cached = Cached::of(full(&["a"], 7, 7, "c"));
        assert_eq!(cached.take_full(full(&[], 7, 7, "c")), Merged::UnconfirmedEmpty);
        assert_eq!(cached.take_full(full(&[], 0, 0, "c")), Merged::Older);
        assert_eq!(
            cached.take_full(full(&[], 90, 90, "other")),
            Merged::UnconfirmedEmpty
        );
        assert_eq!(
            take_gone(&mut cached, 7, "c", Counted::Cluster),
            Merged::UnconfirmedEmpty
        );
        assert_eq!(
            take_gone(&mut cached, 90, "other", Counted::Cluster),
            Merged::UnconfirmedEmpty
        );
        assert_eq!(ids(&cached), ["a"]);
        assert_eq!(cached.take_full(full(&[], 8, 8, "c")), Merged::Changed);
        assert!(ids(&cached).is_empty());
    }

    #[test]
    fn the_list_of_another_cluster_replaces_if_it_is_not_empty() {
        let mut cached = Cached::of(full(&["a"], 700, 700, "old"));
        assert_eq!(take(&mut cached, delta(2, &["b"], &[], &["b"])), Merged::Gap);
        assert_eq!(cached.take_full(full(&["b"], 2, 3, "new")), Merged::Changed);
        assert_eq!((ids(&cached), cached.view().revision), (vec!["b".to_owned()], 2));
    }

    #[test]
    fn changes_are_applied_in_the_order_of_ids() {
        let mut cached = Cached::of(full(&["b", "d"], 1, 1, "c"));
        assert_eq!(
            take(&mut cached, delta(2, &["c", "a"], &["d"], &["a", "b", "c"])),
            Merged::Changed
        );
        assert_eq!(ids(&cached), ["a", "b", "c"]);
        assert!(cached.view().node("b").is_some() && cached.view().node("d").is_none());
        assert_eq!(
            take(&mut cached, delta(3, &[], &["a", "b", "c"], &[])),
            Merged::Changed
        );
        assert!(ids(&cached).is_empty() && cached.view().exists);
    }

    #[test]
    fn a_missed_change_is_noticed_by_the_sign() {
        let mut cached = Cached::of(full(&["a"], 1, 1, "c"));
        // Revision 2 put `b` and was lost.
        assert_eq!(
            take(&mut cached, delta(3, &["c"], &[], &["a", "b", "c"])),
            Merged::Gap
        );
        assert_eq!(ids(&cached), ["a"], "nothing is applied over a gap");
        assert_eq!(
            cached.take_full(full(&["a", "b", "c"], 3, 3, "c")),
            Merged::Changed
        );
        assert_eq!(
            take(&mut cached, delta(4, &[], &["a"], &["b", "c"])),
            Merged::Changed
        );
    }

    #[test]
    fn a_sign_that_this_client_cannot_compute_is_taken_on_trust() {
        let mut foreign = full(&["a"], 1, 1, "c");
        foreign.sign = Sign(42);
        let mut cached = Cached::of(foreign);
        let mut change = delta(2, &["b"], &[], &[]);
        change.sign = Some(Sign(43).into());
        assert_eq!(take(&mut cached, change), Merged::Changed);
        assert_eq!((ids(&cached).len(), cached.view().sign), (2, Sign(43)));
    }

    #[test]
    fn a_change_to_an_unknown_service_asks_for_the_list_unless_it_is_new() {
        let mut cached = Cached::unknown(key());
        assert_eq!(take(&mut cached, delta(5, &["a"], &[], &["a"])), Merged::Gap);
        let created = v1::ServiceDelta {
            created: true,
            ..delta(5, &["a"], &[], &["a"])
        };
        assert_eq!(take(&mut cached, created), Merged::Changed);
        assert_eq!(ids(&cached), ["a"]);
        assert_eq!(take_gone(&mut cached, 6, "c", Counted::Cluster), Merged::Changed);
        assert!(!cached.view().exists && ids(&cached).is_empty());
    }

    #[test]
    fn an_equal_list_confirms() {
        let mut cached = Cached::of(full(&["a"], 7, 7, "c"));
        assert_eq!(cached.take_full(full(&["a"], 7, 12, "c")), Merged::Confirmed);
        assert_eq!((cached.view().revision, cached.view().as_of), (7, 12));
        assert!(cached.on_interrupted());
        assert_eq!(cached.view().source, Source::Cache);
        assert_eq!(confirm(&mut cached, 13, "c", Counted::Cluster), Merged::Confirmed);
        assert_eq!((cached.view().source, cached.view().as_of), (Source::Live, 13));
        assert_eq!(confirm(&mut cached, 3, "c", Counted::Cluster), Merged::Older);
    }

    #[test]
    fn the_age_of_what_nobody_keeps_current_grows_whatever_else_is_heard() {
        use crate::view::Heard;
        let heard = Heard::now();
        let mut cached = Cached::of(ServiceView {
            confirmed: Confirmed::Heard(Arc::clone(&heard)),
            ..full(&["a"], 7, 7, "c")
        });
        assert!(cached.on_interrupted());
        let passed = std::time::Duration::from_millis(20);
        std::thread::sleep(passed);
        heard.touch();
        assert!(cached.view().age() >= Some(passed), "{:?}", cached.view().age());
    }

    #[test]
    fn revisions_of_different_counts_are_not_compared() {
        let [one, other] = [1, 2].map(|epoch| Counted::Server { epoch });
        let mut cached = Cached::of(of_server(full(&["a"], 700, 900, "c"), 1));
        // Another server has the same list: nothing is new, and its count goes on from there.
        assert_eq!(confirm(&mut cached, 30, "c", other), Merged::Confirmed);
        let view = cached.view();
        assert_eq!((view.revision, view.as_of, view.counted()), (30, 30, other));
        assert_eq!(
            take_of(&mut cached, delta(30, &["x"], &[], &["x"]), other),
            Merged::Older
        );
        assert_eq!(
            take_of(&mut cached, delta(31, &["b"], &[], &["a", "b"]), other),
            Merged::Changed
        );
        // What the first one says would have to be its whole list.
        assert_eq!(
            take_of(&mut cached, delta(901, &["c"], &[], &["a", "c"]), one),
            Merged::Gap
        );
        assert_eq!(
            cached.take_full(of_server(full(&["a", "c"], 901, 901, "c"), 1)),
            Merged::Changed
        );
        assert_eq!(ids(&cached), ["a", "c"]);
        // An equal list with another history is no news.
        assert_eq!(
            cached.take_full(of_server(full(&["a", "c"], 3, 40, "c"), 2)),
            Merged::Confirmed
        );
    }

    #[test]
    fn a_service_that_was_confirmed_by_its_sign_may_be_older_than_the_confirmation() {
        let other = Counted::Server { epoch: 2 };
        let mut cached = Cached::of(of_server(full(&["a"], 700, 900, "c"), 1));
        assert_eq!(confirm(&mut cached, 30, "c", other), Merged::Confirmed);
        assert_eq!(
            cached.take_full(of_server(full(&["a"], 12, 30, "c"), 2)),
            Merged::Confirmed
        );
        assert_eq!(cached.view().revision, 12, "now it is known when it changed");
        assert_eq!(
            cached.take_full(of_server(full(&["a", "b"], 11, 29, "c"), 2)),
            Merged::Older
        );
    }

    #[test]
    fn a_server_that_counts_for_itself_may_say_that_all_nodes_are_gone_but_not_twice_the_same_revision() {
        let other = Counted::Server { epoch: 2 };
        let mut cached = Cached::of(of_server(full(&["a"], 700, 900, "c"), 1));
        assert_eq!(
            cached.take_full(of_server(full(&[], 5, 700, "c"), 1)),
            Merged::Older
        );
        assert_eq!(
            take_gone(&mut cached, 30, "x", other),
            Merged::UnconfirmedEmpty,
            "another cluster"
        );
        let mut moved = Cached::of(cached.view().as_ref().clone());
        assert_eq!(
            moved.take_full(of_server(full(&[], 5, 7, "c"), 2)),
            Merged::Changed
        );
        assert_eq!(take_gone(&mut cached, 30, "c", other), Merged::Changed);
        let view = cached.view();
        assert!(!view.exists && view.nodes.is_empty() && view.as_of == 30);
        // It comes back at yet another server.
        let created = v1::ServiceDelta {
            created: true,
            ..delta(2, &["a"], &[], &["a"])
        };
        assert_eq!(
            take_of(&mut cached, created, Counted::Server { epoch: 3 }),
            Merged::Changed
        );
        assert_eq!((ids(&cached).len(), cached.view().revision), (1, 2));
    }
}
