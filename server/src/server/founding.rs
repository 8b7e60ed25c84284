//! What is there when a server starts for the first time: a cluster, and in development a group.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_core::directory::{Command, Expected, GroupSettings, Refusal, Request};
use rollcall_core::ids::{GroupName, RequestId, ServerId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, MemberConfig, Preset};
use crate::raft::types::PeerAddresses;
use crate::raft::{Consensus, ProposeError};

/// Pause between attempts to set the development group up.
const PRESET_PAUSE: Duration = Duration::from_millis(200);
/// The group that `--dev` sets up.
const DEV_GROUP: &str = "default";

/// The servers that found the cluster. Of itself a server knows better where a port was left open.
pub(super) fn founders(config: &Config, own: &PeerAddresses) -> BTreeMap<ServerId, PeerAddresses> {
    let open = |member: &MemberConfig| {
        [&member.peer, &member.client]
            .iter()
            .any(|address| address.ends_with(":0"))
    };
    let founder = |member: &MemberConfig| {
        let told = PeerAddresses {
            peer_address: member.peer.clone(),
            client_address: member.client.clone(),
            http_address: member.http.clone(),
        };
        let known = if member.id == config.cluster.id && open(member) {
            own.clone()
        } else {
            told
        };
        (ServerId(member.id), known)
    };
    config.cluster.members.iter().map(founder).collect()
}

/// Founds the cluster, or finds that there is one.
pub(super) async fn found(
    join: bool,
    founders: BTreeMap<ServerId, PeerAddresses>,
    consensus: Consensus,
    stop: CancellationToken,
) {
    if join {
        return;
    }
    match stop.run_until_cancelled(consensus.initialize(founders)).await {
        Some(Ok(found)) => tracing::debug!(?found, "the cluster stands"),
        Some(Err(error)) => tracing::error!(%error, "the cluster could not be founded"),
        None => {}
    }
}

/// Creates the development group, once somebody leads.
pub(super) async fn set_up(preset: Preset, consensus: Consensus, stop: CancellationToken) {
    match preset {
        Preset::None => {}
        Preset::Dev => _ = stop.run_until_cancelled(create_dev_group(&consensus)).await,
    }
}

async fn create_dev_group(consensus: &Consensus) {
    let group: GroupName = DEV_GROUP.parse().expect("it is a well-formed name");
    loop {
        let settings = GroupSettings {
            auto_create: true,
            ..GroupSettings::default()
        };
        let command = Command::PutGroup {
            group: group.clone(),
            settings,
            expected: Expected::Absent,
        };
        let request = Request {
            id: RequestId(rand::random()),
            command,
        };
        match consensus
            .propose(request, Instant::now() + Duration::from_secs(5))
            .await
        {
            Ok(_) => return tracing::info!(%group, "development group created"),
            Err(ProposeError::Refused(Refusal::AlreadyExists { .. })) => return,
            Err(error) => tracing::debug!(%error, "development group not created yet"),
        }
        tokio::time::sleep(PRESET_PAUSE).await;
    }
}
