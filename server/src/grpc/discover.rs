//! Queries on a stream: they come pipelined, each is answered by its call number as soon as it can be.
//!
//! The work is done by whoever sends the answers, when there is room to send: so no task and no queue stands between a
//! query and its answer, what came in together leaves together, and of a client that does not read no more is
//! taken in. A query that has to wait, for the leader or for a revision, waits beside the others, with a bound.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use rollcall_proto::v1::{self, discover_response::Answer};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::convert::{self, bounded};
use super::doors::Doors;
use super::oversize::of_transport;
use super::status::{self, DoorError, of_refusal};
use crate::access::Principal;
use crate::raft::ReadError;

/// How long a closing server works on what it has taken in.
const CLOSING_GRACE: Duration = Duration::from_secs(1);
/// When to come again with a query for which there is no room: those that wait have their answer soon, or never.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// How many queries of a busy stream are taken between two looks at whether the server closes.
const TURNS_BETWEEN_LOOKS: u64 = 64;
/// What an answer's number and frame take.
const ENVELOPE_BYTES: usize = 32;

type Found = Result<v1::QueryResponse, v1::Error>;
type Waiting = Pin<Box<dyn Future<Output = v1::DiscoverResponse> + Send>>;

/// Serves a stream; the answers.
pub(super) struct Discovery {
    doors: Doors,
    /// Whose stream it is.
    by: Principal,
    waiting: FuturesUnordered<Waiting>,
    /// The server closes.
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    stage: Stage,
}

enum Stage {
    /// It may ask.
    Asking {
        inbound: Box<Streaming<v1::DiscoverRequest>>,
        /// How many queries it has asked.
        asked: u64,
    },
    /// It has asked all it wanted.
    AskedAll,
    /// It was told that the server closes: what is not answered in time is not answered at all.
    Closing(Pin<Box<Sleep>>),
}

impl Discovery {
    pub(super) fn new(doors: Doors, by: Principal, inbound: Streaming<v1::DiscoverRequest>) -> Self {
        // A token of its own: that of all streams has a lock that they would share.
        let closing = Box::pin(doors.closing.child_token().cancelled_owned());
        doors.metrics.discover_streams.inc();
        Self {
            doors,
            by,
            waiting: FuturesUnordered::new(),
            closing,
            stage: Stage::Asking {
                inbound: Box::new(inbound),
                asked: 0,
            },
        }
    }

    /// The answer, if there is one at once.
    fn take(&mut self, message: v1::DiscoverRequest) -> Option<v1::DiscoverResponse> {
        let call = message.call;
        let found = self.begin(message).transpose()?;
        Some(self.doors.discovered(call, found))
    }

    /// `None`: it waits.
    fn begin(&mut self, message: v1::DiscoverRequest) -> Result<Option<v1::QueryResponse>, v1::Error> {
        self.doors.metrics.stream_calls.query.inc();
        self.doors.look_again(&mut self.by)?;
        let query = convert::required("query", message.query).map_err(|e| of_refusal(&e))?;
        if let Some(found) = self.doors.query_at_once(&query) {
            return found.map(Some);
        }
        let place = self.place_to_wait()?;
        let (doors, call, patience) = (self.doors.clone(), message.call, message.timeout_ms);
        self.waiting.push(Box::pin(async move {
            let _place = place;
            let found = doors.query_within(query, patience).await;
            doors.discovered(call, found)
        }));
        Ok(None)
    }

    /// Leave to wait, for as long as it is kept. Each stream has one place of its own, so that nobody can take them all; the
    /// others have a bound for the stream, and one for all streams.
    fn place_to_wait(&self) -> Result<Option<OwnedSemaphorePermit>, DoorError> {
        let (waiting, limits) = (self.waiting.len(), &self.doors.limits);
        let overloaded = |problem| DoorError::Overloaded {
            problem,
            retry_after: ROOM_PAUSE,
        };
        if waiting == 0 {
            return Ok(None);
        }
        if waiting >= limits.queries_per_stream_max {
            return Err(overloaded(format!(
                "{waiting} queries of this stream wait already"
            )));
        }
        let place = self.doors.places_to_wait.clone().try_acquire_owned();
        let all = limits.queries_waiting_max;
        place
            .map(Some)
            .map_err(|_| overloaded(format!("{all} queries wait at this server already")))
    }

