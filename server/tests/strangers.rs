//! Who has no token, no session and no manners: what a few connections may cost a server.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use rollcall_proto::v1::{Error, ErrorCode};
use support::alone::{Alone, PATIENCE, start};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// A stranger's connection by HTTP/2.
fn dial(fixture: &Alone) -> Channel {
    Endpoint::new(format!("http://{}", fixture.server.addresses().client))
        .unwrap()
        .connect_lazy()
}

/// What comes of a call with this message; who `hangs_on` never says that this was all.
async fn call(channel: Channel, path: &'static str, message: Bytes, hangs_on: bool) -> Result<(), Status> {
    let (say, said) = mpsc::channel(1);
    say.send(message).await.unwrap();
    let _open = hangs_on.then_some(say);
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let asked = Request::new(ReceiverStream::new(said));
    let answered = grpc.streaming(asked, path.parse().unwrap(), Raw);
    let answered = tokio::time::timeout(PATIENCE, answered).await.expect("a head");
    let mut answers = answered?.into_inner();
    let ended = async {
        while answers.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("an end")
}

/// So many bytes of a list's empty elements.
fn nothings(tag: u8, bytes: usize) -> Bytes {
    [tag << 3 | 2, 0].repeat(bytes / 2).into()
}

/// The same as the content of a part.
fn within(tag: u8, content: &[u8]) -> Bytes {
    let mut part = vec![tag << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut part);
    part.extend_from_slice(content);
    part.into()
}

fn code(refusal: &Status) -> ErrorCode {
    Error::decode(refusal.details()).unwrap().code()
}

/// The most memory that this process, server and strangers, has had.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Decoded, each of these takes forty to a hundred times its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn crowds_of_empty_elements_are_refused_before_they_are_decoded() {
    let fixture = start(&[]).await;
    let channel = dial(&fixture);
    let list = nothings(3, 2_000_000);
    let signs = nothings(4, 8_000_000);
    let cases = [
        ("/rollcall.v1.Registry/Update", nothings(3, 1_000_000)),
        ("/rollcall.v1.Sessions/Attend", within(8, &list)),
        ("/rollcall.v1.Watch/Watch", within(1, &signs)),
    ];
    for (path, message) in cases {
        let refusal = call(channel.clone(), path, message, false).await.unwrap_err();
        assert_eq!(code(&refusal), ErrorCode::TooLarge, "{path}: {refusal}");
        assert!(refusal.message().contains(" parts in "), "{path}: {refusal}");
    }
    fixture.server.shutdown().await;
}

/// Nothing of a call is decoded before its sender says that this was all; and if that takes too long, it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_never_end_cost_no_more_than_was_sent_and_are_refused() {
    let fixture = start(&[]).await;
    let channel = dial(&fixture);
    let before = peak_bytes();
    // As many parts as are let through.
    let message = nothings(3, 120_000);
    let calls = (0..64).map(|_| {
        let (channel, message) = (channel.clone(), message.clone());
        tokio::spawn(call(channel, "/rollcall.v1.Registry/Update", message, true))
    });
    for call in calls.collect::<Vec<_>>() {
        let refusal = call.await.unwrap().unwrap_err();
        assert_eq!(code(&refusal), ErrorCode::Unavailable, "{refusal}");
        assert!(refusal.message().contains("did not come whole"), "{refusal}");
    }
    let grew = peak_bytes() - before;
    assert!(grew < 256 << 20, "{grew} bytes");
    fixture.server.shutdown().await;
}
