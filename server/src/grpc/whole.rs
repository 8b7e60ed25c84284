//! Calls of one request: none of it is looked at before all of it is here. The transport decodes a request when its last byte
//! has come and calls the handler when its sender says that this was all; between the two lie as many seconds as a stranger
//! likes, and what is decoded takes many times what was sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use rollcall_proto::prefix::PREFIX_BYTES;
use rollcall_proto::v1;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::status::{DoorError, status};

/// How long a request may be on its way.
const RECEIVED_WITHIN: Duration = Duration::from_secs(10);
/// Calls that are streams of requests.
const STREAMS: [&str; 3] = [
    "/rollcall.v1.Registry/Discover",
    "/rollcall.v1.Sessions/Attend",
    "/rollcall.v1.Watch/Watch",
];

/// A service that hears of a call when its request is whole. Streams go on as they come.
#[derive(Clone, Debug)]
pub(super) struct Whole<S> {
    inner: S,
    request_bytes_max: usize,
}

impl<S> Whole<S> {
    pub(super) fn new(inner: S, request_bytes_max: usize) -> Self {
        Self {
            inner,
            request_bytes_max,
        }
    }
}

impl<S: NamedService> NamedService for Whole<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Whole<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        if STREAMS.contains(&request.uri().path()) {
            return self.inner.call(request);
        }
        let bytes_max = self.request_bytes_max.saturating_add(PREFIX_BYTES);
        self.inner
            .call(request.map(|body| Body::new(Gathered::new(body, bytes_max, RECEIVED_WITHIN))))
    }
}

/// A body that is handed on when its end has come.
struct Gathered {
    body: Body,
    /// `None`: it has ended.
    late: Option<Late>,
    /// All that has come, if it came in one piece; else `joined` has it.
    came: Bytes,
    joined: BytesMut,
    trailers: Option<HeaderMap>,
    bytes: usize,
    bytes_max: usize,
}

/// When it is too late; nobody counts before something has to be waited for.
struct Late {
    within: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Late {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let within = self.within;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        let unfinished = || status(&v1::Error::from(DoorError::Unfinished { within }));
        sleep.as_mut().poll(cx).map(|()| unfinished())
    }
}

impl Gathered {
    fn new(body: Body, bytes_max: usize, within: Duration) -> Self {
        Self {
            body,
            late: Some(Late { within, sleep: None }),
            came: Bytes::new(),
            joined: BytesMut::new(),
            trailers: None,
            bytes: 0,
            bytes_max,
        }
    }

    /// Pieces are joined: each for itself would hold the buffer in which it came.
    fn take_in(&mut self, frame: Frame<Bytes>) -> Result<(), Status> {
        let piece = match frame.into_data() {
            Ok(piece) => piece,
            Err(other) => {
                self.trailers = other.into_trailers().ok();
                return Ok(());
            }
        };
        self.bytes += piece.len();
        if self.bytes > self.bytes_max {
            self.forget();
            let (bytes, limit) = (self.bytes - PREFIX_BYTES, self.bytes_max - PREFIX_BYTES);
            return Err(Status::out_of_range(format!(
                "Error, decoded message length too large: found at least {bytes} bytes, the limit is: {limit} bytes"
            )));
        }
        if self.came.is_empty() && self.joined.is_empty() {
            self.came = piece;
        } else {
            self.joined.extend_from_slice(&std::mem::take(&mut self.came));
            self.joined.extend_from_slice(&piece);
        }
        Ok(())
    }

    fn forget(&mut self) {
        (self.came, self.joined, self.trailers) = (Bytes::new(), BytesMut::new(), None);
    }

    fn hand_on(&mut self) -> Option<Frame<Bytes>> {
        let all = match self.joined.is_empty() {
            true => std::mem::take(&mut self.came),
            false => std::mem::take(&mut self.joined).freeze(),
        };
        match all.is_empty() {
            false => Some(Frame::data(all)),
            true => self.trailers.take().map(Frame::trailers),
        }
    }
}

impl http_body::Body for Gathered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while let Some(late) = &mut this.late {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let taken = frame.and_then(|frame| this.take_in(frame));
                    if let Err(refusal) = taken {
                        this.late = None;
                        return Poll::Ready(Some(Err(refusal)));
                    }
                    if this.body.is_end_stream() {
                        this.late = None;
                    }
                }
                Poll::Ready(None) => this.late = None,
                Poll::Pending => {
                    let refusal = ready!(late.poll(cx));
                    this.forget();
                    this.late = None;
                    return Poll::Ready(Some(Err(refusal)));
                }
            }
        }
        Poll::Ready(this.hand_on().map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::{FutureExt, StreamExt};
    use prost::Message;
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    /// A body to which is said what it is to hold.
    struct Said(ReceiverStream<Bytes>);

    impl http_body::Body for Said {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let said = self.0.poll_next_unpin(cx);
            said.map(|said| said.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    const SOON: Duration = Duration::from_millis(50);
    /// For a request that ends before it is cut off, also on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn gathered(bytes_max: usize, patience: Duration) -> (mpsc::Sender<Bytes>, Gathered) {
        let (say, said) = mpsc::channel(8);
        let body = Body::new(Said(ReceiverStream::new(said)));
        (say, Gathered::new(body, bytes_max + PREFIX_BYTES, patience))
    }

    async fn next(body: &mut Gathered) -> Option<Result<Bytes, Status>> {
        let frame = poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    fn error(refusal: &Status) -> v1::Error {
        v1::Error::decode(refusal.details()).unwrap()
    }

    #[tokio::test]
    async fn nothing_is_handed_on_before_the_end_has_come() {
        let (say, mut body) = gathered(8, PATIENCE);
        for piece in ["to", "gether"] {
            say.send(piece.into()).await.unwrap();
            assert!(next(&mut body).now_or_never().is_none());
        }
        drop(say);
        assert_eq!(
            next(&mut body).await.unwrap().unwrap(),
            "together",
            "in one piece"
        );
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn who_never_comes_to_an_end_is_refused() {
        let from = Instant::now();
        let (say, mut body) = gathered(8, SOON);
        say.send("request".into()).await.unwrap();
        let refusal = next(&mut body).await.unwrap().unwrap_err();
        assert!(from.elapsed() >= SOON, "after {:?}", from.elapsed());
        assert_eq!(error(&refusal).code(), v1::ErrorCode::Unavailable, "{refusal}");
        assert!(next(&mut body).await.is_none(), "and what had come is gone");
    }

    #[tokio::test]
    async fn no_more_is_gathered_than_a_request_may_have() {
        let (say, mut body) = gathered(8, PATIENCE);
        say.send(vec![0; 8 + PREFIX_BYTES].into()).await.unwrap();
        assert!(next(&mut body).now_or_never().is_none());
        say.send(vec![0; 1].into()).await.unwrap();
        let refusal = next(&mut body).await.unwrap().unwrap_err();
        let error = super::super::oversize::of_transport(&refusal).unwrap();
        assert_eq!(error.code(), v1::ErrorCode::TooLarge);
        assert!(
            error.message.contains("found at least 9 bytes"),
            "{}",
            error.message
        );
        assert!(next(&mut body).await.is_none());
    }
}
