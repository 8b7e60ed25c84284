//! Takes a stream of bytes apart: messages pass as they are, what the connection says for itself is taken out.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{BEAT, END, TRAILERS_BYTES_MAX};
use crate::prefix::PREFIX_BYTES;

/// A part of what came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Of messages, with their prefixes; cut anywhere.
    Data(Bytes),
    /// The direction is closed, with this content.
    End(Bytes),
}

/// These bytes are no frames.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("a frame of kind {kind:#04x} and {bytes} bytes")]
    Frame { kind: u8, bytes: usize },
    #[error("bytes behind the end")]
    BehindTheEnd,
}

/// Where in a frame the next byte belongs.
#[derive(Debug)]
enum Place {
    /// In a prefix of which so many bytes have come.
    Prefix(usize),
    /// In a message of which so many bytes are to come.
    Message(usize),
    /// In an end of which so many bytes are to come.
    End(usize),
    Over,
}

/// See the module's page. Keeps at most an end's content.
#[derive(Debug)]
pub(super) struct Splitter {
    place: Place,
    prefix: [u8; PREFIX_BYTES],
    end: Vec<u8>,
}

impl Splitter {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Prefix(0),
            prefix: [0; PREFIX_BYTES],
            end: Vec::new(),
        }
    }

    /// Takes in what came next.
    pub(super) fn take(&mut self, chunk: &Bytes, pieces: &mut VecDeque<Piece>) -> Result<(), Malformed> {
        // What passes as it is begins at `from`; what was looked at ends at `at`.
        let (mut from, mut at) = (0, 0);
        let pass = |range: std::ops::Range<usize>, pieces: &mut VecDeque<Piece>| {
            if !range.is_empty() {
                pieces.push_back(Piece::Data(chunk.slice(range)));
            }
        };
        while at < chunk.len() {
            let rest = chunk.len() - at;
            match self.place {
                Place::Message(left) => {
                    let bytes = left.min(rest);
                    at += bytes;
                    self.place = match left - bytes {
                        0 => Place::Prefix(0),
                        left => Place::Message(left),
                    };
                }
                Place::Prefix(came) => {
                    let bytes = (PREFIX_BYTES - came).min(rest);
                    let begins_at = at;
                    self.prefix[came..came + bytes].copy_from_slice(&chunk[at..at + bytes]);
                    at += bytes;
                    if came + bytes < PREFIX_BYTES {
                        pass(from..begins_at, pieces);
                        from = at;
                        self.place = Place::Prefix(came + bytes);
                        continue;
                    }
                    let [kind, length @ ..] = self.prefix;
                    let length = u32::from_be_bytes(length) as usize;
                    match kind {
                        0 | 1 => {
                            if came > 0 {
                                pieces.push_back(Piece::Data(Bytes::copy_from_slice(&self.prefix)));
                                from = at;
                            }
                            self.place = match length {
                                0 => Place::Prefix(0),
                                left => Place::Message(left),
                            };
                        }
                        BEAT if length == 0 => {
                            pass(from..begins_at, pieces);
                            from = at;
                            self.place = Place::Prefix(0);
                        }
                        END if length <= TRAILERS_BYTES_MAX => {
                            pass(from..begins_at, pieces);
                            from = at;
                            self.place = Place::End(length);
                            if length == 0 {
                                self.end(pieces);
                            }
                        }
                        kind => return Err(Malformed::Frame { kind, bytes: length }),
                    }
                }
                Place::End(left) => {
                    let bytes = left.min(rest);
                    self.end.extend_from_slice(&chunk[at..at + bytes]);
                    at += bytes;
                    from = at;
                    self.place = Place::End(left - bytes);
                    if left == bytes {
                        self.end(pieces);
                    }
                }
                Place::Over => return Err(Malformed::BehindTheEnd),
            }
        }
        pass(from..at, pieces);
        Ok(())
    }

    fn end(&mut self, pieces: &mut VecDeque<Piece>) {
        pieces.push_back(Piece::End(std::mem::take(&mut self.end).into()));
        self.place = Place::Over;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(content);
        frame
    }

    /// What passed, and the end.
    fn split(chunks: &[&[u8]]) -> Result<(Vec<u8>, Option<Bytes>), Malformed> {
        let (mut splitter, mut pieces) = (Splitter::new(), VecDeque::new());
        for chunk in chunks {
            splitter.take(&Bytes::copy_from_slice(chunk), &mut pieces)?;
        }
        let (mut passed, mut end) = (Vec::new(), None);
        for piece in pieces {
            assert!(end.is_none(), "{piece:?} behind the end");
            match piece {
                Piece::Data(bytes) => passed.extend_from_slice(&bytes),
                Piece::End(content) => end = Some(content),
            }
        }
        Ok((passed, end))
    }

    proptest! {
        #[test]
        fn messages_pass_unchanged_however_the_bytes_are_cut(
            frames in prop::collection::vec((0_u8..4, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            cuts in prop::collection::vec(1_usize..30, 0..80),
        ) {
            let (mut all, mut messages) = (Vec::new(), Vec::new());
            for (kind, content) in &frames {
                if *kind == 3 {
                    all.extend(frame(BEAT, &[]));
                } else {
                    let frame = frame(*kind % 2, content);
                    all.extend_from_slice(&frame);
                    messages.extend(frame);
                }
            }
            all.extend(frame(END, b"grpc-status: 0\r\n"));
            let (mut chunks, mut rest) = (Vec::new(), all.as_slice());
            for cut in cuts {
                let (chunk, behind) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = behind;
            }
            chunks.push(rest);
            let (passed, end) = split(&chunks).unwrap();
            prop_assert_eq!(passed, messages);
            prop_assert_eq!(end.as_deref(), Some(&b"grpc-status: 0\r\n"[..]));
        }

        #[test]
        fn rubbish_is_refused_or_passed_but_never_kept(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mut splitter, mut pieces) = (Splitter::new(), VecDeque::new());
            let _either = splitter.take(&bytes.into(), &mut pieces);
            prop_assert!(splitter.end.len() <= TRAILERS_BYTES_MAX);
        }
    }

    #[test]
    fn a_whole_chunk_of_messages_passes_without_a_copy() {
        let chunk = Bytes::from([frame(0, b"one"), frame(0, b""), frame(0, b"two")].concat());
        let mut pieces = VecDeque::new();
        Splitter::new().take(&chunk, &mut pieces).unwrap();
        let Some(Piece::Data(passed)) = pieces.pop_front() else {
            panic!("nothing passed")
        };
        assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), chunk.len()));
        assert!(pieces.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(
            split(&[&frame(7, b"x")]).unwrap_err(),
            Malformed::Frame { kind: 7, bytes: 1 }
        );
        assert!(split(&[&frame(BEAT, b"x")]).is_err());
        assert!(split(&[&[END, 255, 0, 0, 0]]).is_err());
        let behind = [frame(END, b""), frame(0, b"more")].concat();
        assert_eq!(split(&[&behind]).unwrap_err(), Malformed::BehindTheEnd);
    }
}
