//! The handle that doors and hub ask, and the task that keeps it up to date.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::directory::Sign;
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_core::storm::{Admission, Consumer, Engagement, Mode, Modes, Pressure, Share, StormSwitch};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, Rates, Turn};
use super::metrics::StormMetrics;
use super::rehearsal::Pacing;
use crate::config::StormConfig;
use crate::pulse;
use crate::raft::{AppliedHead, SharedDirectory};

/// How often the scheduler is tried under pressure: a task that should run now, does it?
const TRIAL: Duration = Duration::from_millis(100);
/// How often the pressure is judged; where there is none the scheduler is not tried more often.
const READING: Duration = Duration::from_millis(250);
/// A trial that is later by so much is no sign of pressure: timers are no finer.
const UNNOTICED: Duration = Duration::from_millis(5);

/// This server's storm switch. Cheap to clone.
#[derive(Clone)]
pub struct StormDesk {
    inner: Arc<Inner>,
}

struct Inner {
    switch: Mutex<StormSwitch>,
    delay_max: Duration,
    /// For any group. Asked for every change and every subscription.
    engaged: AtomicBool,
    /// Bytes that left since this server started.
    egress: AtomicU64,
    pressure: Mutex<Pressure>,
    metrics: StormMetrics,
    egress_budget: u64,
    rehearsals: Arc<Semaphore>,
    gate: Gate,
    /// In how much time everyone is served, while engaged.
    round: Mutex<Option<Duration>>,
}

/// The switch as it stands on this server.
#[derive(Clone, Debug)]
pub struct StormStatus {
    /// How it is set.
    pub modes: Modes,
    /// What `auto` makes of the pressure.
    pub engagement: Engagement,
    /// The last reading.
    pub pressure: Pressure,
    /// Full lists given while engaged, since this server started.
    pub served: u64,
    /// Consumers told to wait.
    pub kept: u64,
    /// Changes that became part of a later one.
    pub coalesced: u64,
}

impl StormDesk {
    /// A switch that is off until [`Self::run`] has read how it is set.
    #[must_use]
    pub fn new(config: &StormConfig, metrics: StormMetrics) -> Self {
        let switch = StormSwitch::new(config.switch_settings(), now());
        Self {
            inner: Arc::new(Inner {
                switch: Mutex::new(switch),
                delay_max: config.delay_max,
                engaged: AtomicBool::new(false),
                egress: AtomicU64::new(0),
                pressure: Mutex::default(),
                metrics,
                egress_budget: config.egress_bytes_per_second,
                rehearsals: Arc::new(Semaphore::new(1)),
                gate: Gate::new(Rates {
                    list_bytes: config.lists_bytes_per_second,
                    rationed_list_bytes: config.egress_bytes_per_second,
                    opens: config.opens_per_second,
                }),
                round: Mutex::new(None),
            }),
        }
    }

