//! What all watches of a handle share, and the tasks that serve them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::loads::{self, Loads};
use super::state::State;
use super::stream;
use super::target::WatchTarget;
use crate::config::RegistryConfig;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::key::ServiceKey;
use crate::snapshot::SnapshotFolder;
use crate::view::{ServiceView, Source};

/// How long a disk snapshot is waited for: the folder may be another machine's.
const LOAD_WAIT: Duration = Duration::from_millis(500);

/// A handle on the shared part; the last one ends the tasks.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(super) shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

pub(super) struct Shared {
    pub(super) config: Arc<RegistryConfig>,
    /// Our name while full lists are rationed.
    pub(super) consumer: Arc<str>,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) state: Mutex<State>,
    /// Subscriptions came or went, or all is over.
    pub(super) changed: Notify,
    /// There is something to write to disk.
    pub(super) dirty: Notify,
    closed: Notify,
    running: AtomicBool,
    pub(super) snapshots: Option<SnapshotFolder>,
    pub(super) loads: Loads,
}

struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_one();
        self.shared.dirty.notify_one();
        self.shared.closed.notify_waiters();
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Hub")
            .field("services", &state.slots.len())
            .field("subscriptions", &state.subscriptions.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        !state.closed && !state.subscriptions.is_empty()
    }

    /// Waits for a subscription; `false`: all is over.
    pub(super) async fn wait_until_wanted(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if state.closed {
                    return false;
                }
                if !state.subscriptions.is_empty() {
                    return true;
                }
            }
            changed.await;
        }
    }

    pub(super) async fn wait_until_closed(&self) {
        let closed = self.closed.notified();
        if !self.state.lock().closed {
            closed.await;
        }
    }
}

impl Hub {
    pub(crate) fn new(config: Arc<RegistryConfig>, endpoints: Arc<Endpoints>, consumer: Arc<str>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(
                config.watch_events_max,
                config.snapshot_folder.is_some(),
            )),
            endpoints,
            changed: Notify::new(),
            dirty: Notify::new(),
            closed: Notify::new(),
            running: AtomicBool::new(false),
            snapshots: config.snapshot_folder.clone().map(SnapshotFolder::new),
            loads: Loads::new(),
            config,
            consumer,
        });
        Self {
            _guard: Arc::new(Guard {
                shared: Arc::clone(&shared),
            }),
            shared,
        }
    }

    /// One more handle wants the target. The first one starts the tasks.
    pub(super) fn want(&self, target: &WatchTarget) -> Result<(), Error> {
        {
            let mut state = self.shared.state.lock();
            let max = self.shared.config.subscriptions_max;
            if !state.subscriptions.contains_key(target) && state.subscriptions.len() >= max {
                return Err(Error::TooLarge {
                    message: format!("at most {max} subscriptions are allowed"),
                });
            }
            state.want(target);
        }
        self.shared.changed.notify_one();
        if !self.shared.running.swap(true, Ordering::AcqRel) {
            tokio::spawn(stream::run(Arc::clone(&self.shared)));
            if let Some(folder) = &self.shared.snapshots {
                tokio::spawn(keep_snapshots(Arc::clone(&self.shared), folder.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn unwant(&self, target: &WatchTarget) {
        self.shared.state.lock().unwant(target);
        self.shared.changed.notify_one();
    }

    /// Fills in what an earlier run wrote to disk, where nothing is known yet; later, if the disk takes its time. Waits
    /// for that, but not long, and no longer than until a server was heard.
    pub(super) async fn load(&self, key: &ServiceKey) {
        let Some(folder) = self.shared.snapshots.clone() else {
            return;
        };
        let unknown = |view: &Arc<ServiceView>| view.source == Source::Nothing;
        let shown = {
            let state = self.shared.state.lock();
            let slot = state.slots.get(key).filter(|_| state.knows_nothing_of(key));
            slot.map(|slot| slot.published.subscribe().view)
        };
        let Some(mut shown) = shown else { return };
        let mut ended = loads::begin(&self.shared, folder, key);
        tokio::select! {
            _ = ended.changed() => {}
            _ = shown.wait_for(|view| !unknown(view)) => {}
            () = tokio::time::sleep(LOAD_WAIT) => {
                tracing::warn!(service = %key, "the snapshot folder takes its time");
            }
        }
    }
}

/// Writes what changed, a little later, so that changes in quick succession are written once; and everything on
/// schedule, so that the age on disk is true.
async fn keep_snapshots(shared: Arc<Shared>, folder: SnapshotFolder) {
    let mut rewrite_at = Instant::now() + shared.config.snapshot_interval;
    loop {
        tokio::select! {
            () = shared.dirty.notified() => {}
            () = tokio::time::sleep_until(rewrite_at) => {
                shared.state.lock().keep_live_on_disk();
                rewrite_at = Instant::now() + shared.config.snapshot_interval;
            }
        }
        let closed = shared.state.lock().closed;
        if !closed {
            tokio::select! {
                () = tokio::time::sleep(shared.config.snapshot_delay) => {}
                () = shared.wait_until_closed() => {}
            }
        }
        let views = shared.state.lock().take_dirty();
        write_snapshots(&folder, views).await;
        if shared.state.lock().closed {
            return;
        }
    }
}

async fn write_snapshots(folder: &SnapshotFolder, views: Vec<Arc<ServiceView>>) {
    let folder = folder.clone();
    let written = tokio::task::spawn_blocking(move || {
        for view in views {
            // Only what a server said: neither what was itself read from disk, nor ignorance.
            let stored = match view.source {
                Source::Live | Source::Cache if view.exists => folder.store(&view),
                Source::Live | Source::Cache => folder.remove(&view.key),
                Source::Disk | Source::Nothing => Ok(()),
            };
            if let Err(error) = stored {
                tracing::warn!(service = %view.key, %error, "snapshot not written");
            }
        }
    });
    // It fails only while the runtime is closing.
    let _ = written.await;
}

/// How long the first discovery waits for a server: less if there is something to fall back on.
pub(super) fn discover_wait(config: &RegistryConfig, held: Source) -> Duration {
    match held {
        Source::Nothing => config.call_timeout,
        Source::Disk | Source::Cache | Source::Live => config.discover_wait.min(config.call_timeout),
    }
}
