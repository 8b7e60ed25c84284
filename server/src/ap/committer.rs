//! The one task that changes records and the view.
//!
//! It takes whatever waits in its queue, applies it piece by piece, writes all of it to disk with one sync, and
//! answers everyone. While it syncs the next batch gathers, and where many write it waits a moment for those who were just
//! answered ([`super::company`]). What is not synced is answered to nobody and told to no
//! server; the view shows it already, as a reader elsewhere might have seen it and lost sight of it again.
//!
//! After a failed write nobody knows what the disk holds: nothing more is written (RC-107).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_core::ap::{FarFuture, Record, SessionSeed};
use rollcall_core::directory::{Command, Directory, LoggedRequest, Outcome};
use rollcall_core::ids::{GroupName, ServerId};
use rollcall_core::mutants::{Mutant, planted};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::company::Crowd;
use super::contract::Introduction;
use super::desk::{Desk, Footing, Heard, Resolve, Work};
use super::inner::Inner;
use super::rows::Followed;
use crate::raft::ProposeError;
use crate::session::Word;
use crate::store::RowBatch;

/// Jobs that may wait before a caller is told to come again.
pub(super) const QUEUE_MAX: usize = 4_096;
/// And so many bytes of requests: a slow disk must not fill the memory.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;
/// So many writes are carried out before those who read the view get their turn...
const WRITES_AT_ONCE: usize = 16;
/// ... or so many bytes of them.
const BYTES_AT_ONCE: usize = 64 << 10;
/// A batch is closed when it holds so many jobs...
const BATCH_JOBS_MAX: usize = 256;
/// ... or so many bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How far a mutant's disk is behind what it acknowledged.
const WRITE_BEHIND: Duration = Duration::from_millis(300);

/// A local write, done.
#[derive(Debug)]
pub(super) struct Wrote {
    pub(super) outcome: Outcome,
    /// If they were asked for.
    pub(super) records: Vec<Arc<Record>>,
}

type Done<T> = oneshot::Sender<Result<T, ProposeError>>;

/// Something to be done to records and view.
pub(super) enum Job {
    /// A client's write.
    Write {
        request: Box<LoggedRequest>,
        /// The session under which it is.
        by: Option<Introduction>,
        /// Its records are to be told on.
        with_records: bool,
        deadline: Instant,
        /// Its share of the bytes that may wait, also when nobody waits for its answer any more.
        room: OwnedSemaphorePermit,
        done: Done<Wrote>,
    },
    /// A judgement of this server's.
    Say { word: Word, done: Done<()> },
    /// This server vouches for sessions.
    Claim { seeds: Vec<SessionSeed>, done: Done<()> },
    /// What a server left that is gone.
    TakeOver {
        from: ServerId,
        seeds: Vec<SessionSeed>,
        done: Done<usize>,
    },
    /// Records of others.
    Hear {
        records: Vec<Record>,
        followed: Option<(ServerId, Followed)>,
        /// Somebody counts on this disk.
        sync: bool,
        done: Done<Heard>,
    },
    /// Definitions of the replicated directory; those that cannot be followed yet come back.
    Define {
        commands: Vec<Command>,
        done: Done<Vec<Command>>,
    },
    /// A group moves here from the replicated directory, which is handed along as it was frozen.
    Adopt {
        from: Box<Directory>,
        group: GroupName,
        stamp_ms: u64,
        done: Done<Result<(), FarFuture>>,
    },
    /// A group does not live by records (any more).
    Forget { group: GroupName, done: Done<()> },
    /// What has been dead for long is to be forgotten.
    Purge,
    /// Others were asked what counts.
    Resolve { resolve: Resolve, done: Done<()> },
}

impl Job {
    fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. })
    }

    /// Whether somebody waits for the disk to have it.
    fn is_for_the_disk(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Claim { .. } => true,
            Self::Hear { sync, .. } => *sync,
            Self::Say { .. }
            | Self::TakeOver { .. }
            | Self::Define { .. }
            | Self::Adopt { .. }
            | Self::Forget { .. }
            | Self::Purge
            | Self::Resolve { .. } => false,
        }
    }
}

