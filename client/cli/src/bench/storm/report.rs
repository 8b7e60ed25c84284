//! What a storm did, in figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::report::{Percentiles, Tally, errors_text};
use super::herd::Stampede;
use super::pulse::Beats;
use crate::output::table::Table;
use crate::units::bytes_text;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Settings {
    pub(super) watchers: usize,
    pub(super) connections: usize,
    pub(super) nodes: usize,
    pub(super) metadata_bytes: usize,
    pub(super) share_basis_points: u32,
    pub(super) quiet_s: f64,
    pub(super) heartbeats_per_s: f64,
    pub(super) registrations_per_s: f64,
    pub(super) sessions: usize,
    pub(super) group: String,
}

/// All runs, one for each position of the switch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StormReport {
    pub(super) bench: &'static str,
    pub(super) settings: Settings,
    pub(super) runs: Vec<Run>,
}

/// One position of the switch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) switch: &'static str,
    /// Watchers that had the list within patience.
    pub(super) current: u64,
    /// Until the last of those had it.
    pub(super) all_current_ms: f64,
    /// One value a watcher.
    pub(super) to_current_ms: Percentiles,
    /// Messages of the watch streams, as they arrived.
    pub(super) bytes: u64,
    pub(super) peak_bytes_per_100ms: u64,
    pub(super) peak_bytes_per_s: u64,
    pub(super) lists: u64,
    /// Times that a watcher was told to keep what it has.
    pub(super) kept: u64,
    /// Of watchers, which try again.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) heartbeats: Compared,
    pub(super) registrations: Compared,
}

/// Calls while it is quiet, and during the storm.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Compared {
    pub(super) quiet_ms: Percentiles,
    pub(super) storm_ms: Percentiles,
    /// The p99 of the storm, in quiet ones.
    pub(super) p99_times: f64,
    /// Calls of either span that failed or were not answered.
    pub(super) failed: u64,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Compared {
    fn new(quiet: &Tally, storm: &Tally) -> Self {
        let (quiet_ms, storm_ms) = (
            Percentiles::from(&quiet.latency),
            Percentiles::from(&storm.latency),
        );
        let mut errors = quiet.errors.clone();
        for (label, count) in &storm.errors {
            *errors.entry(label.clone()).or_default() += count;
        }
        let unanswered = quiet.unanswered + storm.unanswered;
        Self {
            p99_times: if quiet_ms.p99 > 0.0 {
                (storm_ms.p99 / quiet_ms.p99 * 100.0).round() / 100.0
            } else {
                0.0
            },
            quiet_ms,
            storm_ms,
            failed: errors.values().sum::<u64>() + unanswered,
            errors,
        }
    }

    fn text(&self) -> String {
        let failed = match self.failed {
            0 => String::new(),
            count => format!(", {count} failed: {}", errors_text(&self.errors, 0)),
        };
        format!(
            "p99 {:.3} -> {:.3} ms ({:.2} times), p50 {:.3} -> {:.3}, max {:.3} -> {:.3}, {} -> {} calls{failed}",
            self.quiet_ms.p99,
            self.storm_ms.p99,
            self.p99_times,
            self.quiet_ms.p50,
            self.storm_ms.p50,
            self.quiet_ms.max,
            self.storm_ms.max,
            self.quiet_ms.count,
            self.storm_ms.count,
        )
    }
}

impl Run {
    pub(super) fn new(switch: &'static str, quiet: &Beats, storm: &Beats, stampede: &Stampede) -> Self {
        Self {
            switch,
            current: stampede.current,
            all_current_ms: (stampede.lasted.as_secs_f64() * 1e6).round() / 1e3,
            to_current_ms: (&stampede.to_current).into(),
            bytes: stampede.egress.total(),
            peak_bytes_per_100ms: stampede.egress.peak_slice(),
            peak_bytes_per_s: stampede.egress.peak_second(),
            lists: stampede.lists,
            kept: stampede.kept,
            errors: stampede.errors.clone(),
            heartbeats: Compared::new(&quiet.heartbeats, &storm.heartbeats),
            registrations: Compared::new(&quiet.registrations, &storm.registrations),
        }
    }
}

impl StormReport {
    pub(super) fn table(&self) -> Table {
        let settings = &self.settings;
        let mut fields = vec![
            ("bench", "storm".into()),
            (
                "watchers",
                format!(
                    "{} on {} connections, of {} nodes with {} bytes of metadata",
                    settings.watchers, settings.connections, settings.nodes, settings.metadata_bytes
                ),
            ),
        ];
        for run in &self.runs {
            let current = &run.to_current_ms;
            fields.extend([
                ("switch", run.switch.into()),
                (
                    "current",
                    format!(
                        "{} of {}, p50 {:.0}  p99 {:.0}  last {:.0} ms",
                        run.current, settings.watchers, current.p50, current.p99, run.all_current_ms
                    ),
                ),
                (
                    "egress",
                    format!(
                        "{} in all, at most {} in 100 ms and {} in a second",
                        bytes_text(run.bytes),
                        bytes_text(run.peak_bytes_per_100ms),
                        bytes_text(run.peak_bytes_per_s)
                    ),
                ),
                (
                    "lists",
                    format!("{} given, {} times told to wait", run.lists, run.kept),
                ),
                ("heartbeats", run.heartbeats.text()),
                ("registrations", run.registrations.text()),
            ]);
            if !run.errors.is_empty() {
                fields.push(("errors", errors_text(&run.errors, 0)));
            }
        }
        Table::fields(fields)
    }
}
