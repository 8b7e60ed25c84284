//! Accepts connections: so many at once, so many a second from one address, and none that stays silent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::address_limiter::AddressLimiter;
use crate::config::DoorsConfig;

/// Whoever dials must have said this much ...
const GREETING_BYTES: usize = 24;
/// ... within this time: HTTP/2 begins with as many bytes, and no HTTP/1 request is shorter. Else a stranger
/// could take every place by dialling and saying nothing.
pub(super) const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// A write from this size on is a part of a large answer, whose other parts and end follow at once: HTTP/2 hands the
/// frames of an answer over one by one, and a system call for each costs as much as everything else about it.
const LARGE_WRITE: usize = 4 << 10;
/// Most that is gathered before it leaves.
const GATHERED_MAX: usize = 64 << 10;

/// A listen address cannot be used. Nothing was started; stop whoever has it, or choose another.
#[derive(Debug, thiserror::Error)]
#[error("RC-202: cannot listen on {address} ({flag})")]
pub struct ListenError {
    /// Which address.
    pub address: SocketAddr,
    /// The flag that sets it.
    pub flag: &'static str,
    /// Why.
    pub source: io::Error,
}

/// Takes a listen address.
pub(crate) async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError {
        address,
        flag,
        source,
    })
}

/// A connection; counted until it is dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The beginning of what is to leave together with what follows it.
    gathered: Vec<u8>,
    /// It was not tried to send that yet.
    more_follows: bool,
    cut: CancellationToken,
    cut_comes: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the greeting has come: how much of it is there, and when it is too late.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
    /// When it ends however busy it is.
    ends: Option<Pin<Box<Sleep>>>,
    place: Place,
}

/// A connection's place among those that are let in; given up when dropped.
pub(super) struct Place {
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// What a call knows of its connection.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Who dialled.
    pub(crate) address: Option<IpAddr>,
    /// Ends the connection with everything on it, for a client that hoards memory.
    pub(crate) cut: CancellationToken,
}

impl Connection {
    /// The first byte of what the client says, which stays to be read.
    ///
    /// # Errors
    /// It said nothing in time, or has gone.
    pub(super) async fn first_byte(&self) -> io::Result<u8> {
        let mut first = [0];
        let peeked = tokio::time::timeout(GREETING_DEADLINE, self.stream.peek(&mut first)).await?;
        match peeked? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(first[0]),
        }
    }

    /// The socket, for whoever speaks another protocol than the transport's, with what its calls know of it.
    pub(super) fn into_parts(self) -> (TcpStream, Peer, Place) {
        let peer = self.connect_info();
        (self.stream, peer, self.place)
    }

    /// Sends what was gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.more_follows = false;
        let mut sent = 0;
        let result = loop {
            if sent == self.gathered.len() {
                // The room for a large answer is not kept: most connections are quiet most of the time.
                self.gathered = Vec::new();
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.gathered[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => sent += bytes,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break self.stalled(cx),
            }
        };
        self.gathered.drain(..sent);
        result
    }

    /// A client that does not read may not be read from either, for want of room for what it would be answered: its time is
    /// up all the same.
    fn stalled<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.ends.as_mut().is_some_and(|timer| late(timer, cx)) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.cut_comes.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let address = self.stream.peer_addr().ok().map(|address| address.ip());
        Peer {
            address,
            cut: self.cut.clone(),
        }
    }
}

/// Decides which connections are let in. Accepting never ends: a failure (no file descriptors left, say) is waited out.
pub(crate) struct Gate {
    listener: TcpListener,
    room: Arc<Semaphore>,
    addresses: AddressLimiter,
    greeting_deadline: Duration,
    lifetime: Option<Duration>,
    /// Ends all connections.
    over: CancellationToken,
    open: Gauge,
    refused: Counter,
}

