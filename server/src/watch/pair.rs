//! The two hubs of a server, and a client's stream over both.
//!
//! A service is followed at the hub of its group's mode, a prefix at both. Each message comes from one hub and says
//! which, since their revisions count different things. Order holds within a hub, never across.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rollcall_core::directory::{GroupMode, Service};
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_proto::v1::{self, WatchResponse};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::hub::{Convergence, SubscribeError, Subscription, TooManyStreams, WatchHub};
use super::line::Line;
use super::registration::Target;
use super::stream::{Shared, StreamEnd, StreamHandle, WatchStream};

/// Telling thousands of idle watchers takes some ten microseconds each: they are told the same once in so many intervals of
/// bookmarks.
const INTERVALS_PER_ASSURANCE: u32 = 4;

/// The hubs of both modes. Cheap to clone.
#[derive(Clone)]
pub struct Watches {
    cp: WatchHub,
    ap: WatchHub,
}

impl Watches {
    /// Of a hub of the CP groups, and the one [beside](WatchHub::beside) it.
    #[must_use]
    pub fn new(cp: WatchHub, ap: WatchHub) -> Self {
        Self { cp, ap }
    }

    /// The hub of a mode.
    #[must_use]
    pub fn of(&self, mode: GroupMode) -> &WatchHub {
        match mode {
            GroupMode::Cp => &self.cp,
            GroupMode::Ap => &self.ap,
        }
    }

    /// The encoded view of a service of a group of this mode, from the cache if it is there.
    #[must_use]
    pub fn view(&self, mode: GroupMode, service: &Service) -> Bytes {
        self.of(mode).view(service)
    }

    /// Opens a stream. The headers are what the answers of each mode say of this server; `cut` cuts the reader's
    /// connection if it hoards memory.
    ///
    /// # Errors
    /// Too many are open.
    pub fn open(
        &self,
        cp: v1::ResponseHeader,
        ap: v1::ResponseHeader,
        cut: CancellationToken,
    ) -> Result<PairedStream, TooManyStreams> {
        let cp = self.cp.open("", cp, cut)?;
        let ap = self.ap.open_beside(&cp, ap);
        Ok(PairedStream { cp, ap })
    }

    /// How many streams are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.cp.streams()
    }

    /// How many of the streams on this server that follow any of these services have acknowledged each of those
    /// that they follow, as of its revision.
    #[must_use]
    pub fn convergence(&self, cp: &[(ServiceKey, Revision)], ap: &[(ServiceKey, Revision)]) -> Convergence {
        let mut progress = self.cp.progress(cp);
        progress.append(&mut self.ap.progress(ap));
        Convergence::of(progress)
    }

    /// Says bookmarks once more where nothing happens, so that silence means something; but only while `is_in_touch` says
    /// that what this server has is what its leader has. At the hub of the AP groups as well, and not without: a client
    /// takes a word on groups of one mode for a sign that all it follows of that mode is current.
    pub async fn assure<F: Future<Output = bool>>(
        self,
        is_in_touch: impl Fn() -> F,
        shutdown: CancellationToken,
    ) {
        let every = self
            .cp
            .limits()
            .bookmark_interval
            .saturating_mul(INTERVALS_PER_ASSURANCE);
        let mut assurances = tokio::time::interval(every);
        assurances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = assurances.tick() => {}
            }
            if self.streams() == 0 {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                is_in_touch = is_in_touch() => if is_in_touch {
                    self.cp.bookmark_again();
                    self.ap.bookmark_again();
                }
            }
        }
    }

    /// Tells every stream to move on, and ends it. See [`WatchHub::close`].
    pub fn close(&self, servers: &[String], spread_ms: u32) {
        self.cp.close(servers, spread_ms);
    }
}

