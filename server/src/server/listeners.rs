//! The addresses that a server takes, before anything else is started.

use std::net::{SocketAddr, UdpSocket as StdUdpSocket};

use tokio::net::{TcpListener, UdpSocket};

use crate::config::Config;
use crate::grpc::{ListenError, bind};
use crate::{datagram, gossip};

/// Where a server is reached; ports that were left open are filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC for other servers.
    pub peer: SocketAddr,
    /// Gossip (UDP), unless it is off.
    pub gossip: Option<SocketAddr>,
    /// Heartbeats of clients by datagram (UDP), unless they are off.
    pub heartbeat: Option<SocketAddr>,
    /// Health, metrics.
    pub http: SocketAddr,
}

pub(super) struct Listeners {
    pub(super) client: TcpListener,
    pub(super) peer: TcpListener,
    pub(super) gossip: Option<UdpSocket>,
    pub(super) heartbeat: Option<StdUdpSocket>,
    pub(super) http: TcpListener,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Self, ListenError> {
        let listen = &config.listen;
        let client = bind(listen.client, "--listen-client").await?;
        let peer = bind(listen.peer, "--listen-peer").await?;
        let gossip = match config.gossip.enabled {
            true => Some(gossip::bind(listen, peer.local_addr().unwrap_or(listen.peer)).await?),
            false => None,
        };
        let heartbeat = match config.datagram.enabled {
            true => Some(datagram::bind(
                listen,
                &config.datagram,
                client.local_addr().unwrap_or(listen.client),
            )?),
            false => None,
        };
        Ok(Self {
            client,
            peer,
            gossip,
            heartbeat,
            http: bind(listen.http, "--listen-http").await?,
        })
    }

    pub(super) fn addresses(&self, config: &Config) -> Addresses {
        // A listener that cannot say where it listens still listens where it was told to.
        let bound = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        Addresses {
            client: bound(&self.client, config.listen.client),
            peer: bound(&self.peer, config.listen.peer),
            gossip: self.gossip.as_ref().and_then(|socket| socket.local_addr().ok()),
            heartbeat: self
                .heartbeat
                .as_ref()
                .and_then(|socket| socket.local_addr().ok()),
            http: bound(&self.http, config.listen.http),
        }
    }
}
