//! Why a server cannot use its data folder.

use std::io;
use std::path::{Path, PathBuf};

/// Each says which file, what is wrong, and what to do. The codes are explained in `docs/errors/`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Make the folder writable for the server's user, or name another.
    #[error("RC-101: cannot use {}: {source}; make it readable and writable for this user", path.display())]
    Folder {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Make room, then start again; nothing was lost.
    #[error(
        "RC-111: {free} bytes are free under {}, at least {needed} are needed to open the log; make room and start again",
        path.display()
    )]
    NoRoom {
        /// The data folder.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// Make room, then start again; nothing was lost.
    #[error("RC-111: there is no room to write {}: {source}; make room and start again", path.display())]
    Full {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder belongs to someone else: correct the configuration or the path.
    #[error(
        "RC-102: {} belongs to server {found_server} of cluster {found_cluster:?}, but this is server {server} of \
         cluster {cluster:?}; correct the configuration, or name another data folder",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Cluster in the configuration.
        cluster: String,
        /// Server id in the configuration.
        server: u64,
        /// Cluster in the folder.
        found_cluster: String,
        /// Server id in the folder.
        found_server: u64,
    },
    /// Stop the other process, or name another folder.
    #[error("RC-103: {} is in use by another process; stop that one first", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The log cannot be read whole; the server must be rebuilt from its peers.
    #[error(
        "RC-104: the log in {} is damaged: {problem}; nothing was changed. If other servers of the cluster are well, \
         keep a copy of this server's data folder, and replace it by a server with a new id (docs/operations.md, Replace \
         a server)",
        path.display()
    )]
    LogDamaged {
        /// The folder of the log.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The snapshot cannot be read whole.
    #[error("RC-105: the snapshot {} is damaged: {problem}; {remedy}", path.display())]
    SnapshotDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Snapshot and log leave a gap between them.
    #[error(
        "RC-106: {}: the log begins behind index {purged}, but the newest snapshot ends at {snapshot}; entries between \
         are gone. Keep a copy of this server's data folder, and replace it by a server with a new id \
         (docs/operations.md, Replace a server)",
        path.display()
    )]
    Gap {
        /// The data folder.
        path: PathBuf,
        /// Last purged index.
        purged: u64,
        /// Last index in a snapshot, for people.
        snapshot: String,
    },
    /// The identity file cannot be understood.
    #[error("RC-102: {} is not an identity file: {problem}; restore it, or name another data folder", path.display())]
    IdentityDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The records of AP groups cannot be read whole.
    #[error(
        "RC-302: the records of AP groups in {} are damaged: {problem}; nothing was changed. If other servers of the \
         cluster are well, keep a copy of this server's data folder, and replace it by a server with a new id \
         (docs/operations.md, Replace a server)",
        path.display()
    )]
    RecordsDamaged {
        /// The folder they are in.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The only voter's disk forgot acknowledged entries; nobody has them.
    #[error(
        "RC-108: {} holds the log up to {found}, but it once reached {marked}, and no other server can supply the rest; \
         restore the folder from a backup, or delete the file `mark` in it to accept the loss",
        path.display()
    )]
    Forgotten {
        /// The data folder.
        path: PathBuf,
        /// Last log position found.
        found: String,
        /// Position in the mark.
        marked: String,
    },
}

impl StoreError {
    pub(crate) fn folder(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match is_full(&source) {
            true => Self::Full { path, source },
            false => Self::Folder { path, source },
        }
    }
}

/// Whether an error means that the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_folder_that_cannot_be_used() {
        let told = |kind: io::ErrorKind| StoreError::folder("/data", io::Error::from(kind)).to_string();
        assert!(told(io::ErrorKind::StorageFull).starts_with("RC-111: "));
        assert!(told(io::ErrorKind::QuotaExceeded).starts_with("RC-111: "));
        assert!(told(io::ErrorKind::PermissionDenied).starts_with("RC-101: "));
    }
}
