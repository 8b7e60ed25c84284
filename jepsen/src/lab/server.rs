//! One `rollcalld` process with its data folder and its ports.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::{StatusRequest, StatusResponse};
use tonic::transport::Endpoint;

use super::clock::WallClock;
use super::disk::{Disk, wipe};
use super::ports;
use super::process::Process;
use super::wait::{WAIT_MAX, eventually};
use crate::net::Net;

/// How long one question may take before the next is asked.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Where a server on a host of its own listens for clients.
pub const CLIENT_PORT: u16 = 7400;
/// Where it listens for the other servers: replication by TCP, gossip by UDP.
pub const PEER_PORT: u16 = 7401;
/// Where it listens for probes.
pub const HTTP_PORT: u16 = 7402;
/// How long a clean stop may take.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Where a server listens, as `host:port`.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// For clients (gRPC).
    pub client: String,
    /// For the other servers (gRPC).
    pub peer: String,
    /// For probes and metrics (HTTP).
    pub http: String,
    /// Where it listens for the other servers, if what they dial is a proxy.
    pub peer_behind: Option<String>,
}

impl Endpoints {
    /// Three free loopback ports.
    ///
    /// # Errors
    /// There are none.
    pub fn free() -> std::io::Result<Self> {
        Ok(Self {
            client: ports::free_address()?,
            peer: ports::free_address()?,
            http: ports::free_address()?,
            peer_behind: None,
        })
    }

    /// The usual ports, at a host's own address.
    #[must_use]
    pub fn on(net: &Net, host: u64) -> Self {
        if let Some(place) = net.place(host) {
            return Self {
                client: place.client.clone(),
                peer: place.told.clone(),
                http: place.http.clone(),
                peer_behind: Some(place.peer.clone()),
            };
        }
        let at = |port| format!("{}:{port}", net.address(host));
        Self {
            client: at(CLIENT_PORT),
            peer: at(PEER_PORT),
            http: at(HTTP_PORT),
            peer_behind: None,
        }
    }
}

/// A server: what it is started with, and its process while there is one.
#[derive(Debug)]
pub struct Server {
    id: u64,
    /// Where it runs on a network; stays when another server takes its place.
    host: u64,
    endpoints: Endpoints,
    binary: PathBuf,
    arguments: Vec<String>,
    data: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    clock: Option<WallClock>,
    // Behind the process: a disk and a host go after what runs on them.
    disk: Option<Disk>,
    net: Option<Arc<Net>>,
}

impl Server {
    pub(super) fn new(
        (id, host): (u64, u64),
        endpoints: Endpoints,
        binary: &Path,
        cluster: &str,
        folder: &Path,
        arguments: &[String],
        net: Option<Arc<Net>>,
    ) -> Self {
        let data = folder.join(format!("server-{id}"));
        let arguments = command_line(id, cluster, &data, &endpoints, arguments);
        let log = folder.join(format!("server-{id}.log"));
        Self {
            id,
            host,
            endpoints,
            binary: binary.into(),
            arguments,
            data,
            log,
            process: None,
            clock: None,
            disk: None,
            net,
        }
    }

    /// Gives it a disk of this size, before it is started for the first time.
    pub(super) fn put_on_own_disk(&mut self, bytes: u64) -> anyhow::Result<()> {
        self.disk = Some(Disk::mount(&self.data, bytes)?);
        Ok(())
    }

    /// Another server in this one's place: same addresses, same disk, wiped, under a new id. Nothing of it runs yet.
    pub(super) fn replace_with(
        &mut self,
        id: u64,
        cluster: &str,
        arguments: &[String],
    ) -> anyhow::Result<()> {
        anyhow::ensure!(!self.is_running(), "server {} still runs", self.id);
        if self.data.exists() {
            wipe(&self.data)?;
        }
        self.process = None;
        self.id = id;
        self.arguments = command_line(id, cluster, &self.data, &self.endpoints, arguments);
        self.log = self.log.with_file_name(format!("server-{id}.log"));
        Ok(())
    }

    /// Runs another program from its next start on.
    pub fn install(&mut self, binary: &Path) {
        self.binary = binary.into();
    }

    /// The program it runs from its next start on.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Gives it a wall clock that can be set, from its next start on; without libfaketime it keeps the machine's.
    pub(super) fn put_on_own_clock(&mut self) -> anyhow::Result<()> {
        self.clock = WallClock::new(&self.log.with_extension("clock"))?;
        Ok(())
    }

    /// Its disk, if it has one of its own.
    #[must_use]
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Its wall clock, if it has one of its own.
    #[must_use]
    pub fn clock(&self) -> Option<&WallClock> {
        self.clock.as_ref()
    }

