//! Servers for this folder's tests: each with a folder, a peer listener and a runtime of its own, so that one can end
//! as a process does.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rollcall_core::directory::{Command, Expected, GroupSettings, Request};
use rollcall_core::ids::{RequestId, ServerId};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;

use super::types::PeerAddresses;
use super::vote_gate::Standing;
use super::{Consensus, MembershipError, ProposeError, ReplicationOptions};

pub(super) struct Server {
    pub(super) consensus: Consensus,
    pub(super) addresses: PeerAddresses,
    runtime: Runtime,
    /// The peer port, which does not refuse as long as somebody keeps this.
    pub(super) port: TcpListener,
}

impl Server {
    /// Ends it as `kill -9` does, but for its port, which goes with the listener that is handed out.
    pub(super) fn kill(self) -> TcpListener {
        drop(self.consensus);
        end_runtime(self.runtime);
        self.port
    }

    /// The same, and its port goes first, as when a process ends: whoever loses a connection to it finds nobody there.
    pub(super) fn vanish(self) {
        drop((self.port, self.consensus));
        end_runtime(self.runtime);
    }

    /// Ends it without a handover, and waits until its folder is free.
    pub(super) async fn end(self) -> TcpListener {
        self.consensus.halt().await;
        self.kill()
    }
}

/// Awaited, but not here, where nothing may block: a test that were over before its files are closed would end the process
/// under RocksDB's threads.
fn end_runtime(runtime: Runtime) {
    let ending = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(30)));
    ending.join().expect("the runtime ends");
}

/// Starts servers 1, 2, ... of one cluster below `folder`.
pub(super) async fn start(folder: &Path, count: u64, tune: fn(&mut ReplicationOptions)) -> Vec<Server> {
    start_behind(folder, count, tune, |routes| routes).await
}

/// The same, with something before their peer listeners.
pub(super) async fn start_behind(
    folder: &Path,
    count: u64,
    tune: fn(&mut ReplicationOptions),
    front: fn(Routes) -> Routes,
) -> Vec<Server> {
    let servers = start_apart(folder, count, tune, front).await;
    let member = |(id, server): (u64, &Server)| (ServerId(id), server.addresses.clone());
    let members: BTreeMap<_, _> = (1..).zip(&servers).map(member).collect();
    let starts = servers
        .iter()
        .map(|server| server.consensus.initialize(members.clone()));
    futures_util::future::join_all(starts).await;
    servers
}

/// Starts them, and leaves it to others to make a cluster of them.
pub(super) async fn start_apart(
    folder: &Path,
    count: u64,
    tune: fn(&mut ReplicationOptions),
    front: fn(Routes) -> Routes,
) -> Vec<Server> {
    let mut servers = Vec::new();
    for id in 1..=count {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        port.set_nonblocking(true).unwrap();
        servers.push(start_on(port, folder, id, tune, front).await);
    }
    servers
}

/// Starts one server, for the first time or again, where others know it to be.
pub(super) async fn start_on(
    port: TcpListener,
    folder: &Path,
    id: u64,
    tune: fn(&mut ReplicationOptions),
    front: fn(Routes) -> Routes,
) -> Server {
    let addresses = PeerAddresses {
        peer_address: port.local_addr().unwrap().to_string(),
        ..PeerAddresses::default()
    };
    let data = folder.join(id.to_string());
    let mut options = ReplicationOptions::new("test", ServerId(id), addresses.clone(), data);
    options.disk_reserve = 0;
    tune(&mut options);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let listener = port.try_clone().unwrap();
    let started = runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let consensus = Consensus::start(options).await.unwrap();
        let routes = front(Routes::new(consensus.peer_service()));
        let service = tonic::transport::Server::builder().add_routes(routes);
        tokio::spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));
        consensus
    });
    Server {
        consensus: started.await.unwrap(),
        addresses,
        runtime,
        port,
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub(super) fn put_group(number: u64) -> Request {
    let group = format!("group-{number}").parse().unwrap();
    let command = Command::PutGroup {
        group,
        settings: GroupSettings::default(),
        expected: Expected::Any,
    };
    Request {
        id: RequestId(u128::from(number)),
        command,
    }
}

/// Writes, and again where the outcome is unknown.
pub(super) async fn write(server: &Consensus, number: u64) {
    let until = soon();
    loop {
        match server.propose(put_group(number), soon()).await {
            Ok(_) => return,
            Err(ProposeError::Unknown { .. }) if Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has a leader remove another server. On a busy machine it is repeated: nobody was heard just then, say.
pub(super) async fn remove(leader: &Consensus, server: ServerId) {
    let until = soon();
    while let Err(error) = leader.remove(server, false, soon()).await {
        if leader.members().iter().all(|member| member.server != server) {
            return;
        }
        let is_refused = matches!(error, MembershipError::Invalid { .. });
        assert!(!is_refused && Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Which of them leads; the others know it.
pub(super) async fn leader_of(servers: &[Server]) -> usize {
    let known = |server: &Server| server.consensus.leadership().borrow().leader;
    let agreed = async {
        loop {
            // All of them at once: whom the first named may have been voted out before the last was asked.
            match known(&servers[0]) {
                Some(leader) if servers.iter().all(|server| known(server) == Some(leader)) => return leader,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout_at(soon(), agreed).await.unwrap().0 as usize - 1
}

/// Which of them leads, and will: nobody seeks election any more because a time has passed.
pub(super) async fn steady_leader_of(servers: &[Server]) -> usize {
    leader_of(servers).await;
    for server in servers {
        // Who came late among the founders catches up first, and is then let stand.
        let mut standing = server.consensus.inner.gate.watch_standing();
        let whole = standing.wait_for(|standing| *standing == Standing::Whole);
        tokio::time::timeout_at(soon(), whole).await.unwrap().unwrap();
        server.consensus.inner.raft.runtime_config().elect(false);
    }
    // Another may have been elected meanwhile.
    leader_of(servers).await
}
