//! The servers themselves. Status and members are answered without a quorum.

use std::time::Duration;

use rollcall_core::ids::ServerId;
use rollcall_proto::v1::{self, cluster_server::Cluster};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::convert;
use super::doors::Doors;
use super::gossip::gossip_members;
use super::status::{DoorError, of_membership};
use crate::raft::MembershipError;
use crate::raft::types::PeerAddresses;

/// How long a change of membership may take: a promoted learner first catches up.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);

impl Doors {
    fn status_response(&self) -> v1::StatusResponse {
        let consensus = self.reader.consensus();
        let status = consensus.status();
        let (applied, revision, hash, totals, floor) = {
            let (directory, position) = consensus.directory().read_placed();
            (
                position,
                directory.revision(),
                directory.state_hash(),
                directory.totals(),
                directory.changes().floor(),
            )
        };
        let of_ap = self.reader.ap().view().read().totals();
        let not_ready = self.readiness.check().err();
        let mut header = self.reader.write_header(revision);
        header.read_mode = v1::ReadMode::Local.into();
        v1::StatusResponse {
            header: Some(header),
            version: env!("CARGO_PKG_VERSION").into(),
            leader: status.leadership.leader.map_or(0, |leader| leader.0),
            role: convert::member_role(status.role).into(),
            term: status.leadership.term.0,
            last_log_index: status.last_log_index.map_or(0, |index| index.0),
            committed_index: status.committed_index.map_or(0, |index| index.0),
            applied_index: applied.map_or(0, |position| position.index.0),
            snapshot_index: status.snapshot_index.map_or(0, |index| index.0),
            purged_index: status.purged_index.map_or(0, |index| index.0),
            revision: revision.0,
            state_hash: hash.to_be_bytes().to_vec().into(),
            groups: totals.groups,
            services: totals.services,
            nodes: totals.nodes + of_ap.nodes,
            sessions: totals.sessions,
            sessions_held: self.holder.held() as u64,
            watchers: self.watches.streams() as u64,
            ready: not_ready.is_none(),
            not_ready_reason: not_ready.unwrap_or_default(),
            disk_full: status.disk_full,
            vote_withheld: status.vote_withheld,
            uptime_ms: convert::milliseconds(self.started_at.elapsed()),
            change_floor: floor.0,
            heartbeat: self.heartbeat.clone(),
        }
    }

    fn member_list(&self) -> Vec<v1::Member> {
        let gossip = self.gossip_members();
        let with_gossip = |info: crate::raft::MemberInfo| {
            let heard = gossip.iter().find(|heard| heard.server == info.server.0).cloned();
            v1::Member {
                gossip: heard,
                ..convert::member(info)
            }
        };
        self.reader
            .consensus()
            .members()
            .into_iter()
            .map(with_gossip)
            .collect()
    }

    /// Who takes part is known from the log: a server that has none yet knows of nobody, and says so.
    fn members_response(&self) -> Result<v1::MembersResponse, v1::Error> {
        let members = self.member_list();
        if members.is_empty() {
            return Err(v1::Error::from(DoorError::NotReady {
                reason: "this server has not heard yet who the members are".into(),
            }));
        }
        let revision = self.reader.consensus().directory().read().revision();
        Ok(v1::MembersResponse {
            header: Some(self.reader.write_header(revision)),
            members,
            gossip: self.gossip_members(),
        })
    }

    fn gossip_members(&self) -> Vec<v1::GossipMember> {
        self.gossip.as_ref().map_or_else(Vec::new, gossip_members)
    }

    fn changed(&self, result: Result<(), MembershipError>) -> Result<v1::MembershipResponse, v1::Error> {
        result.map_err(|failure| of_membership(&failure))?;
        let revision = self.reader.consensus().directory().read().revision();
        Ok(v1::MembershipResponse {
            header: Some(self.reader.write_header(revision)),
            members: self.member_list(),
        })
    }
}

fn deadline() -> Instant {
    Instant::now() + MEMBERSHIP_TIMEOUT
}

#[tonic::async_trait]
impl Cluster for Doors {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.answer("status", Ok(self.status_response()))
    }

    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersResponse>, Status> {
        self.answer("members", self.members_response())
    }

    async fn add_learner(
        &self,
        request: Request<v1::AddLearnerRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        self.check_operator("add_learner", &request)?;
        let request = request.into_inner();
        let addresses = PeerAddresses {
            peer_address: request.peer_address,
            client_address: request.client_address,
            http_address: request.http_address,
        };
        let consensus = self.reader.consensus();
        let result = consensus
            .add_learner(ServerId(request.server), addresses, deadline())
            .await;
        self.answer("add_learner", self.changed(result))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        self.check_operator("promote", &request)?;
        let server = ServerId(request.into_inner().server);
        let result = self.reader.consensus().promote(server, deadline()).await;
        self.answer("promote", self.changed(result))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        self.check_operator("remove", &request)?;
        let v1::RemoveRequest { server, lost } = request.into_inner();
        let removing = self.reader.consensus().remove(ServerId(server), lost, deadline());
        let result = removing.await;
        self.answer("remove", self.changed(result))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        self.check_operator("transfer_leadership", &request)?;
        let server = request.into_inner().server;
        let to = (server != 0).then_some(ServerId(server));
        let result = self.reader.consensus().transfer_leadership(to, deadline()).await;
        self.answer("transfer_leadership", self.changed(result))
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        self.check_operator("take_snapshot", &request)?;
        let result = self.reader.consensus().take_snapshot().await;
        self.answer("take_snapshot", self.changed(result))
    }

    async fn rehearse_storm(
        &self,
        request: Request<v1::RehearseStormRequest>,
    ) -> Result<Response<v1::RehearseStormResponse>, Status> {
        self.check_operator("rehearse_storm", &request)?;
        let rehearsed = self.rehearsed(request.into_inner()).await;
        self.answer("rehearse_storm", rehearsed)
    }
}
