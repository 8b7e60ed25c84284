//! What the log's handles and its writer share: the files, the newest entries, how far they are on disk.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::engine::Engine;
use super::mark::MarkKeeper;
use super::opening::Found;
use super::record;
use super::space::SpaceWatch;
use super::trouble::Trouble;
use crate::ground::Family;
use crate::raft::types::{Entry, LogId, Vote};
use crate::raft::wire;

/// Bytes of synced entries kept in memory, so that followers are served without a read. One that fell further behind
/// is read for from disk, a megabyte at a time.
pub(crate) const CACHE_BYTES_MAX: usize = 2 << 20;
/// What an entry takes up in the cache besides its bytes.
const CACHED_ENTRY_BYTES: usize = 256;
pub(crate) struct Shared {
    /// Locked for writing only while it is closed.
    engine: RwLock<Option<Engine>>,
    pub(super) cache: Mutex<Cache>,
    pub(super) vote: Mutex<Option<Vote>>,
    pub(crate) committed: Mutex<Option<LogId>>,
    pub(crate) space: Arc<SpaceWatch>,
    pub(crate) mark: MarkKeeper,
    mark_trouble: Trouble,
    pub(super) fault: watch::Sender<Option<String>>,
    abandoned: AtomicBool,
    /// Told when `flushed` has moved.
    pub(super) synced: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Cache {
    /// The newest entries, without holes; the last of them is the log's last.
    entries: VecDeque<Entry>,
    pub(super) bytes: usize,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) flushed: Option<LogId>,
}

/// What an entry takes up in the cache.
fn cached_size(entry: &Entry) -> usize {
    wire::entry_size(entry) + CACHED_ENTRY_BYTES
}

impl Cache {
    pub(super) fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let expected = self.last.map_or(0, |last| last.index + 1);
            if entry.log_id.index != expected {
                return Err(io::Error::other(format!(
                    "entry {} cannot follow, expected index {expected}",
                    entry.log_id
                )));
            }
            self.bytes += cached_size(entry);
            self.last = Some(entry.log_id);
            self.entries.push_back(entry.clone());
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, last: Option<LogId>) {
        while self.entries.back().is_some_and(|entry| Some(entry.log_id) > last) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= cached_size(&entry);
            }
        }
        self.last = self.last.min(last.max(self.purged));
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        while self.first_index().is_some_and(|first| first <= upto.index) {
            self.drop_first();
        }
        self.purged = self.purged.max(Some(upto));
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
    }

    fn evict(&mut self) {
        let flushed = self.flushed.map_or(0, |flushed| flushed.index + 1);
        while self.bytes > CACHE_BYTES_MAX && self.first_index().is_some_and(|first| first < flushed) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= cached_size(&entry);
        }
    }
}

impl Shared {
    pub(super) fn new(
        engine: Engine,
        found: &Found,
        vote: Option<Vote>,
        space: Arc<SpaceWatch>,
        mark: MarkKeeper,
    ) -> Self {
        let last = found.last;
        Self {
            engine: RwLock::new(Some(engine)),
            cache: Mutex::new(Cache {
                last,
                purged: found.purged,
                flushed: last,
                ..Cache::default()
            }),
            vote: Mutex::new(vote),
            committed: Mutex::new(found.committed.min(last)),
            space,
            mark,
            mark_trouble: Trouble::default(),
            fault: watch::Sender::new(None),
            abandoned: AtomicBool::new(false),
            synced: Arc::default(),
        }
    }

    pub(crate) fn with_engine<T>(&self, work: impl FnOnce(&Engine) -> io::Result<T>) -> io::Result<T> {
        match &*self.engine.read() {
            Some(engine) => work(engine),
            None => Err(io::Error::other("the log is closed")),
        }
    }

    /// Closes the files. After a failed write they are left to the process's end: RocksDB cannot be closed
    /// then (a build with assertions, like Debian's, would abort).
    pub(crate) fn close_engine(&self) {
        let engine = self.engine.write().take();
        if self.fault().is_some() {
            std::mem::forget(engine);
        }
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// The first fault stays.
    pub(crate) fn set_fault(&self, fault: String) {
        self.fault.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                tracing::error!("{fault}");
                *current = Some(fault);
            }
            first
        });
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.engine.read().is_none()
    }

    /// Writes the mark where it has changed.
    pub(crate) fn flush_mark(&self) {
        match self.mark.flush() {
            Err(error) if self.mark_trouble.begins() => {
                tracing::warn!(%error, "mark not written, trying again")
            }
            Err(_) => {}
            Ok(()) if self.mark_trouble.ends() => tracing::info!("the mark is written again"),
            Ok(()) => {}
        }
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn note_flushed(&self, flushed: Option<LogId>) {
        let moved = {
            let mut cache = self.cache.lock();
            let moved = cache.flushed != flushed;
            cache.flushed = flushed;
            cache.evict();
            moved
        };
        if moved {
            self.synced.notify_one();
        }
    }

    /// Reads `[start, end)`, at most about `bytes_max`, at least one entry if there is one.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let (cached, from) = {
            let cache = self.cache.lock();
            let purged = cache.purged.map_or(0, |purged| purged.index + 1);
            let end = end.min(cache.last.map_or(0, |last| last.index + 1));
            let start = start.max(purged);
            let from = cache.first_index().unwrap_or(end).clamp(start.min(end), end);
            if start < from {
                // The older part comes from disk; the newer one is read when the caller comes again, or below.
                (None, (start, from, end))
            } else {
                let skip = (start - cache.first_index().unwrap_or(start)) as usize;
                let count = end.saturating_sub(start) as usize;
                let entries = cache.entries.iter().skip(skip).take(count);
                (
                    Some(take_bytes(entries.cloned().map(Ok), bytes_max)?),
                    (start, from, end),
                )
            }
        };
        if let Some(entries) = cached {
            return Ok(entries);
        }
        let (start, from, end) = from;
        let mut entries = match self.read_disk(start, from, bytes_max) {
            Ok(entries) => entries,
            // A purge overtook the read: what it removed need not be found.
            Err(_)
                if self
                    .cache
                    .lock()
                    .purged
                    .is_some_and(|purged| purged.index >= start) =>
            {
                return self.read(start, end, bytes_max);
            }
            Err(error) => {
                self.set_fault(format!("RC-104: the log cannot be read back: {error}"));
                return Err(error);
            }
        };
        let size: usize = entries.iter().map(wire::entry_size).sum();
        if entries.len() as u64 == from - start && size < bytes_max && from < end {
            entries.extend(self.read(from, end, bytes_max - size)?);
        }
        Ok(entries)
    }

    fn read_disk(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        self.with_engine(|engine| Self::read_rows(engine, start, end, bytes_max))
    }

    fn read_rows(engine: &Engine, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut expected = start;
        let found = engine.rows_from(Family::Log, &record::key(start))?.map(|item| {
            let (key, value) = item?;
            let index = record::index_of(&key).map_err(io::Error::other)?;
            if index != expected {
                return Err(io::Error::other(format!(
                    "entry {expected} is missing from the log"
                )));
            }
            expected += 1;
            record::decode(index, &value).map_err(io::Error::other)
        });
        take_bytes(found.take((end - start) as usize), bytes_max)
    }
}

fn take_bytes(entries: impl Iterator<Item = io::Result<Entry>>, bytes_max: usize) -> io::Result<Vec<Entry>> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        bytes += wire::entry_size(&entry);
        taken.push(entry);
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(taken)
}
