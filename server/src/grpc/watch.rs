//! Watch streams: what the client asks goes to the hub, what the hub has goes to the client.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rollcall_core::directory::Refusal;
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_proto::v1::{self, watch_request, watch_server::Watch, watch_target};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, bounded};
use super::doors::Doors;
use super::listener::Peer;
use super::oversize;
use super::status::{of_refusal, of_stream_end, of_subscribe, of_too_many_streams, status};
use crate::watch::{StreamEnd, StreamHandle, SubscribeError, Subscription, Target};

/// Largest request of a watch stream: a subscription may bring many known signs.
pub(super) const WATCH_REQUEST_BYTES_MAX: usize = 8 << 20;

#[tonic::async_trait]
impl Watch for Doors {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let cut = peer.map_or_else(CancellationToken::new, |peer| peer.cut.clone());
        let opened = self.reader.check_ready().and_then(|()| {
            self.hub
                .open("", self.reader.identity(), cut)
                .map_err(of_too_many_streams)
        });
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return self.answer("watch", Err(error)),
        };
        self.metrics.call("watch");
        let asking = Asking {
            doors: self.clone(),
            stream: stream.handle(),
            patience_ends: None,
        };
        tokio::spawn(asking.run(request.into_inner()));
        let answers = futures_util::stream::unfold(stream, |mut stream| async move {
            let next = stream.next().await?;
            Some((next.map_err(|end| status(&of_stream_end(&end))), stream))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn convergence(
        &self,
        request: Request<v1::ConvergenceRequest>,
    ) -> Result<Response<v1::ConvergenceResponse>, Status> {
        self.answer("convergence", self.converged(&request.into_inner()))
    }
}

impl Doors {
    fn converged(&self, request: &v1::ConvergenceRequest) -> Result<v1::ConvergenceResponse, v1::Error> {
        let refused = |refusal: Refusal| of_refusal(&refusal);
        bounded("keys in one call", request.keys.len(), self.limits.batch_max).map_err(refused)?;
        let keys: Vec<ServiceKey> = request
            .keys
            .iter()
            .map(|key| convert::service_key_from("keys", Some(key)))
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        let applied = self.reader.consensus().directory().read().revision();
        let convergence = self.hub.convergence(&keys, Revision(request.revision));
        let mut header = self.reader.write_header(applied);
        header.read_mode = v1::ReadMode::Local.into();
        let behind = convergence
            .behind
            .into_iter()
            .map(|(client, acked)| v1::WatcherBehind {
                client,
                acknowledged: acked.0,
            });
        Ok(v1::ConvergenceResponse {
            header: Some(header),
            subscribers: convergence.subscribers as u64,
            current: convergence.current as u64,
            behind: behind.collect(),
        })
    }
}

/// Reads what the client asks.
struct Asking {
    doors: Doors,
    stream: StreamHandle,
    /// A subscription has waited in vain for this server to catch up; others do not wait beyond this.
    patience_ends: Option<Instant>,
}

impl Asking {
    async fn run(mut self, mut inbound: Streaming<v1::WatchRequest>) {
        let stream = self.stream.clone();
        let asking = async {
            loop {
                match inbound.message().await {
                    Ok(Some(message)) => self.take(message).await,
                    // The client has asked everything it wants; it goes on reading.
                    Ok(None) => return,
                    Err(refusal) => {
                        return match oversize::sizes(&refusal) {
                            Some(sizes) => self.stream.end(StreamEnd::Oversize { sizes: sizes.into() }),
                            None => self.stream.close(),
                        };
                    }
                }
            }
        };
        tokio::select! {
            () = asking => {}
            () = stream.closed() => {}
        }
    }

    async fn take(&mut self, message: v1::WatchRequest) {
        if !message.client.is_empty() {
            self.stream.name(&message.client);
        }
        if !message.consumer.is_empty() {
            self.stream.name_consumer(&message.consumer);
        }
        match message.request {
            Some(watch_request::Request::Subscribe(subscribe)) => {
                let id = subscribe.subscription;
                if let Err(error) = self.subscribe(subscribe).await {
                    self.doors.metrics.error(&error);
                    self.stream.reject(id, error);
                }
            }
            Some(watch_request::Request::Unsubscribe(unsubscribe)) => {
                self.stream.unsubscribe(unsubscribe.subscription);
            }
            Some(watch_request::Request::Ack(ack)) => self.stream.ack(Revision(ack.revision)),
            // A name alone, or something this version does not know.
            None => {}
        }
    }

    async fn subscribe(&mut self, subscribe: v1::Subscribe) -> Result<(), v1::Error> {
        self.doors.metrics.call("subscribe");
        let subscription = subscription_from(subscribe).map_err(|e| of_refusal(&e))?;
        self.doors.reader.check_ready()?;
        let after = subscription.after;
        let patience = self.patience();
        if !self.doors.reader.applied(after, patience).await {
            self.patience_ends.get_or_insert(Instant::now());
            let head = self.doors.reader.consensus().directory().read().revision();
            return Err(of_subscribe(&SubscribeError::Ahead { after, head }));
        }
        if self.stream.must_wait(&subscription).await {
            return Ok(());
        }
        self.stream.subscribe(subscription).map_err(|e| of_subscribe(&e))
    }

    /// Until when a subscription may wait for a revision. After one has waited in vain, the next ones are
    /// answered at once, so that a client with many is not kept waiting for each.
    fn patience(&mut self) -> Instant {
        let wait: Duration = self.doors.watch.catch_up_wait;
        let now = Instant::now();
        match self.patience_ends {
            Some(ended) if now < ended + wait => now,
            Some(_) | None => {
                self.patience_ends = None;
                now + wait
            }
        }
    }
}

fn subscription_from(subscribe: v1::Subscribe) -> Result<Subscription, Refusal> {
    let target = convert::required("target", subscribe.target.and_then(|target| target.target))?;
    let target = match target {
        watch_target::Target::Service(key) => {
            Target::Service(convert::service_key_from("target", Some(&key))?)
        }
        watch_target::Target::GroupPrefix(prefix) => Target::Prefix(convert::prefix_from(&prefix)?),
    };
    let known = subscribe.known.iter().map(|known| {
        let key = convert::service_key_from("known.key", known.key.as_ref())?;
        let sign = convert::required("known.sign", known.sign.as_ref())?;
        Ok((key, convert::sign_from(sign)))
    });
    Ok(Subscription {
        id: subscribe.subscription,
        target,
        after: Revision(subscribe.after_revision),
        known: known.collect::<Result<_, Refusal>>()?,
    })
}
