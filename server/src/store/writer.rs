//! The one thread that writes the log.
//!
//! It takes whatever waits in its queue (appends, votes, truncations, purges, rows, in order), puts it into one
//! RocksDB batch, syncs once, and answers everyone. While a sync runs the next group gathers: group commit.
//!
//! Lack of space is waited out with the batch kept. Any other failure ends the store: after a failed fsync
//! nobody knows what the disk holds, so nothing more is acknowledged (RC-107).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use rollcall_core::mutants::{Mutant, planted};
use tokio::sync::{mpsc, oneshot};

use super::engine::{Batch, Sync};
use super::opening::{KEY_COMMITTED, KEY_PURGED, KEY_VOTE};
use super::record;
use super::rows::{self, RowBatch};
use super::shared::Shared;
use super::space::RETRY_FULL;
use crate::ground::{self, Family};
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::raft::wire;

/// Operations that may wait before [`Queue::send`] waits in turn.
const QUEUE_MAX: usize = 256;
/// A group is closed when it holds this much...
const GROUP_BYTES_MAX: usize = 4 << 20;
/// ... or this many operations.
const GROUP_OPS_MAX: usize = 1024;
/// Room for RocksDB to start in: a memtable, a write-ahead log.
const RESTART_ROOM: u64 = 32 << 20;
/// Who drops the queue waits this long for the files to be closed. Beyond it the disk hangs, and so would the process.
const ENDING_MAX: Duration = Duration::from_secs(10);
/// Of what an entry was encoded in, so much is kept for the next one.
const SCRATCH_KEPT: usize = 512 << 10;
/// The mark is written at most this often.
const MARK_EVERY: Duration = Duration::from_secs(1);

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

pub(crate) enum Op {
    Append {
        entries: Vec<Entry>,
        flushed: IOFlushed<TypeConfig>,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// Everything behind `last` goes.
    Truncate {
        last: Option<LogId>,
        done: Done,
    },
    /// Everything up to `upto` goes.
    Purge {
        upto: LogId,
    },
    /// What another shell keeps beside the log.
    Rows {
        rows: RowBatch,
        done: Done,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

impl Op {
    fn size(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(wire::entry_size).sum(),
            Self::Rows { rows, .. } => rows.size(),
            Self::Vote { .. } | Self::Truncate { .. } | Self::Purge { .. } | Self::Close { .. } => 0,
        }
    }

    fn must_sync(&self) -> bool {
        match self {
            _ if planted(Mutant::SkipFsync) => false,
            Self::Append { .. } | Self::Vote { .. } | Self::Truncate { .. } => true,
            Self::Rows { rows, .. } => rows.sync,
            Self::Purge { .. } | Self::Close { .. } => false,
        }
    }
}

/// The way to the writer. Dropped, it ends the writer and waits until the files are closed: a process that ends
/// while RocksDB still closes has its threads pulled from under it, and is killed by a signal instead of ending.
pub(crate) struct Queue {
    /// None once it is closed.
    ops: Option<mpsc::Sender<Op>>,
    shared: Arc<Shared>,
    /// Disconnected when the writer's thread is at its end; none where the writer is a task.
    ended: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl Queue {
    /// Waits while the queue is full.
    ///
    /// # Errors
    /// The log is closed.
    pub(crate) async fn send(&self, op: Op) -> io::Result<()> {
        let closed = || io::Error::other("the log is closed");
        let ops = self.ops.as_ref().ok_or_else(closed)?;
        ops.send(op).await.map_err(|_| closed())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.abandon();
        self.ops = None;
        let ended = self.ended.get_mut().take();
        let waited = ended.map(|ended| ended.recv_timeout(ENDING_MAX));
        if waited == Some(Err(std::sync::mpsc::RecvTimeoutError::Timeout)) {
            tracing::warn!("the log's files could not be closed in time; does its disk answer?");
        }
    }
}

/// Starts the writer and the thread that keeps the mark. Both end when the queue is closed.
pub(crate) fn start(shared: Arc<Shared>, flushed: Option<LogId>) -> io::Result<Queue> {
    let (sender, ops) = mpsc::channel(QUEUE_MAX);
    let writer = Writer {
        shared: shared.clone(),
        ops,
        flushed,
        scratch: Vec::new(),
    };
    let ended = match ground::simulated(|_| ()) {
        None => Some(writer.start_thread()?),
        Some(()) => {
            writer.start_task();
            None
        }
    };
    Ok(Queue {
        ops: Some(sender),
        shared,
        ended: Mutex::new(ended),
    })
}

struct Writer {
    shared: Arc<Shared>,
    ops: mpsc::Receiver<Op>,
    flushed: Option<LogId>,
    /// What an entry is encoded in. Memory taken anew for each would have to be cleared by the kernel first.
    scratch: Vec<u8>,
}

impl Writer {
    fn start_thread(self) -> io::Result<std::sync::mpsc::Receiver<()>> {
        let (ended, ending) = std::sync::mpsc::channel::<()>();
        let (left, leaving) = std::sync::mpsc::channel::<()>();
        let marked = self.shared.clone();
        let keeper = std::thread::Builder::new()
            .name("log-mark".into())
            .spawn(move || {
                use std::sync::mpsc::RecvTimeoutError;
                while let Err(RecvTimeoutError::Timeout) = ending.recv_timeout(MARK_EVERY) {
                    marked.flush_mark();
                }
            })?;
        let writer = std::thread::Builder::new().name("log-writer".into());
        writer.spawn(move || {
            self.run();
            drop(ended);
            if keeper.join().is_err() {
                tracing::warn!("the mark's thread panicked");
            }
            drop(left);
        })?;
        Ok(leaving)
    }

    /// Where nothing runs beside one thread.
    fn start_task(self) {
        let marked = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(MARK_EVERY).await;
                match marked.upgrade().filter(|shared| !shared.is_closed()) {
                    Some(shared) => shared.flush_mark(),
                    None => return,
                }
            }
        });
        tokio::spawn(self.run_as_task());
    }

