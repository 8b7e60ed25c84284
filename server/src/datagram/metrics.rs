//! What heartbeats by datagram count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rollcall_proto::heartbeat::Malformed;

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// `forged`, `replayed`, ...
    pub(crate) reason: &'static str,
}

/// What a heartbeat was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VerdictLabel {
    /// `renewed`, `not_found` or `unknown`.
    pub(crate) verdict: &'static str,
}

/// Why datagrams, or heartbeats in them, were refused; looked up once.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    pub(crate) length: Counter,
    pub(crate) magic: Counter,
    pub(crate) version: Counter,
    pub(crate) kind: Counter,
    pub(crate) rate: Counter,
    pub(crate) number: Counter,
    pub(crate) not_ready: Counter,
    pub(crate) forged: Counter,
    pub(crate) replayed: Counter,
    pub(crate) unknown: Counter,
    pub(crate) full: Counter,
    pub(crate) late: Counter,
}

impl Refusals {
    pub(crate) fn malformed(&self, why: Malformed) -> &Counter {
        match why {
            Malformed::Length => &self.length,
            Malformed::Magic => &self.magic,
            Malformed::Version => &self.version,
            Malformed::Kind => &self.kind,
        }
    }
}

/// What heartbeats by datagram count. Cheap to clone: the counters are shared.
#[derive(Clone, Debug)]
pub struct DatagramMetrics {
    pub(crate) received: Counter,
    pub(crate) beats: Counter,
    pub(crate) refused: Refusals,
    pub(crate) renewed: Counter,
    pub(crate) not_found: Counter,
    pub(crate) unknown: Counter,
    pub(crate) challenges: Counter,
    pub(crate) sent: Counter,
    pub(crate) unsent: Counter,
    pub(crate) sessions: Gauge,
}

impl DatagramMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let refused = Family::<ReasonLabel, Counter>::default();
        let answered = Family::<VerdictLabel, Counter>::default();
        let reason = |reason| refused.get_or_create(&ReasonLabel { reason }).clone();
        let verdict = |verdict| answered.get_or_create(&VerdictLabel { verdict }).clone();
        let metrics = Self {
            received: Counter::default(),
            beats: Counter::default(),
            refused: Refusals {
                length: reason("length"),
                magic: reason("magic"),
                version: reason("version"),
                kind: reason("kind"),
                rate: reason("rate"),
                number: reason("number"),
                not_ready: reason("not_ready"),
                forged: reason("forged"),
                replayed: reason("replayed"),
                unknown: reason("unknown"),
                full: reason("full"),
                late: reason("late"),
            },
            renewed: verdict("renewed"),
            not_found: verdict("not_found"),
            unknown: verdict("unknown"),
            challenges: Counter::default(),
            sent: Counter::default(),
            unsent: Counter::default(),
            sessions: Gauge::default(),
        };
        let datagram = registry.sub_registry_with_prefix("datagram");
        datagram.register("received", "Datagrams read", metrics.received.clone());
        let help = "Heartbeats in datagrams that were verified and passed on";
        datagram.register("beats", help, metrics.beats.clone());
        let help = "Datagrams, and heartbeats in them, that counted for nothing, by reason (number: they were told this server's; full, late: dropped)";
        datagram.register("refused", help, refused);
        let help = "Heartbeats in datagrams that were answered, by verdict";
        datagram.register("answered", help, answered);
        let help = "Clients that were told this server's number";
        datagram.register("challenges", help, metrics.challenges.clone());
        datagram.register("sent", "Datagrams sent", metrics.sent.clone());
        let help = "Datagrams that the system would not send";
        datagram.register("unsent", help, metrics.unsent.clone());
        let help = "Sessions whose heartbeats came by datagram to this server, while they live";
        datagram.register("sessions", help, metrics.sessions.clone());
        metrics
    }
}
