//! What is measured: a product is servers to start, and the dialects in which a client may speak to them. Another
//! registry plugs in by implementing these three traits and a line in [`all`].

mod etcd;
mod nacos;
mod rollcall;
mod zookeeper;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::board::Watcher;
use crate::server::ServerPlan;

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The folder that `scripts/bench-peers.sh` fills.
    pub(crate) peers: PathBuf,
    pub(crate) rollcalld: PathBuf,
}

/// A registry, as something to start.
#[tonic::async_trait]
pub(crate) trait Product: Send + Sync {
    fn name(&self) -> &'static str;

    /// Its version, or why it cannot be measured.
    fn version(&self, programs: &Programs) -> Result<String>;

    /// What is set otherwise than as it ships, and why.
    fn settings(&self) -> &'static str;

    /// The servers of a cluster, each with a folder of its own below `folder`. `ttl`: the sessions' that will be used,
    /// for products that do not let the client choose.
    fn plan(
        &self,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        ttl: Duration,
    ) -> Result<Vec<ServerPlan>>;

    /// The first is what users would take.
    fn dialects(&self) -> Vec<Arc<dyn Dialect>>;

    /// Which of the servers leads, if there is such a thing.
    async fn leader(&self, addresses: &[String]) -> Result<usize>;

    /// Sessions, and so their nodes, survive a restart of the server.
    fn sessions_survive_a_restart(&self) -> bool {
        true
    }
}

/// A way to speak to a product's servers.
#[tonic::async_trait]
pub(crate) trait Dialect: Send + Sync {
    /// Behind the product's name, as in `rollcall unary`; empty for the first.
    fn name(&self) -> &'static str;

    fn can(&self, read: Read) -> bool;

    /// Registering is measured in it.
    fn registers(&self) -> bool {
        true
    }

    /// Joining and renewing are measured in it.
    fn renews(&self) -> bool {
        true
    }

    /// Whatever must be there before services are: groups, parents.
    async fn prepare(&self, addresses: &[String], services: &[Arc<str>]) -> Result<()>;

    /// A connection of its own. With a ticket the session goes on here, at another server than before.
    async fn connect(&self, address: &str, ttl: Duration, ticket: Option<&Ticket>)
    -> Result<Arc<dyn Client>>;
}

/// A connection. Calls may overlap.
#[tonic::async_trait]
pub(crate) trait Client: Send + Sync {
    /// Opens a session; of a product whose session is the connection, the one there is.
    async fn open(&self, ttl: Duration) -> Result<Ticket>;

    /// All or none, in one call, where the product can.
    async fn register(&self, ticket: &Ticket, nodes: &[Node]) -> Result<()>;

    /// Replaces what is registered under the same id.
    async fn replace(&self, ticket: &Ticket, old: &Node, new: &Node) -> Result<()>;

    /// A heartbeat, answered.
    async fn renew(&self, ticket: &Ticket) -> Result<()>;

    /// A heartbeat of each of these at a time, all answered; one behind the other, without waiting, where the product has
    /// no way to say them together.
    async fn renew_all(&self, tickets: &[Ticket]) -> Result<()> {
        futures_util::future::try_join_all(tickets.iter().map(|ticket| self.renew(ticket))).await?;
        Ok(())
    }

    /// How many nodes the answer holds.
    async fn discover(&self, service: &str, read: Read) -> Result<usize>;

    /// Begins to watch; returns when it is live. Everything that comes is shown to the watcher.
    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()>;

    /// Ends the session; its nodes leave.
    async fn close(&self, ticket: &Ticket) -> Result<()>;

    /// Keeps an idle connection, where the client has to.
    async fn idle(&self) -> Result<()> {
        Ok(())
    }
}

/// A session, as its client holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticket {
    pub(crate) session: u64,
    pub(crate) secret: Vec<u8>,
    /// Where heartbeats go that need no connection.
    pub(crate) heartbeat: String,
}

/// How a service is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// From what the asked server has.
    Local,
    Linearizable,
    /// From what the asked server has, by a client that has the list already.
    Unchanged,
}

/// A registered endpoint: an id, and metadata of a fixed size that begins with a mark.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) service: Arc<str>,
    pub(crate) number: u32,
    pub(crate) mark: u64,
    pub(crate) bytes: usize,
}

impl Node {
    pub(crate) fn new(service: &Arc<str>, number: u32, bytes: usize) -> Self {
        Self {
            service: Arc::clone(service),
            number,
            mark: 0,
            bytes,
        }
    }

    pub(crate) fn marked(&self, mark: u64) -> Self {
        Self { mark, ..self.clone() }
    }

    pub(crate) fn host(&self) -> String {
        let [_, a, b, c] = self.number.to_be_bytes();
        format!("10.{a}.{b}.{c}")
    }

    pub(crate) fn id(&self) -> String {
        format!("{}:{PORT}", self.host())
    }

    /// The metadata.
    pub(crate) fn payload(&self) -> String {
        let mut payload = format!("mark={:010}.", self.mark);
        while payload.len() < self.bytes {
            payload.push(char::from(b'a' + (payload.len() % 26) as u8));
        }
        payload
    }
}

/// The port that every node names.
pub(crate) const PORT: u16 = 8080;

/// All products, the project's own first.
pub(crate) fn all() -> Vec<Arc<dyn Product>> {
    vec![
        Arc::new(rollcall::Rollcall),
        Arc::new(etcd::Etcd),
        Arc::new(zookeeper::ZooKeeper),
        Arc::new(nacos::Nacos),
    ]
}

/// A gRPC connection, the same for all that speak it.
async fn channel(address: &str) -> Result<tonic::transport::Channel> {
    Ok(endpoint(address)?.connect().await?)
}

fn endpoint(address: &str) -> Result<tonic::transport::Endpoint> {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5));
    Ok(endpoint)
}
