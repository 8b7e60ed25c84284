//! Servers that know each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollcall_proto::v1::StatusResponse;
use tempfile::TempDir;

use super::binary;
use super::operator::{Operator, Probe, leader_of, statuses_of};
use super::panics::panics_in;
use super::server::{Endpoints, Server};
use super::wait::{WAIT_MAX, eventually};
use crate::net::Net;

/// How often a start is tried anew because somebody took a port meanwhile.
const START_ATTEMPTS_MAX: u32 = 4;
/// Lines of each log that a failure prints.
const LOG_LINES: usize = 40;

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many servers, ids from 1.
    pub servers: u64,
    /// The cluster's name.
    pub name: String,
    /// Further arguments for every server.
    pub arguments: Vec<String>,
    /// Further arguments for single servers, by id.
    pub own_arguments: BTreeMap<u64, Vec<String>>,
    /// The program; `None`: [`binary::rollcalld`].
    pub binary: Option<PathBuf>,
    /// Each server on the host of its number; `None`: all on loopback.
    pub net: Option<Arc<Net>>,
    /// Each server on a disk of this many bytes; `None`: in the lab's folder. Needs root.
    pub disk_bytes: Option<u64>,
    /// Each server with a wall clock of its own, where libfaketime is installed.
    pub own_clocks: bool,
}

impl ClusterOptions {
    /// `servers` of them, with default settings.
    #[must_use]
    pub fn servers(servers: u64) -> Self {
        Self {
            servers,
            name: "lab".into(),
            arguments: Vec::new(),
            own_arguments: BTreeMap::new(),
            binary: None,
            net: None,
            disk_bytes: None,
            own_clocks: false,
        }
    }

    /// Server n on host n of this network.
    #[must_use]
    pub fn on(mut self, net: &Arc<Net>) -> Self {
        self.net = Some(Arc::clone(net));
        self
    }

    fn endpoints(&self, host: u64) -> std::io::Result<Endpoints> {
        match &self.net {
            Some(net) => Ok(Endpoints::on(net, host)),
            None => Endpoints::free(),
        }
    }

    fn equip(&self, server: &mut Server) -> anyhow::Result<()> {
        if let Some(bytes) = self.disk_bytes {
            server.put_on_own_disk(bytes)?;
        }
        if self.own_clocks {
            server.put_on_own_clock()?;
        }
        Ok(())
    }

    fn arguments_of(&self, id: u64) -> &[String] {
        self.own_arguments.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// Real `rollcalld` processes that form one cluster, on loopback or each on a host of its own ([`crate::net`]).
///
/// Dropping it ends them. When the thread is panicking, the end of each log is printed and the folder is kept.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    binary: PathBuf,
    // Before the folder: what is mounted in it goes first.
    servers: Vec<Server>,
    /// The highest id ever given to a server that came later.
    latest: u64,
    folder: Option<TempDir>,
}

impl Cluster {
    /// Starts `servers` servers with default settings and waits until all are ready and one leads.
    ///
    /// # Errors
    /// They do not start; the message holds the end of the log.
    pub async fn start(servers: u64) -> anyhow::Result<Self> {
        Self::start_with(ClusterOptions::servers(servers)).await
    }

    /// As [`Self::start`], with these options.
    ///
    /// # Errors
    /// They do not start; the message holds the end of the log.
    pub async fn start_with(options: ClusterOptions) -> anyhow::Result<Self> {
        for attempt in 1.. {
            let mut cluster = Self::spawn(options.clone())?;
            match cluster.wait_ready(WAIT_MAX).await {
                Ok(()) => return Ok(cluster),
                Err(_) if attempt < START_ATTEMPTS_MAX && cluster.lost_a_port() => {}
                Err(failed) => {
                    let kept = cluster.keep_folder();
                    return Err(
                        failed.context(format!("starting a cluster; its folder is {}", kept.display()))
                    );
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    fn spawn(options: ClusterOptions) -> anyhow::Result<Self> {
        let binary = match &options.binary {
            Some(path) => path.clone(),
            None => binary::rollcalld()?,
        };
        let folder = tempfile::Builder::new().prefix("rollcall-lab-").tempdir()?;
        let endpoints = (1..=options.servers)
            .map(|id| options.endpoints(id))
            .collect::<Result<Vec<_>, _>>()?;
        let mut arguments = options.arguments.clone();
        for (id, of) in (1..).zip(&endpoints) {
            arguments.extend([
                "--member".into(),
                format!("{id}={},{},{}", of.peer, of.client, of.http),
            ]);
        }
        let servers = (1..)
            .zip(endpoints)
            .map(|(id, of)| {
                let arguments = [&arguments[..], options.arguments_of(id)].concat();
                let net = options.net.clone();
                Server::new(
                    (id, id),
                    of,
                    &binary,
                    &options.name,
                    folder.path(),
                    &arguments,
                    net,
                )
            })
            .collect();
        let mut cluster = Self {
            options,
            binary,
            folder: Some(folder),
            servers,
            latest: 0,
        };
        for server in &mut cluster.servers {
            cluster.options.equip(server)?;
            server.start()?;
        }
        Ok(cluster)
    }

    fn lost_a_port(&mut self) -> bool {
        self.servers
            .iter_mut()
            .any(|server| !server.is_running() && server.lost_its_port())
    }

    /// Server `id`.
    ///
    /// # Panics
    /// The cluster has none of that id.
    pub fn server(&mut self, id: u64) -> &mut Server {
        self.servers
            .iter_mut()
            .find(|server| server.id() == id)
            .expect("the cluster has a server of this id")
    }

    /// All servers, started or not.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// All servers, started or not.
    pub fn servers_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.servers.iter_mut()
    }

    /// The ids of all servers.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.servers.iter().map(Server::id).collect()
    }

    /// Every server's client address, `host:port`, in the order of the ids.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.servers
            .iter()
            .map(|server| server.address().to_owned())
            .collect()
    }

    /// Where data and logs are.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(TempDir::path)
    }

