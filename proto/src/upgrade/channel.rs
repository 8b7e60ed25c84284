//! A client's way to a server: streams on connections of their own, everything else by HTTP/2.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::header::{HeaderMap, HeaderValue};
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{self, Endpoint};

use super::{
    BEAT_HEADER, BEAT_MIN, HEAD_BYTES_MAX, HEADERS_MAX, Inflow, Limits, Sending, Side, head, headers_of,
    is_upgrade,
};

/// A server that does not speak [`super::PROTOCOL`] is asked for it again after this time: it may be a newer one by then.
const BY_HTTP2_FOR: Duration = Duration::from_secs(600);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which calls are streams with a connection of their own, and how those are opened and watched.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// Paths of streams on which the server is heard of often enough.
    pub plain: &'static [&'static str],
    /// Paths of streams on which nothing may be said for long: both sides show every so often that they are there.
    pub beating: &'static [&'static str],
    /// How often.
    pub beat: Duration,
    /// How much later than that it may be heard of before the connection counts as lost.
    pub beat_patience: Duration,
    /// Longest time to connect. How long the server may take to grant the stream is the caller's affair, as it is by HTTP/2.
    pub connect_timeout: Duration,
}

impl Streams {
    /// Those of providers and consumers. On a session's stream heartbeats are answered, and missed if they are not.
    #[must_use]
    pub const fn of_clients(beat: Duration, beat_patience: Duration, connect_timeout: Duration) -> Self {
        Self {
            plain: &["/rollcall.v1.Sessions/Attend"],
            beating: &["/rollcall.v1.Watch/Watch", "/rollcall.v1.Registry/Discover"],
            beat,
            beat_patience,
            connect_timeout,
        }
    }
}

/// One server. Connects when it is used, and again when a connection broke; clones share its connection for calls.
///
/// A stream's connection is made with the stream and ends with it: when its answers are dropped, or have ended.
#[derive(Clone, Debug)]
pub struct Channel {
    calls: transport::Channel,
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    /// `host:port`.
    authority: String,
    /// `None`: everything goes by HTTP/2.
    streams: Option<Streams>,
    began: Instant,
    /// Milliseconds after `began` until which streams go by HTTP/2.
    by_http2_until_ms: AtomicU64,
}

impl Server {
    fn goes_by_http2(&self) -> bool {
        let now = self.began.elapsed().as_millis();
        now < u128::from(self.by_http2_until_ms.load(Ordering::Relaxed))
    }

    fn speaks_only_http2(&self) {
        let until = (self.began.elapsed() + BY_HTTP2_FOR).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.by_http2_until_ms.store(until, Ordering::Relaxed);
    }
}

impl Channel {
    /// Connects to nothing yet. Must be called within a tokio runtime. The endpoint's own settings are those of the
    /// connection by HTTP/2; without `streams` that carries the streams, too.
    #[must_use]
    pub fn connect_lazy(endpoint: &Endpoint, streams: Option<Streams>) -> Self {
        let authority = endpoint.uri().authority();
        Self {
            calls: endpoint.connect_lazy(),
            server: Arc::new(Server {
                authority: authority.map_or_else(String::new, ToString::to_string),
                streams,
                began: Instant::now(),
                by_http2_until_ms: AtomicU64::new(0),
            }),
        }
    }

    /// The same server, with a connection of its own for calls; what is known of the server is shared.
    #[must_use]
    pub fn apart(&self, endpoint: &Endpoint) -> Self {
        Self {
            calls: endpoint.connect_lazy(),
            server: Arc::clone(&self.server),
        }
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.calls.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let (streams, beating) = match self.server.streams {
            Some(streams) if streams.beating.contains(&path) && !self.server.goes_by_http2() => {
                (streams, true)
            }
            Some(streams) if streams.plain.contains(&path) && !self.server.goes_by_http2() => {
                (streams, false)
            }
            _ => {
                let answered = self.calls.call(request);
                return Box::pin(async move { Ok(answered.await?) });
            }
        };
        // The one that was asked whether it is ready is the one to call.
        let spare = self.calls.clone();
        let mut calls = std::mem::replace(&mut self.calls, spare);
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            match dial(&server, streams, &parts, beating).await? {
                Some(dialled) => Ok(dialled.stream(body)),
                None => Ok(calls.call(Request::from_parts(parts, body)).await?),
            }
        })
    }
}

