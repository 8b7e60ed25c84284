//! The mark: how far the log once reached on this disk, kept apart from the log.
//!
//! Disks and their caches lose what they confirmed. A server whose log ends before its mark has forgotten
//! entries it acknowledged; its vote could elect a leader that never had them, so it must not vote until a
//! leader has given them back. The mark also holds the last vote, which is simply restored.
//!
//! Written at most once a second and at shutdown, so it may trail the log; it never runs ahead of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::identity::replace_file;
use crate::raft::types::{LogId, Vote};

const MAGIC: &[u8; 8] = b"RCMARK01";

/// What the mark file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The log reached at least this entry.
    pub(crate) log: Option<LogId>,
    /// This vote was given.
    pub(crate) vote: Option<Vote>,
    /// The server does not know what it once acknowledged: its folder is new in a running cluster, or an earlier mark
    /// was unreadable. It must catch up with a leader before it votes.
    pub(crate) rejoining: bool,
}

/// The mark file of a data folder.
#[derive(Debug)]
pub(crate) struct MarkFile {
    path: PathBuf,
}

impl MarkFile {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join("mark"),
        }
    }

    /// Reads the mark. No file: nothing was ever marked. `None`: there is one that cannot be read.
    pub(crate) fn read(&self) -> Result<Option<Mark>, StoreError> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Mark::default())),
            Err(error) => Err(StoreError::folder(&self.path, error)),
        }
    }

    pub(crate) fn write(&self, mark: &Mark) -> io::Result<()> {
        replace_file(&self.path, &encode(mark))
    }
}

/// Keeps the mark file a little behind the log.
pub(crate) struct MarkKeeper {
    file: Mutex<MarkFile>,
    current: Mutex<Mark>,
    written: Mutex<Mark>,
}

impl MarkKeeper {
    pub(crate) fn new(file: MarkFile, mark: Mark) -> Self {
        Self {
            file: Mutex::new(file),
            current: Mutex::new(mark.clone()),
            written: Mutex::new(mark),
        }
    }

    pub(crate) fn current(&self) -> Mark {
        self.current.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Mark)) {
        change(&mut self.current.lock());
    }

    /// Changes the mark and writes it before returning.
    pub(crate) fn write(&self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        let file = self.file.lock();
        self.update(change);
        self.write_locked(&file)
    }

    fn write_locked(&self, file: &MarkFile) -> io::Result<()> {
        let mark = self.current();
        if *self.written.lock() == mark {
            return Ok(());
        }
        file.write(&mark)?;
        *self.written.lock() = mark;
        Ok(())
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        let file = self.file.lock();
        self.write_locked(&file)
    }
}

fn encode(mark: &Mark) -> Vec<u8> {
    let body = postcard::to_allocvec(mark).expect("a mark has no part that postcard refuses");
    let mut bytes = MAGIC.to_vec();
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Mark> {
    let (crc, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::log_id;

    #[test]
    fn a_mark_survives_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = MarkFile::in_folder(folder.path());
        assert_eq!(file.read().unwrap(), Some(Mark::default()));
        let mark = Mark {
            log: Some(log_id(3, 17)),
            vote: Some(Vote::new(4, 2)),
            rejoining: false,
        };
        file.write(&mark).unwrap();
        assert_eq!(file.read().unwrap(), Some(mark));

        let path = folder.path().join("mark");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(file.read().unwrap(), None, "byte {at}");
        }
    }
}
