//! What operators see of replication: how it does, and who the members are.

use std::sync::atomic::Ordering;

use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use rollcall_core::ids::{LogIndex, ServerId};

use super::consensus::Inner;
use super::contract::{MemberInfo, MemberRole, RaftStatus};
use super::types::{LogId, PeerAddresses};

impl Inner {
    pub(super) fn status(&self) -> RaftStatus {
        let stopped = self.stop_reason();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<&LogId>| id.map(|id| LogIndex(id.index));
        RaftStatus {
            server: self.options.server,
            role: role_of(metrics.state),
            leadership: *self.leadership.borrow(),
            last_log_index: metrics.last_log_index.map(LogIndex),
            committed_index: index(metrics.local_committed.as_ref()),
            applied: *self.head.borrow(),
            snapshot_index: index(metrics.snapshot.as_ref()),
            purged_index: index(metrics.purged.as_ref()),
            loaded: self.loaded.load(Ordering::Acquire),
            disk_full: self.space.is_full(),
            vote_withheld: self.gate.is_withheld(),
            diverged: self.gate.is_diverged(),
            stopped,
        }
    }

    pub(super) fn members(&self) -> Vec<MemberInfo> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let own = role_of(metrics.state);
        let member = |(id, node): (&u64, &PeerAddresses)| {
            let voter = voters.contains(id);
            let role = match () {
                () if *id == self.options.server.0 => own,
                () if metrics.current_leader == Some(*id) => MemberRole::Leader,
                () if voter => MemberRole::Follower,
                () => MemberRole::Learner,
            };
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id))
                .and_then(|matched| *matched);
            let heard = metrics
                .heartbeat
                .as_ref()
                .and_then(|all| all.get(id))
                .and_then(|heard| *heard);
            MemberInfo {
                server: ServerId(*id),
                addresses: node.clone(),
                voter,
                role,
                matched: matched.map(|matched| LogIndex(matched.index)),
                last_contact: heard.map(|heard| heard.into_inner().elapsed()),
            }
        };
        membership.nodes().map(member).collect()
    }
}

fn role_of(state: ServerState) -> MemberRole {
    match state {
        ServerState::Leader => MemberRole::Leader,
        ServerState::Follower => MemberRole::Follower,
        ServerState::Candidate => MemberRole::Candidate,
        ServerState::Learner | ServerState::Shutdown => MemberRole::Learner,
    }
}
