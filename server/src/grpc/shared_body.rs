//! Streams of answers that leave as the bytes they are. The transport's own way copies every message into a buffer of its
//! stream, and the buffer stays as large as the largest message was: a watcher that was told a list once would hold room
//! for it as long as it watches. Here what was encoded once goes to every socket as it is.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::Frame;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use rollcall_proto::prefix::{MESSAGE, PREFIX_BYTES, put_prefix};
use rollcall_proto::v1::{self, discover_response::Answer};
use tonic::body::Body;
use tonic::codegen::{BoxStream, Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Response, Status};

/// From this size on bytes are shared; less is copied, since a frame of its own costs as much.
const SHARED_MIN: usize = 2 << 10;
/// Answers that are ready together leave together, up to so many bytes.
const TOGETHER_BYTES: usize = 32 << 10;

/// A message that may hold large parts that are encoded already.
pub(super) trait Answers: Message + Send + Sized + 'static {
    /// Lays its bytes out; those of large parts are shared.
    fn lay(self, out: &mut Layout);
}

impl Answers for v1::WatchResponse {
    fn lay(self, out: &mut Layout) {
        let frames = &self.frames;
        for frame in frames {
            out.part(1, frame);
        }
        let rest = Self {
            frames: Vec::new(),
            ..self
        };
        rest.encode_raw(&mut out.small);
    }
}

impl Answers for v1::DiscoverResponse {
    fn lay(self, out: &mut Layout) {
        let found = match self.answer {
            Some(Answer::Found(found)) if found.view.is_some() => found,
            answer => return Self { answer, ..self }.encode_raw(&mut out.small),
        };
        let call = Self {
            call: self.call,
            answer: None,
        };
        call.encode_raw(&mut out.small);
        out.head(2, found.encoded_len());
        let rest = v1::QueryResponse { view: None, ..found };
        rest.encode_raw(&mut out.small);
        if let Some(view) = &found.view {
            out.part(3, view);
        }
    }
}

/// Bytes in their order: what is complete, and the small parts behind it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    complete: VecDeque<Bytes>,
    small: BytesMut,
}

impl Layout {
    fn message<M: Answers>(&mut self, message: M, bytes: usize) {
        self.small.reserve(PREFIX_BYTES + bytes.min(SHARED_MIN));
        put_prefix(MESSAGE, bytes, &mut self.small);
        message.lay(self);
    }

    fn head(&mut self, tag: u32, bytes: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.small);
        encode_varint(bytes as u64, &mut self.small);
    }

    fn part(&mut self, tag: u32, bytes: &Bytes) {
        self.head(tag, bytes.len());
        if bytes.len() < SHARED_MIN {
            self.small.put_slice(bytes);
        } else {
            self.finish();
            self.complete.push_back(bytes.clone());
        }
    }

    /// The buffer goes with its bytes: none is kept.
    fn finish(&mut self) {
        if !self.small.is_empty() {
            self.complete.push_back(std::mem::take(&mut self.small).freeze());
        }
    }
}

/// The body of an answer that is a stream.
struct SharedBody<M> {
    answers: BoxStream<M>,
    /// Largest message.
    bytes_max: usize,
    layout: Layout,
    /// How the stream ended; `None` within: and that was said.
    ended: Option<Option<Status>>,
}

impl<M: Answers> SharedBody<M> {
    /// Takes in what is ready, as long as it is little.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.layout.complete.is_empty()
            && self.layout.small.len() < TOGETHER_BYTES
            && self.ended.is_none()
        {
            match ready!(self.answers.as_mut().poll_next(cx)) {
                Some(Ok(message)) => {
                    let bytes = message.encoded_len();
                    if bytes > self.bytes_max {
                        let limit = self.bytes_max;
                        let refusal = format!(
                            "Error, encoded message length too large: found {bytes} bytes, the limit is: {limit} bytes"
                        );
                        self.ended = Some(Some(Status::out_of_range(refusal)));
                    } else {
                        self.layout.message(message, bytes);
                    }
                }
                Some(Err(status)) => self.ended = Some(Some(status)),
                None => self.ended = Some(Some(Status::ok(""))),
            }
        }
        Poll::Ready(())
    }
}

impl<M: Answers> http_body::Body for SharedBody<M> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.layout.complete.is_empty() {
            let gathered = self.gather(cx);
            self.layout.finish();
            if self.layout.complete.is_empty() {
                ready!(gathered);
            }
        }
        if let Some(bytes) = self.layout.complete.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(status) = self.ended.as_mut().and_then(Option::take) else {
            return Poll::Ready(None);
        };
        let mut trailers = http::HeaderMap::new();
        let said = status.add_header(&mut trailers);
        Poll::Ready(Some(said.map(|()| Frame::trailers(trailers))))
    }
}

/// How a handler passes its stream around the transport's encoder: as an extension of its answer.
#[derive(Clone)]
struct PassedAround(Arc<Mutex<Option<Body>>>);

/// An answer whose stream leaves as [`SharedBytes`] lets it: the one that the transport sees is empty.
pub(super) fn shared<M: Answers>(answers: BoxStream<M>, bytes_max: usize) -> Response<BoxStream<M>> {
    let body = SharedBody {
        answers,
        bytes_max,
        layout: Layout::default(),
        ended: None,
    };
    let mut extensions = tonic::Extensions::default();
    extensions.insert(PassedAround(Arc::new(Mutex::new(Some(Body::new(body))))));
    Response::from_parts(
        MetadataMap::default(),
        Box::pin(futures_util::stream::empty()),
        extensions,
    )
}

