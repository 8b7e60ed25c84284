//! Hosts without root: everybody is on loopback, and what goes from one host to another passes a proxy in this process.
//!
//! A server listens where nobody dials. What it tells others to dial is a port of the proxy's, for TCP and for gossip's
//! datagrams; who dials is known by the process that has the socket, and who sends a datagram by where it comes from.
//! Hosts of clients have ports of their own for each server. The harness itself dials servers directly.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::owner;
use super::quality::Protocol;
use super::stream::{self, Route};
use super::switch::{Ports, Switch};
use crate::lab::{CLIENT_PORT, PEER_PORT, ports};

/// Most connections carried at a time; what comes beyond is broken off.
const CONNECTIONS_MAX: usize = 8_192;
/// Stands for the port that the kernel chose.
const DIALLER_PORT: u16 = 40_000;
const DATAGRAM_MAX: usize = 65_536;
const PORT_ATTEMPTS_MAX: u32 = 64;

/// Where a server listens on loopback, and what others dial.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// For clients; hosts of clients dial [`Loopback::dialled_from`] instead.
    pub(crate) client: String,
    /// Where it listens for the other servers.
    pub(crate) peer: String,
    /// What those dial.
    pub(crate) told: String,
    /// For probes.
    pub(crate) http: String,
}

/// A direction from one host to another, and whose service is spoken to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) link: (usize, usize),
    ports: Ports,
}

impl Way {
    fn both(from: usize, to: usize, port: u16) -> (Self, Self) {
        let way = |link, from, to| Self {
            link,
            ports: (Protocol::Tcp, from, to),
        };
        (
            way((from, to), DIALLER_PORT, port),
            way((to, from), port, DIALLER_PORT),
        )
    }
}

/// A proxy for all links. Dropping it breaks off everything that it carries.
#[derive(Debug)]
pub(super) struct Loopback {
    shared: Arc<Shared>,
    places: Vec<Place>,
    /// What a host of clients dials instead of a server's address.
    doors: BTreeMap<(u64, String), String>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
pub(super) struct Shared {
    switch: Mutex<Switch>,
    /// Told whenever a link may have become better.
    changed: watch::Sender<()>,
    started: Instant,
    /// The process on each server's host.
    processes: Mutex<BTreeMap<usize, u32>>,
    connections: Mutex<BTreeMap<u64, Carried>>,
    connections_ever: AtomicU64,
    room: Arc<Semaphore>,
}

/// Between whom a connection is, and who is told to break it off.
#[derive(Debug)]
struct Carried {
    link: (usize, usize),
    reset: Arc<Notify>,
}

/// A listener of the proxy's.
#[derive(Clone, Copy)]
struct Door {
    /// Who dials it; `None`: whichever server.
    from: Option<usize>,
    to: usize,
    port: u16,
    address: SocketAddr,
}

impl Loopback {
    /// One for hosts 1 to `servers`, and as many more of clients, joined by this switch.
    pub(super) fn start(servers: u64, clients: u64, switch: Switch) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("rc-proxy")
            .enable_all()
            .build()
            .context("starting the proxy's threads")?;
        let inside = runtime.enter();
        let shared = Arc::new(Shared {
            switch: Mutex::new(switch),
            changed: watch::Sender::new(()),
            started: Instant::now(),
            processes: Mutex::default(),
            connections: Mutex::default(),
            connections_ever: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let (mut places, mut doors) = (Vec::new(), BTreeMap::new());
        let (mut sockets, mut homes) = (Vec::new(), BTreeMap::new());
        for host in 1..=servers {
            let to = usize::try_from(host)?;
            let (listener, socket) = bind_both()?;
            let place = Place {
                client: ports::free_address()?,
                peer: { bind_both()?.0.local_addr()?.to_string() },
                told: listener.local_addr()?.to_string(),
                http: ports::free_address()?,
            };
            let peer: SocketAddr = place.peer.parse()?;
            let door = Door {
                from: None,
                to,
                port: PEER_PORT,
                address: peer,
            };
            tokio::spawn(serve(Arc::clone(&shared), listen(listener)?, door));
            homes.insert(peer, to);
            socket.set_nonblocking(true)?;
            sockets.push(UdpSocket::from_std(socket)?);
            for client in servers + 1..=servers + clients {
                let listener = bind(ports::free()?)?;
                doors.insert((client, place.client.clone()), listener.local_addr()?.to_string());
                let door = Door {
                    from: Some(usize::try_from(client)?),
                    to,
                    port: CLIENT_PORT,
                    address: place.client.parse()?,
                };
                tokio::spawn(serve(Arc::clone(&shared), listen(listener)?, door));
            }
            places.push(place);
        }
        let (sockets, homes) = (Arc::new(sockets), Arc::new(homes));
        for host in 1..=places.len() {
            let shared = Arc::clone(&shared);
            tokio::spawn(pass_datagrams(
                shared,
                Arc::clone(&sockets),
                Arc::clone(&homes),
                host,
            ));
        }
        drop(inside);
        Ok(Self {
            shared,
            places,
            doors,
            runtime: Some(runtime),
        })
    }

    pub(super) fn place(&self, host: u64) -> Option<&Place> {
        self.places.get(usize::try_from(host).ok()?.checked_sub(1)?)
    }

    /// What a host dials to reach a server that listens at `address`.
    pub(super) fn dialled_from(&self, host: u64, address: &str) -> String {
        let door = self.doors.get(&(host, address.to_owned()));
        door.map_or(address, String::as_str).to_owned()
    }

    /// From now on this process is the server of a host.
    pub(super) fn note_process(&self, host: usize, pid: u32) {
        lock(&self.shared.processes).insert(host, pid);
    }

    pub(super) fn switch(&self) -> MutexGuard<'_, Switch> {
        lock(&self.shared.switch)
    }

