//! Connections to one particular server, with short deadlines.

use std::time::Duration;

use prost::Message;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::{
    self, Effect, ErrorCode, GroupMode, GroupSettings, GroupSummary, GuardSettings, ListGroupsRequest,
    PutGroupRequest, ReadMode, ReadOptions, ServiceSettings,
};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::lab::{WAIT_MAX, eventually};

/// How long a call may take; the server is told a little less.
pub(super) const CALL_MAX: Duration = Duration::from_millis(2_000);
/// What the server is told.
pub(super) const SERVER_MAX_MS: u32 = 1_500;
const CONNECT_MAX: Duration = Duration::from_millis(700);

/// A connection to this server and no other; `None`: it cannot be reached now.
pub(super) async fn connect(address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint.connect_timeout(CONNECT_MAX).timeout(CALL_MAX);
    tokio::time::timeout(CONNECT_MAX, endpoint.connect())
        .await
        .ok()?
        .ok()
}

/// The error of the contract that a refusal carries, if it came from a server at all.
pub(super) fn error(status: &Status) -> Option<v1::Error> {
    v1::Error::decode(status.details())
        .ok()
        .filter(|error| !status.details().is_empty() && error.code != 0)
}

/// Whether it surely changed nothing.
pub(super) fn surely_nothing(status: &Status) -> bool {
    error(status).is_some_and(|error| error.effect() == Effect::None)
}

/// Whether a server says that it cannot serve this watch now (it lags behind the resume point, say): no broken
/// promise, and another server may.
pub(super) fn is_put_off(frame: &Frame) -> bool {
    match frame {
        Frame::Rejected(rejected) => rejected.error.as_ref().is_some_and(|error| {
            matches!(
                error.code(),
                ErrorCode::NotReady | ErrorCode::Overloaded | ErrorCode::Unavailable
            )
        }),
        Frame::KeepCache(_) => true,
        _ => false,
    }
}

/// Makes a group whose services come into being with their first node. `share_basis_points`: how much of a service
/// its removal guard lets lapse away.
///
/// # Errors
/// No server takes it in time.
pub async fn put_group(addresses: &[String], group: &str, share_basis_points: u32) -> anyhow::Result<()> {
    let guard = GuardSettings {
        share_basis_points: Some(share_basis_points),
        keep_last: Some(false),
        ..GuardSettings::default()
    };
    put_group_as(addresses, group, GroupMode::Cp, guard).await
}

/// The same, in this mode, and guarded like this; returns when every server knows it.
pub(super) async fn put_group_as(
    addresses: &[String],
    group: &str,
    mode: GroupMode,
    guard: GuardSettings,
) -> anyhow::Result<()> {
    let settings = GroupSettings {
        mode: mode.into(),
        auto_create: true,
        defaults: Some(ServiceSettings {
            guard: Some(guard),
            ..ServiceSettings::default()
        }),
        ..GroupSettings::default()
    };
    let request = PutGroupRequest {
        group: group.into(),
        settings: Some(settings),
        ..PutGroupRequest::default()
    };
    let put = eventually("a group", WAIT_MAX, || async {
        for address in addresses {
            let Some(channel) = connect(address).await else {
                continue;
            };
            if RegistryClient::new(channel)
                .put_group(request.clone())
                .await
                .is_ok()
            {
                return Some(());
            }
        }
        None
    });
    put.await?;
    for address in addresses {
        let known = eventually("a group at every server", WAIT_MAX, || async {
            let request = ListGroupsRequest {
                group_prefix: group.into(),
                read: Some(ReadOptions {
                    mode: ReadMode::Local.into(),
                    ..ReadOptions::default()
                }),
                ..ListGroupsRequest::default()
            };
            let mut registry = RegistryClient::new(connect(address).await?);
            let listed = registry.list_groups(request).await.ok()?.into_inner();
            let there = |of: &GroupSummary| of.group == group && mode_of(of) == mode;
            listed.groups.iter().any(there).then_some(())
        });
        known.await?;
    }
    Ok(())
}

/// The mode of a group as a list shows it.
pub(super) fn mode_of(group: &GroupSummary) -> GroupMode {
    match group.settings.as_ref().map(GroupSettings::mode) {
        Some(GroupMode::Ap) => GroupMode::Ap,
        _ => GroupMode::Cp,
    }
}
