//! The holder: which sessions has this server heard from since it last told the leader?
//!
//! Heartbeats gather here and leave in one message per tick, so the leader's cost grows with the number of
//! servers and not with the number of heartbeats. The message is self-clocked: one is in flight at a time, and
//! what arrives meanwhile waits for the next. Between two there is a pause, unless somebody waits for each answer
//! before saying more: a client at its pace does not mind the pause, and many of them share a message then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::ids::SessionId;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::raft::{Consensus, RenewalVerdict};

/// Least time between two reports while nobody is in haste; a single heartbeat on a quiet server leaves at once.
const REPORT_SPACING: Duration = Duration::from_millis(20);
/// How long a report may take before it is sent again, perhaps to another leader.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
/// Pause after a report that reached no leader, and before asking again about a session whose expiry or revival
/// the log has not decided yet.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Most heartbeats that may wait for the leader here. Beyond it they are refused at once.
const WAITING_MAX: usize = 65_536;

/// How soon a heartbeat has to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It may wait for others.
    None,
    /// Its client sends the next one when this one is answered.
    AtOnce,
}

/// What became of a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenewOutcome {
    /// The leader counts a full ttl from this heartbeat.
    pub renewed: Vec<SessionId>,
    /// Dead: open a new session, then register again.
    pub not_found: Vec<SessionId>,
}

/// Why a heartbeat was not answered. Nothing is known of its sessions; send it again, here or elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// Too many heartbeats wait for a leader.
    #[error("more than {WAITING_MAX} heartbeats wait for the leader")]
    Overloaded,
    /// The server is closing.
    #[error("the server is closing")]
    Closing,
}

/// Handle on this server's gathered heartbeats. Cheap to clone.
#[derive(Clone)]
pub struct Holder {
    shared: Arc<Shared>,
}

struct Shared {
    consensus: Consensus,
    gathered: Mutex<Gathered>,
    /// Something waits.
    arrived: Notify,
    /// It is in haste.
    hurried: Notify,
    attached: Mutex<BTreeMap<SessionId, u32>>,
    reports: AtomicU64,
    failed_reports: AtomicU64,
}

#[derive(Default)]
struct Gathered {
    waiting: Vec<Waiting>,
    /// Heartbeats with undecided sessions: asked about again at this moment, so that one such session does not
    /// keep the reports going.
    put_off: Vec<Waiting>,
    again_at: Option<Instant>,
    closed: bool,
}

/// One heartbeat: the sessions that still lack a verdict, and those that have one.
struct Waiting {
    undecided: Vec<SessionId>,
    outcome: RenewOutcome,
    reply: oneshot::Sender<RenewOutcome>,
    /// The others need not wait for those that are not decided yet: these are left out.
    impatient: bool,
}

/// A session attached to a stream of this server; detached when dropped.
pub struct HeldSession {
    shared: Arc<Shared>,
    session: SessionId,
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        let mut attached = self.shared.attached.lock();
        if let Some(streams) = attached.get_mut(&self.session) {
            *streams -= 1;
            if *streams == 0 {
                attached.remove(&self.session);
            }
        }
    }
}

