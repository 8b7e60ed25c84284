//! A follower's word that it follows a leader: with the leader itself, a quorum of a cluster of three.
//!
//! A leader asks a quorum whether it was replaced before it answers a read. A follower that asks it for a read index can say
//! so at once: its vote, looked up after everybody in whose name it asks had asked, is as good as its answer to a heartbeat
//! that was sent then. Where the two of them are a quorum, no other server need be asked:
//!
//! - A leader of a later term that acknowledged anything before the word was given has the votes of a quorum, one of
//!   them this follower's or this leader's, given before it acknowledged. Then this follower's word names that later
//!   term, or this leader, which looks at its own vote after the word came, finds that it has moved on.
//! - So whatever was acknowledged was acknowledged in this leader's term or an earlier one, and all of that is committed
//!   in its log once an entry of its own term is.
//!
//! Votes are looked up in Raft's own task, which notes a vote before it is told to anybody; what the metrics say comes
//! later than that.

use std::collections::BTreeSet;

use openraft::ServerState;
use rollcall_core::ids::{LogIndex, Term};

use crate::raft::Raft;
use crate::raft::contract::Confirmed;
use crate::raft::types::Vote;

/// The term in which this server follows `leader` now; `None`: it does not.
pub(in crate::raft) async fn allegiance(raft: &Raft, leader: u64) -> Option<Term> {
    let look = raft.with_raft_state(move |state| term_led_by(state.vote_ref(), leader));
    look.await.ok().flatten()
}

/// The read index of this server, if it leads in `term` and makes a quorum with `follower`, which said that it
/// follows it there. `None`: a quorum must be asked.
pub(super) async fn confirm_by_word(raft: &Raft, follower: u64, term: Term) -> Option<Confirmed> {
    let own = *raft.node_id();
    let look = raft.with_raft_state(move |state| {
        if state.server_state != ServerState::Leader || term_led_by(state.vote_ref(), own) != Some(term) {
            return None;
        }
        let membership = state.membership_state.effective();
        if !is_quorum(membership.get_joint_config(), [own, follower]) {
            return None;
        }
        // Followers may apply what the cluster committed before this server does.
        let committed = state.local_committed().max(state.cluster_committed())?;
        (committed.leader_id.term == term.0).then_some(Confirmed {
            term,
            index: LogIndex(committed.index),
        })
    });
    look.await.ok().flatten()
}

fn term_led_by(vote: &Vote, leader: u64) -> Option<Term> {
    let leads = vote.committed && vote.leader_id.voted_for == leader;
    leads.then_some(Term(vote.leader_id.term))
}

/// Whether these two are a majority of each list of voters.
fn is_quorum(joint: &[BTreeSet<u64>], pair: [u64; 2]) -> bool {
    let majority = |voters: &BTreeSet<u64>| {
        let among = pair.iter().filter(|server| voters.contains(server)).count();
        among > voters.len() / 2
    };
    pair[0] != pair[1] && joint.iter().all(majority)
}

/// Whether two servers can be a quorum at all: else nobody need give a word.
pub(super) fn words_count(joint: &[BTreeSet<u64>]) -> bool {
    joint.iter().all(|voters| voters.len() <= 3)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::raft::contract::Freshness;
    use crate::raft::servers_test::{Server, leader_of, soon, start, steady_leader_of, write};

    #[test]
    fn two_are_a_quorum_only_where_they_are_a_majority_of_each_list() {
        let of = |voters: &[u64]| voters.iter().copied().collect::<BTreeSet<u64>>();
        assert!(is_quorum(&[of(&[1, 2, 3])], [1, 2]));
        assert!(is_quorum(&[of(&[1, 2])], [1, 2]));
        assert!(is_quorum(&[of(&[1])], [1, 9]), "it is one by itself");
        assert!(!is_quorum(&[of(&[1, 2, 3])], [1, 9]), "a learner has no vote");
        assert!(!is_quorum(&[of(&[1, 2, 3])], [1, 1]));
        assert!(!is_quorum(&[of(&[1, 2, 3, 4])], [1, 2]));
        assert!(
            !is_quorum(&[of(&[1, 2, 3]), of(&[1, 3, 4])], [1, 2]),
            "one of two lists"
        );
        assert!(is_quorum(&[of(&[1, 2, 3]), of(&[1, 2, 4])], [1, 2]));
    }

    #[tokio::test]
    async fn a_word_counts_for_its_term_and_only_at_the_leader() {
        let folder = tempfile::tempdir().unwrap();
        let servers = start(folder.path(), 3, |_| {}).await;
        write(&servers[0].consensus, 1).await;
        let leader = steady_leader_of(&servers).await;
        let follower = (leader + 1) % 3;
        let raft = |index: usize| &servers[index].consensus.inner.raft;
        let id = |index: usize| index as u64 + 1;
        let read = servers[follower]
            .consensus
            .confirm(Freshness::Linearizable, soon());
        let term = read.await.unwrap().term;
        assert_eq!(allegiance(raft(follower), id(leader)).await, Some(term));
        assert_eq!(allegiance(raft(follower), id(follower)).await, None);

        let word = |at: usize, from: usize, term: u64| confirm_by_word(raft(at), id(from), Term(term));
        let confirmed = word(leader, follower, term.0).await.unwrap();
        assert!(
            servers[leader]
                .consensus
                .applied_head()
                .borrow()
                .covers(confirmed.index)
        );
        assert_eq!(confirmed.term, term);
        assert_eq!(word(leader, follower, term.0 - 1).await, None, "an earlier term");
        assert_eq!(word(leader, follower, term.0 + 1).await, None, "a later term");
        assert_eq!(word(leader, leader, term.0).await, None, "alone it is no quorum");
        assert_eq!(word(leader, 8, term.0).await, None, "nobody knows server 9");
        assert_eq!(word(follower, leader, term.0).await, None, "it does not lead");
        servers.into_iter().map(Server::kill).for_each(drop);
    }

    #[tokio::test]
    async fn who_has_voted_for_another_gives_no_word() {
        let folder = tempfile::tempdir().unwrap();
        let servers = start(folder.path(), 3, |_| {}).await;
        write(&servers[0].consensus, 1).await;
        let leader = leader_of(&servers).await;
        let next = (leader + 1) % 3;
        let term = servers[leader].consensus.term();
        let transfer = servers[leader]
            .consensus
            .transfer_leadership(Some(rollcall_core::ids::ServerId(next as u64 + 1)), soon());
        transfer.await.unwrap();
        let mut known = servers[next].consensus.leadership();
        let leads = known.wait_for(|now| now.leading && now.term > term);
        tokio::time::timeout_at(soon(), leads).await.unwrap().unwrap();
        // It leads by the vote of at least one of the others, and its own.
        let mut words = 0;
        for server in &servers {
            let word = allegiance(&server.consensus.inner.raft, leader as u64 + 1).await;
            words += usize::from(word == Some(term));
        }
        assert!(words <= 1, "{words} still follow a leader whom a quorum has left");
        let mut stale = servers[leader].consensus.leadership();
        let deposed = stale.wait_for(|now| now.term > term);
        tokio::time::timeout(Duration::from_secs(30), deposed)
            .await
            .unwrap()
            .unwrap();
        let raft = &servers[leader].consensus.inner.raft;
        assert_eq!(confirm_by_word(raft, next as u64 + 1, term).await, None);
        servers.into_iter().map(Server::kill).for_each(drop);
    }
}
