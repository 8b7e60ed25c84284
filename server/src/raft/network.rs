//! Raft's messages to one other server, over gRPC.
//!
//! Appends run on one long-lived stream per follower, many in flight, answered in order; heartbeats on
//! another. Votes are single calls with a deadline. Connections are made lazily and watched by keepalive, so
//! that a dead server holds nobody up.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use rollcall_proto::upgrade::{Channel, Streams};
use rollcall_proto::v1::peer_client::PeerClient;
use rollcall_proto::v1::{PeerMessage, SnapshotChunk};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use super::types::{LogId, PeerAddresses, TypeConfig, Vote};
use super::wire;
use crate::store::{SnapshotFile, Trouble};

/// Largest message between servers: an append of about 1 MiB, or one large entry.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a snapshot in one chunk.
const CHUNK_BYTES: usize = 512 << 10;
/// Chunks read ahead while the network is busy.
const CHUNKS_AHEAD: usize = 4;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Lines that last have connections of their own.
const STREAMS: Streams = Streams {
    plain: &[],
    beating: &[
        "/rollcall.v1.Peer/Append",
        "/rollcall.v1.Peer/Forward",
        "/rollcall.v1.Peer/ReadIndexes",
    ],
    beat: Duration::from_secs(1),
    beat_patience: Duration::from_secs(2),
    connect_timeout: CONNECT_TIMEOUT,
};
/// How long a follower may leave appends unanswered before the stream is made anew.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sender or a receiver of a snapshot may take for a chunk, and the receiver for the installation at the end.
pub(super) const SNAPSHOT_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a snapshot for which the receiver has a second more at the end: it is read twice and decoded.
const INSTALLED_A_SECOND: u64 = 10_000_000;
/// Pause before a server that has no room for a snapshot is sent it again.
const FULL_PAUSE: Duration = Duration::from_secs(5);
/// Pause before an unreachable server is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A server that left so many heartbeats in a row unanswered is said to be silent.
const SILENT_BEATS: u32 = 15;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Connections to the other servers, one each, shared by everything that talks to them.
#[derive(Debug)]
pub(crate) struct Peers {
    cluster: String,
    server: u64,
    channels: Mutex<HashMap<u64, (String, Channel)>>,
}

