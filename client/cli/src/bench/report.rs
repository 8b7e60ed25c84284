//! What a bench found: HDR histograms added up, printed as a table or as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::server_process::{Meter, Spent};
use crate::exit::Failure;
use crate::output::Printer;
use crate::output::table::Table;

/// Longest latency told apart, in nanoseconds: ten minutes.
const NANOS_MAX: u64 = 600_000_000_000;
/// Significant digits.
const DIGITS: u8 = 3;

/// A histogram of nanoseconds from 1 ns to ten minutes; longer ones count as ten minutes.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, DIGITS).expect("the bounds are fixed and valid")
}

/// Adds one duration.
pub(crate) fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(
        u64::try_from(took.as_nanos())
            .unwrap_or(NANOS_MAX)
            .clamp(1, NANOS_MAX),
    );
}

/// What one lane, or all of them, did.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// What the answered calls did in all: nodes, sessions, services.
    pub(crate) items: u64,
    pub(crate) unanswered: u64,
    pub(crate) unsent: u64,
    pub(crate) late: u64,
    pub(crate) late_max: Duration,
    pub(crate) errors: BTreeMap<String, u64>,
    /// From when a call was due.
    pub(crate) latency: Histogram<u64>,
    /// From when it was sent.
    pub(crate) service: Histogram<u64>,
    pub(crate) elapsed: Duration,
    /// Connections that were lost before their lane was done.
    pub(crate) broken_off: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            sent: 0,
            answered: 0,
            items: 0,
            unanswered: 0,
            unsent: 0,
            late: 0,
            late_max: Duration::ZERO,
            errors: BTreeMap::new(),
            latency: histogram(),
            service: histogram(),
            elapsed: Duration::ZERO,
            broken_off: 0,
        }
    }

    pub(crate) fn answered(&mut self, from_due: Duration, from_sent: Duration, items: u64) {
        self.answered += 1;
        self.items += items;
        record(&mut self.latency, from_due);
        record(&mut self.service, from_sent);
    }

    pub(crate) fn failed(&mut self, label: String) {
        *self.errors.entry(label).or_default() += 1;
    }

    pub(crate) fn late(&mut self, lateness: Duration) {
        self.late += 1;
        self.late_max = self.late_max.max(lateness);
    }

    /// Lanes that ran side by side: counts add up, the longest time counts.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.items += other.items;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
        self.late += other.late;
        self.late_max = self.late_max.max(other.late_max);
        for (label, count) in &other.errors {
            *self.errors.entry(label.clone()).or_default() += count;
        }
        self.latency
            .add(&other.latency)
            .expect("all histograms have the same bounds");
        self.service
            .add(&other.service)
            .expect("all histograms have the same bounds");
        self.elapsed = self.elapsed.max(other.elapsed);
        self.broken_off += other.broken_off;
    }
}

/// Percentiles in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    #[serde(rename = "p99.9")]
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl From<&Histogram<u64>> for Percentiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        let quantile = |q: f64| millis(histogram.value_at_quantile(q) as f64);
        Self {
            count: histogram.len(),
            mean: millis(histogram.mean()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: millis(histogram.max() as f64),
        }
    }
}

/// Milliseconds to the microsecond.
fn millis(nanos: f64) -> f64 {
    (nanos / 1_000.0).round() / 1_000.0
}

/// Calls, by what became of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Calls {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) unanswered: u64,
    /// Scheduled, but never sent for want of room.
    pub(crate) unsent: u64,
    /// Sent later than scheduled.
    pub(crate) late: u64,
    pub(crate) late_max_ms: f64,
}

