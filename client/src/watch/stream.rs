//! The task behind a handle's watches: one stream at one server at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rollcall_proto::v1;
use rollcall_proto::v1::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::hub::Shared;
use crate::backoff::{Backoff, LOST_SPREAD, spread_over};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::view::Counted;

/// Requests that wait for the connection; further ones wait in the shared state.
const OUTGOING_ROOM: usize = 64;
/// How long a server that misses changes is left alone.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(5);
/// How long a server that asked us to move is passed over if there are others: it closes, and then starts anew.
const CLOSING_FOR: Duration = Duration::from_secs(1);
/// Longest pause between two rounds while no server answers: a refused connection costs a server that is down
/// nothing, and the first round after it is up finds it.
const UNREACHABLE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A stream that was heard on and lasted so long ends a row of failures.
const STEADY_AFTER: Duration = Duration::from_secs(1);

/// Keeps the stream until the last handle is gone.
pub(super) async fn run(shared: Arc<Shared>) {
    let pause_min = Duration::from_millis(50);
    let mut unreachable = Backoff::new(pause_min, UNREACHABLE_PAUSE_MAX);
    let mut refused = Backoff::new(pause_min, shared.config.put_aside_max);
    let mut preferred = Vec::new();
    let mut tried = 0;
    let mut round = Round::default();
    // A server of this round was there and refused: those are not pressed.
    let mut pressing: Option<Duration> = None;
    loop {
        if !shared.is_wanted() {
            // What was said to others, perhaps long ago, is no answer to those who come next.
            (tried, round, pressing) = (0, Round::default(), None);
        }
        if !shared.wait_until_wanted().await {
            return;
        }
        let endpoint = shared.endpoints.pick_preferred(&std::mem::take(&mut preferred));
        tried += 1;
        round.on_asked(&endpoint.address);
        match Stream::open(&shared, Arc::clone(&endpoint)).await {
            Ok(mut stream) => {
                round.on_opened();
                shared.state.lock().on_opened();
                endpoint.answered();
                let opened_at = Instant::now();
                let left = stream.run(&shared).await;
                // One that breaks again and again at once is no better than none.
                let steady = stream.heard && opened_at.elapsed() >= STEADY_AFTER;
                if steady {
                    pressing = None;
                    unreachable.reset();
                    refused.reset();
                    tried = 0;
                    round = Round::default();
                }
                let heard = stream.heard;
                drop(stream);
                shared.state.lock().on_interrupted(&left.reason);
                tracing::debug!(server = %endpoint.address, reason = %left.reason, "watch stream left");
                preferred = left.preferred;
                match left.endpoint {
                    Fault::Failed => endpoint.failed(),
                    Fault::None => {}
                    Fault::Closing { .. } => endpoint.put_aside_for(CLOSING_FOR),
                    Fault::LeaveAlone => endpoint.put_aside_for(LEFT_ALONE_FOR),
                }
                if let Fault::None = left.endpoint {
                    // Nobody wanted anything any more, for which nobody who comes next need wait for long.
                    (tried, round, pressing) = (0, Round::default(), None);
                    if heard {
                        unreachable.reset();
                    }
                    pause_until(&shared, Instant::now() + pause_min).await;
                    continue;
                }
                match left.endpoint {
                    // The others expect us then; it is spread over all clients of the closing server.
                    Fault::Closing { slot } => pause_until(&shared, slot).await,
                    // All its clients lost it, and without slots each of them chooses a moment.
                    Fault::Failed if steady => {
                        pause_until(&shared, Instant::now() + spread_over(LOST_SPREAD)).await;
                    }
                    Fault::Failed | Fault::None | Fault::LeaveAlone => {}
                }
            }
            Err(no) => {
                endpoint.failed();
                tracing::debug!(server = %endpoint.address, reason = no.reason, "no watch stream");
                round.on_no_stream(no.denied, no.refused);
                pressing = no
                    .refused
                    .map(|hint| pressing.unwrap_or_default().max(hint))
                    .or(pressing);
            }
        }
        // Every server gets its turn at once, then there is a growing pause.
        if tried > 0 && tried % shared.endpoints.len() == 0 {
            if let Some(error) = round.end(shared.endpoints.len()) {
                shared.state.lock().on_refused(&Arc::new(error));
            }
            let wait = match pressing.take() {
                Some(hint) => refused.next_delay().max(hint),
                None => unreachable.next_delay_spread(),
            };
            pause_until(&shared, Instant::now() + wait).await;
        }
    }
}

/// Waits, unless all is over.
async fn pause_until(shared: &Shared, moment: Instant) {
    tokio::select! {
        () = tokio::time::sleep_until(moment) => {}
        () = shared.wait_until_closed() => {}
    }
}

