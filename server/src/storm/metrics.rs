//! What the storm switch counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rollcall_core::storm::{Reading, Why};

/// Why it is engaged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// `operator`, `egress`, `changes` or `scheduling_lag`.
    pub(crate) reason: &'static str,
}

/// What the switch counts. Cheap to clone: the counters are shared.
#[derive(Clone, Debug, Default)]
pub struct StormMetrics {
    pub(crate) mode: Gauge,
    pub(crate) engaged: Gauge,
    pub(crate) reasons: Family<ReasonLabel, Gauge>,
    pub(crate) changes: Counter,
    pub(crate) served: Counter,
    pub(crate) kept: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) egress: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) lag_ms: Gauge,
}

impl StormMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let storm = registry.sub_registry_with_prefix("storm");
        let help = "How the cluster's storm switch is set: 0 off, 1 on, 2 auto";
        storm.register("mode", help, metrics.mode.clone());
        let help = "1 while full lists are rationed on this server, for any group";
        storm.register("engaged", help, metrics.engaged.clone());
        let help = "1 for each reason for which it is engaged";
        storm.register("engaged_reason", help, metrics.reasons.clone());
        let help = "Times that the automatic switch engaged or let go";
        storm.register("engagement_changes", help, metrics.changes.clone());
        let help = "Full lists that consumers were given while engaged";
        storm.register("lists_served", help, metrics.served.clone());
        let help = "Times that a consumer was told to live on what it has, or to wait";
        storm.register("lists_kept", help, metrics.kept.clone());
        let help = "Changes that became part of a later one of their service";
        storm.register("changes_coalesced", help, metrics.coalesced.clone());
        let help = "Bytes of full lists that wait for their turn";
        storm.register("lists_waiting_bytes", help, metrics.waiting.clone());
        let help =
            "Bytes a second of watch messages and lists that leave for clients, and bytes of lists that wait";
        storm.register("egress_bytes_per_second", help, metrics.egress.clone());
        let help = "How late a task ran, at worst, in the last second, in milliseconds";
        storm.register("scheduling_lag_milliseconds", help, metrics.lag_ms.clone());
        for reason in ["operator", "egress", "changes", "scheduling_lag"] {
            _ = metrics.reasons.get_or_create(&ReasonLabel { reason });
        }
        metrics
    }

    pub(crate) fn set_reason(&self, by_operator: bool, why: Option<Why>) {
        let reading = match why {
            Some(Why::Above { reading, .. }) => Some(reading),
            Some(Why::Quiet | Why::Below { .. }) | None => None,
        };
        let set = |reason, holds: bool| {
            self.reasons
                .get_or_create(&ReasonLabel { reason })
                .set(i64::from(holds));
        };
        set("operator", by_operator);
        set("egress", reading == Some(Reading::Egress));
        set("changes", reading == Some(Reading::Changes));
        set("scheduling_lag", reading == Some(Reading::Lag));
    }
}
