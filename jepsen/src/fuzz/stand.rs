//! Servers of one's own, each behind a relay that records what the members say to it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::attack::Target;
use super::relay::Relay;
use super::report::Report;
use super::witness;
use crate::lab::{Cluster, ClusterOptions, eventually};

/// How long the members may take to find each other: a join at the `wan` preset is the slowest.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub struct StandOptions {
    /// How many servers.
    pub servers: u64,
    /// Whether they have a gossip key.
    pub sealed: bool,
    /// Their gossip preset: `local`, `lan` or `wan`.
    pub preset: String,
    /// The program; `None`: as the lab finds it.
    pub binary: Option<PathBuf>,
}

/// A running cluster whose members reach each other's gossip through relays.
#[derive(Debug)]
pub struct Stand {
    /// The servers.
    pub cluster: Cluster,
    /// One relay for each server, in the order of the ids.
    pub relays: Vec<Relay>,
    key: Option<[u8; 32]>,
    _keys: TempDir,
}

impl Stand {
    /// The name of its cluster.
    pub const CLUSTER: &'static str = "fuzz";

    /// Starts the servers and waits until all members know all.
    ///
    /// # Errors
    /// They do not start, or do not find each other within a minute.
    pub async fn start(options: StandOptions) -> anyhow::Result<Self> {
        let mut of = ClusterOptions {
            name: Self::CLUSTER.into(),
            binary: options.binary.clone(),
            ..ClusterOptions::servers(options.servers)
        };
        let mut set = |setting: String| of.arguments.extend(["--set".into(), setting]);
        set(format!("gossip.preset=\"{}\"", options.preset));
        let folder = tempfile::Builder::new().prefix("rollcall-fuzz-keys-").tempdir()?;
        let key: Option<[u8; 32]> = options.sealed.then(|| StdRng::from_os_rng().random());
        if let Some(key) = key {
            let path = folder.path().join("gossip.keys");
            std::fs::write(&path, STANDARD.encode(key))?;
            set(format!("gossip.key_file=\"{}\"", path.display()));
        }
        let mut relays = Vec::new();
        for id in 1..=options.servers {
            let relay = Relay::start().await?;
            let advertise = ["--advertise-gossip".to_owned(), relay.address().to_string()];
            of.own_arguments.insert(id, advertise.into());
            relays.push(relay);
        }
        let cluster = Cluster::start_with(of).await?;
        let stand = Self {
            cluster,
            relays,
            key,
            _keys: folder,
        };
        for (server, relay) in stand.cluster.servers().zip(&stand.relays) {
            relay.pass_to(server.endpoints().peer.parse()?);
        }
        stand.wait_joined().await?;
        Ok(stand)
    }

    /// The key the servers seal with, if they do.
    #[must_use]
    pub fn key(&self) -> Option<[u8; 32]> {
        self.key
    }

    /// The servers as targets.
    ///
    /// # Errors
    /// One of them does not run.
    pub fn targets(&mut self) -> anyhow::Result<Vec<Target>> {
        let servers = self.cluster.servers_mut();
        servers
            .map(|server| {
                let of = server.endpoints().clone();
                let pid = server.process().context("a server does not run")?.pid();
                Ok(Target {
                    gossip: of.peer.parse()?,
                    client: of.client,
                    http: of.http,
                    pid: Some(pid),
                })
            })
            .collect()
    }

    /// Adds what only the one that started the servers can see: a panic, an end.
    pub fn judge(&mut self, report: &mut Report) {
        for server in self.cluster.servers_mut() {
            if !server.is_running() {
                report.broken.push(format!("server {} ended", server.id()));
            }
        }
        match self.cluster.panics() {
            Ok(panics) => report.broken.extend(panics),
            Err(unread) => report.broken.push(format!("{unread:#}")),
        }
    }

    async fn wait_joined(&self) -> anyhow::Result<()> {
        let addresses = self.cluster.addresses();
        eventually("members that know each other", JOIN_MAX, || async {
            for address in &addresses {
                let members = witness::members_at(address).await.ok()?;
                let alive = members.iter().filter(|member| witness::is_alive(member)).count();
                if alive != addresses.len() {
                    return None;
                }
            }
            Some(())
        })
        .await?;
        Ok(())
    }
}
