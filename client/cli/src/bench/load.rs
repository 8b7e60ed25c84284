//! How hard to push, and for how long: the flags that every bench shares.

use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::lane::{Lane, Pace};
use crate::names;
use crate::progress::Progress;

/// How long a bench runs if nothing is said.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// Calls under way per connection that an open loop allows by default: enough for any server that keeps up.
const IN_FLIGHT_OPEN: usize = 4_096;
/// The same for a closed loop.
const IN_FLIGHT_CLOSED: usize = 16;

/// The load.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub(crate) struct Load {
    /// TCP connections, spread over the servers of --addr
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = positive)]
    pub(crate) connections: usize,

    /// Calls under way per connection. Closed loop: always so many (default 16). Open loop: at most so many
    /// (default 4096); a call that must wait for its place goes late
    #[arg(long, value_name = "COUNT", value_parser = positive)]
    pub(crate) in_flight: Option<usize>,

    /// How long to send (default 10s, unless --count is given)
    #[arg(long, value_name = "TIME", value_parser = names::positive_duration)]
    pub(crate) duration: Option<Duration>,

    /// How many calls to send
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Calls per second, over all connections: an open loop
    #[arg(long, value_name = "PER-SECOND", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

/// A count of at least one.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(e) => Err(format!("{e}")),
    }
}

/// Calls per second: positive, and not so many that times cannot tell them apart.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e8 => Ok(rate),
        Ok(_) => Err("must be above 0 and at most 100000000".into()),
        Err(e) => Err(format!("{e}")),
    }
}

impl Load {
    /// Whether calls are sent on a schedule.
    pub(crate) fn is_open(&self) -> bool {
        self.rate.is_some()
    }

    /// Calls under way per connection, at most.
    pub(crate) fn in_flight_max(&self) -> usize {
        self.in_flight.unwrap_or(if self.is_open() {
            IN_FLIGHT_OPEN
        } else {
            IN_FLIGHT_CLOSED
        })
    }

    /// When sending ends; `None`: with the count.
    pub(crate) fn sending_time(&self) -> Option<Duration> {
        match (self.duration, self.count) {
            (Some(duration), _) => Some(duration),
            (None, Some(_)) => None,
            (None, None) => Some(DURATION_DEFAULT),
        }
    }

    /// A bar if the number of calls is known, else a counter.
    pub(crate) fn progress(&self, doing: &str) -> Progress {
        match (self.count, self.duration) {
            (Some(count), None) => Progress::of(count, doing),
            _ => Progress::counting(doing),
        }
    }

    /// The part of the load that falls to one of `lanes` lanes. The last answers may take `patience` longer.
    pub(crate) fn lane(&self, index: usize, lanes: usize, start: Instant, patience: Duration) -> Lane {
        let (index_wide, lanes_wide) = (index as u64, lanes.max(1) as u64);
        let count = self
            .count
            .map(|count| count / lanes_wide + u64::from(index_wide < count % lanes_wide));
        let pace = match self.rate {
            None => Pace::Closed,
            Some(rate) => Pace::Open {
                // Lanes take turns, so that together they send at even distances.
                first: Duration::from_secs_f64(index as f64 / rate),
                every: Duration::from_secs_f64(lanes as f64 / rate),
            },
        };
        Lane::new(
            start,
            pace,
            count,
            self.sending_time(),
            self.in_flight_max(),
            patience,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn load() -> Load {
        Load {
            connections: 4,
            in_flight: None,
            duration: None,
            count: None,
            rate: None,
        }
    }

    #[test]
    fn a_count_is_shared_out_to_the_last_call() {
        let load = Load {
            count: Some(10),
            ..load()
        };
        let now = Instant::now();
        let shares: Vec<Option<u64>> = (0..4)
            .map(|index| load.lane(index, 4, now, Duration::ZERO).share())
            .collect();
        assert_eq!(shares, [Some(3), Some(3), Some(2), Some(2)]);
    }

    #[test]
    fn without_a_word_it_runs_ten_seconds() {
        assert_eq!(load().sending_time(), Some(DURATION_DEFAULT));
        assert_eq!(
            Load {
                count: Some(1),
                ..load()
            }
            .sending_time(),
            None
        );
        let both = Load {
            count: Some(1),
            duration: Some(Duration::from_secs(1)),
            ..load()
        };
        assert_eq!(both.sending_time(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn rates_are_positive_numbers() {
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("inf").is_err() && rate("NaN").is_err());
        assert_eq!(rate("0.5"), Ok(0.5));
    }
}
