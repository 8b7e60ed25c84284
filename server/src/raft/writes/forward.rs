//! Writes taken at a follower, for the leader: one stream, many in flight, answered by call number.
//!
//! What had not left when the stream broke was surely not proposed; what had left is unknown, unless the
//! leader itself said that it did not propose it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use rollcall_core::directory::{Outcome, Refusal};
use rollcall_proto::v1::forward_response::Result as Answer;
use rollcall_proto::v1::{ErrorCode, ForwardRequest, ForwardResponse};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::ticket::{Attempt, Reply, Ticket};
use crate::pulse;
use crate::raft::network::Peers;

/// Writes that may wait for the stream; beyond it callers are told to come again.
const QUEUE_MAX: usize = 8_192;
/// Writes sent and not yet answered.
pub(crate) const IN_FLIGHT_MAX: usize = 4_096;
/// How long the stream may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often those are looked for that have waited too long.
const GIVE_UP_PAUSE: Duration = Duration::from_secs(1);

/// One write on its way to the leader.
pub(crate) struct Call {
    pub(crate) deadline: Instant,
    pub(crate) ticket: Ticket,
    pub(crate) reply: Reply,
}

/// The stream to whoever leads.
#[derive(Debug)]
pub(crate) struct Forwarder {
    peers: Arc<Peers>,
    stop: CancellationToken,
    line: Mutex<Option<Line>>,
}

#[derive(Debug)]
struct Line {
    leader: u64,
    address: String,
    calls: mpsc::Sender<Call>,
}

impl Forwarder {
    pub(crate) fn new(peers: Arc<Peers>, stop: CancellationToken) -> Self {
        Self {
            peers,
            stop,
            line: Mutex::new(None),
        }
    }

    /// Queues a write for `leader`; the answer comes through its reply.
    pub(crate) fn submit(&self, leader: u64, address: &str, call: Call) {
        let mut line = self.line.lock();
        let fits = line
            .as_ref()
            .is_some_and(|line| line.leader == leader && line.address == address && !line.calls.is_closed());
        if !fits {
            *line = Some(self.open(leader, address));
        }
        let Some(line) = line.as_ref() else { return };
        match line.calls.try_send(call) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(call)) => call.reply.send(Attempt::Overloaded),
            Err(mpsc::error::TrySendError::Closed(call)) => not_sent(call, "the line to the leader broke"),
        }
    }

    fn open(&self, leader: u64, address: &str) -> Line {
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let session = Session {
            peers: self.peers.clone(),
            leader,
            address: address.to_owned(),
            traffic: Arc::new(Mutex::new(Traffic::new(queue))),
        };
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(session.run()));
        Line {
            leader,
            address: address.to_owned(),
            calls,
        }
    }
}

fn not_sent(call: Call, reason: &str) {
    call.reply.send(Attempt::NotProposed(reason.to_owned()));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing leaves yet: if the stream does not open, nothing was proposed.
    Opening,
    Open,
    Over,
}

/// A write that leaves now.
struct Departure {
    number: u64,
    request: Bytes,
    timeout_ms: u32,
}

/// What waits for a stream and what it has sent, shared by its two halves.
struct Traffic {
    stage: Stage,
    queue: mpsc::Receiver<Call>,
    /// Each with its deadline.
    pending: HashMap<u64, (Instant, Reply)>,
    next: u64,
    /// Of whoever sends, when there was nothing to send.
    sender: Option<Waker>,
}

impl Traffic {
    fn new(queue: mpsc::Receiver<Call>) -> Self {
        Self {
            stage: Stage::Opening,
            queue,
            pending: HashMap::new(),
            next: 0,
            sender: None,
        }
    }

    /// The next write to leave; none when the stream is over.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Departure>> {
        loop {
            let next = match self.stage {
                Stage::Over => return Poll::Ready(None),
                Stage::Open if self.pending.len() < IN_FLIGHT_MAX => self.queue.poll_recv(cx),
                Stage::Opening | Stage::Open => Poll::Pending,
            };
            let Poll::Ready(call) = next else {
                self.sender = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let Some(call) = call else {
                return Poll::Ready(None);
            };
            if let Some(next) = self.depart(call) {
                return Poll::Ready(Some(next));
            }
        }
    }

    fn depart(&mut self, call: Call) -> Option<Departure> {
        let left = call.deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        if timeout_ms == 0 || !call.ticket.try_send() {
            not_sent(call, "the deadline passed before it was sent");
            return None;
        }
        let (number, request) = (self.next, call.reply.request().clone());
        self.next += 1;
        self.pending.insert(number, (call.deadline, call.reply));
        Some(Departure {
            number,
            request,
            timeout_ms,
        })
    }

    /// The reply that waits for this answer.
    fn settle(&mut self, number: u64) -> Option<Reply> {
        if self.pending.len() == IN_FLIGHT_MAX {
            self.wake_sender();
        }
        self.pending.remove(&number).map(|(_, reply)| reply)
    }

