//! Logs to standard error, and the registry of metrics.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::ap::{Ap, ApMetrics};
use crate::config::{LogConfig, LogFormat};
use crate::datagram::DatagramMetrics;
use crate::gossip::GossipMetrics;
use crate::grpc::DoorsMetrics;
use crate::guard::GuardMetrics;
use crate::raft::{Consensus, MemberRole};
use crate::session::Holder;
use crate::storm::StormMetrics;
use crate::watch::ModesMetrics;

/// Every metric's name begins with this.
const PREFIX: &str = "rollcall";

/// Starts logging. Later calls in the same process change nothing.
///
/// # Errors
/// The filter does not parse; nothing was started.
pub fn start_logging(config: &LogConfig) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // It fails only where another subscriber is set already, as in tests.
    let _ = match config.format {
        LogFormat::Text => subscriber
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The metrics of every shell, and where they are collected.
#[derive(Debug)]
pub struct Metrics {
    /// All of them.
    pub registry: Registry,
    /// The watch hubs'.
    pub watch: ModesMetrics,
    /// Gossip's.
    pub gossip: GossipMetrics,
    /// AP groups'.
    pub ap: ApMetrics,
    /// The storm switch's.
    pub storm: StormMetrics,
    /// The removal guards'.
    pub guard: GuardMetrics,
    /// The client doors'.
    pub doors: DoorsMetrics,
    /// Heartbeats by datagram.
    pub datagram: DatagramMetrics,
    /// Replication's and the directory's.
    pub gauges: ServerGauges,
}

impl Metrics {
    /// Declares every metric, once.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("server_build", "The program", build);
        Self {
            watch: ModesMetrics::register(&mut registry),
            gossip: GossipMetrics::register(&mut registry),
            ap: ApMetrics::register(&mut registry),
            storm: StormMetrics::register(&mut registry),
            guard: GuardMetrics::register(&mut registry),
            doors: DoorsMetrics::register(&mut registry),
            datagram: DatagramMetrics::register(&mut registry),
            gauges: ServerGauges::register(&mut registry),
            registry,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What is read off the server when metrics are collected.
#[derive(Clone, Debug, Default)]
pub struct ServerGauges {
    leading: Gauge,
    leader_known: Gauge,
    loaded: Gauge,
    diverged: Gauge,
    disk_full: Gauge,
    vote_withheld: Gauge,
    term: Gauge,
    last_log_index: Gauge,
    committed_index: Gauge,
    applied_index: Gauge,
    snapshot_index: Gauge,
    revision: Gauge,
    groups: Gauge,
    services: Gauge,
    nodes: Gauge,
    guard_engaged: Gauge,
    guard_held: Gauge,
    sessions: Gauge,
    sessions_held: Gauge,
    reports: Gauge,
    reports_failed: Gauge,
    retained_revisions: Gauge,
}

impl ServerGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        let raft = registry.sub_registry_with_prefix("raft");
        raft.register("leading", "1 if this server leads", gauges.leading.clone());
        raft.register(
            "leader_known",
            "1 if a leader is heard; if this server leads, a quorum",
            gauges.leader_known.clone(),
        );
        raft.register(
            "loaded",
            "1 if the directory has been loaded",
            gauges.loaded.clone(),
        );
        raft.register(
            "diverged",
            "1 if the state differs from the leader's",
            gauges.diverged.clone(),
        );
        raft.register(
            "disk_full",
            "1 if writes wait for disk space",
            gauges.disk_full.clone(),
        );
        raft.register(
            "vote_withheld",
            "1 if it must catch up before it votes",
            gauges.vote_withheld.clone(),
        );
        raft.register("term", "Current term", gauges.term.clone());
        raft.register(
            "last_log_index",
            "Last entry of the log",
            gauges.last_log_index.clone(),
        );
        raft.register(
            "committed_index",
            "Last entry known to be committed",
            gauges.committed_index.clone(),
        );
        raft.register(
            "applied_index",
            "Last entry applied",
            gauges.applied_index.clone(),
        );
        raft.register(
            "snapshot_index",
            "Last entry in the snapshot",
            gauges.snapshot_index.clone(),
        );
        let directory = registry.sub_registry_with_prefix("directory");
        directory.register("revision", "The directory's revision", gauges.revision.clone());
        directory.register("groups", "Groups", gauges.groups.clone());
        directory.register("services", "Services", gauges.services.clone());
        let help = "Nodes; of AP groups those that this server lists; twice while their group moves";
        directory.register("nodes", help, gauges.nodes.clone());
        let help = "Revisions that watches can resume behind";
        directory.register("retained_revisions", help, gauges.retained_revisions.clone());
        let guard = registry.sub_registry_with_prefix("guard");
        let help =
            "Services whose removal guard is engaged, in AP groups this server's own: nothing lapses away";
        guard.register("engaged_services", help, gauges.guard_engaged.clone());
        let help = "Lapsed nodes that removal guards hold as suspects";
        guard.register("held_nodes", help, gauges.guard_held.clone());
        let session = registry.sub_registry_with_prefix("session");
        session.register("open", "Sessions of the cluster", gauges.sessions.clone());
        session.register(
            "held",
            "Sessions with a stream on this server",
            gauges.sessions_held.clone(),
        );
        let help = "Renewal reports that the leader answered, since the start; \
                    near 0 on a server that is the whole cluster: what it hears it records itself";
        session.register("reports_answered", help, gauges.reports.clone());
        let help = "Renewal reports that reached no leader, since the start";
        session.register("reports_unanswered", help, gauges.reports_failed.clone());
        gauges
    }
}

/// Brings [`ServerGauges`] up to date. Cheap to clone.
#[derive(Clone)]
pub struct ServerMetrics {
    gauges: ServerGauges,
    consensus: Consensus,
    ap: Ap,
    holder: Holder,
}

impl ServerMetrics {
    /// Reads off these.
    #[must_use]
    pub fn new(gauges: ServerGauges, consensus: Consensus, ap: Ap, holder: Holder) -> Self {
        Self {
            gauges,
            consensus,
            ap,
            holder,
        }
    }

    /// Reads everything off the server, without a quorum.
    pub fn refresh(&self) {
        let gauges = &self.gauges;
        let status = self.consensus.status();
        gauges.leading.set((status.role == MemberRole::Leader).into());
        gauges.leader_known.set(self.consensus.hears_leader().into());
        gauges.loaded.set(status.loaded.into());
        gauges.diverged.set(status.diverged.into());
        gauges.disk_full.set(status.disk_full.into());
        gauges.vote_withheld.set(status.vote_withheld.into());
        gauges.term.set(signed(status.leadership.term.0));
        gauges
            .last_log_index
            .set(signed(status.last_log_index.map_or(0, |index| index.0)));
        gauges
            .committed_index
            .set(signed(status.committed_index.map_or(0, |index| index.0)));
        gauges.applied_index.set(signed(
            status.applied.position.map_or(0, |position| position.index.0),
        ));
        gauges
            .snapshot_index
            .set(signed(status.snapshot_index.map_or(0, |index| index.0)));
        self.refresh_directory();
        self.ap.refresh_metrics();
        let (answered, unanswered) = self.holder.reports();
        gauges.sessions_held.set(signed(self.holder.held() as u64));
        gauges.reports.set(signed(answered));
        gauges.reports_failed.set(signed(unanswered));
    }

    fn refresh_directory(&self) {
        let gauges = &self.gauges;
        // One after the other: whoever writes to the one waits for nobody who waits for the other.
        let of_ap = self.ap.view().read().totals();
        let directory = self.consensus.directory().read();
        gauges.revision.set(signed(directory.revision().0));
        let totals = directory.totals();
        gauges.groups.set(signed(totals.groups));
        gauges.services.set(signed(totals.services));
        gauges.nodes.set(signed(totals.nodes + of_ap.nodes));
        gauges.guard_engaged.set(signed(totals.engaged + of_ap.engaged));
        gauges.guard_held.set(signed(totals.held + of_ap.held));
        gauges.sessions.set(signed(totals.sessions));
        gauges
            .retained_revisions
            .set(signed(directory.changes().len() as u64));
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn metric_names_are_unique_and_well_formed() {
        let metrics = Metrics::new();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let unique: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        for name in names {
            assert!(
                name.starts_with("rollcall_") && name.split('_').count() >= 3,
                "{name}"
            );
        }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_refused() {
        let config = LogConfig {
            filter: "rollcall=loud".into(),
            ..LogConfig::default()
        };
        assert!(start_logging(&config).is_err());
    }
}
