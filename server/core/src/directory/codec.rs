//! Bytes of requests and answers, as they stand in the log and travel between servers.
//!
//! One byte names the format, postcard follows. Variants and fields are only ever added at the end of enums;
//! anything else is a new format byte. Golden files keep the first format as it is.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_128;

use super::command::{Command, Request};
use super::outcome::{Outcome, Refusal};
use crate::ids::RequestId;

/// The format this version writes, and the only one it reads.
pub const FORMAT: u8 = 1;
/// Room to begin an encoding with: enough for most.
const ROOM: usize = 512;
/// Of a node that is registered, besides labels and metadata.
const NODE_ROOM: usize = 128;

/// Bytes that are no request, outcome or refusal of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("{what} has no bytes")]
    Empty {
        /// What was to be decoded.
        what: &'static str,
    },
    /// Written by another version; upgrade this server.
    #[error("{what} has format {found}, this version reads format {FORMAT}")]
    UnknownFormat {
        /// What was to be decoded.
        what: &'static str,
        /// Its format byte.
        found: u8,
    },
    /// Damaged, or no such thing.
    #[error("{what} of {bytes} bytes is malformed: {problem}")]
    Malformed {
        /// What was to be decoded.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// What the decoder met.
        problem: String,
    },
    /// It decodes, but something follows.
    #[error("{what} of {bytes} bytes ends {trailing} bytes early")]
    TrailingBytes {
        /// What was to be decoded.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// How many bytes were left over.
        trailing: usize,
    },
}

/// A value's bytes behind the format's number.
pub(crate) fn encode_value(value: &impl Serialize) -> Bytes {
    encode(value)
}

/// Reads what [`encode_value`] wrote, and nothing else.
pub(crate) fn decode_value<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    decode(what, bytes)
}

fn encode(value: &impl Serialize) -> Bytes {
    encode_in(ROOM, value)
}

fn encode_in(room: usize, value: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(room);
    bytes.push(FORMAT);
    append(&mut bytes, value);
    Bytes::from(bytes)
}

/// Encodes a value behind what is there.
pub(super) fn append(bytes: &mut Vec<u8>, value: &impl Serialize) {
    postcard::serialize_with_flavor(value, Behind(bytes)).expect("plain records always encode");
}

/// Texts and byte strings are copied in one piece, where `postcard::to_extend` copies byte by byte.
struct Behind<'a>(&'a mut Vec<u8>);

impl Flavor for Behind<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(body_of(what, bytes)?).map_err(malformed(what, bytes))?;
    check_end(what, bytes, rest)?;
    Ok(value)
}

fn body_of<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty { what }),
        Some((&FORMAT, body)) => Ok(body),
        Some((found, _)) => Err(DecodeError::UnknownFormat { what, found: *found }),
    }
}

fn malformed(what: &'static str, bytes: &[u8]) -> impl Fn(postcard::Error) -> DecodeError {
    let bytes = bytes.len();
    move |error| DecodeError::Malformed {
        what,
        bytes,
        problem: error.to_string(),
    }
}

fn check_end(what: &'static str, bytes: &[u8], rest: &[u8]) -> Result<(), DecodeError> {
    match rest.len() {
        0 => Ok(()),
        trailing => Err(DecodeError::TrailingBytes {
            what,
            bytes: bytes.len(),
            trailing,
        }),
    }
}

/// Tells a command from another one under the same request id: the hash of its encoding.
pub(super) fn fingerprint(command: &Command) -> u128 {
    let mut bytes = Vec::with_capacity(ROOM);
    append(&mut bytes, command);
    xxh3_128(&bytes)
}

/// A request with its fingerprint, as it came out of the log: the command's encoding is the end of the request's,
/// so that it need not be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    pub(super) request: Request,
    pub(super) fingerprint: u128,
}

impl LoggedRequest {
    /// Reads what [`Request::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says whether the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "request";
        let body = body_of(WHAT, bytes)?;
        let (id, command): (RequestId, &[u8]) =
            postcard::take_from_bytes(body).map_err(malformed(WHAT, bytes))?;
        let fingerprint = xxh3_128(command);
        let (command, rest) = postcard::take_from_bytes(command).map_err(malformed(WHAT, bytes))?;
        check_end(WHAT, bytes, rest)?;
        Ok(Self {
            request: Request { id, command },
            fingerprint,
        })
    }

    /// One that goes into no log, with the number of bytes that it would have there.
    #[must_use]
    pub fn of(request: Request) -> (Self, usize) {
        let mut bytes = Vec::with_capacity(room_for(&request.command));
        bytes.push(FORMAT);
        append(&mut bytes, &request.id);
        let head = bytes.len();
        append(&mut bytes, &request.command);
        let fingerprint = xxh3_128(&bytes[head..]);
        (Self { request, fingerprint }, bytes.len())
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }
}

macro_rules! coded {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Its bytes, in the current format.
            #[must_use]
            pub fn encode(&self) -> Bytes {
                encode(self)
            }

            /// Reads what [`Self::encode`] wrote.
            ///
            /// # Errors
            ///
            /// [`DecodeError`] says whether the bytes are damaged or of another version.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                decode($what, bytes)
            }
        }
    };
}

impl Request {
    /// Its bytes, in the current format.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode_in(room_for(&self.command), self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says whether the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode("request", bytes)
    }
}

/// So that a batch need not be moved again and again while it grows.
fn room_for(command: &Command) -> usize {
    let Command::Register { nodes, .. } = command else {
        return ROOM;
    };
    let room = nodes.iter().map(|node| {
        NODE_ROOM + node.registration.labels.size_hint() + node.registration.metadata.size_hint()
    });
    ROOM.max(room.sum::<usize>() + 64)
}

coded!(Outcome, "outcome");
coded!(Refusal, "refusal");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    #[test]
    fn a_logged_request_is_the_request_and_has_the_fingerprint_of_its_command() {
        let command = Command::CloseSession {
            session: SessionId(300),
        };
        let request = Request {
            id: RequestId(u128::MAX - 7),
            command,
        };
        let bytes = request.encode();
        let logged = LoggedRequest::decode(&bytes).unwrap();
        assert_eq!(logged.request, request);
        assert_eq!(logged.fingerprint, fingerprint(&request.command));
        for length in 0..bytes.len() {
            let (logged, plain) = (
                LoggedRequest::decode(&bytes[..length]),
                Request::decode(&bytes[..length]),
            );
            assert_eq!(logged.unwrap_err(), plain.unwrap_err(), "cut at {length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(
            LoggedRequest::decode(&longer).unwrap_err(),
            Request::decode(&longer).unwrap_err()
        );
    }
}
