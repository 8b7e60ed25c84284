//! Streams on connections of their own, beside HTTP/2 on the same port ([`rollcall_proto::upgrade`]): the same calls, the
//! same handlers, without HTTP/2's buffers, tasks and frames.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::Frame;
use parking_lot::Mutex;
use rollcall_proto::upgrade::{
    self, BEAT_HEADER, BEAT_MIN, HEADERS_MAX, Inflow, Limits, PROTOCOL, Sending, Side, headers_of, is_upgrade,
};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Method, Request};
use tonic::service::Routes;

use super::listener::{Connection, GREETING_DEADLINE, Gate, Peer};
use crate::config::DoorsConfig;
use crate::watch::Line;

/// What an HTTP/1 request begins with that may ask for an upgrade; HTTP/2 begins otherwise.
const UPGRADES_BEGIN_WITH: u8 = b'G';
/// Ends a head.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Connections that are sorted and wait for the transport to take them.
const SORTED_MAX: usize = 64;
/// How rarely a client may have signs of life at most.
const BEAT_MAX: Duration = Duration::from_secs(60);
/// What the kernel may hold for a client that does not read: what waits here is replaced by what is newer, what waits there
/// is not.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// How long a client has for reading the end before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Serves those connections that ask for an upgrade.
#[derive(Clone)]
pub(crate) struct UpgradedStreams {
    routes: Routes,
    head_bytes_max: usize,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    tasks: TaskTracker,
}

impl UpgradedStreams {
    pub(crate) fn new(routes: Routes, limits: &DoorsConfig) -> Self {
        Self {
            routes,
            head_bytes_max: limits.header_bytes_max as usize,
            keepalive_interval: limits.keepalive_interval,
            keepalive_timeout: limits.keepalive_timeout,
            tasks: TaskTracker::new(),
        }
    }

    /// The connections that are let in and do not ask for an upgrade; the others are served here, until they end.
    pub(crate) fn beside(
        &self,
        gate: Gate,
        shutdown: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> + use<> {
        let (sorted, others) = mpsc::channel(SORTED_MAX);
        let streams = self.clone();
        tokio::spawn(async move {
            // Each is heard by a task of its own, or who says nothing would hold up who comes next.
            while let Some(connection) = shutdown.run_until_cancelled(gate.next()).await {
                let (streams, sorted) = (streams.clone(), sorted.clone());
                let tasks = streams.tasks.clone();
                let shutdown = shutdown.clone();
                tasks.spawn(async move {
                    // Its kind and its head have to come in the time that the greeting has.
                    let until = Instant::now() + GREETING_DEADLINE;
                    match shutdown.run_until_cancelled(connection.first_byte()).await {
                        Some(Ok(UPGRADES_BEGIN_WITH)) => {
                            let (mut socket, peer, place) = connection.into_parts();
                            let asked = tokio::time::timeout_at(until, streams.asked(&mut socket));
                            if let Some(Ok(Ok(asked))) = shutdown.run_until_cancelled(asked).await {
                                streams.serve(socket, peer, asked).await;
                            }
                            drop(place);
                        }
                        // If nobody takes it, the server closes.
                        Some(Ok(_)) => _ = sorted.send(Ok(connection)).await,
                        Some(Err(_)) | None => {}
                    }
                });
            }
        });
        ReceiverStream::new(others)
    }

    /// When all are over. What ends them is the calls' own closing.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn serve(mut self, mut socket: TcpStream, peer: Peer, asked: Asked) {
        self.watch_over(&socket);
        let Asked { path, headers, first } = asked;
        if !is_upgrade(&headers) {
            let _gone = socket.write_all(no_upgrade().as_bytes()).await;
            return;
        }
        let patience = self.keepalive_interval + self.keepalive_timeout;
        let beat = beat_of(&headers);
        let limits = Limits {
            // Also for who wants none: who has said all it had to say, and is gone, is noticed by what it is sent.
            beat: Some(beat.unwrap_or(self.keepalive_interval)),
            stall_max: Some(patience),
            // What came in together is answered together.
            gathers: false,
        };
        let (reading, mut writing) = socket.into_split();
        let reading = Reading(Arc::new(Mutex::new(reading)));
        let cut = peer.cut.clone();
        // Who asks for signs of life sends them.
        let silence_max = beat.map(|beat| beat + patience);
        let inflow = Inflow::new(reading.clone(), Side::Client, &first, silence_max);
        let line = Line::default();
        let request = request_of(&path, headers, peer, inflow).map(|mut request| {
            request.extensions_mut().insert(line.clone());
            request
        });
        // None of this is kept while the stream lasts.
        drop((path, first));
        let Some(request) = request else {
            let _gone = writing.write_all(no_upgrade().as_bytes()).await;
            return;
        };
        let answer = match cut.run_until_cancelled(self.routes.call(request)).await {
            Some(Ok(answer)) => answer,
            Some(Err(never)) => match never {},
            None => return,
        };
        let (parts, body) = answer.into_parts();
        let refused = parts.headers.contains_key("grpc-status");
        let mut writing = if refused {
            let head = upgrade::head("HTTP/1.1 200 OK", false, &parts.headers);
            let _gone = writing.write_all(&head).await;
            writing
        } else {
            let head = upgrade::head("HTTP/1.1 101 Switching Protocols", true, &parts.headers);
            drop(parts);
            let carrying = line.carry(Sending::new(body, writing, Some(head), limits));
            let sent = tokio::select! {
                biased;
                sent = carrying => sent,
                () = cut.cancelled() => None,
            };
            let Some(writing) = sent else {
                return;
            };
            writing
        };
        // What the client still says would, unread, reset the connection before it has read the end.
        if writing.shutdown().await.is_ok() {
            let _late = tokio::time::timeout(LINGER, reading.drain()).await;
        }
    }

