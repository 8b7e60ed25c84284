//! The heads of a request for a stream and of its answer, as HTTP/1.1 writes them.

use bytes::{BufMut, Bytes, BytesMut};
use tonic::codegen::http::header::{HeaderMap, HeaderName, HeaderValue};

/// What the connection is upgraded to.
pub const PROTOCOL: &str = "rollcall-grpc";
/// Largest head that a client accepts, in bytes, and most headers of it.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most headers in a head.
pub const HEADERS_MAX: usize = 64;

/// Parsed headers as a map; what is no header is left out.
#[must_use]
pub fn headers_of(parsed: &[httparse::Header<'_>]) -> HeaderMap {
    let parsed = parsed.iter();
    headers_from(parsed.map(|header| (header.name.as_bytes(), header.value)))
}

/// Names and values as headers; what is none is left out.
pub(super) fn headers_from<'a>(parsed: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(parsed.size_hint().0);
    for (name, value) in parsed {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
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
    use super::*;

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
