//! A server that does not know what it acknowledged takes no part in elections.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use rollcall_core::ids::ServerId;
use rollcall_proto::v1::ReadIndexRequest;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::network::Peers;
use super::servers_test::{Server, leader_of, soon, start, start_apart, start_on, write};
use super::types::{Entry, LogId, Membership, Vote, log_id};
use super::vote_gate::Standing;
use super::{Consensus, Freshness, MembershipError, wire};
use crate::store::mark::{Mark, MarkFile};

/// Speaks to a server in the name of another.
struct Voice {
    peers: Peers,
    target: u64,
    address: String,
}

impl Voice {
    fn of(from: u64, to: &Server) -> Self {
        Self {
            peers: Peers::new("test".into(), from),
            target: to.consensus.inner.options.server.0,
            address: to.addresses.peer_address.clone(),
        }
    }

    async fn ask_vote(&self, vote: Vote, last: Option<LogId>) -> Result<(), Status> {
        let request = wire::encode_vote_request(&VoteRequest::new(vote, last));
        let message = self.peers.envelope(self.target, request);
        let mut client = self.peers.client(self.target, &self.address).unwrap();
        client.vote(message).await.map(drop)
    }

    /// One heartbeat of a leader, which is answered.
    async fn beat(&self, vote: Vote) {
        self.append(vote, Vec::new()).await;
    }

    /// The beginning of a leader's log, which is taken.
    async fn append(&self, vote: Vote, entries: Vec<Entry>) {
        let request = wire::encode_append(&AppendEntriesRequest {
            vote,
            prev_log_id: None,
            leader_commit: entries.last().map(|entry| entry.log_id),
            entries,
        });
        let message = self.peers.envelope(self.target, request);
        let mut client = self.peers.client(self.target, &self.address).unwrap();
        let appending = client.append(tokio_stream::once(message)).await.unwrap();
        appending.into_inner().message().await.unwrap().unwrap();
    }

    async fn word(&self) -> u64 {
        let request = ReadIndexRequest {
            cluster: "test".into(),
            from: self.peers.server(),
            to: self.target,
            word: true,
            ..ReadIndexRequest::default()
        };
        let mut client = self.peers.client(self.target, &self.address).unwrap();
        client.read_index(request).await.unwrap().into_inner().following
    }
}

fn refused(answer: Result<(), Status>) {
    assert_eq!(answer.unwrap_err().code(), Code::FailedPrecondition);
}

fn last_of(server: &Consensus) -> Option<LogId> {
    server.inner.log.flushed()
}

async fn whole(server: &Consensus) {
    let mut standing = server.inner.gate.watch_standing();
    let whole = standing.wait_for(|standing| *standing == Standing::Whole);
    tokio::time::timeout_at(soon(), whole).await.unwrap().unwrap();
}

/// Server 2 loses its folder while 3, which lacks acknowledged writes, is all that is left: together they are a
/// majority, and must elect nobody.
#[tokio::test]
async fn an_empty_folder_under_an_old_id_elects_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers: Vec<_> = start(folder.path(), 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leading = leader_of(&servers).await;
    for server in &servers {
        whole(&server.consensus).await;
    }
    let (leading, lost, behind) = (leading, (leading + 1) % 3, (leading + 2) % 3);
    let id = |index: usize| index as u64 + 1;
    let mut servers: Vec<_> = servers.drain(..).map(Some).collect();
    let mut ports = [None, None, None];
    let last = last_of(&servers[behind].as_ref().unwrap().consensus);
    ports[behind] = Some(servers[behind].take().unwrap().end().await);
    let acknowledged = &servers[leading].as_ref().unwrap().consensus;
    for number in 2..20 {
        write(acknowledged, number).await;
    }
    let revision = acknowledged.applied_head().borrow().revision;
    let term = acknowledged.term().0;
    for gone in [leading, lost] {
        ports[gone] = Some(servers[gone].take().unwrap().end().await);
    }
    fs::remove_dir_all(folder.path().join(id(lost).to_string())).unwrap();

    // As with `--join`: nobody asks it to look who is there.
    let again = async |index: usize, ports: &mut [Option<_>; 3]| {
        let port = ports[index].take().unwrap();
        start_on(port, folder.path(), id(index), |_| {}, |routes| routes).await
    };
    let emptied = again(lost, &mut ports).await;
    let candidate = Voice::of(id(behind), &emptied);
    refused(candidate.ask_vote(Vote::new(term + 1, id(behind)), last).await);

    // A leader's word is not yet its log.
    let leader = Voice::of(id(leading), &emptied);
    leader.beat(Vote::new_committed(term, id(leading))).await;
    assert_eq!(emptied.consensus.inner.gate.standing(), Standing::CatchingUp);
    assert_eq!(leader.word().await, 0, "it may have voted for another once");
    refused(candidate.ask_vote(Vote::new(term + 1, id(behind)), last).await);

    // Nor is it after a restart, when the folder is not empty any more.
    ports[lost] = Some(emptied.end().await);
    let emptied = again(lost, &mut ports).await;
    let candidate = Voice::of(id(behind), &emptied);
    tokio::time::sleep(emptied.consensus.inner.options.lease() * 2).await;
    refused(candidate.ask_vote(Vote::new(term + 1, id(behind)), last).await);

    let late = again(behind, &mut ports).await;
    let back = again(leading, &mut ports).await;
    let all = [late, back, emptied];
    for server in &all {
        let confirmed = server.consensus.confirm(Freshness::Linearizable, soon());
        confirmed.await.unwrap();
        assert!(
            server.consensus.has_applied(revision),
            "an acknowledged write is lost"
        );
        whole(&server.consensus).await;
    }
    all.into_iter().map(Server::kill).for_each(drop);
}