impl Gate {
    pub(crate) fn new(
        listener: TcpListener,
        connections_max: usize,
        limits: &DoorsConfig,
        open: Gauge,
        refused: Counter,
    ) -> Self {
        Self {
            listener,
            room: Arc::new(Semaphore::new(connections_max)),
            addresses: AddressLimiter::new(limits.connections_per_second, limits.connections_burst),
            greeting_deadline: GREETING_DEADLINE,
            lifetime: None,
            over: CancellationToken::new(),
            open,
            refused,
        }
    }

    /// Ends all connections, however busy, once `over` is cancelled.
    pub(crate) fn until(self, over: CancellationToken) -> Self {
        Self { over, ..self }
    }

    /// Ends each connection after this time: for doors where callers ask and go.
    pub(crate) fn for_short_visits(self, lifetime: Duration) -> Self {
        Self {
            lifetime: Some(lifetime),
            ..self
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(crate) async fn next(&self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => match self.admit(stream, peer) {
                    Some(connection) => return connection,
                    None => _ = self.refused.inc(),
                },
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Connection> {
        let permit = self.room.clone().try_acquire_owned().ok()?;
        self.addresses.try_take(peer.ip(), Instant::now()).ok()?;
        // Answers are small and waited for. A socket that refuses is about to fail anyway.
        let _ = stream.set_nodelay(true);
        self.open.inc();
        let cut = self.over.child_token();
        let cut_comes = Box::pin(cut.clone().cancelled_owned());
        Some(Connection {
            stream,
            gathered: Vec::new(),
            more_follows: false,
            cut,
            cut_comes,
            greeting: Some((0, Box::pin(tokio::time::sleep(self.greeting_deadline)))),
            ends: self
                .lifetime
                .map(|lifetime| Box::pin(tokio::time::sleep(lifetime))),
            place: Place {
                open: self.open.clone(),
                _permit: permit,
            },
        })
    }
}

fn late(timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> bool {
    timer.as_mut().poll(cx).is_ready()
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What waits for more to follow leaves now: nothing did.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        if self.greeting.as_mut().is_some_and(|(_, timer)| late(timer, cx))
            || self.ends.as_mut().is_some_and(|timer| late(timer, cx))
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // Who hoards says nothing.
        if read.is_pending() && self.cut_comes.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Some((said, _)) = &mut self.greeting {
            *said += buf.filled().len() - before;
            if *said >= GREETING_BYTES {
                self.greeting = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.more_follows) {
            // The caller's task comes again and reads, by which time it has written what there is.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.gathered.is_empty() && bytes < LARGE_WRITE {
            let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
            return match written.is_pending() {
                true => self.stalled(cx),
                false => written,
            };
        }
        if self.gathered.len() >= GATHERED_MAX {
            ready!(self.poll_send(cx))?;
        }
        for buf in bufs {
            self.gathered.extend_from_slice(buf);
        }
        self.more_follows = true;
        if bytes < LARGE_WRITE {
            // The end of an answer: should the socket be full, the rest leaves when it is not.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_used_port_is_named_with_its_flag() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), "--listen-client")
            .await
            .unwrap();
        let address = taken.local_addr().unwrap();
        let problem = bind(address, "--listen-client").await.unwrap_err().to_string();
        assert!(
            problem.contains(&address.to_string()) && problem.contains("--listen-client"),
            "{problem}"
        );
    }

    const SOON: Duration = Duration::from_millis(50);
    /// What is read in time must be so on a machine that is busy.
    const GREETING_DEADLINE: Duration = Duration::from_secs(2);

    async fn pair(lifetime: Option<Duration>) -> (Connection, TcpStream) {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "--listen-client")
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let limits = DoorsConfig::default();
        let mut gate = Gate::new(listener, 8, &limits, Gauge::default(), Counter::default());
        gate.greeting_deadline = GREETING_DEADLINE;
        gate.lifetime = lifetime;
        let (connection, client) = tokio::join!(gate.next(), TcpStream::connect(address));
        (connection, client.unwrap())
    }

    async fn read_some(connection: &mut Connection) -> io::Result<usize> {
        connection.read(&mut [0; 64]).await
    }

    #[tokio::test]
    async fn whoever_says_nothing_or_dribbles_is_cut_off() {
        let (mut connection, mut client) = pair(None).await;
        client.write_all(b"GET").await.unwrap();
        assert_eq!(read_some(&mut connection).await.unwrap(), 3);
        let silence = read_some(&mut connection).await;
        assert_eq!(silence.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_parts_of_a_large_answer_leave_with_its_end_or_by_themselves() {
        let (mut connection, mut client) = pair(None).await;
        client.write_all(&[b'x'; GREETING_BYTES]).await.unwrap();
        assert_eq!(read_some(&mut connection).await.unwrap(), GREETING_BYTES);
        let part = [b'p'; LARGE_WRITE];
        connection.write_all(&part).await.unwrap();
        connection.flush().await.unwrap();
        let nothing = tokio::time::timeout(SOON / 5, client.readable()).await;
        assert!(nothing.is_err(), "the first part waits for the next");
        connection.write_all(b"end").await.unwrap();
        let mut answer = vec![0; LARGE_WRITE + 3];
        client.read_exact(&mut answer).await.unwrap();
        assert!(answer.starts_with(&part) && answer.ends_with(b"end"));

        connection.write_all(&part).await.unwrap();
        connection.flush().await.unwrap();
        // No end follows; whoever serves the connection reads on.
        let reading = read_some(&mut connection);
        let arrived = client.read_exact(&mut answer[..LARGE_WRITE]);
        tokio::select! {
            _ = reading => panic!("the client has said nothing"),
            arrived = arrived => assert_eq!(arrived.unwrap(), LARGE_WRITE),
        }
    }

    #[tokio::test]
    async fn what_a_slow_reader_does_not_take_is_bounded_and_not_lost() {
        let (mut connection, mut client) = pair(None).await;
        let part = [b'p'; LARGE_WRITE];
        let mut written = 0;
        while tokio::time::timeout(SOON / 5, connection.write_all(&part))
            .await
            .is_ok()
        {
            written += LARGE_WRITE;
            assert!(connection.gathered.len() < GATHERED_MAX + LARGE_WRITE);
        }
        assert!(
            tokio::time::timeout(SOON / 5, connection.flush()).await.is_err(),
            "a full socket is no reason to spin"
        );
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        connection.shutdown().await.unwrap();
        drop(connection);
        assert_eq!(reader.await.unwrap(), written);
    }

    #[tokio::test]
    async fn a_visit_ends_also_for_who_does_not_read() {
        for size in [LARGE_WRITE, 512] {
            let from = tokio::time::Instant::now();
            let (mut connection, _client) = pair(Some(SOON * 4)).await;
            let part = vec![b'p'; size];
            let writing = async { while connection.write_all(&part).await.is_ok() {} };
            let ended = tokio::time::timeout(SOON * 100, writing).await;
            assert!(ended.is_ok(), "writes of {size} bytes wait for ever");
            assert!(from.elapsed() > SOON * 2, "after {:?}", from.elapsed());
            let (mut connection, client) = pair(None).await;
            connection.cut.cancel();
            let writing = async { while connection.write_all(&part).await.is_ok() {} };
            let ended = tokio::time::timeout(SOON * 100, writing).await;
            assert!(ended.is_ok(), "also for who is cut off");
            drop(client);
        }
    }

    #[tokio::test]
    async fn after_the_greeting_silence_is_allowed_but_a_visit_ends() {
        let lifetime = GREETING_DEADLINE * 3 / 2;
        let from = tokio::time::Instant::now();
        let (mut connection, mut client) = pair(Some(lifetime)).await;
        client.write_all(&[b'x'; GREETING_BYTES]).await.unwrap();
        assert_eq!(read_some(&mut connection).await.unwrap(), GREETING_BYTES);
        let end = read_some(&mut connection).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(from.elapsed() >= lifetime, "after {:?}", from.elapsed());
    }
}
