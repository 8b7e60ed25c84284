//! Watchers, one per server, that only ever talk to that server and speak the wire contract themselves. They
//! check the watch's guarantees frame by frame and tell when each server's watchers saw a node come or go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_jepsen::lab::watching::{Mirror, Told, Watching};
use rollcall_jepsen::lab::{NotInTime, Timeline, eventually};
use tokio::task::AbortHandle;

use crate::truth::{Fate, Truth};

/// Pause before a broken stream is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(50);

/// Services whose coming and going is not told one by one: there is too much of it.
pub(crate) const QUIET_SERVICE: &str = "ledger";

/// What one watcher has seen. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    server: u64,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    mirror: Mirror,
    /// By node: when it was first and last seen put, and when it was last seen removed.
    removed_at: BTreeMap<String, Instant>,
    put_at: BTreeMap<String, Instant>,
    draining_at: BTreeMap<String, Instant>,
    changes: u64,
    reopened: u64,
    resumed_by_state: u64,
    broken: Vec<String>,
}

/// What a witness can say at the end.
#[derive(Clone, Debug)]
pub(crate) struct Testimony {
    pub(crate) server: u64,
    pub(crate) changes: u64,
    pub(crate) reopened: u64,
    pub(crate) states_instead_of_changes: u64,
    pub(crate) broken_guarantees: Vec<String>,
}

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct Witnessing(AbortHandle);

impl Drop for Witnessing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Witness {
    /// Watches `group` at the server at `address`.
    pub(crate) fn start(
        server: u64,
        address: String,
        group: &str,
        truth: Truth,
        timeline: Timeline,
    ) -> (Self, Witnessing) {
        let witness = Self {
            server,
            seen: Arc::default(),
        };
        let task = witness.clone().watch(address, group.to_owned(), truth, timeline);
        let handle = tokio::spawn(task).abort_handle();
        (witness, Witnessing(handle))
    }

    async fn watch(self, address: String, group: String, truth: Truth, timeline: Timeline) {
        loop {
            let after = self.seen.lock().mirror.revision();
            if let Ok(watching) = Watching::group(&address, &group, after).await {
                self.follow(watching, &truth, &timeline).await;
                self.seen.lock().reopened += 1;
            }
            tokio::time::sleep(REOPEN_AFTER).await;
        }
    }

    /// Until the stream breaks, or breaks a guarantee.
    async fn follow(&self, mut watching: Watching, truth: &Truth, timeline: &Timeline) {
        while let Ok(frame) = watching.next().await {
            let told = {
                let mut seen = self.seen.lock();
                match seen.mirror.take(frame) {
                    Ok(told) => told,
                    Err(broken) => {
                        timeline.note(&self.name(), format!("GUARANTEE BROKEN: {broken:#}"));
                        seen.broken.push(format!("{broken:#}"));
                        seen.mirror = Mirror::default();
                        return;
                    }
                }
            };
            if let Some(told) = told {
                self.tell(&told, truth, timeline);
            }
        }
    }

    fn tell(&self, told: &Told, truth: &Truth, timeline: &Timeline) {
        let now = Instant::now();
        let quiet = told.service.ends_with(&format!("/{QUIET_SERVICE}"));
        let mut seen = self.seen.lock();
        seen.changes += 1;
        if !told.as_delta {
            seen.resumed_by_state += 1;
        }
        for node in &told.put {
            let key = format!("{}/{}", told.service, node.id);
            if node.state() == rollcall_proto::v1::NodeState::Draining {
                seen.draining_at.entry(key.clone()).or_insert(now);
            }
            let new = seen.put_at.insert(key, now).is_none();
            if new && !quiet {
                timeline.note_at(now, &self.name(), format!("{} is listed", node.id));
            }
        }
        for (id, cause) in &told.removed {
            let key = format!("{}/{id}", told.service);
            let cause = cause.map_or("found missing".to_owned(), |cause| {
                cause
                    .as_str_name()
                    .trim_start_matches("REMOVAL_CAUSE_")
                    .to_lowercase()
            });
            seen.removed_at.insert(key.clone(), now);
            seen.put_at.remove(&key);
            let wrong = truth.judge_removal(&key, &self.name(), &cause);
            if wrong {
                timeline.note_at(
                    now,
                    &self.name(),
                    format!("{key} is gone ({cause}): WRONG, it lives"),
                );
            } else if !quiet {
                let after = match truth.fate(&key) {
                    Some(Fate::Killed(at)) => {
                        format!(", {:.2} s after it was killed", (now - at).as_secs_f64())
                    }
                    Some(Fate::Leaving(at)) => {
                        format!(", {:.2} s after it was told to leave", (now - at).as_secs_f64())
                    }
                    Some(Fate::Alive) | None => String::new(),
                };
                timeline.note_at(now, &self.name(), format!("{id} is gone ({cause}{after})"));
            }
        }
    }

    fn name(&self) -> String {
        format!("watcher {}", self.server)
    }

    /// Waits until this witness lists `node` (named `group/service/id`).
    pub(crate) async fn wait_listed(&self, node: &str, bound: Duration) -> Result<(), NotInTime> {
        let what = format!("{node} on the list of {}", self.name());
        eventually(&what, bound, || async {
            self.seen.lock().put_at.contains_key(node).then_some(())
        })
        .await
    }

    /// Waits until this witness has seen `node` removed; returns when it did.
    pub(crate) async fn wait_removed(&self, node: &str, bound: Duration) -> Result<Instant, NotInTime> {
        let what = format!("{node} off the list of {}", self.name());
        eventually(&what, bound, || async {
            self.seen.lock().removed_at.get(node).copied()
        })
        .await
    }

    /// Waits until everything up to `revision` was told.
    pub(crate) async fn wait_revision(&self, revision: u64, bound: Duration) -> Result<(), NotInTime> {
        let what = format!("revision {revision} at {}", self.name());
        eventually(&what, bound, || async {
            (self.seen.lock().mirror.revision() >= revision).then_some(())
        })
        .await
    }

    /// The ids it lists of a service (named `group/service`).
    pub(crate) fn listed(&self, service: &str) -> Vec<String> {
        self.seen
            .lock()
            .mirror
            .nodes(service)
            .map(|node| node.id.clone())
            .collect()
    }

    pub(crate) fn testimony(&self) -> Testimony {
        let seen = self.seen.lock();
        Testimony {
            server: self.server,
            changes: seen.changes,
            reopened: seen.reopened,
            states_instead_of_changes: seen.resumed_by_state,
            broken_guarantees: seen.broken.clone(),
        }
    }
}
