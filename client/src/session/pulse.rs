//! A session's heartbeats by datagram: what to say when, and what an answer means. Told the time, touches nothing.
//!
//! The server's number comes first, with the answer to a hello. Then a heartbeat is said up to three times, close
//! together, each time with a counter of its own; the answer to any of them counts from when that one was said. If
//! none is answered, half the ttl is left for a stream to be opened at some server.

use std::time::Duration;

use rollcall_proto::heartbeat::{Answer, Entries, EntriesWriter, HeartbeatKey, Kind, Mac, write_hello};
use tokio::time::Instant;

use crate::backoff::jittered;

/// How often one heartbeat is said before it is given up.
const SAID_MAX: usize = 3;
/// When the next heartbeat is due, as a part of the ttl, up to a tenth more or less.
const INTERVAL_PART: f64 = 0.3;
/// The time between two sayings, as a part of the ttl; twice that behind the last. So a heartbeat is given up before half
/// the ttl is over, and not before a server that waits for its leader in vain (an eighth) has answered alone.
const GAP_PART: u32 = 24;
/// Datagrams in answer to challenges, for one saying: a server that keeps changing its number is none.
const CHALLENGES_MAX: usize = 2;

/// What came of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that counts.
    Nothing,
    /// The server told its number: [`Pulse::take_due`] has something to say.
    Number,
    /// Acknowledged, as on a stream.
    Renewed,
    /// The session is dead, as on a stream.
    NotFound,
    /// The server does not know the session, but nobody vouches for that: ask on a stream.
    Unknown,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Send(Vec<u8>),
    /// Nothing was answered.
    GiveUp,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    /// Of a heartbeat; 0: a hello.
    counter: u64,
    number: u64,
    /// What a challenge to it echoes.
    echo: Mac,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct Pulse {
    session: u64,
    key: HeartbeatKey,
    ttl: Duration,
    number: Option<u64>,
    counter: u64,
    /// When the next heartbeat, or its next saying, is due.
    due_at: Instant,
    /// The heartbeat under way, each time it was said; challenges answered included.
    said: Vec<Said>,
    sayings: usize,
    challenges: usize,
}

impl Pulse {
    /// The first heartbeat is due at once. `counter` must be above any that this session ever used: clocks count so.
    pub(super) fn new(session: u64, secret: &[u8], ttl: Duration, counter: u64, now: Instant) -> Self {
        Self {
            session,
            key: HeartbeatKey::of_secret(secret),
            ttl,
            number: None,
            counter,
            due_at: now,
            said: Vec::new(),
            sayings: 0,
            challenges: 0,
        }
    }

    /// The highest counter that was said, or what was given to begin above.
    pub(super) fn counter(&self) -> u64 {
        self.counter
    }

    /// The next moment at which [`Self::take_due`] has something.
    pub(super) fn due_at(&self) -> Instant {
        self.due_at
    }

