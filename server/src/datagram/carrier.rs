//! Carriers: they take what was gathered to those who judge sessions, and bring the answers back.
//!
//! Some of them, so that a batch gathers while others wait for their verdicts; no more, so that batches get larger
//! instead of more when the leader is slow.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ids::SessionId;
use rollcall_proto::heartbeat::{EntriesWriter, Entry, Kind};
use tokio_util::sync::CancellationToken;

use super::gathered::{Beat, Gathered};
use super::mail::Outbox;
use super::metrics::DatagramMetrics;
use crate::grpc::Unattended;
use crate::session::{Haste, RenewOutcome};

/// How long a batch waits for its verdict. Its clients have asked again, or elsewhere, by then.
const PATIENCE: Duration = Duration::from_secs(2);
/// From so many heartbeats on a batch is not kept waiting for more.
const HURRIED_FROM: usize = 64;

/// Who judges the sessions of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bench {
    /// The leader.
    Log,
    /// This server, and the leader if it knows them too.
    BothSides,
}

/// What every carrier has.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) sessions: Unattended,
    pub(super) metrics: DatagramMetrics,
    /// Whose sessions the leader judges, alone as far as was known when they were taken.
    pub(super) log: Arc<Gathered>,
    /// Whose sessions this server judges too.
    pub(super) both_sides: Arc<Gathered>,
}

impl Carrier {
    pub(super) async fn carry_until(self, bench: Bench, stop: CancellationToken) {
        stop.run_until_cancelled(self.carry(bench)).await;
    }

    async fn carry(self, bench: Bench) {
        let mut beats = Vec::new();
        let mut outbox = Outbox::default();
        loop {
            let since = match bench {
                Bench::Log => self.log.take(&mut beats).await,
                Bench::BothSides => self.both_sides.take(&mut beats).await,
            };
            // All carriers were waiting for a leader. What was said so long ago says nothing of now.
            if since.elapsed() > PATIENCE {
                self.metrics.refused.late.inc_by(beats.len() as u64);
                continue;
            }
            let mut verdicts = Verdicts::default();
            let outcome = match bench {
                Bench::Log => {
                    self.set_aside(&mut beats, &mut verdicts);
                    self.ask(bench, &beats).await
                }
                Bench::BothSides => self.ask(bench, &beats).await,
            };
            verdicts.take(outcome, &beats);
            beats.append(&mut verdicts.strangers);
            self.answer(&mut beats, &verdicts, &mut outbox);
        }
    }

    /// Has these judged and answered on the spot and empties the vector, where nobody is to be asked; whether that could
    /// be done.
    pub(super) fn answer_alone(&self, beats: &mut Vec<Beat>, outbox: &mut Outbox) -> bool {
        let ids: Vec<_> = beats.iter().map(|beat| beat.session).collect();
        // First: what is to be said of these is not only for the log to say.
        let remembered = self.sessions.remembered(&ids);
        if !(remembered.alive.is_empty() && remembered.ended.is_empty()) {
            return false;
        }
        let Some(outcome) = self.sessions.renew_alone(&ids) else {
            return false;
        };
        let mut verdicts = Verdicts::default();
        verdicts.take(outcome, beats);
        self.answer(beats, &verdicts, outbox);
        beats.clear();
        true
    }

    async fn ask(&self, bench: Bench, beats: &[Beat]) -> RenewOutcome {
        if beats.is_empty() {
            return RenewOutcome::default();
        }
        let haste = if beats.len() < HURRIED_FROM {
            Haste::None
        } else {
            Haste::AtOnce
        };
        let ids: Vec<_> = beats.iter().map(|beat| beat.session).collect();
        let asked = async {
            match bench {
                Bench::Log => self.sessions.renew_in_log(ids, haste).await,
                Bench::BothSides => self.sessions.renew_on_both_sides(&ids, haste).await,
            }
        };
        // Whatever the reason, nothing is known of these, and nothing is said.
        let outcome = tokio::time::timeout(PATIENCE, asked).await;
        outcome.ok().flatten().unwrap_or_default()
    }

    /// Takes those out for which this server has to answer too: they do not wait behind those for which the leader has to.
    pub(super) fn part(&self, beats: &mut Vec<Beat>) {
        let ids: Vec<_> = beats.iter().map(|beat| beat.session).collect();
        let alive = self.sessions.remembered(&ids).alive;
        if alive.is_empty() {
            return;
        }
        let mut aside: Vec<_> = beats
            .extract_if(.., |beat| alive.contains(&beat.session))
            .collect();
        let dropped = self.both_sides.add(&mut aside, Instant::now());
        self.metrics.refused.full.inc_by(dropped as u64);
    }

    /// Leaves those to the other carriers for which this server has to answer too.
    fn set_aside(&self, beats: &mut Vec<Beat>, verdicts: &mut Verdicts) {
        let ids: Vec<_> = beats.iter().map(|beat| beat.session).collect();
        let remembered = self.sessions.remembered(&ids);
        if remembered.alive.is_empty() && remembered.ended.is_empty() {
            return;
        }
        let mut aside = Vec::new();
        beats.retain(|beat| {
            if remembered.alive.contains(&beat.session) {
                aside.push(*beat);
            } else if remembered.ended.contains(&beat.session) {
                // Its nodes in AP groups are gone, the others may be there: it asks on a stream, and hears which.
                verdicts.strangers.push(*beat);
            } else {
                return true;
            }
            false
        });
        let dropped = self.both_sides.add(&mut aside, Instant::now());
        self.metrics.refused.full.inc_by(dropped as u64);
    }

