//! Whose turn it is: epochs go round, and every client id has one of them.
//!
//! `n = ceil(1 / share)` epochs make a round. A client's slot is a hash of its id and the setting's salt, and its
//! turn comes whenever `epoch mod n` is its slot. The slot does not move from round to round: any `n` epochs in a
//! row hold exactly one turn of every client, so the promise is exact from whichever moment it asks.

use std::time::{Duration, Instant};

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::mode::Share;

/// Time cut into epochs.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    origin: Instant,
    epoch: Duration,
}

/// When a client's turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// In this epoch.
    Now,
    /// In a later one: when it had best ask, at a place in that epoch's first half which is its own.
    At(Instant),
}

impl Rotation {
    /// Epochs of this length (at least 1 ms), counted from `origin`.
    #[must_use]
    pub fn new(origin: Instant, epoch: Duration) -> Self {
        let epoch = epoch.max(Duration::from_millis(1));
        Self { origin, epoch }
    }

    /// The number of the epoch at `now`.
    #[must_use]
    pub fn epoch_at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(elapsed / self.epoch.as_nanos()).unwrap_or(u64::MAX)
    }

    /// When a client may have the full list.
    #[must_use]
    pub fn turn(&self, client: &[u8], salt: u64, share: Share, now: Instant) -> Turn {
        let epochs = u64::from(share.epochs());
        let epoch = self.epoch_at(now);
        let ahead = (slot(client, salt, epochs) + epochs - epoch % epochs) % epochs;
        if ahead == 0 {
            return Turn::Now;
        }
        let starts = self.start_of(epoch.saturating_add(ahead));
        Turn::At(starts + place(client, salt, self.epoch / 2))
    }

    /// How long a round takes.
    #[must_use]
    pub fn round(&self, share: Share) -> Duration {
        self.epoch.saturating_mul(u32::from(share.epochs()))
    }

    fn start_of(&self, epoch: u64) -> Instant {
        let nanos = self.epoch.as_nanos().saturating_mul(u128::from(epoch));
        self.origin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// In `[0, epochs)`.
fn slot(client: &[u8], salt: u64, epochs: u64) -> u64 {
    let hash = xxh3_64_with_seed(client, salt);
    u64::try_from((u128::from(hash) * u128::from(epochs)) >> 64).unwrap_or(0)
}

/// In `[0, over)`, independent of the slot.
fn place(client: &[u8], salt: u64, over: Duration) -> Duration {
    let hash = xxh3_128_with_seed(client, !salt) >> 64;
    let nanos = (over.as_nanos() * hash) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
