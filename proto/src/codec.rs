//! How messages are laid into buffers: small ones, since servers hold many streams that say little. And which requests of
//! clients are not decoded at all: those that would take far more memory than bytes.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf;
use prost::encoding::decode_varint;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::v1;

/// What a stream's buffer begins with, each way; it grows to what a message needs. The library's own 8 KiB would be
/// most of the memory of a quiet stream.
const BUFFER_BYTES: usize = 1 << 10;
/// Messages that are ready together leave together, up to so many bytes.
const TOGETHER_BYTES: usize = 32 << 10;

/// Parts that a request may have however small they are ...
const PARTS_MAX: usize = 64 << 10;
/// ... and one more for so many bytes. An empty element of a list is two bytes, and 200 when it is decoded; but the smallest
/// batch that somebody means, of labels with names of a letter, has fewer parts.
const BYTES_A_PART: usize = 8;
/// A part takes two bytes at least, so less than this never has too many.
const CROWDED_FROM: usize = 2 * PARTS_MAX;

/// Whether a message is a client's request with a list in it. No other is counted: what servers send each other, and what
/// they answer, holds bytes of clients, which can be made to look like anything.
fn has_list<U: 'static>() -> bool {
    let lists = [
        TypeId::of::<v1::RegisterRequest>(),
        TypeId::of::<v1::DeregisterRequest>(),
        TypeId::of::<v1::UpdateRequest>(),
        TypeId::of::<v1::SignsRequest>(),
        TypeId::of::<v1::ConvergenceRequest>(),
        TypeId::of::<v1::SessionRequest>(),
        TypeId::of::<v1::WatchRequest>(),
    ];
    lists.contains(&TypeId::of::<U>())
}

/// Protobuf by prost, with small buffers.
#[derive(Clone, Copy, Debug)]
pub struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, TOGETHER_BYTES)
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = LeanDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        LeanDecoder(ProstCodec::<T, U>::raw_decoder(buffers()))
    }
}

/// Decodes what is not crowded.
#[derive(Clone, Debug)]
pub struct LeanDecoder<U>(ProstDecoder<U>);

impl<U: prost::Message + Default + 'static> Decoder for LeanDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if !has_list::<U>() {
            return self.0.decode(message);
        }
        // Nothing in it is long enough to be shared with the buffer, and one slice is read in three quarters of the steps.
        let whole = message.chunk();
        if whole.len() >= CROWDED_FROM {
            check_parts(whole)?;
        }
        // As the library says it.
        let decoded = U::decode(whole).map_err(|error| Status::internal(error.to_string()))?;
        message.advance(message.remaining());
        Ok(Some(decoded))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Refuses a message with too many parts, in the words in which the transport refuses one with too many bytes.
fn check_parts(message: &[u8]) -> Result<(), Status> {
    let (bytes, parts) = (message.len(), parts_of(message));
    let parts_max = PARTS_MAX + bytes / BYTES_A_PART;
    if parts <= parts_max {
        return Ok(());
    }
    Err(Status::out_of_range(format!(
        "Error, decoded message length too large: found {parts} parts in {bytes} bytes, the limit is: {parts_max} parts"
    )))
}

/// The parts of a message and those of its parts: long lists are no deeper, and what is deeper is gone again before anything
/// is waited for. All are counted together, since a decoder puts lists together that come in pieces.
fn parts_of(message: &[u8]) -> usize {
    parts(message).map(|part| 1 + parts(part).count()).sum()
}

/// What stands behind a length, as far as the message can be read: a decoder comes no further.
fn parts(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let key = decode_varint(&mut rest).ok()?;
            match key & 7 {
                0 => _ = decode_varint(&mut rest).ok()?,
                1 => rest = rest.get(8..)?,
                2 => {
                    let bytes = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                    let (part, behind) = rest.split_at_checked(bytes)?;
                    rest = behind;
                    return Some(part);
                }
                // A group begins or ends. Nobody here has any; a decoder passes over them, and what is in them counts.
                3 | 4 => {}
                5 => rest = rest.get(4..)?,
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn refusal(message: &[u8]) -> Option<Status> {
        check_parts(message).err()
    }

    /// A part with this tag, 1 to 15.
    fn part(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend_from_slice(content);
        bytes
    }

    #[test]
    fn a_list_of_nothing_is_refused_wherever_it_stands() {
        let nodes = part(3, &[]).repeat(1 << 19);
        let refused = refusal(&nodes).unwrap();
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
        assert!(refused.message().contains("found 524288 parts"), "{refused}");
        assert!(refusal(&part(8, &nodes)).is_some(), "one level in");
        // A decoder puts the pieces together.
        let pieces = part(8, &part(3, &[]).repeat(1_000)).repeat(500);
        let whole = v1::SessionRequest::decode(&pieces[..]).unwrap();
        let Some(v1::session_request::Request::Update(whole)) = whole.request else {
            panic!("{:?}", whole.call);
        };
        assert_eq!(whole.nodes.len(), 500_000);
        assert!(refusal(&pieces).is_some(), "in pieces");
        // Behind what a decoder passes over: numbers of all kinds, and a group.
        let passed_over = [
            0x78, 1, 0x79, 0, 0, 0, 0, 0, 0, 0, 0, 0x7d, 0, 0, 0, 0, 0x7b, 0x7c,
        ];
        let behind = [&passed_over[..], &nodes].concat();
        assert_eq!(
            v1::UpdateRequest::decode(&behind[..]).unwrap().nodes.len(),
            1 << 19
        );
        assert!(refusal(&behind).is_some(), "behind other fields");
    }

    #[test]
    fn what_servers_send_each_other_is_not_counted() {
        assert!(has_list::<v1::UpdateRequest>() && has_list::<v1::WatchRequest>());
        // A client's text within a log entry, or within an answer.
        assert!(refusal(&part(4, &[2; 1 << 20])).is_some());
        assert!(!has_list::<v1::PeerMessage>() && !has_list::<v1::ForwardRequest>());
        assert!(!has_list::<v1::SnapshotChunk>() && !has_list::<v1::ApPullResponse>());
        assert!(!has_list::<v1::QueryResponse>() && !has_list::<v1::WatchResponse>());
    }

    #[test]
    fn what_cannot_be_read_is_counted_up_to_there() {
        let nodes = part(3, &[]).repeat(1 << 19);
        assert!(refusal(&[&nodes[..], &[0x0f]].concat()).is_some());
        for broken in [
            &[0x0f][..],
            &[0x80],
            &[0x08],
            &[0x09, 1],
            &[0x0a, 2, 1],
            &[0x0d, 1],
        ] {
            assert_eq!(parts_of(&[broken, &[0; 16][..0]].concat()), 0, "{broken:?}");
        }
    }

    #[test]
    fn batches_as_large_as_they_may_be_are_decoded() {
        let key = |node: usize| v1::NodeKey {
            group: "g".into(),
            service: "s".into(),
            node: node.to_string(),
        };
        // As many labels as a node may have, with names as short as so many can be.
        let labels: Vec<String> = (10..74).map(|label: u32| label.to_string()).collect();
        let node = |node| v1::UpdateNode {
            key: Some(key(node)),
            set_labels: labels.iter().map(|label| (label.clone(), "1".into())).collect(),
            ..v1::UpdateNode::default()
        };
        let update = v1::UpdateRequest {
            nodes: (0..1_000).map(node).collect(),
            ..v1::UpdateRequest::default()
        };
        let bytes = update.encode_to_vec();
        assert!(bytes.len() > CROWDED_FROM);
        assert!(refusal(&bytes).is_none());
    }
}
