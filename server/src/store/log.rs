//! The Raft log and the vote, in RocksDB (or whatever [`Engine`] stands in for it).
//!
//! Appends are readable at once from a cache and durable when the writer thread says so. The cache holds the
//! newest entries, up to [`CACHE_BYTES_MAX`](super::shared::CACHE_BYTES_MAX), and every entry that is not yet synced. Older ones are read from
//! RocksDB, whose checksums are not relied on alone: each record has its own and carries its index.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use rollcall_core::ids::LogPosition;
use rollcall_core::mutants::{Mutant, planted};
use tokio::sync::{Notify, oneshot, watch};

use super::engine::Engine;
use super::error::StoreError;
use super::mark::{Mark, MarkFile, MarkKeeper};
use super::opening::Found;
use super::rows::{self, RowBatch, RowsError};
use super::shared::Shared;
use super::space::SpaceWatch;
use super::writer::{self, Op};
use crate::ground;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote, log_id};

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
        let shared = Arc::new(Shared::new(
            engine,
            &found,
            vote,
            space,
            MarkKeeper::new(mark_file, current),
        ));
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

    /// The server has caught up: its log reaches this committed entry, which is marked though nothing more may be written for
    /// long. Recorded before this returns.
    pub(crate) async fn set_caught_up(&self, applied: Option<LogPosition>) -> io::Result<()> {
        let shared = self.shared.clone();
        let reached = applied.map(|applied| log_id(applied.term.0, applied.index.0));
        let write = move || {
            shared.mark.write(|mark| {
                mark.rejoining = false;
                mark.log = mark.log.max(reached);
            })
        };
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

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
