//! The storm switch of one server in this process, asked through real gRPC on loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::{Duration, Instant};

use prost::Message;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::{self, ErrorCode, watch_frame::Frame, watch_request, watch_target};
use support::alone::{self, Alone, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const EPOCH: Duration = Duration::from_millis(200);

async fn start() -> Alone {
    start_with(&[]).await
}

/// With further settings.
async fn start_with(settings: &[&str]) -> Alone {
    let of_all = [
        "storm.epoch=200ms",
        "storm.cold_per_second=1",
        "storm.cold_burst=1",
    ];
    alone::start(&[&of_all, settings].concat()).await
}

fn key() -> v1::ServiceKey {
    v1::ServiceKey {
        group: "default".into(),
        service: "web".into(),
    }
}

/// A sign that no list has.
fn other_sign() -> v1::Sign {
    v1::Sign { high: 1, low: 2 }
}

impl Alone {
    /// Registers a node.
    async fn register(&self, node: &str) {
        self.register_in(node, "", 0).await;
    }

    /// The same, in a zone, with so many bytes of metadata.
    async fn register_in(&self, node: &str, zone: &str, metadata_bytes: usize) {
        let registration = v1::Registration {
            id: node.into(),
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            metadata: [("filler".to_owned(), "x".repeat(metadata_bytes))].into(),
            addresses: vec![v1::Address {
                name: "http".into(),
                host: "127.0.0.1".into(),
                port: 80,
            }],
            kind: v1::NodeKind::Persistent.into(),
            ..Default::default()
        };
        let request = v1::RegisterRequest {
            nodes: vec![v1::RegisterNode {
                key: Some(key()),
                registration: Some(registration),
                ..Default::default()
            }],
            ..Default::default()
        };
        self.registry().register(request).await.unwrap();
    }

    async fn set(&self, mode: v1::StormMode) {
        let request = v1::SetStormRequest {
            mode: mode.into(),
            author: "ann".into(),
            reason: "the network flaps".into(),
            ..Default::default()
        };
        self.registry().set_storm(request).await.unwrap();
        let engaged = mode == v1::StormMode::On;
        let followed = async {
            // The server follows its own directory.
            while self.storm().await.records[0].engaged != engaged {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, followed).await.unwrap();
    }

    async fn storm(&self) -> v1::StormResponse {
        let request = v1::StormRequest::default();
        self.registry().storm(request).await.unwrap().into_inner()
    }

    async fn query(
        &self,
        consumer: &str,
        known_sign: Option<v1::Sign>,
    ) -> Result<v1::QueryResponse, tonic::Status> {
        let request = v1::QueryRequest {
            key: Some(key()),
            known_sign,
            consumer: consumer.into(),
            ..Default::default()
        };
        self.registry()
            .query(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn everyone_is_served_in_turn_and_nothing_else_is_shed() {
    let fixture = start().await;
    fixture.register("a:80").await;
    let sign = {
        let view = fixture.query("first", None).await.unwrap().view.unwrap();
        v1::ServiceView::decode(view).unwrap().sign
    };
    fixture.set(v1::StormMode::On).await;
    let storm = fixture.storm().await;
    let record = &storm.records[0];
    assert_eq!(
        (record.mode(), record.share_basis_points),
        (v1::StormMode::On, 1_000)
    );
    assert_eq!(
        (record.author.as_str(), record.reason.as_str()),
        ("ann", "the network flaps")
    );

    // An equal sign is no question.
    for consumer in 0..50 {
        let answer = fixture.query(&format!("equal-{consumer}"), sign).await.unwrap();
        assert!(answer.unchanged && answer.keep_cache_ms == 0);
    }
    // Others are served when it is their turn, which comes in each round.
    let mut kept = 0;
    let consumers = (0..60).map(|consumer| {
        let fixture = &fixture;
        async move {
            let consumer = format!("consumer-{consumer}");
            let mut kept = 0;
            loop {
                let answer = fixture.query(&consumer, Some(other_sign())).await.unwrap();
                if answer.view.is_some() {
                    return kept;
                }
                // A machine that is busy may have it miss a turn, and another.
                kept += 1;
                assert!(kept <= 10, "its turn never comes");
                let retry_after = Duration::from_millis(answer.keep_cache_ms.into());
                assert!(!retry_after.is_zero() && retry_after <= EPOCH * 10);
                tokio::time::sleep(retry_after).await;
            }
        }
    });
    for times in futures_util::future::join_all(consumers).await {
        kept += u64::from(times > 0);
    }
    assert!(kept >= 30, "{kept} of 60 had to wait");
    let storm = fixture.storm().await;
    assert!(storm.lists_kept >= kept && storm.lists_served >= 60, "{storm:?}");

    // Who holds nothing passes through the bucket, and is told to wait otherwise.
    let mut refused = 0;
    for consumer in 0..30 {
        if let Err(status) = fixture.query(&format!("cold-{consumer}"), None).await {
            let error = v1::Error::decode(status.details()).unwrap();
            assert_eq!(error.code(), ErrorCode::Overloaded);
            assert!(error.retry_after_ms > 0);
            refused += 1;
        }
    }
    assert!(refused >= 10, "{refused} of 30");

    // Writes are never shed.
    fixture.register("b:80").await;
    fixture.set(v1::StormMode::Off).await;
    for consumer in 0..30 {
        let answer = fixture.query(&format!("cold-{consumer}"), None).await.unwrap();
        assert!(answer.view.is_some());
    }
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_subscription_with_another_sign_starts_in_its_turn() {
    let fixture = start().await;
    fixture.register("a:80").await;
    fixture.set(v1::StormMode::On).await;
    let mut put_off = 0;
    for consumer in 0..8 {
        let (requests, stream) = mpsc::channel(4);
        let mut answers = WatchClient::new(fixture.channel.clone())
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        let mut subscription = 0;
        let mut ask = true;
        'asking: loop {
            if std::mem::take(&mut ask) {
                subscription += 1;
                let subscribe = v1::Subscribe {
                    subscription,
                    target: Some(v1::WatchTarget {
                        target: Some(watch_target::Target::Service(key())),
                    }),
                    known: vec![v1::KnownSign {
                        key: Some(key()),
                        sign: Some(other_sign()),
                        ..v1::KnownSign::default()
                    }],
                    ..v1::Subscribe::default()
                };
                let request = v1::WatchRequest {
                    request: Some(watch_request::Request::Subscribe(subscribe)),
                    client: "test".into(),
                    consumer: format!("watcher-{consumer}"),
                };
                requests.send(request).await.unwrap();
            }
            let message = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
            for frame in message.unwrap().unwrap().frames {
                match v1::WatchFrame::decode(frame).unwrap().frame.unwrap() {
                    Frame::KeepCache(keep) => {
                        assert_eq!(keep.subscription, subscription);
                        assert!(subscription < 4, "put off again and again");
                        put_off += 1;
                        tokio::time::sleep(Duration::from_millis(keep.retry_after_ms.into())).await;
                        ask = true;
                    }
                    Frame::Snapshot(snapshot) => assert_eq!(snapshot.view.unwrap().nodes.len(), 1),
                    Frame::Started(started) => {
                        assert_eq!(started.subscription, subscription);
                        break 'asking;
                    }
                    Frame::Bookmark(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert!(put_off > 0);
    fixture.server.shutdown().await;
}

/// A watch stream that has subscribed with the sign of another list, and what it was sent: frames, and their bytes.
struct Watcher {
    requests: mpsc::Sender<v1::WatchRequest>,
    answers: tonic::Streaming<v1::WatchResponse>,
    frames: u64,
    bytes: u64,
}

impl Watcher {
    async fn subscribe(fixture: &Alone, consumer: &str) -> Self {
        let (requests, stream) = mpsc::channel(4);
        let subscribe = v1::Subscribe {
            subscription: 1,
            target: Some(v1::WatchTarget {
                target: Some(watch_target::Target::Service(key())),
            }),
            known: vec![v1::KnownSign {
                key: Some(key()),
                sign: Some(other_sign()),
                ..v1::KnownSign::default()
            }],
            ..Default::default()
        };
        let request = v1::WatchRequest {
            request: Some(watch_request::Request::Subscribe(subscribe)),
            client: "test".into(),
            consumer: consumer.into(),
        };
        requests.send(request).await.unwrap();
        let answers = WatchClient::new(fixture.channel.clone())
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            answers,
            frames: 0,
            bytes: 0,
        }
    }

    async fn next(&mut self) -> Vec<Frame> {
        let message = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let frames = message.unwrap().unwrap().unwrap().frames;
        let decoded = frames.into_iter().map(|frame| {
            let bytes = frame.len() as u64;
            let frame = v1::WatchFrame::decode(frame).unwrap().frame.unwrap();
            if matches!(frame, Frame::Snapshot(_) | Frame::Delta(_)) {
                self.frames += 1;
                self.bytes += bytes;
            }
            frame
        });
        decoded.collect()
    }

    /// Reads until the subscription is live; false: it was put off.
    async fn started(&mut self) -> bool {
        loop {
            for frame in self.next().await {
                match frame {
                    Frame::Started(_) => return true,
                    Frame::KeepCache(_) => return false,
                    _ => {}
                }
            }
        }
    }
}

/// In how much time so many watchers that come together have their list.
async fn all_started(fixture: &Alone, watchers: usize) -> Duration {
    let began = Instant::now();
    let all = (0..watchers).map(|number| async move {
        let mut watcher = Watcher::subscribe(fixture, &format!("{number}")).await;
        assert!(watcher.started().await);
        assert!(watcher.bytes > 100_000);
    });
    futures_util::future::join_all(all).await;
    began.elapsed()
}

#[tokio::test]
async fn full_lists_leave_within_the_egress_budget_while_it_is_on_and_for_a_round_after_it() {
    // Rounds of ten epochs.
    let fixture = start_with(&[
        "storm.egress_bytes_per_second=1000000",
        "storm.lists_bytes_per_second=100000000",
        "storm.epoch=1s",
    ])
    .await;
    for node in 0..40 {
        fixture.register_in(&format!("n{node}:80"), "east", 3_000).await;
    }
    // A list has 120 kB. Off, twenty of them take a fortieth of a second, besides the work itself.
    // A machine that is busy may delay some of them.
    let mut off = Duration::MAX;
    for _ in 0..3 {
        off = off.min(all_started(&fixture, 20).await);
    }
    fixture.set(v1::StormMode::On).await;
    let mut put_off = 0;
    for number in 0..20 {
        let mut watcher = Watcher::subscribe(&fixture, &format!("{number}")).await;
        put_off += u32::from(!watcher.started().await);
    }
    assert!(put_off >= 10, "{put_off} of 20 had to wait");
    // Nobody has to wait for a turn any more, but all of them at once would be the second storm.
    fixture.set(v1::StormMode::Off).await;
    let after = all_started(&fixture, 20).await;
    assert!(after >= Duration::from_secs(2), "{after:?}, and {off:?} before");
    assert!(after > off * 2, "{after:?}, and {off:?} before");
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_rehearsal_predicts_what_is_sent() {
    let fixture = start().await;
    for node in 0..10 {
        let zone = if node < 4 { "east" } else { "west" };
        fixture.register_in(&format!("n{node}:80"), zone, 500).await;
    }
    let mut watchers = Vec::new();
    for number in 0..5 {
        let mut watcher = Watcher::subscribe(&fixture, &format!("{number}")).await;
        assert!(watcher.started().await);
        watchers.push(watcher);
    }
    let rehearse = |subject, event: v1::RehearsedEvent| {
        let request = v1::RehearseStormRequest {
            subject: Some(subject),
            event: event.into(),
            share_basis_points: 0,
        };
        let mut client = v1::cluster_client::ClusterClient::new(fixture.channel.clone());
        async move {
            let answer = client.rehearse_storm(request).await;
            answer.map(tonic::Response::into_inner)
        }
    };
    let service = |name: &str| {
        v1::rehearse_storm_request::Subject::Service(v1::ServiceKey {
            service: name.into(),
            ..key()
        })
    };
    let zone = |zone: &str| v1::rehearse_storm_request::Subject::Zone(zone.into());
    // A frame's place in a message costs six bytes, and numbers in frames differ in length.
    let near = |predicted: u64, frames: u64, sent: u64| {
        let least = sent + frames * 6;
        assert!(
            (least..=least + frames * 16).contains(&predicted),
            "{predicted}, and {sent} in {frames} frames"
        );
    };

    let refetch = rehearse(service("web"), v1::RehearsedEvent::Refetch)
        .await
        .unwrap();
    assert_eq!((refetch.services, refetch.nodes, refetch.watchers), (1, 10, 5));
    assert_eq!((refetch.frames_off, refetch.bytes_on), (5, refetch.bytes_off));
    assert_eq!(refetch.spread_on_ms, 2_000);
    near(
        refetch.bytes_off,
        5,
        watchers.iter().map(|watcher| watcher.bytes).sum(),
    );

    let loss = rehearse(zone("east"), v1::RehearsedEvent::Loss).await.unwrap();
    assert_eq!((loss.services, loss.nodes, loss.watchers), (1, 4, 5));
    assert_eq!((loss.frames_off, loss.frames_on), (20, 5));
    let (frames, bytes): (Vec<_>, Vec<_>) = watchers
        .iter()
        .map(|watcher| (watcher.frames, watcher.bytes))
        .unzip();
    for node in 0..4 {
        let request = v1::DeregisterRequest {
            nodes: vec![v1::DeregisterNode {
                key: Some(v1::NodeKey {
                    group: key().group,
                    service: key().service,
                    node: format!("n{node}:80"),
                }),
                expected: None,
            }],
            ..Default::default()
        };
        fixture.registry().deregister(request).await.unwrap();
    }
    let mut sent = 0;
    for (watcher, (frames, bytes)) in watchers.iter_mut().zip(frames.into_iter().zip(bytes)) {
        while watcher.frames < frames + 4 {
            watcher.next().await;
        }
        sent += watcher.bytes - bytes;
        assert!(!watcher.requests.is_closed());
    }
    near(loss.bytes_off, 20, sent);
    assert!(loss.bytes_on < loss.bytes_off);

    let restart = rehearse(service("web"), v1::RehearsedEvent::Restart)
        .await
        .unwrap();
    assert_eq!(
        (restart.nodes, restart.frames_off, restart.frames_on),
        (6, 60, 10)
    );
    let nobody = rehearse(zone("nowhere"), v1::RehearsedEvent::Loss).await.unwrap();
    assert_eq!((nobody.services, nobody.watchers, nobody.bytes_off), (0, 0, 0));

    for (subject, event, code) in [
        (
            service("absent"),
            v1::RehearsedEvent::Loss,
            ErrorCode::ServiceNotFound,
        ),
        (zone(""), v1::RehearsedEvent::Loss, ErrorCode::InvalidArgument),
        (
            zone("east"),
            v1::RehearsedEvent::Unspecified,
            ErrorCode::InvalidArgument,
        ),
    ] {
        let status = rehearse(subject, event).await.unwrap_err();
        assert_eq!(v1::Error::decode(status.details()).unwrap().code(), code);
    }
    fixture.server.shutdown().await;
}