    /// What the logs of all servers that ever were tell of panics.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn panics(&self) -> anyhow::Result<Vec<String>> {
        self.folder().map_or_else(|| Ok(Vec::new()), panics_in)
    }

    /// Keeps data and logs beyond this value's life; returns where they are.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.take().map(TempDir::keep).unwrap_or_default()
    }

    /// Waits until every running, unpaused server is ready and one of them leads.
    ///
    /// # Errors
    /// That is not so within `bound`.
    pub async fn wait_ready(&mut self, bound: Duration) -> anyhow::Result<()> {
        for server in self.servers.iter_mut().filter(|server| !server.is_paused()) {
            if server.process().is_some() {
                server.wait_ready(bound).await?;
            }
        }
        self.leader(bound).await?;
        Ok(())
    }

    /// The server that leads: in the highest term that any answering server claims to lead in.
    ///
    /// # Errors
    /// None leads within `bound`.
    pub async fn leader(&mut self, bound: Duration) -> anyhow::Result<u64> {
        self.leader_other_than(0, bound).await
    }

    /// The server that leads and is not `former` (paused or killed a moment ago, say).
    ///
    /// # Errors
    /// No other leads within `bound`.
    pub async fn leader_other_than(&mut self, former: u64, bound: Duration) -> anyhow::Result<u64> {
        let others: Vec<u64> = self.ids().into_iter().filter(|id| *id != former).collect();
        self.leader_among(&others, bound).await
    }

    /// The server among these that leads; others are not asked.
    ///
    /// # Errors
    /// None of them leads within `bound`.
    pub async fn leader_among(&mut self, ids: &[u64], bound: Duration) -> anyhow::Result<u64> {
        let mut asked = self.probes();
        asked.retain(|probe| ids.contains(&probe.id));
        Ok(leader_of(&asked, bound).await?.id)
    }

    /// What each server that answers says of itself.
    pub async fn statuses(&mut self) -> Vec<(u64, StatusResponse)> {
        statuses_of(&self.probes()).await
    }

    /// Waits until every running server has applied the same log and holds the same state; returns the revision.
    ///
    /// # Errors
    /// They differ after `bound`; the message says how.
    pub async fn wait_converged(&mut self, bound: Duration) -> anyhow::Result<u64> {
        let probes = self.probes();
        let last = std::sync::Mutex::new(String::new());
        let converged = eventually("the same state on every server", bound, || async {
            let statuses = statuses_of(&probes).await;
            let seen: Vec<String> = statuses
                .iter()
                .map(|(id, of)| {
                    format!(
                        "server {id}: applied {} revision {}",
                        of.applied_index, of.revision
                    )
                })
                .collect();
            if let Ok(mut last) = last.lock() {
                *last = seen.join(", ");
            }
            let (_, first) = statuses.first()?;
            let same = |of: &StatusResponse| {
                of.applied_index == first.applied_index
                    && of.revision == first.revision
                    && of.state_hash == first.state_hash
            };
            let all = statuses.len() == probes.len() && statuses.iter().all(|(_, of)| same(of));
            all.then_some(first.revision)
        })
        .await;
        converged.with_context(|| last.into_inner().unwrap_or_default())
    }

    /// Starts one more server that waits to be taken in; returns its id. It is no member yet.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_joining(&mut self) -> anyhow::Result<u64> {
        let id = self.next_id();
        let folder = self
            .folder
            .as_ref()
            .context("the cluster's folder was given away")?
            .path();
        let mut arguments = self.options.arguments.clone();
        arguments.push("--join".into());
        arguments.extend_from_slice(self.options.arguments_of(id));
        let host = self.free_host(id)?;
        let endpoints = self.options.endpoints(host)?;
        let mut server = Server::new(
            (id, host),
            endpoints,
            &self.binary,
            &self.options.name,
            folder,
            &arguments,
            self.options.net.clone(),
        );
        self.options.equip(&mut server)?;
        server.start()?;
        self.servers.push(server);
        self.latest = id;
        Ok(id)
    }

    /// Takes server `id` in as a learner.
    ///
    /// # Errors
    /// The cluster refuses for half a minute, or does not answer.
    pub async fn add_learner(&mut self, id: u64) -> anyhow::Result<()> {
        let endpoints = self.server(id).endpoints().clone();
        self.operator().add_learner(id, endpoints).await
    }

    /// Makes the learner `id` a voter.
    ///
    /// # Errors
    /// The cluster refuses for half a minute, or does not answer.
    pub async fn promote(&mut self, id: u64) -> anyhow::Result<()> {
        self.operator().promote(id).await
    }

    /// Takes server `id` out of the cluster. Its process goes on; stop it then.
    ///
    /// # Errors
    /// The cluster refuses for half a minute, or does not answer.
    pub async fn remove(&mut self, id: u64) -> anyhow::Result<()> {
        self.operator().remove(id, false).await
    }

    /// Whoever orders changes of the members.
    pub fn operator(&mut self) -> Operator {
        Operator::new(self.probes())
    }

    /// Another server, under a new id, takes the place of server `id`: its addresses and its disk, which is wiped. It
    /// is started and waits to be taken in; returns its id. Server `id` must have ended.
    ///
    /// # Errors
    /// Server `id` runs, or the new one does not start.
    pub fn replace(&mut self, id: u64) -> anyhow::Result<u64> {
        let new = self.next_id();
        let mut arguments = self.options.arguments.clone();
        arguments.push("--join".into());
        arguments.extend_from_slice(self.options.arguments_of(new));
        let name = self.options.name.clone();
        let server = self.server(id);
        server.replace_with(new, &name, &arguments)?;
        server.start()?;
        self.latest = new;
        Ok(new)
    }

    /// The first host on which no server is, if servers have hosts of their own.
    fn free_host(&self, id: u64) -> anyhow::Result<u64> {
        let Some(net) = &self.options.net else {
            return Ok(id);
        };
        let taken = |host: &u64| self.servers.iter().any(|server| server.host() == *host);
        let mut hosts = net.hosts().into_iter();
        hosts.find(|host| !taken(host)).context("every host has a server")
    }

    fn next_id(&self) -> u64 {
        // Ids are never used twice, also when the one who had the last is gone.
        let highest = self.servers.iter().map(Server::id).max().unwrap_or(0);
        highest.max(self.latest) + 1
    }

    /// Starts one more server, takes it in, and makes it a voter; returns its id.
    ///
    /// # Errors
    /// Any of these steps fails.
    pub async fn grow(&mut self) -> anyhow::Result<u64> {
        let id = self.start_joining()?;
        self.add_learner(id).await?;
        self.promote(id).await?;
        self.server(id).wait_ready(WAIT_MAX).await?;
        Ok(id)
    }

    /// Removes server `id` and ends its process.
    ///
    /// # Errors
    /// The removal fails. How the removed process ends does not matter.
    pub async fn shrink(&mut self, id: u64) -> anyhow::Result<()> {
        self.remove(id).await?;
        self.discard(id);
        Ok(())
    }

    /// Ends the process of server `id`, which is no member any more. What it had is gone; its host is free.
    pub fn discard(&mut self, id: u64) {
        self.latest = self.latest.max(id);
        self.servers.retain(|server| server.id() != id);
    }

    /// The end of every server's log.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tail = |server: &Server| {
            format!(
                "--- server {}, last {LOG_LINES} lines\n{}\n",
                server.id(),
                server.log_tail(LOG_LINES)
            )
        };
        self.servers.iter().map(tail).collect()
    }

    fn probes(&mut self) -> Vec<Probe> {
        let mut probes = Vec::new();
        for server in &mut self.servers {
            if server.is_running() && !server.is_paused() {
                probes.push(Probe {
                    id: server.id(),
                    address: server.address().to_owned(),
                });
            }
        }
        probes
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
            eprintln!(
                "the servers' data and logs are kept in {}",
                self.keep_folder().display()
            );
        }
    }
}
