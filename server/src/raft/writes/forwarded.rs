//! The leader's end of a line on which another server forwards writes: proposed in the order in which they are read, answered
//! as they finish.
//!
//! Neither a task nor a timer nor a look of its own stands behind a write: who answers proposals puts the answers in
//! the line's queue, and whoever sends them takes all that are there. When its time is up the other server has told its caller
//! already; here a write keeps its place until it is known what became of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use rollcall_core::directory::Request;
use rollcall_proto::v1::forward_response::Result as Answer;
use rollcall_proto::v1::{Error, ErrorCode, ForwardRequest, ForwardResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::attempt::REQUEST_BYTES_MAX;
use super::forward::IN_FLIGHT_MAX;
use super::proposer::Proposal;
use super::ticket::{Attempt, Numbered, Reply};
use crate::raft::consensus::Inner;

type Told = Result<ForwardResponse, Status>;

/// A line's answers. Polling them reads the writes, as long as fewer than [`IN_FLIGHT_MAX`] are under way.
pub(in crate::raft) struct Forwarded<R> {
    inner: Arc<Inner>,
    /// `None`: there are no more.
    requests: Option<R>,
    under_way: usize,
    /// Each write under way answers once, so this holds no more than those.
    answers: mpsc::UnboundedSender<Numbered>,
    answered: mpsc::UnboundedReceiver<Numbered>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<R> Forwarded<R>
where
    R: Stream<Item = Result<ForwardRequest, Status>> + Unpin,
{
    pub(in crate::raft) fn new(inner: Arc<Inner>, requests: R) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        Self {
            stopped: Box::pin(inner.stop.clone().cancelled_owned()),
            inner,
            requests: Some(requests),
            under_way: 0,
            answers,
            answered,
        }
    }

    /// Proposes a write, or answers it at once; `Err`: it is not for this server.
    fn begin(&mut self, request: ForwardRequest) -> Result<(), Status> {
        let peers = &self.inner.peers;
        peers.check(&request.cluster, request.from, request.to)?;
        self.under_way += 1;
        let call = request.call;
        if let Err(refused) = self.propose(request) {
            // This end of it is ours, so it is open.
            let _sent = self.answers.send((call, refused));
        }
        Ok(())
    }

    /// `Err`: it surely was not proposed.
    fn propose(&self, request: ForwardRequest) -> Result<(), Attempt> {
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.timeout_ms));
        check(&request.request).map_err(Attempt::NotProposed)?;
        self.inner.may_propose()?;
        let admitted = self.inner.admit(request.request).ok_or(Attempt::Overloaded)?;
        self.inner.submit(Proposal {
            term: None,
            deadline,
            ticket: None,
            reply: Reply::on_line(request.call, self.answers.clone(), admitted),
        });
        Ok(())
    }

    /// Reads what has come; `Err`: the line ends for it.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        while self.under_way < IN_FLIGHT_MAX
            && let Some(requests) = &mut self.requests
        {
            match std::task::ready!(Pin::new(requests).poll_next(cx)) {
                Some(request) => self.begin(request?)?,
                None => self.requests = None,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the log cannot be read back from must never get into it, and neither must an entry too large for a message to the
/// followers: it would stop replication for good.
fn check(request: &[u8]) -> Result<(), String> {
    let bytes = request.len();
    if bytes > REQUEST_BYTES_MAX {
        return Err(format!(
            "the request has {bytes} bytes, at most {REQUEST_BYTES_MAX} are taken"
        ));
    }
    match Request::decode(request) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the request is unreadable here: {error}")),
    }
}

impl<R> Stream for Forwarded<R>
where
    R: Stream<Item = Result<ForwardRequest, Status>> + Unpin,
{
    type Item = Told;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Told>> {
        let this = &mut *self;
        // Writes first: the answers to those that came together leave together anyhow.
        let read = this.poll_requests(cx);
        if let Poll::Ready(Err(status)) = read {
            this.requests = None;
            return Poll::Ready(Some(Err(status)));
        }
        if let Poll::Ready(Some((call, attempt))) = this.answered.poll_recv(cx) {
            this.under_way -= 1;
            return Poll::Ready(Some(Ok(answer_of(call, attempt))));
        }
        if this.requests.is_none() && this.under_way == 0 {
            return Poll::Ready(None);
        }
        // One lock for everything that waits for it: only once there is nothing to do.
        this.stopped.as_mut().poll(cx).map(|()| None)
    }
}

/// An attempt as an answer.
fn answer_of(call: u64, attempt: Attempt) -> ForwardResponse {
    let error = |code: ErrorCode, message: String| {
        Answer::Error(Error {
            code: code.into(),
            message,
            ..Error::default()
        })
    };
    let result = match attempt {
        Attempt::Applied(Ok(outcome)) => Answer::Outcome(outcome.encode()),
        Attempt::Applied(Err(refusal)) => Answer::Refusal(refusal.encode()),
        Attempt::NotProposed(reason) => error(ErrorCode::Unavailable, reason),
        Attempt::DiskFull => error(ErrorCode::DiskFull, String::new()),
        Attempt::Overloaded => error(ErrorCode::Overloaded, String::new()),
        Attempt::Unknown(reason) => error(ErrorCode::OutcomeUnknown, reason),
    };
    ForwardResponse {
        call,
        result: Some(result),
    }
}
