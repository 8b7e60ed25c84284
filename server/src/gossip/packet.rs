//! The outside of a packet: what tells ours from everything else that arrives at a UDP port.
//!
//! ```text
//! magic 3 | version 1 | protection 1 | cluster 8 | plain:  crc32 4           | body
//!                                                | sealed: nonce 24 | body, encrypted | tag 16
//! body:  kind 1 | counter 8 | cookie 8 | length 2 | payload | zeros
//! ```
//! Sealed is XChaCha20-Poly1305 with a nonce drawn at random for each packet; what stands before it is
//! authenticated along. The checksum of a plain packet finds damage, not malice.

use bytes::{Buf, BufMut};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use xxhash_rust::xxh3::xxh3_64;

/// Longest packet, in bytes: fits an Ethernet frame with room for tunnels.
pub(crate) const PACKET_BYTES_MAX: usize = 1_400;
/// Shorter packets are filled up, so that an answer to a stranger is never longer than the question.
pub(crate) const PACKET_BYTES_MIN: usize = 192;
const MAGIC: [u8; 3] = *b"RCG";
const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
const PREFIX: usize = 13;
const CRC: usize = 4;
const NONCE: usize = 24;
const TAG: usize = 16;
const BODY_HEAD: usize = 19;
/// Longest payload of a packet, sealed or not.
pub(crate) const PAYLOAD_BYTES_MAX: usize = PACKET_BYTES_MAX - PREFIX - NONCE - TAG - BODY_HEAD;

/// Why a packet was dropped. Nothing was changed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DropReason {
    /// Longer than any packet of ours.
    Oversized,
    /// It ends too early.
    CutShort,
    /// Not ours.
    Magic,
    /// Of a version this server does not speak.
    Version,
    /// Of another cluster.
    Cluster,
    /// Damaged on the way.
    Checksum,
    /// Plain, but this server has a key.
    Plain,
    /// Sealed, but this server has no key.
    Sealed,
    /// Sealed with a key that this server does not have, or tampered with.
    Key,
    /// Its content is no message.
    Malformed,
    /// It was here before, or is too old to tell.
    Replayed,
    /// Its sender has yet to show that it receives what is sent to its address; it was asked to.
    Unverified,
    /// It is for another server, or for a former life of this one.
    Misaddressed,
    /// Its sender claims a life that no server can have reached; or an update did, which was left out.
    FarFuture,
    /// Its sender is a former life of a member.
    FormerLife,
    /// It answers nothing that this server asked.
    Unasked,
    /// This server sent it itself.
    Own,
    /// It names somebody who is no member.
    UnknownMember,
    /// There are as many members as there may be.
    MembersFull,
    /// This server takes no part (any more).
    Aside,
}

impl DropReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Oversized => "oversized",
            Self::CutShort => "cut_short",
            Self::Magic => "magic",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Checksum => "checksum",
            Self::Plain => "plain",
            Self::Sealed => "sealed",
            Self::Key => "key",
            Self::Malformed => "malformed",
            Self::Replayed => "replayed",
            Self::Unverified => "unverified",
            Self::Misaddressed => "misaddressed",
            Self::FarFuture => "far_future",
            Self::FormerLife => "former_life",
            Self::Unasked => "unasked",
            Self::Own => "own",
            Self::UnknownMember => "unknown_member",
            Self::MembersFull => "members_full",
            Self::Aside => "aside",
        }
    }
}

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message of SWIM.
    Swim,
    /// "Show that you receive at your address: send it again with this cookie."
    Challenge,
    /// "This is what we know of you, and it is a later life."
    LaterLife,
}

/// The inside of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) kind: Kind,
    /// Grows with each packet of a sender's life.
    pub(crate) counter: u64,
    /// 0, or what the receiver gave the sender.
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

/// Puts packets of one cluster into bytes and back.
pub(crate) struct Envelope {
    cluster: u64,
    /// The first seals, each opens. None: plain.
    keys: Vec<XChaCha20Poly1305>,
}

