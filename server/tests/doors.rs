//! One server in this process, asked through real gRPC and HTTP on loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::{
    self, ErrorCode, cluster_client::ClusterClient, session_request::Request, session_response::Response,
    watch_frame::Frame, watch_request, watch_target,
};
use rollcall_server::config::Preset;
use rollcall_server::server::{Server, StartError};
use support::alone::{
    Alone, MESSAGE_BYTES_MAX, PATIENCE, config, key, node, persistent, query, register, start,
    start_for_both_ways, start_in, view,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

impl Alone {
    async fn attend(&self) -> Attendance {
        let (requests, stream) = mpsc::channel(1_024);
        let answers = SessionsClient::new(self.channel.clone())
            .attend(ReceiverStream::new(stream))
            .await
            .unwrap();
        Attendance {
            requests,
            answers: answers.into_inner(),
            call: 0,
        }
    }

    async fn watch(&self, subscriptions: Vec<v1::Subscribe>) -> Watching {
        let (requests, stream) = mpsc::channel(64);
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answers = client
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        for subscription in subscriptions {
            let request = Some(watch_request::Request::Subscribe(subscription));
            requests
                .send(v1::WatchRequest {
                    request,
                    client: "test".into(),
                    ..v1::WatchRequest::default()
                })
                .await
                .unwrap();
        }
        Watching {
            _requests: requests,
            answers,
            frames: Default::default(),
        }
    }
}

struct Attendance {
    requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    call: u64,
}

impl Attendance {
    async fn send(&mut self, session: u64, request: Request) -> u64 {
        self.call += 1;
        let message = v1::SessionRequest {
            call: self.call,
            session,
            request: Some(request),
        };
        self.requests.send(message).await.unwrap();
        self.call
    }

    async fn next(&mut self) -> (u64, Response) {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message())
            .await
            .expect("an answer");
        let answer = answer.unwrap().expect("the stream goes on");
        (answer.call, answer.response.unwrap())
    }

    async fn ask(&mut self, session: u64, request: Request) -> Response {
        let call = self.send(session, request).await;
        let (answered, response) = self.next().await;
        assert_eq!(answered, call);
        response
    }

    async fn open(&mut self, ttl_ms: u64) -> v1::Opened {
        let open = v1::OpenSession {
            ttl_ms,
            client: "doors test".into(),
            ..Default::default()
        };
        match self.ask(0, Request::Open(open)).await {
            Response::Opened(opened) => opened,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self, session: u64, request: Request) -> ErrorCode {
        match self.ask(session, request).await {
            Response::Error(error) => error.code(),
            other => panic!("{other:?}"),
        }
    }
}

struct Watching {
    _requests: mpsc::Sender<v1::WatchRequest>,
    answers: Streaming<v1::WatchResponse>,
    frames: std::collections::VecDeque<Frame>,
}

impl Watching {
    async fn next(&mut self) -> Frame {
        while self.frames.is_empty() {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message())
                .await
                .expect("a frame");
            for bytes in answer.unwrap().expect("the stream goes on").frames {
                self.frames.extend(v1::WatchFrame::decode(bytes).unwrap().frame);
            }
        }
        self.frames.pop_front().unwrap()
    }

    /// The next frame that is no bookmark.
    async fn news(&mut self) -> Frame {
        loop {
            match self.next().await {
                Frame::Bookmark(_) => {}
                other => return other,
            }
        }
    }
}

fn node_key(service: &str, node: &str) -> Option<v1::NodeKey> {
    Some(v1::NodeKey {
        group: "default".into(),
        service: service.into(),
        node: node.into(),
    })
}

fn follow(subscription: u64, service: &str) -> v1::Subscribe {
    let target = watch_target::Target::Service(key(service).unwrap());
    v1::Subscribe {
        subscription,
        target: Some(v1::WatchTarget { target: Some(target) }),
        ..Default::default()
    }
}