    /// One datagram for all of a client, as far as they fit.
    fn answer(&self, beats: &mut [Beat], verdicts: &Verdicts, outbox: &mut Outbox) {
        beats.sort_unstable_by_key(|beat| (beat.from, beat.number));
        let (mut renewed, mut not_found, mut unknown) = (0, 0, 0);
        let mut open: Option<(Kind, &Beat, usize, EntriesWriter)> = None;
        let mut sent = 0;
        for beat in &*beats {
            let Some(kind) = verdicts.of(beat.session) else {
                continue;
            };
            match kind {
                Kind::Renewed => renewed += 1,
                Kind::NotFound => not_found += 1,
                _ => unknown += 1,
            }
            let fits = open.as_ref().is_some_and(|(before, first, _, writer)| {
                (*before, first.from, first.number) == (kind, beat.from, beat.number) && !writer.is_full()
            });
            if !fits {
                sent += seal(outbox, open.take());
                let start = outbox.bytes.len();
                let writer = EntriesWriter::begin(&mut outbox.bytes, kind, beat.number);
                open = Some((kind, beat, start, writer));
            }
            if let Some((_, _, _, writer)) = &mut open {
                writer.push(&mut outbox.bytes, &entry(kind, beat));
            }
        }
        sent += seal(outbox, open);
        let metrics = &self.metrics;
        metrics.renewed.inc_by(renewed);
        metrics.not_found.inc_by(not_found);
        metrics.unknown.inc_by(unknown);
        let unsent = outbox.send(&self.socket) as u64;
        metrics.unsent.inc_by(unsent);
        metrics.sent.inc_by(sent - unsent.min(sent));
    }
}

/// An answer's entry. Of a stranger nobody vouches for the answer: it has the question's mac.
fn entry(kind: Kind, beat: &Beat) -> Entry {
    let vouched = match kind {
        Kind::Unknown => Kind::Beats,
        kind => kind,
    };
    beat.key.entry(vouched, beat.number, beat.session.0, beat.counter)
}

fn seal(outbox: &mut Outbox, open: Option<(Kind, &Beat, usize, EntriesWriter)>) -> u64 {
    match open {
        Some((_, first, start, _)) => {
            outbox.seal(first.from, start);
            1
        }
        None => 0,
    }
}

/// What became of a batch.
#[derive(Default)]
struct Verdicts {
    /// Everybody else was renewed.
    all_renewed: bool,
    /// Ascending.
    renewed: Vec<SessionId>,
    /// Ascending.
    not_found: Vec<SessionId>,
    /// They are to ask elsewhere.
    strangers: Vec<Beat>,
    /// The same, ascending.
    unknown: Vec<SessionId>,
}

impl Verdicts {
    fn take(&mut self, mut outcome: RenewOutcome, beats: &[Beat]) {
        self.unknown = self.strangers.iter().map(|beat| beat.session).collect();
        self.unknown.sort_unstable();
        self.all_renewed =
            self.unknown.is_empty() && outcome.not_found.is_empty() && outcome.renewed.len() == beats.len();
        if !self.all_renewed {
            outcome.renewed.sort_unstable();
            outcome.not_found.sort_unstable();
            self.renewed = outcome.renewed;
            self.not_found = outcome.not_found;
        }
    }

    /// None: no word yet, so no answer.
    fn of(&self, session: SessionId) -> Option<Kind> {
        let is_in = |sessions: &[SessionId]| sessions.binary_search(&session).is_ok();
        if self.all_renewed || is_in(&self.renewed) {
            Some(Kind::Renewed)
        } else if is_in(&self.not_found) {
            Some(Kind::NotFound)
        } else {
            is_in(&self.unknown).then_some(Kind::Unknown)
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_proto::heartbeat::HeartbeatKey;

    use super::*;

    fn beat(session: u64) -> Beat {
        Beat {
            session: SessionId(session),
            counter: 4,
            number: 7,
            from: "127.0.0.1:1".parse().unwrap(),
            key: HeartbeatKey::of_secret(b"secret"),
        }
    }

    fn ids(ids: &[u64]) -> Vec<SessionId> {
        ids.iter().map(|id| SessionId(*id)).collect()
    }

    #[test]
    fn each_session_has_its_verdict_and_the_undecided_have_none() {
        let mut verdicts = Verdicts {
            strangers: vec![beat(9)],
            ..Verdicts::default()
        };
        let outcome = RenewOutcome {
            renewed: ids(&[5, 1]),
            not_found: ids(&[2]),
        };
        verdicts.take(outcome, &[beat(1), beat(2), beat(3), beat(5)]);
        let of = |session| verdicts.of(SessionId(session));
        assert_eq!((of(1), of(5)), (Some(Kind::Renewed), Some(Kind::Renewed)));
        assert_eq!(
            (of(2), of(9), of(3)),
            (Some(Kind::NotFound), Some(Kind::Unknown), None)
        );
        let mut verdicts = Verdicts::default();
        verdicts.take(RenewOutcome::default(), &[beat(1)]);
        assert_eq!(verdicts.of(SessionId(1)), None, "no word came at all");
    }

    #[test]
    fn nobody_vouches_for_what_is_not_known() {
        let beat = beat(3);
        let vouched = entry(Kind::Renewed, &beat);
        assert!(beat.key.verifies(Kind::Renewed, 7, &vouched));
        let hint = entry(Kind::Unknown, &beat);
        assert!(!beat.key.verifies(Kind::Unknown, 7, &hint));
        assert_eq!(hint.mac, beat.key.mac(Kind::Beats, 7, 3, 4));
    }
}
