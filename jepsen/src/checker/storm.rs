//! The storm switch (design, section 4): while it is on, and for a round after, no server sends more than its budget (and
//! a tenth, and the lists that were under way); full lists go to a share of the consumers in each epoch; all consumers are
//! current after a round, or after the time that their lists take within the budget; heartbeats and registrations are
//! never shed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::verdict::Verdict;
use crate::history::{Fault, Stampede};

/// Two seconds, as the meter sees them: on a busy machine what should have left in one leaves in the next.
const SPAN: Duration = Duration::from_millis(1_950);
/// Lists that had their turn before, and are still on their way: a server encodes so many at a time.
const UNDER_WAY: u64 = 4;
/// Of the budget, in percent, beyond it.
const TOLERANCE: u64 = 10;
/// Epochs that are looked at together: where they begin is not known outside, and slots are dealt by chance.
const EPOCHS: u32 = 3;
/// What was held back by a fault comes in a rush.
const RUSH: Duration = Duration::from_secs(4);
/// A busy machine, and connections to be made.
const SLACK: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug)]
struct Switch {
    on: bool,
    share: u32,
    epoch: Duration,
    budget: u64,
    time: Duration,
}

impl Switch {
    /// How many epochs a round has.
    fn epochs(&self) -> u32 {
        10_000_u32.div_ceil(self.share.max(1))
    }

    fn round(&self) -> Duration {
        self.epoch * self.epochs()
    }
}

#[derive(Debug)]
struct Round {
    consumers: u64,
    bytes: u64,
    time: Duration,
    listed: Vec<Duration>,
    current: BTreeSet<String>,
    last: Duration,
}

/// Judges what left the servers, and what became of consumers and providers.
#[must_use]
pub fn check(lines: &[Stampede], faults: &[Fault]) -> Verdict {
    let mut verdict = Verdict::new("storm switch");
    let mut switches: Vec<Switch> = Vec::new();
    let mut rounds: Vec<Round> = Vec::new();
    let mut sent: BTreeMap<u64, Vec<(Duration, u64)>> = BTreeMap::new();
    let (mut vital, mut kept, mut ended) = (0, 0, Duration::ZERO);
    for line in lines {
        match line {
            Stampede::Switch {
                on,
                share,
                epoch,
                budget,
                time,
            } => switches.push(Switch {
                on: *on,
                share: *share,
                epoch: *epoch,
                budget: *budget,
                time: *time,
            }),
            Stampede::Begins {
                consumers,
                bytes,
                time,
            } => rounds.push(Round {
                consumers: *consumers,
                bytes: *bytes,
                time: *time,
                listed: Vec::new(),
                current: BTreeSet::new(),
                last: *time,
            }),
            Stampede::Kept { .. } => kept += 1,
            Stampede::Listed { time, .. } => {
                if let Some(round) = rounds.last_mut() {
                    round.listed.push(*time);
                }
            }
            Stampede::Current { consumer, time } => {
                if let Some(round) = rounds.last_mut() {
                    round.current.insert(consumer.clone());
                    round.last = round.last.max(*time);
                }
            }
            Stampede::Egress { server, bytes, time } => {
                ended = ended.max(*time);
                sent.entry(*server).or_default().push((*time, *bytes));
            }
            Stampede::Vital { what, shed, time } => {
                vital += 1;
                verdict.judged += 1;
                let lapsed = what == "heartbeat" && near(*time, *time, faults, SLACK * 3);
                if *shed && !lapsed {
                    verdict.find(*time, format!("a {what} was shed"));
                }
            }
        }
    }
    // Lists leave as a whole.
    let list = rounds.iter().map(|round| round.bytes).max().unwrap_or(0);
    let most = egress(&sent, &switches, list, faults, &mut verdict);
    for (number, round) in rounds.iter().enumerate() {
        let until = rounds.get(number + 1).map_or(ended, |next| next.time);
        let switch = switches.iter().rfind(|switch| switch.time <= round.time);
        if let Some(switch) = switch {
            shares(round, switch, &mut verdict);
            served(round, switch, sent.len() as u64, until, faults, &mut verdict);
        }
    }
    let slowest = rounds
        .iter()
        .map(|round| round.last - round.time)
        .max()
        .unwrap_or_default();
    verdict.figures.push(format!(
        "{} stampedes, {} lists given, {kept} times told to wait, the last was current after {slowest:?}; {most} bytes at \
         most left a server in a second; {vital} heartbeats and registrations",
        rounds.len(),
        rounds.iter().map(|round| round.listed.len()).sum::<usize>()
    ));
    verdict
}

