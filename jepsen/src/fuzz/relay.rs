//! A stand-in for a server's gossip address: passes on what it is sent, and keeps a record of it.

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::wire::PACKET_BYTES_MAX;

/// Packets that are kept; the oldest go first.
const RECORD_MAX: usize = 512;

#[derive(Debug, Default)]
struct Held {
    to: Option<SocketAddr>,
    record: VecDeque<Vec<u8>>,
    deaf_to: BTreeSet<SocketAddr>,
    passed: u64,
}

/// One direction of a server's gossip: towards it. Members that advertise a relay's address are sent to through it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Takes a loopback port. What comes is dropped until [`Self::pass_to`] says where to.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start() -> std::io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?;
        let held = Arc::<Mutex<Held>>::default();
        let task = tokio::spawn(pass(socket, Arc::clone(&held)));
        Ok(Self { address, held, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes on to there from now on.
    pub fn pass_to(&self, to: SocketAddr) {
        lock(&self.held).to = Some(to);
    }

    /// Drops what comes from these gossip ports from now on; from all others it passes.
    pub fn be_deaf_to(&self, from: impl IntoIterator<Item = SocketAddr>) {
        lock(&self.held).deaf_to = from.into_iter().collect();
    }

    /// The last packets that were passed on.
    #[must_use]
    pub fn record(&self) -> Vec<Vec<u8>> {
        lock(&self.held).record.iter().cloned().collect()
    }

    /// How many were passed on in all.
    #[must_use]
    pub fn passed(&self) -> u64 {
        lock(&self.held).passed
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(socket: UdpSocket, held: Arc<Mutex<Held>>) {
    let mut buffer = vec![0; PACKET_BYTES_MAX + 1];
    loop {
        // An error is the echo of a packet that nobody received, such as one to a server that was killed.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let bytes = &buffer[..length];
        let to = {
            let mut held = lock(&held);
            let Some(to) = held.to.filter(|_| !held.deaf_to.contains(&from)) else {
                continue;
            };
            if held.record.len() >= RECORD_MAX {
                held.record.pop_front();
            }
            held.record.push_back(bytes.to_vec());
            held.passed += 1;
            to
        };
        // Of UDP, what cannot be sent is as good as lost.
        let _ = socket.send_to(bytes, to).await;
    }
}
