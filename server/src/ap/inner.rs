//! What all parts share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use rollcall_core::directory::Directory;
use rollcall_core::ids::{GroupName, Revision, ServerId, ServiceKey};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::committer::Job;
use super::company::Company;
use super::desk::{Desk, Footing, Now, Work};
use super::metrics::ApMetrics;
use super::origins::Origins;
use super::strays::Coordinated;
use crate::config::ApConfig;
use crate::gossip::Gossip;
use crate::raft::{AppliedHead, Consensus, ProposeError, SharedDirectory};
use crate::store::RowBatch;

/// How long whoever asks for records waits for those under way to be on disk.
const SYNC_WAIT: Duration = Duration::from_secs(2);

pub(super) struct Inner {
    pub(super) server: ServerId,
    pub(super) epoch: u64,
    pub(super) started_at: Instant,
    pub(super) config: ApConfig,
    pub(super) consensus: Consensus,
    pub(super) gossip: Option<Gossip>,
    pub(super) view: Arc<SharedDirectory>,
    pub(super) desk: Mutex<Desk>,
    /// What every write asks of the desk, kept where nobody waits for it.
    pub(super) at_a_glance: AtAGlance,
    pub(super) jobs: mpsc::Sender<Job>,
    /// Told of every job that comes.
    pub(super) company: Company,
    pub(super) head: watch::Sender<AppliedHead>,
    /// The last batch on disk.
    pub(super) synced: watch::Sender<u64>,
    /// The definitions that were on this server's disk are in the view.
    pub(super) defined: AtomicBool,
    pub(super) origins: Origins,
    /// Something is to be judged again.
    pub(super) to_judge: Notify,
    /// A service was created by a registration here: it is to be proposed.
    pub(super) created: Notify,
    /// The other servers have come or gone: compare at once.
    pub(super) returned: Notify,
    /// The same: tell them how far this server's log goes, which they may not have heard.
    pub(super) untold: Notify,
    /// See [`Self::agreed_at`].
    pub(super) agreed_at: Mutex<Option<Instant>>,
    /// A group that moved to gossip without this server. Until it has fetched what another server has, or has tried for
    /// [`MISSED_MAX`], it shows nothing.
    pub(super) missed: Mutex<Option<Missed>>,
    /// The revision of the replicated directory up to which it knows what it missed.
    pub(super) followed: AtomicU64,
    /// And the one up to which the view has its definitions,
    pub(super) defined_through: AtomicU64,
    /// but for services that the log has deleted and that list something here still, of which the end has not come yet; for so long
    /// they are not taken for new ones.
    pub(super) leaving: Mutex<BTreeMap<ServiceKey, Instant>>,
    pub(super) coordinated: Coordinated,
    pub(super) metrics: ApMetrics,
    pub(super) clock_offset_ms: AtomicI64,
    #[cfg(test)]
    pub(super) mute: Mute,
}

/// That groups moved without this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// When it learned of that.
    pub(super) at: Instant,
    /// By which revision of the replicated directory. Whoever has not come so far may have missed it as well, and not know.
    revision: Revision,
    pub(super) groups: BTreeSet<GroupName>,
}

/// Questions of other servers that are refused.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Mute {
    pub(super) compare: AtomicBool,
    pub(super) pull: AtomicBool,
    pub(super) fetch: AtomicBool,
}

#[cfg(test)]
impl Mute {
    pub(super) fn check(&self, muted: &AtomicBool) -> Result<(), tonic::Status> {
        match muted.load(Ordering::Acquire) {
            true => Err(tonic::Status::unavailable("it is muted")),
            false => Ok(()),
        }
    }
}

/// Follows the desk and the view, whose locks are held while it does.
pub(super) struct AtAGlance {
    sure: AtomicBool,
    records: AtomicUsize,
    /// Of which version of the view's groups the next ones are.
    groups_version: AtomicU64,
    /// Groups whose services come with their first node: nobody need wait for a definition of those.
    creating: RwLock<BTreeSet<GroupName>>,
}