/// What a client wants to follow, at the hubs that tell of it.
#[derive(Clone, Debug)]
pub enum Parts {
    /// A service of a CP group, or of one that does not exist.
    Cp(Subscription),
    /// A service of an AP group.
    Ap(Subscription),
    /// A prefix.
    Both {
        /// Its CP groups.
        cp: Subscription,
        /// Its AP groups.
        ap: Subscription,
    },
}

impl Parts {
    fn id(&self) -> u64 {
        match self {
            Self::Cp(one) | Self::Ap(one) | Self::Both { cp: one, .. } => one.id,
        }
    }
}

/// The asking half of a stream. Cheap to clone; the stream ends when the [`PairedStream`] is dropped.
#[derive(Clone)]
pub struct PairedHandle {
    cp: StreamHandle,
    ap: StreamHandle,
}

impl PairedHandle {
    /// A name for people, from the stream's first message.
    pub fn name(&self, client: &str) {
        self.cp.name(client);
        self.ap.name(client);
    }

    /// Whose place the stream has while full lists are rationed, from its first message.
    pub fn name_consumer(&self, consumer: &str) {
        self.cp.name_consumer(consumer);
    }

    /// As [`StreamHandle::must_wait`]: one turn for the full lists of both modes.
    pub async fn must_wait(&self, parts: &Parts) -> bool {
        // First, as there.
        let asked_at = match parts {
            Parts::Cp(_) => self.cp.next_round().await,
            Parts::Ap(_) => self.ap.next_round().await,
            Parts::Both { .. } => {
                let (cp, ap) = tokio::join!(self.cp.next_round(), self.ap.next_round());
                cp.min(ap)
            }
        };
        let (cp, ap) = (&self.cp.hub, &self.ap.hub);
        let must_wait = |parts: &[_]| cp.must_wait(&self.cp.shared, parts, asked_at);
        let retry_after: Option<Duration> = match parts {
            Parts::Cp(one) => must_wait(&[(cp, one)]),
            Parts::Ap(one) => must_wait(&[(ap, one)]),
            Parts::Both { cp: one, ap: other } => must_wait(&[(cp, one), (ap, other)]),
        };
        let Some(retry_after) = retry_after else {
            return false;
        };
        self.cp.keep_cache(parts.id(), retry_after);
        true
    }

    /// Waits until the client has read most of the lists it asked for: what it asks for meanwhile waits unread. Of the
    /// clones of a handle one may wait.
    pub async fn has_been_read(&self) {
        // Both halves count together.
        self.cp.has_been_read().await;
    }

    /// Starts a subscription; what it needs is in the stream's backlogs when this returns.
    ///
    /// # Errors
    /// It was not started; the caller tells the client by [`Self::reject`], or looks again where the group is.
    pub fn subscribe(&self, parts: Parts) -> Result<(), SubscribeError> {
        self.settle_moves();
        self.check(parts.id())?;
        match parts {
            Parts::Cp(one) => self.cp.subscribe(one),
            Parts::Ap(one) => self.ap.subscribe(one),
            Parts::Both { cp, ap } => {
                self.cp.subscribe(cp)?;
                self.subscribe_beside(ap)
            }
        }
    }

    /// Starts the AP half of a subscription of which the other has begun.
    fn subscribe_beside(&self, ap: Subscription) -> Result<(), SubscribeError> {
        let id = ap.id;
        match self.ap.subscribe(self.cp.hub.without_deleted(ap)) {
            // A group has just moved, and the client may have heard of the half that began: it asks anew.
            Err(SubscribeError::Elsewhere { .. }) => {
                self.cp.unsubscribe(id);
                self.cp.keep_cache(id, Duration::ZERO);
                return Ok(());
            }
            result => result.inspect_err(|_| self.cp.unsubscribe(id))?,
        }
        // A move may have ended that half when this one could not be ended yet.
        if !self.cp.shared.backlog.lock().subscriptions.contains_key(&id) {
            let keep = v1::KeepCache {
                subscription: id,
                retry_after_ms: 1,
            };
            self.ap.hub.end_moved(&self.ap.shared, keep);
        }
        Ok(())
    }

