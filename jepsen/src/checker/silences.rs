//! Watchers that are never told again (design, section 6): while a stream lasts, its watcher is told of every change, and
//! every five seconds how far its server has come, if it came any further.
//!
//! A watcher leaves a server that says nothing, and hears elsewhere what it missed, without a gap. So nobody who looks at
//! what it was told sees that the server had forgotten it.

use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Fault, Following};

/// After an acknowledgement every server has it, and says so: a bookmark's interval, and time for a busy machine.
pub const TOLD_WITHIN: Duration = Duration::from_secs(8);
/// After a fault, for a leader and for what waits in kernels; as long again as the fault lasted, if that is longer.
const SLACK: Duration = Duration::from_secs(3);

/// Judges every silence. `acknowledged`: revisions that somebody was promised, of whatever service, and when.
#[must_use]
pub fn check(following: &[Following], acknowledged: &[(u64, Duration)], faults: &[Fault]) -> Verdict {
    let mut verdict = Verdict::new("silent watches");
    verdict.judged += acknowledged.len();
    let (mut silences, mut excused) = (0, 0);
    for line in following {
        let Following::Silent {
            watch,
            server,
            since,
            told,
            time,
        } = line
        else {
            continue;
        };
        silences += 1;
        if faults.iter().any(|fault| touches(fault, *since, *time)) {
            excused += 1;
            continue;
        }
        let untold = acknowledged
            .iter()
            .filter(|(revision, at)| revision > told && *at + TOLD_WITHIN <= *time);
        if let Some((revision, at)) = untold.min_by_key(|(_, at)| *at) {
            verdict.find(
                *since,
                format!(
                    "watcher {watch} was told nothing by server {server} from {since:?} to {time:?}, when it left; it had \
                     been told of revision {told}, revision {revision} had been acknowledged at {at:?}, and there was no fault"
                ),
            );
        }
    }
    verdict.figures.push(format!(
        "{silences} times a watcher was told nothing for long, {excused} times for a fault"
    ));
    verdict
}

/// Whether a fault may have cut a stream, or held up what was to be told, between these moments.
fn touches(fault: &Fault, from: Duration, to: Duration) -> bool {
    let over = fault.end + (fault.end - fault.time).max(SLACK);
    fault.time <= to && over >= from
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fault(time: u64, end: u64) -> Fault {
        Fault {
            what: "single: 2".into(),
            time: s(time),
            end: s(end),
            bit: true,
            effect: String::new(),
        }
    }

    /// Told of revision 5, and then of nothing from 20 to 30 s.
    fn silent() -> Following {
        Following::Silent {
            watch: "w".into(),
            server: 2,
            since: s(20),
            told: 5,
            time: s(30),
        }
    }

    fn found(acknowledged: &[(u64, u64)], faults: &[Fault]) -> usize {
        let acknowledged: Vec<_> = acknowledged
            .iter()
            .map(|(revision, at)| (*revision, s(*at)))
            .collect();
        check(&[silent()], &acknowledged, faults).findings.len()
    }

    #[test]
    fn who_is_never_told_again_is_found() {
        assert_eq!(found(&[(5, 19), (6, 22), (9, 29)], &[]), 1);
        assert_eq!(found(&[(5, 19), (6, 22)], &[fault(1, 9)]), 1, "long over");
        assert_eq!(found(&[(6, 22)], &[fault(31, 40)]), 1, "later");
    }

    #[test]
    fn who_had_nothing_to_be_told_of_or_was_cut_off_is_not() {
        assert_eq!(found(&[(5, 19), (4, 22)], &[]), 0, "nothing new");
        assert_eq!(found(&[(6, 23)], &[]), 0, "the next bookmark may be due yet");
        assert_eq!(found(&[(6, 22)], &[fault(25, 26)]), 0);
        assert_eq!(found(&[(6, 22)], &[fault(10, 15)]), 0, "it lasts on in kernels");
        assert!(!check(&[], &[], &[]).is_good(), "nothing was judged");
    }
}
