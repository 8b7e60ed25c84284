//! Asking one particular server what it holds.

use std::time::Duration;

use anyhow::Context;
use prost::Message;
use rollcall_proto::upgrade::{self, Streams};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{QueryRequest, ReadMode, ReadOptions, ServiceKey, ServiceView};
use tonic::transport::{Channel, Endpoint};

pub(super) const ASK_MAX: Duration = Duration::from_secs(10);

/// A connection to the server at `address` (`host:port`), and to no other.
///
/// # Errors
/// It cannot be reached within ten seconds.
pub async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(ASK_MAX)
        .timeout(ASK_MAX);
    endpoint
        .connect()
        .await
        .with_context(|| format!("connecting to {address}"))
}

/// A way to the server at `address` as providers and consumers have it: each stream has a connection of its own. On those
/// that may be silent, a server that stands still is noticed after `patience`.
///
/// # Errors
/// The address is none.
pub(super) fn way_to(
    address: &str,
    connect_max: Duration,
    patience: Duration,
) -> anyhow::Result<upgrade::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(connect_max);
    let streams = Streams::of_clients(connect_max, patience, connect_max);
    Ok(upgrade::Channel::connect_lazy(&endpoint, Some(streams)))
}

/// What the server at `address` has applied of a service, once it has applied `min_revision`. `None`: it knows
/// no such service.
///
/// # Errors
/// It does not answer, refuses, or does not get as far as `min_revision` in time.
pub async fn local_view(
    address: &str,
    group: &str,
    service: &str,
    min_revision: u64,
) -> anyhow::Result<Option<ServiceView>> {
    let mut registry = RegistryClient::new(connect(address).await?).max_decoding_message_size(64 << 20);
    let request = QueryRequest {
        key: Some(ServiceKey {
            group: group.into(),
            service: service.into(),
        }),
        read: Some(ReadOptions {
            mode: ReadMode::Local.into(),
            max_age_ms: 0,
            min_revision,
            ..ReadOptions::default()
        }),
        ..QueryRequest::default()
    };
    match registry.query(request).await {
        Ok(answer) => {
            let view = answer.into_inner().view.context("an answer without a view")?;
            Ok(Some(
                ServiceView::decode(view).context("a view that cannot be read")?,
            ))
        }
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(anyhow::anyhow!(
            "{address}: {:?}: {}",
            status.code(),
            status.message()
        )),
    }
}