    fn run(mut self) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = self.ops.blocking_recv() else {
                break;
            };
            let mut group = self.take_group(first);
            closing = take_close(&mut group);
            self.write_group(group);
        }
        self.end(closing);
    }

    /// As [`Self::run`], but a sync takes simulated time, during which a crash finds what was written and not synced.
    async fn run_as_task(mut self) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = self.ops.recv().await else { break };
            let mut group = self.take_group(first);
            closing = take_close(&mut group);
            if group.is_empty() {
                continue;
            }
            let mut result = self.write(&group, Sync::Later);
            if result.is_ok() && group.iter().any(Op::must_sync) {
                let takes = ground::simulated(|simulation| simulation.sync_takes());
                tokio::time::sleep(takes.unwrap_or_default()).await;
                result = self.shared.with_engine(|engine| engine.sync());
            }
            self.finish_group(group, result);
        }
        self.end(closing);
    }

    fn end(mut self, closing: Option<oneshot::Sender<()>>) {
        self.ops.close();
        if self.shared.fault().is_none() {
            self.shared.flush_mark();
        }
        self.shared.close_engine();
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    fn take_group(&mut self, first: Op) -> Vec<Op> {
        let mut bytes = first.size();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX && group.len() < GROUP_OPS_MAX {
            let Ok(op) = self.ops.try_recv() else { break };
            bytes += op.size();
            group.push(op);
        }
        group
    }

    fn write_group(&mut self, group: Vec<Op>) {
        if group.is_empty() {
            return;
        }
        let sync = match group.iter().any(Op::must_sync) {
            true => Sync::Now,
            false => Sync::Later,
        };
        let result = self.write(&group, sync);
        self.finish_group(group, result);
    }

    /// The group is as durable as it was to be, or the store is at its end.
    fn finish_group(&mut self, group: Vec<Op>, result: io::Result<()>) {
        if let Err(error) = &result {
            // A disk that was full and has room again is sound, and its error says what to do.
            let said = error.to_string();
            self.shared.set_fault(match said.starts_with("RC-111") {
                true => said,
                false => format!("RC-107: the log cannot be written: {said}"),
            });
        }
        if result.is_ok() {
            self.mark_vote(&group);
            self.note_written(&group);
        }
        self.answer(group, &result);
    }

    /// Writes the group; waits for as long as there is no room.
    fn write(&mut self, group: &[Op], sync: Sync) -> io::Result<()> {
        if let Some(fault) = self.shared.fault() {
            return Err(io::Error::other(fault));
        }
        self.lower_mark(group)?;
        let bytes = group.iter().map(Op::size).sum::<usize>() as u64;
        let committed = *self.shared.committed.lock();
        self.retry_while_full("log", || match self.shared.space.has_room_for(bytes) {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        })?;
        let scratch = &mut self.scratch;
        let written = self.shared.with_engine(|engine| {
            let mut batch = engine.batch()?;
            fill_batch(&mut batch, group, committed.as_ref(), scratch);
            engine.write(batch, sync)
        });
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEPT);
        written.map_err(|error| self.wait_for_room_to_restart(error))
    }

    fn mark_vote(&self, group: &[Op]) {
        let mut votes = group.iter().filter_map(|op| match op {
            Op::Vote { vote, .. } => Some(*vote),
            Op::Append { .. }
            | Op::Truncate { .. }
            | Op::Purge { .. }
            | Op::Rows { .. }
            | Op::Close { .. } => None,
        });
        if let Some(vote) = votes.next_back() {
            // The log holds the vote already; the mark is a second copy for disks that forget.
            if let Err(error) = self.shared.mark.write(|mark| mark.vote = Some(vote)) {
                tracing::warn!(%error, "mark not written with a vote");
            }
        }
    }

    /// Someone took the reserve between the look and the write. RocksDB cannot go on after that: keep the
    /// server in the cluster until there is room again, then end it, so that its next start finds room.
    fn wait_for_room_to_restart(&self, error: io::Error) -> io::Error {
        if !super::error::is_full(&error) {
            return error;
        }
        self.shared.space.write_blocked("log");
        while !self.shared.space.has_room_for(RESTART_ROOM) && !self.shared.is_abandoned() {
            std::thread::sleep(RETRY_FULL);
        }
        io::Error::new(
            error.kind(),
            format!("RC-111: {error}; there is room again, start the server anew"),
        )
    }

    /// A truncated log may end before the mark without having forgotten anything: lower the mark first.
    fn lower_mark(&self, group: &[Op]) -> io::Result<()> {
        for op in group {
            if let Op::Truncate { last, .. } = op
                && self.shared.mark.current().log > *last
            {
                self.retry_while_full("mark", || self.shared.mark.write(|mark| mark.log = *last))?;
            }
        }
        Ok(())
    }

    fn retry_while_full(&self, what: &str, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            match write() {
                Err(error) if super::error::is_full(&error) && !self.shared.is_abandoned() => {
                    self.shared.space.write_blocked(what);
                    std::thread::sleep(RETRY_FULL);
                }
                result => {
                    if result.is_ok() {
                        self.shared.space.write_done();
                    }
                    return result;
                }
            }
        }
    }

    fn note_written(&mut self, group: &[Op]) {
        for op in group {
            match op {
                Op::Append { entries, .. } => {
                    if let Some(last) = entries.last() {
                        self.flushed = Some(last.log_id);
                    }
                }
                Op::Truncate { last, .. } => self.flushed = self.flushed.min(*last),
                Op::Purge { upto } => self.flushed = self.flushed.max(Some(*upto)),
                Op::Vote { .. } | Op::Rows { .. } | Op::Close { .. } => {}
            }
        }
        let flushed = self.flushed;
        self.shared.note_flushed(flushed);
        self.shared.mark.update(|mark| {
            if !mark.rejoining && mark.log < flushed {
                mark.log = flushed;
            }
        });
    }

    fn answer(&self, group: Vec<Op>, result: &io::Result<()>) {
        let copy = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for op in group {
            match op {
                Op::Append { flushed, .. } => flushed.io_completed(copy()),
                Op::Vote { done, .. } | Op::Truncate { done, .. } | Op::Rows { done, .. } => {
                    let _ = done.send(copy());
                }
                Op::Purge { .. } | Op::Close { .. } => {}
            }
        }
    }
}