impl Envelope {
    pub(crate) fn new(cluster: &str, keys: Vec<XChaCha20Poly1305>) -> Self {
        Self {
            cluster: xxh3_64(cluster.as_bytes()),
            keys,
        }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The packet as bytes, filled up to `bytes_min` (at most [`PACKET_BYTES_MAX`]).
    pub(crate) fn seal(&self, packet: &Packet, bytes_min: usize, nonce: [u8; NONCE]) -> Vec<u8> {
        debug_assert!(
            packet.payload.len() <= PAYLOAD_BYTES_MAX,
            "foca keeps to its bound"
        );
        let mut bytes = Vec::with_capacity(PACKET_BYTES_MAX);
        bytes.put_slice(&MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u8(if self.is_sealed() { SEALED } else { PLAIN });
        bytes.put_u64(self.cluster);
        match self.keys.first() {
            None => bytes.put_u32(0),
            Some(_) => bytes.put_slice(&nonce),
        }
        let body = bytes.len();
        bytes.put_u8(match packet.kind {
            Kind::Swim => 0,
            Kind::Challenge => 1,
            Kind::LaterLife => 2,
        });
        bytes.put_u64(packet.counter);
        bytes.put_u64(packet.cookie);
        bytes.put_u16(u16::try_from(packet.payload.len()).unwrap_or(u16::MAX));
        bytes.put_slice(&packet.payload);
        let tag = if self.is_sealed() { TAG } else { 0 };
        let filled = bytes_min.clamp(PACKET_BYTES_MIN, PACKET_BYTES_MAX) - tag;
        if bytes.len() < filled {
            bytes.resize(filled, 0);
        }
        match self.keys.first() {
            None => {
                let crc = checksum(&bytes);
                bytes[PREFIX..PREFIX + CRC].copy_from_slice(&crc.to_be_bytes());
            }
            Some(key) => {
                let (outside, inside) = bytes.split_at_mut(body);
                let tag = key
                    .encrypt_in_place_detached(XNonce::from_slice(&nonce), &outside[..PREFIX], inside)
                    .expect("a packet is far shorter than the cipher's bound");
                bytes.extend_from_slice(&tag);
            }
        }
        bytes
    }

    /// The packet in bytes that came from anywhere.
    ///
    /// # Errors
    /// Why it is none of ours.
    pub(crate) fn open(&self, bytes: &[u8]) -> Result<Packet, DropReason> {
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(DropReason::Oversized);
        }
        let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else {
            return Err(if bytes.starts_with(&MAGIC) {
                DropReason::CutShort
            } else {
                DropReason::Magic
            });
        };
        if prefix[..3] != MAGIC {
            return Err(DropReason::Magic);
        }
        if prefix[3] != VERSION {
            return Err(DropReason::Version);
        }
        if prefix[5..] != self.cluster.to_be_bytes() {
            return Err(DropReason::Cluster);
        }
        match (prefix[4], self.is_sealed()) {
            (PLAIN, false) => read_plain(bytes, rest),
            (SEALED, true) => self.unseal(prefix, rest),
            (PLAIN, true) => Err(DropReason::Plain),
            (SEALED, false) => Err(DropReason::Sealed),
            _ => Err(DropReason::Version),
        }
    }

    fn unseal(&self, prefix: &[u8], rest: &[u8]) -> Result<Packet, DropReason> {
        if rest.len() < NONCE + BODY_HEAD + TAG {
            return Err(DropReason::CutShort);
        }
        let (nonce, sealed) = rest.split_at(NONCE);
        let (sealed, tag) = sealed.split_at(sealed.len() - TAG);
        for key in &self.keys {
            let mut body = sealed.to_vec();
            let opened = key.decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                prefix,
                &mut body,
                Tag::from_slice(tag),
            );
            if opened.is_ok() {
                return read_body(&body);
            }
        }
        Err(DropReason::Key)
    }
}

/// Of everything but itself.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..PREFIX]);
    crc.update(&bytes[PREFIX + CRC..]);
    crc.finalize()
}

