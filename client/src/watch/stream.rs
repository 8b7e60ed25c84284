//! The task behind a handle's watches: one stream at one server at a time.

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
use crate::backoff::Backoff;
use crate::endpoint::Endpoint;

/// Requests that wait for the connection; further ones wait in the shared state.
const OUTGOING_ROOM: usize = 64;
/// How long a server that asked us to move, or that misses changes, is left alone.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(5);

/// Keeps the stream until the last handle is gone.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut pause = Backoff::new(Duration::from_millis(50), shared.config.put_aside_max);
    let mut preferred = Vec::new();
    let mut tried = 0;
    while shared.wait_until_wanted().await {
        let endpoint = shared.endpoints.pick_preferred(&std::mem::take(&mut preferred));
        tried += 1;
        match Stream::open(&shared, Arc::clone(&endpoint)).await {
            Ok(mut stream) => {
                endpoint.answered();
                let left = stream.run(&shared).await;
                if stream.heard {
                    pause.reset();
                    tried = 0;
                }
                shared.state.lock().on_interrupted(&left.reason);
                tracing::debug!(server = %endpoint.address, reason = %left.reason, "watch stream left");
                preferred = left.preferred;
                match left.endpoint {
                    Fault::Failed => endpoint.failed(),
                    Fault::None => {}
                    Fault::LeaveAlone => endpoint.put_aside_for(LEFT_ALONE_FOR),
                }
            }
            Err(reason) => {
                endpoint.failed();
                tracing::debug!(server = %endpoint.address, reason, "no watch stream");
            }
        }
        // Every server gets its turn at once, then there is a growing pause.
        if tried > 0 && tried % shared.endpoints.len() == 0 {
            let wait = pause.next_delay();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shared.wait_until_closed() => {}
            }
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

enum Fault {
    None,
    Failed,
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
}

impl Stream {
    async fn open(shared: &Shared, endpoint: Arc<Endpoint>) -> Result<Self, String> {
        let (outgoing, requests) = mpsc::channel(OUTGOING_ROOM);
        let mut client = WatchClient::new(endpoint.channel.clone())
            .max_decoding_message_size(shared.config.message_bytes_max);
        shared.state.lock().on_connected();
        // A server may answer only once it has heard the first word.
        let first = shared.state.lock().take_request(Instant::now());
        let hello = v1::WatchRequest {
            request: first,
            client: shared.config.client_name.clone(),
        };
        if outgoing.try_send(hello).is_err() {
            return Err("the stream was closed".into());
        }
        let opening = client.watch(ReceiverStream::new(requests));
        match tokio::time::timeout(shared.config.attempt_timeout, opening).await {
            Ok(Ok(response)) => Ok(Self {
                endpoint,
                outgoing,
                incoming: response.into_inner(),
                heard: false,
            }),
            Ok(Err(status)) => Err(status.message().into()),
            Err(_) => Err("no answer in time".into()),
        }
    }

    async fn run(&mut self, shared: &Shared) -> Left {
        let silence_max = shared.config.watch_silence_max;
        let mut last_heard = Instant::now();
        let mut move_at: Option<(Instant, Vec<String>)> = None;
        let mut unsent = None;
        loop {
            if unsent.is_none() {
                unsent = shared.state.lock().take_request(Instant::now());
            }
            let wake_at = [
                move_at.as_ref().map(|(at, _)| *at),
                silence_max.map(|silence| last_heard + silence),
                shared.state.lock().ask_at(),
            ];
            let idle = Instant::now() + Duration::from_secs(60);
            let wake_at = wake_at.into_iter().flatten().fold(idle, Instant::min);
            tokio::select! {
                permit = self.outgoing.reserve(), if unsent.is_some() => match permit {
                    Ok(permit) => {
                        permit.send(v1::WatchRequest { request: unsent.take(), client: String::new() });
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
            if silence_max.is_some_and(|silence| last_heard + silence <= now) {
                return Left::failed("nothing came for too long");
            }
            if let Some((at, servers)) = &move_at
                && *at <= now
            {
                let preferred = servers.clone();
                return Left {
                    reason: "the server asked to move".into(),
                    endpoint: Fault::LeaveAlone,
                    preferred,
                };
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
        if !state.dirty.is_empty() {
            shared.dirty.notify_one();
        }
        Ok(advice)
    }
}
