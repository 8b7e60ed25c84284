//! The other servers: where they are, and whether they are there.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use rollcall_core::ids::ServerId;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1::ap_client::ApClient;
use tonic::Status;

use super::inner::Inner;
use crate::gossip::MemberState;
use crate::raft::MESSAGE_BYTES_MAX;

/// A server that gossip has never heard of, or forgot, is gone after so long.
const UNHEARD_MAX: Duration = Duration::from_secs(30);
/// Without gossip: one that answered no question for so long is gone.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);

/// Another member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) server: ServerId,
    pub(super) address: String,
}

impl Inner {
    /// The other members, gone or not.
    pub(super) fn others(&self) -> Vec<Other> {
        let members = self.consensus.members().into_iter();
        members
            .filter(|member| member.server != self.server)
            .map(|member| Other {
                server: member.server,
                address: member.addresses.peer_address,
            })
            .collect()
    }

    /// Those that are there, in an order of chance.
    pub(super) fn others_here(&self) -> Vec<Other> {
        let now = Instant::now();
        let mut others = self.others();
        others.retain(|other| self.gone_since(other.server, now).is_none());
        others.shuffle(&mut rand::rng());
        others
    }

    /// Since when a server is gone: declared down, not heard of and no member, or never heard of for long enough. `None`: it
    /// is there, or nobody knows yet.
    pub(super) fn gone_since(&self, server: ServerId, now: Instant) -> Option<Instant> {
        let Some(gossip) = &self.gossip else {
            let answered = self.origins.answered_at(server).unwrap_or(self.started_at);
            let gone = answered + UNANSWERED_MAX;
            return (gone <= now).then_some(gone);
        };
        let members = gossip.members();
        match members.iter().find(|member| member.identity.server == server) {
            Some(member) => match member.state {
                MemberState::Alive | MemberState::Suspect => None,
                MemberState::Down => Some(member.since),
            },
            // One that was removed says nothing any more, and others need not have told of it since this server was started.
            None if self.consensus.is_loaded() && !self.consensus.keeps_member(server) => {
                Some(self.started_at)
            }
            None => {
                let gone = self.started_at + UNHEARD_MAX;
                (gone <= now).then_some(gone)
            }
        }
    }

    /// A client of another server's records.
    ///
    /// # Errors
    /// Its address makes no sense.
    pub(super) fn client(&self, other: &Other) -> Result<ApClient<Channel>, Status> {
        let channel = self.consensus.peers().channel(other.server.0, &other.address);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(ApClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}