    fn gap(&self) -> Duration {
        self.ttl / GAP_PART
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Due {
        if now < self.due_at {
            return Due::Nothing;
        }
        if self.sayings == SAID_MAX {
            return Due::GiveUp;
        }
        self.sayings += 1;
        self.challenges = 0;
        self.due_at = now + self.gap() * if self.sayings == SAID_MAX { 2 } else { 1 };
        Due::Send(self.say(now))
    }

    fn say(&mut self, now: Instant) -> Vec<u8> {
        let mut bytes = Vec::new();
        let said = match self.number {
            None => {
                let echo = rand::random();
                write_hello(&mut bytes, &echo);
                Said {
                    counter: 0,
                    number: 0,
                    echo,
                    at: now,
                }
            }
            Some(number) => {
                self.counter += 1;
                let entry = self.key.entry(Kind::Beats, number, self.session, self.counter);
                EntriesWriter::begin(&mut bytes, Kind::Beats, number).push(&mut bytes, &entry);
                Said {
                    counter: self.counter,
                    number,
                    echo: entry.mac,
                    at: now,
                }
            }
        };
        self.said.push(said);
        bytes
    }

    /// Takes in a datagram from the server's address; what is not an answer to what was said counts for nothing. For
    /// [`Heard::Number`] the second part is to be sent.
    pub(super) fn hear(&mut self, bytes: &[u8], now: Instant) -> (Heard, Option<Vec<u8>>) {
        match Answer::read(bytes) {
            Err(_) => (Heard::Nothing, None),
            Ok(Answer::Challenge { number, echo }) => {
                let asked = self.said.iter().any(|said| said.echo == echo);
                if !asked || self.number == Some(number) || self.challenges == CHALLENGES_MAX {
                    return (Heard::Nothing, None);
                }
                self.challenges += 1;
                self.number = Some(number);
                (Heard::Number, Some(self.say(now)))
            }
            Ok(Answer::Verdicts {
                kind,
                number,
                entries,
            }) => (self.judge(kind, number, entries), None),
        }
    }

    fn judge(&mut self, kind: Kind, number: u64, mut entries: Entries<'_>) -> Heard {
        let ours = entries.find_map(|entry| {
            let said = self
                .said
                .iter()
                .find(|said| entry.session == self.session && said.counter == entry.counter)?;
            let vouched = self.key.verifies(kind, number, &entry) && said.number == number;
            let hinted = kind == Kind::Unknown && entry.mac == said.echo;
            (vouched || hinted).then_some(*said)
        });
        match (kind, ours) {
            (_, None) => Heard::Nothing,
            (Kind::Renewed, Some(said)) => {
                self.due_at = said.at + jittered(self.ttl.mul_f64(INTERVAL_PART));
                self.said.clear();
                self.sayings = 0;
                Heard::Renewed
            }
            (Kind::NotFound, Some(_)) => Heard::NotFound,
            (_, Some(_)) => Heard::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_proto::heartbeat::{Entry, Question, write_challenge};

    use super::*;

    const TTL: Duration = Duration::from_secs(12);
    const SECRET: [u8; 16] = [5; 16];
    const NUMBER: u64 = 99;

    fn pulse(now: Instant) -> Pulse {
        Pulse::new(7, &SECRET, TTL, 1_000, now)
    }

    fn send(pulse: &mut Pulse, now: Instant) -> Vec<u8> {
        match pulse.take_due(now) {
            Due::Send(bytes) => bytes,
            other => panic!("nothing to send, but {other:?}"),
        }
    }

    fn read(bytes: &[u8]) -> Question<'_> {
        Question::read(bytes).expect("a question")
    }

    fn challenge(number: u64, question: &[u8]) -> Vec<u8> {
        let echo = match read(question) {
            Question::Hello(token) => token,
            Question::Beats { mut entries, .. } => entries.next().unwrap().mac,
        };
        let mut bytes = Vec::new();
        write_challenge(&mut bytes, number, &echo);
        bytes
    }

    fn entry(question: &[u8]) -> Entry {
        match read(question) {
            Question::Beats { mut entries, .. } => entries.next().unwrap(),
            Question::Hello(_) => panic!("a hello"),
        }
    }

    fn verdict(kind: Kind, number: u64, entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        EntriesWriter::begin(&mut bytes, kind, number).push(&mut bytes, entry);
        bytes
    }

    fn acknowledged(kind: Kind, question: &[u8]) -> Vec<u8> {
        let key = HeartbeatKey::of_secret(&SECRET);
        let said = entry(question);
        verdict(kind, NUMBER, &key.entry(kind, NUMBER, said.session, said.counter))
    }

    /// A pulse that knows the server's number, and the heartbeat that it said.
    fn introduced(now: Instant) -> (Pulse, Vec<u8>) {
        let mut pulse = pulse(now);
        let hello = send(&mut pulse, now);
        assert!(matches!(read(&hello), Question::Hello(_)));
        let (heard, beat) = pulse.hear(&challenge(NUMBER, &hello), now);
        assert_eq!(heard, Heard::Number);
        (pulse, beat.unwrap())
    }

    #[test]
    fn a_heartbeat_goes_out_about_three_times_a_ttl_and_counts_from_when_it_was_said() {
        let now = Instant::now();
        let (mut pulse, beat) = introduced(now);
        assert_eq!(entry(&beat).counter, 1_001);
        let later = now + Duration::from_millis(300);
        assert_eq!(
            pulse.hear(&acknowledged(Kind::Renewed, &beat), later),
            (Heard::Renewed, None)
        );
        let wait = pulse.due_at() - now;
        assert!(wait >= TTL.mul_f64(0.26) && wait <= TTL.mul_f64(0.34), "{wait:?}");
        assert_eq!(pulse.take_due(later), Due::Nothing);
        let next = send(&mut pulse, now + wait);
        assert_eq!(entry(&next).counter, 1_002);
    }

    #[test]
    fn three_sayings_without_an_answer_are_enough_and_leave_half_the_ttl() {
        let now = Instant::now();
        let (mut pulse, beat) = introduced(now);
        pulse.hear(&acknowledged(Kind::Renewed, &beat), now);
        let mut counters = Vec::new();
        let mut at = pulse.due_at();
        while let Due::Send(bytes) = pulse.take_due(at) {
            counters.push(entry(&bytes).counter);
            at = pulse.due_at();
        }
        assert_eq!(counters, [1_002, 1_003, 1_004]);
        assert_eq!(pulse.take_due(at), Due::GiveUp);
        assert!(at - now < TTL / 2, "{:?}", at - now);
        assert!(pulse.gap() * 4 > TTL / 8);
    }

    #[test]
    fn the_answer_to_an_earlier_saying_counts() {
        let now = Instant::now();
        let (mut pulse, beat) = introduced(now);
        let again = now + pulse.gap();
        let second = send(&mut pulse, again);
        assert_ne!(entry(&beat).counter, entry(&second).counter);
        assert_eq!(
            pulse.hear(&acknowledged(Kind::Renewed, &beat), again).0,
            Heard::Renewed
        );
        assert!(pulse.due_at() < now + TTL.mul_f64(0.34));
        assert_eq!(
            pulse.hear(&acknowledged(Kind::Renewed, &second), again).0,
            Heard::Nothing
        );
    }

    #[test]
    fn a_server_that_was_restarted_is_asked_again_at_once() {
        let now = Instant::now();
        let (mut pulse, beat) = introduced(now);
        pulse.hear(&acknowledged(Kind::Renewed, &beat), now);
        let at = pulse.due_at();
        let next = send(&mut pulse, at);
        let (heard, again) = pulse.hear(&challenge(NUMBER + 1, &next), now);
        assert_eq!(heard, Heard::Number);
        let again = again.unwrap();
        assert!(matches!(read(&again), Question::Beats { number, .. } if number == NUMBER + 1));
        assert!(entry(&again).counter > entry(&next).counter);
        // One that keeps telling others is not followed for ever.
        let mut question = again;
        let mut answered = 1;
        while let (Heard::Number, Some(bytes)) = pulse.hear(&challenge(NUMBER + 1 + answered, &question), now)
        {
            question = bytes;
            answered += 1;
        }
        assert_eq!(answered, CHALLENGES_MAX as u64);
    }

    #[test]
    fn what_was_not_asked_or_is_not_vouched_for_counts_for_nothing() {
        let now = Instant::now();
        let (mut pulse, beat) = introduced(now);
        let said = entry(&beat);
        let other = HeartbeatKey::of_secret(b"another secret");
        for answer in [
            verdict(Kind::Renewed, NUMBER, &said),
            verdict(Kind::NotFound, NUMBER, &said),
            verdict(
                Kind::Renewed,
                NUMBER,
                &other.entry(Kind::Renewed, NUMBER, 7, said.counter),
            ),
            acknowledged(
                Kind::Renewed,
                &verdict(Kind::Beats, NUMBER, &Entry { counter: 5, ..said }),
            ),
            acknowledged(
                Kind::Renewed,
                &verdict(Kind::Beats, NUMBER, &Entry { session: 8, ..said }),
            ),
            verdict(Kind::Unknown, NUMBER, &Entry { mac: [0; 16], ..said }),
            challenge(1, &verdict(Kind::Beats, NUMBER, &Entry { mac: [0; 16], ..said })),
            acknowledged(Kind::Renewed, &beat)[1..].to_vec(),
            beat.clone(),
            Vec::new(),
        ] {
            assert_eq!(pulse.hear(&answer, now), (Heard::Nothing, None), "{answer:?}");
        }
        // What was acknowledged under one number says nothing under another.
        let key = HeartbeatKey::of_secret(&SECRET);
        let elsewhere = verdict(Kind::Renewed, 1, &key.entry(Kind::Renewed, 1, 7, said.counter));
        assert_eq!(pulse.hear(&elsewhere, now).0, Heard::Nothing);
        assert_eq!(
            pulse.hear(&verdict(Kind::Unknown, NUMBER, &said), now).0,
            Heard::Unknown
        );
        assert_eq!(
            pulse.hear(&acknowledged(Kind::NotFound, &beat), now).0,
            Heard::NotFound
        );
    }
}
