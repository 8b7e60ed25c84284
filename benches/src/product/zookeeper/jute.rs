//! ZooKeeper's wire format: frames with a length, big-endian numbers, strings with a length.

use anyhow::{Context, Result, bail};

/// A request, as it is written.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Room for the length is left at the front.
    pub(super) fn new() -> Self {
        Self(vec![0; 4])
    }

    pub(super) fn int(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, value: i64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn flag(mut self, value: bool) -> Self {
        self.0.push(value.into());
        self
    }

    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(&length(value.len()));
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    /// The frame.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = length(self.0.len() - 4);
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

fn length(bytes: usize) -> [u8; 4] {
    i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes()
}

/// An answer, as it is read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .context("the answer is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn int(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into()?))
    }

    pub(super) fn long(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?))
    }

    /// Absent is empty.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        match self.int()? {
            -1 => Ok(&[]),
            length => self.take(usize::try_from(length)?),
        }
    }
}

/// Codes of operations.
pub(super) const CREATE: i32 = 1;
pub(super) const DELETE: i32 = 2;
pub(super) const GET_CHILDREN: i32 = 8;
pub(super) const SYNC: i32 = 9;
pub(super) const PING: i32 = 11;
pub(super) const MULTI: i32 = 14;
pub(super) const CLOSE: i32 = -11;

/// Numbers of messages that are no answers to numbered requests.
pub(super) const EVENT_XID: i32 = -1;
pub(super) const PING_XID: i32 = -2;

pub(super) const NODE_EXISTS: i32 = -110;

/// The error of an answer.
pub(super) fn check(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        -4 => bail!("the connection is lost"),
        -101 => bail!("there is no such node"),
        -110 => bail!("the node exists"),
        -112 => bail!("the session has expired"),
        other => bail!("ZooKeeper's error {other}"),
    }
}

/// The body of a create: open to everyone.
pub(super) fn create(request: Writer, path: &str, ephemeral: bool) -> Writer {
    request
        .text(path)
        .bytes(&[])
        .int(1)
        .int(31)
        .text("world")
        .text("anyone")
        .int(ephemeral.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frame = Writer::new()
            .int(-7)
            .long(1 << 40)
            .text("abc")
            .flag(true)
            .finish();
        let mut reader = Reader(&frame);
        assert_eq!(reader.int().unwrap(), frame.len() as i32 - 4);
        assert_eq!(reader.int().unwrap(), -7);
        assert_eq!(reader.long().unwrap(), 1 << 40);
        assert_eq!(reader.bytes().unwrap(), b"abc");
        assert_eq!(reader.0, [1]);
        assert!(reader.int().is_err());
    }
}
