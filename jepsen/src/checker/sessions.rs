//! Sessions on the true clock, the harness's own: nobody leaves before a full ttl after the sending of a heartbeat
//! that was acknowledged, no heartbeat is acknowledged after its session's end, and nobody stays for ever. A session's
//! end shows in two ways: a watcher is told that its node is gone, or a heartbeat is answered *not found*.

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
    /// When those without an answer were sent.
    unanswered: Vec<Duration>,
    /// When it was first answered that there is no such session.
    refused: Option<Duration>,
    stopped: Option<Duration>,
    /// Whether any watcher was told of it. Who falls behind is told of what is, not of what came and went meanwhile.
    seen: bool,
    /// The first word of its end.
    gone: Option<Duration>,
}

/// What makes a session's end late by right.
struct Excuses<'a> {
    faults: Vec<&'a Fault>,
    leaders: Vec<Duration>,
    /// How late an end may be where nothing excuses it: so long after it was due nothing is wrong yet.
    late_max: Duration,
}

impl Excuses<'_> {
    /// When a heartbeat of that time may have arrived at last: a fault held it back, and the sender's kernel, which
    /// tries again at ever longer intervals, brought it as long again after its end. It does so also for a client
    /// that is no more.
    fn arrival(&self, sent: Duration) -> Duration {
        let on_its_way = |fault: &&&Fault| fault.time <= sent + ELECTION && fault.end >= sent;
        let faults = self.faults.iter().filter(on_its_way);
        let arrival = faults.map(|fault| fault.end + (fault.end - fault.time).max(ELECTION));
        arrival.max().unwrap_or(sent)
    }

    /// When a session that stopped is due at the latest: not before the end of a fault that lay on its way, and a full
    /// ttl and an election after every new leader that came before it was overdue, also one that came just before it
    /// stopped.
    fn extend(&self, mut due: Duration, stopped: Duration, ttl: Duration) -> Duration {
        loop {
            let overdue = due + self.late_max;
            let fault = |fault: &&&Fault| fault.time <= overdue && fault.end >= stopped;
            let faults = self.faults.iter().filter(fault).map(|fault| fault.end + ELECTION);
            let leader = |leads: &&Duration| **leads <= overdue;
            let leaders = self
                .leaders
                .iter()
                .filter(leader)
                .map(|leads| *leads + ttl + ELECTION);
            let later = faults.chain(leaders).max().unwrap_or(due);
            if later <= due {
                return due;
            }
            due = later;
        }
    }
}

/// Judges a history's sessions. Whoever stopped must be gone within `late_max` after its ttl; faults excuse lateness
/// while they last, and so does every new leader, by the full ttl that it grants.
#[must_use]
pub fn check(lines: &[Heartbeats], faults: &[Fault], late_max: Duration, ended: Duration) -> Verdict {
    let mut verdict = Verdict::new("sessions");
    let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
    let mut leaders = Vec::new();
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
                if *acknowledged == Some(false) {
                    let refused = life.refused.get_or_insert(Duration::MAX);
                    *refused = end.unwrap_or(*sent).min(*refused);
                } else {
                    // Without an answer it may still be under way until the client stopped.
                    life.last_possible = life.last_possible.max(end.unwrap_or(*sent));
                }
                if acknowledged.is_none() {
                    life.unanswered.push(*sent);
                }
            }
            Heartbeats::Stop { session, time } => lives.entry(*session).or_default().stopped = Some(*time),
            Heartbeats::Seen { session, .. } => lives.entry(*session).or_default().seen = true,
            Heartbeats::Gone { session, time, .. } => {
                let gone = &mut lives.entry(*session).or_default().gone;
                *gone = Some(gone.map_or(*time, |known| known.min(*time)));
            }
            Heartbeats::Leads { time, .. } => leaders.push(*time),
        }
    }
    let mut faults: Vec<&Fault> = faults.iter().collect();
    faults.sort_by_key(|fault| fault.time);
    leaders.sort();
    let excuses = Excuses {
        faults,
        leaders,
        late_max,
    };
    let mut lateness = Vec::new();
    for (session, life) in &lives {
        verdict.judged += life.acknowledged.len();
        judge(*session, life, &excuses, ended, &mut verdict, &mut lateness);
    }
    lateness.sort();
    if let Some(worst) = lateness.last() {
        let p99 = lateness[(lateness.len() * 99 / 100).min(lateness.len() - 1)];
        verdict.figures.push(format!(
            "{} sessions ended by silence; after their ttl: p99 {p99:?}, worst {worst:?}",
            lateness.len()
        ));
    }
    let came_and_went = |life: &&Life| life.stopped.is_some() && !life.seen && life.gone.is_none();
    let unseen = lives.values().filter(came_and_went).count();
    verdict.figures.push(format!(
        "{} sessions, {unseen} that no watcher was told of",
        lives.len()
    ));
    verdict
}

fn judge(
    session: u64,
    life: &Life,
    excuses: &Excuses<'_>,
    ended: Duration,
    verdict: &mut Verdict,
    lateness: &mut Vec<Duration>,
) {
    if let Some(gone) = life.gone {
        ended_early(session, life, gone, "gone", verdict);
    }
    if let Some(refused) = life.refused {
        verdict.judged += 1;
        ended_early(session, life, refused, "not found", verdict);
    }
    // Nobody goes on with a session that is said to be no more.
    let Some(stopped) = life.stopped.into_iter().chain(life.refused).min() else {
        return;
    };
    let late_max = excuses.late_max;
    let arrivals = life.unanswered.iter().map(|sent| excuses.arrival(*sent));
    let last = arrivals
        .max()
        .unwrap_or_default()
        .max(life.last_possible)
        .max(stopped);
    let due = excuses.extend(last + life.ttl, stopped, life.ttl);
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
        None if life.seen && ended > due + late_max => {
            verdict.find(
                ended,
                format!("session {session} stopped at {stopped:?}, and at {ended:?} it is still there"),
            );
        }
        None => {}
    }
}

