//! Losing a server, losing the session.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::writes::Purpose;
use super::{Attendance, Link, MOVED_AWAY_FOR};
use crate::backoff::{LOST_SPREAD, spread_over};
use crate::key::RequestId;
use crate::session::event::{SessionEvent, SessionStatus};

impl Attendance {
    /// The server closed in order: another is asked in the slot that it gave, if the ttl leaves time for that.
    pub(super) fn leave_closing(&mut self) {
        let now = Instant::now();
        let Link::Up(up) = &self.link else { return };
        let slot = up.move_at.unwrap_or(now);
        up.endpoint.put_aside_for(MOVED_AWAY_FOR);
        self.detach("the server is closing");
        let latest = now + self.lease.as_ref().map_or(Duration::ZERO, |lease| lease.ttl / 6);
        self.link = Link::Down {
            retry_at: slot.min(latest),
        };
    }

    /// The stream broke, and with it those of all clients of that server, which gave no slots: each asks another at
    /// a moment of its own.
    pub(super) fn leave_lost(&mut self, reason: &str) {
        if let Link::Up(up) = &self.link {
            up.endpoint.failed();
        }
        self.detach(reason);
        self.link = self.down_for_a_moment();
    }

    /// The stream is of no use any more; the session may well live.
    pub(super) fn detach(&mut self, reason: &str) {
        let down = Link::Down {
            retry_at: Instant::now(),
        };
        self.datagrams.close();
        self.drop_questions();
        self.scout.recall();
        let left = match std::mem::replace(&mut self.link, down) {
            Link::Up(up) => Some(up.endpoint.address.clone()),
            Link::Laid { .. } | Link::Down { .. } | Link::Joining { .. } => None,
        };
        self.tell_detached(left, reason);
        for pending in self.pending.values_mut() {
            pending.outcome_unknown |= pending.sent_at.take().is_some();
            pending.refused_since = None;
        }
        if let Some(closing) = &mut self.closing {
            closing.call = None;
        }
    }

    /// No server hears the session now: not the one whose stream was left, nor the one that heard it by datagram.
    pub(super) fn tell_detached(&mut self, left: Option<String>, reason: &str) {
        self.shared.by_datagram.store(false, Ordering::Relaxed);
        let laid_at = self.laid_at.take();
        if let Some(server) = left.or(laid_at) {
            tracing::debug!(%server, reason, "session detached");
            self.shared.status.send_replace(SessionStatus::Detached);
            self.tell(SessionEvent::Detached {
                server,
                reason: reason.into(),
            });
        }
    }

    /// Others lost the same server: each asks another at a moment of its own.
    pub(super) fn down_for_a_moment(&self) -> Link {
        let spread = self.lease.as_ref().map_or(Duration::ZERO, |lease| lease.ttl / 12);
        Link::Down {
            retry_at: Instant::now() + spread_over(spread.min(LOST_SPREAD)),
        }
    }

    /// The registry has forgotten the session: with it went its nodes and whatever was under way.
    pub(super) fn lose(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        tracing::warn!(session = lease.session, "session lost, opening a new one");
        self.detach("the session was lost");
        self.remember_lost(lease.session);
        self.reopening = true;
        if self.restores_refused > 0 {
            // It may not have been the session's fault.
            let retry_at = Instant::now() + self.pause.next_delay();
            self.link = Link::Down { retry_at };
        }
        self.shared.status.send_replace(SessionStatus::Restoring);
        self.tell(SessionEvent::Lost {
            session: lease.session,
        });
        self.pending
            .retain(|_, pending| matches!(pending.purpose, Purpose::Caller { .. }));
        for pending in self.pending.values_mut() {
            pending.request_id = RequestId::random();
            // What was applied under the old session is gone with it, or will be; other nodes stay.
            pending.outcome_unknown &= pending.operation.may_outlive_session();
            pending.not_before = None;
        }
        self.lose_while_closing();
    }
}