fn error(status: &Status) -> v1::Error {
    assert!(!status.details().is_empty(), "no typed error in {status:?}");
    v1::Error::decode(status.details()).unwrap()
}

#[tokio::test]
async fn a_session_registers_is_watched_renews_and_ends() {
    for fixture in start_for_both_ways(&[]).await {
        a_session_registers_is_watched_renews_and_ends_at(fixture).await;
    }
}

async fn a_session_registers_is_watched_renews_and_ends_at(fixture: Alone) {
    let mut watching = fixture.watch(vec![follow(1, "web")]).await;
    let Frame::Started(started) = watching.news().await else {
        panic!()
    };
    assert!(started.services.is_empty() && started.kind() == v1::StartKind::Current);

    let mut stream = fixture.attend().await;
    let opened = stream.open(1).await;
    assert!(
        opened.clamped
            && opened.ttl_ms == 2_000
            && opened.ttl_min_ms == 2_000
            && opened.ttl_max_ms == 600_000
    );
    assert_eq!(opened.secret.len(), 16);
    let Response::Written(written) = stream
        .ask(
            opened.session,
            Request::Register(register(vec![node("web", 80), node("web", 81)])),
        )
        .await
    else {
        panic!()
    };
    assert!(written.changed);
    let Frame::Delta(delta) = watching.news().await else {
        panic!()
    };
    assert!(delta.created && delta.put.len() == 2 && delta.revision == written.revision);
    assert_eq!(delta.put[0].id, "10.0.0.1:80");

    let Response::Renewed(renewed) = stream
        .ask(opened.session, Request::Renew(v1::Renew::default()))
        .await
    else {
        panic!()
    };
    assert_eq!(
        (renewed.sessions, renewed.not_found),
        (vec![opened.session], vec![])
    );

    let listed = SessionsClient::new(fixture.channel.clone())
        .list_sessions(v1::ListSessionsRequest::default())
        .await;
    let summary = listed.unwrap().into_inner().sessions.pop().unwrap();
    assert_eq!(
        (summary.session, summary.nodes, summary.ttl_ms),
        (opened.session, 2, 2_000)
    );
    assert!(summary.lapses_in_ms > 0 && summary.holder == 1, "{summary:?}");

    let Response::Written(_) = stream
        .ask(opened.session, Request::Close(v1::CloseSession::default()))
        .await
    else {
        panic!()
    };
    let Frame::Delta(delta) = watching.news().await else {
        panic!()
    };
    assert_eq!(delta.removed.len(), 2);
    assert_eq!(delta.removed[0].cause(), v1::RemovalCause::SessionClosed);
    assert_eq!(
        stream
            .refused(opened.session, Request::Renew(v1::Renew::default()))
            .await,
        ErrorCode::SessionForeign
    );
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_stream_has_so_many_sessions_also_if_they_are_asked_for_at_once() {
    let fixture = start(&["session.per_stream_max=2"]).await;
    let mut stream = fixture.attend().await;
    for _ in 0..6 {
        stream.send(0, Request::Open(v1::OpenSession::default())).await;
    }
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        match stream.next().await.1 {
            Response::Opened(session) => opened.push(session.session),
            Response::Error(error) => refused.push(error.code()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((opened.len(), refused), (2, vec![ErrorCode::TooLarge; 4]));
    // And a heartbeat names no more than there can be.
    let renew = |sessions: &[u64]| {
        Request::Renew(v1::Renew {
            sessions: sessions.to_vec(),
        })
    };
    let answer = stream.ask(opened[0], renew(&opened)).await;
    assert!(matches!(answer, Response::Renewed(renewed) if renewed.sessions.len() == 2));
    let too_many = [opened[0]; 3];
    assert_eq!(
        stream.refused(opened[0], renew(&too_many)).await,
        ErrorCode::TooLarge
    );
    // Who leaves makes room.
    let closed = stream
        .ask(opened[0], Request::Close(v1::CloseSession::default()))
        .await;
    assert!(matches!(closed, Response::Written(_)), "{closed:?}");
    stream.open(0).await;
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_session_moves_to_another_stream_with_its_secret_only() {
    let fixture = start(&[]).await;
    let mut first = fixture.attend().await;
    let opened = first.open(0).await;
    assert_eq!((opened.ttl_ms, opened.clamped), (15_000, false));
    first
        .ask(opened.session, Request::Register(register(vec![node("web", 80)])))
        .await;

    let mut second = fixture.attend().await;
    let renew = || Request::Renew(v1::Renew::default());
    let attach = |secret: Bytes| Request::Attach(v1::AttachSession { secret });
    assert_eq!(
        second.refused(opened.session, renew()).await,
        ErrorCode::SessionForeign
    );
    let update = Request::Register(register(vec![node("web", 81)]));
    assert_eq!(
        second.refused(opened.session, update).await,
        ErrorCode::SessionForeign
    );
    assert_eq!(
        second
            .refused(opened.session, attach(Bytes::from(vec![0; 16])))
            .await,
        ErrorCode::SessionForeign
    );
    assert_eq!(
        second
            .refused(opened.session, attach(Bytes::from(vec![0; 3])))
            .await,
        ErrorCode::InvalidArgument
    );
    assert_eq!(
        second.refused(999, attach(opened.secret.clone())).await,
        ErrorCode::SessionNotFound
    );
    drop(first);
    let Response::Attached(attached) = second.ask(opened.session, attach(opened.secret.clone())).await else {
        panic!()
    };
    assert_eq!((attached.nodes.len(), attached.ttl_ms), (1, 15_000));
    let Response::Renewed(_) = second.ask(opened.session, renew()).await else {
        panic!()
    };

    // A tool proves the session by its secret.
    let proof = |secret: Bytes| {
        Some(v1::SessionProof {
            session: opened.session,
            secret,
        })
    };
    let mut request = register(vec![node("web", 82)]);
    request.proof = proof(opened.secret.clone());
    fixture.registry().register(request.clone()).await.unwrap();
    request.proof = proof(Bytes::from(vec![1; 16]));
    let refused = fixture.registry().register(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), error(&refused).code()),
        (Code::PermissionDenied, ErrorCode::SessionForeign)
    );
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn requests_on_a_stream_are_pipelined_and_answered_by_number() {
    for fixture in start_for_both_ways(&[]).await {
        requests_on_a_stream_are_pipelined_and_answered_by_number_at(fixture).await;
    }
}

async fn requests_on_a_stream_are_pipelined_and_answered_by_number_at(fixture: Alone) {
    let mut stream = fixture.attend().await;
    let session = stream.open(0).await.session;
    let mut waiting = std::collections::BTreeSet::new();
    for port in 1..=600 {
        waiting.insert(
            stream
                .send(session, Request::Register(register(vec![node("web", port)])))
                .await,
        );
    }
    while !waiting.is_empty() {
        let (call, response) = stream.next().await;
        assert!(waiting.remove(&call), "call {call} was answered twice");
        assert!(matches!(response, Response::Written(_)), "{response:?}");
    }
    let view = view(fixture.registry().query(query("web")).await.unwrap().into_inner());
    assert_eq!(view.nodes.len(), 600);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn reads_say_how_fresh_they_are_and_refuse_what_is_too_old() {
    let fixture = start(&[]).await;
    let mut registry = fixture.registry();
    let written = registry
        .register(register(vec![persistent("web", 80)]))
        .await
        .unwrap()
        .into_inner();
    for mode in [
        v1::ReadMode::Unspecified,
        v1::ReadMode::Linearizable,
        v1::ReadMode::Leased,
        v1::ReadMode::Local,
    ] {
        let read = Some(v1::ReadOptions {
            mode: mode.into(),
            min_revision: written.revision,
            ..Default::default()
        });
        let answer = registry
            .query(v1::QueryRequest { read, ..query("web") })
            .await
            .unwrap()
            .into_inner();
        let header = answer.header.clone().unwrap();
        let told = if mode == v1::ReadMode::Unspecified {
            v1::ReadMode::Linearizable
        } else {
            mode
        };
        assert_eq!(
            (header.read_mode(), header.server, header.cluster.as_str()),
            (told, 1, "rollcall")
        );
        assert!(header.revision >= written.revision && header.term > 0);
        assert_eq!(view(answer).nodes.len(), 1);
    }
    let sign = view(registry.query(query("web")).await.unwrap().into_inner()).sign;
    let answer = registry
        .query(v1::QueryRequest {
            known_sign: sign,
            ..query("web")
        })
        .await
        .unwrap()
        .into_inner();
    assert!(answer.unchanged && answer.view.is_none());

    // Metadata is no part of the sign: who holds other metadata is told all the same.
    let metadata = BTreeMap::from([("about".to_owned(), "ranking".to_owned())]);
    let hash = rollcall_proto::metadata_hash([("about", "ranking")]);
    let put = v1::PutServiceRequest {
        key: key("web"),
        settings: Some(v1::ServiceSettings {
            metadata,
            ..Default::default()
        }),
        ..Default::default()
    };
    registry.put_service(put).await.unwrap();
    for (known_metadata_hash, unchanged) in [(0, false), (hash, true), (hash ^ 1, false)] {
        let known = v1::QueryRequest {
            known_sign: sign,
            known_metadata_hash,
            ..query("web")
        };
        let answer = registry.query(known).await.unwrap().into_inner();
        assert_eq!(answer.unchanged, unchanged);
        assert_eq!(answer.view.is_some(), !unchanged);
    }
    let asked = v1::SignsRequest {
        keys: key("web").into_iter().collect(),
        ..Default::default()
    };
    let signs = registry.signs(asked).await.unwrap().into_inner().signs;
    assert_eq!((signs[0].sign, signs[0].metadata_hash), (sign, hash));

    let read = Some(v1::ReadOptions {
        max_age_ms: 10_000,
        mode: v1::ReadMode::Local.into(),
        ..Default::default()
    });
    let answer = registry
        .query(v1::QueryRequest { read, ..query("web") })
        .await
        .unwrap()
        .into_inner();
    assert!(answer.header.unwrap().age_ms <= 10_000);
    fixture.server.shutdown().await;

    // One that does not wait for long.
    let fixture = start(&["doors.read_timeout=1s"]).await;
    let mut registry = fixture.registry();
    let written = registry
        .register(register(vec![persistent("web", 80)]))
        .await
        .unwrap()
        .into_inner();
    let read = Some(v1::ReadOptions {
        min_revision: written.revision + 1_000,
        ..Default::default()
    });
    let refused = registry
        .query(v1::QueryRequest { read, ..query("web") })
        .await
        .unwrap_err();
    assert_eq!(error(&refused).code(), ErrorCode::TooStale);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn every_bad_request_has_a_typed_error_and_changes_nothing() {
    let fixture = start(&[]).await;
    let mut registry = fixture.registry();
    registry
        .register(register(vec![persistent("web", 80)]))
        .await
        .unwrap();
    let before = registry
        .query(query("web"))
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision;

    let spoil = |spoil: fn(&mut v1::RegisterNode)| {
        let mut node = persistent("web", 81);
        spoil(&mut node);
        register(vec![persistent("web", 82), node])
    };
    let cases = [
        (
            spoil(|n| n.key.as_mut().unwrap().group = "nowhere".into()),
            ErrorCode::GroupNotFound,
        ),
        (
            spoil(|n| n.key.as_mut().unwrap().group = "no where".into()),
            ErrorCode::InvalidName,
        ),
        (
            spoil(|n| n.key.as_mut().unwrap().service = "x".repeat(129)),
            ErrorCode::InvalidName,
        ),
        (
            spoil(|n| n.registration.as_mut().unwrap().weight = Some(70_000)),
            ErrorCode::InvalidArgument,
        ),
        (
            spoil(|n| n.registration.as_mut().unwrap().addresses.clear()),
            ErrorCode::InvalidArgument,
        ),
        (spoil(|n| n.registration = None), ErrorCode::InvalidArgument),
        (
            spoil(|n| {
                let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(4_096))]);
                n.registration.as_mut().unwrap().metadata = metadata;
            }),
            ErrorCode::TooLarge,
        ),
        (
            spoil(|n| {
                n.expected = Some(v1::Expected {
                    condition: Some(v1::expected::Condition::Revision(7)),
                })
            }),
            ErrorCode::NodeNotFound,
        ),
        (
            spoil(|n| n.registration.as_mut().unwrap().kind = v1::NodeKind::Ephemeral.into()),
            ErrorCode::InvalidArgument,
        ),
        (
            register((0..1_001).map(|port| persistent("web", port)).collect()),
            ErrorCode::TooLarge,
        ),
        (
            register(
                (0..300)
                    .map(|port| {
                        let mut node = persistent("web", port);
                        let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(4_000))]);
                        node.registration.as_mut().unwrap().metadata = metadata;
                        node
                    })
                    .collect(),
            ),
            ErrorCode::TooLarge,
        ),
        (
            v1::RegisterRequest {
                options: Some(v1::WriteOptions {
                    request_id: Bytes::from_static(b"short"),
                    ..Default::default()
                }),
                ..register(vec![persistent("web", 81)])
            },
            ErrorCode::InvalidArgument,
        ),
    ];
    for (at, (request, expected)) in cases.into_iter().enumerate() {
        let status = registry.register(request).await.unwrap_err();
        let error = error(&status);
        assert_eq!(error.code(), expected, "case {at}: {error:?}");
        assert_eq!(error.effect(), v1::Effect::None);
    }

    let stale = v1::UpdateNode {
        key: node_key("web", "10.0.0.1:80"),
        expected: Some(v1::Expected {
            condition: Some(v1::expected::Condition::Revision(1)),
        }),
        weight: Some(1),
        ..Default::default()
    };
    let refused = registry
        .update(v1::UpdateRequest {
            nodes: vec![stale],
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), error(&refused).code()),
        (Code::Aborted, ErrorCode::RevisionMismatch)
    );
    assert!(error(&refused).current_revision > 0);
    let refused = registry.query(query("nothing")).await.unwrap_err();
    assert_eq!(
        (refused.code(), error(&refused).code()),
        (Code::NotFound, ErrorCode::ServiceNotFound)
    );
    let settings = Some(v1::GroupSettings {
        mode: v1::GroupMode::Ap.into(),
        ..Default::default()
    });
    // A put does not move a group from one mode to the other.
    let group = v1::PutGroupRequest {
        group: "default".into(),
        settings,
        ..Default::default()
    };
    let refused = error(&registry.put_group(group).await.unwrap_err());
    assert_eq!(
        (refused.code(), refused.subject.as_str()),
        (ErrorCode::InvalidArgument, "settings.mode")
    );
    let group = v1::DeleteGroupRequest {
        group: "default".into(),
        ..Default::default()
    };
    assert_eq!(
        error(&registry.delete_group(group).await.unwrap_err()).code(),
        ErrorCode::NotEmpty
    );
    let keys = vec![key("web").unwrap(); 1_001];
    let signs = v1::SignsRequest {
        keys,
        ..Default::default()
    };
    assert_eq!(
        error(&registry.signs(signs).await.unwrap_err()).code(),
        ErrorCode::TooLarge
    );

    let after = registry.query(query("web")).await.unwrap().into_inner();
    assert_eq!(
        after.header.as_ref().unwrap().revision,
        before,
        "a refusal changed something"
    );
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_request_id_is_applied_once_and_not_lent_to_another_request() {
    let fixture = start(&[]).await;
    let mut registry = fixture.registry();
    let options = Some(v1::WriteOptions {
        request_id: Bytes::from_static(&[7; 16]),
        ..Default::default()
    });
    let request = v1::RegisterRequest {
        options: options.clone(),
        ..register(vec![persistent("web", 80)])
    };
    let first = registry.register(request.clone()).await.unwrap().into_inner();
    let again = registry.register(request).await.unwrap().into_inner();
    assert!(!first.repeated && again.repeated);
    assert_eq!(first.revision, again.revision);
    let other = v1::RegisterRequest {
        options,
        ..register(vec![persistent("web", 81)])
    };
    let refused = registry.register(other).await.unwrap_err();
    assert_eq!(error(&refused).code(), ErrorCode::RequestIdReused);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn listings_come_in_pages_and_explain_says_why() {
    let fixture = start(&[]).await;
    let mut registry = fixture.registry();
    registry
        .register(register(
            (0..5).map(|i| persistent(&format!("s{i}"), 80)).collect(),
        ))
        .await
        .unwrap();
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = v1::ListServicesRequest {
            limit: 2,
            after: after.clone(),
            ..Default::default()
        };
        let page = registry.list_services(page).await.unwrap().into_inner();
        after = page.services.last().and_then(|service| service.key.clone());
        names.extend(
            page.services
                .into_iter()
                .map(|service| service.key.unwrap().service),
        );
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["s0", "s1", "s2", "s3", "s4"]);

    let over = v1::Override {
        disabled: Some(true),
        reason: "bad disk".into(),
        author: "ops".into(),
        ..Default::default()
    };
    let request = v1::SetOverrideRequest {
        key: node_key("s0", "10.0.0.1:80"),
        r#override: Some(over),
        ..Default::default()
    };
    registry.set_override(request).await.unwrap();
    let explain = |node: &str| v1::ExplainRequest {
        key: node_key("s0", node),
        read: None,
    };
    let answer = registry
        .explain(explain("10.0.0.1:80"))
        .await
        .unwrap()
        .into_inner();
    assert!(answer.listed && answer.node.unwrap().disabled);
    assert!(
        answer.reasons.iter().any(|reason| reason.contains("bad disk")),
        "{:?}",
        answer.reasons
    );
    let answer = registry.explain(explain("gone:1")).await.unwrap().into_inner();
    assert!(!answer.listed && answer.reasons[0].contains("not registered"));
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_service_larger_than_four_mebibytes_is_read_and_watched() {
    for fixture in start_for_both_ways(&[]).await {
        a_service_larger_than_four_mebibytes_is_read_and_watched_at(fixture).await;
    }
}

async fn a_service_larger_than_four_mebibytes_is_read_and_watched_at(fixture: Alone) {
    let mut registry = fixture.registry();
    for batch in 0..8 {
        let nodes = (0..200).map(|i| {
            let mut node = persistent("big", batch * 200 + i + 1);
            let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(4_000))]);
            node.registration.as_mut().unwrap().metadata = metadata;
            node
        });
        registry.register(register(nodes.collect())).await.unwrap();
    }
    let view = view(registry.query(query("big")).await.unwrap().into_inner());
    assert_eq!(view.nodes.len(), 1_600);
    assert!(view.encoded_len() > 4 << 20);
    let mut watching = fixture.watch(vec![follow(1, "big")]).await;
    let Frame::Snapshot(snapshot) = watching.news().await else {
        panic!()
    };
    assert_eq!(snapshot.view.unwrap().nodes.len(), 1_600);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_stops_gets_the_current_state_and_slows_nobody() {
    for fixture in start_for_both_ways(&["watch.backlog_frames=16"]).await {
        a_reader_that_stops_gets_the_current_state_and_slows_nobody_at(fixture).await;
    }
}