/// Whether it lived, by its acknowledged heartbeats, when its end was seen, or after that.
fn ended_early(session: u64, life: &Life, ended: Duration, how: &str, verdict: &mut Verdict) {
    let early = life
        .acknowledged
        .iter()
        .filter(|sent| **sent <= ended && **sent + life.ttl > ended);
    if let Some(sent) = early.max() {
        verdict.find(
            ended,
            format!(
                "session {session} was {how} at {ended:?}, {:?} after an acknowledged heartbeat was sent ({sent:?}); its \
                 ttl is {:?}",
                ended - *sent,
                life.ttl
            ),
        );
    }
    if let Some(sent) = life.acknowledged.iter().find(|sent| **sent > ended) {
        verdict.find(
            *sent,
            format!(
                "session {session} was {how} at {ended:?}, and a heartbeat sent at {sent:?} was acknowledged"
            ),
        );
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

    fn seen(session: u64) -> Heartbeats {
        Heartbeats::Seen {
            session,
            node: "n".into(),
            time: s(0),
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
        let never = check(&[open(1), seen(1), stop(1, 0)], &[], LATE, s(20));
        assert_eq!(never.findings.len(), 1, "{never:?}");
        // Watchers that were behind while it came and went were told of neither (the lab's seed 802).
        let unseen = check(&[open(1), stop(1, 0)], &[], LATE, s(20));
        assert!(unseen.is_good(), "{unseen:?}");
        assert!(
            unseen
                .figures
                .iter()
                .any(|figure| figure.contains("1 that no watcher")),
            "{unseen:?}"
        );
        let fault = Fault {
            what: "x".into(),
            time: s(1),
            end: s(2),
            bit: true,
            effect: String::new(),
        };
        let leads = |time| Heartbeats::Leads {
            server: 1,
            term: 2,
            time: s(time),
        };
        let excused = check(
            &[open(1), stop(1, 0), leads(3), gone(1, 9)],
            std::slice::from_ref(&fault),
            LATE,
            s(20),
        );
        assert!(excused.is_good(), "{excused:?}");
        let late = check(
            &[open(1), stop(1, 0), leads(3), gone(1, 10)],
            &[fault],
            LATE,
            s(20),
        );
        assert_eq!(late.findings.len(), 1, "{late:?}");
        // A leader that came when it was overdue anyway excuses nothing.
        let late = check(&[open(1), stop(1, 0), leads(6), gone(1, 11)], &[], LATE, s(20));
        assert_eq!(late.findings.len(), 1, "{late:?}");
        // One that came half a second before its last heartbeat granted more than that did (seed 1083 of the simulation).
        let leads = Heartbeats::Leads {
            server: 1,
            term: 2,
            time: Duration::from_millis(4_500),
        };
        let stops = [open(1), beat(1, 5, Some(true)), stop(1, 5), leads, gone(1, 10)];
        let excused = check(&stops, &[], Duration::from_millis(600), s(20));
        assert!(excused.is_good(), "{excused:?}");
        let late = check(&stops, &[], Duration::from_millis(400), s(20));
        assert_eq!(late.findings.len(), 1, "{late:?}");
        // What begins when it is due, but not yet overdue, may hold it up (heartbeats alone, seed 2 of the simulation).
        let cut = Fault {
            what: "single: 1".into(),
            time: Duration::from_millis(4_060),
            end: s(8),
            bit: true,
            effect: String::new(),
        };
        let faults = std::slice::from_ref(&cut);
        let excused = check(&[open(1), stop(1, 0), gone(1, 9)], faults, LATE, s(20));
        assert!(excused.is_good(), "{excused:?}");
        let late = check(&[open(1), stop(1, 0), gone(1, 11)], faults, LATE, s(20));
        assert_eq!(late.findings.len(), 1, "{late:?}");
        let undead = check(&[open(1), gone(1, 5), beat(1, 6, Some(true))], &[], LATE, s(20));
        assert_eq!(undead.findings.len(), 1, "{undead:?}");
    }

    #[test]
    fn a_live_session_is_found_and_one_that_is_not_found_goes() {
        let refused = |at| beat(1, at, Some(false));
        let alive = check(&[open(1), beat(1, 2, Some(true)), refused(3)], &[], LATE, s(20));
        assert_eq!(alive.findings.len(), 1, "{alive:?}");
        let lapsed = [open(1), seen(1), beat(1, 2, Some(true)), refused(6), gone(1, 6)];
        let verdict = check(&lapsed, &[], LATE, s(20));
        assert!(verdict.is_good(), "{verdict:?}");
        // Said to be no more, and listed for ever.
        let listed = check(&lapsed[..4], &[], LATE, s(20));
        assert_eq!(listed.findings.len(), 1, "{listed:?}");
        // Not at once: watchers may be behind.
        assert!(check(&lapsed[..4], &[], LATE, s(10)).is_good());
        let both = [open(1), refused(5), beat(1, 6, Some(true))];
        let both = check(&both, &[], LATE, s(20));
        assert_eq!(both.findings.len(), 1, "one answer, not both: {both:?}");
    }
}