impl Holder {
    /// Starts the reporting task; it ends with `shutdown`.
    #[must_use]
    pub fn start(consensus: Consensus, shutdown: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            consensus,
            gathered: Mutex::default(),
            arrived: Notify::new(),
            hurried: Notify::new(),
            attached: Mutex::default(),
            reports: AtomicU64::new(0),
            failed_reports: AtomicU64::new(0),
        });
        tokio::spawn(report_until(shared.clone(), shutdown));
        Self { shared }
    }

    /// Counts a session as held by a stream of this server until the guard is dropped.
    #[must_use]
    pub fn attached(&self, session: SessionId) -> HeldSession {
        *self.shared.attached.lock().entry(session).or_insert(0) += 1;
        HeldSession {
            shared: self.shared.clone(),
            session,
        }
    }

    /// How many sessions have a stream here.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.attached.lock().len()
    }

    /// How many reports were answered, and how many found no leader, since the start.
    #[must_use]
    pub fn reports(&self) -> (u64, u64) {
        (
            self.shared.reports.load(Ordering::Relaxed),
            self.shared.failed_reports.load(Ordering::Relaxed),
        )
    }

    /// Passes one heartbeat for these sessions on and waits for the leader's word. Without a leader it waits
    /// as long as the caller does; dropping the future is harmless. Nothing is created by it.
    ///
    /// # Errors
    /// [`RenewError`]: nothing is known; try again, here or at another server.
    pub async fn renew(&self, sessions: Vec<SessionId>, haste: Haste) -> Result<RenewOutcome, RenewError> {
        self.ask(sessions, haste, false).await
    }

    /// The same for sessions of clients that know nothing of each other: those whose expiry or revival is under way
    /// hold up nobody, and are in neither list of the outcome.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub async fn renew_decided(
        &self,
        sessions: Vec<SessionId>,
        haste: Haste,
    ) -> Result<RenewOutcome, RenewError> {
        self.ask(sessions, haste, true).await
    }

    async fn ask(
        &self,
        sessions: Vec<SessionId>,
        haste: Haste,
        impatient: bool,
    ) -> Result<RenewOutcome, RenewError> {
        if sessions.is_empty() {
            return Ok(RenewOutcome::default());
        }
        if let Some(outcome) = self.renew_alone(&sessions) {
            return Ok(outcome);
        }
        let (reply, answer) = oneshot::channel();
        let first = {
            let mut gathered = self.shared.gathered.lock();
            if gathered.closed {
                return Err(RenewError::Closing);
            }
            if gathered.waiting.len() + gathered.put_off.len() >= WAITING_MAX {
                gathered.waiting.retain(|waiting| !waiting.reply.is_closed());
                gathered.put_off.retain(|waiting| !waiting.reply.is_closed());
                if gathered.waiting.len() + gathered.put_off.len() >= WAITING_MAX {
                    return Err(RenewError::Overloaded);
                }
            }
            gathered.waiting.push(Waiting {
                undecided: sessions,
                outcome: RenewOutcome::default(),
                reply,
                impatient,
            });
            gathered.waiting.len() == 1
        };
        if first {
            self.shared.arrived.notify_one();
        }
        if haste == Haste::AtOnce {
            self.shared.hurried.notify_one();
        }
        answer.await.map_err(|_| RenewError::Closing)
    }

    /// Where this server is the whole cluster there is nobody to ask, and nothing to gather for: the usual answer, that
    /// all were renewed, is given at once. Whoever has another is asked about as everywhere: `None`.
    pub(crate) fn renew_alone(&self, sessions: &[SessionId]) -> Option<RenewOutcome> {
        let verdict = self.shared.consensus.report_renewals_alone(sessions)?;
        (verdict == RenewalVerdict::default()).then(|| RenewOutcome {
            renewed: sessions.to_vec(),
            not_found: Vec::new(),
        })
    }
}

async fn report_until(shared: Arc<Shared>, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(report_forever(&shared)).await;
    let mut gathered = shared.gathered.lock();
    gathered.closed = true;
    gathered.waiting.clear();
    gathered.put_off.clear();
}

async fn report_forever(shared: &Shared) {
    let mut reported_at: Option<Instant> = None;
    loop {
        let again_at = shared.gathered.lock().again_at;
        tokio::select! {
            () = shared.arrived.notified() => {}
            () = tokio::time::sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {}
        }
        if let Some(earlier) = reported_at {
            tokio::select! {
                () = shared.hurried.notified() => {}
                () = tokio::time::sleep_until(earlier + REPORT_SPACING) => {}
            }
        }
        // Streams that have something to say, and had no turn yet, are heard first.
        tokio::task::yield_now().await;
        let (waiting, sessions) = shared.gathered.lock().take(Instant::now());
        if sessions.is_empty() {
            continue;
        }
        reported_at = Some(Instant::now());
        let deadline = Instant::now() + REPORT_DEADLINE;
        match shared.consensus.report_renewals(sessions, deadline).await {
            Ok(verdict) => {
                shared.reports.fetch_add(1, Ordering::Relaxed);
                let undecided = answer(waiting, &verdict);
                shared.gathered.lock().put_off(undecided, Instant::now());
            }
            Err(reason) => {
                shared.failed_reports.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%reason, "renewals reached no leader");
                shared.gathered.lock().waiting.extend(waiting);
                tokio::time::sleep(RETRY_PAUSE).await;
                shared.arrived.notify_one();
            }
        }
    }
}

impl Gathered {
    /// Everything that is to be asked now, and the sessions it is about, ascending and without repeats.
    fn take(&mut self, now: Instant) -> (Vec<Waiting>, Vec<SessionId>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            waiting.append(&mut self.put_off);
        }
        waiting.retain(|waiting| !waiting.reply.is_closed());
        let mut sessions: Vec<_> = waiting
            .iter()
            .flat_map(|waiting| waiting.undecided.iter().copied())
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        (waiting, sessions)
    }

    fn put_off(&mut self, undecided: Vec<Waiting>, now: Instant) {
        if !undecided.is_empty() {
            self.put_off.extend(undecided);
            self.again_at.get_or_insert(now + RETRY_PAUSE);
        }
    }
}

