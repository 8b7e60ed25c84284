//! What goes to the other side: a body onto a socket, as few writes as may be.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use super::frame::{beat_frame, end_frame};

/// What is ready is gathered up to so many bytes before it leaves.
const GATHERED_BYTES: usize = 64 << 10;
/// What has fewer bytes is small.
const SMALL_BYTES: usize = 4 << 10;
/// Parts of one write.
const SLICES_MAX: usize = 16;
/// Writes of one turn; then others have theirs.
const WRITES_MAX: usize = 2;

/// What a sender allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After so long without anything to say a sign of life is sent; `None`: never.
    pub beat: Option<Duration>,
    /// After so long in which the other side took nothing the connection counts as lost; `None`: never.
    pub stall_max: Option<Duration>,
    /// What is small waits one turn of the scheduler before it leaves, for whoever is about to say something, too: many callers
    /// that are woken together then share a write. Without it what is ready leaves at once.
    pub gathers: bool,
}

/// Sends a body and its end, and is done; the socket is flushed, not closed. Holds at most what is gathered for one write.
///
/// # Errors
/// The connection is lost, or the body broke: then there is no end, and the other side takes it for lost.
#[derive(Debug)]
pub struct Sending<B, W> {
    body: B,
    socket: W,
    parts: VecDeque<Bytes>,
    bytes: usize,
    body_ended: bool,
    /// What is there has waited for company.
    waited: bool,
    /// When it was last asked the body had nothing to say.
    body_rests: bool,
    limits: Limits,
    /// When something last left; kept only for beats.
    sent_at: Instant,
    /// Since when the socket takes nothing.
    stalled_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B, W> Sending<B, W>
where
    B: Body<Data = Bytes> + Unpin,
    W: AsyncWrite + Unpin,
{
    /// `first` is sent before the body.
    pub fn new(body: B, socket: W, first: Option<Bytes>, limits: Limits) -> Self {
        let mut sending = Self {
            body,
            socket,
            parts: VecDeque::new(),
            bytes: 0,
            body_ended: false,
            waited: false,
            body_rests: false,
            limits,
            sent_at: Instant::now(),
            stalled_since: None,
            timer: None,
        };
        if let Some(first) = first {
            sending.push(first);
        }
        sending
    }

    /// Whether everything has left, and the body had nothing more to say when it was last asked.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.body_rests && self.parts.is_empty()
    }

    /// Sends whole messages past the body, while this [rests](Self::rests) and the body is between two of its own. Whether
    /// all of it has left; if not, whoever polls this has to be woken.
    pub fn pass(&mut self, messages: Bytes) -> bool {
        self.push(messages);
        let sent = self.poll_send(&mut Context::from_waker(Waker::noop()));
        matches!(sent, Poll::Ready(Ok(())))
    }