/// The log of a cluster that one server founded begins with that server alone. While it is given back to that very server,
/// whose folder was lost, it ends there for a moment: no reason to lead.
#[tokio::test]
async fn a_founder_that_is_given_back_the_beginning_of_its_log_does_not_lead() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    port.set_nonblocking(true).unwrap();
    let emptied = start_on(port, folder.path(), 1, |_| {}, |routes| routes).await;
    let founder = BTreeMap::from([(1, emptied.addresses.clone())]);
    let alone = Entry {
        log_id: log_id(1, 0),
        payload: EntryPayload::Membership(Membership::new(vec![BTreeSet::from([1])], founder).unwrap()),
    };
    let leader = Voice::of(2, &emptied);
    leader
        .append(Vote::new_committed(7, 2), vec![alone.clone()])
        .await;
    let until = soon();
    while last_of(&emptied.consensus) != Some(alone.log_id) {
        assert!(Instant::now() < until, "it does not take the entry");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let port = emptied.end().await;
    let again = start_on(port, folder.path(), 1, |_| {}, |routes| routes).await;
    assert_eq!(again.consensus.inner.gate.standing(), Standing::CatchingUp);
    // As long as it would take to lead, several times over.
    tokio::time::sleep(again.consensus.inner.options.lease() * 4).await;
    let known = *again.consensus.leadership().borrow();
    assert!(!known.leading && known.term.0 == 7, "{known:?}");
    drop(again.kill());
}

/// The mark is written once a second at most. Server 1 acknowledged more than its mark says, and its disk forgot all of it: the
/// entries up to the mark are not all that others may have counted on.
#[tokio::test]
async fn a_server_that_forgot_does_not_vote_because_it_has_what_its_mark_says() {
    let folder = tempfile::tempdir().unwrap();
    let port = || {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        port.set_nonblocking(true).unwrap();
        port
    };
    let forgetful = start_on(port(), folder.path(), 1, |_| {}, |routes| routes).await;
    let addresses = forgetful.addresses.clone();
    let port = forgetful.end().await;
    let marked = log_id(1, 3);
    let mark = Mark {
        log: Some(marked),
        ..Mark::default()
    };
    MarkFile::in_folder(&folder.path().join("1"))
        .write(&mark)
        .unwrap();

    let forgetful = start_on(port, folder.path(), 1, |_| {}, |routes| routes).await;
    let gate = &forgetful.consensus.inner.gate;
    assert_eq!(gate.standing(), Standing::CatchingUp);
    let voters = BTreeSet::from([1, 2, 3]);
    let nodes = voters.iter().map(|id| (*id, addresses.clone()));
    let founded = Membership::new(vec![voters.clone()], nodes.collect::<BTreeMap<_, _>>()).unwrap();
    let blank = |index| Entry {
        log_id: log_id(1, index),
        payload: EntryPayload::Blank,
    };
    let mut entries = vec![Entry {
        log_id: log_id(1, 0),
        payload: EntryPayload::Membership(founded),
    }];
    entries.extend((1..=marked.index).map(blank));
    let is_given_the_log = async |server: &Server| {
        let leader = Voice::of(2, server);
        leader.append(Vote::new_committed(1, 2), entries.clone()).await;
        let mut applied = server.consensus.applied_head();
        let all = applied.wait_for(|head| head.position.is_some_and(|at| at.index.0 >= marked.index));
        tokio::time::timeout_at(soon(), all).await.unwrap().unwrap();
        // Longer than it takes to notice.
        tokio::time::sleep(server.consensus.inner.options.lease() * 2).await;
    };
    is_given_the_log(&forgetful).await;
    let candidate = Voice::of(3, &forgetful);
    refused(candidate.ask_vote(Vote::new(2, 3), Some(marked)).await);

    let port = forgetful.end().await;
    let again = start_on(port, folder.path(), 1, |_| {}, |routes| routes).await;
    assert_eq!(again.consensus.inner.gate.standing(), Standing::CatchingUp);
    // What it knew to be committed may be forgotten by then: the leader says it again.
    is_given_the_log(&again).await;
    let candidate = Voice::of(3, &again);
    refused(candidate.ask_vote(Vote::new(2, 3), Some(marked)).await);
    drop(again.kill());
}

#[tokio::test]
async fn a_server_that_is_added_may_vote_before_it_is_a_voter() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start_apart(folder.path(), 2, |_| {}, |routes| routes).await;
    let [first, second] = &servers[..] else {
        unreachable!()
    };
    let alone = [(ServerId(1), first.addresses.clone())].into();
    first.consensus.initialize(alone).await.unwrap();
    write(&first.consensus, 1).await;
    assert!(second.consensus.status().vote_withheld);
    let addresses = second.addresses.clone();
    let adding = first.consensus.add_learner(ServerId(2), addresses, soon());
    adding.await.unwrap();
    whole(&second.consensus).await;
    second.consensus.inner.gate.withhold();
    let shortly = Instant::now() + Duration::from_millis(300);
    let early = first.consensus.promote(ServerId(2), shortly).await;
    assert!(
        matches!(early, Err(MembershipError::Unavailable { .. })),
        "{early:?}"
    );
    second.consensus.inner.gate.caught_up();
    first.consensus.promote(ServerId(2), soon()).await.unwrap();
    assert!(!second.consensus.status().vote_withheld);
    servers.into_iter().map(Server::kill).for_each(drop);
}
