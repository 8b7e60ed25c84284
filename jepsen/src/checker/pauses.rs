//! A server that slept never blames its clients (design, section 2.8): where one server judges alone, every deadline moves
//! by its pauses, for a heartbeat sent meanwhile could not be heard.
//!
//! With several servers others take over, and grant full ttls; [`super::sessions`] judges that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Fault, Heartbeats};

/// How the nemesis names them.
const PAUSE: &str = "pause";
/// Of a pause, what a server may take for its usual lateness, and what passes between the signal and the standstill.
const LATENESS_MAX: Duration = Duration::from_millis(500);

/// Judges the sessions of a server that was alone.
#[must_use]
pub fn check(lines: &[Heartbeats], faults: &[Fault]) -> Verdict {
    let mut verdict = Verdict::new("pauses of the only server");
    let mut ttls: BTreeMap<u64, Duration> = BTreeMap::new();
    let mut heard: BTreeMap<u64, Duration> = BTreeMap::new();
    for line in lines {
        match line {
            Heartbeats::Open {
                session, ttl, sent, ..
            } => {
                ttls.insert(*session, *ttl);
                heard.insert(*session, *sent);
            }
            Heartbeats::Beat {
                session,
                sent,
                acknowledged: Some(true),
                ..
            } => _ = heard.insert(*session, *sent),
            Heartbeats::Gone { session, time, .. } => {
                let (Some(ttl), Some(sent)) = (ttls.remove(session), heard.get(session)) else {
                    continue;
                };
                verdict.judged += 1;
                let slept = slept(faults, *sent, *time);
                if *sent + ttl + slept > *time {
                    verdict.find(
                        *time,
                        format!(
                            "session {session} was gone at {time:?}, {:?} after an acknowledged heartbeat was sent; its ttl is \
                             {ttl:?}, and the only server there is slept for {slept:?} of that time",
                            *time - *sent
                        ),
                    );
                }
            }
            Heartbeats::Beat { .. }
            | Heartbeats::Stop { .. }
            | Heartbeats::Seen { .. }
            | Heartbeats::Leads { .. } => {}
        }
    }
    verdict
}

/// For how long the server slept in this span, at least. Pauses that overlap are one.
fn slept(faults: &[Fault], from: Duration, to: Duration) -> Duration {
    let pauses = faults.iter().filter(|fault| fault.what.starts_with(PAUSE));
    let mut spans: Vec<(Duration, Duration)> = pauses.map(|pause| (pause.time, pause.end)).collect();
    spans.sort_unstable();
    let mut apart: Vec<(Duration, Duration)> = Vec::new();
    for (began, ended) in spans {
        match apart.last_mut() {
            Some(last) if began <= last.1 => last.1 = last.1.max(ended),
            Some(_) | None => apart.push((began, ended)),
        }
    }
    let within = apart.into_iter().map(|(began, ended)| {
        let within = ended.min(to).saturating_sub(began.max(from));
        within.saturating_sub(LATENESS_MAX)
    });
    within.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn life(gone: u64) -> [Heartbeats; 3] {
        [
            Heartbeats::Open {
                session: 1,
                ttl: s(2),
                sent: s(0),
                end: s(0),
            },
            Heartbeats::Beat {
                session: 1,
                sent: s(10),
                end: Some(s(10)),
                acknowledged: Some(true),
            },
            Heartbeats::Gone {
                session: 1,
                node: "n".into(),
                time: s(gone),
            },
        ]
    }

    #[test]
    fn a_pause_moves_the_deadline_and_counts_only_while_it_lasted() {
        let pause = Fault {
            what: "pause: 1".into(),
            time: s(9),
            end: s(15),
            bit: true,
            effect: String::new(),
        };
        let faults = std::slice::from_ref(&pause);
        let blamed = check(&life(15), faults);
        assert_eq!(blamed.findings.len(), 1, "{blamed:?}");
        assert!(check(&life(17), faults).is_good());
        assert!(check(&life(13), &[]).is_good());
        // Two that overlap are not counted twice: it slept for six seconds, not for nine.
        let again = Fault {
            what: "pause: 1".into(),
            time: s(12),
            end: s(16),
            ..pause.clone()
        };
        assert!(check(&life(18), &[again.clone(), pause.clone()]).is_good());
        assert_eq!(check(&life(17), &[again, pause.clone()]).findings.len(), 1);
        let other = Fault {
            what: "loss: 10 %".into(),
            ..pause
        };
        assert!(check(&life(13), &[other]).is_good());
    }
}
