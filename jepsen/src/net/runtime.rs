//! Threads that live on one host.

use std::fs::File;

use anyhow::Context;
use tokio::runtime::{Builder, EnterGuard, Runtime};

use super::host::enter;

/// A runtime whose threads are all on one host: sockets that its tasks make have that host's address. Dropping it
/// ends its tasks at their next wait.
#[derive(Debug)]
pub struct HostRuntime {
    host: u64,
    runtime: Option<Runtime>,
}

impl HostRuntime {
    /// `namespace`: `None` is the machine's own.
    pub(super) fn start(host: u64, namespace: Option<File>) -> anyhow::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        // Whoever loads the servers must not take the machine from them.
        builder.worker_threads(1).thread_name(format!("rc-host-{host}"));
        if let Some(namespace) = namespace {
            builder.on_thread_start(move || {
                enter(&namespace).expect("root enters a namespace that is open");
            });
        }
        let runtime = builder
            .enable_all()
            .build()
            .with_context(|| format!("starting threads on host {host}"))?;
        Ok(Self {
            host,
            runtime: Some(runtime),
        })
    }

    /// Which host.
    #[must_use]
    pub fn host(&self) -> u64 {
        self.host
    }

    /// While the guard lives, what the calling thread spawns is spawned there.
    #[must_use]
    pub fn enter(&self) -> Option<EnterGuard<'_>> {
        self.runtime.as_ref().map(Runtime::enter)
    }
}

impl Drop for HostRuntime {
    fn drop(&mut self) {
        // The usual end waits, which must not be done from a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
