//! Where gossip listens, and where others find it.

use std::net::SocketAddr;

use tokio::net::UdpSocket;

use super::seeds::Seeds;
use crate::config::{Config, ListenConfig};
use crate::grpc::ListenError;
use crate::raft::Consensus;

/// Takes the UDP port: the one that is configured, else that of the peer listener.
///
/// # Errors
/// Somebody has it.
pub async fn bind(listen: &ListenConfig, peer: SocketAddr) -> Result<UdpSocket, ListenError> {
    let address = listen.gossip.unwrap_or(peer);
    let bound = match UdpSocket::bind(address).await {
        // The peer port was left open, so nobody counts on its number.
        Err(_) if listen.gossip.is_none() && listen.peer.port() == 0 => {
            UdpSocket::bind(SocketAddr::new(address.ip(), 0)).await
        }
        other => other,
    };
    bound.map_err(|source| ListenError {
        address,
        flag: "--listen-gossip",
        source,
    })
}

/// What others send to, `host:port`.
#[must_use]
pub fn advertised(listen: &ListenConfig, bound: SocketAddr) -> String {
    match (&listen.advertise_gossip, &listen.advertise_peer) {
        (Some(told), _) => told.clone(),
        (None, Some(peer)) => at_port(peer, bound.port()),
        (None, None) => bound.to_string(),
    }
}

/// Whom to ask: who is configured, else the members of the cluster.
#[must_use]
pub fn seeds(config: &Config, consensus: &Consensus) -> Seeds {
    if !config.gossip.seeds.is_empty() {
        return Seeds::fixed(config.gossip.seeds.clone());
    }
    let port = config
        .listen
        .gossip
        .map(|address| address.port())
        .filter(|port| *port != 0);
    let founders: Vec<String> = config
        .cluster
        .members
        .iter()
        .map(|member| member.peer.clone())
        .collect();
    let consensus = consensus.clone();
    Seeds::from_source(move || {
        let mut peers: Vec<String> = consensus
            .members()
            .into_iter()
            .map(|member| member.addresses.peer_address)
            .collect();
        if peers.is_empty() {
            peers.clone_from(&founders);
        }
        let at = |peer: String| port.map_or(peer.clone(), |port| at_port(&peer, port));
        peers.into_iter().map(at).collect()
    })
}

fn at_port(address: &str, port: u16) -> String {
    match address.rsplit_once(':') {
        Some((host, _)) => format!("{host}:{port}"),
        None => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_goes_before_what_is_bound() {
        let bound: SocketAddr = "0.0.0.0:7401".parse().unwrap();
        let mut listen = ListenConfig::default();
        assert_eq!(advertised(&listen, bound), "0.0.0.0:7401");
        listen.advertise_peer = Some("rollcall-1:9000".into());
        assert_eq!(advertised(&listen, bound), "rollcall-1:7401");
        listen.advertise_gossip = Some("[::1]:5".into());
        assert_eq!(advertised(&listen, bound), "[::1]:5");
    }

    #[tokio::test]
    async fn the_port_is_that_of_the_peer_listener() {
        let mut listen = ListenConfig::default();
        let peer: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listen.peer = peer;
        let first = bind(&listen, peer).await.unwrap();
        let taken = first.local_addr().unwrap();
        // An open peer port: any other will do.
        assert_ne!(bind(&listen, taken).await.unwrap().local_addr().unwrap(), taken);
        listen.peer = taken;
        let problem = bind(&listen, taken).await.unwrap_err().to_string();
        assert!(
            problem.contains("--listen-gossip") && problem.contains("RC-202"),
            "{problem}"
        );
    }
}