    /// Those for which nobody waits any more give up their place and their room: a leader that was deposed may not know for
    /// long what becomes of them.
    fn give_up(&mut self, now: Instant) {
        let overdue = self.pending.extract_if(|_, (deadline, _)| *deadline <= now);
        let mut overdue: Vec<_> = overdue.collect();
        overdue.sort_by_key(|(number, _)| *number);
        if !overdue.is_empty() {
            self.wake_sender();
        }
        for (_, (_, reply)) in overdue {
            reply.send(Attempt::Unknown("no answer before the deadline".into()));
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.wake_sender();
    }

    fn wake_sender(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }

    /// Nothing leaves any more.
    fn end(&mut self, reason: &str) {
        self.enter(Stage::Over);
        self.queue.close();
        while let Ok(call) = self.queue.try_recv() {
            not_sent(call, reason);
        }
        let mut pending: Vec<_> = self.pending.drain().collect();
        pending.sort_by_key(|(number, _)| *number);
        for (_, (_, reply)) in pending {
            reply.send(Attempt::Unknown(reason.to_owned()));
        }
    }
}

/// The writes of a stream. Whoever sends takes them straight from the queue.
struct Outgoing {
    peers: Arc<Peers>,
    leader: u64,
    traffic: Arc<Mutex<Traffic>>,
    /// Told when nothing will leave any more: the line was replaced, or broke.
    left: Arc<Notify>,
}

impl Stream for Outgoing {
    type Item = ForwardRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ForwardRequest>> {
        let next = ready!(self.traffic.lock().poll_next(cx));
        if next.is_none() {
            self.left.notify_one();
        }
        Poll::Ready(next.map(|next| ForwardRequest {
            cluster: self.peers.cluster().to_owned(),
            from: self.peers.server(),
            to: self.leader,
            call: next.number,
            request: next.request,
            timeout_ms: next.timeout_ms,
        }))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.left.notify_one();
    }
}

struct Session {
    peers: Arc<Peers>,
    leader: u64,
    address: String,
    traffic: Arc<Mutex<Traffic>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.traffic.lock().end("this server is stopping");
    }
}

impl Session {
    async fn run(self) {
        let left = Arc::default();
        let reason = match self.open(&left).await {
            Ok(answers) => tokio::select! {
                reason = self.take_answers(answers) => reason,
                () = left.notified() => "the line was replaced".into(),
                never = self.give_up() => match never {},
            },
            Err(reason) => reason,
        };
        tracing::debug!(leader = self.leader, %reason, "line to the leader ended");
        self.traffic.lock().end(&reason);
    }

    async fn open(&self, left: &Arc<Notify>) -> Result<Streaming<ForwardResponse>, String> {
        let mut client = self
            .peers
            .client(self.leader, &self.address)
            .map_err(|error| error.to_string())?;
        let outgoing = Outgoing {
            peers: self.peers.clone(),
            leader: self.leader,
            traffic: self.traffic.clone(),
            left: left.clone(),
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.forward(outgoing)).await;
        let answers = opened
            .map_err(|_| "the leader was not reached in time")?
            .map_err(|status| status.to_string())?;
        self.traffic.lock().enter(Stage::Open);
        Ok(answers.into_inner())
    }

    async fn give_up(&self) -> Infallible {
        loop {
            tokio::time::sleep_until(pulse::after(GIVE_UP_PAUSE)).await;
            self.traffic.lock().give_up(Instant::now());
        }
    }

    /// Until there are no more; why.
    async fn take_answers(&self, mut answers: Streaming<ForwardResponse>) -> String {
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    let reply = self.traffic.lock().settle(answer.call);
                    if let Some(reply) = reply {
                        reply.send(attempt_of(answer.result));
                    }
                }
                Ok(None) => return "the leader closed the line".into(),
                Err(status) => return format!("the line to the leader broke: {}", status.message()),
            }
        }
    }
}

