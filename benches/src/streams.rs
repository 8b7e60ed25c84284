//! Streams on connections of their own: what comes and what goes, without the kernel's part.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use prost::Message;
use rollcall_proto::upgrade::{Inflow, Limits, Sending, Side};
use rollcall_proto::v1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Status;

use crate::Case;

/// Messages that come, or go, together.
const TOGETHER: u64 = 16;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, times, make| Case { name, times, make };
    vec![
        case("stream/take in 16 heartbeats", 5_000, take_in),
        case("stream/send 16 answers", 5_000, send),
    ]
}

fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("it is small"));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

/// A socket on which the same comes again and again.
struct Repeating {
    bytes: Bytes,
    /// Nothing more comes until the next operation.
    read: Rc<RefCell<bool>>,
}

impl AsyncRead for Repeating {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.replace(true) {
            return Poll::Pending;
        }
        room.put_slice(&self.bytes);
        Poll::Ready(Ok(()))
    }
}

fn take_in() -> Box<dyn FnMut()> {
    let heartbeat = |call| v1::SessionRequest {
        call,
        session: 7,
        request: Some(v1::session_request::Request::Renew(v1::Renew::default())),
    };
    let together: Vec<_> = (0..TOGETHER).map(|call| framed(&heartbeat(call))).collect();
    let read = Rc::new(RefCell::new(false));
    let socket = Repeating {
        bytes: together.concat().into(),
        read: Rc::clone(&read),
    };
    let mut inflow = Inflow::new(socket, Side::Client, &Bytes::new(), None);
    Box::new(move || {
        read.replace(false);
        let mut bytes = 0;
        while let Poll::Ready(frame) =
            Pin::new(&mut inflow).poll_frame(&mut Context::from_waker(Waker::noop()))
        {
            let frame = frame.expect("the stream goes on").expect("it is no error");
            bytes += frame.into_data().map_or(0, |data| data.len());
        }
        assert!(black_box(bytes) > 0);
    })
}

/// Answers as they come to be ready.
#[derive(Clone, Default)]
struct Ready(Rc<RefCell<VecDeque<Bytes>>>);

impl Body for Ready {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.borrow_mut().pop_front() {
            Some(answer) => Poll::Ready(Some(Ok(Frame::data(answer)))),
            None => Poll::Pending,
        }
    }
}

/// Takes everything at once.
struct Open;

impl AsyncWrite for Open {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(black_box(bytes).len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(black_box(parts).iter().map(|part| part.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn send() -> Box<dyn FnMut()> {
    let answer = framed(&v1::SessionResponse {
        call: 7,
        response: Some(v1::session_response::Response::Renewed(v1::Renewed {
            sessions: vec![7],
            not_found: Vec::new(),
        })),
    });
    let ready = Ready::default();
    let mut sending = Sending::new(ready.clone(), Open, None, Limits::default());
    Box::new(move || {
        let answers = (0..TOGETHER).map(|_| answer.clone());
        ready.0.borrow_mut().extend(answers);
        let sent = Pin::new(&mut sending).poll(&mut Context::from_waker(Waker::noop()));
        assert!(sent.is_pending() && ready.0.borrow().is_empty());
    })
}
