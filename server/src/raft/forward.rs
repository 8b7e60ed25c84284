//! Writes taken at a follower, for the leader: one stream, many in flight, answered by call number.
//!
//! What had not left when the stream broke was surely not proposed; what had left is unknown, unless the
//! leader itself said that it did not propose it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::directory::{Outcome, Refusal};
use rollcall_proto::v1::forward_response::Result as Answer;
use rollcall_proto::v1::{Error, ErrorCode, ForwardRequest, ForwardResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::network::Peers;
use super::ticket::{Attempt, Reply, Ticket};

/// Writes that may wait for the stream; beyond it callers are told to come again.
const QUEUE_MAX: usize = 8_192;
/// Writes sent and not yet answered.
pub(crate) const IN_FLIGHT_MAX: usize = 4_096;
/// How long the stream may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

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
            queue,
            pending: HashMap::new(),
            next: 0,
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

struct Session {
    peers: Arc<Peers>,
    leader: u64,
    address: String,
    queue: mpsc::Receiver<Call>,
    pending: HashMap<u64, Reply>,
    next: u64,
}

impl Session {
    async fn run(mut self) {
        let reason = match self.open().await {
            Ok((requests, answers)) => self.carry(requests, answers).await,
            Err(reason) => reason,
        };
        tracing::debug!(leader = self.leader, %reason, "line to the leader ended");
        self.queue.close();
        while let Ok(call) = self.queue.try_recv() {
            not_sent(call, &reason);
        }
        let mut pending: Vec<_> = self.pending.drain().collect();
        pending.sort_by_key(|(call, _)| *call);
        for (_, reply) in pending {
            reply.send(Attempt::Unknown(reason.clone()));
        }
    }

    async fn open(&self) -> Result<(mpsc::Sender<ForwardRequest>, Streaming<ForwardResponse>), String> {
        let mut client = self
            .peers
            .client(self.leader, &self.address)
            .map_err(|error| error.to_string())?;
        let (requests, outgoing) = mpsc::channel(256);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.forward(ReceiverStream::new(outgoing))).await;
        let answers = opened
            .map_err(|_| "the leader was not reached in time")?
            .map_err(|status| status.to_string())?;
        Ok((requests, answers.into_inner()))
    }

    async fn carry(
        &mut self,
        requests: mpsc::Sender<ForwardRequest>,
        mut answers: Streaming<ForwardResponse>,
    ) -> String {
        loop {
            let room = self.pending.len() < IN_FLIGHT_MAX;
            let queue = &mut self.queue;
            // Room on the stream first, then a call: so nothing taken from the queue waits, and answers are
            // read meanwhile.
            let next = async {
                let permit = requests.reserve().await.ok()?;
                Some((permit, queue.recv().await?))
            };
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.take_answer(answer),
                    Ok(None) => return "the leader closed the line".into(),
                    Err(status) => return format!("the line to the leader broke: {}", status.message()),
                },
                next = next, if room => match next {
                    Some((permit, call)) => {
                        let number = self.next;
                        if let Some((request, reply)) = self.prepare(call) {
                            self.pending.insert(number, reply);
                            self.next += 1;
                            permit.send(request);
                        }
                    }
                    None => return "the line was replaced".into(),
                },
            }
        }
    }

    fn prepare(&self, call: Call) -> Option<(ForwardRequest, Reply)> {
        let left = call.deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        if timeout_ms == 0 || !call.ticket.try_send() {
            not_sent(call, "the deadline passed before it was sent");
            return None;
        }
        let request = ForwardRequest {
            cluster: self.peers.cluster().to_owned(),
            from: self.peers.server(),
            to: self.leader,
            call: self.next,
            request: call.reply.request().clone(),
            timeout_ms,
        };
        Some((request, call.reply))
    }

    fn take_answer(&mut self, answer: ForwardResponse) {
        if let Some(reply) = self.pending.remove(&answer.call) {
            reply.send(attempt_of(answer.result));
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

/// The leader's side: an attempt as an answer.
pub(crate) fn answer_of(call: u64, attempt: Attempt) -> ForwardResponse {
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