impl AtAGlance {
    pub(super) fn of(desk: &Desk, view: &Directory) -> Self {
        Self {
            sure: (desk.footing() == Footing::Sure).into(),
            records: desk.replica.len().into(),
            groups_version: desk.groups_version.into(),
            creating: RwLock::new(creating(view)),
        }
    }

    pub(super) fn follow(&self, desk: &Desk, view: &Directory) {
        self.sure
            .store(desk.footing() == Footing::Sure, Ordering::Release);
        self.records.store(desk.replica.len(), Ordering::Relaxed);
        if self.groups_version.swap(desk.groups_version, Ordering::Relaxed) != desk.groups_version {
            *self.creating.write() = creating(view);
        }
    }

    /// Whether the view has this group and would create its services.
    pub(super) fn creates_services_of(&self, group: &GroupName) -> bool {
        self.creating.read().contains(group)
    }
}

fn creating(view: &Directory) -> BTreeSet<GroupName> {
    let groups = view.groups().filter(|group| group.settings.auto_create);
    groups.map(|group| group.name.clone()).collect()
}

impl Now {
    /// Reads both clocks, the wall clock put forward by so much.
    pub(super) fn read(offset_ms: i64) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self {
            instant: Instant::now(),
            wall_ms: wall_ms.saturating_add_signed(offset_ms),
        }
    }
}

/// How long a server tries to get what it missed before it shows what it has; how old that is, it does not say.
pub(super) const MISSED_MAX: Duration = Duration::from_secs(10);

impl Inner {
    /// A group is here that moved while this server was away: its records are elsewhere.
    pub(super) fn note_missed(&self, groups: &[GroupName], revision: Revision) {
        let mut missed = self.missed.lock();
        let before = missed.take().map(|missed| missed.groups);
        *missed = Some(Missed {
            at: Instant::now(),
            revision,
            groups: before
                .into_iter()
                .flatten()
                .chain(groups.iter().cloned())
                .collect(),
        });
        self.returned.notify_one();
    }

    /// Only these are still there to be missed.
    pub(super) fn keep_missed(&self, is_there: impl Fn(&GroupName) -> bool) {
        let mut missed = self.missed.lock();
        if let Some(of) = missed.as_mut() {
            of.groups.retain(is_there);
        }
        missed.take_if(|missed| missed.groups.is_empty());
    }

    /// The same, by name.
    pub(super) fn missed_names(&self) -> BTreeSet<String> {
        let missed = self.missed();
        let groups = missed.iter().flat_map(|missed| &missed.groups);
        groups.map(ToString::to_string).collect()
    }

    /// The groups of which it has nothing, though others may.
    pub(super) fn missed_groups(&self) -> BTreeSet<GroupName> {
        self.missed().map(|missed| missed.groups).unwrap_or_default()
    }

    /// What it misses, and others may have.
    pub(super) fn missed(&self) -> Option<Missed> {
        let missed = self.missed.lock().clone();
        missed.filter(|_| self.consensus.members().len() > 1)
    }

    /// All that another server had when it was asked, at the earliest then, is here, and that was sure but for these groups.
    /// What is missed behind that.
    pub(super) fn note_fetched(&self, asked_at: Instant, missed_there: &[String]) -> Option<Missed> {
        if let Some(missed) = self.missed.lock().as_mut()
            && missed.at <= asked_at
        {
            let is_missed_there =
                |group: &GroupName| missed_there.iter().any(|there| there == group.as_str());
            missed.groups.retain(is_missed_there);
        }
        self.missed()
    }

    /// It misses nothing any more, if no group has come to this since.
    pub(super) fn end_missing(&self, known: Option<&Missed>) {
        self.missed.lock().take_if(|missed| Some(&*missed) == known);
    }