impl Peers {
    pub(crate) fn new(cluster: String, server: u64) -> Self {
        Self {
            cluster,
            server,
            channels: Mutex::default(),
        }
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(crate) fn server(&self) -> u64 {
        self.server
    }

    /// A client for a server at a peer address; it connects when it is first used.
    pub(crate) fn client(
        &self,
        target: u64,
        address: &str,
    ) -> Result<PeerClient<Channel>, tonic::transport::Error> {
        Ok(PeerClient::new(self.channel(target, address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The connection behind it, for other services of the peer listener.
    pub(crate) fn channel(&self, target: u64, address: &str) -> Result<Channel, tonic::transport::Error> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(&target) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                    .connect_timeout(CONNECT_TIMEOUT)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(STREAMS.beat)
                    .keep_alive_timeout(STREAMS.beat_patience)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(4 << 20)
                    .initial_connection_window_size(8 << 20);
                let channel = Channel::connect_lazy(&endpoint, Some(STREAMS));
                channels.insert(target, (address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(channel)
    }

    /// Refuses what is of another cluster, for another server, or claims to come from this one.
    pub(crate) fn check(&self, cluster: &str, from: u64, to: u64) -> Result<(), Status> {
        let own = self.server;
        let refuse = |reason: String| Err(Status::failed_precondition(format!("RC-112: {reason}")));
        if cluster != self.cluster {
            refuse(format!(
                "this is cluster {:?}, the message is for cluster {cluster:?}",
                self.cluster
            ))
        } else if to != own {
            refuse(format!("this is server {own}, the message is for server {to}"))
        } else if from == own || from == 0 {
            refuse(format!(
                "this is server {own}, and so claims the sender to be {from}"
            ))
        } else {
            Ok(())
        }
    }

    pub(crate) fn envelope(&self, to: u64, payload: Bytes) -> PeerMessage {
        PeerMessage {
            cluster: self.cluster.clone(),
            from: self.server,
            to,
            payload,
        }
    }
}

/// Makes a [`Link`] for each of Raft's tasks. Raft's own task holds it and drops it when it has ended, having noted why.
pub(crate) struct Links {
    peers: Arc<Peers>,
    _ended: DropGuard,
}

impl Links {
    /// `ended` is cancelled when Raft's own task has ended.
    pub(crate) fn new(peers: Arc<Peers>, ended: &CancellationToken) -> Self {
        Self {
            peers,
            _ended: ended.clone().drop_guard(),
        }
    }

    fn link(&self, target: u64, node: &PeerAddresses, purpose: Purpose) -> Link {
        Link {
            peers: self.peers.clone(),
            target,
            address: node.peer_address.clone(),
            purpose,
            lane: None,
            retry_at: None,
            silence: Silence::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &PeerAddresses) -> Link {
        self.link(target, node, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerAddresses) -> Link {
        self.link(target, node, Purpose::Heartbeat)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Replication,
    Heartbeat,
}

/// One task's line to one other server.
pub(crate) struct Link {
    peers: Arc<Peers>,
    target: u64,
    address: String,
    purpose: Purpose,
    lane: Option<Lane>,
    /// After a stream that could not be opened, or a snapshot that found no room: not before this moment again.
    retry_at: Option<Instant>,
    silence: Silence,
}

/// Whether a server answers heartbeats. It is said when that changes: Raft says it at each of them.
#[derive(Default)]
struct Silence {
    /// When the first was sent that it left unanswered.
    since: Option<Instant>,
    /// Why the last one failed; nothing if it was given up.
    reason: Option<String>,
    said: Trouble,
}

impl Silence {
    /// Another heartbeat is sent.
    fn on_beat(&mut self, target: u64, patience: Duration) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= patience && self.said.begins() {
            let reason = self.reason.as_deref().unwrap_or("no answer in time");
            tracing::warn!(member = target, reason, "a member is silent");
        }
        self.reason = None;
    }

    fn on_answer<T>(&mut self, target: u64, answer: &Rpc<T>) {
        match answer {
            Ok(_) => {
                self.since = None;
                if self.said.ends() {
                    tracing::info!(member = target, "a member is heard again");
                }
            }
            Err(error) => self.reason = Some(error.to_string()),
        }
    }
}

/// A stream that is kept open from one heartbeat to the next.
struct Lane {
    requests: mpsc::Sender<PeerMessage>,
    answers: Streaming<PeerMessage>,
}

fn unreachable(error: impl Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn timed_out(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(format!("{what}: no answer in time")))
}

impl Link {
    fn client(&self) -> Rpc<PeerClient<Channel>> {
        self.peers.client(self.target, &self.address).map_err(unreachable)
    }

    fn envelope(&self, payload: Bytes) -> PeerMessage {
        self.peers.envelope(self.target, payload)
    }

    async fn call<F>(&self, what: &str, option: &RPCOption, call: F) -> Rpc<Bytes>
    where
        F: Future<Output = Result<tonic::Response<PeerMessage>, Status>>,
    {
        let answer = tokio::time::timeout(option.hard_ttl(), call)
            .await
            .map_err(|_| timed_out(what))?;
        Ok(answer.map_err(unreachable)?.into_inner().payload)
    }

    async fn open<S>(&self, requests: S) -> Rpc<Streaming<PeerMessage>>
    where
        S: Stream<Item = PeerMessage> + Send + 'static,
    {
        let mut client = self.client()?;
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, client.append(requests)).await;
        let opened = opened.map_err(|_| unreachable("connecting took too long"))?;
        Ok(opened.map_err(unreachable)?.into_inner())
    }

    /// The pipeline: requests go out as they come, answers come back in order.
    async fn pipeline<S>(&self, input: S) -> Rpc<BoxStream<'static, Rpc<StreamAppendResult<TypeConfig>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let unanswered = Unanswered::default();
        let (peers, target, asked) = (self.peers.clone(), self.target, unanswered.clone());
        let requests = input.map(move |request| {
            asked.note(&request);
            peers.envelope(target, wire::encode_append(&request))
        });
        let answers = self.open(requests).await?;
        let answers = stream::unfold(Some((answers, unanswered)), |state| async move {
            let (mut answers, unanswered) = state?;
            match next_answer(&mut answers, &unanswered).await {
                Some(Ok(answer)) => Some((Ok(answer), Some((answers, unanswered)))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        });
        Ok(Box::pin(answers))
    }

    async fn beat(
        &mut self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> Rpc<StreamAppendResult<TypeConfig>> {
        let payload = wire::encode_append(request);
        // A kept lane may have died since; a new one then gets a try.
        if let Some(lane) = self.lane.take()
            && let Ok(answer) = self.beat_on(lane, payload.clone()).await
        {
            return Ok(answer);
        }
        let (requests, queue) = mpsc::channel(1);
        let answers = self.open(ReceiverStream::new(queue)).await?;
        self.beat_on(Lane { requests, answers }, payload).await
    }

    async fn beat_on(&mut self, mut lane: Lane, payload: Bytes) -> Rpc<StreamAppendResult<TypeConfig>> {
        let message = self.envelope(payload);
        lane.requests
            .send(message)
            .await
            .map_err(|_| unreachable("the stream was closed"))?;
        let answer = lane.answers.message().await.map_err(unreachable)?;
        let answer = answer.ok_or_else(|| unreachable("the stream was closed"))?;
        let answer = wire::decode_appended(answer.payload).map_err(unreachable)?;
        // After a refusal the other side ends the stream.
        if answer.is_ok() {
            self.lane = Some(lane);
        }
        Ok(answer)
    }
}

/// The requests of a pipeline that are not answered yet, by the last entry that each is about, in their order.
///
/// Raft takes an answer for an answer to every request that is about no later entry, so to those that were sent later and
/// hold none (they tell what is committed). An answer that was held up for long would so count as heard just now: a leader
/// that was replaced would take itself for confirmed, and answer reads. Such an answer is left out: that to the later
/// request says the same.
#[derive(Clone, Default)]
struct Unanswered(Arc<Mutex<VecDeque<Option<LogId>>>>);

impl Unanswered {
    fn note(&self, request: &AppendEntriesRequest<TypeConfig>) {
        let last = request.entries.last().map(|entry| entry.log_id);
        self.0.lock().push_back(last.or(request.prev_log_id));
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// The first is answered; whether that may be told.
    fn settle(&self, answer: &StreamAppendResult<TypeConfig>) -> bool {
        let mut waiting = self.0.lock();
        waiting.pop_front();
        match (answer, waiting.front()) {
            (Ok(matching), Some(later)) => later > matching,
            (Ok(_) | Err(_), _) => true,
        }
    }
}

async fn next_answer(
    answers: &mut Streaming<PeerMessage>,
    unanswered: &Unanswered,
) -> Option<Rpc<StreamAppendResult<TypeConfig>>> {
    loop {
        match tokio::time::timeout(STALL_TIMEOUT, answers.message()).await {
            Ok(Ok(Some(answer))) => match wire::decode_appended(answer.payload) {
                Ok(answer) if unanswered.settle(&answer) => return Some(Ok(answer)),
                Ok(_) => {}
                Err(error) => return Some(Err(unreachable(error))),
            },
            Ok(Ok(None)) => return None,
            Ok(Err(status)) => return Some(Err(unreachable(status))),
            Err(_) if !unanswered.is_empty() => return Some(Err(timed_out("append"))),
            Err(_) => {}
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        Ok(self.beat(&rpc).await?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            match self.purpose {
                Purpose::Replication => {
                    // Raft pauses between the requests of a stream; where none can be opened, nobody asks for one.
                    if let Some(at) = self.retry_at.take() {
                        tokio::time::sleep_until(at).await;
                    }
                    let opened = self.pipeline(input).await;
                    self.retry_at = opened.is_err().then(|| Instant::now() + RETRY_PAUSE);
                    opened
                }
                Purpose::Heartbeat => {
                    let Some(request) = input.next().await else {
                        return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
                    };
                    self.silence
                        .on_beat(self.target, option.hard_ttl() * SILENT_BEATS);
                    let answer = self.beat(&request).await;
                    self.silence.on_answer(self.target, &answer);
                    Ok(Box::pin(stream::iter([Ok(answer?)])) as BoxStream<'s, _>)
                }
            }
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.client()?;
        let message = self.envelope(wire::encode_vote_request(&rpc));
        let answer = self.call("vote", &option, client.vote(message)).await?;
        wire::decode_vote_response(answer).map_err(unreachable)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.client()?;
        let message = self.envelope(wire::encode_vote_request(&rpc));
        let answer = self.call("pre-vote", &option, client.pre_vote(message)).await?;
        wire::decode_vote_response(answer).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client()?;
        let (chunks, queue) = mpsc::channel(CHUNKS_AHEAD);
        let head = wire::encode_snapshot_head(&(vote, snapshot.meta));
        let patience =
            SNAPSHOT_STALL_TIMEOUT + Duration::from_secs(snapshot.snapshot.length() / INSTALLED_A_SECOND);
        let reading = send_chunks(self.peers.clone(), self.target, head, snapshot.snapshot, chunks);
        let retry_at = &mut self.retry_at;
        let sending = async {
            if let Some(at) = retry_at.take() {
                tokio::time::sleep_until(at).await;
            }
            let installing = client.install_snapshot(ReceiverStream::new(queue));
            let (read, answer) = both_within(patience, reading, installing).await;
            read.map_err(|error| StreamingError::Network(NetworkError::from_string(error)))?;
            let answer = answer.ok_or_else(|| timed_out("snapshot"))?;
            if matches!(&answer, Err(status) if status.code() == Code::ResourceExhausted) {
                *retry_at = Some(Instant::now() + FULL_PAUSE);
            }
            let answer = answer.map_err(unreachable)?.into_inner().payload;
            Ok(wire::decode_installed(answer).map_err(unreachable)?)
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let mut client = self.client()?;
        let message = self.envelope(wire::encode_transfer(&req));
        let answer = self
            .call("transfer", &option, client.transfer_leader(message))
            .await?;
        wire::decode_transferred(answer).map_err(unreachable)
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_PAUSE)))
    }
}

/// Runs both; when the first has ended, the other may take so much longer.
async fn both_within<A, B>(
    patience: Duration,
    first: impl Future<Output = A>,
    other: impl Future<Output = B>,
) -> (A, Option<B>) {
    let (first, other) = (pin!(first), pin!(other));
    match futures_util::future::select(first, other).await {
        Either::Left((ended, other)) => (ended, tokio::time::timeout(patience, other).await.ok()),
        Either::Right((ended, first)) => (first.await, Some(ended)),
    }
}

/// Reads the file chunk by chunk, as fast as the receiver takes them. Ends early, without an error, when the
/// receiver has hung up: its answer says why.
async fn send_chunks(
    peers: Arc<Peers>,
    target: u64,
    head: Bytes,
    file: SnapshotFile,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<(), String> {
    let length = file.length();
    let mut offset = 0;
    while offset < length {
        let source = file.clone();
        let read = crate::ground::spawn_blocking(move || source.chunk(offset, CHUNK_BYTES)).await;
        let data = read
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let first = offset == 0;
        let head = if first { head.clone() } else { Bytes::new() };
        offset += data.len() as u64;
        let chunk = SnapshotChunk {
            cluster: peers.cluster().to_owned(),
            from: peers.server(),
            to: target,
            head,
            crc: crc32fast::hash(&data),
            data,
            last: offset >= length,
            length: if first { length } else { 0 },
        };
        match tokio::time::timeout(SNAPSHOT_STALL_TIMEOUT, chunks.send(chunk)).await {
            Ok(Ok(())) => {}
            Ok(Err(_hung_up)) => return Ok(()),
            Err(_) => return Err("the receiver of a snapshot stands still".into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_without_room_is_sent_its_snapshot_after_a_pause() {
        use super::super::servers_test::{Server, start, start_apart, write};
        let folder = tempfile::tempdir().unwrap();
        let from = start(&folder.path().join("from"), 1, |_| {}).await;
        write(&from[0].consensus, 1).await;
        from[0].consensus.take_snapshot().await.unwrap();
        let (meta, snapshot) = from[0].consensus.inner.snapshots.current().unwrap();
        let full = |options: &mut super::super::ReplicationOptions| options.disk_reserve = u64::MAX / 2;
        let to = start_apart(&folder.path().join("to"), 1, full, |routes| routes).await;
        let peers = Arc::new(Peers::new("test".into(), 2));
        let mut links = Links::new(peers, &CancellationToken::new());
        let mut link = links.new_client(1, &to[0].addresses).await;
        let snapshot = openraft::storage::Snapshot { meta, snapshot };
        let option = RPCOption::new(CONNECT_TIMEOUT);
        let sent = link.full_snapshot(
            Vote::new_committed(9, 2),
            snapshot,
            std::future::pending(),
            option,
        );
        assert!(sent.await.is_err());
        let pause = link.retry_at.expect("it pauses") - Instant::now();
        assert!(pause > RETRY_PAUSE * 10, "{pause:?}");
        from.into_iter().chain(to).map(Server::kill).for_each(drop);
    }

    #[tokio::test]
    async fn who_has_the_whole_snapshot_is_not_waited_for_without_end() {
        let patience = Duration::from_millis(20);
        let stuck = both_within(patience, async { 1 }, std::future::pending::<()>());
        let stuck = tokio::time::timeout(patience * 1_000, stuck).await;
        assert_eq!(stuck.expect("it ends"), (1, None));
        let slow = tokio::time::sleep(patience * 3);
        assert_eq!(both_within(patience, slow, async { 2 }).await, ((), Some(2)));
    }

    #[tokio::test]
    async fn an_unreachable_server_is_tried_again_after_a_pause() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let node = PeerAddresses {
            peer_address: port.to_string(),
            ..PeerAddresses::default()
        };
        let peers = Arc::new(Peers::new("test".into(), 1));
        let mut link = Links::new(peers, &CancellationToken::new())
            .new_client(2, &node)
            .await;
        let from = Instant::now();
        for _ in 0..3 {
            let opened = link.stream_append(stream::pending(), RPCOption::new(CONNECT_TIMEOUT));
            assert!(opened.await.is_err(), "nobody listens at {port}");
        }
        assert!(
            from.elapsed() >= 2 * RETRY_PAUSE,
            "three tries within {:?}",
            from.elapsed()
        );
    }
}

#[cfg(test)]
mod unanswered_tests {
    use super::super::types::log_id;
    use super::*;

    fn about(index: u64) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(log_id(2, index)),
            leader_commit: None,
            entries: Vec::new(),
        }
    }

    /// Raft would take the first answer for one to the second request, which may have been sent much later.
    #[test]
    fn an_answer_that_a_later_request_could_be_taken_for_answered_by_is_left_out() {
        let unanswered = Unanswered::default();
        let answer = |index| unanswered.settle(&Ok(Some(log_id(2, index))));
        unanswered.note(&about(5));
        unanswered.note(&about(5));
        assert!(!answer(5));
        assert!(answer(5));
        unanswered.note(&about(5));
        unanswered.note(&about(8));
        assert!(answer(5));
        assert!(answer(8));
        assert!(unanswered.is_empty());
    }
}
