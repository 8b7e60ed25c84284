//! Many countdowns at once, renewed far more often than they end.
//!
//! A lazy timing wheel. Each countdown is filed once, in the bucket of its deadline; renewing it only moves the
//! deadline in its lease, O(1). When a bucket begins, its entries are looked at: those renewed since are filed
//! anew, the rest wait in order until their deadline has come. (Varghese and Lauck, "Hashed and hierarchical
//! timing wheels", 1987; the laziness is that of Kafka's and the kernel's timers.)
//!
//! Invariants: a countdown never ends before its deadline in judged time, and is taken by the first
//! [`Countdown::take_lapsed`] after it unless more than `max` lapsed; the buckets cost no precision. What ended
//! cannot be renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3Default;

use super::judged_time::{JudgedTime, Pace, Tick};

#[expect(
    clippy::disallowed_types,
    reason = "looked up by key only; its order is never observed"
)]
type Leases<K> = std::collections::HashMap<K, Lease>;

/// Width of a bucket. A countdown that is renewed all the time is looked at once per deadline, so this only
/// trades the number of buckets against how many entries wait in order.
const BUCKET: Duration = Duration::from_millis(100);
/// Entries of forgotten countdowns are swept out when they outnumber the living and this.
const STALE_MIN: usize = 1_024;

/// It was never started, has ended, or was forgotten. Nothing was changed; of a session: it is dead, the client
/// opens a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such countdown")]
pub struct NotFound;

/// How a new leader starts the countdowns it takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// On top of the full ttl: one election timeout.
    pub extra: Duration,
    /// The deadlines are spread over this much more, each at a place given by its key.
    pub over: Duration,
}

/// There is one for each session: times are in nanoseconds, which take half of what a [`Duration`] does.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// Judged.
    deadline: u64,
    ttl: u64,
    /// Tells its entry from those of an earlier countdown with the same key.
    generation: u64,
}

/// Countdowns by key. `K` is small and cheap to clone.
#[derive(Clone, Debug)]
pub struct Countdown<K> {
    time: JudgedTime,
    leases: Leases<K>,
    /// By number of the bucket: deadlines in `[number, number + 1)` times its width, as they were when filed.
    buckets: BTreeMap<u128, Vec<(K, u64)>>,
    /// Entries of buckets that have begun, by the deadline they were filed under.
    near: BTreeSet<(Duration, K, u64)>,
    generation: u64,
    /// Entries in `buckets` and `near` that belong to no lease.
    stale: usize,
}

impl<K: Clone + Ord + Hash> Countdown<K> {
    /// No countdowns; the first tick is expected one interval after `now`.
    #[must_use]
    pub fn new(now: Instant, pace: Pace) -> Self {
        Self {
            time: JudgedTime::starting_at(now, pace),
            leases: Leases::new(),
            buckets: BTreeMap::new(),
            near: BTreeSet::new(),
            generation: 0,
            stale: 0,
        }
    }

    /// Tells the clock that its shell is awake. Judged time stands still when this is not called.
    pub fn tick(&mut self, now: Instant) -> Tick {
        self.time.tick(now)
    }

    /// Goes on after a time in which nothing counted down and no tick was meant to come; what was started since the
    /// last tick lasts no shorter for it.
    pub fn resume(&mut self, now: Instant) {
        self.time.resume(now);
    }

    /// How long ago the last tick was.
    #[must_use]
    pub fn since_tick(&self, now: Instant) -> Duration {
        self.time.since_tick(now)
    }

    /// Moves every deadline by so much: nobody could be heard for as long.
    pub fn stand_still(&mut self, now: Instant, time: Duration) {
        self.time.stand_still(now, time);
    }

    /// By how much late ticks moved every deadline so far.
    #[must_use]
    pub fn shifted_total(&self) -> Duration {
        self.time.shifted_total()
    }

    /// Starts a countdown (or starts it again): it was granted, or its expiry was void.
    pub fn start(&mut self, key: K, ttl: Duration, now: Instant) {
        let deadline = self.time.at(now) + ttl;
        self.file_new(key, ttl, deadline);
    }

    /// Starts a countdown of a new leader: its full ttl and `spread.extra`, and at most `spread.over` more.
    /// Renewals bring it back to its ttl only when that ends later.
    pub fn start_spread(&mut self, key: K, ttl: Duration, spread: Spread, now: Instant) {
        let deadline = self.time.at(now) + ttl + spread.extra + place(&key, spread.over);
        self.file_new(key, ttl, deadline);
    }

    /// It is to last so long in all, as if it had been started so; nothing happens if it does, or if there is no such.
    pub fn change_ttl(&mut self, key: &K, ttl: Duration) {
        let Some(lease) = self.leases.get(key) else { return };
        if lease.ttl != nanos(ttl) {
            let began = lease.deadline.saturating_sub(lease.ttl);
            self.file_new(key.clone(), ttl, Duration::from_nanos(began) + ttl);
        }
    }

    /// Restarts it with its ttl and returns how much is left now. O(1). The deadline never moves back.
    ///
    /// # Errors
    ///
    /// [`NotFound`] if it ended: no renewal overtakes an expiry.
    pub fn renew(&mut self, key: &K, now: Instant) -> Result<Duration, NotFound> {
        let lease = self.leases.get_mut(key).ok_or(NotFound)?;
        let judged = nanos(self.time.at(now));
        lease.deadline = lease.deadline.max(judged.saturating_add(lease.ttl));
        Ok(Duration::from_nanos(lease.deadline - judged))
    }

