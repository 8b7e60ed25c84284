//! Queries on a stream, asked of one server in this process.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use rollcall_proto::v1::discover_response::Answer;
use rollcall_proto::v1::{self, ErrorCode, ReadMode};
use support::alone::{self, Alone, PATIENCE, persistent, query_by, register, view};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// No server gets there by itself.
const FAR: u64 = 1_000_000;

/// A server with one node in each of the services `web` and `api`.
async fn start(settings: &[&str]) -> Alone {
    let alone = alone::start(settings).await;
    for service in ["web", "api"] {
        alone.register(service, 80).await.unwrap();
    }
    alone
}

impl Alone {
    /// The revision at which it is registered.
    async fn register(&self, service: &str, port: u32) -> Result<u64, tonic::Status> {
        let request = register(vec![persistent(service, port)]);
        let written = self.registry().register(request).await?;
        Ok(written.into_inner().revision)
    }

    async fn discover(&self) -> Asker {
        let (requests, outgoing) = mpsc::channel(64);
        let mut registry = self.registry();
        let answers = registry.discover(ReceiverStream::new(outgoing)).await.unwrap();
        Asker {
            requests,
            answers: answers.into_inner(),
        }
    }
}

/// The client's end of a stream.
struct Asker {
    requests: mpsc::Sender<v1::DiscoverRequest>,
    answers: Streaming<v1::DiscoverResponse>,
}

impl Asker {
    async fn ask(&self, call: u64, query: v1::QueryRequest) {
        self.ask_for(call, query, 0).await;
    }

