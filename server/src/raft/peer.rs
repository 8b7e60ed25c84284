//! The peer listener's service. Every message names its cluster, sender and receiver and is refused if one of
//! them is wrong. A forwarded request is never forwarded on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::base::BoxStream;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::storage::Snapshot;
use parking_lot::Mutex;
use rollcall_core::ids::{ServerId, SessionId, Term};
use rollcall_proto::v1::leader_question::Question;
use rollcall_proto::v1::peer_server::Peer;
use rollcall_proto::v1::{
    Checkpoint, Error, ErrorCode, ForwardRequest, ForwardResponse, LeaderAnswer, LeaderQuestion,
    MatchedIndex, PeerMessage, ProbeRequest, ProbeResponse, ReadIndexRequest, ReadIndexResponse,
    RenewalReport, RenewalVerdict, SessionDeadline, SnapshotChunk,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::consensus::Inner;
use super::contract::DeskError;
use super::membership::{Order, wire_error};
use super::network::SNAPSHOT_STALL_TIMEOUT;
use super::reads::{RoundError, allegiance};
use super::types::{TypeConfig, Vote};
use super::vacancy::StreamEnd;
use super::wire::{self, WireError};
use super::writes::Forwarded;
use crate::store::{IncomingSnapshot, SnapshotFile};

/// A term so far ahead of ours was not reached by elections. It is refused, for terms cannot be taken back, and
/// behind the last one there is none: one message could end the cluster for good.
const TERM_LEAP_MAX: u64 = 1 << 32;
/// So many senders of refused appends are told apart: more than a cluster has members.
const REFUSED_SENDERS_MAX: usize = 64;
/// How long an order may take at the leader: less than whoever passes it on waits.
const ORDER_TIMEOUT: Duration = Duration::from_secs(25);

/// Answers the other servers.
#[derive(Clone)]
pub struct PeerDoor {
    inner: Arc<Inner>,
    refused: Arc<Refused>,
}

/// Whose appends are refused: a sender tries again at once, and to say so each time would fill a disk.
#[derive(Debug, Default)]
struct Refused(Mutex<BTreeSet<u64>>);

impl Refused {
    /// An append was refused; whether that is news. Beyond so many senders nothing is.
    fn begins(&self, sender: u64) -> bool {
        let mut refused = self.0.lock();
        refused.len() < REFUSED_SENDERS_MAX && refused.insert(sender)
    }

    /// One was taken; whether that is news.
    fn ends(&self, sender: u64) -> bool {
        self.0.lock().remove(&sender)
    }
}

impl PeerDoor {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            refused: Arc::default(),
        }
    }

    fn check(&self, cluster: &str, from: u64, to: u64) -> Result<(), Status> {
        self.inner.peers.check(cluster, from, to)
    }

    fn check_message(&self, message: &PeerMessage) -> Result<(), Status> {
        self.check(&message.cluster, message.from, message.to)
    }

    fn check_term(&self, vote: &Vote) -> Result<(), Status> {
        let (own, found) = (self.inner.leadership.borrow().term.0, vote.leader_id.term);
        if found > own.saturating_add(TERM_LEAP_MAX) {
            return Err(Status::failed_precondition(format!(
                "RC-112: this server is in term {own}, the message claims term {found}"
            )));
        }
        Ok(())
    }

    fn answer(&self, to: u64, payload: Bytes) -> PeerMessage {
        self.inner.peers.envelope(to, payload)
    }

    fn vote_request(&self, message: PeerMessage) -> Result<(u64, VoteRequest<TypeConfig>), Status> {
        self.check_message(&message)?;
        self.inner.gate.may_vote().map_err(Status::failed_precondition)?;
        let request = wire::decode_vote_request(message.payload).map_err(malformed)?;
        self.check_term(&request.vote)?;
        Ok((message.from, request))
    }

    async fn append_request(&self, message: PeerMessage) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        self.check_message(&message)?;
        let request = wire::decode_append(message.payload).map_err(malformed)?;
        self.check_term(&request.vote)?;
        self.join_running().await?;
        self.inner.hear(&request);
        Ok(request)
    }

    /// A leader has come: an empty folder is from now on one that catches up.
    async fn join_running(&self) -> Result<(), Status> {
        self.inner.join_running().await.map_err(|error| storage(&error))
    }

    async fn receive(&self, mut chunks: Streaming<SnapshotChunk>) -> Result<PeerMessage, Status> {
        let chunk = self.next_chunk(&mut chunks).await?;
        let from = chunk.from;
        let (vote, meta) = wire::decode_snapshot_head(chunk.head).map_err(malformed)?;
        self.check_term(&vote)?;
        self.check_room(chunk.length).await?;
        let mut displaced = self.inner.snapshot_term.subscribe();
        let term = vote.leader_id.term;
        self.inner
            .snapshot_term
            .send_if_modified(|newest| term > std::mem::replace(newest, term.max(*newest)));
        // One at a time: a leader that starts anew has given up its earlier attempt, and one that was replaced has to.
        let displaced = async move { displaced.wait_for(|newest| *newest > term).await.is_ok() };
        let alone = self.inner.receiving.clone().lock_owned().await;
        let snapshots = self.inner.snapshots.clone();
        let incoming = blocking(move || snapshots.incoming())
            .await?
            .map_err(|error| storage(&error))?;
        let receiving = self.take_chunks(incoming, chunk.data, chunk.last, &mut chunks);
        let mut incoming = tokio::select! {
            received = receiving => received?,
            true = displaced => return Err(Status::aborted("a later leader sends its snapshot")),
        };
        self.join_running().await?;
        let expected = meta.last_log_id;
        let finish = move || -> Result<(IncomingSnapshot, SnapshotFile), String> {
            let (found, file) = incoming.finish()?;
            match found.last_log_id == expected {
                true => Ok((incoming, file)),
                false => Err("its head and its file tell of different positions".into()),
            }
        };
        let raft = self.inner.raft.clone();
        // Raft takes the file in its own time: it has to be there then, whether its sender still waits or not.
        let installing = tokio::spawn(async move {
            let _alone = alone;
            let checked = blocking(finish).await?;
            let (incoming, snapshot) =
                checked.map_err(|problem| Status::data_loss(format!("the snapshot: {problem}")))?;
            let installed = raft
                .install_full_snapshot(vote, Snapshot { meta, snapshot })
                .await;
            drop(incoming);
            installed.map_err(stopped)
        });
        let broken = |_| Status::aborted("the installation of the snapshot broke down");
        let installed = installing.await.map_err(broken)??;
        Ok(self.answer(from, wire::encode_installed(&installed)))
    }

    /// Refused before it is sent: each attempt would fill what room there is.
    async fn check_room(&self, length: u64) -> Result<(), Status> {
        let space = self.inner.space.clone();
        match blocking(move || space.has_room_for(length)).await? {
            true => Ok(()),
            false => Err(storage(&std::io::ErrorKind::StorageFull.into())),
        }
    }

    /// The rest of a snapshot, to its end.
    async fn take_chunks(
        &self,
        mut incoming: IncomingSnapshot,
        first: Bytes,
        mut last: bool,
        chunks: &mut Streaming<SnapshotChunk>,
    ) -> Result<IncomingSnapshot, Status> {
        incoming = self.keep(incoming, first).await?;
        while !last {
            let chunk = self.next_chunk(chunks).await?;
            last = chunk.last;
            incoming = self.keep(incoming, chunk.data).await?;
        }
        Ok(incoming)
    }

    async fn next_chunk<S>(&self, chunks: &mut S) -> Result<SnapshotChunk, Status>
    where
        S: Stream<Item = Result<SnapshotChunk, Status>> + Unpin,
    {
        let chunk = heard_within(SNAPSHOT_STALL_TIMEOUT, chunks.next()).await?;
        let chunk = chunk.ok_or_else(|| Status::aborted("the snapshot ended early"))??;
        self.check(&chunk.cluster, chunk.from, chunk.to)?;
        match crc32fast::hash(&chunk.data) == chunk.crc {
            true => Ok(chunk),
            false => Err(Status::data_loss("a chunk's checksum does not match")),
        }
    }

    async fn keep(&self, mut incoming: IncomingSnapshot, data: Bytes) -> Result<IncomingSnapshot, Status> {
        let space = self.inner.space.clone();
        let write = move || {
            if !space.has_room_for(data.len() as u64) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            incoming.write(&data).map(|()| incoming)
        };
        blocking(write).await?.map_err(|error| storage(&error))
    }

    /// A read index confirmed after the question came.
    async fn confirm_read(&self, request: ReadIndexRequest) -> Result<ReadIndexResponse, Status> {
        self.check(&request.cluster, request.from, request.to)?;
        let mut response = ReadIndexResponse::default();
        if request.word {
            let following = match self.inner.gate.is_withheld() {
                true => None,
                false => allegiance(&self.inner.raft, request.from).await,
            };
            response.following = following.map_or(0, |term| term.0);
            return Ok(response);
        }
        let following = (request.following != 0).then_some(Term(request.following));
        let round = self.inner.leader_round(request.leased, request.from, following);
        match round.await {
            Ok(confirmed) => {
                response.index = confirmed.index.0;
                response.term = confirmed.term.0;
            }
            Err(RoundError::NotLeader) => {
                response.error = Some(error(
                    ErrorCode::Unavailable,
                    "the server asked does not lead".into(),
                ));
            }
            Err(RoundError::Failed(reason)) => response.error = Some(error(ErrorCode::Unavailable, reason)),
            Err(RoundError::Overloaded) => response.error = Some(error(ErrorCode::Overloaded, String::new())),
        }
        Ok(response)
    }

    fn matched(&self) -> Vec<MatchedIndex> {
        let metrics = self.inner.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.iter().flatten();
        let heard = |id: &u64| {
            metrics
                .heartbeat
                .as_ref()
                .and_then(|all| all.get(id))
                .and_then(|heard| *heard)
        };
        let matched = replication.map(|(id, matched)| MatchedIndex {
            server: *id,
            index: matched.map_or(0, |matched| matched.index),
            last_contact_ms: heard(id)
                .map_or(u64::MAX, |heard| heard.into_inner().elapsed().as_millis() as u64),
        });
        matched.collect()
    }
}