    /// Tells the client to ask elsewhere.
    fn close(&mut self) -> v1::DiscoverResponse {
        self.stage = Stage::Closing(Box::pin(tokio::time::sleep(CLOSING_GRACE)));
        v1::DiscoverResponse {
            call: 0,
            answer: Some(Answer::Move(v1::MoveAdvice {
                after_ms: 0,
                servers: self.doors.other_servers(),
                reason: "the server is closing".into(),
            })),
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.doors.metrics.discover_streams.dec();
    }
}

impl Stream for Discovery {
    type Item = Result<v1::DiscoverResponse, Status>;

    /// What has waited goes before what is asked, so that a stream that asks without end gets its answers.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if !this.waiting.is_empty()
                && let Poll::Ready(Some(answer)) = this.waiting.poll_next_unpin(cx)
            {
                return Poll::Ready(Some(Ok(answer)));
            }
            if let Stage::Asking { asked, .. } = &this.stage
                && asked.is_multiple_of(TURNS_BETWEEN_LOOKS)
                && this.closing.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Some(Ok(this.close())));
            }
            match &mut this.stage {
                Stage::Asking { inbound, asked } => match inbound.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(message))) => {
                        *asked += 1;
                        if let Some(answer) = this.take(message) {
                            return Poll::Ready(Some(Ok(answer)));
                        }
                    }
                    Poll::Ready(Some(Err(refusal))) => {
                        this.stage = Stage::AskedAll;
                        this.waiting.clear();
                        return Poll::Ready(Some(Err(this.doors.unreadable(refusal))));
                    }
                    Poll::Ready(None) => this.stage = Stage::AskedAll,
                    Poll::Pending => {
                        std::task::ready!(this.closing.as_mut().poll(cx));
                        return Poll::Ready(Some(Ok(this.close())));
                    }
                },
                Stage::AskedAll if this.waiting.is_empty() => return Poll::Ready(None),
                Stage::AskedAll => {
                    std::task::ready!(this.closing.as_mut().poll(cx));
                    return Poll::Ready(Some(Ok(this.close())));
                }
                Stage::Closing(grace) => {
                    if !this.waiting.is_empty() {
                        std::task::ready!(grace.as_mut().poll(cx));
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl Doors {
    /// A query, given up when its caller no longer waits.
    async fn query_within(&self, query: v1::QueryRequest, timeout_ms: u32) -> Found {
        if timeout_ms == 0 {
            return self.query(query).await;
        }
        let patience = Duration::from_millis(timeout_ms.into()).min(self.limits.read_timeout);
        let found = tokio::time::timeout_at(Instant::now() + patience, self.query(query));
        found.await.unwrap_or_else(|_| {
            let reason = format!("no answer within {timeout_ms} ms");
            Err(status::of_read(&ReadError::Unavailable { reason }))
        })
    }

    fn discovered(&self, call: u64, found: Found) -> v1::DiscoverResponse {
        let found = found.and_then(|found| {
            // The transport ends a stream for an answer that is too large.
            let bytes_max = self.limits.message_bytes_max.saturating_sub(ENVELOPE_BYTES);
            bounded("the answer in bytes", found.encoded_len(), bytes_max).map_err(|e| of_refusal(&e))?;
            Ok(found)
        });
        let answer = match found {
            Ok(found) => Answer::Found(found),
            Err(error) => {
                self.metrics.error(&error);
                tracing::debug!(call, code = error.code().as_str_name(), message = %error.message, "refused");
                Answer::Error(error)
            }
        };
        v1::DiscoverResponse {
            call,
            answer: Some(answer),
        }
    }

    /// What becomes of a stream whose request cannot be read.
    fn unreadable(&self, refusal: Status) -> Status {
        match of_transport(&refusal) {
            Some(error) => {
                self.metrics.error(&error);
                status::status(&error)
            }
            None => refusal,
        }
    }
}
