//! Snapshots: files `snapshots/TERM-INDEX.snap`, of which the newest is kept.
//!
//! A file is magic, length and bytes of the meta (as [`wire`] writes it), length and bytes of the body, and a
//! crc32 of all that. It gets its name only when it is whole and synced, so a name stands for a whole file,
//! and the old snapshot stays until the new one has its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::StoreError;
use super::identity::sync_folder_of;
use crate::raft::types::{LogId, SnapshotMeta};
use crate::raft::wire;

const MAGIC: &[u8; 8] = b"RCSNAP01";
/// Bytes that are received between two syncs.
const SYNC_EVERY: usize = 16 << 20;

/// A whole snapshot on disk. It stays readable through this value even when its file has been replaced.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl SnapshotFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            length,
        })
    }

    /// Length of the file, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads up to `length` bytes from `offset`; fewer only at the end. Blocks.
    pub(crate) fn chunk(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let rest = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(rest)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// Reads the whole and checks it. Blocks.
    pub(crate) fn load(&self) -> Result<(SnapshotMeta, Bytes), String> {
        let length = usize::try_from(self.length).map_err(|error| error.to_string())?;
        let bytes = self.chunk(0, length).map_err(|error| error.to_string())?;
        decode(bytes)
    }
}

fn decode(mut bytes: Bytes) -> Result<(SnapshotMeta, Bytes), String> {
    if bytes.len() < MAGIC.len() + 4 || !bytes.starts_with(MAGIC) {
        return Err("it is not a snapshot of this version".into());
    }
    let checksum = bytes.split_off(bytes.len() - 4);
    let expected = checksum
        .first_chunk::<4>()
        .map(|bytes| u32::from_le_bytes(*bytes));
    if expected != Some(crc32fast::hash(&bytes)) {
        return Err("its checksum does not match".into());
    }
    let _magic = bytes.split_to(MAGIC.len());
    let meta = take_block(&mut bytes)?;
    let body = take_block(&mut bytes)?;
    let meta = wire::decode_snapshot_meta(meta).map_err(|error| format!("its head: {error}"))?;
    Ok((meta, body))
}

fn take_block(bytes: &mut Bytes) -> Result<Bytes, String> {
    let cut_short = || "it is cut short".to_owned();
    let length = bytes.first_chunk::<8>().ok_or_else(cut_short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut_short())?;
    let _length = bytes.split_to(8);
    match length <= bytes.len() {
        true => Ok(bytes.split_to(length)),
        false => Err(cut_short()),
    }
}

/// The snapshots of a data folder.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    folder: PathBuf,
    /// Locked to look and to replace only, never over the disk.
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    /// Names are given and old files removed by one at a time: snapshots are built while a leader's is installed.
    installing: Mutex<()>,
    incoming: AtomicU64,
}

impl SnapshotStore {
    /// Finds the newest snapshot and checks it. `log_reaches_back`: the log still holds every entry, so a
    /// damaged snapshot may simply be deleted.
    pub(crate) fn open(data: &Path, log_reaches_back: bool) -> Result<Self, StoreError> {
        let folder = data.join("snapshots");
        fs::create_dir_all(&folder).map_err(|error| StoreError::folder(&folder, error))?;
        let mut named = Vec::new();
        for item in fs::read_dir(&folder).map_err(|error| StoreError::folder(&folder, error))? {
            let path = item.map_err(|error| StoreError::folder(&folder, error))?.path();
            match position_in_name(&path) {
                Some(position) => named.push((position, path)),
                // Left behind by a crash while it was being written.
                None if path.extension().is_some_and(|extension| extension == "tmp") => {
                    fs::remove_file(&path).map_err(|error| StoreError::folder(&path, error))?;
                }
                None => {}
            }
        }
        named.sort();
        let current = match named.last() {
            Some((_, path)) => {
                let file = SnapshotFile::open(path).map_err(|error| StoreError::folder(path, error))?;
                let (meta, _body) = file.load().map_err(|problem| StoreError::SnapshotDamaged {
                    path: path.clone(),
                    problem,
                    remedy: remedy(log_reaches_back).into(),
                })?;
                Some((meta, file))
            }
            None => None,
        };
        let store = Self {
            folder,
            current: Mutex::new(current),
            installing: Mutex::default(),
            incoming: AtomicU64::new(0),
        };
        store.remove_older();
        Ok(store)
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.current.lock().clone()
    }

