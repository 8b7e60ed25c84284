//! A server that is cut off refuses writes for want of a leader, and may hear the session all the same: one for AP groups
//! alone, or one that has no other nodes. While that lasts, the other servers are asked; if one of them has a leader, the
//! session moves there. If none has, it stays: moving about would only lose what this server vouches for. So it does once
//! this server has a leader again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::ownership::ask_about;
use super::{Attendance, Link, MOVED_AWAY_FOR};
use crate::backoff::{Backoff, LOST_SPREAD, spread_over};
use crate::endpoint::Endpoint;
use crate::key::NodeKey;

/// A server that refuses a write for so long is not merely between two leaders.
const REFUSED_MAX: Duration = Duration::from_millis(1500);
/// How long it may take then to say that it has found one.
const OWN_WORD: Duration = Duration::from_millis(500);
/// Pauses between two rounds of questions.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Looks for a server with a leader, one round at a time.
pub(super) struct Scout {
    round: Option<BoxFuture<'static, Option<Arc<Endpoint>>>>,
    not_before: Option<Instant>,
    pause: Backoff,
}

impl Scout {
    pub(super) fn new() -> Self {
        Self {
            round: None,
            not_before: None,
            pause: Backoff::new(PAUSE_MIN, PAUSE_MAX),
        }
    }

    /// What the round found.
    pub(super) async fn next(&mut self) -> Option<Arc<Endpoint>> {
        let Some(round) = &mut self.round else {
            return std::future::pending().await;
        };
        let found = round.await;
        self.round = None;
        found
    }

    /// The server that refused is left.
    pub(super) fn recall(&mut self) {
        self.round = None;
    }

    fn may_go(&self, now: Instant) -> bool {
        self.round.is_none() && self.not_before.is_none_or(|at| at <= now)
    }
}

impl Attendance {
    /// A call was refused for want of a leader; it was sent at that time, if it is a write.
    pub(super) fn look_elsewhere(&mut self, call: u64, sent_at: Option<Instant>) {
        let now = Instant::now();
        let (Link::Up(up), Some(pending)) = (&self.link, self.pending.get_mut(&call)) else {
            return;
        };
        let since = *pending.refused_since.get_or_insert(sent_at.unwrap_or(now));
        if now.saturating_duration_since(since) < REFUSED_MAX
            || self.closing.is_some()
            || !self.scout.may_go(now)
        {
            return;
        }
        if let Some(node) = pending.operation.keys().into_iter().next() {
            let own = Arc::clone(&up.endpoint);
            let others = self.endpoints.others(&own);
            self.scout.round = Some(Box::pin(search(own, others, node, self.config.attempt_timeout)));
        }
    }

    pub(super) fn on_scouted(&mut self, found: Option<Arc<Endpoint>>) {
        // Also if one was found: should it refuse too, the next one is not asked at once.
        self.scout.not_before = Some(Instant::now() + self.scout.pause.next_delay());
        let (Some(found), Link::Up(up)) = (found, &self.link) else {
            return;
        };
        if !self.is_refused() || self.closing.is_some() {
            return;
        }
        up.endpoint.put_aside_for(MOVED_AWAY_FOR);
        found.answered();
        if self.lease.as_ref().is_some_and(|lease| lease.records_alone) {
            // Under it nothing could be written there either.
            self.lose();
        } else {
            self.detach("it refuses writes, and another server has a leader");
        }
        self.preferred = vec![found.address.clone()];
    }

    /// A write was taken.
    pub(super) fn note_taken(&mut self) {
        if self.scout.not_before.is_some() && !self.is_refused() {
            self.scout.not_before = None;
            self.scout.pause.reset();
        }
    }

    fn is_refused(&self) -> bool {
        self.pending
            .values()
            .any(|pending| pending.refused_since.is_some())
    }
}

/// The first of the others that can say for sure whether a node is listed: it has a leader. `None` also if our own server
/// can say so too by now.
async fn search(
    own: Arc<Endpoint>,
    others: Vec<Arc<Endpoint>>,
    node: NodeKey,
    budget: Duration,
) -> Option<Arc<Endpoint>> {
    // Other clients of the same server are refused at the same time.
    tokio::time::sleep(spread_over(LOST_SPREAD)).await;
    for endpoint in others {
        match ask_about(Arc::clone(&endpoint), node.clone(), budget).await {
            Ok(_) => {
                let own_word = ask_about(own, node, budget.min(OWN_WORD)).await;
                return own_word.is_err().then_some(endpoint);
            }
            Err(error) => tracing::debug!(server = %endpoint.address, %error, "it has no leader either"),
        }
    }
    None
}
