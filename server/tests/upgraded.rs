//! Streams on connections of their own: what strangers may say at that door, and what becomes of who goes without a word.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rollcall_proto::upgrade::{BEAT, END, HEAD_BYTES_MAX, PROTOCOL, head};
use rollcall_proto::v1;
use rollcall_proto::v1::watch_client::WatchClient;
use support::alone::{Alone, PATIENCE, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::codegen::http::{HeaderMap, HeaderValue};

const ATTEND: &str = "GET /rollcall.v1.Sessions/Attend HTTP/1.1";
const WATCH: &str = "GET /rollcall.v1.Watch/Watch HTTP/1.1";

async fn dial(fixture: &Alone) -> TcpStream {
    TcpStream::connect(fixture.server.addresses().client)
        .await
        .unwrap()
}

/// What the server says until it closes.
async fn all_of(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all));
    // A reset is a close, too.
    let _reset = read.await.expect("it closes");
    all
}

/// A stream that was granted; behind its head.
async fn granted(fixture: &Alone, first_line: &str, headers: &HeaderMap) -> TcpStream {
    granted_with(fixture, first_line, headers, &[]).await
}

/// The same for who speaks at once.
async fn granted_with(fixture: &Alone, first_line: &str, headers: &HeaderMap, said: &[u8]) -> TcpStream {
    let mut stream = dial(fixture).await;
    stream.write_all(&head(first_line, true, headers)).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.contains(PROTOCOL),
        "{answer}"
    );
    stream
}

fn framed(message: &impl Message) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    frame.into()
}

/// Reads a frame.
async fn kind_of_next(stream: &mut TcpStream) -> u8 {
    let reading = async {
        let mut prefix = [0; 5];
        stream.read_exact(&mut prefix).await.unwrap();
        let [kind, length @ ..] = prefix;
        let mut content = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut content).await.unwrap();
        kind
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.expect("a frame comes")
}

/// Until a line of the metrics is this one.
async fn until_measured(fixture: &Alone, wanted: &str) {
    let measured = async {
        while !fixture.page("/metrics").await.lines().any(|line| line == wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, measured).await;
    assert!(found.is_ok(), "never: {wanted}");
}

#[tokio::test]
async fn who_asks_for_a_page_is_told_what_is_spoken_here() {
    let fixture = start(&[]).await;
    for page in [
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /metrics HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = dial(&fixture).await;
        stream.write_all(page.as_bytes()).await.unwrap();
        let answer = String::from_utf8(all_of(stream).await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 426 ") && answer.contains("gRPC"),
            "{answer}"
        );
    }
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn rubbish_endless_heads_and_half_ones_are_closed_and_harm_nobody() {
    let fixture = start(&[]).await;
    let mut steady = granted(&fixture, ATTEND, &HeaderMap::new()).await;
    let endless = [
        b"GET / HTTP/1.1\r\nx: ".as_slice(),
        &vec![b'x'; 4 * HEAD_BYTES_MAX],
    ]
    .concat();
    for rubbish in [b"GET\x00\xff\xfe\r\n\r\n".as_slice(), &endless] {
        let mut stream = dial(&fixture).await;
        // It may be closed while this is written.
        let _reset = stream.write_all(rubbish).await;
        assert!(all_of(stream).await.is_empty());
    }
    // Half a head, and then nothing.
    let mut half = dial(&fixture).await;
    half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert!(all_of(half).await.is_empty());
    // A frame that is none, on a stream.
    let mut stream = granted(&fixture, ATTEND, &HeaderMap::new()).await;
    stream.write_all(&[7, 0, 0, 0, 1, 9]).await.unwrap();
    all_of(stream).await;
    // Whoever was there is still served.
    let open = v1::SessionRequest {
        call: 1,
        session: 0,
        request: Some(v1::session_request::Request::Open(v1::OpenSession::default())),
    };
    steady.write_all(&framed(&open)).await.unwrap();
    assert_eq!(steady.read_u8().await.unwrap(), 0, "an answer");
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn an_unknown_call_is_refused_in_the_head() {
    let fixture = start(&[]).await;
    let mut stream = dial(&fixture).await;
    let asked = head(
        "GET /rollcall.v1.Sessions/Nothing HTTP/1.1",
        true,
        &HeaderMap::new(),
    );
    stream.write_all(&asked).await.unwrap();
    let answer = String::from_utf8(all_of(stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains(&format!("grpc-status: {}", Code::Unimplemented as i32)),
        "{answer}"
    );
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn streams_end_with_their_clients() {
    let fixture = start(&[]).await;
    let attending = granted(&fixture, ATTEND, &HeaderMap::new()).await;
    let watching = granted(&fixture, WATCH, &HeaderMap::new()).await;
    until_measured(&fixture, "rollcall_doors_session_streams 1").await;
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 1").await;
    drop((attending, watching));
    until_measured(&fixture, "rollcall_doors_session_streams 0").await;
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 0").await;
    // The same by the SDK's way: the answers are dropped.
    let (requests, asked) = mpsc::channel(1);
    let answers = WatchClient::new(fixture.channel.clone())
        .watch(ReceiverStream::new(asked))
        .await
        .unwrap();
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 1").await;
    drop(answers);
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 0").await;
    drop(requests);
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn who_has_said_its_all_is_served_until_it_is_gone() {
    // What a stream without a word to say is sent shows that nobody reads it.
    let fixture = start(&["doors.keepalive_interval=100ms"]).await;
    let mut watching = granted(&fixture, WATCH, &HeaderMap::new()).await;
    watching.write_all(&[END, 0, 0, 0, 0]).await.unwrap();
    let health = "GET /grpc.health.v1.Health/Watch HTTP/1.1";
    let said = [0, 0, 0, 0, 0, END, 0, 0, 0, 0];
    let mut asking = granted_with(&fixture, health, &HeaderMap::new(), &said).await;
    // Its health, and then, as on the other, signs of life.
    assert_eq!(kind_of_next(&mut asking).await, 0);
    for stream in [&mut watching, &mut asking] {
        let mut kinds = Vec::new();
        while kinds.last() != Some(&BEAT) {
            kinds.push(kind_of_next(stream).await);
            assert_ne!(kinds.last(), Some(&END), "{kinds:?}");
        }
    }
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 1").await;
    until_measured(&fixture, "rollcall_doors_connections 2").await;
    drop((watching, asking));
    until_measured(&fixture, "rollcall_watch_streams{mode=\"cp\"} 0").await;
    until_measured(&fixture, "rollcall_doors_connections 0").await;
    fixture.server.shutdown().await;
}

#[tokio::test]
async fn who_wants_signs_of_life_has_them() {
    let fixture = start(&[]).await;
    let headers = HeaderMap::from_iter([(
        rollcall_proto::upgrade::BEAT_HEADER.parse().unwrap(),
        HeaderValue::from_static("100"),
    )]);
    let mut stream = granted(&fixture, WATCH, &headers).await;
    let mut beats = 0;
    let listening = async {
        while beats < 3 {
            beats += usize::from(kind_of_next(&mut stream).await == BEAT);
        }
    };
    tokio::time::timeout(PATIENCE, listening)
        .await
        .expect("signs of life");
    drop(stream);
    fixture.server.shutdown().await;
}