    /// Ends a subscription. Frames that wait already still go out; an unknown id is no error.
    pub fn unsubscribe(&self, subscription: u64) {
        self.cp.unsubscribe(subscription);
        self.ap.unsubscribe(subscription);
    }

    /// Tells the client that a subscription was refused.
    pub fn reject(&self, subscription: u64, error: v1::Error) {
        self.cp.reject(subscription, error);
    }

    /// The client has taken in everything about groups of this mode up to this revision.
    pub fn ack(&self, mode: GroupMode, revision: Revision) {
        match mode {
            GroupMode::Cp => self.cp.ack(revision),
            GroupMode::Ap => self.ap.ack(revision),
        }
    }

    /// Waits until the stream is closed, from whichever side.
    pub async fn closed(&self) {
        self.cp.closed().await;
    }

    /// Ends the stream with a last word.
    pub fn end(&self, end: StreamEnd) {
        self.cp.end(end);
    }

    /// Closes the stream: its reader comes to its end.
    pub fn close(&self) {
        self.cp.close();
    }

    /// Bounds that hold for both halves together. Subscriptions come from one task, so none comes in between.
    fn check(&self, id: u64) -> Result<(), SubscribeError> {
        let (known, of_cp) = {
            let backlog = self.cp.shared.backlog.lock();
            let subscriptions = &backlog.subscriptions;
            (subscriptions.contains_key(&id), subscriptions.len())
        };
        let backlog = self.ap.shared.backlog.lock();
        let subscriptions_max = self.cp.hub.limits().subscriptions_max;
        if known || backlog.subscriptions.contains_key(&id) {
            return Err(SubscribeError::Duplicate { id });
        }
        // Those to prefixes are in both. They are counted only where it matters: this is asked for each subscription.
        if of_cp + backlog.subscriptions.len() >= subscriptions_max {
            let of_ap = backlog.subscriptions.values();
            let services = of_ap.filter(|target| matches!(target, Target::Service(_)));
            if of_cp + services.count() >= subscriptions_max {
                return Err(SubscribeError::TooMany { subscriptions_max });
            }
        }
        Ok(())
    }

    fn settle_moves(&self) {
        settle_moves((&self.cp.hub, &self.cp.shared), (&self.ap.hub, &self.ap.shared));
    }
}

/// What ended at one hub because a group moved ends at the other: the client asks for it anew.
fn settle_moves(cp: (&WatchHub, &Arc<Shared>), ap: (&WatchHub, &Arc<Shared>)) {
    for ((_, from), (hub, other)) in [(cp, ap), (ap, cp)] {
        let moved = std::mem::take(&mut *from.moved.lock());
        moved.into_iter().for_each(|keep| hub.end_moved(other, keep));
    }
}

/// The answering half of a stream over both hubs. Dropping it ends every subscription.
pub struct PairedStream {
    cp: WatchStream,
    ap: WatchStream,
}

impl PairedStream {
    /// The asking half.
    #[must_use]
    pub fn handle(&self) -> PairedHandle {
        PairedHandle {
            cp: self.cp.handle(),
            ap: self.ap.handle(),
        }
    }

    /// See [`WatchStream::has_line`].
    pub(crate) fn has_line(&self, line: &Line) {
        self.cp.has_line(line);
        self.ap.has_line(line);
    }

    /// As [`WatchStream::next`], of whichever hub has something to say.
    ///
    /// # Errors
    /// The stream's last word; `None` follows.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, StreamEnd>> {
        if self.cp.is_over() || self.ap.is_over() {
            return None;
        }
        self.cp.release();
        self.ap.release();
        let said = tokio::select! {
            said = self.cp.next() => said,
            said = self.ap.next() => said,
        };
        settle_moves(self.cp.half(), self.ap.half());
        said
    }
}

#[cfg(test)]
#[path = "pair_test.rs"]
mod tests;