/// A service whose handlers may answer with [`shared`].
#[derive(Clone, Debug)]
pub(super) struct SharedBytes<S>(pub(super) S);

impl<S: NamedService> NamedService for SharedBytes<S> {
    const NAME: &'static str = S::NAME;
}

type Answered<E> = Result<http::Response<Body>, E>;

impl<S, Q, E> Service<Q> for SharedBytes<S>
where
    S: Service<Q, Response = http::Response<Body>, Error = E, Future = BoxFuture<'static, Answered<E>>>,
    E: 'static,
{
    type Response = http::Response<Body>;
    type Error = E;
    type Future = BoxFuture<'static, Answered<E>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        Box::pin(self.0.call(request).map(with_shared_body))
    }
}

fn with_shared_body<E>(answered: Answered<E>) -> Answered<E> {
    let mut answer = answered?;
    if let Some(passed) = answer.extensions_mut().remove::<PassedAround>()
        && let Some(body) = passed.0.lock().take()
    {
        *answer.body_mut() = body;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use rollcall_proto::v1::QueryResponse;

    use super::*;

    /// What a client would read: the messages, and the status at the end.
    async fn read<M: Answers + Default>(answers: Vec<Result<M, Status>>, bytes_max: usize) -> (Vec<M>, i32) {
        let mut body = SharedBody {
            answers: futures_util::stream::iter(answers).boxed(),
            bytes_max,
            layout: Layout::default(),
            ended: None,
        };
        let (mut bytes, mut status) = (BytesMut::new(), -1);
        while let Some(frame) =
            std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await
        {
            let frame = frame.unwrap();
            match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    status = trailers["grpc-status"].to_str().unwrap().parse().unwrap();
                }
            }
        }
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[0], 0);
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            let message = bytes.split_to(PREFIX_BYTES + length);
            messages.push(M::decode(&message[PREFIX_BYTES..]).unwrap());
        }
        (messages, status)
    }

    fn watched(sizes: &[usize]) -> v1::WatchResponse {
        v1::WatchResponse {
            frames: sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect(),
            mode: 1,
            epoch: 5,
            cluster: "c".into(),
        }
    }

    fn found(call: u64, view: Option<usize>) -> v1::DiscoverResponse {
        let found = QueryResponse {
            header: Some(v1::ResponseHeader {
                revision: 9,
                ..v1::ResponseHeader::default()
            }),
            unchanged: view.is_none(),
            view: view.map(|size| Bytes::from(vec![3; size])),
            keep_cache_ms: 0,
        };
        v1::DiscoverResponse {
            call,
            answer: Some(Answer::Found(found)),
        }
    }

    #[tokio::test]
    async fn a_client_reads_what_was_said_whatever_its_size() {
        let said: Vec<_> = [
            &[][..],
            &[1, 2],
            &[SHARED_MIN - 1, SHARED_MIN, 0, 100_000],
            &[40_000],
        ]
        .map(watched)
        .into();
        let (read_back, status) = read(said.iter().cloned().map(Ok).collect(), 1 << 20).await;
        assert_eq!((read_back, status), (said, 0));
        let refused = v1::DiscoverResponse {
            call: 4,
            answer: Some(Answer::Error(v1::Error::default())),
        };
        let said = vec![
            found(1, None),
            found(2, Some(100_000)),
            found(3, Some(3)),
            refused,
        ];
        let (read_back, status) = read(said.iter().cloned().map(Ok).collect(), 1 << 20).await;
        assert_eq!((read_back, status), (said, 0));
    }

    #[tokio::test]
    async fn the_end_is_told_behind_everything_that_came_before_it() {
        let said = vec![Ok(watched(&[5_000])), Err(Status::unavailable("closing"))];
        let (read_back, status) = read(said, 1 << 20).await;
        assert_eq!((read_back.len(), status), (1, tonic::Code::Unavailable as i32));
        let too_large = vec![Ok(watched(&[10])), Ok(watched(&[5_000])), Ok(watched(&[10]))];
        let (read_back, status) = read(too_large, 4_096).await;
        assert_eq!((read_back.len(), status), (1, tonic::Code::OutOfRange as i32));
    }

    #[test]
    fn large_parts_are_the_same_bytes_and_small_ones_leave_together() {
        let message = watched(&[10, 50_000, 10]);
        let large = message.frames[1].as_ptr();
        let mut layout = Layout::default();
        let bytes = message.encoded_len();
        layout.message(message, bytes);
        layout.finish();
        let lengths: Vec<_> = layout.complete.iter().map(Bytes::len).collect();
        assert_eq!(lengths.len(), 3);
        assert_eq!(lengths.iter().sum::<usize>(), PREFIX_BYTES + bytes);
        assert_eq!(layout.complete[1].as_ptr(), large);
        let mut layout = Layout::default();
        for _ in 0..3 {
            let message = watched(&[10, 20]);
            let bytes = message.encoded_len();
            layout.message(message, bytes);
        }
        layout.finish();
        assert_eq!(layout.complete.len(), 1);
    }
}
