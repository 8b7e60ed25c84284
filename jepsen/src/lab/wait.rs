//! Waiting on conditions.

use std::future::Future;
use std::time::{Duration, Instant};

/// Bound for waits that say nothing else: generous, since a loaded two-core machine is slow, and met early in
/// every good run.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// How often a condition is asked.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// The condition did not hold in time.
#[derive(Debug)]
pub struct NotInTime {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub waited: Duration,
}

impl std::fmt::Display for NotInTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} did not come about within {:?}", self.what, self.waited)
    }
}

impl std::error::Error for NotInTime {}

/// Asks `condition` until it gives a value, at most for `bound`; it is always asked at least once.
///
/// # Errors
/// [`NotInTime`], naming `what`.
pub async fn eventually<T, F, Fut>(what: &str, bound: Duration, mut condition: F) -> Result<T, NotInTime>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if started.elapsed() >= bound {
            return Err(NotInTime {
                what: what.into(),
                waited: started.elapsed(),
            });
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Attempts something anew until it goes cleanly once, at most so many times: for what is promised of a machine that goes
/// on, while this one may stand still at any moment. An attempt's `Err` says what such a moment can have done; what it
/// cannot have done ends the test in the attempt itself.
///
/// # Panics
/// None of the attempts was clean.
pub async fn one_clean_of<T>(attempts: u32, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut spoiled = Vec::new();
    for _ in 0..attempts {
        match attempt().await {
            Ok(clean) => return clean,
            Err(why) => {
                eprintln!("once more: {why}");
                spoiled.push(why);
            }
        }
    }
    panic!("none of {attempts} attempts was clean: {spoiled:#?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_clean_attempt_is_the_last() {
        let mut attempts = 0;
        let clean = one_clean_of(3, async || {
            attempts += 1;
            if attempts == 2 {
                Ok("clean")
            } else {
                Err("spoiled".into())
            }
        });
        assert_eq!((clean.await, attempts), ("clean", 2));
    }

    #[tokio::test]
    #[should_panic = "none of 3 attempts was clean"]
    async fn what_is_never_clean_fails() {
        one_clean_of(3, async || Err::<(), _>("spoiled".into())).await;
    }

    #[tokio::test]
    async fn a_condition_that_never_holds_is_named() {
        let refused = eventually("rain", Duration::from_millis(20), || async { None::<()> })
            .await
            .unwrap_err();
        assert!(refused.to_string().starts_with("rain did not come about"));
    }
}
