//! Ports to listen on.
//!
//! They lie below the range the kernel draws from for outgoing connections. A port from inside it can be taken
//! by anybody's outgoing connection while its server is down, and a client that dials it again and again on
//! loopback can even end up connected to itself.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

const LOWEST: u16 = 12_000;
const ATTEMPTS_MAX: u32 = 4_096;

/// Ports handed out by this process; none is handed out twice.
static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback port that nobody listened on a moment ago.
///
/// Another program may still take it before its user binds it; whoever starts a server retries then.
///
/// # Errors
/// Every port that was tried is in use.
pub fn free() -> std::io::Result<u16> {
    let range = u32::from(ephemeral_start().max(LOWEST + 1_000) - LOWEST);
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..ATTEMPTS_MAX {
        let offset = u16::try_from(random() % u64::from(range)).unwrap_or(0);
        let port = LOWEST + offset;
        if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    Err(std::io::Error::other(format!(
        "no free loopback port among {ATTEMPTS_MAX} tried from {LOWEST} up"
    )))
}

/// `127.0.0.1:port` for a [`free`] port.
///
/// # Errors
/// As [`free`].
pub fn free_address() -> std::io::Result<String> {
    Ok(format!("127.0.0.1:{}", free()?))
}

fn ephemeral_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

/// The standard library's hash seeds differ for each hasher; good enough to spread ports.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_can_be_bound() {
        let ports: BTreeSet<u16> = (0..50).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        assert!(
            ports
                .iter()
                .all(|port| *port >= LOWEST && *port < ephemeral_start())
        );
    }
}