fn read_plain(bytes: &[u8], rest: &[u8]) -> Result<Packet, DropReason> {
    let Some((crc, body)) = rest.split_first_chunk::<CRC>() else {
        return Err(DropReason::CutShort);
    };
    if u32::from_be_bytes(*crc) != checksum(bytes) {
        return Err(DropReason::Checksum);
    }
    read_body(body)
}

fn read_body(mut body: &[u8]) -> Result<Packet, DropReason> {
    if body.len() < BODY_HEAD {
        return Err(DropReason::CutShort);
    }
    let kind = match body.get_u8() {
        0 => Kind::Swim,
        1 => Kind::Challenge,
        2 => Kind::LaterLife,
        _ => return Err(DropReason::Malformed),
    };
    let (counter, cookie, length) = (body.get_u64(), body.get_u64(), usize::from(body.get_u16()));
    let Some((payload, filling)) = body.split_at_checked(length) else {
        return Err(DropReason::CutShort);
    };
    if payload.len() > PAYLOAD_BYTES_MAX || filling.iter().any(|byte| *byte != 0) {
        return Err(DropReason::Malformed);
    }
    Ok(Packet {
        kind,
        counter,
        cookie,
        payload: payload.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::KeyInit;
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&[byte; 32].into())
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let kind = prop_oneof![Just(Kind::Swim), Just(Kind::Challenge), Just(Kind::LaterLife)];
        let payload = proptest::collection::vec(any::<u8>(), 0..=PAYLOAD_BYTES_MAX);
        (kind, any::<u64>(), any::<u64>(), payload).prop_map(|(kind, counter, cookie, payload)| Packet {
            kind,
            counter,
            cookie,
            payload,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn packets_come_back_as_they_were(packet in packet(), sealed: bool, fill in 0..3_000_usize, nonce: [u8; 24]) {
            let keys = if sealed { vec![key(1)] } else { Vec::new() };
            let envelope = Envelope::new("east", keys);
            let bytes = envelope.seal(&packet, fill, nonce);
            prop_assert!((PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes.len()));
            prop_assert_eq!(envelope.open(&bytes), Ok(packet));
        }

        #[test]
        fn a_flipped_bit_or_a_missing_end_is_noticed(packet in packet(), sealed: bool, at: prop::sample::Index, bit in 0..8_u8) {
            let keys = if sealed { vec![key(1)] } else { Vec::new() };
            let envelope = Envelope::new("east", keys);
            let whole = envelope.seal(&packet, 0, [7; 24]);
            let mut flipped = whole.clone();
            flipped[at.index(whole.len())] ^= 1 << bit;
            prop_assert!(envelope.open(&flipped).is_err());
            prop_assert!(envelope.open(&whole[..at.index(whole.len())]).is_err());
        }
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        let packet = Packet {
            kind: Kind::Swim,
            counter: 1,
            cookie: 0,
            payload: b"hello".to_vec(),
        };
        let plain = Envelope::new("east", Vec::new());
        let sealed = Envelope::new("east", vec![key(1)]);
        let rotated = Envelope::new("east", vec![key(2), key(1)]);
        let bytes = plain.seal(&packet, 0, [0; 24]);
        let sealed_bytes = sealed.seal(&packet, 0, [0; 24]);
        assert_eq!(
            Envelope::new("west", Vec::new()).open(&bytes),
            Err(DropReason::Cluster)
        );
        assert_eq!(sealed.open(&bytes), Err(DropReason::Plain));
        assert_eq!(plain.open(&sealed_bytes), Err(DropReason::Sealed));
        assert_eq!(rotated.open(&sealed_bytes).unwrap(), packet);
        assert_eq!(
            sealed.open(&rotated.seal(&packet, 0, [0; 24])),
            Err(DropReason::Key)
        );
        assert_eq!(plain.open(&[0; 1_401]), Err(DropReason::Oversized));
        assert_eq!(plain.open(b""), Err(DropReason::Magic));
        let mut later = bytes.clone();
        later[3] = 2;
        assert_eq!(plain.open(&later), Err(DropReason::Version));
        assert_eq!(plain.open(&bytes[..9]), Err(DropReason::CutShort));
    }
}