    /// Faults have begun or ended.
    pub(super) fn tell_changed(&self) {
        self.shared.changed.send_replace(());
    }

    /// Breaks off every connection on these links; how many there were.
    pub(super) fn reset(&self, links: &[(usize, usize)]) -> usize {
        let connections = lock(&self.shared.connections);
        let met = connections.values().filter(|carried| {
            let (from, to) = carried.link;
            links.contains(&(from, to)) || links.contains(&(to, from))
        });
        met.map(|carried| carried.reset.notify_one()).count()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        // The usual end waits, which must not be done from a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A connection that can be broken off, as long as it is carried.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    number: u64,
    reset: Arc<Notify>,
}

impl Connection<'_> {
    pub(super) async fn notified(&self) {
        self.reset.notified().await;
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        lock(&self.shared.connections).remove(&self.number);
    }
}

impl Shared {
    pub(super) fn note_connection(&self, link: (usize, usize)) -> Connection<'_> {
        let number = self.connections_ever.fetch_add(1, Ordering::Relaxed);
        let reset = Arc::new(Notify::new());
        let carried = Carried {
            link,
            reset: Arc::clone(&reset),
        };
        lock(&self.connections).insert(number, carried);
        Connection {
            shared: self,
            number,
            reset,
        }
    }

    /// When a piece of a stream is due.
    pub(super) fn piece(&self, way: Way, bytes: usize) -> Duration {
        let now = self.started.elapsed();
        lock(&self.switch).piece(way.link, bytes, way.ports, now)
    }

    pub(super) fn moment(&self, due: Duration) -> Instant {
        self.started + due
    }

    /// Waits until this way is not cut off.
    pub(super) async fn passes(&self, way: Way, bytes: usize) {
        let mut changed = self.changed.subscribe();
        let mut noted = false;
        loop {
            {
                let mut switch = lock(&self.switch);
                if !switch.cuts(way.link, way.ports) {
                    return;
                }
                if !std::mem::replace(&mut noted, true) {
                    switch.note_held(way.link, bytes);
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn note_delivered(&self, way: Way, bytes: usize) {
        lock(&self.switch).note_delivered(way.link, bytes);
    }

    /// Which server's process dialled.
    fn dialler(&self, near: &TcpStream) -> Option<usize> {
        let (from, to) = (near.peer_addr().ok()?, near.local_addr().ok()?);
        let socket = owner::socket_of(from, to).ok()??;
        let processes = lock(&self.processes).clone();
        let mut processes = processes.into_iter();
        let found = processes.find(|(_, pid)| owner::has_open(*pid, socket));
        found.map(|(host, _)| host)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what comes to a door. What nobody can be found to have dialled is dropped: its process is gone.
async fn serve(shared: Arc<Shared>, listener: TcpListener, door: Door) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors, for a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(room) = Arc::clone(&shared.room).try_acquire_owned() else {
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Some(from) = door.from.or_else(|| shared.dialler(&near)) {
                let (there, back) = Way::both(from, door.to, door.port);
                let address = door.address;
                stream::carry(&shared, near, Route { there, back, address }).await;
            }
            drop(room);
        });
    }
}

/// Passes on what is sent to a server's gossip. It arrives from where its sender is told to be.
async fn pass_datagrams(
    shared: Arc<Shared>,
    sockets: Arc<Vec<UdpSocket>>,
    homes: Arc<BTreeMap<SocketAddr, usize>>,
    to: usize,
) {
    let Some(home) = homes.iter().find(|(_, host)| **host == to).map(|(home, _)| *home) else {
        return;
    };
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // A server that is down is answered for with an error: it concerns nobody here.
        let Ok((bytes, sender)) = sockets[to - 1].recv_from(&mut buffer).await else {
            continue;
        };
        let Some(from) = homes.get(&sender).copied().filter(|from| *from != to) else {
            continue;
        };
        let (link, ports) = ((from, to), (Protocol::Udp, PEER_PORT, PEER_PORT));
        let now = shared.started.elapsed();
        let dues = lock(&shared.switch).datagram(link, bytes, ports, now);
        for due in dues {
            let (shared, sockets) = (Arc::clone(&shared), Arc::clone(&sockets));
            let datagram = buffer[..bytes].to_vec();
            let pass = async move {
                if due > now {
                    tokio::time::sleep_until(shared.moment(due)).await;
                }
                let arrives = lock(&shared.switch).arrives(link, datagram.len(), ports);
                if arrives {
                    // To a server that is down it is lost, as it would be.
                    let _ = sockets[from - 1].send_to(&datagram, home).await;
                }
            };
            tokio::spawn(pass);
        }
    }
}

fn bind(port: u16) -> std::io::Result<StdListener> {
    StdListener::bind((Ipv4Addr::LOCALHOST, port))
}

fn listen(listener: StdListener) -> std::io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// A port that is free for TCP and UDP alike.
fn bind_both() -> anyhow::Result<(StdListener, StdSocket)> {
    for _ in 0..PORT_ATTEMPTS_MAX {
        let port = ports::free()?;
        if let (Ok(listener), Ok(socket)) = (bind(port), StdSocket::bind((Ipv4Addr::LOCALHOST, port))) {
            return Ok((listener, socket));
        }
    }
    bail!("no loopback port was free for TCP and UDP alike in {PORT_ATTEMPTS_MAX} attempts")
}

#[cfg(test)]
#[path = "loopback_test.rs"]
mod tests;
