//! A stream of queries; answers carry the number of their call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::discover_response::Answer;
use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::ANSWER_MAX;

pub(super) struct Queries {
    requests: mpsc::UnboundedSender<wire::DiscoverRequest>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    next: AtomicU64,
}

impl Queries {
    pub(super) async fn open(channel: Channel) -> Result<Self> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let mut client = RegistryClient::new(channel).max_decoding_message_size(ANSWER_MAX);
        let opening = client.discover(UnboundedReceiverStream::new(outgoing)).await?;
        let mut answers = opening.into_inner();
        let waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>> = Arc::default();
        let waiters = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Ok(Some(message)) = answers.message().await {
                let waiter = waiters.lock().remove(&message.call);
                if let (Some(waiter), Some(answer)) = (waiter, message.answer) {
                    let _gone = waiter.send(answer);
                }
            }
            waiters.lock().clear();
        });
        Ok(Self {
            requests,
            waiting,
            next: AtomicU64::new(1),
        })
    }

    /// `None`: there is no such service.
    pub(super) async fn ask(&self, query: wire::QueryRequest) -> Result<Option<wire::QueryResponse>> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().insert(call, answer);
        let request = wire::DiscoverRequest {
            call,
            query: Some(query),
            ..wire::DiscoverRequest::default()
        };
        self.requests.send(request).context("the stream has ended")?;
        match answered.await.context("the stream has ended")? {
            Answer::Found(found) => Ok(Some(found)),
            Answer::Error(error) => match error.code() {
                wire::ErrorCode::GroupNotFound | wire::ErrorCode::ServiceNotFound => Ok(None),
                code => Err(anyhow!("{} ({code:?})", error.message)),
            },
            Answer::Move(advice) => bail!("the server wants no queries: {}", advice.reason),
        }
    }
}
