//! What goes on now and then: signs of life on disk, forgetting, and noticing who is back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ids::ServerId;
use tokio_util::sync::CancellationToken;

use super::committer::Job;
use super::inner::Inner;
use crate::gossip::Gossip;
use crate::pulse;

/// How often it is noticed who is back.
const LOOK: Duration = Duration::from_millis(250);
/// A sign of life is written at least this often.
const ALIVE_EVERY_MAX: Duration = Duration::from_secs(60);

/// The others that are there, each with whether gossip has heard of it: one that has just been started is held to be there
/// before it is, and what was told until then it did not hear.
pub(super) fn others_here(inner: &Inner) -> BTreeSet<(ServerId, bool)> {
    let members = inner.gossip.as_ref().map(Gossip::members).unwrap_or_default();
    let is_heard_of = |server| members.iter().any(|member| member.identity.server == server);
    let others = inner.others_here().into_iter();
    others
        .map(|other| (other.server, is_heard_of(other.server)))
        .collect()
}

/// Until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let every = (inner.config.tombstone_retention / 16).clamp(LOOK, ALIVE_EVERY_MAX);
    let mut written_at = Instant::now();
    let mut here = BTreeSet::new();
    while stop.run_until_cancelled(pulse::pause(LOOK)).await.is_some() {
        let now = Instant::now();
        let now_here = others_here(&inner);
        if !now_here.is_subset(&here) {
            inner.returned.notify_one();
            inner.untold.notify_one();
        }
        here = now_here;
        if now - written_at >= every {
            written_at = now;
            if inner.jobs.send(Job::Purge).await.is_err() {
                return;
            }
        }
    }
}