async fn a_reader_that_stops_gets_the_current_state_and_slows_nobody_at(fixture: Alone) {
    let mut stopped = fixture.watch(vec![follow(1, "web")]).await;
    assert!(matches!(stopped.news().await, Frame::Started(_)));
    let mut reading = fixture.watch(vec![follow(1, "web")]).await;
    assert!(matches!(reading.news().await, Frame::Started(_)));
    // More than the windows of a connection hold, so that the stopped reader is a stopped reader.
    let mut last = 0;
    for round in 0..1_200 {
        let mut node = persistent("web", 80);
        let metadata = BTreeMap::from([("k".to_owned(), format!("{round:04000}"))]);
        node.registration.as_mut().unwrap().metadata = metadata;
        let written = fixture.registry().register(register(vec![node])).await.unwrap();
        last = written.get_ref().revision;
        let Frame::Delta(delta) = reading.news().await else {
            panic!("the reader was made to wait")
        };
        assert_eq!(delta.revision, last);
    }
    let mut seen = 0;
    let mut lagged = 0;
    while seen < last {
        match stopped.news().await {
            Frame::Delta(delta) => {
                assert!(delta.revision > seen);
                seen = delta.revision;
            }
            Frame::Snapshot(snapshot) => {
                assert!(snapshot.lagged && snapshot.revision > seen);
                (seen, lagged) = (snapshot.revision, lagged + 1);
                let metadata = &snapshot.view.unwrap().nodes[0].metadata["k"];
                assert!(seen < last || *metadata == format!("{:04000}", 1_199));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(lagged > 0, "it kept up, so nothing was shown");
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn bad_subscriptions_are_rejected_and_the_stream_goes_on() {
    let fixture = start(&["watch.catch_up_wait=100ms"]).await;
    fixture
        .registry()
        .register(register(vec![persistent("web", 80)]))
        .await
        .unwrap();
    let nameless = v1::Subscribe {
        subscription: 4,
        ..Default::default()
    };
    let ahead = v1::Subscribe {
        after_revision: 1 << 40,
        ..follow(5, "web")
    };
    let subscriptions = vec![
        follow(0, "web"),
        follow(1, "web"),
        follow(1, "web"),
        nameless,
        ahead,
        follow(6, "b d"),
    ];
    let mut watching = fixture.watch(subscriptions).await;
    let mut rejected = Vec::new();
    let mut started = 0;
    while rejected.len() < 5 {
        match watching.news().await {
            Frame::Rejected(r) => rejected.push((r.subscription, r.error.unwrap().code())),
            Frame::Started(_) => started += 1,
            Frame::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(started, 1);
    assert_eq!(
        rejected,
        [
            (0, ErrorCode::InvalidArgument),
            (1, ErrorCode::AlreadyExists),
            (4, ErrorCode::InvalidArgument),
            (5, ErrorCode::NotReady),
            (6, ErrorCode::InvalidName)
        ]
    );
    fixture
        .registry()
        .register(register(vec![persistent("web", 81)]))
        .await
        .unwrap();
    assert!(matches!(watching.news().await, Frame::Delta(_)));
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn one_address_opens_only_so_many_sessions() {
    let fixture = start(&["doors.sessions_per_second=1", "doors.sessions_burst=2"]).await;
    let mut stream = fixture.attend().await;
    stream.open(0).await;
    stream.open(0).await;
    let mut refusal = None;
    // A machine that is busy may take so long that there is leave for another.
    for _ in 0..10 {
        let open = Request::Open(v1::OpenSession::default());
        if let Response::Error(error) = stream.ask(0, open).await {
            refusal = Some(error);
            break;
        }
    }
    let error = refusal.expect("one of many is refused");
    assert_eq!(error.code(), ErrorCode::Overloaded);
    assert!(error.retry_after_ms > 0);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn pages_tell_health_metrics_and_version() {
    let fixture = start(&[]).await;
    assert!(fixture.page("/livez").await.starts_with("HTTP/1.1 200"));
    let ready = fixture.page("/readyz?verbose").await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("[+] leader ok") && ready.ends_with("ready\n"),
        "{ready}"
    );
    let metrics = fixture.page("/metrics").await;
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    for line in ["rollcall_raft_leading 1", "rollcall_directory_groups 1", "# EOF"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert!(fixture.page("/version").await.contains(env!("CARGO_PKG_VERSION")));
    assert!(fixture.page("/nothing").await.starts_with("HTTP/1.1 404"));

    let status = ClusterClient::new(fixture.channel.clone())
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        status.ready && status.leader == 1 && status.role() == v1::MemberRole::Leader,
        "{status:?}"
    );
    assert_eq!(status.state_hash.len(), 16);
    let members = ClusterClient::new(fixture.channel.clone())
        .members(v1::MembersRequest {})
        .await
        .unwrap();
    let member = &members.get_ref().members[0];
    assert_eq!(
        member.client_address,
        fixture.server.addresses().client.to_string()
    );
    assert!(member.voter);

    let request = tonic_health::pb::HealthCheckRequest {
        service: String::new(),
    };
    let mut health = tonic_health::pb::health_client::HealthClient::new(fixture.channel.clone());
    let serving = async {
        while health.check(request.clone()).await.unwrap().into_inner().status != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, serving)
        .await
        .expect("health says serving");
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_closing_server_moves_its_clients_on_and_keeps_what_it_acknowledged() {
    for fixture in start_for_both_ways(&[]).await {
        a_closing_server_moves_its_clients_on_and_keeps_what_it_acknowledged_at(fixture).await;
    }
}

async fn a_closing_server_moves_its_clients_on_and_keeps_what_it_acknowledged_at(fixture: Alone) {
    let mut stream = fixture.attend().await;
    let opened = stream.open(60_000).await;
    stream
        .ask(opened.session, Request::Register(register(vec![node("web", 80)])))
        .await;
    let mut watching = fixture.watch(vec![follow(1, "web")]).await;
    assert!(matches!(watching.news().await, Frame::Snapshot(_)));
    assert!(matches!(watching.news().await, Frame::Started(_)));
    let Alone { server, folder, .. } = fixture;
    let closing = tokio::spawn(server.shutdown());
    let (call, response) = stream.next().await;
    assert!(call == 0 && matches!(response, Response::Move(_)), "{response:?}");
    assert!(matches!(watching.news().await, Frame::MoveOn(_)));
    assert!(
        tokio::time::timeout(PATIENCE, watching.answers.message())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
    tokio::time::timeout(PATIENCE, closing)
        .await
        .expect("it closes in time")
        .unwrap();

    let config = config(folder.path(), &[]);
    let fixture = start_in(folder, config).await;
    let view = view(fixture.registry().query(query("web")).await.unwrap().into_inner());
    assert_eq!((view.nodes.len(), view.nodes[0].session), (1, opened.session));
    let mut stream = fixture.attend().await;
    let attach = Request::Attach(v1::AttachSession {
        secret: opened.secret,
    });
    assert!(matches!(
        stream.ask(opened.session, attach).await,
        Response::Attached(_)
    ));
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_used_port_and_an_unusable_folder_are_named() {
    let fixture = start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let mut used = config(folder.path(), &[]);
    used.listen.http = fixture.server.addresses().http;
    let problem = Server::start(used, Preset::None).await.err().unwrap();
    assert!(matches!(problem, StartError::Listen(_)));
    let problem = problem.to_string();
    assert!(
        problem.contains("--listen-http") && problem.contains(&fixture.server.addresses().http.to_string()),
        "{problem}"
    );
    assert!(!folder.path().join("data").exists(), "something was left behind");

    std::fs::write(folder.path().join("file"), "x").unwrap();
    let mut unusable = config(folder.path(), &[]);
    unusable.storage.data = folder.path().join("file").join("data");
    let problem = Server::start(unusable, Preset::None)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        problem.contains("RC-101") && problem.contains("file/data"),
        "{problem}"
    );

    // Another server's folder, and another cluster's.
    let mut foreign = config(fixture.folder.path(), &[]);
    fixture.server.shutdown().await;
    foreign.cluster.name = "another".into();
    let problem = Server::start(foreign, Preset::None)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        problem.contains("RC-102") && problem.contains("another"),
        "{problem}"
    );
}
