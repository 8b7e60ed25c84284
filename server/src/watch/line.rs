//! A stream's way to its client, beside the task that serves it.
//!
//! A change wakes as many tasks as it has watchers, and each would only hand the socket what is the same for all. While
//! such a task has nothing to do, whoever has something to say may do that for it; as soon as there is more to it (the
//! socket is full, other things are to be said, the task is at work) it is woken.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_proto::upgrade::Sending;
use tokio::net::tcp::OwnedWriteHalf;
use tonic::body::Body;

type Carried = Sending<Body, OwnedWriteHalf>;

/// See the module's page. Cheap to clone. Empty but while a stream is [carried](Self::carry).
#[derive(Clone, Default)]
pub(crate) struct Line(Arc<Mutex<Option<Carried>>>);

impl Line {
    /// Sends a stream to its end; the socket, or `None` if the connection was lost. The body may be pending only between
    /// two messages.
    pub(crate) fn carry(&self, sending: Carried) -> impl Future<Output = Option<OwnedWriteHalf>> {
        *self.0.lock() = Some(sending);
        Carrying(self)
    }

    /// Sends what `take` gives, which is whole messages, if whoever carries the stream has nothing to do. Nobody else takes
    /// or sends meanwhile. `false`: that one has to be woken, for what was not taken or has not left.
    pub(crate) fn pass(&self, take: impl FnOnce() -> Option<Bytes>) -> bool {
        let Some(mut carried) = self.0.try_lock() else {
            return false;
        };
        let Some(sending) = carried.as_mut().filter(|sending| sending.rests()) else {
            return false;
        };
        take().is_some_and(|messages| sending.pass(messages))
    }
}

/// Whatever becomes of it, the line does not keep the stream, which may know the line.
struct Carrying<'a>(&'a Line);

impl Future for Carrying<'_> {
    type Output = Option<OwnedWriteHalf>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut carried = self.0.0.lock();
        let sent = match carried.as_mut() {
            Some(sending) => pin!(sending).poll(cx),
            None => return Poll::Ready(None),
        };
        sent.map(|sent| {
            let socket = carried.take().map(Sending::into_socket);
            sent.ok().and(socket)
        })
    }
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        // Its own end may have to do with the line.
        let carried = self.0.0.lock().take();
        drop(carried);
    }
}
