//! Sessions on the true clock, the harness's own: nobody leaves before a full ttl after the sending of a heartbeat
//! that was acknowledged, no heartbeat is acknowledged after its session's end, and nobody stays for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Fault, Heartbeats};

/// What a new leader adds to the full ttl that it grants everybody.
const ELECTION: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Life {
    ttl: Duration,
    /// When the last acknowledged heartbeat was sent; the opening counts.
    acknowledged: Vec<Duration>,
    /// When the last heartbeat may have arrived.
    last_possible: Duration,
    stopped: Option<Duration>,
    /// The first word of its end.
    gone: Option<Duration>,
}

/// Judges a history's sessions. Whoever stopped must be gone within `late_max` after its ttl. What happened while the
/// session was due excuses lateness: until the end of a fault, and for a full ttl and an election after it.
#[must_use]
pub fn check(lines: &[Heartbeats], faults: &[Fault], late_max: Duration, ended: Duration) -> Verdict {
    let mut verdict = Verdict::new("sessions");
    let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
    for line in lines {
        match line {
            Heartbeats::Open {
                session,
                ttl,
                sent,
                end,
            } => {
                let life = lives.entry(*session).or_default();
                life.ttl = *ttl;
                life.acknowledged.push(*sent);
                life.last_possible = life.last_possible.max(*end);
            }
            Heartbeats::Beat {
                session,
                sent,
                end,
                acknowledged,
            } => {
                let life = lives.entry(*session).or_default();
                if *acknowledged == Some(true) {
                    life.acknowledged.push(*sent);
                }
                if *acknowledged != Some(false) {
                    // Without an answer it may still be under way until the client stopped.
                    life.last_possible = life.last_possible.max(end.unwrap_or(*sent));
                }
            }
            Heartbeats::Stop { session, time } => lives.entry(*session).or_default().stopped = Some(*time),
            Heartbeats::Gone { session, time, .. } => {
                let gone = &mut lives.entry(*session).or_default().gone;
                *gone = Some(gone.map_or(*time, |known| known.min(*time)));
            }
            Heartbeats::NoQuorum { .. } => {}
        }
    }
    let mut faults: Vec<&Fault> = faults.iter().collect();
    faults.sort_by_key(|fault| fault.time);
    let mut lateness = Vec::new();
    for (session, life) in &lives {
        verdict.judged += life.acknowledged.len();
        judge(
            *session,
            life,
            &faults,
            late_max,
            ended,
            &mut verdict,
            &mut lateness,
        );
    }
    lateness.sort();
    if let Some(worst) = lateness.last() {
        let p99 = lateness[(lateness.len() * 99 / 100).min(lateness.len() - 1)];
        verdict.figures.push(format!(
            "{} sessions ended by silence; after their ttl: p99 {p99:?}, worst {worst:?}",
            lateness.len()
        ));
    }
    verdict.figures.push(format!("{} sessions", lives.len()));
    verdict
}

fn judge(
    session: u64,
    life: &Life,
    faults: &[&Fault],
    late_max: Duration,
    ended: Duration,
    verdict: &mut Verdict,
    lateness: &mut Vec<Duration>,
) {
    if let Some(gone) = life.gone {
        let early = life
            .acknowledged
            .iter()
            .filter(|sent| **sent <= gone && **sent + life.ttl > gone);
        if let Some(sent) = early.max() {
            verdict.find(
                gone,
                format!(
                    "session {session} was gone at {gone:?}, {:?} after an acknowledged heartbeat was sent ({sent:?}); \
                     its ttl is {:?}",
                    gone - *sent,
                    life.ttl
                ),
            );
        }
        if let Some(sent) = life.acknowledged.iter().find(|sent| **sent > gone) {
            verdict.find(
                *sent,
                format!("session {session} was gone at {gone:?}, and a heartbeat sent at {sent:?} was acknowledged"),
            );
        }
    }
    let Some(stopped) = life.stopped else { return };
    let mut due = life.last_possible.max(stopped) + life.ttl;
    for fault in faults {
        if fault.time <= due && fault.end >= stopped {
            due = due.max(fault.end + life.ttl + ELECTION);
        }
    }
    match life.gone {
        Some(gone) => {
            let late = gone.saturating_sub(due);
            lateness.push(late);
            if late > late_max {
                verdict.find(
                    gone,
                    format!("session {session} was gone {late:?} after its ttl, {late_max:?} at most"),
                );
            }
        }
        None if ended > due + late_max => {
            verdict.find(
                ended,
                format!("session {session} stopped at {stopped:?}, and at {ended:?} it is still there"),
            );
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(4);
    const LATE: Duration = Duration::from_secs(1);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn open(session: u64) -> Heartbeats {
        Heartbeats::Open {
            session,
            ttl: TTL,
            sent: s(0),
            end: s(0),
        }
    }

    fn beat(session: u64, sent: u64, acknowledged: Option<bool>) -> Heartbeats {
        let end = acknowledged.map(|_| s(sent));
        Heartbeats::Beat {
            session,
            sent: s(sent),
            end,
            acknowledged,
        }
    }

    fn gone(session: u64, time: u64) -> Heartbeats {
        Heartbeats::Gone {
            session,
            node: "n".into(),
            time: s(time),
        }
    }

    fn stop(session: u64, time: u64) -> Heartbeats {
        Heartbeats::Stop {
            session,
            time: s(time),
        }
    }

    #[test]
    fn a_life_in_order_passes() {
        let lines = [
            open(1),
            beat(1, 2, Some(true)),
            beat(1, 4, Some(true)),
            stop(1, 4),
            gone(1, 8),
            gone(1, 9),
        ];
        let verdict = check(&lines, &[], LATE, s(20));
        assert!(verdict.is_good(), "{verdict:?}");
        // Unanswered heartbeats protect nobody, and excuse lateness.
        let lines = [open(1), beat(1, 2, None), stop(1, 3), gone(1, 4)];
        assert!(check(&lines, &[], LATE, s(20)).is_good());
        assert!(
            check(&[open(1), beat(1, 19, Some(true))], &[], LATE, s(20)).is_good(),
            "it lives"
        );
    }

    #[test]
    fn early_late_never_and_undead_are_caught() {
        let early = check(&[open(1), beat(1, 2, Some(true)), gone(1, 5)], &[], LATE, s(20));
        assert_eq!(early.findings.len(), 1, "{early:?}");
        let late = check(&[open(1), stop(1, 0), gone(1, 6)], &[], LATE, s(20));
        assert_eq!(late.findings.len(), 1, "{late:?}");
        let never = check(&[open(1), stop(1, 0)], &[], LATE, s(20));
        assert_eq!(never.findings.len(), 1, "{never:?}");
        let fault = Fault {
            what: "x".into(),
            time: s(1),
            end: s(3),
        };
        let excused = check(
            &[open(1), stop(1, 0), gone(1, 8)],
            std::slice::from_ref(&fault),
            LATE,
            s(20),
        );
        assert!(excused.is_good(), "{excused:?}");
        let late = check(&[open(1), stop(1, 0), gone(1, 10)], &[fault], LATE, s(20));
        assert_eq!(late.findings.len(), 1, "{late:?}");
        let undead = check(&[open(1), gone(1, 5), beat(1, 6, Some(true))], &[], LATE, s(20));
        assert_eq!(undead.findings.len(), 1, "{undead:?}");
    }
}
