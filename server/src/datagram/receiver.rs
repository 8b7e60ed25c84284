//! The receiver: one thread that reads, looks, verifies and gathers.
//!
//! A thread of its own, so that a flood has one processor's attention at most and the system shares that out; and so
//! that it can sleep while datagrams gather, without being woken by each.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ids::SessionId;
use rollcall_proto::heartbeat::{Entries, EntriesWriter, Entry, Kind, Mac, Question, write_challenge};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::carrier::{Bench, Carrier};
use super::gathered::{Beat, Gathered};
use super::ledger::{Ledger, Refused};
use super::mail::{BATCH, Inbox, Outbox};
use super::metrics::DatagramMetrics;
use super::rates::Rates;
use crate::config::DatagramConfig;
use crate::grpc::{Doors, Unattended};

/// Batches that wait for the leader's word at a time.
const CARRIERS: usize = 3;
/// The same where this server judges.
const CARRIERS_BOTH_SIDES: usize = 2;
/// How often a quiet receiver looks whether it is to end, if nobody wakes it for that.
const LOOK: Duration = SWEEP;
/// Pause behind an error of the socket.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// How often the number is drawn anew, at most.
const RENUMBER_EVERY: Duration = Duration::from_secs(600);
/// How often the ledger is swept.
const SWEEP: Duration = Duration::from_secs(1);
/// Where little comes, so long gathers before it is read.
const GATHER_MAX: Duration = Duration::from_millis(20);
/// Shorter sleeps are not worth it.
const GATHER_MIN: Duration = Duration::from_micros(200);
/// Heartbeats that are worth reading at once.
const WORTH_READING: u32 = BATCH as u32 / 2;
/// What a forged heartbeat costs its address beyond a good one's share of the rate.
const FORGERY: usize = 15;
/// What asking about a session that is not known costs beyond it.
const UNKNOWN: usize = 3;

/// What heartbeats by datagram lead to.
pub struct DatagramsParts {
    /// Where they come in.
    pub socket: UdpSocket,
    /// Whom they are passed on to.
    pub doors: Doors,
    /// What is counted.
    pub metrics: DatagramMetrics,
}

/// Heartbeats by datagram.
pub struct Datagrams;

impl Datagrams {
    /// Starts to listen; the tasks end with `stop`.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn start(
        config: &DatagramConfig,
        parts: DatagramsParts,
        stop: &CancellationToken,
    ) -> std::io::Result<Vec<JoinHandle<()>>> {
        parts.socket.set_read_timeout(Some(LOOK))?;
        let sessions = Unattended::new(parts.doors);
        let carrier = Carrier {
            socket: Arc::new(parts.socket),
            sessions: sessions.clone(),
            metrics: parts.metrics.clone(),
            log: Arc::new(Gathered::new(config.waiting_max)),
            both_sides: Arc::new(Gathered::new(config.waiting_max)),
        };
        let receiver = Receiver::new(config, &carrier, sessions);
        // A runtime that is dropped waits for its threads: this one ends with the runtime's tasks, told or not.
        let (ended, stopped) = (stop.child_token(), stop.clone());
        let with_the_tasks = End {
            told: ended.clone(),
            socket: carrier.socket.clone(),
        };
        let mut tasks = vec![
            tokio::task::spawn_blocking(move || receiver.run(&ended)),
            tokio::spawn(async move {
                let _end = with_the_tasks;
                stopped.cancelled().await;
            }),
        ];
        let benches = std::iter::repeat_n(Bench::Log, CARRIERS)
            .chain(std::iter::repeat_n(Bench::BothSides, CARRIERS_BOTH_SIDES));
        for bench in benches {
            tasks.push(tokio::spawn(carrier.clone().carry_until(bench, stop.clone())));
        }
        Ok(tasks)
    }
}

/// Ends the receiver when it is dropped.
struct End {
    told: CancellationToken,
    socket: Arc<UdpSocket>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.told.cancel();
        // A socket that is not connected refuses this, yet wakes whoever waits for it. Answers can still be sent.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
    }
}

struct Receiver {
    socket: Arc<UdpSocket>,
    sessions: Unattended,
    gathered: Arc<Gathered>,
    carrier: Carrier,
    metrics: DatagramMetrics,
    desk: Desk,
    answers: Outbox,
}

