//! The pulse: work that comes round now and then comes round together.
//!
//! What it costs an idle server to look is hardly the look: it is being woken for it, a task at a time. So everything
//! that looks at a steady pace does so on one grid, and one wake-up serves all who are due. Nothing waits for longer
//! than it asked for by more than one step of the grid.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::ground;

/// Pauses end on multiples of this.
const STEP: Duration = Duration::from_millis(50);

/// From when on multiples are counted.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Ticks at this period. Whoever was late for one is on the grid again with the next.
pub(crate) fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(on_grid(Duration::ZERO, period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Sleeps for at least so long, until the next step of the grid.
pub(crate) async fn pause(least: Duration) {
    tokio::time::sleep_until(after(least)).await;
}

/// The first step of the grid that is at least so far away.
pub(crate) fn after(least: Duration) -> Instant {
    on_grid(least, STEP)
}

/// The first multiple of the step that is at least so far away. In a simulation many servers share a process, and each
/// keeps the time at which it began.
fn on_grid(least: Duration, step: Duration) -> Instant {
    if ground::simulated(|_| ()).is_some() {
        return Instant::now() + least;
    }
    // Who asks first is on the grid as well: that begins before it looks at the time.
    let began = *BEGAN;
    let at = Instant::now() + least;
    at + until_grid(at.saturating_duration_since(began), step)
}

fn until_grid(since: Duration, step: Duration) -> Duration {
    let step = step.as_nanos().max(1);
    let over = since.as_nanos() % step;
    let missing = if over == 0 { 0 } else { step - over };
    Duration::from_nanos(u64::try_from(missing).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_never_before_what_was_asked_for_and_less_than_a_step_behind_it() {
        let ms = Duration::from_millis;
        for (since, missing) in [(0, 0), (1, 49), (49, 1), (50, 0), (51, 49), (1_000, 0)] {
            assert_eq!(until_grid(ms(since), STEP), ms(missing), "{since} ms");
        }
        assert_eq!(until_grid(ms(3), Duration::ZERO), Duration::ZERO);
    }

    #[tokio::test]
    async fn who_looks_at_a_pace_is_woken_together() {
        let in_step = |one: Instant, other: Instant| {
            let apart = other.max(one) - other.min(one);
            assert_eq!(apart.as_nanos() % STEP.as_nanos(), 0, "{apart:?}");
        };
        let mut first = ticks(STEP);
        tokio::time::sleep(STEP / 4).await;
        let mut second = ticks(STEP);
        in_step(first.tick().await, second.tick().await);
        in_step(after(Duration::ZERO), second.tick().await);
        // Both are late now, and in step again behind it.
        tokio::time::sleep(STEP * 9 / 4).await;
        first.tick().await;
        second.tick().await;
        in_step(first.tick().await, second.tick().await);
    }
}