/// Answers a caller once it is known what became of the disk.
type Finish = Box<dyn FnOnce(&Result<(), String>) + Send>;

/// Runs until `stop`; what waits then is not done.
pub(super) async fn run(inner: Arc<Inner>, mut jobs: mpsc::Receiver<Job>, stop: CancellationToken) {
    let mut crowd = Crowd::default();
    while let Some(Some(first)) = stop.run_until_cancelled(jobs.recv()).await {
        let others = crowd.wanted() - 1;
        if others > 0 && first.is_for_the_disk() {
            inner.company.wait_for(others, || jobs.len()).await;
        }
        let mut rows = RowBatch::default();
        let mut finishes = carry_out_all(&inner, first, &mut jobs, &mut rows);
        if planted(Mutant::UnstoredAck) {
            finishes.drain(..).for_each(|finish| finish(&Ok(())));
            tokio::time::sleep(WRITE_BEHIND).await;
        }
        let written = match rows.is_empty() {
            true => Ok(()),
            false => inner.consensus.store().write_rows(rows).await,
        };
        let written = written.map_err(|error| error.to_string());
        crowd.note(finishes.len() + jobs.len());
        inner.on_written(&written);
        for finish in finishes {
            finish(&written);
        }
        if let Err(reason) = written {
            tracing::error!(
                reason,
                "RC-107: records of AP groups cannot be written; nothing more is acknowledged"
            );
            // What waits is not done: that a write changes nothing is no longer true of the disk.
            return;
        }
    }
    let mut rows = RowBatch::default();
    remember_missed(&inner);
    inner.with_desk(&mut rows, Desk::mark_alive);
    rows.sync = true;
    if !rows.is_empty()
        && let Err(error) = inner.consensus.store().write_rows(rows).await
    {
        tracing::debug!(%error, "the last sign of life was not written");
    }
}

fn carry_out_all(
    inner: &Inner,
    first: Job,
    jobs: &mut mpsc::Receiver<Job>,
    rows: &mut RowBatch,
) -> Vec<Finish> {
    let mut finishes = Vec::new();
    let mut begins = true;
    let mut next = Some(first);
    while let Some(job) = next.take() {
        let creates = inner.with_desk(rows, |desk, work| {
            desk.batch += u64::from(begins);
            let services = work.view.totals().services;
            let is_write = job.is_write();
            finishes.extend(carry_out(desk, work, job));
            if is_write {
                next = carry_out_writes(inner, desk, work, jobs, &mut finishes);
            }
            is_write && work.view.totals().services > services
        });
        begins = false;
        if creates {
            inner.created.notify_one();
        }
        if next.is_none() && has_room(&finishes, rows) {
            next = jobs.try_recv().ok();
        }
    }
    if !rows.is_empty() {
        remember_missed(inner);
        inner.desk.lock().put_life(rows);
    }
    finishes
}

/// Has the next row about this life say what is missed.
fn remember_missed(inner: &Inner) {
    // Before what was missed is looked for, that is what the disk says.
    let all = inner.defined.load(Ordering::Acquire);
    inner.desk.lock().remember_missed(inner.missed_names(), all);
}

/// The writes that wait next, a few of them. Returns a job that is none and must be carried out, too: others may take long.
fn carry_out_writes(
    inner: &Inner,
    desk: &mut Desk,
    work: &mut Work<'_>,
    jobs: &mut mpsc::Receiver<Job>,
    finishes: &mut Vec<Finish>,
) -> Option<Job> {
    let bytes_max = work.rows.size() + BYTES_AT_ONCE;
    for _ in 1..WRITES_AT_ONCE {
        if work.rows.size() > bytes_max || !has_room(finishes, work.rows) {
            return None;
        }
        match jobs.try_recv() {
            Ok(job) if job.is_write() => {
                // Not before it came: a stamp that is older than another server's, which its caller has heard of, would lose to it.
                work.now = inner.now();
                finishes.extend(carry_out(desk, work, job));
            }
            other => return other.ok(),
        }
    }
    None
}

