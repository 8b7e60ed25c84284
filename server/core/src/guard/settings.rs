//! How a service wants to be guarded.

use serde::{Deserialize, Serialize};

/// The whole, in basis points.
pub const SHARE_WHOLE: u32 = 10_000;
/// Shortest window, in milliseconds.
const WINDOW_MS_MIN: u64 = 1_000;
/// Longest window, in milliseconds: a day.
const WINDOW_MS_MAX: u64 = 86_400_000;
/// Longest hold, in milliseconds: a year.
const HOLD_MAX_MS_MAX: u64 = 365 * 86_400_000;

/// A service's removal guard (design section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuardSettings {
    /// How much of the service may lapse away in one window, in basis points, 0 to 10,000. One node always may,
    /// unless it is the last. Smaller holds more nodes as suspects; larger lets a flapping network empty the
    /// list. Default 3,000: 30 %.
    pub share: u32,
    /// Length of a window in milliseconds, 1 s to 24 h. It begins with the first removal by lapse. Default
    /// 10 min.
    pub window_ms: u64,
    /// The last node never lapses away. Default true.
    pub keep_last: bool,
    /// How long nodes are held at most, in milliseconds; then they go at no more than the share per window. 0:
    /// until they return, are replaced, or an operator confirms. Default 24 h, at most a year.
    pub hold_max_ms: u64,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            share: 3_000,
            window_ms: 600_000,
            keep_last: true,
            hold_max_ms: 86_400_000,
        }
    }
}

/// A setting is out of range; nothing was changed. Correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, must be {range}")]
pub struct GuardSettingsError {
    /// Which.
    pub field: &'static str,
    /// What it was to be.
    pub value: u64,
    /// What it may be.
    pub range: String,
}

impl GuardSettings {
    /// A guard that holds nothing.
    #[must_use]
    pub fn off() -> Self {
        Self {
            share: SHARE_WHOLE,
            keep_last: false,
            ..Self::default()
        }
    }

    /// Whether nothing is ever held: everything may go, the last one too.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.share >= SHARE_WHOLE && !self.keep_last
    }

    /// How many of `baseline` nodes may lapse away in one window.
    #[must_use]
    pub fn allowed(&self, baseline: u32) -> u32 {
        let share = u64::from(baseline) * u64::from(self.share) / u64::from(SHARE_WHOLE);
        u32::try_from(share).unwrap_or(u32::MAX).max(1)
    }

    /// How many of `of` nodes must be up for an engaged guard to disengage.
    #[must_use]
    pub fn needed(&self, of: u32) -> u32 {
        let rest = u64::from(SHARE_WHOLE.saturating_sub(self.share));
        let needed = (u64::from(of) * rest).div_ceil(u64::from(SHARE_WHOLE));
        u32::try_from(needed)
            .unwrap_or(u32::MAX)
            .max(u32::from(self.keep_last))
    }

    /// Refuses settings that make no sense.
    ///
    /// # Errors
    ///
    /// [`GuardSettingsError`] names the first field out of its range.
    pub fn check(&self) -> Result<(), GuardSettingsError> {
        let fields = [
            ("share", u64::from(self.share), 0, u64::from(SHARE_WHOLE)),
            ("window_ms", self.window_ms, WINDOW_MS_MIN, WINDOW_MS_MAX),
            ("hold_max_ms", self.hold_max_ms, 0, HOLD_MAX_MS_MAX),
        ];
        match fields
            .iter()
            .find(|(_, value, min, max)| value < min || value > max)
        {
            Some(&(field, value, min, max)) => Err(GuardSettingsError {
                field,
                value,
                range: format!("{min} to {max}"),
            }),
            None => Ok(()),
        }
    }
}
