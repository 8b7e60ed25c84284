//! Whether there is room on the disk.
//!
//! Below the reserve nothing more is proposed, so that what is already under way, votes and snapshots still
//! find room. A write that fails for lack of space waits and is tried again; it is never an error of Raft's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::StoreError;

/// How long to wait before a write that found no room is tried again.
pub(crate) const RETRY_FULL: Duration = Duration::from_millis(250);

/// Room for what opening the log may write: the last write-ahead log as a table, a manifest, a lock.
const OPENING_ROOM: u64 = 16 << 20;

/// Watches the free space under a data folder.
#[derive(Debug)]
pub struct SpaceWatch {
    path: PathBuf,
    reserve: u64,
    low: AtomicBool,
    write_blocked: AtomicBool,
}

impl SpaceWatch {
    /// Watches the file system of `path`; full below `reserve` bytes.
    #[must_use]
    pub fn new(path: &Path, reserve: u64) -> Self {
        let watch = Self {
            path: path.to_owned(),
            reserve,
            low: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
        };
        watch.check();
        watch
    }

    /// Whether proposals are to be refused: free space is below the reserve, or a write waits for space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.low.load(Ordering::Relaxed) || self.write_blocked.load(Ordering::Relaxed)
    }

    /// Whether `bytes` may be written without touching the last half of the reserve, which RocksDB needs for
    /// its own files: it does not get over a write that failed half done. Blocks shortly.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        let needed = (self.reserve / 2).saturating_add(bytes);
        free_bytes(&self.path).map_or(true, |free| free >= needed)
    }

    /// RocksDB writes as it opens, and ends the process if it cannot.
    ///
    /// # Errors
    /// There is too little room for that.
    pub(crate) fn check_room_to_open(&self) -> Result<(), StoreError> {
        self.check_room(OPENING_ROOM.min(self.reserve / 2))
    }

    fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        match free_bytes(&self.path) {
            Ok(free) if free < needed => Err(StoreError::NoRoom {
                path: self.path.clone(),
                free,
                needed,
            }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Measures; blocks for as long as the file system takes to say. To be called about once a second. Full
    /// ends only an eighth above the reserve, so that it does not flap.
    pub fn check(&self) {
        let free = match free_bytes(&self.path) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "free space not measured");
                return;
            }
        };
        let was_low = self.low.load(Ordering::Relaxed);
        let bound = if was_low {
            self.reserve + self.reserve / 8
        } else {
            self.reserve
        };
        let low = free < bound;
        if low != was_low {
            self.low.store(low, Ordering::Relaxed);
            match low {
                true => tracing::error!(
                    path = %self.path.display(), free, reserve = self.reserve,
                    "RC-111: disk nearly full, writes are refused until there is room"
                ),
                false => tracing::info!(path = %self.path.display(), free, "room on the disk again"),
            }
        }
    }

    /// A write found no room and waits.
    pub(crate) fn write_blocked(&self, what: &str) {
        if !self.write_blocked.swap(true, Ordering::Relaxed) {
            tracing::error!(path = %self.path.display(), what, "RC-111: disk full, the write waits for room");
        }
    }

    /// It got through.
    pub(crate) fn write_done(&self) {
        if self.write_blocked.load(Ordering::Relaxed) && self.write_blocked.swap(false, Ordering::Relaxed) {
            tracing::info!(path = %self.path.display(), "the waiting write got through");
        }
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_room_the_log_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let watch = SpaceWatch::new(folder.path(), 0);
        assert!(watch.check_room_to_open().is_ok());
        let free = free_bytes(folder.path()).unwrap();
        assert!(watch.check_room(free / 2).is_ok());
        let refused = watch.check_room(u64::MAX);
        assert!(refused.is_err_and(|refused| refused.to_string().contains("RC-111")));
    }

    #[test]
    fn an_impossible_reserve_is_full_and_none_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(SpaceWatch::new(folder.path(), u64::MAX / 2).is_full());
        let watch = SpaceWatch::new(folder.path(), 0);
        assert!(!watch.is_full());
        watch.write_blocked("test");
        assert!(watch.is_full());
        watch.write_done();
        assert!(!watch.is_full());
    }
}
