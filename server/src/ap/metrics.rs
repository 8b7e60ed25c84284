//! What AP groups count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::desk::Desk;

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServerLabel {
    /// Its id.
    pub(super) server: u64,
}

/// What AP groups count. Cheap to clone: the counters are shared.
#[derive(Clone, Debug, Default)]
pub struct ApMetrics {
    pub(super) records: Gauge,
    pub(super) head: Gauge,
    pub(super) lag: Family<ServerLabel, Gauge>,
    pub(super) pulls: Counter,
    pub(super) pulls_failed: Counter,
    pub(super) received: Counter,
    pub(super) comparisons: Counter,
    pub(super) repaired: Counter,
    pub(super) refused: Counter,
    pub(super) clocks_refused: Gauge,
    pub(super) sessions_held: Gauge,
    pub(super) sessions_taken_over: Counter,
    pub(super) doubled: Counter,
    pub(super) not_doubled: Counter,
}

impl ApMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let ap = registry.sub_registry_with_prefix("ap");
        ap.register("records", "Records kept of AP groups", metrics.records.clone());
        ap.register(
            "log_head",
            "How far this server's log of records goes",
            metrics.head.clone(),
        );
        let help = "How many numbers of another server's log are still to be followed";
        ap.register("origin_lag", help, metrics.lag.clone());
        ap.register(
            "pulls",
            "Pieces of other servers' logs pulled",
            metrics.pulls.clone(),
        );
        ap.register("pulls_failed", "Pulls that failed", metrics.pulls_failed.clone());
        let help = "Records of other servers that were new here";
        ap.register("records_received", help, metrics.received.clone());
        let help = "Comparisons of digests with another server";
        ap.register("comparisons", help, metrics.comparisons.clone());
        let help = "Of the records received, those that only a comparison brought";
        ap.register("records_repaired", help, metrics.repaired.clone());
        let help = "Times that records were not taken because their time is too far ahead";
        ap.register("records_refused", help, metrics.refused.clone());
        let help = "Servers whose records are not taken now because their time is too far ahead; an operator must act";
        ap.register("clock_refused", help, metrics.clocks_refused.clone());
        let help = "Sessions for which this server vouches in AP groups";
        ap.register("sessions_held", help, metrics.sessions_held.clone());
        let help = "Sessions of servers that are down which this server took over";
        ap.register("sessions_taken_over", help, metrics.sessions_taken_over.clone());
        let help = "Writes that a second server has on its disk too, as asked";
        ap.register("writes_doubled", help, metrics.doubled.clone());
        let help = "Writes of which no second server said so in time";
        ap.register("writes_not_doubled", help, metrics.not_doubled.clone());
        metrics
    }

    pub(super) fn observe(&self, desk: &Desk) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.records.set(signed(desk.replica.len() as u64));
        self.head.set(signed(desk.replica.head().0));
        self.sessions_held.set(signed(desk.office.counts().0 as u64));
    }
}