/// What the servers of one round said of us.
#[derive(Debug, Default)]
struct Round {
    asked: BTreeSet<String>,
    /// One does not know our token, or it does not do.
    denied: Option<Error>,
    /// One that was there said otherwise.
    otherwise: bool,
}

impl Round {
    fn on_asked(&mut self, server: &str) {
        self.asked.insert(server.to_owned());
    }

    fn on_opened(&mut self) {
        self.otherwise = true;
    }

    fn on_no_stream(&mut self, denied: Option<Error>, refused: Option<Duration>) {
        self.otherwise |= refused.is_some() && denied.is_none();
        self.denied = denied.or(self.denied.take());
    }

    /// Once all of so many servers had their turn: why none lets us have a stream, if all that were there agree. One that is
    /// down, or not ready, says neither; one that is put aside is still to be asked.
    fn end(&mut self, servers: usize) -> Option<Error> {
        if self.asked.len() < servers {
            return None;
        }
        let round = std::mem::take(self);
        round.denied.filter(|_| !round.otherwise)
    }
}

/// Why there is no stream.
struct NoStream {
    reason: String,
    /// The server spoke: it wants to be left alone for so long at least. `None`: there was no answer.
    refused: Option<Duration>,
    /// It does not let us, and would not next time.
    denied: Option<Error>,
}

impl NoStream {
    fn unanswered(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            refused: None,
            denied: None,
        }
    }

    fn refused(status: &tonic::Status) -> Self {
        let spoken = v1::Error::decode(status.details()).ok();
        let error = spoken.clone().map(|error| Error::from_wire(error, None));
        let denied =
            error.filter(|error| matches!(error, Error::Unauthenticated { .. } | Error::NotPermitted { .. }));
        let refused = spoken.and_then(|error| match error.code() {
            // About to be ready, or no server at all: asked again as if it were not there.
            v1::ErrorCode::NotReady | v1::ErrorCode::Unavailable | v1::ErrorCode::Unspecified => None,
            _ => Some(Duration::from_millis(error.retry_after_ms.into())),
        });
        Self {
            reason: status.message().into(),
            refused,
            denied,
        }
    }
}

struct Stream {
    endpoint: Arc<Endpoint>,
    outgoing: mpsc::Sender<v1::WatchRequest>,
    incoming: Streaming<v1::WatchResponse>,
    /// Something came.
    heard: bool,
}

/// Why a stream was left.
struct Left {
    reason: String,
    endpoint: Fault,
    preferred: Vec<String>,
}

#[derive(Clone, Copy)]
enum Fault {
    None,
    Failed,
    /// It closes in order, and gave us a moment to be elsewhere.
    Closing {
        slot: Instant,
    },
    LeaveAlone,
}

impl Left {
    fn failed(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            endpoint: Fault::Failed,
            preferred: Vec::new(),
        }
    }

    fn closing((slot, servers): (Instant, Vec<String>)) -> Self {
        Self {
            reason: "the server asked to move".into(),
            endpoint: Fault::Closing { slot },
            preferred: servers,
        }
    }
}

impl Stream {
    async fn open(shared: &Shared, endpoint: Arc<Endpoint>) -> Result<Self, NoStream> {
        let (outgoing, requests) = mpsc::channel(OUTGOING_ROOM);
        let mut client = WatchClient::new(endpoint.channel.clone())
            .max_decoding_message_size(shared.config.message_bytes_max);
        shared.state.lock().on_connected();
        // A server may answer only once it has heard the first word.
        let first = shared.state.lock().take_request(Instant::now());
        let hello = v1::WatchRequest {
            request: first,
            client: shared.config.client_name.clone(),
            consumer: shared.consumer.to_string(),
        };
        if outgoing.try_send(hello).is_err() {
            return Err(NoStream::unanswered("the stream was closed"));
        }
        let opening = client.watch(ReceiverStream::new(requests));
        match tokio::time::timeout(shared.config.attempt_timeout, opening).await {
            Ok(Ok(response)) => Ok(Self {
                endpoint,
                outgoing,
                incoming: response.into_inner(),
                heard: false,
            }),
            Ok(Err(status)) => Err(NoStream::refused(&status)),
            Err(_) => Err(NoStream::unanswered("no answer in time")),
        }
    }