/// Cuts off the group what comes with and behind a request to close.
fn take_close(group: &mut Vec<Op>) -> Option<oneshot::Sender<()>> {
    let at = group.iter().position(|op| matches!(op, Op::Close { .. }))?;
    let rest = group.split_off(at);
    rest.into_iter().find_map(|op| match op {
        Op::Close { done } => Some(done),
        Op::Append { .. } | Op::Vote { .. } | Op::Truncate { .. } | Op::Purge { .. } | Op::Rows { .. } => {
            None
        }
    })
}

fn fill_batch(batch: &mut Batch<'_>, group: &[Op], committed: Option<&LogId>, scratch: &mut Vec<u8>) {
    for op in group {
        match op {
            Op::Append { entries, .. } => {
                for entry in entries {
                    let key = record::key(entry.log_id.index);
                    record::encode_into(entry, scratch);
                    batch.put(Family::Log, &key, scratch.as_slice());
                }
            }
            Op::Vote { vote, .. } => batch.put(Family::Meta, KEY_VOTE, wire::encode_vote(vote)),
            Op::Truncate { last, .. } => {
                let from = last.map_or(0, |last| last.index + 1);
                batch.remove_range(Family::Log, &record::key(from), &record::key(u64::MAX));
            }
            Op::Purge { upto } => {
                batch.remove_range(Family::Log, &record::key(0), &record::key(upto.index + 1));
                batch.put(Family::Meta, KEY_PURGED, wire::encode_log_id(&Some(*upto)));
            }
            Op::Rows { rows, .. } => rows::put_into(rows, batch),
            Op::Close { .. } => {}
        }
    }
    if let Some(committed) = committed {
        batch.put(
            Family::Meta,
            KEY_COMMITTED,
            wire::encode_log_id(&Some(*committed)),
        );
    }
}
