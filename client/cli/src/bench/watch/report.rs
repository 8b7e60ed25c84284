//! What a run is summed up in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::report::{Percentiles, Tally, errors_text, per_second, percentiles_text};
use super::super::server_process::{Meter, Spent};
use super::board::Board;
use crate::output::table::Table;

/// What was seen.
pub(super) struct Measured {
    pub(super) board: Arc<Board>,
    pub(super) tally: Tally,
    pub(super) each: Histogram<u64>,
    pub(super) elapsed: Duration,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Settings {
    pub(super) watchers: usize,
    pub(super) connections: usize,
    pub(super) changes: usize,
    pub(super) rate: Option<f64>,
    pub(super) metadata_bytes: usize,
    pub(super) group: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct FanoutReport {
    bench: &'static str,
    r#loop: &'static str,
    settings: Settings,
    elapsed_s: f64,
    pub(super) changes: ChangeCounts,
    deliveries: u64,
    deliveries_per_s: f64,
    /// Watchers that were sent the current state because they could not keep up.
    lagged_snapshots: u64,
    /// Watch streams that ended too early.
    watchers_lost: u64,
    pub(super) errors: std::collections::BTreeMap<String, u64>,
    /// A change's sending (or due time) to its answer.
    write_ms: Percentiles,
    /// A change's sending (or due time) to the last watcher; one value a change.
    last_watcher_from_send_ms: Percentiles,
    /// A change's answer to the last watcher; one value a change.
    last_watcher_from_answer_ms: Percentiles,
    /// A change's sending (or due time) to a watcher; one value a delivery.
    each_watcher_from_send_ms: Percentiles,
    /// What the servers spent on it, if their processes were named; a call is a change, an item a delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<Spent>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ChangeCounts {
    wanted: u64,
    sent: u64,
    answered: u64,
    /// Seen by every watcher.
    pub(super) complete: u64,
    late: u64,
    unsent: u64,
}

impl FanoutReport {
    pub(super) fn new(settings: Settings, measured: &Measured, meter: &Meter) -> Self {
        let Measured {
            board,
            tally,
            each,
            elapsed,
        } = measured;
        let (from_send, from_answer) = board.last_watcher();
        Self {
            bench: "watch",
            r#loop: if settings.rate.is_some() { "open" } else { "closed" },
            elapsed_s: (elapsed.as_secs_f64() * 1e6).round() / 1e6,
            changes: ChangeCounts {
                wanted: settings.changes as u64,
                sent: tally.sent,
                answered: tally.answered,
                complete: board.complete.load(Ordering::Acquire) as u64,
                late: tally.late,
                unsent: tally.unsent,
            },
            deliveries: each.len(),
            deliveries_per_s: per_second(each.len(), elapsed.as_secs_f64()),
            lagged_snapshots: board.lagged.load(Ordering::Relaxed),
            watchers_lost: board.lost.load(Ordering::Relaxed),
            errors: tally.errors.clone(),
            write_ms: (&tally.latency).into(),
            last_watcher_from_send_ms: (&from_send).into(),
            last_watcher_from_answer_ms: (&from_answer).into(),
            each_watcher_from_send_ms: each.into(),
            settings,
            servers: meter.spent(board.complete.load(Ordering::Acquire) as u64, each.len()),
        }
    }

    pub(super) fn table(&self) -> Table {
        let changes = &self.changes;
        let mut fields = vec![
            ("bench", format!("watch, {} loop", self.r#loop)),
            (
                "watchers",
                format!(
                    "{} on {} connections",
                    self.settings.watchers, self.settings.connections
                ),
            ),
            ("elapsed", format!("{:.3} s", self.elapsed_s)),
            (
                "changes",
                format!(
                    "{} sent, {} answered, {} seen by all",
                    changes.sent, changes.answered, changes.complete
                ),
            ),
            (
                "deliveries",
                format!("{}, {:.1}/s", self.deliveries, self.deliveries_per_s),
            ),
        ];
        if self.r#loop == "open" {
            fields.push((
                "schedule",
                format!("{} late, {} never sent", changes.late, changes.unsent),
            ));
        }
        if !self.errors.is_empty() {
            fields.push(("errors", errors_text(&self.errors, 0)));
        }
        if self.lagged_snapshots + self.watchers_lost > 0 {
            fields.push((
                "laggards",
                format!(
                    "{} snapshots for want of pace, {} streams lost",
                    self.lagged_snapshots, self.watchers_lost
                ),
            ));
        }
        fields.push(("write", percentiles_text(&self.write_ms)));
        fields.push((
            "last watcher, from send",
            percentiles_text(&self.last_watcher_from_send_ms),
        ));
        fields.push((
            "last watcher, from answer",
            percentiles_text(&self.last_watcher_from_answer_ms),
        ));
        fields.push((
            "each watcher, from send",
            percentiles_text(&self.each_watcher_from_send_ms),
        ));
        if let Some(spent) = &self.servers {
            fields.push(("servers", spent.text("deliveries")));
        }
        Table::fields(fields)
    }
}
