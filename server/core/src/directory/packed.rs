//! Texts and numbers in one piece of text, for records of which there are few: how many they are, and each of them.
//!
//! A number is written in digits of six bits, lowest first, as ASCII; one that is followed by another has the bit
//! above set. A text is its length as such a number, and itself.

use std::cell::Cell;
use std::str::Utf8Error;
use std::sync::Arc;

const DIGIT_BITS: u32 = 6;
const MORE: u8 = 1 << DIGIT_BITS;
/// A thread keeps at most so much memory to pack in.
const KEPT_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// Most records are packed once, and then copied to where they stay.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Records on their way into one piece.
pub(super) struct Packing {
    /// The first byte is the place of the number of records.
    bytes: Vec<u8>,
    records: usize,
}

impl Packing {
    pub(super) fn begin() -> Self {
        let mut bytes = ROOM.take();
        bytes.clear();
        bytes.push(0);
        Self { bytes, records: 0 }
    }

    /// What is put from here on is of one more record.
    pub(super) fn begin_record(&mut self) {
        self.records += 1;
    }

    pub(super) fn put_number(&mut self, number: usize) {
        put_number(&mut self.bytes, number);
    }

    /// Whether it is text is seen in the end: lengths keep texts apart, so that all of them are if the whole is.
    pub(super) fn put_text(&mut self, text: &[u8]) {
        put_number(&mut self.bytes, text.len());
        self.bytes.extend_from_slice(text);
    }

    /// The piece; `None` without records.
    pub(super) fn finish(mut self) -> Result<Option<Arc<str>>, Utf8Error> {
        let piece = match self.records {
            0 => None,
            _ => {
                self.put_count();
                Some(Arc::from(str::from_utf8(&self.bytes)?))
            }
        };
        if self.bytes.capacity() <= KEPT_BYTES_MAX {
            ROOM.set(self.bytes);
        }
        Ok(piece)
    }

    fn put_count(&mut self) {
        if self.records < MORE.into() {
            self.bytes[0] = self.records as u8;
            return;
        }
        let mut count = Vec::new();
        put_number(&mut count, self.records);
        self.bytes.splice(..1, count);
    }
}

fn put_number(bytes: &mut Vec<u8>, mut number: usize) {
    loop {
        let digit = (number & usize::from(MORE - 1)) as u8;
        number >>= DIGIT_BITS;
        let more = if number > 0 { MORE } else { 0 };
        bytes.push(digit | more);
        if number == 0 {
            break;
        }
    }
}

/// How many records a piece holds, and the records themselves.
#[inline]
pub(super) fn open(piece: Option<&str>) -> (usize, &str) {
    let mut rest = piece.unwrap_or_default();
    let records = take_number(&mut rest).unwrap_or(0);
    (records, rest)
}

/// What is left behind the number; `None` at the end.
#[inline]
pub(super) fn take_number(rest: &mut &str) -> Option<usize> {
    // Most are below 64.
    let first = *rest.as_bytes().first()?;
    if first & MORE == 0 {
        *rest = rest.get(1..)?;
        return Some(first.into());
    }
    take_long_number(rest)
}

fn take_long_number(rest: &mut &str) -> Option<usize> {
    let (mut number, mut shift, mut digits) = (0_usize, 0, 0);
    for byte in rest.bytes() {
        digits += 1;
        number |= usize::from(byte & (MORE - 1)) << shift;
        shift += DIGIT_BITS;
        if byte & MORE == 0 {
            break;
        }
    }
    *rest = rest.get(digits..).filter(|_| digits > 0)?;
    Some(number)
}

/// What is left behind the text; `None` at the end.
#[inline]
pub(super) fn take_text<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let length = take_number(rest)?;
    let (text, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(records: usize, text: &[u8]) -> Result<Option<Arc<str>>, Utf8Error> {
        let mut packing = Packing::begin();
        for number in 0..records {
            packing.begin_record();
            packing.put_number(number);
            packing.put_text(text);
        }
        packing.finish()
    }

    #[test]
    fn a_piece_tells_how_many_records_it_has_and_what_they_are() {
        let long = "x".repeat(2 * KEPT_BYTES_MAX);
        for (records, text) in [(1, &*long), (0, ""), (1, ""), (63, "ü"), (64, "b"), (5_000, "c")] {
            let piece = packed(records, text.as_bytes()).unwrap();
            let (count, mut rest) = open(piece.as_deref());
            assert_eq!((count, piece.is_none()), (records, records == 0));
            for number in 0..records {
                assert_eq!(take_number(&mut rest), Some(number));
                assert_eq!(take_text(&mut rest), Some(text));
            }
            assert_eq!(take_number(&mut rest), None);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_wherever_they_are_cut() {
        for text in [&b"\xff"[..], b"\xc3", b"a\xc3", b"\xbc", b"\xf0\x9f\x98"] {
            assert!(packed(1, text).is_err());
            assert!(packed(2, text).is_err());
        }
        let mut packing = Packing::begin();
        // Together they would be one letter.
        for half in [b"\xc3", b"\xbc"] {
            packing.begin_record();
            packing.put_text(half);
        }
        assert!(packing.finish().is_err());
        assert!(packed(1, b"whole").is_ok(), "nothing is left over");
    }
}