    /// Ends it without a lapse: the session was closed, or expired by someone else's word.
    pub fn forget(&mut self, key: &K) {
        if self.leases.remove(key).is_some() {
            self.stale += 1;
            self.sweep();
        }
    }

    /// Ends those whose deadline has come and returns them, by deadline, then key, at most `max`; the rest
    /// waits for the next call and may still be renewed until then. Calling it early or often is harmless.
    pub fn take_lapsed(&mut self, now: Instant, max: usize) -> Vec<K> {
        let judged = self.time.at(now);
        self.open_buckets(judged);
        let mut lapsed = Vec::new();
        while lapsed.len() < max
            && self
                .near
                .first()
                .is_some_and(|(deadline, _, _)| *deadline <= judged)
        {
            let Some((filed, key, generation)) = self.near.pop_first() else {
                break;
            };
            match self.deadline_of(&key, generation) {
                Some(deadline) if deadline == filed => {
                    self.leases.remove(&key);
                    lapsed.push(key);
                }
                Some(deadline) => self.file(key, generation, deadline, judged),
                None => self.stale -= 1,
            }
        }
        lapsed
    }

    /// How much is left of it at `now`; zero if it lapsed and was not taken yet. `None` if there is no such.
    #[must_use]
    pub fn remaining(&self, key: &K, now: Instant) -> Option<Duration> {
        let deadline = Duration::from_nanos(self.leases.get(key)?.deadline);
        Some(deadline.saturating_sub(self.time.at(now)))
    }

    /// Whether it counts down.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.leases.contains_key(key)
    }

    /// How many count down.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// How many entries are held, those of countdowns that are gone included: at most twice as many as count
    /// down, or 2,048 if that is more.
    #[must_use]
    pub fn filed(&self) -> usize {
        self.leases.len() + self.stale
    }

    /// The next moment at which [`Self::take_lapsed`] can have news, if ticks come in time until then; it may
    /// turn out to have none. Ask again after any other call.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let near = self.near.first().map(|(deadline, _, _)| *deadline);
        let far = self
            .buckets
            .first_key_value()
            .map(|(number, _)| start_of(*number));
        let next = [near, far].into_iter().flatten().min()?;
        Some(self.time.real(next))
    }

    fn file_new(&mut self, key: K, ttl: Duration, deadline: Duration) {
        self.generation += 1;
        let generation = self.generation;
        if self
            .leases
            .insert(
                key.clone(),
                Lease {
                    deadline: nanos(deadline),
                    ttl: nanos(ttl),
                    generation,
                },
            )
            .is_some()
        {
            self.stale += 1;
        }
        self.buckets
            .entry(number_of(deadline))
            .or_default()
            .push((key, generation));
        self.sweep();
    }

    /// Puts an entry where its deadline belongs.
    fn file(&mut self, key: K, generation: u64, deadline: Duration, judged: Duration) {
        let number = number_of(deadline);
        if start_of(number) <= judged {
            self.near.insert((deadline, key, generation));
        } else {
            self.buckets.entry(number).or_default().push((key, generation));
        }
    }

    /// Brings the entries of buckets that have begun in order.
    fn open_buckets(&mut self, judged: Duration) {
        while let Some(bucket) = self.buckets.first_entry() {
            if start_of(*bucket.key()) > judged {
                break;
            }
            for (key, generation) in bucket.remove() {
                match self.deadline_of(&key, generation) {
                    Some(deadline) => self.file(key, generation, deadline, judged),
                    None => self.stale -= 1,
                }
            }
        }
    }

    /// The present deadline of the countdown that an entry stands for, if it still counts down.
    fn deadline_of(&self, key: &K, generation: u64) -> Option<Duration> {
        let lease = self.leases.get(key)?;
        (lease.generation == generation).then(|| Duration::from_nanos(lease.deadline))
    }

    /// Keeps memory in proportion to the living, at a constant cost per countdown that was forgotten.
    fn sweep(&mut self) {
        if self.stale <= STALE_MIN.max(self.leases.len()) {
            return;
        }
        let leases = &self.leases;
        let lives = |key: &K, generation: u64| {
            leases
                .get(key)
                .is_some_and(|lease| lease.generation == generation)
        };
        self.near.retain(|(_, key, generation)| lives(key, *generation));
        for bucket in self.buckets.values_mut() {
            bucket.retain(|(key, generation)| lives(key, *generation));
        }
        self.buckets.retain(|_, bucket| !bucket.is_empty());
        self.stale = 0;
    }
}

/// Enough for five hundred years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn number_of(deadline: Duration) -> u128 {
    deadline.as_nanos() / BUCKET.as_nanos()
}

fn start_of(number: u128) -> Duration {
    let nanos = number * BUCKET.as_nanos();
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).unwrap_or(0))
}

/// A place in `[0, over)`, always the same for a key.
fn place<K: Hash>(key: &K, over: Duration) -> Duration {
    let mut hasher = Xxh3Default::new();
    key.hash(&mut hasher);
    let share = u128::from(hasher.finish());
    let nanos = (over.as_nanos() * share) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