fn attempt_of(answer: Option<Answer>) -> Attempt {
    let unreadable =
        |what: &str, error: String| Attempt::Unknown(format!("the leader's {what} is unreadable: {error}"));
    match answer {
        Some(Answer::Outcome(bytes)) => match Outcome::decode(&bytes) {
            Ok(outcome) => Attempt::Applied(Ok(outcome)),
            Err(error) => unreadable("outcome", error.to_string()),
        },
        Some(Answer::Refusal(bytes)) => match Refusal::decode(&bytes) {
            Ok(refusal) => Attempt::Applied(Err(refusal)),
            Err(error) => unreadable("refusal", error.to_string()),
        },
        Some(Answer::Error(error)) => match error.code() {
            ErrorCode::DiskFull => Attempt::DiskFull,
            ErrorCode::Overloaded => Attempt::Overloaded,
            ErrorCode::Unavailable => Attempt::NotProposed(error.message),
            _ => Attempt::Unknown(error.message),
        },
        None => Attempt::Unknown("the leader's answer is empty".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use tokio::sync::oneshot;

    use super::super::ticket::{Admitted, Answered};
    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    struct Fixture {
        traffic: Traffic,
        calls: mpsc::Sender<Call>,
        woken: Arc<Woken>,
    }

    impl Fixture {
        fn new(stage: Stage) -> Self {
            let (calls, queue) = mpsc::channel(QUEUE_MAX);
            let mut traffic = Traffic::new(queue);
            traffic.enter(stage);
            Self {
                traffic,
                calls,
                woken: Arc::default(),
            }
        }

        fn queue(&self) -> (Ticket, oneshot::Receiver<Answered>) {
            let (reply, answered) = Reply::to(Admitted::new(Bytes::from_static(b"write"), None));
            let ticket = Ticket::default();
            let deadline = Instant::now() + Duration::from_secs(60);
            let call = Call {
                deadline,
                ticket: ticket.clone(),
                reply,
            };
            self.calls.try_send(call).map_err(|_| "full").unwrap();
            (ticket, answered)
        }

        /// The number of the next to leave.
        fn poll(&mut self) -> Poll<Option<u64>> {
            let waker = Waker::from(self.woken.clone());
            let next = self.traffic.poll_next(&mut Context::from_waker(&waker));
            next.map(|next| next.map(|next| next.number))
        }

        fn take_woken(&self) -> bool {
            self.woken.0.swap(false, Ordering::AcqRel)
        }
    }

    #[tokio::test]
    async fn before_the_stream_is_open_nothing_leaves_and_nothing_was_proposed() {
        let mut line = Fixture::new(Stage::Opening);
        let (_, answered) = line.queue();
        assert_eq!(line.poll(), Poll::Pending);
        line.traffic.end("not reached");
        assert!(line.take_woken(), "whoever sends learns of the end");
        assert_eq!(line.poll(), Poll::Ready(None));
        assert!(
            line.calls.is_closed(),
            "so that the next write opens another line"
        );
        let (attempt, again) = answered.await.unwrap();
        assert!(matches!(attempt, Attempt::NotProposed(_)), "{attempt:?}");
        assert!(again.is_some());
    }

    #[tokio::test]
    async fn what_has_left_is_unknown_when_the_stream_breaks_and_the_rest_was_not_proposed() {
        let mut line = Fixture::new(Stage::Opening);
        assert_eq!(line.poll(), Poll::Pending);
        let (_, first) = line.queue();
        let (given_up, _) = line.queue();
        let (_, third) = line.queue();
        line.traffic.enter(Stage::Open);
        assert!(line.take_woken(), "it may send now");
        assert!(given_up.try_cancel());
        assert_eq!(line.poll(), Poll::Ready(Some(0)));
        assert_eq!(
            line.poll(),
            Poll::Ready(Some(1)),
            "who has given up takes no number"
        );
        let (_, fourth) = line.queue();
        let reply = line.traffic.settle(1).unwrap();
        reply.send(Attempt::Overloaded);
        line.traffic.end("broke");
        assert!(line.traffic.settle(0).is_none(), "a late answer is nobody's");
        assert!(matches!(first.await.unwrap().0, Attempt::Unknown(_)));
        assert!(matches!(third.await.unwrap().0, Attempt::Overloaded));
        assert!(matches!(fourth.await.unwrap().0, Attempt::NotProposed(_)));
    }

    #[test]
    fn with_the_most_under_way_the_next_waits_for_an_answer() {
        let mut line = Fixture::new(Stage::Open);
        let answered: Vec<_> = (0..=IN_FLIGHT_MAX).map(|_| line.queue().1).collect();
        let sent = std::iter::from_fn(|| match line.poll() {
            Poll::Ready(number) => number,
            Poll::Pending => None,
        });
        assert_eq!(sent.count(), IN_FLIGHT_MAX);
        assert!(!line.take_woken());
        assert!(line.traffic.settle(7).is_some());
        assert!(line.take_woken());
        assert_eq!(line.poll(), Poll::Ready(Some(IN_FLIGHT_MAX as u64)));
        drop(answered);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_keeps_no_place() {
        let mut line = Fixture::new(Stage::Open);
        let (_, answered) = line.queue();
        assert_eq!(line.poll(), Poll::Ready(Some(0)));
        assert_eq!(line.poll(), Poll::Pending);
        line.traffic.give_up(Instant::now());
        assert_eq!(line.traffic.pending.len(), 1, "its time is not up");
        line.traffic.give_up(Instant::now() + Duration::from_secs(61));
        assert!(line.traffic.pending.is_empty() && line.take_woken());
        assert!(matches!(answered.await.unwrap().0, Attempt::Unknown(_)));
        assert!(line.traffic.settle(0).is_none(), "a late answer is nobody's");
    }

    #[test]
    fn a_line_that_is_replaced_sends_what_waits_and_then_ends() {
        let mut line = Fixture::new(Stage::Open);
        let (_, _answered) = line.queue();
        line.calls = mpsc::channel(1).0;
        assert_eq!(line.poll(), Poll::Ready(Some(0)));
        assert_eq!(line.poll(), Poll::Ready(None));
    }
}