    /// Follows the record and the pressure until `shutdown`.
    pub async fn run(
        self,
        directory: Arc<SharedDirectory>,
        mut applied: watch::Receiver<AppliedHead>,
        shutdown: CancellationToken,
    ) {
        let mut meter = Meter::new(directory.read().revision());
        let trial = tokio::time::sleep_until(meter.tries_at);
        tokio::pin!(trial);
        self.follow(&directory);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = applied.changed() => match changed {
                    Ok(()) => self.follow(&directory),
                    Err(_) => return,
                },
                () = &mut trial => {
                    if let Some(pressure) = meter.try_scheduler(|| self.totals(&directory)) {
                        let waiting = self.inner.gate.waiting();
                        self.judge(Pressure {
                            // What waits to be sent presses as much as what was.
                            egress_bytes_per_s: pressure.egress_bytes_per_s.saturating_add(waiting),
                            ..pressure
                        });
                    }
                    trial.as_mut().reset(meter.tries_at);
                }
            }
        }
    }

    /// Whether full lists are rationed for any group.
    #[must_use]
    pub fn engaged(&self) -> bool {
        self.inner.engaged.load(Ordering::Acquire)
    }

    /// How the switch stands.
    #[must_use]
    pub fn status(&self) -> StormStatus {
        let switch = self.inner.switch.lock();
        let metrics = &self.inner.metrics;
        StormStatus {
            modes: switch.modes().clone(),
            engagement: switch.engagement(),
            pressure: *self.inner.pressure.lock(),
            served: metrics.served.get(),
            kept: metrics.kept.get(),
            coalesced: metrics.coalesced.get(),
        }
    }

    /// Whether it is engaged under this mode.
    #[must_use]
    pub fn engages(status: &StormStatus, mode: Mode) -> bool {
        match mode {
            Mode::Off | Mode::Inherited => false,
            Mode::On { .. } => true,
            Mode::Auto { .. } => status.engagement.engaged,
        }
    }

    /// Leave to count what a storm would send, which takes time: one at a time. Whoever counts holds it until that is done.
    pub(crate) fn begin_rehearsal(&self) -> Option<OwnedSemaphorePermit> {
        self.inner.rehearsals.clone().try_acquire_owned().ok()
    }

    /// How it would pace with this share.
    pub(crate) fn pacing(&self, share: Share) -> Pacing {
        Pacing {
            delay_max: self.inner.delay_max,
            round: self.inner.switch.lock().round(share),
        }
    }

    /// What this server may send, in bytes a second.
    pub(crate) fn egress_budget(&self) -> u64 {
        self.inner.egress_budget
    }

    /// How long changes may wait for more of their service; `None`: they leave at once. Changes of all groups
    /// leave in one order, so it holds for all while it is engaged for one.
    pub(crate) fn coalescing(&self) -> Option<Duration> {
        self.engaged().then_some(self.inner.delay_max)
    }

    /// Whether a consumer that asks since a moment may have full lists of these groups; if not, when it may ask again.
    pub(crate) fn ask(
        &self,
        groups: &BTreeSet<GroupName>,
        consumer: &str,
        cold: bool,
        asked_at: Instant,
    ) -> Option<Duration> {
        if !self.engaged() || groups.is_empty() {
            return None;
        }
        let consumer = Consumer {
            client: consumer.as_bytes(),
            cold,
            asked_at: asked_at.into_std(),
        };
        let now = now();
        match self.inner.switch.lock().ask_for(groups, consumer, now) {
            Admission::Serve => {
                self.inner.metrics.served.inc();
                None
            }
            Admission::KeepCache { retry_at } => {
                self.inner.metrics.kept.inc();
                Some(retry_at.saturating_duration_since(now))
            }
        }
    }

    /// The same for one list, of which the consumer knows this sign.
    pub(crate) fn ask_for_one(
        &self,
        key: &ServiceKey,
        consumer: &str,
        known: Option<Sign>,
    ) -> Option<Duration> {
        if !self.engaged() {
            return None;
        }
        let groups = BTreeSet::from([key.group.clone()]);
        self.ask(&groups, consumer, known.is_none(), Instant::now())
    }

    /// Waits for the turn of a message with so many bytes of full lists: a few are encoded at a time, at a rate that
    /// heartbeats bear; while the switch is on, and for a round after it, within the egress budget.
    pub(crate) async fn list_turn(&self, bytes: usize) -> Turn {
        self.inner.gate.list(bytes).await
    }

    /// Waits for the turn of a watch stream that begins.
    pub(crate) async fn open_turn(&self) {
        self.inner.gate.open().await;
    }

    /// A full list leaves as the answer to a call.
    pub(crate) fn count_called(&self, bytes: usize) {
        self.count_egress(bytes);
        self.inner.gate.note_call(bytes);
    }

    pub(crate) fn count_egress(&self, bytes: usize) {
        self.inner.egress.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_coalesced(&self, changes: u64) {
        self.inner.metrics.coalesced.inc_by(changes);
    }

    /// Takes over how the switch is set, if that changed.
    pub(crate) fn follow(&self, directory: &SharedDirectory) {
        let modes = Arc::clone(directory.read().storm());
        let mut switch = self.inner.switch.lock();
        if *switch.modes() == *modes {
            return;
        }
        let record = modes.cluster();
        let (author, reason) = (&record.author, &record.reason);
        tracing::info!(mode = %record.mode, groups = modes.groups().len(), author, reason, "storm switch set");
        switch.set_modes(&modes);
        self.show(&switch);
    }

    fn judge(&self, pressure: Pressure) {
        *self.inner.pressure.lock() = pressure;
        let metrics = &self.inner.metrics;
        metrics.egress.set(count(pressure.egress_bytes_per_s));
        metrics.waiting.set(count(self.inner.gate.waiting()));
        metrics.lag_ms.set(count(millis(pressure.scheduling_lag)));
        let mut switch = self.inner.switch.lock();
        let Some(flip) = switch.read(pressure, now()) else {
            return;
        };
        metrics.changes.inc();
        let why = flip.to.why;
        // Of interest only where somebody set the switch to auto.
        if switch.modes().idle() {
            tracing::debug!(engaged = flip.to.engaged, %why, "the storm switch would change");
        } else {
            tracing::info!(engaged = flip.to.engaged, %why, "pressure judged for the storm switch");
        }
        self.show(&switch);
    }

    fn show(&self, switch: &StormSwitch) {
        let modes = switch.modes();
        let metrics = &self.inner.metrics;
        metrics.mode.set(match modes.cluster().mode {
            Mode::Off | Mode::Inherited => 0,
            Mode::On { .. } => 1,
            Mode::Auto { .. } => 2,
        });
        let records = || std::iter::once(modes.cluster()).chain(modes.groups().map(|(_, record)| record));
        let by_operator = records().any(|record| matches!(record.mode, Mode::On { .. }));
        let by_itself = records().any(|record| matches!(record.mode, Mode::Auto { .. }));
        let engagement = switch.engagement();
        metrics.set_reason(
            by_operator,
            (by_itself && engagement.engaged).then_some(engagement.why),
        );
        let round = switch.round_engaged();
        metrics.engaged.set(i64::from(round.is_some()));
        self.inner.engaged.store(round.is_some(), Ordering::Release);
        let before = std::mem::replace(&mut *self.inner.round.lock(), round);
        self.inner.gate.set(round, before);
    }

    fn totals(&self, directory: &SharedDirectory) -> (u64, Revision) {
        (
            self.inner.egress.load(Ordering::Relaxed),
            directory.read().revision(),
        )
    }
}

