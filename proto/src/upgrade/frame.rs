//! Frames that are no messages: a direction's end, and signs of life.

use std::fmt::Write;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::codegen::http::header::HeaderMap;

use super::head::headers_from;
use crate::prefix::{PREFIX_BYTES, put_prefix};

/// Kind of the frame that closes a direction. Its content: trailers as lines of `name: value`.
pub const END: u8 = 0x80;
/// Kind of the frame that says that the sender is there.
pub const BEAT: u8 = 0x40;
/// Largest content of an [`END`], in bytes.
pub const TRAILERS_BYTES_MAX: usize = 64 << 10;

/// A direction's end, with its trailers.
pub(super) fn end_frame(trailers: Option<&HeaderMap>) -> Bytes {
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
    put_prefix(END, text.len(), &mut frame);
    frame.put_slice(&text);
    frame.freeze()
}

/// A sign of life.
pub(super) fn beat_frame() -> Bytes {
    Bytes::from_static(&[BEAT, 0, 0, 0, 0])
}

/// The trailers in an [`END`]; what is no header is left out.
pub(super) fn trailers_of(text: &[u8]) -> HeaderMap {
    let lines = text.split(|byte| *byte == b'\n');
    headers_from(lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }))
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
}
