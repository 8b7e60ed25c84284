//! What the doors count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rollcall_core::admission::Rule;

/// Which kind of call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabel {
    /// `register`, `query`, ...
    pub(crate) call: &'static str,
}

/// Which error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ErrorLabel {
    /// The error code's name.
    pub(crate) code: &'static str,
}

/// By which rule of an admission list, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct NotAdmittedLabel {
    /// `address`, `scope`, `environment`.
    pub(crate) rule: &'static str,
    /// `refused`, or `reported` by a dry run.
    pub(crate) verdict: &'static str,
}

/// Counters of what comes on streams, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct StreamCalls {
    pub(crate) open: Counter,
    pub(crate) attach: Counter,
    pub(crate) renew: Counter,
    pub(crate) register: Counter,
    pub(crate) deregister: Counter,
    pub(crate) update: Counter,
    pub(crate) close: Counter,
    pub(crate) query: Counter,
}

impl StreamCalls {
    fn of(calls: &Family<CallLabel, Counter>) -> Self {
        let counter = |call| calls.get_or_create(&CallLabel { call }).clone();
        Self {
            open: counter("open"),
            attach: counter("attach"),
            renew: counter("renew"),
            register: counter("register"),
            deregister: counter("deregister"),
            update: counter("update"),
            close: counter("close"),
            query: counter("query"),
        }
    }
}

/// What the doors count. Cheap to clone: the counters are shared.
#[derive(Clone, Debug)]
pub struct DoorsMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) calls: Family<CallLabel, Counter>,
    pub(crate) stream_calls: StreamCalls,
    pub(crate) errors: Family<ErrorLabel, Counter>,
    pub(crate) write_seconds: Histogram,
    pub(crate) renew_seconds: Histogram,
    pub(crate) session_streams: Gauge,
    pub(crate) discover_streams: Gauge,
    pub(crate) not_admitted: Family<NotAdmittedLabel, Counter>,
}

impl DoorsMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let buckets = || exponential_buckets(0.000_25, 2.0, 16);
        let calls = Family::default();
        let metrics = Self {
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            stream_calls: StreamCalls::of(&calls),
            calls,
            errors: Family::default(),
            write_seconds: Histogram::new(buckets()),
            renew_seconds: Histogram::new(buckets()),
            session_streams: Gauge::default(),
            discover_streams: Gauge::default(),
            not_admitted: Family::default(),
        };
        let doors = registry.sub_registry_with_prefix("doors");
        doors.register(
            "connections",
            "Open client connections",
            metrics.connections.clone(),
        );
        let help = "Connections refused: too many, or too many from one address";
        doors.register("connections_refused", help, metrics.connections_refused.clone());
        doors.register(
            "calls",
            "Calls taken, unary and on streams",
            metrics.calls.clone(),
        );
        doors.register("errors", "Calls answered with an error", metrics.errors.clone());
        doors.register(
            "write_seconds",
            "From a write's arrival to its answer",
            metrics.write_seconds.clone(),
        );
        doors.register(
            "renew_seconds",
            "From a heartbeat's arrival to its answer",
            metrics.renew_seconds.clone(),
        );
        doors.register(
            "session_streams",
            "Open session streams",
            metrics.session_streams.clone(),
        );
        doors.register(
            "discover_streams",
            "Open streams of queries",
            metrics.discover_streams.clone(),
        );
        let help =
            "Registrations that a group's admission list did not admit, by rule and by what came of it";
        doors.register("not_admitted", help, metrics.not_admitted.clone());
        metrics
    }

    pub(crate) fn call(&self, call: &'static str) {
        self.calls.get_or_create(&CallLabel { call }).inc();
    }

    pub(crate) fn not_admitted(&self, rule: Rule, dry_run: bool) {
        let rule = match rule {
            Rule::Address => "address",
            Rule::Scope => "scope",
            Rule::Environment => "environment",
        };
        let verdict = if dry_run { "reported" } else { "refused" };
        self.not_admitted
            .get_or_create(&NotAdmittedLabel { rule, verdict })
            .inc();
    }

    pub(crate) fn error(&self, error: &rollcall_proto::v1::Error) {
        self.errors
            .get_or_create(&ErrorLabel {
                code: error.code().as_str_name(),
            })
            .inc();
    }
}