    async fn ask_for(&self, call: u64, query: v1::QueryRequest, timeout_ms: u32) {
        let request = v1::DiscoverRequest {
            call,
            query: Some(query),
            timeout_ms,
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> (u64, Answer) {
        let message = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let message = message
            .expect("an answer in time")
            .unwrap()
            .expect("the stream goes on");
        (message.call, message.answer.unwrap())
    }

    async fn found(&mut self) -> (u64, v1::QueryResponse) {
        match self.next().await {
            (call, Answer::Found(found)) => (call, found),
            other => panic!("nothing was found: {other:?}"),
        }
    }

    async fn refused(&mut self) -> (u64, v1::Error) {
        match self.next().await {
            (call, Answer::Error(error)) => (call, error),
            other => panic!("it was not refused: {other:?}"),
        }
    }
}

/// Waits until the server has got so far.
fn query_at(service: &str, min_revision: u64) -> v1::QueryRequest {
    let mut query = query_by(service, ReadMode::Local);
    query.read.as_mut().unwrap().min_revision = min_revision;
    query
}

#[tokio::test]
async fn queries_are_answered_by_number_as_calls_would_be_and_an_error_ends_nothing() {
    let fixture = start(&[]).await;
    let mut asker = fixture.discover().await;
    let modes = [
        ReadMode::Local,
        ReadMode::Linearizable,
        ReadMode::Leased,
        ReadMode::Unspecified,
    ];
    for (call, mode) in (1..).zip(modes) {
        asker
            .ask(call, query_by(if call % 2 == 0 { "api" } else { "web" }, mode))
            .await;
    }
    asker.ask(10, query_by("absent", ReadMode::Local)).await;
    asker.ask(11, query_by("absent", ReadMode::Linearizable)).await;
    asker.ask(12, query_by("not a name", ReadMode::Local)).await;
    let nothing = v1::DiscoverRequest {
        call: 13,
        ..v1::DiscoverRequest::default()
    };
    asker.requests.send(nothing).await.unwrap();
    let mut answers = BTreeMap::new();
    for _ in 0..8 {
        let (call, answer) = asker.next().await;
        assert!(
            answers.insert(call, answer).is_none(),
            "call {call} is answered twice"
        );
    }
    for (call, mode) in (1..).zip(modes) {
        let service = if call % 2 == 0 { "api" } else { "web" };
        let Some(Answer::Found(streamed)) = answers.remove(&call) else {
            panic!("call {call} has no view");
        };
        let called = fixture.registry().query(query_by(service, mode)).await.unwrap();
        let called = called.into_inner();
        assert_eq!(streamed.view, called.view, "the same bytes");
        let (streamed, called) = (streamed.header.unwrap(), called.header.unwrap());
        assert_eq!(
            (
                streamed.cluster,
                streamed.server,
                streamed.revision,
                streamed.read_mode,
                streamed.term
            ),
            (
                called.cluster,
                called.server,
                called.revision,
                called.read_mode,
                called.term
            )
        );
    }
    let mut code = |call: u64| match answers.remove(&call) {
        Some(Answer::Error(error)) => error.code(),
        other => panic!("call {call} was not refused: {other:?}"),
    };
    assert_eq!(code(10), ErrorCode::ServiceNotFound);
    assert_eq!(code(11), ErrorCode::ServiceNotFound);
    assert_eq!(code(12), ErrorCode::InvalidName);
    assert_eq!(code(13), ErrorCode::InvalidArgument);
    asker.ask(14, query_by("web", ReadMode::Local)).await;
    assert_eq!(asker.found().await.0, 14);
    // Who has asked everything gets the rest of the answers, then the end.
    asker.ask(15, query_by("web", ReadMode::Linearizable)).await;
    let Asker {
        requests,
        mut answers,
    } = asker;
    drop(requests);
    assert_eq!(answers.message().await.unwrap().unwrap().call, 15);
    assert!(answers.message().await.unwrap().is_none());
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_sign_that_still_holds_is_answered_without_a_body() {
    let fixture = start(&[]).await;
    let mut asker = fixture.discover().await;
    asker.ask(1, query_by("web", ReadMode::Local)).await;
    let sign = view(asker.found().await.1).sign;
    for (call, mode) in [(2, ReadMode::Local), (3, ReadMode::Linearizable)] {
        let known = v1::QueryRequest {
            known_sign: sign,
            ..query_by("web", mode)
        };
        asker.ask(call, known.clone()).await;
        let (answered, found) = asker.found().await;
        assert_eq!((answered, found.unchanged, found.view), (call, true, None));
    }
    fixture.register("web", 81).await.unwrap();
    let known = v1::QueryRequest {
        known_sign: sign,
        ..query_by("web", ReadMode::Linearizable)
    };
    asker.ask(4, known).await;
    let (_, found) = asker.found().await;
    assert!(!found.unchanged);
    assert_eq!(view(found).nodes.len(), 2);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_query_that_waits_holds_up_nobody_and_too_many_are_refused() {
    let fixture = start(&["doors.queries_per_stream_max=2"]).await;
    let mut asker = fixture.discover().await;
    let next = fixture.register("web", 81).await.unwrap() + 1;
    asker.ask(1, query_at("web", FAR)).await;
    asker.ask(2, query_at("web", next)).await;
    asker.ask(3, query_at("web", next)).await;
    let (call, error) = asker.refused().await;
    assert_eq!((call, error.code()), (3, ErrorCode::Overloaded));
    assert!(error.retry_after_ms > 0, "{error:?}");
    asker.ask(4, query_by("api", ReadMode::Local)).await;
    assert_eq!(asker.found().await.0, 4);
    // What comes true is answered, and its place is free again.
    assert_eq!(fixture.register("web", 82).await.unwrap(), next);
    let (call, found) = asker.found().await;
    assert_eq!((call, view(found).nodes.len()), (2, 3));
    asker.ask(5, query_at("web", next + 1)).await;
    asker.ask(6, query_by("api", ReadMode::Local)).await;
    assert_eq!(asker.found().await.0, 6, "call 5 waits");
    fixture.register("web", 83).await.unwrap();
    assert_eq!(asker.found().await.0, 5);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn all_streams_together_have_a_bound_and_each_has_a_place_of_its_own() {
    let fixture = start(&["doors.queries_waiting_max=2", "doors.read_timeout=1m"]).await;
    let mut greedy = fixture.discover().await;
    for call in 1..=4 {
        greedy.ask(call, query_at("web", FAR)).await;
    }
    let (call, error) = greedy.refused().await;
    assert_eq!((call, error.code()), (4, ErrorCode::Overloaded));
    assert!(error.message.contains("at this server"), "{error:?}");
    let mut other = fixture.discover().await;
    other.ask(1, query_by("web", ReadMode::Linearizable)).await;
    assert_eq!(other.found().await.0, 1);
    other.ask(2, query_at("web", FAR)).await;
    other.ask(3, query_at("web", FAR)).await;
    assert_eq!(other.refused().await.0, 3);
    // Who goes gives its places back.
    drop(greedy);
    let served = async {
        for call in 4.. {
            other.ask(call, query_by("web", ReadMode::Linearizable)).await;
            if let (_, Answer::Found(_)) = other.next().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("there is room again");
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_query_is_given_up_when_its_answer_is_of_no_use_any_more() {
    let fixture = start(&["doors.queries_per_stream_max=1", "doors.read_timeout=1500ms"]).await;
    let mut asker = fixture.discover().await;
    asker.ask_for(1, query_at("web", FAR), 50).await;
    let (call, error) = asker.refused().await;
    assert_eq!((call, error.code()), (1, ErrorCode::Unavailable));
    assert!(error.message.contains("50 ms"), "{error:?}");
    // Without a word the server's own patience ends it.
    asker.ask(2, query_at("web", FAR)).await;
    let (call, error) = asker.refused().await;
    assert_eq!((call, error.code()), (2, ErrorCode::TooStale));
    // Nobody gets more of it than that.
    asker.ask_for(3, query_at("web", FAR), u32::MAX).await;
    let (call, error) = asker.refused().await;
    assert!(
        call == 3 && matches!(error.code(), ErrorCode::Unavailable | ErrorCode::TooStale),
        "{error:?}"
    );
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_stream_reads_what_was_written_before_it_asked() {
    let fixture = start(&[]).await;
    let mut asker = fixture.discover().await;
    for port in 1_000..1_200 {
        let revision = fixture.register("api", port).await.unwrap();
        asker
            .ask(port.into(), query_by("api", ReadMode::Linearizable))
            .await;
        let (call, found) = asker.found().await;
        assert_eq!(call, u64::from(port));
        assert!(found.header.unwrap().revision >= revision);
    }
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn an_unreadable_request_ends_the_stream_in_our_own_words() {
    let fixture = start(&["doors.request_bytes_max=2048"]).await;
    let mut asker = fixture.discover().await;
    let large = v1::QueryRequest {
        consumer: "x".repeat(1 << 14),
        ..query_by("web", ReadMode::Local)
    };
    asker.ask(1, large).await;
    let status = asker.answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let error = v1::Error::decode(status.details()).unwrap();
    assert_eq!(error.code(), ErrorCode::TooLarge);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn a_closing_server_sends_its_readers_away_and_answers_what_it_has_taken_in() {
    let fixture = start(&[]).await;
    let mut asker = fixture.discover().await;
    asker.ask(1, query_at("web", FAR)).await;
    asker.ask(2, query_by("web", ReadMode::Local)).await;
    assert_eq!(asker.found().await.0, 2);
    let closing = tokio::spawn(fixture.server.shutdown());
    assert!(matches!(asker.next().await, (0, Answer::Move(_))));
    // It waits for what never comes, but not for long.
    let end = tokio::time::timeout(PATIENCE, asker.answers.message())
        .await
        .unwrap();
    assert!(end.unwrap().is_none());
    tokio::time::timeout(PATIENCE, closing)
        .await
        .expect("it closes in time")
        .unwrap();
}

#[tokio::test]
async fn who_has_asked_everything_is_told_too_that_the_server_closes() {
    let fixture = start(&["doors.read_timeout=1m"]).await;
    let mut asker = fixture.discover().await;
    asker.ask(1, query_at("web", FAR)).await;
    asker.ask(2, query_by("web", ReadMode::Local)).await;
    assert_eq!(asker.found().await.0, 2);
    let Asker {
        requests,
        mut answers,
    } = asker;
    drop(requests);
    let closing = tokio::spawn(fixture.server.shutdown());
    let told = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    let told = told.unwrap().unwrap();
    assert!(matches!((told.call, told.answer), (0, Some(Answer::Move(_)))));
    let end = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    assert!(end.unwrap().is_none(), "it ends in order");
    closing.await.unwrap();
}
