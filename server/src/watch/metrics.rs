//! What the hub counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the hub counts. Cheap to clone: the counters are shared.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    pub(crate) streams: Gauge,
    pub(crate) streams_current: Gauge,
    pub(crate) streams_lagging: Gauge,
    pub(crate) subscriptions: Gauge,
    pub(crate) revisions: Counter,
    pub(crate) frames: Counter,
    pub(crate) overflows: Counter,
    pub(crate) snapshots: Counter,
    pub(crate) resumed: Counter,
    pub(crate) resyncs: Counter,
    pub(crate) stalled: Counter,
    pub(crate) responses: Counter,
    pub(crate) response_bytes: Counter,
}

impl WatchMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let watch = registry.sub_registry_with_prefix("watch");
        watch.register("streams", "Open watch streams", metrics.streams.clone());
        let help = "Streams whose client has acknowledged every change that concerns it";
        watch.register("streams_current", help, metrics.streams_current.clone());
        let help = "Streams that will get current state instead of the changes they missed";
        watch.register("streams_lagging", help, metrics.streams_lagging.clone());
        watch.register(
            "subscriptions",
            "Live subscriptions",
            metrics.subscriptions.clone(),
        );
        watch.register(
            "revisions",
            "Revisions looked through for watchers",
            metrics.revisions.clone(),
        );
        watch.register(
            "frames",
            "Frames handed to streams, by reference",
            metrics.frames.clone(),
        );
        let help = "Times that a stream's backlog was full and its frames were forgotten";
        watch.register("overflows", help, metrics.overflows.clone());
        watch.register("snapshots", "Whole services sent", metrics.snapshots.clone());
        watch.register(
            "resumed",
            "Subscriptions resumed from retained changes",
            metrics.resumed.clone(),
        );
        let help =
            "Times that the hub fell below the retained changes and all streams start from state again";
        watch.register("resyncs", help, metrics.resyncs.clone());
        let help = "Readers cut off because they did not take a large message";
        watch.register("stalled", help, metrics.stalled.clone());
        watch.register("responses", "Messages sent", metrics.responses.clone());
        watch.register(
            "response_bytes",
            "Bytes of messages sent",
            metrics.response_bytes.clone(),
        );
        metrics
    }
}
