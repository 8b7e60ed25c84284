//! What the hubs count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Of groups of which mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    /// `cp` or `ap`.
    mode: &'static str,
}

const CP: ModeLabel = ModeLabel { mode: "cp" };
const AP: ModeLabel = ModeLabel { mode: "ap" };

/// What a hub counts. Cheap to clone: the counters are shared.
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
    pub(crate) moved: Counter,
    pub(crate) stalled: Counter,
    pub(crate) responses: Counter,
    pub(crate) response_bytes: Counter,
}

/// What both hubs count.
#[derive(Clone, Debug, Default)]
pub struct ModesMetrics {
    /// The hub of the CP groups.
    pub cp: WatchMetrics,
    /// The hub of the AP groups.
    pub ap: WatchMetrics,
}

impl ModesMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let watch = registry.sub_registry_with_prefix("watch");
        let mut modes = Self::default();
        let Self { cp, ap } = &mut modes;
        let help = "Open watch streams; each has a half for either mode";
        gauge(watch, "streams", help, (&mut cp.streams, &mut ap.streams));
        let help = "Streams whose client has acknowledged every change that concerns it";
        let both = (&mut cp.streams_current, &mut ap.streams_current);
        gauge(watch, "streams_current", help, both);
        let help = "Streams that will get current state instead of the changes they missed";
        let both = (&mut cp.streams_lagging, &mut ap.streams_lagging);
        gauge(watch, "streams_lagging", help, both);
        let help = "Live subscriptions; one to a prefix counts for both modes";
        gauge(
            watch,
            "subscriptions",
            help,
            (&mut cp.subscriptions, &mut ap.subscriptions),
        );
        let help = "Revisions looked through for watchers";
        counter(watch, "revisions", help, (&mut cp.revisions, &mut ap.revisions));
        let help = "Frames handed to streams, by reference";
        counter(watch, "frames", help, (&mut cp.frames, &mut ap.frames));
        let help = "Times that a stream's backlog was full and its frames were forgotten";
        counter(watch, "overflows", help, (&mut cp.overflows, &mut ap.overflows));
        let help = "Whole services sent";
        counter(watch, "snapshots", help, (&mut cp.snapshots, &mut ap.snapshots));
        let help = "Subscriptions resumed from retained changes";
        counter(watch, "resumed", help, (&mut cp.resumed, &mut ap.resumed));
        let help =
            "Times that the hub fell below the retained changes and all streams start from state again";
        counter(watch, "resyncs", help, (&mut cp.resyncs, &mut ap.resyncs));
        let help = "Subscriptions that had to move to the other mode's hub with their group";
        counter(watch, "moved", help, (&mut cp.moved, &mut ap.moved));
        let help = "Readers cut off because they did not take a large message";
        counter(watch, "stalled", help, (&mut cp.stalled, &mut ap.stalled));
        let help = "Messages sent";
        counter(watch, "responses", help, (&mut cp.responses, &mut ap.responses));
        let help = "Bytes of messages sent";
        let both = (&mut cp.response_bytes, &mut ap.response_bytes);
        counter(watch, "response_bytes", help, both);
        modes
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, (cp, ap): (&mut Gauge, &mut Gauge)) {
    let family = Family::<ModeLabel, Gauge>::default();
    *cp = family.get_or_create(&CP).clone();
    *ap = family.get_or_create(&AP).clone();
    registry.register(name, help, family);
}

fn counter(registry: &mut Registry, name: &str, help: &str, (cp, ap): (&mut Counter, &mut Counter)) {
    let family = Family::<ModeLabel, Counter>::default();
    *cp = family.get_or_create(&CP).clone();
    *ap = family.get_or_create(&AP).clone();
    registry.register(name, help, family);
}