    async fn run(&mut self, shared: &Shared) -> Left {
        let silence_max = shared.config.watch_silence_max;
        let mut last_heard = Instant::now();
        let mut silent_at = silence_max.map(|silence| last_heard + silence);
        let mut move_at: Option<(Instant, Vec<String>)> = None;
        let mut unsent = None;
        loop {
            if unsent.is_none() {
                unsent = shared.state.lock().take_request(Instant::now());
            }
            let wake_at = [
                move_at.as_ref().map(|(at, _)| *at),
                silent_at,
                // Nothing more is asked while a word waits for room.
                shared.state.lock().ask_at().filter(|_| unsent.is_none()),
            ];
            let idle = Instant::now() + Duration::from_secs(60);
            let wake_at = wake_at.into_iter().flatten().fold(idle, Instant::min);
            tokio::select! {
                permit = self.outgoing.reserve(), if unsent.is_some() => match permit {
                    Ok(permit) => {
                        permit.send(v1::WatchRequest { request: unsent.take(), ..v1::WatchRequest::default() });
                    }
                    Err(_) => return Left::failed("the server takes nothing"),
                },
                message = self.incoming.message() => match message {
                    Ok(Some(response)) => {
                        last_heard = Instant::now();
                        self.heard = true;
                        match self.take(shared, response) {
                            Ok(Some(advice)) => move_at = Some((last_heard + advice.0, advice.1)),
                            Ok(None) => {}
                            Err(left) => return left,
                        }
                    }
                    Ok(None) | Err(_) if move_at.is_some() => {
                        return Left::closing(move_at.take().unwrap_or((last_heard, Vec::new())));
                    }
                    Ok(None) => return Left::failed("the server ended the stream"),
                    Err(status) => return Left::failed(format!("the stream broke: {}", status.message())),
                },
                () = shared.changed.notified() => {
                    if !shared.is_wanted() {
                        return Left {
                            reason: "nothing is watched any more".into(),
                            endpoint: Fault::None,
                            preferred: Vec::new(),
                        };
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
            let now = Instant::now();
            if let Some(silence) = silence_max.filter(|_| silent_at.is_some_and(|at| at <= now)) {
                // Of each mode that is followed: what is said of AP groups is no word on the others.
                let quiet_since = shared.state.lock().quiet_since().unwrap_or(last_heard);
                if quiet_since + silence <= now {
                    return Left::failed("nothing came for too long");
                }
                silent_at = Some(quiet_since + silence);
            }
            if let Some(advice) = move_at.take_if(|(at, _)| *at <= now) {
                return Left::closing(advice);
            }
        }
    }

    /// Takes in one message, whole, under one lock.
    fn take(
        &self,
        shared: &Shared,
        response: v1::WatchResponse,
    ) -> Result<Option<(Duration, Vec<String>)>, Left> {
        let mut advice = None;
        let mut state = shared.state.lock();
        state.on_message(&response.cluster, Counted::of(response.mode(), response.epoch));
        for frame in response.frames {
            let frame = match v1::WatchFrame::decode(frame) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::warn!(server = %self.endpoint.address, %error, "an unreadable watch frame");
                    return Err(Left::failed(format!("an unreadable frame: {error}")));
                }
            };
            let todo = state.on_frame(frame);
            if let Some(reason) = todo.leave {
                return Err(Left {
                    reason: reason.into(),
                    endpoint: Fault::LeaveAlone,
                    preferred: Vec::new(),
                });
            }
            advice = todo.move_on.or(advice);
        }
        state.on_message_end();
        if state.is_dirty() {
            shared.dirty.notify_one();
        }
        Ok(advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: v1::ErrorCode) -> NoStream {
        let error = v1::Error {
            code: code.into(),
            ..v1::Error::default()
        };
        let details = error.encode_to_vec().into();
        NoStream::refused(&tonic::Status::with_details(tonic::Code::Unknown, "no", details))
    }

    #[test]
    fn a_token_is_unknown_if_all_that_are_there_say_so_whatever_is_down() {
        use v1::ErrorCode as C;
        let said = |answers: Vec<NoStream>| {
            let mut round = Round::default();
            let servers = answers.len();
            for (server, no) in answers.into_iter().enumerate() {
                round.on_asked(&format!("{server}:1"));
                round.on_no_stream(no.denied, no.refused);
            }
            round.on_asked("0:1");
            assert!(round.end(servers + 1).is_none(), "one is still to be asked");
            round.end(servers).is_some()
        };
        let stranger = || refused(C::Unauthenticated);
        let down = || NoStream::refused(&tonic::Status::unavailable("tcp connect error"));
        assert!(said(vec![stranger(), down(), stranger()]));
        assert!(said(vec![stranger(), NoStream::unanswered("late"), down()]));
        assert!(said(vec![refused(C::NotReady), refused(C::NotPermitted)]));
        assert!(!said(vec![stranger(), refused(C::Overloaded), stranger()]));
        assert!(!said(vec![down(), down()]));
    }

    #[test]
    fn who_has_let_us_in_knows_our_token_for_the_round() {
        let mut round = Round::default();
        round.on_opened();
        let no = refused(v1::ErrorCode::Unauthenticated);
        round.on_no_stream(no.denied.clone(), no.refused);
        assert!(round.end(0).is_none());
        round.on_no_stream(no.denied, no.refused);
        assert!(round.end(0).is_some(), "the next one is another");
    }
}
