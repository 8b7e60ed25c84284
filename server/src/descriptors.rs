//! File descriptors: as many as the system gives, and enough kept back for peers and disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept back for the log, snapshots, peers, probes and whatever else is not a client.
const RESERVE: u64 = 1_024;

/// Raises the limit as far as this process may.
///
/// How many client connections fit under it: at most `wanted`, and at most half of a small limit.
pub(crate) fn connections_that_fit(wanted: usize) -> usize {
    let limit = raised_limit();
    let fit = fit_under(limit, wanted);
    if fit < wanted {
        tracing::warn!(
            limit,
            wanted,
            fit,
            "too few file descriptors for doors.connections_max; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    fit
}

fn raised_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let got = if setrlimit(Resource::Nofile, raised).is_ok() {
        maximum
    } else {
        current
    };
    // `None` is no limit.
    got.unwrap_or(u64::MAX)
}

fn fit_under(limit: u64, wanted: usize) -> usize {
    let room = limit.saturating_sub(RESERVE).max(limit / 2);
    usize::try_from(room).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_kept_back() {
        assert_eq!(fit_under(u64::MAX, 10_000), 10_000);
        assert_eq!(fit_under(20_000, 20_000), 18_976);
        assert_eq!(fit_under(1_024, 20_000), 512);
        assert_eq!(fit_under(0, 20_000), 0);
    }
}