impl Receiver {
    fn new(config: &DatagramConfig, carrier: &Carrier, sessions: Unattended) -> Self {
        let rates = Rates::new(config.beats_per_second, config.beats_burst, Instant::now());
        Self {
            socket: carrier.socket.clone(),
            sessions,
            gathered: carrier.log.clone(),
            carrier: carrier.clone(),
            metrics: carrier.metrics.clone(),
            answers: Outbox::default(),
            desk: Desk::new(rand::random(), rates, carrier.metrics.clone(), Instant::now()),
        }
    }

    fn run(mut self, stop: &CancellationToken) {
        let mut inbox = Inbox::new();
        let (mut swept_at, mut slept_at, mut read) = (Instant::now(), Instant::now(), 0);
        while !stop.is_cancelled() {
            match inbox.receive(&self.socket) {
                _ if stop.is_cancelled() => return,
                Ok(()) => read += self.take(&inbox),
                Err(error) if is_quiet(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "heartbeats by datagram cannot be read");
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
            let now = Instant::now();
            if now.duration_since(swept_at) >= SWEEP {
                swept_at = now;
                self.sweep();
            }
            if inbox.len() < BATCH {
                let gather = gather_for(read, now.duration_since(slept_at));
                (slept_at, read) = (now, 0);
                if inbox.len() > 0 && gather >= GATHER_MIN {
                    std::thread::sleep(gather);
                }
            }
        }
    }

    /// Takes in what was read; how many heartbeats it was, or datagrams if those are more.
    fn take(&mut self, inbox: &Inbox) -> usize {
        let now = Instant::now();
        self.metrics.received.inc_by(inbox.len() as u64);
        for (from, bytes) in inbox.datagrams() {
            self.desk.take(from, bytes, &self.sessions, now);
        }
        let read = inbox.len().max(self.desk.beats.len());
        self.metrics.beats.inc_by(self.desk.beats.len() as u64);
        // Where much comes others judge and answer, while this thread reads on.
        let is_quiet = inbox.len() < BATCH && !self.desk.beats.is_empty();
        if !(is_quiet && self.carrier.answer_alone(&mut self.desk.beats, &mut self.answers)) {
            self.carrier.part(&mut self.desk.beats);
            let dropped = self.gathered.add(&mut self.desk.beats, now);
            self.metrics.refused.full.inc_by(dropped as u64);
        }
        let (answers, unsent) = (
            self.desk.answers as u64,
            self.desk.outbox.send(&self.socket) as u64,
        );
        self.desk.answers = 0;
        self.metrics.unsent.inc_by(unsent);
        self.metrics.sent.inc_by(answers - unsent.min(answers));
        read
    }

    fn sweep(&mut self) {
        let sessions = &self.sessions;
        self.desk
            .sweep(Instant::now(), |looked_at| sessions.gone(looked_at));
        self.metrics
            .sessions
            .set(i64::try_from(self.desk.ledger.len()).unwrap_or(i64::MAX));
    }
}

/// Nothing came within the socket's timeout.
fn is_quiet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// How long it takes until something worth reading has gathered, at the pace of what was just read. A busy receiver
/// does not wait, a quiet one not for long.
fn gather_for(read: usize, took: Duration) -> Duration {
    let read = u32::try_from(read).unwrap_or(u32::MAX).max(1);
    (took / read)
        .saturating_mul(WORTH_READING.saturating_sub(read))
        .min(GATHER_MAX)
}

/// What a receiver asks about sessions.
trait Sessions {
    fn digest_of(&self, session: SessionId) -> Option<[u8; 32]>;
    /// Whether "I do not know it" may be said.
    fn is_ready(&self) -> bool;
}

impl Sessions for Unattended {
    fn digest_of(&self, session: SessionId) -> Option<[u8; 32]> {
        Unattended::digest_of(self, session)
    }

    fn is_ready(&self) -> bool {
        Unattended::is_ready(self)
    }
}

/// Judges datagrams, cheapest look first. Touches nothing outside.
struct Desk {
    /// Drawn for this life of the server: what was said to another, or before, does not name it.
    number: u64,
    numbered_at: Instant,
    rates: Rates,
    ledger: Ledger,
    metrics: DatagramMetrics,
    /// Those that may be passed on.
    beats: Vec<Beat>,
    /// What can be answered at once.
    outbox: Outbox,
    answers: usize,
    strangers: Vec<Entry>,
}

impl Desk {
    fn new(number: u64, rates: Rates, metrics: DatagramMetrics, now: Instant) -> Self {
        Self {
            number,
            numbered_at: now,
            rates,
            ledger: Ledger::new(now),
            metrics,
            beats: Vec::new(),
            outbox: Outbox::default(),
            answers: 0,
            strangers: Vec::new(),
        }
    }

