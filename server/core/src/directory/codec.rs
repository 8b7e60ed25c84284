//! Bytes of requests and answers, as they stand in the log and travel between servers.
//!
//! One byte names the format, postcard follows. Variants and fields are only ever added at the end of enums;
//! anything else is a new format byte. Golden files keep the first format as it is.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::{Command, Request};
use super::outcome::{Outcome, Refusal};

/// The format this version writes, and the only one it reads.
pub const FORMAT: u8 = 1;

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
    let bytes = postcard::to_extend(value, vec![FORMAT]).expect("plain records always encode");
    Bytes::from(bytes)
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let Some((format, body)) = bytes.split_first() else {
        return Err(DecodeError::Empty { what });
    };
    if *format != FORMAT {
        return Err(DecodeError::UnknownFormat { what, found: *format });
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::TrailingBytes {
            what,
            bytes: bytes.len(),
            trailing: rest.len(),
        }),
        Err(error) => Err(DecodeError::Malformed {
            what,
            bytes: bytes.len(),
            problem: error.to_string(),
        }),
    }
}

/// What a request's fingerprint is taken of.
pub(super) fn encode_command(command: &Command) -> Vec<u8> {
    postcard::to_extend(command, Vec::with_capacity(256)).expect("plain records always encode")
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

coded!(Request, "request");
coded!(Outcome, "outcome");
coded!(Refusal, "refusal");
