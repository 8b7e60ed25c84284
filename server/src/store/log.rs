//! The Raft log and the vote, in RocksDB (or whatever [`Engine`] stands in for it).
//!
//! Appends are readable at once from a cache and durable when the writer thread says so. The cache holds the
//! newest entries, up to [`CACHE_BYTES_MAX`], and every entry that is not yet synced. Older ones are read from
//! RocksDB, whose checksums are not relied on alone: each record has its own and carries its index.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use rollcall_core::mutants::{Mutant, planted};
use tokio::sync::{Notify, oneshot, watch};

use super::engine::Engine;
use super::error::StoreError;
use super::mark::{Mark, MarkFile};
use super::record;
use super::rows::{self, RowBatch, RowsError};
use super::space::SpaceWatch;
use super::trouble::Trouble;
use super::writer::{self, MarkKeeper, Op};
use crate::ground::{self, Family};
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::raft::wire;

pub(crate) const KEY_VOTE: &[u8] = b"vote";
pub(crate) const KEY_PURGED: &[u8] = b"purged";
pub(crate) const KEY_COMMITTED: &[u8] = b"committed";

/// Bytes of synced entries kept in memory, so that followers are served without a read. One that fell further behind
/// is read for from disk, a megabyte at a time.
pub(crate) const CACHE_BYTES_MAX: usize = 2 << 20;
/// What an entry takes up in the cache besides its bytes.
const CACHED_ENTRY_BYTES: usize = 256;
/// Bytes of entries given out at once where the reader can come again.
const READ_BYTES_MAX: usize = 1 << 20;

/// A server's log and vote. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    ops: Arc<writer::Queue>,
}

/// A log as it was found.
pub(crate) struct OpenedLog {
    pub(crate) store: LogStore,
    /// The last entry found.
    pub(crate) last: Option<LogId>,
    /// The last entry purged.
    pub(crate) purged: Option<LogId>,
    /// What was marked before; an unreadable mark tells to rejoin.
    pub(crate) mark: Mark,
    /// The mark could be read: it tells to rejoin only if a leader had been heard.
    pub(crate) mark_read: bool,
    /// Neither log nor a vote in any term: this server has not taken part in anything.
    pub(crate) pristine: bool,
}

pub(crate) struct Shared {
    /// Locked for writing only while it is closed.
    engine: RwLock<Option<Engine>>,
    cache: Mutex<Cache>,
    vote: Mutex<Option<Vote>>,
    pub(crate) committed: Mutex<Option<LogId>>,
    pub(crate) space: Arc<SpaceWatch>,
    pub(crate) mark: MarkKeeper,
    mark_trouble: Trouble,
    fault: watch::Sender<Option<String>>,
    abandoned: AtomicBool,
    /// Told when `flushed` has moved.
    synced: Arc<Notify>,
}

#[derive(Default)]
struct Cache {
    /// The newest entries, without holes; the last of them is the log's last.
    entries: VecDeque<Entry>,
    bytes: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    flushed: Option<LogId>,
}

/// What an entry takes up in the cache.
fn cached_size(entry: &Entry) -> usize {
    wire::entry_size(entry) + CACHED_ENTRY_BYTES
}

impl Cache {
    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
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