/// A sender that stands still must not keep another from sending.
async fn heard_within<T>(patience: Duration, next: impl Future<Output = T>) -> Result<T, Status> {
    let waited = tokio::time::timeout(patience, next).await;
    waited.map_err(|_| Status::deadline_exceeded("the sender of a snapshot stands still"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    crate::ground::spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(error.to_string()))
}

fn malformed(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn storage(error: &std::io::Error) -> Status {
    match crate::store::is_full(error) {
        true => Status::resource_exhausted("RC-111: the disk is full"),
        false => Status::internal(format!("RC-107: {error}")),
    }
}

fn error(code: ErrorCode, message: String) -> Error {
    Error {
        code: code.into(),
        message,
        ..Error::default()
    }
}

fn desk_error(failure: DeskError) -> Error {
    error(ErrorCode::Unavailable, failure.to_string())
}

#[tonic::async_trait]
impl Peer for PeerDoor {
    type AppendStream = BoxStream<'static, Result<PeerMessage, Status>>;
    type ForwardStream = BoxStream<'static, Result<ForwardResponse, Status>>;
    type ReadIndexesStream = BoxStream<'static, Result<ReadIndexResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<PeerMessage>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let requests = appends(self.clone(), request.into_inner());
        let door = self.clone();
        let answers = self
            .inner
            .raft
            .stream_append(requests)
            .map(move |result| match result {
                Ok(result) => Ok(door.answer(0, wire::encode_appended(&result))),
                Err(fatal) => Err(stopped(fatal)),
            });
        let ended = self.inner.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(answers.take_until(Box::pin(ended)))))
    }

    async fn vote(&self, request: Request<PeerMessage>) -> Result<Response<PeerMessage>, Status> {
        let (from, request) = self.vote_request(request.into_inner())?;
        let answer = self.inner.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(
            self.answer(from, wire::encode_vote_response(&answer)),
        ))
    }

    async fn pre_vote(&self, request: Request<PeerMessage>) -> Result<Response<PeerMessage>, Status> {
        let (from, request) = self.vote_request(request.into_inner())?;
        let answer = self.inner.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(
            self.answer(from, wire::encode_vote_response(&answer)),
        ))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<PeerMessage>, Status> {
        let receive = self.receive(request.into_inner());
        tokio::select! {
            received = receive => received.map(Response::new),
            () = self.inner.stop.cancelled() => Err(Status::unavailable("this server is stopping")),
        }
    }

    async fn transfer_leader(&self, request: Request<PeerMessage>) -> Result<Response<PeerMessage>, Status> {
        let message = request.into_inner();
        self.check_message(&message)?;
        self.inner.gate.may_vote().map_err(Status::failed_precondition)?;
        let transfer = wire::decode_transfer(message.payload).map_err(malformed)?;
        self.check_term(transfer.from_leader())?;
        let answer = self
            .inner
            .raft
            .handle_transfer_leader(transfer)
            .await
            .map_err(stopped)?;
        Ok(Response::new(
            self.answer(message.from, wire::encode_transferred(&answer)),
        ))
    }

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let answers = Forwarded::new(self.inner.clone(), request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        self.confirm_read(request.into_inner()).await.map(Response::new)
    }

    async fn read_indexes(
        &self,
        request: Request<Streaming<ReadIndexRequest>>,
    ) -> Result<Response<Self::ReadIndexesStream>, Status> {
        let door = self.clone();
        let answers = request.into_inner().then(move |request| {
            let door = door.clone();
            async move { door.confirm_read(request?).await }
        });
        let ended = self.inner.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(answers.take_until(Box::pin(ended)))))
    }

    async fn report_renewals(
        &self,
        request: Request<RenewalReport>,
    ) -> Result<Response<RenewalVerdict>, Status> {
        let report = request.into_inner();
        self.check(&report.cluster, report.from, report.to)?;
        let sessions = wire::decode_sessions(&report.sessions).map_err(malformed)?;
        let recorded = match self.inner.leads() {
            true => self.inner.record_renewals(ServerId(report.from), sessions).await,
            false => Err(DeskError::NoLeader {
                reason: "the server asked does not lead".into(),
            }),
        };
        Ok(Response::new(match recorded {
            Ok(verdict) => RenewalVerdict {
                not_found: verdict.not_found.into_iter().map(|session| session.0).collect(),
                undecided: verdict.undecided.into_iter().map(|session| session.0).collect(),
                error: None,
            },
            Err(failure) => RenewalVerdict {
                error: Some(desk_error(failure)),
                ..RenewalVerdict::default()
            },
        }))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.cluster, request.from, request.to)?;
        let in_operation = {
            let metrics = self.inner.metrics();
            let metrics = metrics.borrow_watched();
            // Index 0 is the first membership; whatever follows it was written by a leader.
            metrics.last_log_index.is_some_and(|last| last > 0)
        };
        let checkpoints = self
            .inner
            .checkpoints
            .recent()
            .into_iter()
            .map(|checkpoint| Checkpoint {
                index: checkpoint.index,
                high: (checkpoint.hash >> 64) as u64,
                low: checkpoint.hash as u64,
            });
        Ok(Response::new(ProbeResponse {
            in_operation,
            checkpoints: checkpoints.collect(),
            vote_withheld: self.inner.gate.may_vote().is_err(),
            disk_full: self.inner.space.is_full(),
        }))
    }

    async fn ask_leader(&self, request: Request<LeaderQuestion>) -> Result<Response<LeaderAnswer>, Status> {
        let question = request.into_inner();
        self.check(&question.cluster, question.from, question.to)?;
        let mut answer = LeaderAnswer::default();
        match question.question {
            Some(Question::Order(order)) => {
                let order =
                    Order::from_wire(order).ok_or_else(|| Status::invalid_argument("the order is empty"))?;
                let done = self.inner.order_here(order, Instant::now() + ORDER_TIMEOUT).await;
                answer.error = done.err().map(wire_error);
            }
            Some(Question::Deadlines(asked)) => {
                let sessions: Vec<_> = asked.sessions.into_iter().map(SessionId).collect();
                let deadlines = match self.inner.leads() {
                    true => self.inner.deadlines(&sessions),
                    false => Err(DeskError::NoLeader {
                        reason: "the server asked does not lead".into(),
                    }),
                };
                match deadlines {
                    Ok(deadlines) => answer.deadlines = deadlines.into_iter().map(wire_deadline).collect(),
                    Err(failure) => answer.error = Some(desk_error(failure)),
                }
            }
            Some(Question::Matched(_)) => answer.matched = self.matched(),
            None => return Err(Status::invalid_argument("the question is empty")),
        }
        Ok(Response::new(answer))
    }
}

