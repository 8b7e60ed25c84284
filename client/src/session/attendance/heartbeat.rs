//! Heartbeats, on the stream or by datagram.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::session_request::Request;
use tokio::time::Instant;

use super::{Attendance, Link};
use crate::error::Error;
use crate::session::heartbeats::News;

/// A heartbeat under way.
pub(super) struct Heartbeat {
    pub(super) call: u64,
    /// When its first attempt left: the budget counts from there.
    pub(super) since: Instant,
    /// When this attempt left.
    pub(super) sent_at: Instant,
    pub(super) resend_at: Option<Instant>,
}

impl Attendance {
    pub(super) fn beat(&mut self, now: Instant) {
        let call = self.next_call;
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        let since = match &up.heartbeat {
            None if up.heartbeat_at <= now => now,
            None => return,
            Some(heartbeat) if heartbeat.since + lease.answer_budget() <= now => {
                up.endpoint.failed();
                return self.detach("a heartbeat was not answered in time");
            }
            Some(heartbeat) if heartbeat.resend_at.is_some_and(|at| at <= now) => heartbeat.since,
            Some(_) => return,
        };
        up.heartbeat = Some(Heartbeat {
            call,
            since,
            sent_at: now,
            resend_at: None,
        });
        let renew = Request::Renew(v1::Renew {
            sessions: vec![lease.session],
        });
        let request = v1::SessionRequest {
            call,
            session: lease.session,
            request: Some(renew),
        };
        self.next_call += 1;
        self.send(request);
    }

    pub(super) fn on_renewed(&mut self, call: u64, renewed: &v1::Renewed) {
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        if renewed.not_found.contains(&lease.session) {
            return self.lose();
        }
        let Some(heartbeat) = up.heartbeat.as_mut().filter(|heartbeat| heartbeat.call == call) else {
            return;
        };
        if renewed.sessions.contains(&lease.session) {
            up.heartbeat_at = heartbeat.sent_at + lease.heartbeat_interval();
            up.heartbeat = None;
            up.endpoint.answered();
        } else {
            // Undecided: an expiry is under way. Ask again.
            heartbeat.resend_at = Some(Instant::now() + lease.answer_budget() / 4);
        }
    }

    pub(super) fn on_heartbeat_refused(&mut self, error: Error) {
        let (Link::Up(up), Some(lease)) = (&mut self.link, &self.lease) else {
            return;
        };
        match error {
            Error::SessionNotFound { .. } => self.lose(),
            Error::SessionForeign { .. } => self.detach("the server does not hold the session"),
            error => {
                tracing::debug!(%error, "heartbeat refused");
                let asked = match error {
                    Error::Overloaded { retry_after, .. } => retry_after,
                    _ => Duration::ZERO,
                };
                if let Some(heartbeat) = &mut up.heartbeat {
                    heartbeat.resend_at = Some(Instant::now() + asked.max(lease.answer_budget() / 4));
                }
            }
        }
    }

    /// Nothing needs the stream.
    fn is_quiet(&self) -> bool {
        self.pending.is_empty()
            && self.closing.is_none()
            && self.opening.is_none()
            && self.commands.is_empty()
    }

    pub(super) fn datagrams_try_at(&self) -> Option<Instant> {
        match (&self.link, &self.lease) {
            (Link::Up(up), Some(lease)) if self.is_quiet() && up.move_at.is_none() => {
                self.datagrams.try_at(self.quiet_since, lease.ttl)
            }
            _ => None,
        }
    }

    pub(super) fn try_datagrams(&mut self, now: Instant) {
        if self.datagrams_try_at().is_some_and(|at| at <= now)
            && let Some(lease) = &self.lease
        {
            self.datagrams.open(lease.session, &lease.secret, lease.ttl, now);
        }
    }

    pub(super) fn on_news(&mut self, news: News) {
        match news {
            News::None => {}
            News::Renewed => self.on_renewed_by_datagram(),
            News::NotFound => self.lose(),
            News::Failed(reason) => self.on_datagrams_failed(reason),
        }
    }

    /// Datagrams work. The stream is put down if it has nothing to carry; else they were tried too early.
    fn on_renewed_by_datagram(&mut self) {
        let quiet = self.is_quiet();
        let Link::Up(up) = &self.link else { return };
        if !quiet || up.move_at.is_some() {
            return self.datagrams.close();
        }
        let endpoint = Arc::clone(&up.endpoint);
        tracing::debug!(server = %endpoint.address, "heartbeats go by datagram, the stream is put down");
        self.laid_at = Some(endpoint.address.clone());
        self.shared.by_datagram.store(true, Ordering::Relaxed);
        self.link = Link::Laid { endpoint };
    }

    /// The stream is missed: by those who live by datagrams, not by those who only tried them.
    fn on_datagrams_failed(&mut self, reason: &str) {
        tracing::debug!(reason, "heartbeats go on a stream");
        match &self.link {
            Link::Laid { endpoint } => {
                endpoint.failed();
                self.detach(reason);
                self.link = self.down_for_a_moment();
            }
            // A stream is being taken up already.
            Link::Down { .. } | Link::Joining { .. } => self.tell_detached(None, reason),
            Link::Up(_) => {}
        }
    }

    /// A write, or the end, goes on a stream; heartbeats go by datagram until it stands.
    pub(super) fn take_up_if_needed(&mut self, now: Instant) {
        if self.is_quiet() {
            return;
        }
        if let Link::Laid { endpoint } = &self.link {
            self.preferred = vec![endpoint.address.clone()];
            self.link = Link::Down { retry_at: now };
            self.join();
        }
    }
}