    /// A client that has gone without a word is noticed by the kernel, also while nothing is said.
    fn watch_over(&self, socket: &TcpStream) {
        let second = Duration::from_secs(1);
        let patience = self.keepalive_interval + self.keepalive_timeout;
        let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let watched = sockopt::set_socket_keepalive(socket, true)
            .and_then(|()| sockopt::set_tcp_keepidle(socket, self.keepalive_interval.max(second)))
            .and_then(|()| sockopt::set_tcp_keepintvl(socket, (self.keepalive_timeout / 2).max(second)))
            .and_then(|()| sockopt::set_tcp_keepcnt(socket, 2))
            .and_then(|()| sockopt::set_tcp_user_timeout(socket, patience_ms))
            .and_then(|()| sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES));
        if let Err(error) = watched {
            tracing::debug!(%error, "a connection is not watched by the kernel");
        }
    }

    /// Reads the head.
    async fn asked(&self, socket: &mut TcpStream) -> io::Result<Asked> {
        let mut came = BytesMut::with_capacity(512);
        loop {
            // Where the head's end may begin, if it comes now: who dribbles is not parsed byte by byte.
            let from = came.len().saturating_sub(HEAD_END.len() - 1);
            if socket.read_buf(&mut came).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let ended = came[from..]
                .windows(HEAD_END.len())
                .any(|bytes| bytes == HEAD_END);
            if !ended && came.len() < self.head_bytes_max {
                continue;
            }
            let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut asked = httparse::Request::new(&mut space);
            match asked.parse(&came) {
                Ok(httparse::Status::Complete(bytes)) => {
                    let path = asked.path.unwrap_or_default().to_owned();
                    let headers = headers_of(asked.headers);
                    let first = Bytes::copy_from_slice(&came[bytes..]);
                    return Ok(Asked { path, headers, first });
                }
                Ok(httparse::Status::Partial) | Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// What a client asks for.
struct Asked {
    path: String,
    headers: HeaderMap,
    /// What came behind the head.
    first: Bytes,
}

fn no_upgrade() -> String {
    let text = "This port speaks gRPC: HTTP/2, or streams upgraded from HTTP/1.1. Pages and probes are on the HTTP port.\n";
    format!(
        "HTTP/1.1 426 Upgrade Required\r\nconnection: close\r\nupgrade: {PROTOCOL}\r\n\
         content-type: text/plain\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    )
}

/// How often the client wants a sign of life.
fn beat_of(headers: &HeaderMap) -> Option<Duration> {
    let wanted: u64 = headers.get(BEAT_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(wanted).clamp(BEAT_MIN, BEAT_MAX))
}

/// The call as the transport would bring it; `None`: the path is none.
fn request_of(path: &str, headers: HeaderMap, peer: Peer, inflow: Inflow<Reading>) -> Option<Request<Body>> {
    let asking = Asking {
        inflow,
        cut: peer.cut.clone(),
    };
    let mut request = Request::new(Body::new(asking));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().ok()?;
    *request.headers_mut() = headers;
    request.extensions_mut().insert(peer);
    Some(request)
}

/// What the client asks. Once it is lost the answers end, too.
struct Asking {
    inflow: Inflow<Reading>,
    cut: CancellationToken,
}

impl http_body::Body for Asking {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inflow).poll_frame(cx);
        if let Poll::Ready(Some(Err(_))) = frame {
            self.cut.cancel();
        }
        frame
    }
}

/// Read by the call, and at the end by who closes.
#[derive(Clone)]
struct Reading(Arc<Mutex<OwnedReadHalf>>);

impl Reading {
    /// Until the client has closed.
    async fn drain(mut self) {
        let mut rest = [0; 256];
        while self.read(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

impl AsyncRead for Reading {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buf)
    }
}
