//! Single calls of the registry at one particular server, and what came of them.

use std::time::Duration;

use prost::Message;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{
    self, Address, DeregisterNode, DeregisterRequest, Node, NodeKey, NodeKind, QueryRequest, ReadMode,
    ReadOptions, RegisterNode, RegisterRequest, Registration, ResponseHeader, ServiceKey, ServiceView,
    UpdateNode, UpdateRequest, WriteOptions, WriteResponse,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::door::{SERVER_MAX_MS, connect, error, surely_nothing};

/// Where a node's value stands.
const VALUE: &str = "value";

/// What became of a write.
#[derive(Debug)]
pub(super) enum Wrote {
    /// It happened.
    Ok(WriteResponse),
    /// It surely did not; why.
    Nothing(v1::Error),
    /// Nobody knows.
    Unknown,
}

impl Wrote {
    pub(super) fn of(answer: Result<Response<WriteResponse>, Status>) -> Self {
        match answer {
            Ok(written) => Self::Ok(written.into_inner()),
            Err(status) if surely_nothing(&status) => Self::Nothing(error(&status).unwrap_or_default()),
            Err(_) => Self::Unknown,
        }
    }
}

/// A connection to one server.
#[derive(Debug)]
pub(super) struct Caller {
    /// For calls that are not here.
    pub(super) registry: RegistryClient<Channel>,
}

impl Caller {
    /// `None`: it cannot be reached now.
    pub(super) async fn to(address: &str) -> Option<Self> {
        let registry = RegistryClient::new(connect(address).await?);
        Some(Self {
            registry: registry.max_decoding_message_size(64 << 20),
        })
    }

    pub(super) async fn register(&mut self, options: WriteOptions, nodes: Vec<RegisterNode>) -> Wrote {
        let request = RegisterRequest {
            options: Some(options),
            nodes,
            ..RegisterRequest::default()
        };
        Wrote::of(self.registry.register(request).await)
    }

    /// Gives a node another value.
    pub(super) async fn update(&mut self, options: WriteOptions, key: NodeKey, value: u64) -> Wrote {
        let node = UpdateNode {
            key: Some(key),
            set_metadata: [(VALUE.to_owned(), value.to_string())].into(),
            ..UpdateNode::default()
        };
        let request = UpdateRequest {
            options: Some(options),
            nodes: vec![node],
            ..UpdateRequest::default()
        };
        Wrote::of(self.registry.update(request).await)
    }

    /// By an operator's word.
    pub(super) async fn deregister(&mut self, options: WriteOptions, keys: Vec<NodeKey>) -> Wrote {
        let node = |key| DeregisterNode {
            key: Some(key),
            expected: None,
        };
        let request = DeregisterRequest {
            options: Some(options),
            nodes: keys.into_iter().map(node).collect(),
            ..DeregisterRequest::default()
        };
        Wrote::of(self.registry.deregister(request).await)
    }

    /// What the server shows of a service; `None`: it knows no such service.
    pub(super) async fn view(
        &mut self,
        key: ServiceKey,
        read: ReadOptions,
    ) -> Result<(ResponseHeader, Option<ServiceView>), Status> {
        let request = QueryRequest {
            key: Some(key),
            read: Some(read),
            ..QueryRequest::default()
        };
        match self.registry.query(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let view = answer.view.map(ServiceView::decode).transpose();
                let view = view.map_err(|broken| Status::data_loss(broken.to_string()))?;
                Ok((answer.header.unwrap_or_default(), view))
            }
            Err(status)
                if error(&status).is_some_and(|error| error.code() == v1::ErrorCode::ServiceNotFound) =>
            {
                Ok((ResponseHeader::default(), None))
            }
            Err(status) => Err(status),
        }
    }
}

pub(super) fn options() -> WriteOptions {
    WriteOptions {
        timeout_ms: SERVER_MAX_MS,
        ..WriteOptions::default()
    }
}

pub(super) fn reading(mode: ReadMode) -> ReadOptions {
    ReadOptions {
        mode: mode.into(),
        ..ReadOptions::default()
    }
}

pub(super) fn service(group: &str, service: &str) -> ServiceKey {
    ServiceKey {
        group: group.into(),
        service: service.into(),
    }
}

pub(super) fn node_key(key: &ServiceKey, node: &str) -> NodeKey {
    NodeKey {
        group: key.group.clone(),
        service: key.service.clone(),
        node: node.into(),
    }
}

/// A node that stays until it is deregistered, with a value.
pub(super) fn persistent(key: &ServiceKey, id: &str, value: u64) -> RegisterNode {
    let registration = Registration {
        id: id.into(),
        addresses: vec![Address {
            name: "tcp".into(),
            host: "127.0.0.1".into(),
            port: 1,
        }],
        metadata: [(VALUE.to_owned(), value.to_string())].into(),
        kind: NodeKind::Persistent.into(),
        ..Registration::default()
    };
    RegisterNode {
        key: Some(key.clone()),
        registration: Some(registration),
        expected: None,
    }
}

/// What a node carries; 0: nothing.
pub(super) fn value_of(node: &Node) -> u64 {
    node.metadata
        .get(VALUE)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

/// A number of milliseconds.
pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
