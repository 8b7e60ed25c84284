//! Whose data folder it is, and that only one process uses it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::error::StoreError;

/// Who a server is. Written into the data folder on its first start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the server, at least 1.
    pub server: u64,
}

/// A data folder that this process owns until the value is dropped.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    first_start: bool,
    _lock: File,
}

impl DataFolder {
    /// Takes the folder, creating it if it is not there; on its first use writes `identity` into it.
    ///
    /// # Errors
    /// The folder cannot be written, is another server's, or is in use.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|error| StoreError::folder(path, error))?;
        let lock = lock(path)?;
        let file = path.join("identity");
        let first_start = match fs::read(&file) {
            Ok(bytes) => {
                check(path, &file, &bytes, identity)?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let bytes = toml::to_string(identity).map_err(|error| StoreError::IdentityDamaged {
                    path: file.clone(),
                    problem: error.to_string(),
                })?;
                replace_file(&file, bytes.as_bytes()).map_err(|error| StoreError::folder(&file, error))?;
                true
            }
            Err(error) => return Err(StoreError::folder(&file, error)),
        };
        Ok(Self {
            path: path.to_owned(),
            first_start,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the first time that a server uses the folder.
    #[must_use]
    pub fn first_start(&self) -> bool {
        self.first_start
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = path.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(|error| StoreError::folder(&file, error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(StoreError::folder(&file, error)),
    }
}

fn check(path: &Path, file: &Path, bytes: &[u8], identity: &Identity) -> Result<(), StoreError> {
    let damaged = |problem: String| StoreError::IdentityDamaged {
        path: file.to_owned(),
        problem,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let found: Identity = toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
    if &found == identity {
        return Ok(());
    }
    Err(StoreError::Foreign {
        path: path.to_owned(),
        cluster: identity.cluster.clone(),
        server: identity.server,
        found_cluster: found.cluster,
        found_server: found.server,
    })
}

/// Replaces a file by another one of the same name: whoever looks finds the old or the new one whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Makes renames and removals in a file's folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: &str, server: u64) -> Identity {
        Identity {
            cluster: cluster.into(),
            server,
        }
    }

    #[test]
    fn a_folder_keeps_to_its_first_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::open(folder.path(), &identity("east", 1)).unwrap();
        assert!(first.first_start());
        drop(first);
        assert!(
            !DataFolder::open(folder.path(), &identity("east", 1))
                .unwrap()
                .first_start()
        );
        for other in [identity("west", 1), identity("east", 2)] {
            let error = DataFolder::open(folder.path(), &other).unwrap_err().to_string();
            assert!(
                error.contains("RC-102") && error.contains("east") && error.contains(&other.cluster),
                "{error}"
            );
        }
    }

    #[test]
    fn two_processes_cannot_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = DataFolder::open(folder.path(), &identity("east", 1)).unwrap();
        let error = DataFolder::open(folder.path(), &identity("east", 1)).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = DataFolder::open(&file.join("data"), &identity("east", 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("RC-101") && error.contains("file/data"), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("identity"), [0xff, 0xfe]).unwrap();
        let error = DataFolder::open(folder.path(), &identity("east", 1)).unwrap_err();
        assert!(matches!(error, StoreError::IdentityDamaged { .. }), "{error}");
    }
}