    fn truncate(&mut self, last: Option<LogId>) {
        while self.entries.back().is_some_and(|entry| Some(entry.log_id) > last) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= cached_size(&entry);
            }
        }
        self.last = self.last.min(last.max(self.purged));
    }

    fn purge(&mut self, upto: LogId) {
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
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
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

impl LogStore {
    /// Opens the log in `folder/log` and checks every entry of it.
    ///
    /// # Errors
    /// The folder cannot be used, or the log is damaged anywhere but at its torn end.
    pub(crate) fn open(folder: &Path, space: Arc<SpaceWatch>) -> Result<OpenedLog, StoreError> {
        space.check_room_to_open()?;
        let path = folder.join("log");
        let engine = Engine::open(&path)?;
        let found = Found::read(&engine, &path)?;
        let mark_file = MarkFile::in_folder(folder);
        let found_mark = mark_file.read()?;
        let mark_read = found_mark.is_some();
        let mark = found_mark.unwrap_or_else(|| {
            tracing::warn!(folder = %folder.display(), "mark unreadable, not voting until caught up");
            Mark {
                rejoining: true,
                ..Mark::default()
            }
        });
        let vote = newer_vote(found.vote, mark.vote);
        let last = found.last;
        let mut current = mark.clone();
        current.vote = vote;
        let shared = Arc::new(Shared {
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
            mark: MarkKeeper::new(mark_file, current),
            mark_trouble: Trouble::default(),
            fault: watch::Sender::new(None),
            abandoned: AtomicBool::new(false),
            synced: Arc::default(),
        });
        let ops = writer::start(shared.clone(), last).map_err(|error| StoreError::folder(&path, error))?;
        Ok(OpenedLog {
            store: Self {
                shared,
                ops: Arc::new(ops),
            },
            last,
            purged: found.purged,
            pristine: last.is_none() && vote.is_none_or(|vote| vote.leader_id.term == 0),
            mark,
            mark_read,
        })
    }

    /// Tells of the failure that ended the store, if one did.
    pub(crate) fn fault(&self) -> watch::Receiver<Option<String>> {
        self.shared.fault.subscribe()
    }

    /// What the mark says now.
    pub(crate) fn mark(&self) -> Mark {
        self.shared.mark.current()
    }

    /// The last entry there is, synced or not.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.shared.cache.lock().last
    }

    /// Told after each sync of entries. For one who waits: two would take each other's word.
    pub(crate) fn synced(&self) -> Arc<Notify> {
        self.shared.synced.clone()
    }

    /// The last entry that is synced.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        self.shared.cache.lock().flushed
    }

    /// The server has caught up (or, with `true`, must first): recorded before this returns.
    pub(crate) async fn set_rejoining(&self, rejoining: bool) -> io::Result<()> {
        let log = self.clone();
        let write = move || log.write_rejoining(rejoining);
        ground::spawn_blocking(write).await.map_err(io::Error::other)?
    }

    /// The same. Blocks.
    pub(crate) fn write_rejoining(&self, rejoining: bool) -> io::Result<()> {
        self.shared.mark.write(|mark| mark.rejoining = rejoining)
    }

    /// A write that waits for space is given up from now on.
    pub(crate) fn abandon(&self) {
        self.shared.abandon();
    }

    /// Waits for what is queued, then closes the files.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.ops.send(Op::Close { done }).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Writes rows beside the log; when this returns they are written, and synced if so asked.
    pub(crate) async fn write_rows(&self, rows: RowBatch) -> io::Result<()> {
        self.submit_and_wait(|done| Op::Rows { rows, done }).await
    }

    /// Hands every row beside the log to `take`, in the order of their keys. Blocks.
    ///
    /// # Errors
    /// A row is damaged, or `take` says so.
    pub(crate) fn read_rows(
        &self,
        take: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), RowsError> {
        let read = self.shared.with_engine(|engine| Ok(rows::read(engine, take)));
        read.unwrap_or_else(|error| Err(RowsError(error.to_string())))
    }

    async fn submit(&self, op: Op) -> io::Result<()> {
        self.ops.send(op).await
    }

    async fn submit_and_wait(&self, op: impl FnOnce(writer::Done) -> Op) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        self.submit(op(done)).await?;
        outcome
            .await
            .map_err(|_| io::Error::other("the log was closed"))?
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let in_cache = {
            let cache = self.shared.cache.lock();
            cache.first_index().is_some_and(|first| first <= start)
                || cache.last.is_none_or(|last| last.index < start)
        };
        if in_cache {
            return self.shared.read(start, end, bytes_max);
        }
        let shared = self.shared.clone();
        let read = move || shared.read(start, end, bytes_max);
        ground::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").finish_non_exhaustive()
    }
}

