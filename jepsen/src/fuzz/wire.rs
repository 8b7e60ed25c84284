//! The format of gossip packets, written down a second time, so that a mistake in one is seen by the other.
//!
//! ```text
//! magic 3 | version 1 | protection 1 | cluster 8 | plain:  crc32 4           | body
//!                                                | sealed: nonce 24 | body, encrypted | tag 16
//! body:  kind 1 | counter 8 | cookie 8 | length 2 | payload | zeros
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand::Rng;
use rand::rngs::StdRng;
use xxhash_rust::xxh3::xxh3_64;

/// Longest packet that a server takes.
pub(super) const PACKET_BYTES_MAX: usize = 1_400;
const PACKET_BYTES_MIN: usize = 192;
const PREFIX: usize = 13;
const BODY_HEAD: usize = 19;
const NONCE: usize = 24;
const TAG: usize = 16;

/// A key file that holds no key.
#[derive(Debug)]
pub struct KeyError(String);

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

/// The key that a server with this `gossip.key_file` seals with: the first.
///
/// # Errors
/// The file cannot be read, or begins with something that is no key.
pub fn read_key(path: &Path) -> Result<[u8; 32], KeyError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| KeyError(format!("{}: {error}", path.display())))?;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    line.and_then(|line| STANDARD.decode(line).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| KeyError(format!("{}: no 32 bytes in base64", path.display())))
}

/// Who a packet says it is from, or about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) server: u64,
    pub(super) epoch: u64,
    pub(super) address: SocketAddr,
}

impl Who {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.server.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        match self.address.ip() {
            IpAddr::V4(ip) => {
                bytes.push(4);
                bytes.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes.push(6);
                bytes.extend(ip.octets());
            }
        }
        bytes.extend(self.address.port().to_be_bytes());
    }
}

/// What a member is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Alive = 0,
    Suspect = 1,
    Down = 2,
}

/// A message of SWIM, as far as it is needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Ping = 1,
    Ack = 2,
    PingRequest = 3,
    Announce = 7,
    Feed = 8,
    Gossip = 9,
}

/// A payload: a message with updates about members, and news.
#[derive(Clone, Debug)]
pub(super) struct Swim {
    pub(super) from: Who,
    pub(super) incarnation: u16,
    pub(super) to: Who,
    pub(super) message: Message,
    pub(super) updates: Vec<(Who, u16, Said)>,
    pub(super) news: Vec<Vec<u8>>,
}

impl Swim {
    pub(super) fn encode(&self, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        self.from.put(&mut bytes);
        bytes.extend(self.incarnation.to_be_bytes());
        self.to.put(&mut bytes);
        bytes.push(self.message as u8);
        match self.message {
            Message::Announce => return bytes,
            Message::PingRequest => self.to.put(&mut bytes),
            Message::Ping | Message::Ack | Message::Feed | Message::Gossip => {}
        }
        if matches!(self.message, Message::Ping | Message::Ack | Message::PingRequest) {
            bytes.push(random.random());
        }
        bytes.extend(u16::try_from(self.updates.len()).unwrap_or(0).to_be_bytes());
        for (who, incarnation, said) in &self.updates {
            who.put(&mut bytes);
            bytes.extend(incarnation.to_be_bytes());
            bytes.push(*said as u8);
        }
        for item in &self.news {
            bytes.extend(u16::try_from(item.len()).unwrap_or(0).to_be_bytes());
            bytes.extend(item);
        }
        bytes
    }
}

/// News of a server, as they travel.
pub(super) fn news(from: &Who, version: u64, topic: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(25 + content.len());
    bytes.extend(from.server.to_be_bytes());
    bytes.extend(from.epoch.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.push(topic);
    bytes.extend(content);
    bytes
}

/// A challenge, or word of a later life of `about`, in answer to packet `answers`.
pub(super) fn answer_payload(from: &Who, answers: u64, cookie: Option<u64>, about: &Who) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    from.put(&mut bytes);
    bytes.extend(answers.to_be_bytes());
    match cookie {
        Some(cookie) => bytes.extend(cookie.to_be_bytes()),
        None => {
            about.put(&mut bytes);
            bytes.extend([0, 0, 0]);
        }
    }
    bytes
}

/// The inside of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) kind: u8,
    pub(super) counter: u64,
    pub(super) cookie: u64,
    pub(super) payload: Vec<u8>,
}

/// Puts packets of one cluster into bytes and back.
#[derive(Clone)]
pub(super) struct Wire {
    cluster: u64,
    key: Option<XChaCha20Poly1305>,
}