/// A stream's connection, granted or refused.
struct Dialled {
    headers: HeaderMap,
    socket: Option<TcpStream>,
    first: Bytes,
    /// Whoever has lost its memory of the connection answers a sign of life with a reset.
    beat: Option<Duration>,
    silence_max: Option<Duration>,
}

impl Dialled {
    /// The body goes out, the answer is what comes in.
    fn stream(self, body: Body) -> Response<Body> {
        let Some(socket) = self.socket else {
            let mut refusal = Response::new(Body::empty());
            *refusal.headers_mut() = self.headers;
            return refusal;
        };
        let (reading, writing) = socket.into_split();
        let limits = Limits {
            beat: self.beat,
            stall_max: None,
            gathers: true,
        };
        let sending = Sending::new(body, writing, None, limits);
        let sender = tokio::spawn(async move {
            // If nothing can be sent any more, the answers end, too, and with a reason.
            let _lost = sending.await;
        });
        let inflow = Inflow::new(reading, Side::Server, &self.first, self.silence_max);
        let mut response = Response::new(Body::new(Answers {
            inflow,
            sender: sender.abort_handle(),
        }));
        *response.headers_mut() = self.headers;
        response
    }
}

/// What comes; the connection ends with it.
struct Answers {
    inflow: Inflow<OwnedReadHalf>,
    sender: AbortHandle,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inflow).poll_frame(cx)
    }
}

/// Asks for a stream. `None`: the server does not know how; nothing of the call was sent.
async fn dial(
    server: &Server,
    streams: Streams,
    call: &Parts,
    beating: bool,
) -> Result<Option<Dialled>, Status> {
    let unavailable = |problem: String| Status::unavailable(format!("{}: {problem}", server.authority));
    let mut socket = connect(&server.authority, streams.connect_timeout)
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    // A socket that refuses is about to fail anyway.
    let _ = socket.set_nodelay(true);
    let mut headers = call.headers.clone();
    if let Ok(host) = HeaderValue::from_str(&server.authority) {
        headers.insert("host", host);
    }
    let beat = beating.then(|| streams.beat.max(BEAT_MIN));
    if let Some(beat) = beat {
        let milliseconds = u64::try_from(beat.as_millis()).unwrap_or(u64::MAX);
        headers.insert(BEAT_HEADER, HeaderValue::from(milliseconds));
    }
    let asked = head(&format!("GET {} HTTP/1.1", call.uri.path()), true, &headers);
    let granting = async {
        socket.write_all(&asked).await?;
        answer_head(&mut socket).await
    };
    // Who closes without a word refuses, by HTTP/2 as well; who speaks it alone says so at once.
    let answered = granting.await.map_err(|error| unavailable(error.to_string()))?;
    let Some((status, headers, first)) = answered else {
        server.speaks_only_http2();
        return Ok(None);
    };
    let granted = status == 101 && is_upgrade(&headers);
    let refused = status == 200 && headers.contains_key("grpc-status");
    if !(granted || refused) {
        server.speaks_only_http2();
        return Ok(None);
    }
    Ok(Some(Dialled {
        headers,
        socket: granted.then_some(socket),
        first,
        beat,
        silence_max: beat.map(|beat| beat + streams.beat_patience),
    }))
}

/// Connects to one of the addresses of a server, each in its share of the time: one that says nothing keeps nobody from the
/// next.
async fn connect(authority: &str, timeout: Duration) -> io::Result<TcpStream> {
    let ends = Instant::now() + timeout;
    let late = || {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no connection within {timeout:?}"),
        )
    };
    let found = tokio::time::timeout_at(ends, tokio::net::lookup_host(authority)).await;
    let addresses: Vec<_> = found.map_err(|_| late())??.collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let untried = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = ends.saturating_duration_since(Instant::now()) / untried;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = late(),
        }
    }
    Err(failed)
}

/// The head of an answer, and what came behind it. `None`: this is no HTTP/1.
async fn answer_head(socket: &mut TcpStream) -> io::Result<Option<(u16, HeaderMap, Bytes)>> {
    let mut came = BytesMut::with_capacity(512);
    loop {
        if socket.read_buf(&mut came).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut space);
        match answer.parse(&came) {
            Ok(httparse::Status::Complete(bytes)) => {
                let (status, headers) = (answer.code.unwrap_or_default(), headers_of(answer.headers));
                return Ok(Some((status, headers, came.split_off(bytes).freeze())));
            }
            Ok(httparse::Status::Partial) if came.len() < HEAD_BYTES_MAX => {}
            Ok(httparse::Status::Partial) | Err(_) => return Ok(None),
        }
    }
}
