//! A raw stream of queries, answered by call number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::discover_response::Answer;
use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::exit::{Failure, Nature, failure_of};
use crate::servers::ANSWER_BYTES_MAX;

/// Requests that may wait for the connection.
const OUTGOING_MAX: usize = 1_024;

/// One stream; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct QueryStream {
    requests: mpsc::Sender<wire::DiscoverRequest>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
}

/// Who waits for which call. `None`: the stream is over.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;

impl QueryStream {
    pub(crate) async fn open(channel: Channel, timeout: Duration) -> Result<Self, Failure> {
        let (requests, outgoing) = mpsc::channel(OUTGOING_MAX);
        let mut client = RegistryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let opening = client.discover(ReceiverStream::new(outgoing));
        let answers = tokio::time::timeout(timeout, opening)
            .await
            .map_err(|_| Failure::timeout("the stream of queries was not opened in time"))?
            .map_err(|status| failure_of(&status, Nature::Read))?
            .into_inner();
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(hand_out(answers, Arc::clone(&waiting)));
        Ok(Self {
            requests,
            waiting,
            next: Arc::new(AtomicU64::new(1)),
        })
    }

    /// One query.
    pub(crate) async fn ask(self, query: wire::QueryRequest) -> Result<wire::QueryResponse, Failure> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => _ = waiting.insert(call, answer),
            None => return Err(lost()),
        }
        let request = wire::DiscoverRequest {
            call,
            query: Some(query),
            ..wire::DiscoverRequest::default()
        };
        self.requests.send(request).await.map_err(|_| lost())?;
        match answered.await.map_err(|_| lost())? {
            Answer::Found(found) => Ok(found),
            Answer::Error(error) => Err(error.into()),
            Answer::Move(_) => Err(lost()),
        }
    }
}

async fn hand_out(mut answers: Streaming<wire::DiscoverResponse>, waiting: Arc<Mutex<Waiting>>) {
    while let Ok(Some(message)) = answers.message().await {
        let caller = lock(&waiting)
            .as_mut()
            .and_then(|waiting| waiting.remove(&message.call));
        if let (Some(caller), Some(answer)) = (caller, message.answer) {
            let _gone = caller.send(answer);
        }
    }
    *lock(&waiting) = None;
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Failure {
    Failure::unavailable("the stream of queries was closed by the server")
}
