//! The epoch on disk: which of its lives a server is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::identity::EPOCH_MAX;
use crate::store::replace_file;

const MAGIC: &[u8; 8] = b"RCEPCH01";

/// The epoch file of a data folder.
#[derive(Clone, Debug)]
pub(crate) struct EpochFile {
    path: PathBuf,
}

impl EpochFile {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join("gossip-epoch"),
        }
    }

    /// Begins a new life: an epoch above each that was ever used here, and at least `at_least`. It is on disk
    /// when this returns. An unreadable file counts as none: the other servers tell what they remember.
    pub(crate) fn begin(&self, at_least: u64) -> io::Result<u64> {
        let last = match fs::read(&self.path) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|| {
                tracing::warn!(file = %self.path.display(), "epoch unreadable, asking the others");
                0
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let epoch = last.saturating_add(1).max(at_least);
        if epoch > EPOCH_MAX {
            return Err(io::Error::other(format!(
                "epoch {epoch} is beyond the last, {EPOCH_MAX}"
            )));
        }
        replace_file(&self.path, &encode(epoch))?;
        Ok(epoch)
    }
}

fn encode(epoch: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(epoch.to_be_bytes());
    bytes.extend(crc32fast::hash(&epoch.to_be_bytes()).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let (epoch, crc) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    (crc == crc32fast::hash(epoch).to_be_bytes()).then_some(u64::from_be_bytes(*epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_never_used_twice() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        assert_eq!(file.begin(0).unwrap(), 1);
        assert_eq!(file.begin(0).unwrap(), 2);
        assert_eq!(file.begin(40).unwrap(), 40);
        assert_eq!(file.begin(7).unwrap(), 41);
        assert!(file.begin(EPOCH_MAX + 1).is_err());
        assert_eq!(file.begin(0).unwrap(), 42);
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        file.begin(300).unwrap();
        let path = folder.path().join("gossip-epoch");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        fs::write(&path, b"").unwrap();
        assert_eq!(file.begin(0).unwrap(), 1);
    }
}
