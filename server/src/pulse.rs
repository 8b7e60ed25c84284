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
    let mut ticks = tokio::time::interval_at(on_grid(Instant::now(), period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Sleeps for at least so long, until the next step of the grid.
pub(crate) async fn pause(least: Duration) {
    tokio::time::sleep_until(not_before(Instant::now() + least)).await;
}

/// The next step of the grid.
pub(crate) fn not_before(at: Instant) -> Instant {
    on_grid(at, STEP)
}

/// The first multiple of the step that is not before `at`. In a simulation many servers share a process, and each
/// keeps the time at which it began.
fn on_grid(at: Instant, step: Duration) -> Instant {
    if ground::simulated(|_| ()).is_some() {
        return at;
    }
    at + until_grid(at.saturating_duration_since(*BEGAN), step)
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

    #[tokio::test(start_paused = true)]
    async fn who_looks_at_a_pace_is_woken_together() {
        let mut first = ticks(STEP);
        tokio::time::advance(Duration::from_millis(13)).await;
        let mut second = ticks(STEP);
        assert_eq!(first.tick().await, second.tick().await);
        pause(STEP * 4).await;
        let paused_until = Instant::now();
        // Both were late, and are in step again.
        first.tick().await;
        second.tick().await;
        assert_eq!(Instant::now(), paused_until);
        assert_eq!(first.tick().await, second.tick().await);
    }
}
