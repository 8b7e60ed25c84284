//! The watchers, each a stream of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use hdrhistogram::Histogram;
use prost::Message;
use rollcall_client::ServiceKey;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::super::report::{histogram, record};
use super::board::Board;
use super::writer::change_of;
use crate::exit::{Failure, Nature, failure_of};
use crate::progress::Progress;
use crate::servers::{ANSWER_BYTES_MAX, client_name, shared_way_to, way_to};

/// What stops them, and what each delivery took, by connection.
pub(super) type Watchers = (
    Vec<oneshot::Sender<()>>,
    Vec<tokio::task::JoinHandle<Histogram<u64>>>,
);

/// All watch streams, each past its start; one task a connection.
pub(super) async fn start_watchers(
    addresses: &[String],
    (count, connections): (usize, usize),
    service: &ServiceKey,
    board: &Arc<Board>,
    timeout: Duration,
) -> Result<Watchers, Failure> {
    let progress = Progress::of(count as u64, "starting watchers");
    let connections = connections.min(count);
    let mut stops = Vec::with_capacity(connections);
    let mut tasks = Vec::with_capacity(connections);
    for index in 0..connections {
        let share = count / connections + usize::from(index < count % connections);
        let address = &addresses[index % addresses.len()];
        let channel = match share {
            1 => way_to(address, timeout)?,
            _ => shared_way_to(address, timeout)?,
        };
        let mut watchers = Vec::with_capacity(share);
        for number in 0..share {
            let starting = Watcher::start(channel.clone(), service);
            let watcher = tokio::time::timeout(timeout, starting).await.map_err(|_| {
                Failure::timeout(format!(
                    "watcher {number} of a connection did not start in time; servers bound the streams of a \
                     connection: try more --connections"
                ))
            })??;
            watchers.push(watcher);
            progress.add(1);
        }
        let (stop, stopped) = oneshot::channel();
        stops.push(stop);
        tasks.push(tokio::spawn(watch(watchers, Arc::clone(board), stopped)));
    }
    progress.finish();
    Ok((stops, tasks))
}

/// One watch stream that has started.
struct Watcher {
    frames: Streaming<wire::WatchResponse>,
    /// Held open: a stream whose requests end may be ended by the server.
    requests: mpsc::Sender<wire::WatchRequest>,
    seen: u64,
}

impl Watcher {
    async fn start(channel: Channel, service: &ServiceKey) -> Result<Self, Failure> {
        let (requests, outgoing) = mpsc::channel(4);
        let target = wire::WatchTarget {
            target: Some(wire::watch_target::Target::Service(service.into())),
        };
        let subscribe = wire::Subscribe {
            subscription: 1,
            target: Some(target),
            ..wire::Subscribe::default()
        };
        let first = wire::WatchRequest {
            client: client_name(),
            request: Some(wire::watch_request::Request::Subscribe(subscribe)),
            ..wire::WatchRequest::default()
        };
        requests
            .send(first)
            .await
            .map_err(|_| Failure::unavailable("the watch stream was closed"))?;
        let mut frames = WatchClient::new(channel)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .watch(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| failure_of(&status, Nature::Read))?
            .into_inner();
        loop {
            let message = frames
                .message()
                .await
                .map_err(|status| failure_of(&status, Nature::Read))?;
            let message = message.ok_or_else(|| Failure::unavailable("the watch stream was closed"))?;
            for frame in &message.frames {
                match decode(frame)? {
                    Some(Frame::Started(_)) => {
                        return Ok(Self {
                            frames,
                            requests,
                            seen: 0,
                        });
                    }
                    Some(Frame::Rejected(rejected)) => {
                        return Err(rejected.error.unwrap_or_default().into());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn decode(frame: &[u8]) -> Result<Option<Frame>, Failure> {
    wire::WatchFrame::decode(frame)
        .map(|frame| frame.frame)
        .map_err(|e| Failure::failed(format!("a watch frame cannot be read: {e}")))
}

/// Reads the watchers of one connection until it is told to stop; gives how long each delivery took.
async fn watch(
    watchers: Vec<Watcher>,
    board: Arc<Board>,
    mut stopped: oneshot::Receiver<()>,
) -> Histogram<u64> {
    let mut each = histogram();
    let mut seen: Vec<u64> = Vec::with_capacity(watchers.len());
    let mut held = Vec::with_capacity(watchers.len());
    let mut streams = SelectAll::new();
    for (index, watcher) in watchers.into_iter().enumerate() {
        seen.push(watcher.seen);
        held.push(watcher.requests);
        let end = futures_util::stream::once(async { Err(tonic::Status::aborted("ended")) });
        streams.push(
            watcher
                .frames
                .chain(end)
                .map(move |message| (index, message))
                .boxed(),
        );
    }
    loop {
        let (index, message) = tokio::select! {
            _ = &mut stopped => break,
            next = streams.next() => match next {
                Some(next) => next,
                None => break,
            },
        };
        let now = Instant::now();
        let Ok(message) = message else {
            board.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        for frame in &message.frames {
            let Ok(frame) = decode(frame) else {
                board.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (nodes, lagged) = match frame {
                Some(Frame::Delta(delta)) => (delta.put, false),
                Some(Frame::Snapshot(snapshot)) => (
                    snapshot.view.map(|view| view.nodes).unwrap_or_default(),
                    snapshot.lagged,
                ),
                _ => continue,
            };
            board.lagged.fetch_add(lagged.into(), Ordering::Relaxed);
            for change in nodes.iter().filter_map(change_of) {
                if change > seen[index] {
                    board
                        .on_seen(seen[index], change, now)
                        .for_each(|took| record(&mut each, took));
                    seen[index] = change;
                }
            }
        }
    }
    drop(held);
    each
}