    /// Its server id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The host it runs on, if the cluster is on a network.
    #[must_use]
    pub fn host(&self) -> u64 {
        self.host
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Its client address, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.endpoints.client
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process, if it was started and not yet ended by the lab.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Whether its process is there; a paused one is.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Whether its process is stopped by [`Self::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_paused)
    }

    /// Starts the process; the data folder may hold an earlier life. Does not wait, see [`Self::wait_ready`].
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.is_running(), "server {} runs already", self.id);
        let mut command = match &self.net {
            Some(net) => net.command(self.host, &self.binary),
            None => Command::new(&self.binary),
        };
        command.args(&self.arguments);
        if let Some(clock) = &self.clock {
            clock.give_to(&mut command);
        }
        let process = Process::spawn(&format!("server {}", self.id), command, &self.log)?;
        if let Some(net) = &self.net {
            net.note_process(self.host, process.pid());
        }
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL; returns when it is gone. The data folder stays.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill9(&mut self) -> anyhow::Result<()> {
        self.running()?.kill9().await
    }

    /// SIGTERM; returns when it has closed in good order.
    ///
    /// # Errors
    /// It does not run, takes longer than half a minute, or ends with a complaint.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let id = self.id;
        let status = self.running()?.stop(STOP_MAX).await?;
        anyhow::ensure!(
            status.success(),
            "server {id} ended with {status} after SIGTERM\n{}",
            self.log_tail(20)
        );
        Ok(status)
    }

    /// SIGSTOP; returns when it stands still.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&mut self) -> anyhow::Result<()> {
        self.running()?.pause().await
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.running()?.resume()
    }

    /// Starts it again on the same data folder and waits until it is ready. A running process is stopped first.
    ///
    /// # Errors
    /// It does not stop, start or become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            self.stop().await?;
        }
        self.start()?;
        self.wait_ready(WAIT_MAX).await
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It does not answer within two seconds.
    pub async fn status(&self) -> anyhow::Result<StatusResponse> {
        status_of(&self.endpoints.client).await
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It is not within `bound`, or its process has ended; the end of its log is in the message.
    pub async fn wait_ready(&mut self, bound: Duration) -> anyhow::Result<()> {
        let address = self.endpoints.client.clone();
        let what = format!("readiness of server {}", self.id);
        let ready = eventually(&what, bound, || {
            let ended = !self.is_running();
            let address = address.clone();
            async move {
                if ended {
                    return Some(false);
                }
                status_of(&address)
                    .await
                    .ok()
                    .filter(|status| status.ready)
                    .map(|_| true)
            }
        })
        .await;
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => Err(anyhow::anyhow!("server {} ended while it started", self.id)),
            Err(late) => Err(late.into()),
        }
        .with_context(|| format!("the end of its log:\n{}", self.log_tail(30)))
    }

    /// The last `lines` lines of its log, over all its lives.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// How long its log is; what comes behind is what it says from now on.
    #[must_use]
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// What it has said since its log was so long.
    #[must_use]
    pub fn log_since(&self, length: u64) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(length).unwrap_or(usize::MAX).min(text.len());
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    /// Whether its log says that an address was taken.
    pub(super) fn lost_its_port(&self) -> bool {
        let tail = self.log_tail(50);
        tail.contains("RC-202") || tail.contains("in use")
    }

    fn running(&mut self) -> anyhow::Result<&mut Process> {
        let id = self.id;
        self.process
            .as_mut()
            .with_context(|| format!("server {id} was not started"))
    }
}

fn command_line(
    id: u64,
    cluster: &str,
    data: &Path,
    endpoints: &Endpoints,
    arguments: &[String],
) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: &str| line.extend([name.to_owned(), value.to_owned()]);
    flag("--id", &id.to_string());
    flag("--cluster", cluster);
    flag("--data", &data.to_string_lossy());
    flag("--listen-client", &endpoints.client);
    flag(
        "--listen-peer",
        endpoints.peer_behind.as_ref().unwrap_or(&endpoints.peer),
    );
    if endpoints.peer_behind.is_some() {
        flag("--set", &format!("listen.advertise_peer={}", endpoints.peer));
        flag("--set", &format!("listen.advertise_gossip={}", endpoints.peer));
    }
    flag("--listen-http", &endpoints.http);
    flag("--log-format", "text");
    flag("--log", "info,openraft=error");
    line.extend_from_slice(arguments);
    line
}

impl Drop for Server {
    fn drop(&mut self) {
        // A process that waits for a hanging disk cannot be ended.
        if let Some(disk) = &self.disk {
            let _ = disk.thaw();
        }
    }
}

/// Asks the server at `address` (`host:port`) for its status, on a connection of its own.
pub(crate) async fn status_of(address: &str) -> anyhow::Result<StatusResponse> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(ASK_MAX)
        .timeout(ASK_MAX);
    let ask = async {
        let channel = endpoint.connect().await?;
        anyhow::Ok(
            ClusterClient::new(channel)
                .status(StatusRequest {})
                .await?
                .into_inner(),
        )
    };
    tokio::time::timeout(ASK_MAX, ask).await.context("no answer")?
}
