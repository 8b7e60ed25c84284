//! Texts and numbers in one piece of text.
//!
//! A number is written in digits of six bits, lowest first, as ASCII; one that is followed by another has the bit
//! above set. A text is its length as such a number, and itself.

const DIGIT_BITS: u32 = 6;
const MORE: u8 = 1 << DIGIT_BITS;

pub(super) fn put_number(packed: &mut String, mut number: usize) {
    loop {
        let digit = (number & usize::from(MORE - 1)) as u8;
        number >>= DIGIT_BITS;
        let more = if number > 0 { MORE } else { 0 };
        packed.push(char::from(digit | more));
        if number == 0 {
            break;
        }
    }
}

pub(super) fn put_text(packed: &mut String, text: &str) {
    put_number(packed, text.len());
    packed.push_str(text);
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
