//! What an enemy, or bad luck, may try: each was tried by hand first, and most broke something.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use prost::Message;
use rollcall_client::{Session, SessionStatus};
use rollcall_core::directory::{Command, Request};
use rollcall_core::ids::RequestId;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use rollcall_proto::upgrade::{Channel, Streams};
use rollcall_proto::v1::peer_client::PeerClient;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::{
    Address, Effect, Error, ErrorCode, ForwardRequest, NodeKind, OpenSession, PeerMessage, RegisterNode,
    RegisterRequest, Registration, Renew, ServiceKey, SessionRequest, SessionResponse, WriteOptions,
    forward_response, session_request, session_response,
};
use support::{Follower, GROUP, cluster, fleet};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

/// Much longer than this machine stands still when it is busy, which may lapse sessions rightly.
const TTL: Duration = Duration::from_secs(6);
const SESSIONS: usize = 20;

/// The leader stays awake, records nothing for lack of a quorum, and must not hold that silence against its
/// clients when the quorum is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_paused_beyond_the_ttl_strikes_off_nobody() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let fleet = fleet(&addresses, "feed", SESSIONS, 1, TTL).await;
    let before: Vec<u64> = fleet.iter().map(Session::id).collect();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let leader_at = cluster.server(leader).address().to_owned();
    let follower = Follower::start(&[leader_at], "feed", 0);
    follower.wait_nodes("feed", SESSIONS).await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.server(*id).pause().await.unwrap();
    }
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    for id in &others {
        cluster.server(*id).resume().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    eventually("every provider attached", WAIT_MAX, || async {
        let attached = |session: &Session| matches!(session.status(), SessionStatus::Attached { .. });
        fleet.iter().all(attached).then_some(())
    })
    .await
    .unwrap();
    // What a wrong expiry would need to show.
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    let revision = cluster.wait_converged(WAIT_MAX).await.unwrap();
    for server in cluster.servers() {
        let view = local_view(server.address(), GROUP, "feed", revision)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(view.nodes.len(), SESSIONS, "nodes at server {}", server.id());
    }
    assert_eq!(follower.removals(), 0, "removals told");
    let after: Vec<u64> = fleet.iter().map(Session::id).collect();
    assert_eq!(after, before, "sessions, before and after");
}

fn envelope(to: u64, payload: Vec<u8>) -> PeerMessage {
    PeerMessage {
        cluster: "lab".into(),
        from: if to == 1 { 2 } else { 1 },
        to,
        payload: payload.into(),
    }
}

/// Postcard of a vote for server `from` in the last term there is, with a log that ends nowhere.
fn vote_in_the_last_term(from: u8) -> Vec<u8> {
    let mut payload = vec![1];
    payload.extend([0xff; 9]);
    payload.extend([1, 1, from, 0]);
    payload.extend([1]);
    payload.extend([0xff; 9]);
    payload.extend([1]);
    payload.extend([0xff; 9]);
    payload.extend([1, 0]);
    payload
}

/// Until the peer listeners ask for certificates, a forged vote is only a message. It must not be the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_in_the_last_term_there_is_does_not_end_the_cluster() {
    let mut cluster = cluster(3).await;
    for server in cluster.servers() {
        let to = server.id();
        let mut peer = PeerClient::connect(format!("http://{}", server.endpoints().peer))
            .await
            .unwrap();
        let payload = vote_in_the_last_term(if to == 1 { 2 } else { 1 });
        let refused = peer.vote(envelope(to, payload)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(
            refused.message().contains("term 18446744073709551615"),
            "{refused}"
        );
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    let addresses = cluster.addresses();
    fleet(&addresses, "feed", 3, 1, TTL).await;
}

/// Even a peer may not bring an entry into the log that no message to a follower can carry.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_request_beyond_the_bound_is_not_proposed() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let peer = cluster.server(leader).endpoints().peer.clone();
    let request = Request {
        id: RequestId(7),
        command: Command::OpenSession {
            secret_digest: [0; 32],
            ttl_ms: 10_000,
            client: "x".repeat(15 << 20),
        },
    };
    let forward = ForwardRequest {
        cluster: "lab".into(),
        from: if leader == 1 { 2 } else { 1 },
        to: leader,
        call: 9,
        request: request.encode(),
        timeout_ms: 5_000,
    };
    let mut client = PeerClient::connect(format!("http://{peer}"))
        .await
        .unwrap()
        .max_encoding_message_size(16 << 20);
    let mut answers = client
        .forward(tokio_stream::once(forward))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.call, 9);
    match answer.result {
        Some(forward_response::Result::Error(error)) => {
            assert_eq!(error.code(), ErrorCode::Unavailable, "{error:?}");
            assert!(error.message.contains("at most 1048576"), "{error:?}");
        }
        other => panic!("it was taken: {other:?}"),
    }
    fleet(&cluster.addresses(), "feed", 3, 1, TTL).await;
}

