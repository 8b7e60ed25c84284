//! Questions of a read round to one other server: a follower's for the leader's read index, a leader's for a follower's
//! word. On a stream that is kept open, one after the other; everybody who waits shares a question, so one under way is
//! enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use rollcall_core::ids::{LogIndex, Term};
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1::peer_client::PeerClient;
use rollcall_proto::v1::{ReadIndexRequest, ReadIndexResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::allegiance::{allegiance, confirm_by_word, words_count};
use super::rounds::{Round, RoundError};
use crate::raft::Raft;
use crate::raft::contract::{Confirmed, Leadership};
use crate::raft::network::Peers;
use crate::raft::vote_gate::VoteGate;

/// How long a follower waits for the leader's word in one round.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A server that does not know the stream is asked for it again only after so long: until then by single calls.
const UNARY_FOR: Duration = Duration::from_secs(60);
/// How long a leader waits for one follower's word before it asks all of them.
const WORD_TIMEOUT: Duration = Duration::from_millis(50);
/// Who gave no word in time is not asked for one for so long.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// A stream to another server, kept open between questions, one of which is under way at a time.
#[derive(Debug)]
struct Line {
    peers: Arc<Peers>,
    lane: Mutex<Option<Lane>>,
}

#[derive(Debug)]
struct Lane {
    server: u64,
    address: String,
    questions: mpsc::Sender<ReadIndexRequest>,
    answers: Streaming<ReadIndexResponse>,
}

impl Lane {
    async fn ask(&mut self, question: ReadIndexRequest) -> Result<ReadIndexResponse, Status> {
        let ended = || Status::unavailable("the other server ended the stream");
        self.questions.send(question).await.map_err(|_| ended())?;
        self.answers.message().await?.ok_or_else(ended)
    }
}

impl Line {
    fn new(peers: Arc<Peers>) -> Self {
        Self {
            peers,
            lane: Mutex::default(),
        }
    }

    fn question(&self, to: u64) -> ReadIndexRequest {
        ReadIndexRequest {
            cluster: self.peers.cluster().to_owned(),
            from: self.peers.server(),
            to,
            ..ReadIndexRequest::default()
        }
    }

    /// Asks. Whoever gives up waiting closes the stream with it, so that no answer is taken for that to another question.
    async fn ask(&self, address: &str, question: ReadIndexRequest) -> Result<ReadIndexResponse, Status> {
        let kept = self.lane.lock().take();
        // A kept lane may have died since; a new one then gets a try.
        if let Some(mut lane) = kept.filter(|lane| lane.server == question.to && lane.address == address)
            && let Ok(answer) = lane.ask(question.clone()).await
        {
            *self.lane.lock() = Some(lane);
            return Ok(answer);
        }
        let mut lane = self.open(question.to, address).await?;
        let answer = lane.ask(question).await?;
        *self.lane.lock() = Some(lane);
        Ok(answer)
    }

    async fn open(&self, server: u64, address: &str) -> Result<Lane, Status> {
        let (questions, outgoing) = mpsc::channel(1);
        let mut client = self.client(server, address)?;
        let answers = client
            .read_indexes(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(Lane {
            server,
            address: address.to_owned(),
            questions,
            answers,
        })
    }

    fn client(&self, server: u64, address: &str) -> Result<PeerClient<Channel>, Status> {
        let client = self.peers.client(server, address);
        client.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// A follower's side.
#[derive(Debug)]
pub(super) struct Inquirer {
    raft: Raft,
    gate: Arc<VoteGate>,
    leadership: watch::Receiver<Leadership>,
    /// The leader may answer under its lease.
    leased: bool,
    line: Line,
    /// Who is to be asked by single calls, and until when.
    unary: Mutex<Option<(u64, Instant)>>,
}

impl Inquirer {
    pub(super) fn new(
        raft: Raft,
        gate: Arc<VoteGate>,
        peers: Arc<Peers>,
        leadership: watch::Receiver<Leadership>,
        leased: bool,
    ) -> Self {
        Self {
            raft,
            gate,
            leadership,
            leased,
            line: Line::new(peers),
            unary: Mutex::default(),
        }
    }

    /// Asks whoever leads. Nobody may join who comes after this began.
    pub(super) async fn ask(&self) -> Round<Confirmed> {
        let leader = self.leadership.borrow().leader.map(|leader| leader.0);
        let leader = leader.ok_or(RoundError::NotLeader)?;
        let membership = self
            .raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .clone();
        let node = membership.get_node(&leader).ok_or(RoundError::NotLeader)?;
        let gives_word = !self.leased && !self.gate.is_withheld();
        let following = match gives_word && words_count(membership.get_joint_config()) {
            // Raft's own task may wait for a disk that hangs; without a word the leader asks whom it needs.
            true => tokio::time::timeout(WORD_TIMEOUT, allegiance(&self.raft, leader))
                .await
                .ok()
                .flatten(),
            false => None,
        };
        let question = ReadIndexRequest {
            leased: self.leased,
            following: following.map_or(0, |term| term.0),
            ..self.line.question(leader)
        };
        let asked = self.ask_leader(&node.peer_address, question);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        let answer = answer.map_err(|_| RoundError::Failed("the leader did not answer in time".into()))?;
        let answer = answer.map_err(|status| RoundError::Failed(status.message().to_owned()))?;
        match answer.error {
            Some(error) => Err(RoundError::Failed(error.message)),
            None => Ok(Confirmed {
                term: Term(answer.term),
                index: LogIndex(answer.index),
            }),
        }
    }

    async fn ask_leader(
        &self,
        address: &str,
        question: ReadIndexRequest,
    ) -> Result<ReadIndexResponse, Status> {
        let leader = question.to;
        let unary = *self.unary.lock();
        if !unary.is_some_and(|(server, until)| server == leader && Instant::now() < until) {
            match self.line.ask(address, question.clone()).await {
                Err(status) if status.code() == Code::Unimplemented => {
                    *self.unary.lock() = Some((leader, Instant::now() + UNARY_FOR));
                }
                decided => return decided,
            }
        }
        let mut client = self.line.client(leader, address)?;
        Ok(client.read_index(question).await?.into_inner())
    }
}

/// A leader's side: with one follower's word it need not ask them all.
#[derive(Debug)]
pub(super) struct Companion {
    raft: Raft,
    line: Line,
    /// Who gave no word, and until when nobody asks it. No more than there are voters, of whom there are few.
    silent: Mutex<BTreeMap<u64, Instant>>,
}

impl Companion {
    pub(super) fn new(raft: Raft, peers: Arc<Peers>) -> Self {
        Self {
            raft,
            line: Line::new(peers),
            silent: Mutex::default(),
        }
    }

    /// The read index, confirmed by this leader and one follower after this began. `None`: all are to be asked.
    pub(super) async fn confirm(&self) -> Option<Confirmed> {
        let (server, address) = self.choose()?;
        let question = ReadIndexRequest {
            word: true,
            ..self.line.question(server)
        };
        let asked = tokio::time::timeout(WORD_TIMEOUT, self.line.ask(&address, question)).await;
        match asked.ok().and_then(Result::ok) {
            Some(answer) if answer.following != 0 => {
                confirm_by_word(&self.raft, server, Term(answer.following)).await
            }
            Some(_) | None => {
                self.silent.lock().insert(server, Instant::now() + SILENT_FOR);
                None
            }
        }
    }

    /// Who is asked: the one that answered last, if it can.
    fn choose(&self) -> Option<(u64, String)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let joint = metrics.membership_config.get_joint_config();
        if metrics.state != ServerState::Leader || !words_count(joint) {
            return None;
        }
        let mut silent = self.silent.lock();
        let now = Instant::now();
        silent.retain(|_, until| now < *until);
        let able = |server: &u64| *server != metrics.id && !silent.contains_key(server);
        let last = self.line.lane.lock().as_ref().map(|lane| lane.server);
        let voters = joint.first()?;
        let server = last
            .filter(|server| voters.contains(server) && able(server))
            .or_else(|| voters.iter().copied().find(able))?;
        let node = metrics.membership_config.get_node(&server)?;
        Some((server, node.peer_address.clone()))
    }
}

#[cfg(test)]
mod tests {
    use tonic::service::Routes;

    use super::*;
    use crate::raft::contract::Freshness;
    use crate::raft::servers_test::{Server, soon, start, start_behind, steady_leader_of, write};

    /// Servers as they were before there was the stream.
    fn without_stream(routes: Routes) -> Routes {
        let unknown = || async { [("content-type", "application/grpc"), ("grpc-status", "12")] };
        routes
            .into_axum_router()
            .route("/rollcall.v1.Peer/ReadIndexes", axum::routing::any(unknown))
            .into()
    }

    fn inquirer(server: &Server) -> &Inquirer {
        server.consensus.inner.remote_rounds.inquirer()
    }

    fn companion(server: &Server) -> Companion {
        let inner = &server.consensus.inner;
        Companion::new(inner.raft.clone(), inner.peers.clone())
    }

    fn is_open(line: &Line) -> bool {
        line.lane.lock().is_some()
    }

    #[tokio::test]
    async fn questions_share_a_stream_that_is_kept_and_made_anew_when_it_broke() {
        let folder = tempfile::tempdir().unwrap();
        let servers = start(folder.path(), 3, |_| {}).await;
        write(&servers[0].consensus, 1).await;
        let follower = &servers[(steady_leader_of(&servers).await + 1) % 3];
        let read = || follower.consensus.confirm(Freshness::Linearizable, soon());
        read().await.unwrap();
        let line = &inquirer(follower).line;
        assert!(is_open(line));
        // As if the leader had ended it: nobody reads the questions any more.
        let (unread, _) = mpsc::channel(1);
        line.lane.lock().as_mut().unwrap().questions = unread;
        read().await.unwrap();
        assert!(is_open(line));
        servers.into_iter().map(Server::kill).for_each(drop);
    }

    #[tokio::test]
    async fn servers_that_do_not_know_the_stream_are_asked_as_before_there_was_one() {
        let folder = tempfile::tempdir().unwrap();
        let servers = start_behind(folder.path(), 3, |_| {}, without_stream).await;
        write(&servers[0].consensus, 1).await;
        let leader = steady_leader_of(&servers).await;
        let follower = &servers[(leader + 1) % 3];
        for _ in 0..3 {
            for server in &servers {
                let read = server.consensus.confirm(Freshness::Linearizable, soon());
                read.await.unwrap();
            }
            assert!(!is_open(&inquirer(follower).line));
        }
        assert!(inquirer(follower).unary.lock().is_some());
        let companion = companion(&servers[leader]);
        for _ in 0..3 {
            assert_eq!(companion.confirm().await, None);
        }
        assert!(
            !companion.silent.lock().is_empty(),
            "nobody is asked again and again"
        );
        servers.into_iter().map(Server::kill).for_each(drop);
    }

    #[tokio::test]
    async fn a_leader_is_confirmed_by_one_follower_and_by_the_other_when_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = start(folder.path(), 3, |_| {}).await;
        write(&servers[0].consensus, 1).await;
        let leader = steady_leader_of(&servers).await;
        let follower = companion(&servers[(leader + 1) % 3]);
        assert_eq!(follower.confirm().await, None, "it does not lead");
        let companion = companion(&servers[leader]);
        let term = confirmed_by(&companion).await.term;
        let asked = companion.line.lane.lock().as_ref().unwrap().server;
        drop(servers.remove(asked as usize - 1).kill());
        let gone = async || {
            while companion.confirm().await.is_some() {}
            companion.silent.lock().contains_key(&asked)
        };
        assert!(tokio::time::timeout_at(soon(), gone()).await.unwrap());
        // With the other it is a quorum still.
        assert_eq!(confirmed_by(&companion).await.term, term);
        let other = companion.line.lane.lock().as_ref().unwrap().server;
        assert_ne!(other, asked);
        servers.into_iter().map(Server::kill).for_each(drop);
    }

    /// Under load a word may be late, then nobody waits for it, and both count as silent for a while.
    async fn confirmed_by(companion: &Companion) -> Confirmed {
        let asking = async {
            loop {
                match companion.confirm().await {
                    Some(confirmed) => return confirmed,
                    None => tokio::time::sleep(SILENT_FOR / 20).await,
                }
            }
        };
        tokio::time::timeout_at(soon(), asking).await.unwrap()
    }
}
