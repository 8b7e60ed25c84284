//! Heartbeats by datagram: what is on the wire, and who may have said it. The page is docs/heartbeats.md.
//!
//! ```text
//! question  magic "RCB" | version 1 | kind | count | zeros 2 | number 8 | ...
//!   hello   ... token 16 | zeros 16
//!   beats   ... count x (session 8 | counter 8 | mac 16)
//! answer    the same head
//!   challenge ... echo 16
//!   verdicts  ... count x (session 8 | counter 8 | mac 16)
//! ```
//! Integers are big-endian. No answer is longer than its question, so nobody's flood grows by it.
//!
//! The key of a session is HMAC-SHA-256 of a label under SHA-256 of its secret, which is all that servers know of a
//! secret. A mac is HMAC-SHA-256 under that key, cut to 128 bits, of what stands before it: kind, number, session,
//! counter. The number is the server's, drawn at random for each of its lives; a client learns it from a challenge.

use sha2::digest::generic_array::GenericArray;
use sha2::{Digest, Sha256, compress256};

/// Longest datagram: fits the smallest MTU of IPv6 with its headers.
pub const DATAGRAM_BYTES_MAX: usize = 1_200;
/// The head of every datagram.
pub const HEAD_BYTES: usize = 16;
/// One session in a question or an answer.
pub const ENTRY_BYTES: usize = 32;
/// A hello is as long as a question about one session, and longer than its answer.
pub const HELLO_BYTES: usize = HEAD_BYTES + ENTRY_BYTES;
/// A challenge.
pub const CHALLENGE_BYTES: usize = HEAD_BYTES + MAC_BYTES;
/// Most sessions of one datagram.
pub const ENTRIES_MAX: usize = (DATAGRAM_BYTES_MAX - HEAD_BYTES) / ENTRY_BYTES;
/// Bytes of a mac, and of what is echoed.
pub const MAC_BYTES: usize = 16;

const MAGIC: [u8; 3] = *b"RCB";
const VERSION: u8 = 1;
/// What the key of a session is for.
const LABEL: &[u8] = b"rollcall heartbeat v1";
/// What a mac says before the numbers.
const MAC_HEAD: [u8; 4] = [MAGIC[0], MAGIC[1], MAGIC[2], VERSION];

/// 128 bits that only a server, or who knows the session's secret, can make.
pub type Mac = [u8; MAC_BYTES];

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// "What is your number?"
    Hello = 1,
    /// Heartbeats.
    Beats = 2,
    /// "This is my number": to a hello, and to heartbeats that name another.
    Challenge = 3,
    /// These sessions are renewed, as on a stream.
    Renewed = 4,
    /// These sessions are dead, as on a stream.
    NotFound = 5,
    /// This server knows no such session. Nobody vouches for that (the mac is the question's): ask on a stream.
    Unknown = 6,
}

/// Why a datagram cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Malformed {
    /// It ends too early, or goes on too long.
    #[error("it is not as long as it says")]
    Length,
    /// It is none of ours.
    #[error("it is no heartbeat")]
    Magic,
    /// It is of another version.
    #[error("it is of another version")]
    Version,
    /// It is not of a kind that is expected here.
    #[error("it is of another kind")]
    Kind,
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// It asks for the server's number; the token comes back.
    Hello(Mac),
    /// Its sessions are alive.
    Beats {
        /// The server's number, as the client knows it.
        number: u64,
        /// The sessions; one at least.
        entries: Entries<'a>,
    },
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Its number.
    Challenge {
        /// The number.
        number: u64,
        /// The hello's token, or the mac of the first session of the question.
        echo: Mac,
    },
    /// What became of heartbeats.
    Verdicts {
        /// [`Kind::Renewed`], [`Kind::NotFound`] or [`Kind::Unknown`].
        kind: Kind,
        /// The number that the question named.
        number: u64,
        /// The sessions; one at least.
        entries: Entries<'a>,
    },
}

/// One session in a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub session: u64,
    /// Grows with each heartbeat of a session; an answer has its question's.
    pub counter: u64,
    /// Of what stands before it.
    pub mac: Mac,
}