/// Turns totals into rates, and late trials into lag.
struct Meter {
    /// When the scheduler is tried next.
    tries_at: Instant,
    read_at: Instant,
    lag: Duration,
    egress: u64,
    revision: Revision,
    /// Nothing left, changed or was late before the last reading.
    quiet: bool,
}

impl Meter {
    fn new(revision: Revision) -> Self {
        let now = Instant::now();
        Self {
            tries_at: pulse::after(TRIAL),
            read_at: now,
            lag: Duration::ZERO,
            egress: 0,
            revision,
            quiet: false,
        }
    }

    /// The moment of a trial came. Several times a second: the pressure since the last time.
    fn try_scheduler(&mut self, totals: impl FnOnce() -> (u64, Revision)) -> Option<Pressure> {
        let now = Instant::now();
        self.lag = self.lag.max(now.saturating_duration_since(self.tries_at));
        let pressure = self.read(now, totals);
        let least = if self.quiet { READING } else { TRIAL };
        self.tries_at = pulse::after(least - UNNOTICED);
        pressure
    }

    fn read(&mut self, now: Instant, totals: impl FnOnce() -> (u64, Revision)) -> Option<Pressure> {
        let elapsed = now - self.read_at;
        if elapsed + UNNOTICED < READING {
            return None;
        }
        let (egress, revision) = totals();
        let per_second = |amount: u64| amount.saturating_mul(1_000) / millis(elapsed).max(1);
        let pressure = Pressure {
            egress_bytes_per_s: per_second(egress - self.egress),
            changes_per_s: per_second(revision.0.saturating_sub(self.revision.0)),
            scheduling_lag: self.lag,
        };
        *self = Self {
            read_at: now,
            lag: Duration::ZERO,
            quiet: egress == self.egress && revision == self.revision && self.lag < UNNOTICED,
            egress,
            revision,
            ..*self
        };
        Some(pressure)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