impl Wire {
    pub(super) fn new(cluster: &str, key: Option<[u8; 32]>) -> Self {
        Self {
            cluster: xxh3_64(cluster.as_bytes()),
            key: key.map(|key| XChaCha20Poly1305::new(&key.into())),
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    /// As [`Self::seal_body`], around a sound body.
    pub(super) fn seal(&self, inside: &Inside, random: &mut StdRng) -> Vec<u8> {
        let mut body = Vec::with_capacity(PACKET_BYTES_MAX);
        body.push(inside.kind);
        body.extend(inside.counter.to_be_bytes());
        body.extend(inside.cookie.to_be_bytes());
        body.extend(
            u16::try_from(inside.payload.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        body.extend(&inside.payload);
        let outside = PREFIX + if self.is_sealed() { NONCE + TAG } else { 4 };
        body.resize(body.len().max(PACKET_BYTES_MIN - outside), 0);
        self.seal_body(body, random)
    }

    /// A packet around any body; from the outside it is of this cluster.
    pub(super) fn seal_body(&self, mut body: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = b"RCG\x01".to_vec();
        bytes.push(u8::from(self.is_sealed()));
        bytes.extend(self.cluster.to_be_bytes());
        match &self.key {
            None => {
                let mut crc = crc32fast::Hasher::new();
                crc.update(&bytes);
                crc.update(&body);
                bytes.extend(crc.finalize().to_be_bytes());
                bytes.extend(body);
            }
            Some(key) => {
                let nonce: [u8; NONCE] = random.random();
                let tag = key
                    .encrypt_in_place_detached(XNonce::from_slice(&nonce), &bytes, &mut body)
                    .expect("a body is far shorter than the cipher's bound");
                bytes.extend(nonce);
                bytes.extend(body);
                bytes.extend(tag);
            }
        }
        bytes
    }

    /// The inside, or what a server should drop it for.
    pub(super) fn open(&self, bytes: &[u8]) -> Result<Inside, &'static str> {
        if bytes.len() > PACKET_BYTES_MAX {
            return Err("oversized");
        }
        if !bytes.starts_with(b"RCG") {
            return Err("magic");
        }
        if bytes.len() < PREFIX {
            return Err("cut_short");
        }
        let (prefix, rest) = bytes.split_at(PREFIX);
        if prefix[3] != 1 {
            return Err("version");
        }
        if prefix[5..] != self.cluster.to_be_bytes() {
            return Err("cluster");
        }
        match (prefix[4], &self.key) {
            (0, None) => {
                let Some((crc, body)) = rest.split_first_chunk::<4>() else {
                    return Err("cut_short");
                };
                let mut found = crc32fast::Hasher::new();
                found.update(prefix);
                found.update(body);
                if found.finalize().to_be_bytes() != *crc {
                    return Err("checksum");
                }
                read_body(body)
            }
            (1, Some(key)) => {
                if rest.len() < NONCE + BODY_HEAD + TAG {
                    return Err("cut_short");
                }
                let (nonce, sealed) = rest.split_at(NONCE);
                let (sealed, tag) = sealed.split_at(sealed.len() - TAG);
                let mut body = sealed.to_vec();
                key.decrypt_in_place_detached(
                    XNonce::from_slice(nonce),
                    prefix,
                    &mut body,
                    Tag::from_slice(tag),
                )
                .map_err(|_| "key")?;
                read_body(&body)
            }
            (0, Some(_)) => Err("plain"),
            (1, None) => Err("sealed"),
            _ => Err("version"),
        }
    }
}

fn read_body(body: &[u8]) -> Result<Inside, &'static str> {
    let Some((head, rest)) = body.split_first_chunk::<BODY_HEAD>() else {
        return Err("cut_short");
    };
    let number = |from: usize| {
        head[from..from + 8]
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if head[0] > 2 {
        return Err("malformed");
    }
    let length = usize::from(u16::from_be_bytes([head[17], head[18]]));
    let Some((payload, filling)) = rest.split_at_checked(length) else {
        return Err("cut_short");
    };
    if filling.iter().any(|byte| *byte != 0) {
        return Err("malformed");
    }
    Ok(Inside {
        kind: head[0],
        counter: number(1),
        cookie: number(9),
        payload: payload.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn what_is_sealed_opens_and_what_is_damaged_does_not() {
        let mut random = StdRng::seed_from_u64(3);
        for key in [None, Some([7; 32])] {
            let wire = Wire::new("lab", key);
            let inside = Inside {
                kind: 1,
                counter: 5,
                cookie: 9,
                payload: vec![3; 40],
            };
            let bytes = wire.seal(&inside, &mut random);
            assert_eq!(wire.open(&bytes), Ok(inside));
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 4;
                assert!(wire.open(&flipped).is_err(), "byte {at}");
                assert!(wire.open(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
    }
}