/// Answers the heartbeats whose sessions all have a verdict, and gives back the others.
fn answer(waiting: Vec<Waiting>, verdict: &RenewalVerdict) -> Vec<Waiting> {
    if verdict.not_found.is_empty() && verdict.undecided.is_empty() {
        for mut heartbeat in waiting {
            heartbeat.outcome.renewed.append(&mut heartbeat.undecided);
            // A caller that no longer waits has lost nothing: it knows nothing of these sessions.
            let _ = heartbeat.reply.send(heartbeat.outcome);
        }
        return Vec::new();
    }
    let not_found: BTreeSet<_> = verdict.not_found.iter().copied().collect();
    let undecided: BTreeSet<_> = verdict.undecided.iter().copied().collect();
    let mut unanswered = Vec::new();
    for mut heartbeat in waiting {
        for session in std::mem::take(&mut heartbeat.undecided) {
            if not_found.contains(&session) {
                heartbeat.outcome.not_found.push(session);
            } else if undecided.contains(&session) {
                if !heartbeat.impatient {
                    heartbeat.undecided.push(session);
                }
            } else {
                heartbeat.outcome.renewed.push(session);
            }
        }
        if heartbeat.undecided.is_empty() {
            let _ = heartbeat.reply.send(heartbeat.outcome);
        } else {
            unanswered.push(heartbeat);
        }
    }
    unanswered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(sessions: &[u64]) -> (Waiting, oneshot::Receiver<RenewOutcome>) {
        let (reply, answer) = oneshot::channel();
        let undecided = sessions.iter().map(|id| SessionId(*id)).collect();
        (
            Waiting {
                undecided,
                outcome: RenewOutcome::default(),
                reply,
                impatient: false,
            },
            answer,
        )
    }

    fn ids(ids: &[u64]) -> Vec<SessionId> {
        ids.iter().map(|id| SessionId(*id)).collect()
    }

    #[test]
    fn a_report_names_each_session_once() {
        let (first, _a) = heartbeat(&[7, 3]);
        let (second, _b) = heartbeat(&[3, 9]);
        let mut gathered = Gathered {
            waiting: vec![first, second],
            ..Gathered::default()
        };
        let (waiting, sessions) = gathered.take(Instant::now());
        assert_eq!(waiting.len(), 2);
        assert_eq!(sessions, ids(&[3, 7, 9]));
    }

    #[test]
    fn a_heartbeat_nobody_waits_for_is_not_reported() {
        let (waiting, answer) = heartbeat(&[7]);
        drop(answer);
        let mut gathered = Gathered {
            waiting: vec![waiting],
            ..Gathered::default()
        };
        assert_eq!(gathered.take(Instant::now()).1, ids(&[]));
    }

    #[test]
    fn an_undecided_session_holds_its_heartbeat_back_until_the_expiry_is_settled() {
        let (waiting, mut reply) = heartbeat(&[1, 2, 3]);
        let verdict = RenewalVerdict {
            not_found: ids(&[2]),
            undecided: ids(&[3]),
        };
        let unanswered = answer(vec![waiting], &verdict);
        assert_eq!(unanswered.len(), 1);
        assert!(reply.try_recv().is_err());
        let verdict = RenewalVerdict {
            not_found: ids(&[3]),
            undecided: vec![],
        };
        assert!(answer(unanswered, &verdict).is_empty());
        let outcome = reply.try_recv().expect("answered");
        assert_eq!(
            outcome,
            RenewOutcome {
                renewed: ids(&[1]),
                not_found: ids(&[2, 3])
            }
        );
    }

    #[test]
    fn who_does_not_wait_for_the_undecided_is_answered_without_them() {
        let (mut waiting, mut reply) = heartbeat(&[1, 2, 3]);
        waiting.impatient = true;
        let verdict = RenewalVerdict {
            not_found: ids(&[2]),
            undecided: ids(&[3]),
        };
        assert!(answer(vec![waiting], &verdict).is_empty());
        let outcome = reply.try_recv().expect("answered");
        assert_eq!(
            outcome,
            RenewOutcome {
                renewed: ids(&[1]),
                not_found: ids(&[2])
            }
        );
    }

    #[test]
    fn an_undecided_heartbeat_is_put_off_and_holds_nobody_up() {
        let (undecided, _a) = heartbeat(&[1]);
        let (fresh, _b) = heartbeat(&[2]);
        let mut gathered = Gathered::default();
        let now = Instant::now();
        gathered.put_off(vec![undecided], now);
        gathered.waiting.push(fresh);
        assert_eq!(gathered.take(now).1, ids(&[2]));
        assert_eq!(gathered.again_at, Some(now + RETRY_PAUSE));
        assert_eq!(gathered.take(now + RETRY_PAUSE).1, ids(&[1]));
        assert_eq!(gathered.again_at, None);
    }
}