/// Whether a batch takes one more job.
fn has_room(finishes: &[Finish], rows: &RowBatch) -> bool {
    finishes.len() < BATCH_JOBS_MAX && rows.size() < BATCH_BYTES_MAX
}

pub(super) fn carry_out(desk: &mut Desk, work: &mut Work<'_>, job: Job) -> Option<Finish> {
    let is_sure = desk.footing() == Footing::Sure;
    match job {
        Job::Write { deadline, done, .. } if deadline <= Instant::now() => {
            refuse(done, "the deadline passed before it was carried out");
            None
        }
        Job::Write { done, .. } if !is_sure => {
            refuse(done, NOT_SURE);
            None
        }
        Job::Claim { done, .. } if !is_sure => {
            refuse(done, NOT_SURE);
            None
        }
        Job::Adopt { done, .. } if !is_sure => {
            refuse(done, NOT_SURE);
            None
        }
        Job::Write { done, .. } if desk.is_retired() => {
            refuse(done, RETIRED);
            None
        }
        Job::Claim { done, .. } if desk.is_retired() => {
            refuse(done, RETIRED);
            None
        }
        Job::Write {
            request,
            by,
            with_records,
            room,
            done,
            ..
        } => {
            work.rows.sync = true;
            let introduced = by.map_or(Ok(()), |by| desk.introduce(work, &by));
            let wrote = introduced.and_then(|()| desk.write(work, &request));
            let wrote = wrote.map(|(outcome, records)| Wrote {
                outcome,
                records: if with_records { records } else { Vec::new() },
            });
            drop((request, room));
            Some(finish(done, wrote.map_err(ProposeError::from)))
        }
        Job::Say { word, done } => {
            desk.say(work, &word);
            Some(finish(done, Ok(())))
        }
        Job::Claim { seeds, done } => {
            work.rows.sync = true;
            let claimed = desk.claim(work, seeds);
            Some(finish(done, claimed.map_err(ProposeError::from)))
        }
        Job::TakeOver { from, seeds, done } => {
            let taken = desk.take_over(work, from, seeds);
            Some(finish(done, Ok(taken)))
        }
        Job::Hear {
            records,
            followed,
            sync,
            done,
        } => {
            let heard = desk.hear(work, records, followed);
            if sync {
                // Also what was known already, but perhaps not synced.
                work.rows.sync = true;
                desk.put_life(work.rows);
            }
            Some(finish(done, Ok(heard)))
        }
        Job::Define { commands, done } => {
            let refused = desk.define(work, commands);
            Some(finish(done, Ok(refused)))
        }
        Job::Adopt {
            from,
            group,
            stamp_ms,
            done,
        } => {
            work.rows.sync = true;
            let adopted = desk.adopt(work, &from, &group, stamp_ms);
            Some(finish(done, Ok(adopted)))
        }
        Job::Forget { group, done } => {
            // After a crash the group may be back, and these must not.
            work.rows.sync = true;
            desk.forget(work, &group);
            Some(finish(done, Ok(())))
        }
        Job::Purge => {
            let gone = desk.purge(work);
            tracing::debug!(gone, "forgot what was dead for long enough");
            Some(Box::new(|_| {}))
        }
        Job::Resolve { resolve, done } => {
            work.rows.sync = true;
            desk.resolve(work, resolve);
            Some(finish(done, Ok(())))
        }
    }
}

const NOT_SURE: &str = "this server does not know yet what the others have";
const RETIRED: &str = "this server is being removed from the cluster";

fn refuse<T>(done: Done<T>, reason: &str) {
    let reason = reason.to_owned();
    _ = done.send(Err(ProposeError::Unavailable { reason }));
}

/// An answer for when the disk has it. A refusal changed nothing, and need not wait for the disk to be true.
fn finish<T: Send + 'static>(done: Done<T>, answer: Result<T, ProposeError>) -> Finish {
    Box::new(move |written| {
        let answer = match (answer, written) {
            (Ok(_), Err(reason)) => Err(ProposeError::Unknown {
                reason: format!("RC-107: the disk failed: {reason}"),
            }),
            (answer, _) => answer,
        };
        _ = done.send(answer);
    })
}
