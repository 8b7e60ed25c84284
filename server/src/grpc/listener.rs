//! Accepts connections: so many at once, so many a second from one address, and none that stays silent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
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
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

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
    open: Gauge,
    cut: CancellationToken,
    cut_comes: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the greeting has come: how much of it is there, and when it is too late.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
    /// When it ends however busy it is.
    ends: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
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

/// The connections that are let in. Accepting never ends: a failure (no file descriptors left, say) is waited
/// out.
pub(crate) fn connections(gate: Gate) -> impl Stream<Item = io::Result<Connection>> {
    futures_util::stream::unfold(gate, |gate| async move {
        let connection = gate.next().await;
        Some((Ok(connection), gate))
    })
}

/// Decides which connections are let in.
pub(crate) struct Gate {
    listener: TcpListener,
    room: Arc<Semaphore>,
    addresses: AddressLimiter,
    greeting_deadline: Duration,
    lifetime: Option<Duration>,
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
            open,
            refused,
        }
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
        let cut = CancellationToken::new();
        let cut_comes = Box::pin(cut.clone().cancelled_owned());
        Some(Connection {
            stream,
            open: self.open.clone(),
            cut,
            cut_comes,
            greeting: Some((0, Box::pin(tokio::time::sleep(self.greeting_deadline)))),
            ends: self
                .lifetime
                .map(|lifetime| Box::pin(tokio::time::sleep(lifetime))),
            _permit: permit,
        })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut_comes.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let late = |timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>| timer.as_mut().poll(cx).is_ready();
        if self.greeting.as_mut().is_some_and(|(_, timer)| late(timer, cx))
            || self.ends.as_mut().is_some_and(|timer| late(timer, cx))
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
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
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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

    async fn pair(lifetime: Option<Duration>) -> (Connection, TcpStream) {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "--listen-client")
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let limits = DoorsConfig::default();
        let mut gate = Gate::new(listener, 8, &limits, Gauge::default(), Counter::default());
        gate.greeting_deadline = SOON;
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
    async fn after_the_greeting_silence_is_allowed_but_a_visit_ends() {
        let (mut connection, mut client) = pair(Some(SOON * 10)).await;
        client.write_all(&[b'x'; GREETING_BYTES]).await.unwrap();
        assert_eq!(read_some(&mut connection).await.unwrap(), GREETING_BYTES);
        let from = tokio::time::Instant::now();
        let end = read_some(&mut connection).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(from.elapsed() > SOON * 2, "after {:?}", from.elapsed());
    }
}