    /// Writes a snapshot and makes it the current one. Blocks.
    pub(crate) fn write(&self, meta: &SnapshotMeta, body: &[u8]) -> io::Result<SnapshotFile> {
        let mut incoming = self.incoming()?;
        let meta_bytes = wire::encode_snapshot_meta(meta);
        let mut checksum = crc32fast::Hasher::new();
        let meta_length = (meta_bytes.len() as u64).to_le_bytes();
        let body_length = (body.len() as u64).to_le_bytes();
        for part in [&MAGIC[..], &meta_length, &meta_bytes, &body_length, body] {
            checksum.update(part);
            incoming.write(part)?;
        }
        incoming.write(&checksum.finalize().to_le_bytes())?;
        let file = incoming.sync()?;
        self.install(meta, &file)
    }

    /// Starts to receive a snapshot file, part by part. Blocks.
    pub(crate) fn incoming(&self) -> io::Result<IncomingSnapshot> {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("incoming-{number}.tmp"));
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)?;
        Ok(IncomingSnapshot {
            path,
            file,
            unsynced: 0,
        })
    }

    /// Gives a synced file its name and makes it the current snapshot. One that is older than the current is
    /// left to its owner: the log may have been purged up to the newer one meanwhile. Blocks.
    pub(crate) fn install(&self, meta: &SnapshotMeta, file: &SnapshotFile) -> io::Result<SnapshotFile> {
        let _one_at_a_time = self.installing.lock();
        if let Some((newest, _)) = self.current()
            && newest.last_log_id > meta.last_log_id
        {
            return Ok(file.clone());
        }
        let path = self.folder.join(file_name(meta.last_log_id.as_ref()));
        if path != file.path {
            fs::rename(&file.path, &path)?;
            sync_folder_of(&path)?;
        }
        let installed = SnapshotFile { path, ..file.clone() };
        *self.current.lock() = Some((meta.clone(), installed.clone()));
        self.remove_older();
        Ok(installed)
    }

    /// Lets nothing be installed until told.
    #[cfg(test)]
    pub(crate) fn hold(&self, held: &std::sync::mpsc::Sender<()>, until: &std::sync::mpsc::Receiver<()>) {
        let _installing = self.installing.lock();
        held.send(()).unwrap();
        until.recv().unwrap();
    }

    fn remove_older(&self) {
        let current = self.current().and_then(|(_, file)| position_in_name(&file.path));
        let Ok(items) = fs::read_dir(&self.folder) else {
            return;
        };
        for path in items.filter_map(Result::ok).map(|item| item.path()) {
            let position = position_in_name(&path);
            if position.is_some()
                && position < current
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(file = %path.display(), %error, "old snapshot not removed");
            }
        }
    }
}

fn remedy(log_reaches_back: bool) -> &'static str {
    match log_reaches_back {
        true => "the log still holds every entry, so delete this file and start again",
        false => {
            "if other servers of the cluster are well, keep a copy of this server's data folder, and replace it by a \
             server with a new id (docs/operations.md, Replace a server)"
        }
    }
}

fn file_name(last: Option<&LogId>) -> String {
    // Index first in the order, term first in the name: both are told apart by position_in_name.
    last.map_or_else(
        || "0-0.snap".into(),
        |last| format!("{}-{}.snap", last.leader_id.term, last.index),
    )
}

/// (index, term), so that the greatest is the newest.
fn position_in_name(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".snap")?;
    let (term, index) = name.split_once('-')?;
    Some((index.parse().ok()?, term.parse().ok()?))
}

/// A snapshot file that is not whole yet; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct IncomingSnapshot {
    path: PathBuf,
    file: File,
    unsynced: usize,
}

impl IncomingSnapshot {
    /// Syncs now and then, so that whoever sends goes at the disk's pace and does not wait for all of it at the end.
    /// Blocks.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Syncs what was written. Blocks.
    pub(crate) fn sync(&mut self) -> io::Result<SnapshotFile> {
        self.file.sync_all()?;
        SnapshotFile::open(&self.path)
    }

