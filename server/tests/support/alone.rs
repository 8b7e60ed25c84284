//! One server in this process, asked through real gRPC and HTTP on loopback.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use prost::Message;
use rollcall_proto::upgrade::{Channel, Streams};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{self, ReadMode};
use rollcall_server::config::{Config, Flags, Preset};
use rollcall_server::server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Endpoint;

/// Nothing that is asked of it takes long; this bounds what goes wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Larger than any answer.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// The group that the development preset creates.
const DEV_GROUP: &str = "default";

/// A server by the development preset, and the folder in which its data is.
pub(crate) struct Alone {
    pub(crate) server: Server,
    /// Its streams have connections of their own.
    pub(crate) channel: Channel,
    pub(crate) folder: TempDir,
}

/// The development preset with these settings, on ports of chance, with elections that do not take long.
pub(crate) fn config(folder: &Path, settings: &[&str]) -> Config {
    let data = folder.join("data").display().to_string();
    let mut line = vec!["rollcalld", "--dev", "--data", &data];
    for flag in ["--listen-client", "--listen-peer", "--listen-http"] {
        line.extend([flag, "127.0.0.1:0"]);
    }
    let elections = [
        "raft.heartbeat_interval=50ms",
        "raft.election_timeout_min=200ms",
        "raft.election_timeout_max=400ms",
    ];
    for setting in elections.iter().chain(settings) {
        line.extend(["--set", setting]);
    }
    Flags::try_parse_from(line).unwrap().into_config().unwrap()
}

/// Starts a server with these settings.
pub(crate) async fn start(settings: &[&str]) -> Alone {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), settings);
    start_in(folder, config).await
}

/// Starts a server where another one may have been before, and waits until it can be asked.
pub(crate) async fn start_in(folder: TempDir, config: Config) -> Alone {
    let server = Server::start(config, Preset::Dev).await.unwrap();
    let streams = Streams::of_clients(PATIENCE / 10, PATIENCE, PATIENCE);
    let channel = Channel::connect_lazy(&endpoint(&server), Some(streams));
    let alone = Alone {
        server,
        channel,
        folder,
    };
    tokio::time::timeout(PATIENCE, alone.wait_ready())
        .await
        .expect("it leads and has its group");
    alone
}

fn endpoint(server: &Server) -> Endpoint {
    Endpoint::new(format!("http://{}", server.addresses().client)).unwrap()
}

/// Two servers with these settings: the streams to one have connections of their own, those to the other share one by HTTP/2.
pub(crate) async fn start_for_both_ways(settings: &[&str]) -> [Alone; 2] {
    let mut by_http2 = start(settings).await;
    by_http2.channel = Channel::connect_lazy(&endpoint(&by_http2.server), None);
    [start(settings).await, by_http2]
}

impl Alone {
    async fn wait_ready(&self) {
        let consensus = self.server.consensus();
        let group = DEV_GROUP.parse().unwrap();
        let mut applied = consensus.applied_head();
        while consensus.directory().read().group(&group).is_none() {
            applied.changed().await.unwrap();
        }
        let mut leadership = consensus.leadership();
        leadership
            .wait_for(|leadership| leadership.leading)
            .await
            .unwrap();
        while !consensus.is_loaded() || !self.server.ap().is_loaded() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What is answered over HTTP, the head included.
    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.server.addresses().http)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// A service of the development group.
pub(crate) fn key(service: &str) -> Option<v1::ServiceKey> {
    Some(v1::ServiceKey {
        group: DEV_GROUP.into(),
        service: service.into(),
    })
}

/// A node that lives with its session.
pub(crate) fn node(service: &str, port: u32) -> v1::RegisterNode {
    let address = v1::Address {
        name: "http".into(),
        host: "10.0.0.1".into(),
        port,
    };
    let registration = v1::Registration {
        addresses: vec![address],
        ..Default::default()
    };
    v1::RegisterNode {
        key: key(service),
        registration: Some(registration),
        expected: None,
    }
}

/// A node that stays.
pub(crate) fn persistent(service: &str, port: u32) -> v1::RegisterNode {
    let mut node = node(service, port);
    node.registration.as_mut().unwrap().kind = v1::NodeKind::Persistent.into();
    node
}

pub(crate) fn register(nodes: Vec<v1::RegisterNode>) -> v1::RegisterRequest {
    v1::RegisterRequest {
        nodes,
        ..Default::default()
    }
}

/// As fresh as it gets.
pub(crate) fn query(service: &str) -> v1::QueryRequest {
    v1::QueryRequest {
        key: key(service),
        ..Default::default()
    }
}

pub(crate) fn query_by(service: &str, mode: ReadMode) -> v1::QueryRequest {
    v1::QueryRequest {
        read: Some(v1::ReadOptions {
            mode: mode.into(),
            ..Default::default()
        }),
        ..query(service)
    }
}

pub(crate) fn view(found: v1::QueryResponse) -> v1::ServiceView {
    v1::ServiceView::decode(found.view.expect("a view")).unwrap()
}