/// The report of a bench that makes calls.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report<S: Serialize> {
    pub(crate) bench: &'static str,
    pub(crate) r#loop: &'static str,
    pub(crate) settings: S,
    pub(crate) elapsed_s: f64,
    pub(crate) calls: Calls,
    pub(crate) calls_per_s: f64,
    /// What an item is: nodes, sessions, nodes read.
    pub(crate) item: &'static str,
    pub(crate) items: u64,
    pub(crate) items_per_s: f64,
    /// Connections that were lost on the way; what they would have sent is missing.
    pub(crate) connections_lost: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    /// From when a call was due, which in a closed loop is when it was sent.
    pub(crate) latency_ms: Percentiles,
    /// From when a call was sent.
    pub(crate) service_ms: Percentiles,
    /// What the servers spent on it, if their processes were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) servers: Option<Spent>,
}

impl<S: Serialize> Report<S> {
    pub(crate) fn new(
        bench: &'static str,
        open: bool,
        item: &'static str,
        settings: S,
        tally: &Tally,
    ) -> Self {
        let seconds = tally.elapsed.as_secs_f64();
        Self {
            bench,
            r#loop: if open { "open" } else { "closed" },
            settings,
            elapsed_s: (seconds * 1e6).round() / 1e6,
            calls: Calls {
                sent: tally.sent,
                answered: tally.answered,
                failed: tally.errors.values().sum(),
                unanswered: tally.unanswered,
                unsent: tally.unsent,
                late: tally.late,
                late_max_ms: millis(tally.late_max.as_nanos() as f64),
            },
            calls_per_s: per_second(tally.answered, seconds),
            item,
            items: tally.items,
            items_per_s: per_second(tally.items, seconds),
            connections_lost: tally.broken_off,
            errors: tally.errors.clone(),
            latency_ms: (&tally.latency).into(),
            service_ms: (&tally.service).into(),
            servers: None,
        }
    }

    /// The same with what the servers spent.
    pub(crate) fn with_servers(self, meter: &Meter) -> Self {
        let servers = meter.spent(self.calls.answered, self.items);
        Self { servers, ..self }
    }

    /// On stdout. A bench of which no call was answered has failed, and so has
    /// one that lost connections.
    pub(crate) fn print(&self, printer: &Printer) -> Result<(), Failure> {
        printer.print(self, || self.table())?;
        if self.calls.answered == 0 {
            return Err(Failure::failed(format!(
                "no call was answered: {}",
                errors_text(&self.errors, self.calls.unanswered)
            )));
        }
        if self.connections_lost > 0 {
            return Err(Failure::unavailable(format!(
                "{} connections were lost on the way, so the figures are not those of the whole load",
                self.connections_lost
            )));
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut fields = vec![
            ("bench", format!("{}, {} loop", self.bench, self.r#loop)),
            ("elapsed", format!("{:.3} s", self.elapsed_s)),
            (
                "calls",
                format!("{} sent, {} answered", self.calls.sent, self.calls.answered),
            ),
            (
                "rate",
                format!(
                    "{:.1} calls/s, {:.1} {}/s",
                    self.calls_per_s, self.items_per_s, self.item
                ),
            ),
        ];
        if self.calls.failed + self.calls.unanswered > 0 {
            fields.push(("errors", errors_text(&self.errors, self.calls.unanswered)));
        }
        if self.r#loop == "open" {
            fields.push((
                "schedule",
                format!(
                    "{} late (at most {:.3} ms), {} never sent",
                    self.calls.late, self.calls.late_max_ms, self.calls.unsent
                ),
            ));
        }
        fields.push(("latency", percentiles_text(&self.latency_ms)));
        if self.r#loop == "open" {
            fields.push(("service", percentiles_text(&self.service_ms)));
        }
        if let Some(spent) = &self.servers {
            fields.push(("servers", spent.text(self.item)));
        }
        Table::fields(fields)
    }
}

/// So many a second; 0 if no time has passed.
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        (count as f64 / seconds * 10.0).round() / 10.0
    } else {
        0.0
    }
}

/// All on one line.
pub(crate) fn percentiles_text(ms: &Percentiles) -> String {
    format!(
        "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}  mean {:.3} ms",
        ms.p50, ms.p90, ms.p99, ms.p999, ms.max, ms.mean
    )
}

