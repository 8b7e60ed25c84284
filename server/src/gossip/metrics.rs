//! What gossip counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::swim::MemberState;

/// How a member does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    /// `alive`, `suspect` or `down`.
    pub(crate) state: &'static str,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(crate) struct MemberLabel {
    /// Its server id.
    pub(crate) member: u64,
}

/// What a packet is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    /// `ping`, `ack`, ...
    pub(crate) kind: &'static str,
}

/// Why a packet was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// `malformed`, `replayed`, ...
    pub(crate) reason: &'static str,
}

/// What gossip counts. Cheap to clone: the counters are shared.
#[derive(Clone, Debug, Default)]
pub struct GossipMetrics {
    pub(crate) members: Family<StateLabel, Gauge>,
    pub(crate) member_states: Family<MemberLabel, Gauge>,
    pub(crate) member_epochs: Family<MemberLabel, Gauge>,
    pub(crate) member_incarnations: Family<MemberLabel, Gauge>,
    pub(crate) sent: Family<KindLabel, Counter>,
    pub(crate) received: Family<KindLabel, Counter>,
    pub(crate) dropped: Family<ReasonLabel, Counter>,
    pub(crate) unsent: Counter,
    pub(crate) suspicions: Counter,
    pub(crate) refutations: Counter,
    pub(crate) refuted_own: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) displaced: Gauge,
    pub(crate) epoch: Gauge,
    pub(crate) health: Gauge,
    pub(crate) late_ms: Gauge,
}

impl GossipMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let gossip = registry.sub_registry_with_prefix("gossip");
        let help = "Servers by state, this one included, as this one sees them";
        gossip.register("members", help, metrics.members.clone());
        let help = "Each server as this one sees it: 2 alive, 1 suspect, 0 down";
        gossip.register("member_state", help, metrics.member_states.clone());
        let help = "Which of its lives each server is in";
        gossip.register("member_epoch", help, metrics.member_epochs.clone());
        let help = "Suspicions that each server refuted in this life";
        gossip.register("member_incarnation", help, metrics.member_incarnations.clone());
        gossip.register("packets_sent", "Packets sent, by kind", metrics.sent.clone());
        gossip.register(
            "packets_received",
            "Packets taken, by kind",
            metrics.received.clone(),
        );
        gossip.register(
            "packets_dropped",
            "Packets dropped, by reason",
            metrics.dropped.clone(),
        );
        let help = "Packets not sent: the queue was full, or the system refused";
        gossip.register("packets_unsent", help, metrics.unsent.clone());
        gossip.register(
            "suspicions",
            "Members that became suspect",
            metrics.suspicions.clone(),
        );
        gossip.register(
            "refutations",
            "Suspects that refuted",
            metrics.refutations.clone(),
        );
        let help = "Suspicions of this server that it refuted";
        gossip.register("refuted_own", help, metrics.refuted_own.clone());
        let help = "Two servers with one id were seen; an operator must act";
        gossip.register("duplicates", help, metrics.duplicates.clone());
        let help = "1 if another server has this one's id and a later epoch";
        gossip.register("displaced", help, metrics.displaced.clone());
        gossip.register(
            "epoch",
            "Which of its lives this server is in",
            metrics.epoch.clone(),
        );
        let help = "0: this server trusts its judgement; each point stretches its timeouts";
        gossip.register("local_health", help, metrics.health.clone());
        let help = "How long this server slept through in all, which it holds against nobody";
        gossip.register("slept_milliseconds", help, metrics.late_ms.clone());
        metrics
    }

    /// Shows a member.
    pub(crate) fn show_member(&self, member: u64, state: MemberState, epoch: u64, incarnation: u16) {
        let label = MemberLabel { member };
        let state = match state {
            MemberState::Alive => 2,
            MemberState::Suspect => 1,
            MemberState::Down => 0,
        };
        self.member_states.get_or_create(&label).set(state);
        let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
        self.member_epochs.get_or_create(&label).set(epoch);
        self.member_incarnations
            .get_or_create(&label)
            .set(incarnation.into());
    }

    /// A member is not known any more.
    pub(crate) fn hide_member(&self, member: u64) {
        let label = MemberLabel { member };
        self.member_states.remove(&label);
        self.member_epochs.remove(&label);
        self.member_incarnations.remove(&label);
    }
}