fn newer_vote(stored: Option<Vote>, marked: Option<Vote>) -> Option<Vote> {
    match (stored, marked) {
        (Some(stored), Some(marked)) if marked > stored => Some(marked),
        (stored, marked) => stored.or(marked),
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let chunks = stream::unfold((self.clone(), start), move |(log, start)| async move {
            if start >= end {
                return None;
            }
            match log.read(start, end, READ_BYTES_MAX).await {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), (log, next)))
                }
                Err(error) => Some((vec![Err(error)], (log, end))),
            }
        });
        chunks.map(stream::iter).flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(*self.shared.vote.lock())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let cache = self.shared.cache.lock();
        Ok(LogState {
            last_purged_log_id: cache.purged,
            last_log_id: cache.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        *self.shared.vote.lock() = Some(*vote);
        if planted(Mutant::ForgetVote) {
            return Ok(());
        }
        let vote = *vote;
        self.submit_and_wait(|done| Op::Vote { vote, done }).await
    }

    /// Rides with the next batch: it only saves work at a restart.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        *self.shared.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(*self.shared.committed.lock())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.shared.cache.lock().append(&entries)?;
        self.submit(Op::Append {
            entries,
            flushed: callback,
        })
        .await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.shared.cache.lock().truncate(last_log_id);
        self.submit_and_wait(|done| Op::Truncate {
            last: last_log_id,
            done,
        })
        .await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.shared.cache.lock().purge(log_id);
        self.submit(Op::Purge { upto: log_id }).await
    }
}

/// What a log folder holds.
struct Found {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    last: Option<LogId>,
}

impl Found {
    fn read(engine: &Engine, path: &Path) -> Result<Self, StoreError> {
        let damaged = |problem: String| StoreError::LogDamaged {
            path: path.to_owned(),
            problem,
        };
        let value = |key: &[u8]| -> Result<Option<Bytes>, StoreError> {
            let found = engine
                .value(Family::Meta, key)
                .map_err(|error| damaged(error.to_string()))?;
            Ok(found.map(Bytes::from))
        };
        let log_id = |key: &[u8]| -> Result<Option<LogId>, StoreError> {
            let Some(bytes) = value(key)? else { return Ok(None) };
            wire::decode_log_id(bytes)
                .map_err(|error| damaged(format!("its record {:?}: {error}", String::from_utf8_lossy(key))))
        };
        let purged = log_id(KEY_PURGED)?;
        let committed = log_id(KEY_COMMITTED)?;
        let vote = value(KEY_VOTE)?
            .map(|bytes| wire::decode_vote(bytes).map_err(|error| damaged(format!("its vote: {error}"))))
            .transpose()?;
        let last = match check_entries(engine, purged).map_err(damaged)? {
            Some(last) if planted(Mutant::ForgetTail) => {
                Some(LogId::new(last.leader_id, last.index.saturating_sub(5))).max(purged)
            }
            last => last,
        };
        Ok(Self {
            vote,
            purged,
            committed,
            last,
        })
    }
}

/// Reads the whole log: no holes, no damaged record, terms never fall. Returns its last entry.
fn check_entries(engine: &Engine, purged: Option<LogId>) -> Result<Option<LogId>, String> {
    let mut last = purged;
    let entries = engine
        .rows_from(Family::Log, &[])
        .map_err(|error| error.to_string())?;
    for item in entries {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let index = record::index_of(&key).map_err(|error| error.to_string())?;
        let expected = last.map_or(0, |last| last.index + 1);
        if index != expected {
            return Err(format!("entry {expected} is missing, entry {index} comes next"));
        }
        let entry = record::decode(index, &value).map_err(|error| error.to_string())?;
        if last.is_some_and(|last| entry.log_id <= last) {
            return Err(format!("entry {} follows an entry of a later term", entry.log_id));
        }
        last = Some(entry.log_id);
    }
    Ok(last)
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
