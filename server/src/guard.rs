//! Counts what removal guards did, from the change log. Every server counts what it applied itself, so the figures
//! are read from one server, not added up.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rollcall_core::directory::{GuardEvent, NodeChange, RemovalCause, RevisionChanges, SessionChange};
use rollcall_core::ids::Revision;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::{AppliedHead, SharedDirectory};

/// Most revisions looked at in one go.
const REVISIONS_MAX: usize = 256;

/// What became of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabel {
    /// `removed`, `held`, `revived` or `confirmed`.
    fate: &'static str,
}

/// What removal guards did. Cheap to clone: the counters are shared.
#[derive(Clone, Debug, Default)]
pub struct GuardMetrics {
    nodes: Family<FateLabel, Counter>,
    engaged: Counter,
}

impl GuardMetrics {
    /// Declares them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let guard = registry.sub_registry_with_prefix("guard");
        let help = "Nodes that lapsed away (removed), were held as suspects instead (held), were heard from again \
                    (revived), or left by an operator's confirmation (confirmed), since the start";
        guard.register("nodes", help, metrics.nodes.clone());
        for fate in ["removed", "held", "revived", "confirmed"] {
            metrics.add(fate, 0);
        }
        let help = "Times that a removal guard engaged, since the start";
        guard.register("engagements", help, metrics.engaged.clone());
        metrics
    }

    /// Follows a directory until `shutdown`. Changes that were no longer retained when it came to look are not
    /// counted.
    pub async fn follow(
        self,
        directory: Arc<SharedDirectory>,
        mut applied: watch::Receiver<AppliedHead>,
        shutdown: CancellationToken,
    ) {
        let mut seen = directory.read().revision();
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = applied.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            applied.mark_unchanged();
            while self.count_behind(&directory, &mut seen) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Counts a piece of what came behind `seen`; whether there is more.
    fn count_behind(&self, directory: &SharedDirectory, seen: &mut Revision) -> bool {
        let (changes, head) = {
            let directory = directory.read();
            (
                directory.changes().range(*seen, REVISIONS_MAX),
                directory.revision(),
            )
        };
        match changes {
            Ok(changes) => {
                changes.iter().for_each(|changes| self.count(changes));
                *seen = changes.last().map_or(*seen, |last| last.revision);
            }
            Err(_) => *seen = head,
        }
        *seen < head
    }

    fn count(&self, changes: &RevisionChanges) {
        for session in &changes.sessions {
            match session {
                SessionChange::Lapsed { held, .. } => self.add("held", *held),
                SessionChange::Revived { held, .. } => self.add("revived", *held),
                SessionChange::Opened { .. } | SessionChange::Ended { .. } => {}
            }
        }
        let mut confirmed = Vec::new();
        for guard in &changes.guards {
            match guard.event {
                GuardEvent::Engaged => _ = self.engaged.inc(),
                GuardEvent::Confirmed { .. } => confirmed.push(&guard.service),
                GuardEvent::Disengaged(_) | GuardEvent::Changed => {}
            }
        }
        for service in &changes.services {
            let removed = |wanted: RemovalCause| {
                let with_cause = |node: &&NodeChange| matches!(node, NodeChange::Removed { cause, .. } if *cause == wanted);
                service.nodes.iter().filter(with_cause).count()
            };
            self.add("removed", removed(RemovalCause::Expired));
            if confirmed.contains(&&service.key) {
                self.add("confirmed", removed(RemovalCause::Deregistered));
            }
        }
    }

    fn add(&self, fate: &'static str, nodes: usize) {
        self.nodes.get_or_create(&FateLabel { fate }).inc_by(nodes as u64);
    }
}
