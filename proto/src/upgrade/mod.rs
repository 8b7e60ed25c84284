//! gRPC streams on a connection of their own, without HTTP/2 (docs/decisions/0024).
//!
//! A client asks for a stream by an HTTP/1.1 upgrade (RFC 9110, section 7.8) at the same port that speaks HTTP/2: the
//! path is the gRPC method, the headers are the call's metadata.
//!
//! ```text
//! GET /rollcall.v1.Sessions/Attend HTTP/1.1       HTTP/1.1 101 Switching Protocols
//! host: registry:7400                             connection: upgrade
//! connection: upgrade                             upgrade: rollcall-grpc
//! upgrade: rollcall-grpc
//! authorization: Bearer ...
//! ```
//!
//! Behind the heads both sides send gRPC messages as gRPC frames them: a byte 0, the length in four bytes, the
//! message. Two more kinds of frames have the same prefix: [`END`] closes a direction, with the trailers as text if
//! the server sends it (as gRPC-Web does), and a [`BEAT`], without content, says that its sender is there. A connection
//! that ends without [`END`] was lost. A call that is refused at once is answered with 200 and the status in the head, as
//! gRPC's "trailers only" are. A server that does not know all this closes the connection or says something else: the
//! [`Channel`] of a client then makes the call by HTTP/2.

use std::fmt::Write;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::codegen::http::header::{HeaderMap, HeaderName, HeaderValue};

mod channel;
mod inflow;
mod sending;
mod splitter;

pub use channel::{Channel, Streams};
pub use inflow::{Inflow, Side};
pub use sending::{Limits, Sending};

/// What the connection is upgraded to.
pub const PROTOCOL: &str = "rollcall-grpc";
/// Metadata: after how many milliseconds without anything else to say the server sends a [`BEAT`]; whoever asks for that does
/// the same. Without it they come as rarely as the server has use for.
pub const BEAT_HEADER: &str = "rollcall-beat-ms";
/// Beats do not come more often.
pub const BEAT_MIN: Duration = Duration::from_secs(1);
/// Largest head that a client accepts, in bytes, and most headers of it.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most headers in a head.
pub const HEADERS_MAX: usize = 64;
/// Kind of the frame that closes a direction. Its content: trailers as lines of `name: value`.
pub const END: u8 = 0x80;
/// Kind of the frame that says that the sender is there.
pub const BEAT: u8 = 0x40;
/// Largest content of an [`END`], in bytes.
pub const TRAILERS_BYTES_MAX: usize = 64 << 10;

/// In front of each frame: its kind, and the length of its content.
const PREFIX_BYTES: usize = 5;

/// A direction's end, with its trailers.
fn end_frame(trailers: Option<&HeaderMap>) -> Bytes {
    let mut text = BytesMut::new();
    for (name, value) in trailers.into_iter().flatten() {
        text.put_slice(name.as_str().as_bytes());
        text.put_slice(b": ");
        text.put_slice(value.as_bytes());
        text.put_slice(b"\r\n");
    }
    // Longer ones would not be read: better an end without words than none.
    if text.len() > TRAILERS_BYTES_MAX {
        text.clear();
        let _infallible = text.write_str("grpc-status: 2\r\ngrpc-message: the status was too long\r\n");
    }
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + text.len());
    frame.put_u8(END);
    frame.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    frame.put_slice(&text);
    frame.freeze()
}

/// A sign of life.
fn beat_frame() -> Bytes {
    Bytes::from_static(&[BEAT, 0, 0, 0, 0])
}

/// The trailers in an [`END`]; what is no header is left out.
fn trailers_of(text: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            trailers.append(name, value);
        }
    }
    trailers
}

/// Parsed headers as a map; what is no header is left out.
#[must_use]
pub fn headers_of(parsed: &[httparse::Header<'_>]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let value = HeaderValue::from_bytes(header.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Whether these headers ask for an upgrade to [`PROTOCOL`], or grant one.
#[must_use]
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let names = |header: &str, wanted: &str| {
        let values = headers
            .get_all(header)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    names("connection", "upgrade") && names("upgrade", PROTOCOL)
}

/// Lays out a head: its first line, what makes it an upgrade, and `headers`, those of the connection left out.
#[must_use]
pub fn head(first_line: &str, upgrade: bool, headers: &HeaderMap) -> Bytes {
    let mut head = BytesMut::with_capacity(256);
    head.put_slice(first_line.as_bytes());
    match upgrade {
        true => {
            head.put_slice(b"\r\nconnection: upgrade\r\nupgrade: ");
            head.put_slice(PROTOCOL.as_bytes());
        }
        false => head.put_slice(b"\r\nconnection: close\r\ncontent-length: 0"),
    }
    for (name, value) in headers {
        if ["connection", "upgrade", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            continue;
        }
        head.put_slice(b"\r\n");
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
    }
    head.put_slice(b"\r\n\r\n");
    head.freeze()
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_status_is_read_back_from_the_end_of_a_stream() {
        let status = Status::with_details(
            tonic::Code::Unavailable,
            "später: 100 %\r\nnext: line",
            Bytes::from_static(&[0, 1, 255]),
        );
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        let frame = end_frame(Some(&trailers));
        assert_eq!(frame[0], END);
        let read = Status::from_header_map(&trailers_of(&frame[PREFIX_BYTES..])).unwrap();
        assert_eq!(read.code(), status.code());
        assert_eq!(read.message(), status.message());
        assert_eq!(read.details(), status.details());
    }

    #[test]
    fn a_status_that_is_too_long_is_an_end_all_the_same() {
        let mut trailers = HeaderMap::new();
        Status::with_details(tonic::Code::Internal, "", vec![7; TRAILERS_BYTES_MAX].into())
            .add_header(&mut trailers)
            .unwrap();
        let frame = end_frame(Some(&trailers));
        let read = Status::from_header_map(&trailers_of(&frame[PREFIX_BYTES..])).unwrap();
        assert_eq!(read.code(), tonic::Code::Unknown);
    }

    #[test]
    fn a_head_is_an_upgrade_only_if_it_says_so() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        headers.insert("connection", HeaderValue::from_static("close"));
        let head = head("GET /a HTTP/1.1", true, &headers);
        let mut space = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut space);
        assert!(request.parse(&head).unwrap().is_complete());
        let read = headers_of(request.headers);
        assert!(is_upgrade(&read));
        assert_eq!(read["authorization"], "Bearer x");
        assert!(!is_upgrade(&headers));
    }
}
