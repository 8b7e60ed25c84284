//! What comes from the other side, as the body of a request or of an answer.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::frame::trailers_of;
use super::splitter::{Piece, Splitter};

/// Read at once. The room is on the stack: a connection on which nothing comes keeps none.
const READ_BYTES: usize = 16 << 10;
/// Room for more pieces than this is not kept.
const PIECES_KEPT: usize = 16;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client: its end has no trailers.
    Client,
    /// A server: its end has the status in its trailers.
    Server,
}

/// The messages that come on a socket, with their prefixes. Ends with the sender's end; an error if the connection was
/// lost before: CANCELLED at a server, as that of a call whose client has gone, UNAVAILABLE at a client.
#[derive(Debug)]
pub struct Inflow<R> {
    socket: R,
    from: Side,
    splitter: Splitter,
    pieces: VecDeque<Piece>,
    over: bool,
    /// What came with the head was unreadable.
    unreadable: Option<Status>,
    patience: Option<Patience>,
}

/// How long the sender may say nothing.
#[derive(Debug)]
struct Patience {
    silence_max: Duration,
    heard_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<R: AsyncRead + Unpin> Inflow<R> {
    /// Reads from `socket`; `first` was read from it already. After `silence_max` without anything, not even a sign of
    /// life, the connection counts as lost; `None`: never.
    pub fn new(socket: R, from: Side, first: &Bytes, silence_max: Option<Duration>) -> Self {
        let mut inflow = Self {
            socket,
            from,
            splitter: Splitter::new(),
            pieces: VecDeque::new(),
            over: false,
            unreadable: None,
            patience: silence_max.map(|silence_max| Patience {
                silence_max,
                heard_at: Instant::now(),
                timer: Box::pin(tokio::time::sleep(silence_max)),
            }),
        };
        if let Err(malformed) = inflow.splitter.take(first, &mut inflow.pieces) {
            inflow.unreadable = Some(inflow.lost(malformed));
        }
        inflow
    }

    fn lost(&mut self, why: impl std::fmt::Display) -> Status {
        self.over = true;
        match self.from {
            Side::Client => Status::cancelled(format!("the client has gone: {why}")),
            Side::Server => Status::unavailable(format!("the connection broke: {why}")),
        }
    }

    /// Reads once.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut room = ReadBuf::uninit(&mut room);
        match Pin::new(&mut self.socket).poll_read(cx, &mut room) {
            Poll::Pending => {
                ready!(self.poll_patience(cx));
                return Poll::Ready(Err(self.lost("nothing came for too long")));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(self.lost(error))),
            Poll::Ready(Ok(())) if room.filled().is_empty() => {
                return Poll::Ready(Err(self.lost("it was closed without an end")));
            }
            Poll::Ready(Ok(())) => {}
        }
        if let Some(patience) = &mut self.patience {
            patience.heard_at = Instant::now();
        }
        let chunk = Bytes::copy_from_slice(room.filled());
        let taken = self.splitter.take(&chunk, &mut self.pieces);
        Poll::Ready(taken.map_err(|malformed| self.lost(malformed)))
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = &mut self.patience else {
            return Poll::Pending;
        };
        loop {
            ready!(patience.timer.as_mut().poll(cx));
            let over_at = patience.heard_at + patience.silence_max;
            if Instant::now() >= over_at {
                return Poll::Ready(());
            }
            patience.timer.as_mut().reset(over_at);
        }
    }
}

impl<R: AsyncRead + Unpin> Body for Inflow<R> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match this.pieces.pop_front() {
                Some(Piece::Data(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::End(content)) => {
                    this.over = true;
                    if this.from == Side::Server {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers_of(&content)))));
                    }
                }
                None if this.over => return Poll::Ready(this.unreadable.take().map(Err)),
                None => {
                    if this.pieces.capacity() > PIECES_KEPT {
                        this.pieces = VecDeque::new();
                    }
                    if let Err(lost) = ready!(this.poll_read(cx)) {
                        return Poll::Ready(Some(Err(lost)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::upgrade::frame::{beat_frame, end_frame};

    async fn next<R: AsyncRead + Unpin>(inflow: &mut Inflow<R>) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|cx| Pin::new(&mut *inflow).poll_frame(cx)).await
    }

    #[tokio::test]
    async fn an_end_is_told_from_a_connection_that_broke() {
        for (from, code) in [
            (Side::Client, tonic::Code::Cancelled),
            (Side::Server, tonic::Code::Unavailable),
        ] {
            for ends in [true, false] {
                let (mut sender, socket) = tokio::io::duplex(64);
                let mut inflow = Inflow::new(socket, from, &Bytes::from_static(&[0, 0, 0, 0, 1]), None);
                sender.write_all(&[9]).await.unwrap();
                if ends {
                    sender.write_all(&end_frame(None)).await.unwrap();
                }
                drop(sender);
                let mut message = Vec::new();
                while message.len() < 6 {
                    message.extend(next(&mut inflow).await.unwrap().unwrap().into_data().unwrap());
                }
                assert_eq!(message, [0, 0, 0, 0, 1, 9]);
                match next(&mut inflow).await {
                    Some(Err(lost)) => assert!(!ends && lost.code() == code, "{lost}"),
                    Some(Ok(frame)) => assert!(ends && from == Side::Server && frame.is_trailers()),
                    None => assert!(ends && from == Side::Client),
                }
                assert!(next(&mut inflow).await.is_none());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_as_a_loss_and_a_sign_of_life_as_none() {
        let silence_max = Duration::from_secs(4);
        let (mut sender, socket) = tokio::io::duplex(64);
        let mut inflow = Inflow::new(socket, Side::Server, &Bytes::new(), Some(silence_max));
        let began = Instant::now();
        let beats = tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(3)).await;
                sender.write_all(&beat_frame()).await.unwrap();
            }
            sender
        });
        let lost = next(&mut inflow).await.unwrap().unwrap_err();
        assert_eq!(lost.code(), tonic::Code::Unavailable);
        let after = began.elapsed();
        assert!(
            after >= Duration::from_secs(13) && after < Duration::from_secs(14),
            "{after:?}"
        );
        drop(beats.await);
    }
}