/// About a mebibyte.
fn large_write(kind: NodeKind) -> RegisterRequest {
    let node = |number: usize| RegisterNode {
        key: Some(ServiceKey {
            group: GROUP.into(),
            service: "large".into(),
        }),
        registration: Some(Registration {
            id: format!("n{number}"),
            addresses: vec![Address {
                name: "tcp".into(),
                host: "127.0.0.1".into(),
                port: 80,
            }],
            metadata: [("k".to_owned(), "v".repeat(4_000))].into(),
            kind: kind.into(),
            ..Registration::default()
        }),
        expected: None,
    };
    RegisterRequest {
        options: Some(WriteOptions {
            timeout_ms: 60_000,
            ..WriteOptions::default()
        }),
        nodes: (0..250).map(node).collect(),
        ..RegisterRequest::default()
    }
}

/// Without a quorum writes wait; what waits is bounded in bytes, not only in number.
#[tokio::test(flavor = "multi_thread")]
async fn large_writes_that_wait_for_a_quorum_are_refused_beyond_a_bound() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.server(*id).pause().await.unwrap();
    }
    let channel = Endpoint::new(format!("http://{}", cluster.server(leader).address()))
        .unwrap()
        .connect_lazy();
    let mut writes: JoinSet<_> = (0..100)
        .map(|_| {
            let mut client = RegistryClient::new(channel.clone());
            async move { client.register(large_write(NodeKind::Persistent)).await }
        })
        .collect();
    // About 64 of them fit. The others are answered although nothing can be committed.
    for _ in 0..20 {
        let answer = tokio::time::timeout(WAIT_MAX, writes.join_next()).await;
        let refused = answer.unwrap().unwrap().unwrap().unwrap_err();
        let error = Error::decode(refused.details()).unwrap();
        assert_eq!(error.code(), ErrorCode::Overloaded, "{error:?}");
        assert_eq!(error.effect(), Effect::None, "{error:?}");
    }
    for id in &others {
        cluster.server(*id).resume().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    fleet(&cluster.addresses(), "feed", 3, 1, TTL).await;
}

/// A session's stream.
struct Attendance {
    requests: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    session: u64,
    calls: u64,
}

impl Attendance {
    async fn begin(channel: Channel) -> Self {
        let (requests, stream) = mpsc::channel(64);
        let answers = SessionsClient::new(channel)
            .attend(ReceiverStream::new(stream))
            .await
            .unwrap();
        let mut attendance = Self {
            requests,
            answers: answers.into_inner(),
            session: 0,
            calls: 0,
        };
        let open = OpenSession {
            ttl_ms: 60_000,
            ..OpenSession::default()
        };
        attendance.send(0, session_request::Request::Open(open)).await;
        match attendance.next().await.1 {
            session_response::Response::Opened(opened) => attendance.session = opened.session,
            other => panic!("{other:?}"),
        }
        attendance
    }

    async fn send(&mut self, session: u64, request: session_request::Request) -> u64 {
        self.calls += 1;
        let request = SessionRequest {
            call: self.calls,
            session,
            request: Some(request),
        };
        self.requests.send(request).await.unwrap();
        self.calls
    }

    async fn write(&mut self) -> u64 {
        let write = large_write(NodeKind::Ephemeral);
        self.send(self.session, session_request::Request::Register(write))
            .await
    }

    /// Something that is refused as soon as it is read, by whomever.
    async fn ask(&mut self) -> u64 {
        let stranger = session_request::Request::Renew(Renew::default());
        self.send(u64::MAX, stranger).await
    }

    async fn next(&mut self) -> (u64, session_response::Response) {
        let answer = tokio::time::timeout(WAIT_MAX, self.answers.message()).await;
        let answer = answer.unwrap().unwrap().unwrap();
        (answer.call, answer.response.unwrap())
    }
}

/// Of one stream only so many bytes of writes are under way. What its client sends behind them is not read before some are
/// answered; other streams go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_large_writes_under_way_is_read_no_further() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let endpoint = Endpoint::new(format!("http://{}", cluster.server(leader).address())).unwrap();
    let of_its_own = Streams::of_clients(WAIT_MAX, WAIT_MAX, WAIT_MAX);
    let mut greedy = Vec::new();
    for streams in [None, Some(of_its_own)] {
        greedy.push(Attendance::begin(Channel::connect_lazy(&endpoint, streams)).await);
    }
    let mut other = Attendance::begin(Channel::connect_lazy(&endpoint, None)).await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.server(*id).pause().await.unwrap();
    }
    let mut last = Vec::new();
    for stream in &mut greedy {
        for _ in 0..3 {
            stream.write().await;
        }
        let asked = stream.ask().await;
        assert_eq!(stream.next().await.0, asked, "three mebibytes leave room");
        for _ in 0..2 {
            stream.write().await;
        }
        last.push(stream.ask().await);
    }
    for _ in 0..100 {
        let asked = other.ask().await;
        assert_eq!(other.next().await.0, asked, "another stream goes on");
    }
    for stream in &mut greedy {
        let early = tokio::time::timeout(Duration::from_millis(200), stream.answers.message()).await;
        assert!(early.is_err(), "it was read on: {early:?}");
    }
    for id in &others {
        cluster.server(*id).resume().unwrap();
    }
    for (stream, last) in greedy.iter_mut().zip(last) {
        let mut answered = Vec::new();
        for _ in 0..6 {
            answered.push(stream.next().await.0);
        }
        let at = answered.iter().position(|call| *call == last);
        assert!(
            at > Some(0),
            "it was read before a write was answered: {answered:?}"
        );
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
}