/// The sessions of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries<'a>(&'a [u8]);

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let (entry, rest) = self.0.split_first_chunk::<ENTRY_BYTES>()?;
        self.0 = rest;
        Some(Entry {
            session: number_at(entry, 0),
            counter: number_at(entry, 8),
            mac: mac_at(entry, 16),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.len() / ENTRY_BYTES;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

fn mac_at(bytes: &[u8], at: usize) -> Mac {
    bytes
        .get(at..at + MAC_BYTES)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or_default()
}

/// Kind, number and body of a datagram whose head is sound.
fn read_head(bytes: &[u8]) -> Result<(u8, usize, u64, &[u8]), Malformed> {
    if bytes.len() < MAGIC.len() || bytes[..3] != MAGIC {
        return Err(Malformed::Magic);
    }
    let Some((head, body)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(Malformed::Length);
    };
    if head[3] != VERSION {
        return Err(Malformed::Version);
    }
    if bytes.len() > DATAGRAM_BYTES_MAX || head[6..8] != [0; 2] {
        return Err(Malformed::Length);
    }
    Ok((head[4], head[5].into(), number_at(head, 8), body))
}

fn read_entries(count: usize, body: &[u8]) -> Result<Entries<'_>, Malformed> {
    if count == 0 || body.len() != count * ENTRY_BYTES {
        return Err(Malformed::Length);
    }
    Ok(Entries(body))
}

impl<'a> Question<'a> {
    /// Reads what came from anywhere.
    ///
    /// # Errors
    /// Why it is no question.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, count, number, body) = read_head(bytes)?;
        if kind == Kind::Hello as u8 {
            if bytes.len() != HELLO_BYTES || count != 0 {
                return Err(Malformed::Length);
            }
            return Ok(Self::Hello(mac_at(body, 0)));
        }
        if kind != Kind::Beats as u8 {
            return Err(Malformed::Kind);
        }
        let entries = read_entries(count, body)?;
        Ok(Self::Beats { number, entries })
    }
}

impl<'a> Answer<'a> {
    /// Reads what came from anywhere.
    ///
    /// # Errors
    /// Why it is no answer.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, count, number, body) = read_head(bytes)?;
        let kind = match kind {
            3 if bytes.len() == CHALLENGE_BYTES && count == 0 => {
                return Ok(Self::Challenge {
                    number,
                    echo: mac_at(body, 0),
                });
            }
            3 => return Err(Malformed::Length),
            4 => Kind::Renewed,
            5 => Kind::NotFound,
            6 => Kind::Unknown,
            _ => return Err(Malformed::Kind),
        };
        let entries = read_entries(count, body)?;
        Ok(Self::Verdicts {
            kind,
            number,
            entries,
        })
    }
}

fn write_head(out: &mut Vec<u8>, kind: Kind, number: u64) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0, 0]);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends a hello.
pub fn write_hello(out: &mut Vec<u8>, token: &Mac) {
    write_head(out, Kind::Hello, 0);
    out.extend_from_slice(token);
    out.extend_from_slice(&[0; HELLO_BYTES - CHALLENGE_BYTES]);
}

/// Appends a challenge.
pub fn write_challenge(out: &mut Vec<u8>, number: u64, echo: &Mac) {
    write_head(out, Kind::Challenge, number);
    out.extend_from_slice(echo);
}

/// Appends a datagram about sessions, one at a time.
#[derive(Debug)]
pub struct EntriesWriter {
    /// Where the datagram begins.
    start: usize,
    count: u8,
}

impl EntriesWriter {
    /// Appends the head.
    pub fn begin(out: &mut Vec<u8>, kind: Kind, number: u64) -> Self {
        let start = out.len();
        write_head(out, kind, number);
        Self { start, count: 0 }
    }

    /// Appends a session. At most [`ENTRIES_MAX`] go into one datagram: see [`Self::is_full`].
    pub fn push(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        debug_assert!(!self.is_full(), "the caller looks first");
        out.extend_from_slice(&entry.session.to_be_bytes());
        out.extend_from_slice(&entry.counter.to_be_bytes());
        out.extend_from_slice(&entry.mac);
        self.count = self.count.saturating_add(1);
        if let Some(count) = out.get_mut(self.start + 5) {
            *count = self.count;
        }
    }

    /// Whether no further session has room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        usize::from(self.count) >= ENTRIES_MAX
    }
}

/// The key of a session's heartbeats, ready to be used: the states of SHA-256 behind the padded key, inner and outer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl std::fmt::Debug for HeartbeatKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeartbeatKey")
    }
}

impl HeartbeatKey {
    /// For who knows the secret.
    #[must_use]
    pub fn of_secret(secret: &[u8]) -> Self {
        Self::of_digest(&Sha256::digest(secret).into())
    }

