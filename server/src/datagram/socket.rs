//! Where heartbeats come in, and what clients are told of it.

use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt;

use crate::config::{DatagramConfig, ListenConfig};
use crate::grpc::ListenError;

/// Takes the UDP port: the one that is configured, else that of the client listener, else, since clients are told, any.
///
/// # Errors
/// Somebody has the one that is configured.
pub fn bind(
    listen: &ListenConfig,
    config: &DatagramConfig,
    client: SocketAddr,
) -> Result<UdpSocket, ListenError> {
    let address = listen.heartbeat.unwrap_or(client);
    let bound = match UdpSocket::bind(address) {
        Err(error) if listen.heartbeat.is_none() => {
            tracing::warn!(%address, %error, "heartbeats by datagram take another port");
            UdpSocket::bind(SocketAddr::new(address.ip(), 0))
        }
        other => other,
    };
    let socket = bound.map_err(|source| ListenError {
        address,
        flag: "--listen-heartbeat",
        source,
    })?;
    make_room(&socket, config.receive_buffer_bytes);
    Ok(socket)
}

/// As much as the system grants.
fn make_room(socket: &UdpSocket, bytes: usize) {
    let granted = sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes))
        .and_then(|()| sockopt::socket_recv_buffer_size(socket));
    // The kernel counts its own bookkeeping too, and tells twice what was asked.
    match granted {
        Ok(granted) if granted / 2 >= bytes => {}
        Ok(granted) => tracing::info!(
            asked = bytes,
            granted = granted / 2,
            "heartbeats by datagram have less room than asked for: raise net.core.rmem_max"
        ),
        Err(error) => tracing::info!(%error, "heartbeats by datagram have the room that the system gives"),
    }
}

/// What clients send to: `host:port`, or `:port` at the host that they dialled.
#[must_use]
pub fn told(listen: &ListenConfig, bound: SocketAddr) -> String {
    match (&listen.advertise_heartbeat, listen.heartbeat) {
        (Some(told), _) => told.clone(),
        (None, Some(asked)) if !asked.ip().is_unspecified() && asked.ip() != listen.client.ip() => {
            bound.to_string()
        }
        (None, _) => format!(":{}", bound.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_a_port_unless_there_is_more_to_say() {
        let mut listen = ListenConfig::default();
        let bound: SocketAddr = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(told(&listen, bound), ":7400");
        listen.heartbeat = Some("0.0.0.0:7500".parse().unwrap());
        assert_eq!(told(&listen, "0.0.0.0:7500".parse().unwrap()), ":7500");
        listen.heartbeat = Some("10.0.0.9:7500".parse().unwrap());
        assert_eq!(told(&listen, "10.0.0.9:7500".parse().unwrap()), "10.0.0.9:7500");
        listen.advertise_heartbeat = Some("beat.example.org:7".into());
        assert_eq!(told(&listen, bound), "beat.example.org:7");
    }

    #[test]
    fn a_taken_port_is_an_error_only_if_it_was_asked_for() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let taken = UdpSocket::bind(any).unwrap().local_addr().unwrap();
        let holder = UdpSocket::bind(taken).unwrap();
        let config = DatagramConfig::default();
        let mut listen = ListenConfig::default();
        let other = bind(&listen, &config, taken).unwrap();
        assert_ne!(other.local_addr().unwrap(), taken);
        listen.heartbeat = Some(taken);
        let problem = bind(&listen, &config, any).unwrap_err().to_string();
        assert!(problem.contains("--listen-heartbeat"), "{problem}");
        drop(holder);
    }
}
