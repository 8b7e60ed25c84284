//! The end: the last word, once all writes are answered. If the session was lost, what it had may still be listed: then
//! another one takes that over, and is closed in its place.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::session_request::Request;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Attendance, Command, Link};
use crate::error::Error;
use crate::key::RequestId;
use crate::registry::{Written, wire_options};

/// So many sessions may be lost before the end is given up.
const SESSIONS_LOST_MAX: u32 = 3;

pub(super) struct Closing {
    pub(super) reply: Option<oneshot::Sender<Result<(), Error>>>,
    pub(super) deadline: Instant,
    pub(super) request_id: RequestId,
    /// Said on the present stream, and when.
    pub(super) call: Option<(u64, Instant)>,
    pub(super) asked: bool,
    /// From then on nothing is taken over any more, and no write waited for: a part of the time is kept for the last word.
    pub(super) last_word_at: Instant,
    /// Why some of what lost sessions had may stay listed.
    pub(super) left_behind: Option<Error>,
    sessions_lost: u32,
}

impl Attendance {
    pub(super) fn on_close(&mut self, reply: Option<oneshot::Sender<Result<(), Error>>>, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.closing = Some(Closing {
            reply,
            deadline,
            request_id: RequestId::random(),
            call: None,
            asked: false,
            last_word_at: deadline.checked_sub(left / 4).unwrap_or(deadline),
            left_behind: None,
            sessions_lost: 0,
        });
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            let closed = Error::Closed { what: "session" };
            // Whoever has given up wants no answer.
            match command {
                Command::Write(write) => _ = write.reply.send(Err(closed)),
                Command::Close { reply, .. } => _ = reply.send(Err(closed)),
            }
        }
        let mut roll = self.shared.roll.lock();
        roll.dismiss_all();
        let has_left = roll.has_left();
        drop(roll);
        if self.lease.is_none() && has_left {
            // Lost, and not open again: there is nothing to close.
            self.end_closing(Some(Ok(())));
        }
    }

    /// What was to be ended has ended. What it had may still be listed: a removal guard holds it, say.
    pub(super) fn lose_while_closing(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        closing.request_id = RequestId::random();
        // It is asked about anew.
        closing.left_behind = None;
        closing.sessions_lost += 1;
        let given_up = closing.sessions_lost > SESSIONS_LOST_MAX;
        if self.shared.roll.lock().has_left() {
            self.end_closing(Some(Ok(())));
        } else if given_up {
            let message = "the sessions that were to take over what was listed were lost".into();
            self.end_closing(Some(Err(Error::Unavailable { message })));
        }
    }

    /// Says the last word, once all writes are answered and all is taken over that is to go.
    pub(super) fn send_close(&mut self) {
        let call = self.next_call;
        let waits = !self.pending.is_empty();
        let (Link::Up(_), Some(lease), Some(closing)) = (&self.link, &self.lease, &mut self.closing) else {
            return;
        };
        if closing.call.is_some() || waits {
            return;
        }
        closing.call = Some((call, Instant::now()));
        closing.asked = true;
        let left = closing.deadline.saturating_duration_since(Instant::now());
        let options = wire_options(closing.request_id, left.min(self.config.attempt_timeout), 0);
        let close = Request::Close(v1::CloseSession {
            options: Some(options),
        });
        let request = v1::SessionRequest {
            call,
            session: lease.session,
            request: Some(close),
        };
        self.next_call += 1;
        self.send(request);
    }

    pub(super) fn on_close_answer(&mut self, answer: Result<Written, Error>) {
        match answer {
            // Said by a server without a leader, which answers for AP groups alone.
            Ok(written) if written.mode == v1::GroupMode::Ap && self.has_nodes_in_log() => {
                let message =
                    "the server ended what the session had in AP groups, and no leader the rest".into();
                self.close_elsewhere(Error::Unavailable { message });
            }
            Ok(_) => {
                let left_behind = self
                    .closing
                    .as_mut()
                    .and_then(|closing| closing.left_behind.take());
                self.end_closing(Some(left_behind.map_or(Ok(()), Err)));
            }
            Err(Error::SessionNotFound { .. }) => self.lose(),
            Err(Error::SessionForeign { .. }) => self.detach("the server does not hold the session"),
            Err(error) if error.is_transient() => self.close_elsewhere(error),
            Err(error) => self.end_closing(Some(Err(error))),
        }
    }

    fn has_nodes_in_log(&self) -> bool {
        let is_alone = self.lease.as_ref().is_some_and(|lease| lease.records_alone);
        !is_alone
            && (self.registered_perhaps || !self.shared.roll.lock().leaving(v1::GroupMode::Cp).is_empty())
    }

    /// Another server may do it: the deadline bounds this.
    fn close_elsewhere(&mut self, error: Error) {
        self.last_error = Some(error);
        self.detach("the session was not closed");
        self.retry_later(Duration::from_millis(50));
    }

    /// `None`: the deadline passed.
    pub(super) fn end_closing(&mut self, answer: Option<Result<(), Error>>) {
        self.ended = true;
        self.give_up_writes("the session was closed");
        let Some(closing) = self.closing.take() else {
            return;
        };
        let answer = answer.unwrap_or_else(|| {
            let message = "no server confirmed the end of the session in time".to_owned();
            Err(if closing.asked {
                Error::OutcomeUnknown {
                    request_id: closing.request_id,
                    message,
                }
            } else {
                Error::Unavailable { message }
            })
        });
        if let Some(reply) = closing.reply {
            let _ = reply.send(answer);
        }
    }

    /// Callers are told that theirs were not done, or may have been.
    pub(super) fn give_up_writes(&mut self, message: &str) {
        let of_callers = self
            .pending
            .iter_mut()
            .filter(|(_, pending)| !pending.is_restore());
        let calls = of_callers.map(|(call, pending)| {
            pending.outcome_unknown |= pending.sent_at.is_some();
            *call
        });
        let calls: Vec<u64> = calls.collect();
        for call in calls {
            let message = message.to_owned();
            self.finish(call, Err(Error::Unavailable { message }));
        }
    }
}