    /// For who knows SHA-256 of the secret.
    #[must_use]
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        Self::of_key(&Self::of_key(digest).hmac(LABEL))
    }

    fn of_key(key: &[u8; 32]) -> Self {
        let padded = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            let mut state = INITIAL;
            compress(&mut state, &block);
            state
        };
        Self {
            inner: padded(0x36),
            outer: padded(0x5c),
        }
    }

    /// HMAC-SHA-256 of a message that fits into one block with its padding.
    fn hmac(&self, message: &[u8]) -> [u8; 32] {
        let mut state = self.inner;
        compress(&mut state, &last_block(message));
        let inner = bytes_of(&state);
        let mut state = self.outer;
        compress(&mut state, &last_block(&inner));
        bytes_of(&state)
    }

    /// The mac of a session in a datagram.
    #[must_use]
    pub fn mac(&self, kind: Kind, number: u64, session: u64, counter: u64) -> Mac {
        let mut message = [0; 29];
        message[..4].copy_from_slice(&MAC_HEAD);
        message[4] = kind as u8;
        message[5..13].copy_from_slice(&number.to_be_bytes());
        message[13..21].copy_from_slice(&session.to_be_bytes());
        message[21..].copy_from_slice(&counter.to_be_bytes());
        mac_at(&self.hmac(&message), 0)
    }

    /// A session in a datagram of this kind.
    #[must_use]
    pub fn entry(&self, kind: Kind, number: u64, session: u64, counter: u64) -> Entry {
        let mac = self.mac(kind, number, session, counter);
        Entry {
            session,
            counter,
            mac,
        }
    }

    /// Whether who made this entry has the key. Takes the same time wherever the first difference is.
    #[must_use]
    pub fn verifies(&self, kind: Kind, number: u64, entry: &Entry) -> bool {
        let right = self.mac(kind, number, entry.session, entry.counter);
        u128::from_ne_bytes(right) ^ u128::from_ne_bytes(entry.mac) == 0
    }
}

/// SHA-256's state before the first block (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
/// Longest message that fits behind a block into one more.
const LAST_BLOCK_MAX: usize = 64 - 1 - 8;

fn compress(state: &mut [u32; 8], block: &[u8; 64]) {
    compress256(state, std::slice::from_ref(GenericArray::from_slice(block)));
}

/// A message and SHA-256's padding, as the second and last block.
fn last_block(message: &[u8]) -> [u8; 64] {
    assert!(
        message.len() <= LAST_BLOCK_MAX,
        "messages here are of fixed, short lengths"
    );
    let mut block = [0; 64];
    block[..message.len()].copy_from_slice(message);
    block[message.len()] = 0x80;
    let bits = (64 + message.len() as u64) * 8;
    block[56..].copy_from_slice(&bits.to_be_bytes());
    block
}

