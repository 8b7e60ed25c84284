//! Where this server listens, and what it tells others to dial.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where this server listens, and what it tells others to dial. Port 0 takes any free port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// gRPC for clients: registry, sessions, watches, cluster, health, reflection.
    pub client: SocketAddr,
    /// gRPC for the other servers only. Keep it off networks that clients can reach.
    pub peer: SocketAddr,
    /// Gossip among the servers (UDP). Left out: the address and port of `peer`.
    pub gossip: Option<SocketAddr>,
    /// Heartbeats of clients by datagram (UDP). Left out: the address and port of `client`. To listen nowhere, set
    /// `datagram.enabled = false`.
    pub heartbeat: Option<SocketAddr>,
    /// HTTP for `/livez`, `/readyz`, `/metrics` and `/version`. Answers without a quorum.
    pub http: SocketAddr,
    /// `host:port` clients should dial, if it is not the `client` address (0.0.0.0, a load balancer, a NAT).
    pub advertise_client: Option<String>,
    /// `host:port` the other servers should dial, if it is not the `peer` address.
    pub advertise_peer: Option<String>,
    /// `host:port` the other servers should send gossip to, if it is not the `gossip` address. Left out: the host
    /// of `advertise_peer`, if that is set, with the port of `gossip`.
    pub advertise_gossip: Option<String>,
    /// `host:port` clients should send heartbeats by datagram to. Left out: the host that they dialled, or that of
    /// `heartbeat`, with its port. Set it if the client address is that of a load balancer.
    pub advertise_heartbeat: Option<String>,
    /// `host:port` of the health and metrics pages, if it is not the `http` address.
    pub advertise_http: Option<String>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            client: loopback(7400),
            peer: loopback(7401),
            gossip: None,
            heartbeat: None,
            http: loopback(7402),
            advertise_client: None,
            advertise_peer: None,
            advertise_gossip: None,
            advertise_heartbeat: None,
            advertise_http: None,
        }
    }
}