    /// The socket. What has not left is lost.
    pub fn into_socket(self) -> W {
        self.socket
    }

    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.bytes += part.len();
            self.parts.push_back(part);
        }
    }

    /// Takes what is ready; whether there may be more at once.
    fn gather(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        self.body_rests = false;
        while !self.body_ended {
            if self.bytes >= GATHERED_BYTES {
                return Ok(true);
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => {
                    self.body_rests = true;
                    return Ok(false);
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.push(data),
                    Err(frame) => self.end(&frame.into_trailers().unwrap_or_default()),
                },
                Poll::Ready(None) => self.end(&Default::default()),
                Poll::Ready(Some(Err(_))) => return Err(io::Error::other("the body broke")),
            }
        }
        Ok(false)
    }

    fn waits_for_company(&self) -> bool {
        let small = 0 < self.bytes && self.bytes < SMALL_BYTES;
        self.limits.gathers && small && !self.waited && !self.body_ended
    }

    fn end(&mut self, trailers: &tonic::codegen::http::HeaderMap) {
        self.body_ended = true;
        self.push(end_frame(Some(trailers)));
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(part) = self.parts.front() {
            let socket = Pin::new(&mut self.socket);
            let written = if self.parts.len() == 1 {
                socket.poll_write(cx, part)
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut used = 0;
                for (slice, part) in slices.iter_mut().zip(&self.parts) {
                    *slice = IoSlice::new(part);
                    used += 1;
                }
                socket.poll_write_vectored(cx, &slices[..used])
            };
            let mut written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes -= written;
            while let Some(part) = self.parts.front_mut()
                && written > 0
            {
                let of_part = written.min(part.len());
                part.advance(of_part);
                written -= of_part;
                if part.is_empty() {
                    self.parts.pop_front();
                }
            }
            self.stalled_since = None;
            self.waited = false;
            if self.limits.beat.is_some() {
                self.sent_at = Instant::now();
            }
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Ready: the moment has come.
    fn poll_until(&mut self, moment: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(moment)));
        // Set anew only if it would come too late, or came too early: most of the time neither is so.
        loop {
            if timer.deadline() > moment {
                timer.as_mut().reset(moment);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= moment {
                self.timer = None;
                return Poll::Ready(());
            }
            timer.as_mut().reset(moment);
        }
    }

    /// An error once the other side has taken nothing for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        let Some(stall_max) = self.limits.stall_max else {
            return Poll::Pending;
        };
        ready!(self.poll_until(since + stall_max, cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<B, W> Future for Sending<B, W>
where
    B: Body<Data = Bytes> + Unpin,
    W: AsyncWrite + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        for _ in 0..WRITES_MAX {
            let more = this.gather(cx)?;
            if this.waits_for_company() {
                this.waited = true;
                break;
            }
            if this.poll_send(cx)?.is_pending() {
                return this.poll_stalled(cx);
            }
            if this.body_ended {
                return Poll::Ready(Ok(()));
            }
            if more {
                continue;
            }
            let Some(beat) = this.limits.beat else {
                return Poll::Pending;
            };
            ready!(this.poll_until(this.sent_at + beat, cx));
            this.push(beat_frame());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body::Frame;
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;
    use tonic::Status;
    use tonic::codegen::http::HeaderMap;

    use super::*;
    use crate::upgrade::BEAT;

    struct Fed(mpsc::Receiver<Frame<Bytes>>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }

    fn fed() -> (mpsc::Sender<Frame<Bytes>>, Fed) {
        let (feed, fed) = mpsc::channel(256);
        (feed, Fed(fed))
    }

    #[tokio::test]
    async fn everything_arrives_in_its_order_and_then_the_end() {
        let (feed, body) = fed();
        let (mut reader, socket) = tokio::io::duplex(700);
        let mut expected = b"first".to_vec();
        for at in 0..100_u8 {
            let part = vec![at; usize::from(at) * 20];
            expected.extend_from_slice(&part);
            feed.send(Frame::data(part.into())).await.unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        expected.extend_from_slice(&end_frame(Some(&trailers)));
        feed.send(Frame::trailers(trailers)).await.unwrap();
        let sending = Sending::new(
            body,
            socket,
            Some(Bytes::from_static(b"first")),
            Limits::default(),
        );
        let sent = tokio::spawn(sending);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        assert!(all == expected);
        sent.await.unwrap().unwrap();
    }

    /// Counts the writes.
    #[derive(Clone, Default)]
    struct Counted(Arc<Mutex<Vec<usize>>>);

    impl Counted {
        fn bytes(&self) -> usize {
            self.0.lock().unwrap().iter().sum()
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, part: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(part.len());
            Poll::Ready(Ok(part.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = parts.iter().map(|part| part.len()).sum();
            self.0.lock().unwrap().push(bytes);
            Poll::Ready(Ok(bytes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What callers that are woken together say, one after the other.
    async fn writes_of(callers: usize, part: usize, gathers: bool) -> Vec<usize> {
        let (feed, body) = fed();
        let limits = Limits {
            gathers,
            ..Limits::default()
        };
        let written = Counted::default();
        let sent = tokio::spawn(Sending::new(body, written.clone(), None, limits));
        // On the only thread there is, so that none of them runs before all are there.
        let speaking = feed.clone();
        let all = tokio::spawn(async move {
            for _ in 0..callers {
                let feed = speaking.clone();
                tokio::spawn(async move { feed.send(Frame::data(vec![7; part].into())).await.unwrap() });
            }
        });
        all.await.unwrap();
        while written.bytes() < callers * part {
            tokio::task::yield_now().await;
        }
        drop(feed);
        sent.await.unwrap().unwrap();
        let mut writes = written.0.lock().unwrap().clone();
        assert_eq!(writes.pop(), Some(5), "the end");
        writes
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn callers_woken_together_share_a_write_where_that_is_wanted() {
        assert_eq!(writes_of(16, 30, true).await, [16 * 30]);
        assert_eq!(writes_of(1, 30, true).await, [30]);
        assert_eq!(writes_of(1, SMALL_BYTES, true).await, [SMALL_BYTES]);
        assert!(writes_of(16, 30, false).await.len() > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_beats_and_only_silence() {
        let (feed, body) = fed();
        let (mut reader, socket) = tokio::io::duplex(700);
        let limits = Limits {
            beat: Some(Duration::from_secs(2)),
            ..Limits::default()
        };
        let began = Instant::now();
        let sent = tokio::spawn(Sending::new(body, socket, None, limits));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            feed.send(Frame::data(Bytes::from_static(b"m"))).await.unwrap();
            assert_eq!(reader.read_u8().await.unwrap(), b'm');
        }
        for beats in 1..4 {
            let mut beat = [0; 5];
            reader.read_exact(&mut beat).await.unwrap();
            assert_eq!(beat, [BEAT, 0, 0, 0, 0]);
            assert_eq!(began.elapsed().as_secs(), 6 + beats * 2);
        }
        sent.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_passed_leaves_at_once_or_behind_what_could_not() {
        let (feed, body) = fed();
        let (mut reader, socket) = tokio::io::duplex(10);
        let limits = Limits {
            beat: Some(Duration::from_secs(2)),
            ..Limits::default()
        };
        let mut sending = Sending::new(body, socket, Some(Bytes::from_static(b"head")), limits);
        assert!(!sending.rests(), "nothing has left");
        let mut read = async |expected: &[u8]| {
            let mut came = vec![0; expected.len()];
            reader.read_exact(&mut came).await.unwrap();
            assert_eq!(came, expected);
        };
        let idle = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut sending).poll(idle).is_pending() && sending.rests());
        assert!(sending.pass(Bytes::from_static(b"one")));
        read(b"headone").await;
        // What is passed is a sign of life.
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert!(sending.pass(Bytes::from_static(b"two")));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert!(Pin::new(&mut sending).poll(idle).is_pending() && sending.rests());
        // The body's turn is not over as long as any of it waits.
        assert!(!sending.pass(Bytes::from_static(b"and more than fits")));
        assert!(!sending.rests());
        feed.send(Frame::data(Bytes::from_static(b"behind")))
            .await
            .unwrap();
        let sent = tokio::spawn(sending);
        read(b"twoand more than fitsbehind").await;
        drop(feed);
        read(&end_frame(Some(&HeaderMap::new()))).await;
        sent.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_holds_little() {
        let (feed, body) = fed();
        let (_reader, socket) = tokio::io::duplex(700);
        let limits = Limits {
            stall_max: Some(Duration::from_secs(30)),
            ..Limits::default()
        };
        let began = Instant::now();
        let sent = tokio::spawn(Sending::new(body, socket, None, limits));
        for _ in 0..200 {
            feed.send(Frame::data(vec![0; 1_000].into())).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(feed.capacity() < 256 - 100, "what was not sent was not taken");
        let lost = sent.await.unwrap().unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 30);
    }
}
