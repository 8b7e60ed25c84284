//! What goes on now and then: signs of life on disk, forgetting, and noticing who is back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ids::ServerId;
use tokio_util::sync::CancellationToken;

use super::committer::Job;
use super::inner::Inner;
use crate::pulse;

/// How often it is noticed who is back.
const LOOK: Duration = Duration::from_millis(250);
/// A sign of life is written at least this often.
const ALIVE_EVERY_MAX: Duration = Duration::from_secs(60);

/// Until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let every = (inner.config.tombstone_retention / 16).clamp(LOOK, ALIVE_EVERY_MAX);
    let mut written_at = Instant::now();
    let mut here = BTreeSet::new();
    while stop.run_until_cancelled(pulse::pause(LOOK)).await.is_some() {
        let now = Instant::now();
        let others: BTreeSet<ServerId> = inner.others_here().iter().map(|other| other.server).collect();
        if !others.is_subset(&here) {
            inner.returned.notify_one();
        }
        here = others;
        if now - written_at >= every {
            written_at = now;
            if inner.jobs.send(Job::Purge).await.is_err() {
                return;
            }
        }
    }
}