fn wire_deadline(deadline: super::contract::SessionDeadline) -> SessionDeadline {
    SessionDeadline {
        session: deadline.session.0,
        lapses_in_ms: u64::try_from(deadline.lapses_in.as_millis()).unwrap_or(u64::MAX),
        holder: deadline.holder.map_or(0, |holder| holder.0),
    }
}

/// The appends of a stream, until one is wrong; the sender then opens another stream.
fn appends(
    door: PeerDoor,
    messages: Streaming<PeerMessage>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    let end = StreamEnd::new(&door.inner.stream_ended);
    stream::unfold(Some((door, messages, end, true)), |state| async move {
        let (door, mut messages, end, first) = state?;
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => return None,
        };
        let from = message.from;
        match door.append_request(message).await {
            Ok(request) => {
                if first && door.refused.ends(from) {
                    tracing::info!(from, "appends are taken again");
                }
                Some((request, Some((door, messages, end, false))))
            }
            Err(status) => {
                if door.refused.begins(from) {
                    tracing::warn!(from, reason = status.message(), "appends are refused");
                }
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_told_of_when_its_appends_are_refused_and_when_they_are_taken_again() {
        let refused = Refused::default();
        assert!(!refused.ends(1));
        assert!(refused.begins(1) && !refused.begins(1));
        assert!(refused.begins(2));
        assert!(refused.ends(1) && !refused.ends(1));
        assert!(refused.begins(1) && !refused.begins(2));
        let others = (3..1_000).filter(|sender| refused.begins(*sender));
        assert_eq!(others.count(), REFUSED_SENDERS_MAX - 2);
    }

    #[tokio::test]
    async fn a_sender_that_stands_still_is_given_up() {
        let patience = Duration::from_millis(20);
        let still = heard_within(patience, std::future::pending::<()>());
        let refused = tokio::time::timeout(patience * 1_000, still).await;
        assert_eq!(
            refused.expect("it ends").unwrap_err().code(),
            tonic::Code::DeadlineExceeded
        );
    }
}