    /// Whether a server that knows of moves so far knows of those that this one missed.
    pub(super) fn is_told_of(&self, followed: Option<u64>) -> bool {
        let missed = self.missed.lock();
        let (Some(missed), Some(followed)) = (&*missed, followed) else {
            return true;
        };
        followed >= missed.revision.0
    }

    /// Whether records that it missed are still elsewhere.
    pub(super) fn misses_records(&self) -> bool {
        self.missed.lock().is_some() && self.consensus.members().len() > 1
    }

    /// Whether it still waits for them, and shows nothing.
    pub(super) fn waits_for_missed(&self) -> bool {
        let missed = self.missed.lock().as_ref().map(|missed| missed.at);
        let waits = missed.is_some_and(|at| at.elapsed() < MISSED_MAX);
        waits && self.misses_records()
    }

    /// When it last asked another server that then agreed with it on every group. What it missed since, it cannot tell the
    /// age of.
    pub(super) fn agreed_at(&self) -> Option<Instant> {
        let agreed_at = *self.agreed_at.lock();
        agreed_at.filter(|_| !self.misses_records())
    }

    pub(super) fn now(&self) -> Now {
        Now::read(self.clock_offset_ms.load(Ordering::Relaxed))
    }

    /// Works on the desk and the view together.
    pub(super) fn with_desk<T>(
        &self,
        rows: &mut RowBatch,
        work: impl FnOnce(&mut Desk, &mut Work<'_>) -> T,
    ) -> T {
        let now = self.now();
        let mut desk = self.desk.lock();
        let mut view = self.view.write();
        let done = work(
            &mut desk,
            &mut Work {
                view: &mut view,
                rows,
                now,
            },
        );
        self.at_a_glance.follow(&desk, &view);
        if desk.office.is_resting() && !desk.office.is_idle(&view) {
            self.to_judge.notify_one();
        }
        done
    }

    pub(super) fn is_sure(&self) -> bool {
        self.at_a_glance.sure.load(Ordering::Acquire)
    }

    /// How many records there are.
    pub(super) fn records(&self) -> usize {
        self.at_a_glance.records.load(Ordering::Relaxed)
    }

    /// A batch is on disk, or is not.
    pub(super) fn on_written(&self, written: &Result<(), String>) {
        if written.is_err() {
            return;
        }
        let batch = {
            let desk = self.desk.lock();
            self.metrics.observe(&desk);
            desk.batch
        };
        let revision = self.view.read().revision();
        self.head.send_if_modified(|head| {
            let moved = head.revision != revision;
            head.revision = revision;
            moved
        });
        self.synced.send_replace(batch);
    }

    /// Reads from the desk what another server may be told: waits until it is on disk.
    ///
    /// # Errors
    /// It did not get there in time.
    pub(super) async fn read_synced<T>(&self, read: impl FnOnce(&Desk) -> T) -> Result<T, tonic::Status> {
        let (found, batch) = {
            let desk = self.desk.lock();
            (read(&desk), desk.batch)
        };
        let mut synced = self.synced.subscribe();
        let waited = tokio::time::timeout(SYNC_WAIT, synced.wait_for(|synced| *synced >= batch)).await;
        match waited {
            Ok(Ok(_)) => Ok(found),
            Ok(Err(_)) | Err(_) => Err(tonic::Status::unavailable("the disk is behind")),
        }
    }

    /// A job has come.
    pub(super) fn tell_company(&self) {
        self.company.came(self.jobs.max_capacity() - self.jobs.capacity());
    }

    /// Has a job of this server's own done; waits for room in the queue.
    pub(super) async fn perform<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, ProposeError>>) -> Job,
    ) -> Result<T, ProposeError> {
        let (done, outcome) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| ended())?;
        self.tell_company();
        outcome.await.map_err(|_| ended())?
    }
}

/// The committing task is gone, with whatever waited for it.
pub(super) fn ended() -> ProposeError {
    ProposeError::Unavailable {
        reason: "AP groups are closed on this server".into(),
    }
}