fn bytes_of(state: &[u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// HMAC as RFC 2104 writes it down, with a hash that we did not write.
    fn hmac_by_the_book(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
        let padded = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = Sha256::new()
            .chain_update(padded(0x36))
            .chain_update(message)
            .finalize();
        let outer = Sha256::new()
            .chain_update(padded(0x5c))
            .chain_update(inner)
            .finalize();
        outer.into()
    }

    /// Another program must come to the same bytes.
    #[test]
    fn the_bytes_of_version_1() {
        let key = HeartbeatKey::of_secret(b"0123456789abcdef");
        let number = 0x0102_0304_0506_0708;
        let mut beats = Vec::new();
        let mut writer = EntriesWriter::begin(&mut beats, Kind::Beats, number);
        writer.push(&mut beats, &key.entry(Kind::Beats, number, 7, 9));
        assert_eq!(hex(&beats), GOLDEN_BEATS);
        let mut renewed = Vec::new();
        let mut writer = EntriesWriter::begin(&mut renewed, Kind::Renewed, number);
        writer.push(&mut renewed, &key.entry(Kind::Renewed, number, 7, 9));
        assert_eq!(hex(&renewed), GOLDEN_RENEWED);
        let mut hello = Vec::new();
        write_hello(&mut hello, b"ABCDEFGHIJKLMNOP");
        assert_eq!(
            hex(&hello),
            "5243420101000000000000000000000041424344454647484\
             94a4b4c4d4e4f5000000000000000000000000000000000"
        );
        let mut challenge = Vec::new();
        write_challenge(&mut challenge, number, b"ABCDEFGHIJKLMNOP");
        assert_eq!(
            hex(&challenge),
            "52434201030000000102030405060708414243444546474849\
             4a4b4c4d4e4f50"
        );
    }

    /// Made with Python's hashlib and hmac; see docs/heartbeats.md.
    const GOLDEN_BEATS: &str =
        "524342010201000001020304050607080000000000000007000000000000000918c6c75701543a062928d4c2918f8185";
    const GOLDEN_RENEWED: &str =
        "5243420104010000010203040506070800000000000000070000000000000009697a49701ad23d0b902e4cf653397aac";

    #[test]
    fn an_answer_is_never_longer_than_its_question() {
        let (mut hello, mut challenge) = (Vec::new(), Vec::new());
        write_hello(&mut hello, &[1; 16]);
        write_challenge(&mut challenge, 1, &[1; 16]);
        assert_eq!((hello.len(), challenge.len()), (HELLO_BYTES, CHALLENGE_BYTES));
        assert!(challenge.len() <= hello.len() && challenge.len() <= HEAD_BYTES + ENTRY_BYTES);
        assert_eq!(ENTRIES_MAX, 37);
    }

    #[test]
    fn a_mac_is_good_for_one_kind_number_session_and_counter() {
        let key = HeartbeatKey::of_secret(b"secret");
        let entry = key.entry(Kind::Beats, 1, 2, 3);
        assert!(key.verifies(Kind::Beats, 1, &entry));
        assert!(!key.verifies(Kind::Renewed, 1, &entry));
        assert!(!key.verifies(Kind::Beats, 2, &entry));
        assert!(!key.verifies(Kind::Beats, 1, &Entry { session: 3, ..entry }));
        assert!(!key.verifies(Kind::Beats, 1, &Entry { counter: 4, ..entry }));
        assert!(!HeartbeatKey::of_secret(b"other").verifies(Kind::Beats, 1, &entry));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_mac_is_hmac_sha_256(key: [u8; 32], message in proptest::collection::vec(any::<u8>(), 0..=LAST_BLOCK_MAX)) {
            prop_assert_eq!(HeartbeatKey::of_key(&key).hmac(&message), hmac_by_the_book(&key, &message));
        }

        #[test]
        fn what_is_written_can_be_read(number: u64, sessions in proptest::collection::vec(any::<(u64, u64, [u8; 16])>(), 1..=ENTRIES_MAX)) {
            let entries: Vec<_> = sessions.iter().map(|&(session, counter, mac)| Entry { session, counter, mac }).collect();
            for kind in [Kind::Beats, Kind::Renewed, Kind::NotFound, Kind::Unknown] {
                let mut bytes = vec![0xee; 3];
                let mut writer = EntriesWriter::begin(&mut bytes, kind, number);
                entries.iter().for_each(|entry| writer.push(&mut bytes, entry));
                let bytes = &bytes[3..];
                prop_assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
                let read = match kind {
                    Kind::Beats => match Question::read(bytes) {
                        Ok(Question::Beats { number: read, entries }) if read == number => entries,
                        other => return Err(TestCaseError::fail(format!("{other:?}"))),
                    },
                    _ => match Answer::read(bytes) {
                        Ok(Answer::Verdicts { kind: read_kind, number: read, entries }) if (read_kind, read) == (kind, number) => entries,
                        other => return Err(TestCaseError::fail(format!("{other:?}"))),
                    },
                };
                prop_assert_eq!(read.collect::<Vec<_>>(), entries.clone());
                prop_assert_eq!(writer.is_full(), entries.len() == ENTRIES_MAX);
            }
        }

        /// Neither side falls over anything, and whatever is cut or lengthened is none of ours.
        #[test]
        fn whatever_comes_is_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..1_500), ours: bool, kind in 0..8_u8, count in 0..40_u8) {
            if ours && bytes.len() >= HEAD_BYTES {
                bytes[..4].copy_from_slice(&MAC_HEAD);
                bytes[4] = kind;
                bytes[5] = count;
                bytes[6..8].fill(0);
            }
            if let Ok(Question::Beats { entries, .. }) = Question::read(&bytes) {
                prop_assert_eq!(HEAD_BYTES + entries.len() * ENTRY_BYTES, bytes.len());
            }
            if let Ok(Answer::Verdicts { entries, .. }) = Answer::read(&bytes) {
                prop_assert_eq!(entries.count() * ENTRY_BYTES + HEAD_BYTES, bytes.len());
            }
        }

        #[test]
        fn a_datagram_of_another_length_is_refused(sessions in 1..=ENTRIES_MAX, cut in 1..100_usize, longer: bool) {
            let mut bytes = Vec::new();
            let mut writer = EntriesWriter::begin(&mut bytes, Kind::Beats, 1);
            for session in 0..sessions as u64 {
                writer.push(&mut bytes, &Entry { session, counter: 1, mac: [0; 16] });
            }
            let length = if longer { bytes.len() + cut } else { bytes.len().saturating_sub(cut) };
            bytes.resize(length, 0);
            prop_assert!(Question::read(&bytes).is_err());
        }
    }
}