/// Whether a fault was at work in this span, or had held something back until shortly before.
fn near(from: Duration, to: Duration, faults: &[Fault], after: Duration) -> bool {
    faults
        .iter()
        .any(|fault| fault.time <= to && fault.end + after >= from)
}

/// The most that left a server in a second while the switch was on.
fn egress(
    sent: &BTreeMap<u64, Vec<(Duration, u64)>>,
    switches: &[Switch],
    list: u64,
    faults: &[Fault],
    verdict: &mut Verdict,
) -> u64 {
    let mut most = 0;
    for (server, samples) in sent {
        let mut first = 0;
        let mut worst: Option<(u64, Duration, u64)> = None;
        for (time, bytes) in samples {
            while first + 1 < samples.len() && time.saturating_sub(samples[first + 1].0) >= SPAN {
                first += 1;
            }
            let (since, before) = samples[first];
            if time.saturating_sub(since) < SPAN {
                continue;
            }
            let Some(budget) = budget(switches, since, *time) else {
                continue;
            };
            if near(since, *time, faults, RUSH) {
                continue;
            }
            verdict.judged += 1;
            let micros = u64::try_from(time.saturating_sub(since).as_micros())
                .unwrap_or(u64::MAX)
                .max(1);
            let rate = bytes.saturating_sub(before).saturating_mul(1_000_000) / micros;
            most = most.max(rate);
            if rate > budget + budget * TOLERANCE / 100 + list * UNDER_WAY / 2
                && worst.is_none_or(|(known, ..)| rate > known)
            {
                worst = Some((rate, since, budget));
            }
        }
        if let Some((rate, since, budget)) = worst {
            verdict.find(
                since,
                format!("server {server} sent {rate} bytes in a second while the switch was on; its budget is {budget}"),
            );
        }
    }
    most
}

/// The budget that held during all of a span, if one did: from a second after the switch was turned on, until a round
/// after it was turned off.
fn budget(switches: &[Switch], from: Duration, to: Duration) -> Option<u64> {
    let at = switches.iter().rposition(|switch| switch.time <= to)?;
    let now = switches[at];
    if now.on {
        return (from >= now.time + Duration::from_secs(1)).then_some(now.budget);
    }
    let before = switches[..at].last().filter(|before| before.on)?;
    (to <= now.time + now.round() && from >= before.time + Duration::from_secs(1)).then_some(before.budget)
}

/// In some epochs together no more are served than have their turn in so many, and in the one that was cut in two.
fn shares(round: &Round, switch: &Switch, verdict: &mut Verdict) {
    if !switch.on || switch.epochs() <= EPOCHS + 1 {
        return;
    }
    let turn = round.consumers as f64 / f64::from(switch.epochs());
    // Slots are dealt by a hash: four deviations more.
    let mean = turn * f64::from(EPOCHS + 1);
    let allowed = mean + 4.0 * mean.sqrt();
    let span = switch.epoch * EPOCHS;
    verdict.judged += 1;
    for (index, begin) in round.listed.iter().enumerate() {
        let within = round.listed[index..]
            .iter()
            .filter(|time| **time <= *begin + span)
            .count();
        if within as f64 > allowed {
            verdict.find(
                *begin,
                format!(
                    "{within} of {} consumers were given full lists within {EPOCHS} epochs; {} of 10,000 may be in each",
                    round.consumers, switch.share
                ),
            );
            return;
        }
    }
}

/// Everybody is current when a round is over, or when the lists have gone out within the budget.
fn served(
    round: &Round,
    switch: &Switch,
    servers: u64,
    until: Duration,
    faults: &[Fault],
    verdict: &mut Verdict,
) {
    // They may all be at the same server.
    let seconds = round.bytes * round.consumers / switch.budget.max(1) + 1;
    let spread = seconds.div_ceil(servers.max(1)) * 2;
    let due = round.time + switch.round().max(Duration::from_secs(spread)) + switch.epoch * 2 + SLACK;
    if due > until || near(round.time, due, faults, RUSH) {
        return;
    }
    verdict.judged += 1;
    let current = round.current.len() as u64;
    if current < round.consumers || round.last > due {
        verdict.find(
            due,
            format!(
                "of {} consumers that came at {:?} {current} were current in the end, the last at {:?}; all had to be at \
                 {due:?}",
                round.consumers, round.time, round.last
            ),
        );
    }
}

#[cfg(test)]
#[path = "storm_test.rs"]
mod tests;
