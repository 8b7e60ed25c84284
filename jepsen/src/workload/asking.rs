//! One stream of queries at one particular server, asked one at a time.

use rollcall_proto::v1::discover_response::Answer;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{self, DiscoverRequest, DiscoverResponse, QueryRequest, QueryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::door::{CALL_MAX, SERVER_MAX_MS};

/// A stream; of no use any more after one call without an answer.
#[derive(Debug)]
pub(super) struct Asking {
    requests: mpsc::Sender<DiscoverRequest>,
    answers: Streaming<DiscoverResponse>,
    call: u64,
}

impl Asking {
    /// `None`: there is none to be had now.
    pub(super) async fn open(registry: &mut RegistryClient<Channel>) -> Option<Self> {
        let (requests, outgoing) = mpsc::channel(1);
        let opening = registry.discover(ReceiverStream::new(outgoing));
        let answers = tokio::time::timeout(CALL_MAX, opening).await.ok()?.ok()?;
        Some(Self {
            requests,
            answers: answers.into_inner(),
            call: 0,
        })
    }

    /// `None`: there was no answer, and there will be none.
    pub(super) async fn ask(&mut self, query: QueryRequest) -> Option<Result<QueryResponse, v1::Error>> {
        self.call += 1;
        let call = self.call;
        let request = DiscoverRequest {
            call,
            query: Some(query),
            timeout_ms: SERVER_MAX_MS,
        };
        let answered = async {
            self.requests.send(request).await.ok()?;
            loop {
                let message = self.answers.message().await.ok()??;
                match message.answer? {
                    Answer::Found(found) if message.call == call => return Some(Ok(found)),
                    Answer::Error(error) if message.call == call => return Some(Err(error)),
                    // The server closes: it still answers.
                    Answer::Found(_) | Answer::Error(_) | Answer::Move(_) => {}
                }
            }
        };
        tokio::time::timeout(CALL_MAX, answered).await.ok()?
    }
}
