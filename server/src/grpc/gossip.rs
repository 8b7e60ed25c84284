//! Gossip's view, as it is answered.

use std::collections::BTreeMap;
use std::time::Instant;

use rollcall_core::ids::ServerId;
use rollcall_proto::v1;

use super::convert::milliseconds;
use crate::gossip::{Gossip, HeardHead, Identity, MemberState};

/// All servers that gossip knows, by id; the answering one included.
pub(super) fn gossip_members(gossip: &Gossip) -> Vec<v1::GossipMember> {
    let heads: BTreeMap<ServerId, HeardHead> = gossip
        .heads()
        .into_iter()
        .map(|heard| (heard.server, heard))
        .collect();
    let member = |identity: Identity, state: v1::GossipState, incarnation: u16, since: Instant, own: bool| {
        v1::GossipMember {
            server: identity.server.0,
            address: identity.address.to_string(),
            state: state.into(),
            incarnation: incarnation.into(),
            epoch: identity.epoch,
            since_ms: milliseconds(since.elapsed()),
            own,
            head: heads.get(&identity.server).map(head),
        }
    };
    let own = gossip.own();
    let own_state = match own.displaced {
        true => v1::GossipState::Displaced,
        false => v1::GossipState::Alive,
    };
    let others = gossip.members().into_iter().map(|view| {
        member(
            view.identity,
            state(view.state),
            view.incarnation,
            view.since,
            false,
        )
    });
    let own = own
        .identity
        .map(|identity| member(identity, own_state, own.incarnation, own.since, true));
    let mut members: Vec<v1::GossipMember> = own.into_iter().chain(others).collect();
    members.sort_by_key(|member| member.server);
    members
}

fn state(state: MemberState) -> v1::GossipState {
    match state {
        MemberState::Alive => v1::GossipState::Alive,
        MemberState::Suspect => v1::GossipState::Suspect,
        MemberState::Down => v1::GossipState::Down,
    }
}

fn head(heard: &HeardHead) -> v1::GossipHead {
    v1::GossipHead {
        revision: heard.head.revision.0,
        applied_index: heard.head.applied.0,
        term: heard.head.term.0,
        leader: heard.head.leader.map_or(0, |leader| leader.0),
        age_ms: milliseconds(heard.heard_at.elapsed()),
    }
}