    fn take(&mut self, from: SocketAddr, bytes: &[u8], sessions: &impl Sessions, now: Instant) {
        match Question::read(bytes) {
            Err(why) => _ = self.metrics.refused.malformed(why).inc(),
            Ok(Question::Hello(token)) => {
                if self.admit(from, 1, now) {
                    self.challenge(from, &token);
                }
            }
            Ok(Question::Beats { number, mut entries }) if number != self.number => {
                self.metrics.refused.number.inc();
                if let Some(first) = entries.next()
                    && self.admit(from, 1, now)
                {
                    self.challenge(from, &first.mac);
                }
            }
            Ok(Question::Beats { entries, .. }) => {
                if self.admit(from, entries.len(), now) {
                    self.hear(from, entries, sessions, now);
                }
            }
        }
    }

    fn admit(&mut self, from: SocketAddr, tokens: usize, now: Instant) -> bool {
        let admitted = self.rates.try_take(from.ip(), tokens, now);
        if !admitted {
            self.metrics.refused.rate.inc();
        }
        admitted
    }

    fn challenge(&mut self, to: SocketAddr, echo: &Mac) {
        self.metrics.challenges.inc();
        let start = self.outbox.bytes.len();
        write_challenge(&mut self.outbox.bytes, self.number, echo);
        self.outbox.seal(to, start);
        self.answers += 1;
    }

    fn hear(&mut self, from: SocketAddr, entries: Entries<'_>, sessions: &impl Sessions, now: Instant) {
        let (number, refused) = (self.number, self.metrics.refused.clone());
        for entry in entries {
            match self
                .ledger
                .hear(number, &entry, now, |session| sessions.digest_of(session))
            {
                Ok(key) => self.beats.push(Beat {
                    session: SessionId(entry.session),
                    counter: entry.counter,
                    number,
                    from,
                    key,
                }),
                Err(Refused::Replayed) => _ = refused.replayed.inc(),
                Err(Refused::Forged) => {
                    refused.forged.inc();
                    self.rates.fine(from.ip(), FORGERY);
                }
                Err(Refused::Unknown) if !sessions.is_ready() => _ = refused.not_ready.inc(),
                Err(Refused::Unknown) => {
                    refused.unknown.inc();
                    self.rates.fine(from.ip(), UNKNOWN);
                    self.strangers.push(entry);
                }
            }
        }
        self.send_strangers_away(from);
    }

    /// "I know no such session; ask on a stream." Without the session's key, so it is worth no more than a hint.
    fn send_strangers_away(&mut self, to: SocketAddr) {
        if self.strangers.is_empty() {
            return;
        }
        self.metrics.unknown.inc_by(self.strangers.len() as u64);
        let start = self.outbox.bytes.len();
        let mut writer = EntriesWriter::begin(&mut self.outbox.bytes, Kind::Unknown, self.number);
        for entry in self.strangers.drain(..) {
            writer.push(&mut self.outbox.bytes, &entry);
        }
        self.outbox.seal(to, start);
        self.answers += 1;
    }