    /// Syncs and checks what was received. Blocks.
    pub(crate) fn finish(&mut self) -> Result<(SnapshotMeta, SnapshotFile), String> {
        let file = self.sync().map_err(|error| error.to_string())?;
        let (meta, _body) = file.load()?;
        Ok((meta, file))
    }
}

impl Drop for IncomingSnapshot {
    fn drop(&mut self) {
        // Once it has its name there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::log_id;

    fn meta(term: u64, index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(log_id(term, index)),
            ..SnapshotMeta::default()
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder.join("snapshots"))
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_snapshot_is_kept_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        assert!(store.current().is_none());
        store.write(&meta(1, 5), b"old").unwrap();
        store.write(&meta(2, 10), b"new").unwrap();
        assert_eq!(files(folder.path()), ["2-10.snap"]);
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        let (found, body) = store.current().unwrap().1.load().unwrap();
        assert_eq!((found, &body[..]), (meta(2, 10), &b"new"[..]));
    }

    #[test]
    fn an_older_snapshot_that_is_ready_later_does_not_take_the_newer_ones_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        store.write(&meta(2, 10), b"new").unwrap();
        let late = store.write(&meta(1, 5), b"old").unwrap();
        assert_eq!(&late.load().unwrap().1[..], b"old", "readable for whoever has it");
        assert_eq!(store.current().unwrap().0, meta(2, 10));
        assert_eq!(files(folder.path()), ["2-10.snap"]);
    }

    #[test]
    fn two_that_are_installed_at_once_leave_the_newer() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        for round in 1..200 {
            let begin = std::sync::Barrier::new(2);
            let install = |index| {
                let (store, begin) = (&store, &begin);
                move || {
                    begin.wait();
                    store.write(&meta(1, index), b"body").unwrap();
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(install(2 * round));
                scope.spawn(install(2 * round + 1));
            });
            assert_eq!(files(folder.path()), [format!("1-{}.snap", 2 * round + 1)]);
        }
    }

    #[test]
    fn a_crash_while_receiving_leaves_the_old_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        store.write(&meta(1, 5), b"old").unwrap();
        let mut incoming = store.incoming().unwrap();
        incoming.write(b"half of a").unwrap();
        std::mem::forget(incoming);
        let store = SnapshotStore::open(folder.path(), true).unwrap();
        assert_eq!(files(folder.path()), ["1-5.snap"]);
        assert_eq!(&store.current().unwrap().1.load().unwrap().1[..], b"old");
    }

    #[test]
    fn a_received_file_is_checked_and_installed() {
        let from = tempfile::tempdir().unwrap();
        let sent = SnapshotStore::open(from.path(), true)
            .unwrap()
            .write(&meta(3, 7), &[9; 100_000])
            .unwrap();
        let to = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(to.path(), true).unwrap();
        let mut incoming = store.incoming().unwrap();
        let mut offset = 0;
        while offset < sent.length() {
            let chunk = sent.chunk(offset, 4096).unwrap();
            offset += chunk.len() as u64;
            incoming.write(&chunk).unwrap();
        }
        let (found, file) = incoming.finish().unwrap();
        store.install(&found, &file).unwrap();
        assert_eq!(files(to.path()), ["3-7.snap"]);

        let mut incoming = store.incoming().unwrap();
        incoming.write(&sent.chunk(0, 50_000).unwrap()).unwrap();
        assert!(incoming.finish().is_err());
    }

    #[test]
    fn damage_is_refused_with_the_file_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        SnapshotStore::open(folder.path(), true)
            .unwrap()
            .write(&meta(2, 10), b"content")
            .unwrap();
        let path = folder.path().join("snapshots/2-10.snap");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let error = SnapshotStore::open(folder.path(), false).unwrap_err().to_string();
            assert!(
                error.contains("RC-105") && error.contains("2-10.snap") && error.contains("new id"),
                "{error}"
            );
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = SnapshotStore::open(folder.path(), true).unwrap_err().to_string();
            assert!(error.contains("delete this file"), "{error}");
        }
    }
}
