//! One server of a world: its configuration, the program that runs it, and what may be looked at from outside.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_jepsen::workload::storm;
use rollcall_server::config::{Config, GossipPreset, MemberConfig, Preset};
use rollcall_server::raft::Consensus;
use rollcall_server::server::Server;
use tokio::sync::Notify;

use crate::network::{HostIndex, ip_of};

const CLIENT_PORT: u16 = 7400;
const PEER_PORT: u16 = 7401;
const HTTP_PORT: u16 = 7402;

/// How a server is doing.
#[derive(Default)]
pub(crate) enum Life {
    /// It is not started, or was ended by the world.
    #[default]
    Down,
    /// It opens its folder.
    Starting,
    /// It serves.
    Serving(Handles),
    /// It ended, and said why.
    Ended(String),
    /// It left, as it was asked to.
    Left,
}

/// What may be looked at.
#[derive(Clone)]
pub(crate) struct Handles {
    pub(crate) consensus: Consensus,
}

/// Shared with the program.
#[derive(Clone, Default)]
pub(crate) struct Seat {
    life: Arc<Mutex<Life>>,
    leave: Arc<Notify>,
}

impl Seat {
    pub(crate) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handles(&self) -> Option<Handles> {
        match &*self.life() {
            Life::Serving(handles) => Some(handles.clone()),
            Life::Down | Life::Starting | Life::Ended(_) | Life::Left => None,
        }
    }

    /// Asks the program to end in order.
    pub(crate) fn ask_to_leave(&self) {
        self.leave.notify_one();
    }
}

fn address(host: HostIndex, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(ip_of(host)), port))
}

/// Where clients reach a server.
pub(crate) fn client_address(host: HostIndex) -> String {
    address(host, CLIENT_PORT).to_string()
}

/// What differs from run to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) servers: usize,
    pub(crate) snapshot_after: u64,
    pub(crate) retained_revisions: usize,
    /// Whether consumers come by the dozen, so that the budget for what leaves has to be small.
    pub(crate) storm: bool,
}

pub(crate) fn config(server: HostIndex, tuning: &Tuning, data: PathBuf) -> Config {
    let member = |index| MemberConfig {
        id: index as u64 + 1,
        peer: address(index, PEER_PORT).to_string(),
        client: address(index, CLIENT_PORT).to_string(),
        http: address(index, HTTP_PORT).to_string(),
    };
    let mut config = Config::default();
    config.cluster.name = "sim".into();
    config.cluster.id = server as u64 + 1;
    config.cluster.members = (0..tuning.servers).map(member).collect();
    config.listen.client = address(server, CLIENT_PORT);
    config.listen.peer = address(server, PEER_PORT);
    config.listen.http = address(server, HTTP_PORT);
    config.storage.data = data;
    // The disk has what the machine has; a full one is not simulated.
    config.storage.reserve_bytes = 1 << 20;
    config.raft.snapshot_after_entries = tuning.snapshot_after;
    config.raft.log_keep_entries = tuning.snapshot_after / 4;
    config.raft.compare_every = 64;
    config.watch.retained_revisions = tuning.retained_revisions;
    if tuning.storm {
        config.storm.egress_bytes_per_second = storm::BUDGET;
    }
    config.gossip.preset = GossipPreset::Local;
    // Its receiver is a thread of its own, which takes many datagrams with one call of the system.
    config.datagram.enabled = false;
    config
}

/// Runs a server until it ends or is asked to leave.
pub(crate) async fn run(config: Config, seat: Seat) {
    *seat.life() = Life::Starting;
    let server = match Server::start(config, Preset::None).await {
        Ok(server) => server,
        Err(error) => {
            let error = anyhow::Error::from(error);
            *seat.life() = Life::Ended(format!("it did not start: {error:#}"));
            return;
        }
    };
    *seat.life() = Life::Serving(Handles {
        consensus: server.consensus().clone(),
    });
    let ended = tokio::select! {
        biased;
        () = seat.leave.notified() => None,
        reason = server.stopped() => Some(reason),
    };
    server.shutdown().await;
    *seat.life() = ended.map_or(Life::Left, Life::Ended);
}
