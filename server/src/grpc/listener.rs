//! Accepts connections: so many at once, so many a second from one address.

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
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::admission::AddressLimiter;
use crate::config::DoorsConfig;

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
            open,
            refused,
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
}