/// `3 overloaded, 1 unanswered`.
pub(crate) fn errors_text(errors: &BTreeMap<String, u64>, unanswered: u64) -> String {
    let mut words: Vec<String> = errors
        .iter()
        .map(|(label, count)| format!("{count} {label}"))
        .collect();
    if unanswered > 0 {
        words.push(format!("{unanswered} unanswered"));
    }
    if words.is_empty() {
        "none".into()
    } else {
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_three_digits() {
        let mut histogram = histogram();
        for micros in 1..=1_000u64 {
            record(&mut histogram, Duration::from_micros(micros));
        }
        let ms = Percentiles::from(&histogram);
        let close = |value: f64, wanted: f64| (value - wanted).abs() <= wanted * 0.001 + 0.001;
        assert!(
            close(ms.p50, 0.5) && close(ms.p90, 0.9) && close(ms.p99, 0.99),
            "{ms:?}"
        );
        assert!(
            close(ms.p999, 0.999) && close(ms.max, 1.0) && close(ms.mean, 0.5005),
            "{ms:?}"
        );
        assert_eq!(ms.count, 1_000);
    }

    #[test]
    fn the_extremes_are_kept_within_bounds() {
        let mut histogram = histogram();
        record(&mut histogram, Duration::ZERO);
        record(&mut histogram, Duration::from_secs(3_600));
        assert_eq!(histogram.len(), 2);
        assert!(histogram.max() >= NANOS_MAX && histogram.max() < NANOS_MAX / 100 * 101);
    }

    #[test]
    fn lanes_add_up() {
        let mut all = Tally::new();
        for lane in 1..=2u32 {
            let mut tally = Tally::new();
            tally.sent = 10;
            tally.elapsed = Duration::from_secs(lane.into());
            for _ in 0..9 {
                tally.answered(Duration::from_millis(2), Duration::from_millis(1), 5);
            }
            tally.failed("overloaded".into());
            tally.late(Duration::from_millis(lane.into()));
            all.merge(&tally);
        }
        let report = Report::new("register", true, "nodes", (), &all);
        assert_eq!(
            (report.calls.sent, report.calls.answered, report.calls.failed),
            (20, 18, 2)
        );
        assert_eq!(
            (report.items, report.items_per_s, report.calls_per_s),
            (90, 45.0, 9.0)
        );
        assert_eq!((report.calls.late, report.calls.late_max_ms), (2, 2.0));
        assert_eq!(report.latency_ms.count, 18);
    }

    #[test]
    fn the_json_names_are_stable() {
        let mut tally = Tally::new();
        tally.sent = 1;
        tally.elapsed = Duration::from_secs(1);
        tally.answered(Duration::from_millis(1), Duration::from_millis(1), 1);
        let json = serde_json::to_value(Report::new("renew", false, "sessions", (), &tally)).unwrap();
        for pointer in [
            "/bench",
            "/loop",
            "/settings",
            "/elapsed_s",
            "/calls/sent",
            "/calls/answered",
            "/calls/failed",
            "/calls/unanswered",
            "/calls/unsent",
            "/calls/late",
            "/calls/late_max_ms",
            "/calls_per_s",
            "/item",
            "/items",
            "/items_per_s",
            "/connections_lost",
            "/errors",
            "/latency_ms/count",
            "/latency_ms/mean",
            "/latency_ms/p50",
            "/latency_ms/p90",
            "/latency_ms/p99",
            "/latency_ms/p99.9",
            "/latency_ms/max",
            "/service_ms/p50",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer} is missing");
        }
    }

    #[test]
    fn errors_read_as_a_list() {
        let errors = BTreeMap::from([("overloaded".to_owned(), 3)]);
        assert_eq!(errors_text(&errors, 1), "3 overloaded, 1 unanswered");
        assert_eq!(errors_text(&BTreeMap::new(), 0), "none");
    }
}
