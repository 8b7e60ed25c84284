//! The servers a command talks to: through the client for all that it offers, directly where one certain server
//! is meant or a measurement must not be distorted.

use std::time::Duration;

use rand::RngCore;
use rollcall_client::{Answer, Registry, RegistryConfig, WriteOptions};
use rollcall_proto::upgrade::{self, Streams};
use rollcall_proto::v1 as wire;
use tonic::transport::{Channel, Endpoint};

use crate::exit::{Failure, root_cause};
use crate::flags::Connection;

/// Longest wait for a TCP connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Largest answer taken: a service of 5,000 nodes with 4 KiB of metadata each, and as much again.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The servers a command may ask.
#[derive(Debug)]
pub(crate) struct Servers {
    registry: Registry,
    timeout: Duration,
}

impl Servers {
    /// From `--addr` and `--timeout`. Connects when it is first used.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let addresses: Vec<&str> = connection
            .addr
            .iter()
            .map(|address| address.trim())
            .filter(|address| !address.is_empty())
            .collect();
        let timeout = connection.timeout;
        let mut config = config_of(&addresses, timeout);
        config.token = connection.token.clone();
        config.environment = connection.environment.clone();
        Ok(Self {
            registry: Registry::connect(config)?,
            timeout,
        })
    }

    /// A handle on one server, as the same caller.
    pub(crate) fn only(&self, address: &str) -> Result<Registry, Failure> {
        let mut config = self.registry.config().clone();
        config.servers = vec![address.to_owned()];
        Ok(Registry::connect(config)?)
    }

    /// A handle on the member of this number, as the same caller; the one that was named, if only one was.
    pub(crate) async fn one_of(&self, server: u64) -> Result<Registry, Failure> {
        if let [_] = self.addresses() {
            return Ok(self.registry.clone());
        }
        let members = self.members().await?.value;
        let found = members.into_iter().find(|member| member.server == server);
        let member = found.ok_or_else(|| {
            Failure::unavailable(format!(
                "server {server}, which answered, is no member: name one server by --addr"
            ))
        })?;
        self.only(&member.client_address)
    }

    /// Calls that any server may answer: with failover and safe repeats.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The members of the cluster, of whom there is at least one.
    pub(crate) async fn members(&self) -> Result<Answer<Vec<wire::Member>>, Failure> {
        let answer = self.registry.members().await?;
        if answer.value.is_empty() {
            return Err(Failure::unavailable(
                "the server that was asked does not belong to the cluster yet: it knows of no members",
            ));
        }
        Ok(answer)
    }

    /// How long a call may take in all.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What `--addr` named.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.registry.config().servers
    }
}

/// A handle on these servers.
pub(crate) fn registry_of(addresses: &[&str], timeout: Duration) -> Result<Registry, Failure> {
    Ok(Registry::connect(config_of(addresses, timeout))?)
}

fn config_of(addresses: &[&str], timeout: Duration) -> RegistryConfig {
    let mut config = RegistryConfig::new(addresses.iter().copied())
        .call_timeout(timeout)
        .client_name(client_name());
    config.message_bytes_max = ANSWER_BYTES_MAX;
    config
}

/// What `session list` shows of us.
pub(crate) fn client_name() -> String {
    format!("rollcall cli, pid {}", std::process::id())
}

/// Default options of a write through the client: a new request id, the handle's deadline.
pub(crate) fn plain() -> WriteOptions {
    WriteOptions::default()
}

/// A connection to one server, made now: a refusal means that nothing was sent.
pub(crate) async fn connect(address: &str, time: Duration) -> Result<Channel, Failure> {
    endpoint(address)?
        .connect_timeout(time.min(CONNECT_MAX))
        .connect()
        .await
        .map_err(|e| Failure::unavailable(format!("{address}: {}", root_cause(&e))))
}

/// A way to one server as the SDK has it: streams on connections of their own, made when they are opened.
pub(crate) fn way_to(address: &str, time: Duration) -> Result<upgrade::Channel, Failure> {
    let connect_timeout = time.min(CONNECT_MAX);
    let endpoint = endpoint(address)?.connect_timeout(connect_timeout);
    let sdk = RegistryConfig::new([address]);
    let streams = Streams::of_clients(sdk.keepalive_interval, sdk.keepalive_timeout, connect_timeout);
    Ok(upgrade::Channel::connect_lazy(&endpoint, Some(streams)))
}

/// A way to one server by HTTP/2: streams share its connection.
pub(crate) fn shared_way_to(address: &str, time: Duration) -> Result<upgrade::Channel, Failure> {
    let endpoint = endpoint(address)?.connect_timeout(time.min(CONNECT_MAX));
    Ok(upgrade::Channel::connect_lazy(&endpoint, None))
}

fn endpoint(address: &str) -> Result<Endpoint, Failure> {
    let uri = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    Ok(Endpoint::from_shared(uri)
        .map_err(|e| {
            Failure::usage(format!(
                "{address:?} is not an address of the form host:port: {e}"
            ))
        })?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5)))
}

/// Options of a write on the wire: a new request id, and a time a bit shorter than the caller's, so that the
/// server's word arrives before the caller gives up.
pub(crate) fn wire_write_options(timeout: Duration) -> wire::WriteOptions {
    let mut request_id = vec![0; 16];
    rand::rng().fill_bytes(&mut request_id);
    let millis = u32::try_from((timeout * 9 / 10).as_millis()).unwrap_or(u32::MAX);
    wire::WriteOptions {
        request_id: request_id.into(),
        timeout_ms: millis.max(1),
        acks: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn write_options_differ_and_leave_time_for_the_answer() {
        let one = wire_write_options(Duration::from_secs(5));
        let two = wire_write_options(Duration::from_secs(5));
        assert_eq!(one.request_id.len(), 16);
        assert_ne!(one.request_id, two.request_id);
        assert_eq!(one.timeout_ms, 4500);
    }

    #[tokio::test]
    async fn no_address_is_wrong_use() {
        let connection = Connection {
            addr: vec![" ".into()],
            timeout: Duration::from_secs(1),
            token: None,
            environment: None,
        };
        assert_eq!(Servers::new(&connection).unwrap_err().exit, Exit::Usage);
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let failure = connect(&address, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable, "{failure}");
        let registry = registry_of(&[&address], Duration::from_millis(300)).unwrap();
        let failure = Failure::from(registry.members().await.unwrap_err());
        assert_eq!(failure.exit, Exit::Unavailable, "{failure}");
    }
}
