//! What stands in front of each message of a gRPC stream, and of each frame of an [upgraded](crate::upgrade) connection:
//! a byte that says what it is, and its length in four.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes of a prefix.
pub const PREFIX_BYTES: usize = 5;
/// Kind of a message. (1 would be one that is compressed; nobody here does that.)
pub const MESSAGE: u8 = 0;

/// Lays out the prefix of something that has so many bytes. Of more than fit it says the most it can, which no reader takes.
pub fn put_prefix(kind: u8, bytes: usize, out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
}

/// A message behind its prefix, as a stream carries it.
pub fn prefixed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    put_prefix(MESSAGE, length, &mut bytes);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn a_length_stands_in_four_bytes_the_highest_first() {
        let mut bytes = BytesMut::new();
        put_prefix(7, 0x0102_0304, &mut bytes);
        put_prefix(MESSAGE, usize::MAX, &mut bytes);
        assert_eq!(bytes[..], [7, 1, 2, 3, 4, 0, 255, 255, 255, 255]);
    }

    #[test]
    fn a_message_is_read_back_from_behind_its_prefix() {
        let message = v1::ServiceKey {
            group: "g".repeat(300),
            service: "s".into(),
        };
        let bytes = prefixed(&message);
        let length = message.encoded_len();
        assert_eq!(bytes[..PREFIX_BYTES], [0, 0, 0, 1, (length - 256) as u8]);
        assert_eq!(v1::ServiceKey::decode(&bytes[PREFIX_BYTES..]), Ok(message));
    }
}