    /// Strikes off whom nobody knows any more. A session that may come back could then be spoken for with what it
    /// said before: so all that was said so far is void, and everybody is told another number.
    /// Not often: every client here has to be told. Until then their lines stay.
    fn sweep(&mut self, now: Instant, gone: impl FnOnce(&[SessionId]) -> Vec<SessionId>) {
        let may_renumber = now.saturating_duration_since(self.numbered_at) >= RENUMBER_EVERY;
        let gone = self.ledger.sweep(now, |looked_at| {
            let mut gone = gone(looked_at);
            gone.retain(|session| may_renumber || !Unattended::may_return(*session));
            gone
        });
        if gone.iter().copied().any(Unattended::may_return) {
            self.number = rand::random();
            self.numbered_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prometheus_client::registry::Registry;
    use proptest::prelude::*;
    use rollcall_proto::heartbeat::{
        Answer, CHALLENGE_BYTES, ENTRIES_MAX, HEAD_BYTES, HeartbeatKey, write_hello,
    };
    use sha2::{Digest, Sha256};

    use super::*;

    const NUMBER: u64 = 42;

    /// Sessions below 100 are known, with secrets of their own.
    struct Known {
        ready: bool,
    }

    impl Sessions for Known {
        fn digest_of(&self, session: SessionId) -> Option<[u8; 32]> {
            (session.0 < 100).then(|| Sha256::digest(secret(session.0)).into())
        }

        fn is_ready(&self) -> bool {
            self.ready
        }
    }

    const READY: Known = Known { ready: true };

    fn secret(session: u64) -> [u8; 16] {
        [session as u8; 16]
    }

    fn desk() -> Desk {
        let metrics = DatagramMetrics::register(&mut Registry::default());
        let now = Instant::now();
        Desk::new(NUMBER, Rates::new(1_000, 10_000, now), metrics, now)
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn beats(number: u64, said: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = EntriesWriter::begin(&mut bytes, Kind::Beats, number);
        for (session, counter) in said {
            let key = HeartbeatKey::of_secret(&secret(*session));
            writer.push(&mut bytes, &key.entry(Kind::Beats, number, *session, *counter));
        }
        bytes
    }

    fn heard(desk: &mut Desk, bytes: &[u8], now: Instant) -> Vec<(u64, u64)> {
        desk.take(client(1), bytes, &READY, now);
        desk.beats
            .drain(..)
            .map(|beat| (beat.session.0, beat.counter))
            .collect()
    }

    #[test]
    fn a_hello_and_a_stale_number_are_answered_with_the_number() {
        let (mut desk, now) = (desk(), Instant::now());
        let mut hello = Vec::new();
        write_hello(&mut hello, &[3; 16]);
        assert_eq!(heard(&mut desk, &hello, now), []);
        let challenge = Answer::Challenge {
            number: NUMBER,
            echo: [3; 16],
        };
        assert_eq!(Answer::read(&desk.outbox.bytes), Ok(challenge));
        desk.outbox.bytes.clear();

        let stale = beats(NUMBER + 1, &[(7, 1)]);
        assert_eq!(heard(&mut desk, &stale, now), []);
        let echo = HeartbeatKey::of_secret(&secret(7)).mac(Kind::Beats, NUMBER + 1, 7, 1);
        assert_eq!(
            Answer::read(&desk.outbox.bytes),
            Ok(Answer::Challenge { number: NUMBER, echo })
        );
        assert!(desk.outbox.bytes.len() <= stale.len() && CHALLENGE_BYTES <= hello.len());
        assert_eq!(desk.ledger.len(), 0);
    }

    #[test]
    fn one_datagram_speaks_for_many_and_each_by_itself() {
        let (mut desk, now) = (desk(), Instant::now());
        let mut bytes = beats(NUMBER, &[(1, 1), (2, 1), (3, 1)]);
        bytes[HEAD_BYTES + 32 + 20] ^= 1;
        assert_eq!(heard(&mut desk, &bytes, now), [(1, 1), (3, 1)]);
        assert_eq!(desk.metrics.refused.forged.get(), 1);
        assert!(desk.outbox.bytes.is_empty(), "a forger hears nothing");
    }

    #[test]
    fn an_unknown_session_is_told_so_only_by_who_may_say_so() {
        let (mut desk, now) = (desk(), Instant::now());
        let bytes = beats(NUMBER, &[(7, 1), (200, 1)]);
        desk.take(client(1), &bytes, &Known { ready: false }, now);
        assert!(desk.outbox.bytes.is_empty());
        assert_eq!(desk.metrics.refused.not_ready.get(), 1);
        let bytes = beats(NUMBER, &[(7, 2), (200, 2)]);
        desk.take(client(1), &bytes, &READY, now);
        let Ok(Answer::Verdicts {
            kind: Kind::Unknown,
            entries,
            ..
        }) = Answer::read(&desk.outbox.bytes)
        else {
            panic!("not an answer");
        };
        assert_eq!(entries.map(|entry| entry.session).collect::<Vec<_>>(), [200]);
        assert!(desk.outbox.bytes.len() <= bytes.len());
    }

    #[test]
    fn whoever_forges_is_soon_not_listened_to_and_others_are() {
        let (mut desk, now) = (desk(), Instant::now());
        let mut forged = beats(NUMBER, &[(1, 1)]);
        forged[HEAD_BYTES + 16] ^= 1;
        for _ in 0..1_000 {
            desk.take(client(1), &forged, &READY, now);
        }
        let looked_at = desk.metrics.refused.forged.get();
        assert!(looked_at < 1_000, "{looked_at} macs were checked");
        assert_eq!(looked_at + desk.metrics.refused.rate.get(), 1_000);
        let other = SocketAddr::from(([10, 0, 0, 2], 1));
        desk.take(other, &beats(NUMBER, &[(1, 1)]), &READY, now);
        assert_eq!(desk.beats.len(), 1);
    }

    #[test]
    fn a_session_that_may_come_back_voids_what_was_said() {
        let (mut desk, now) = (desk(), Instant::now());
        heard(&mut desk, &beats(NUMBER, &[(1, 1)]), now);
        let minutes = |count| now + Duration::from_secs(60) * count + Duration::from_secs(1);
        desk.sweep(minutes(1), |_| Vec::new());
        assert_eq!(desk.number, NUMBER);
        desk.sweep(minutes(2), |_| vec![SessionId(1)]);
        assert_eq!(desk.number, NUMBER, "it never comes back");
        heard(&mut desk, &beats(NUMBER, &[(2, 1)]), now);
        desk.sweep(minutes(11), |_| vec![SessionId(1 << 63)]);
        assert_ne!(desk.number, NUMBER);
        assert_eq!(heard(&mut desk, &beats(NUMBER, &[(1, 1)]), now), []);
    }

    /// A service that is deployed all day long ends a session a second: nobody is told a number for each.
    #[test]
    fn numbers_are_not_drawn_for_each_session_that_ends() {
        let (mut desk, now) = (desk(), Instant::now());
        let minutes = |count| now + Duration::from_secs(60) * count + Duration::from_secs(1);
        heard(&mut desk, &beats(NUMBER, &[(1, 1)]), now);
        let mut numbers = BTreeSet::from([desk.number]);
        for minute in 1..=30 {
            desk.sweep(minutes(minute), |_| vec![SessionId(1 << 63)]);
            let number = desk.number;
            // Somebody has a line, so that there is one to look at.
            heard(
                &mut desk,
                &beats(number, &[(1, u64::from(minute) + 1)]),
                minutes(minute),
            );
            numbers.insert(number);
        }
        assert_eq!(numbers.len(), 4, "every ten minutes");
    }

    #[test]
    fn a_receiver_that_waits_is_woken_to_end() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let told = CancellationToken::new();
        let end = End {
            told: told.clone(),
            socket: socket.clone(),
        };
        let began = Instant::now();
        // Whether it waits already or is about to.
        let waiting = std::thread::spawn(move || _ = Inbox::new().receive(&socket));
        drop(end);
        waiting.join().unwrap();
        assert!(told.is_cancelled() && began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_quiet_receiver_lets_some_gather_and_a_busy_one_does_not_wait() {
        let ms = Duration::from_millis;
        assert_eq!(gather_for(1, ms(250)), GATHER_MAX);
        assert_eq!(gather_for(10, ms(10)), GATHER_MAX);
        assert_eq!(gather_for(16, ms(1)), ms(1));
        assert_eq!(gather_for(BATCH, ms(1)), Duration::ZERO);
        assert_eq!(gather_for(100_000, ms(1)), Duration::ZERO);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// Cut, flipped, repeated, out of order, or made up: what passes was said by who has the key, passes once, and
        /// never behind a later one; no answer is longer than its question; nothing is kept of others.
        #[test]
        fn only_fresh_heartbeats_of_who_has_the_key_pass(
            said in proptest::collection::vec((proptest::collection::vec((0..110_u64, 1..30_u64), 1..=ENTRIES_MAX), 0..6_u8, any::<prop::sample::Index>(), 0..8_u8), 0..60),
            garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1_300), 0..20),
        ) {
            let (mut desk, now) = (desk(), Instant::now());
            desk.rates = Rates::new(1_000_000, 10_000_000, now);
            let mut last: BTreeMap<u64, u64> = BTreeMap::new();
            let mut told = BTreeSet::new();
            for (entries, tampered, at, bit) in &said {
                let number = if *tampered == 5 { NUMBER ^ 1 } else { NUMBER };
                let mut bytes = beats(number, entries);
                match tampered {
                    1 => bytes.truncate(at.index(bytes.len())),
                    2 => { let at = at.index(bytes.len()); bytes[at] ^= 1 << bit; }
                    _ => {}
                }
                let passed = heard(&mut desk, &bytes, now);
                prop_assert!(desk.outbox.bytes.len() <= bytes.len().max(1));
                desk.outbox.bytes.clear();
                for (session, counter) in passed {
                    prop_assert!(entries.contains(&(session, counter)) && session < 100);
                    prop_assert!(last.insert(session, counter).unwrap_or(0) < counter);
                    prop_assert!(told.insert((session, counter)));
                }
            }
            for bytes in &garbage {
                prop_assert_eq!(heard(&mut desk, bytes, now), []);
                prop_assert!(desk.outbox.bytes.len() <= bytes.len());
                desk.outbox.bytes.clear();
            }
            prop_assert_eq!(desk.ledger.len(), last.len());
        }
    }
}
