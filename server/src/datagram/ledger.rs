//! The ledger: whose heartbeat is this, and was it here before?
//!
//! Plain state, told the time. A session gets a line when its first heartbeat has proved to be its own, and keeps it until the
//! session is gone from everything this server knows, so that what was heard once is never heard again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rollcall_core::ids::SessionId;
use rollcall_core::session::SessionPage;
use rollcall_proto::heartbeat::{Entry, HeartbeatKey, Kind};

/// Lines looked at in one sweep, at most: the directory is locked meanwhile.
const SWEEP_MAX: usize = 4_096;
/// How long a line is not looked at again. For so long about a session that has ended can still be told so, by who can
/// vouch for it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why a heartbeat counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its mac is not of the session's key.
    Forged,
    /// It is one that was heard, or older.
    Replayed,
    /// No such session is known here.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    key: HeartbeatKey,
    /// The counter of the last one.
    heard: u64,
}

type Page = SessionPage<Line>;

#[derive(Debug)]
pub(super) struct Ledger {
    /// By number. There is a line for each session, and a table of all would be half empty.
    pages: HashMap<u64, Page>,
    /// How many lines.
    len: usize,
    /// Each session once, in the order in which they are looked at again, and when: in seconds since the start.
    sweep: VecDeque<(SessionId, u32)>,
    started_at: Instant,
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pages: HashMap::new(),
            len: 0,
            sweep: VecDeque::new(),
            started_at: now,
        }
    }

    /// Judges one session of a datagram that named the right number; the key to answer it with.
    pub(super) fn hear(
        &mut self,
        number: u64,
        entry: &Entry,
        now: Instant,
        digest_of: impl FnOnce(SessionId) -> Option<[u8; 32]>,
    ) -> Result<HeartbeatKey, Refused> {
        let session = SessionId(entry.session);
        let page = self.pages.get_mut(&Page::number_of(session));
        if let Some(line) = page.and_then(|page| page.get_mut(session)) {
            if !line.key.verifies(Kind::Beats, number, entry) {
                return Err(Refused::Forged);
            }
            if entry.counter <= line.heard {
                return Err(Refused::Replayed);
            }
            line.heard = entry.counter;
            return Ok(line.key);
        }
        let digest = digest_of(session).ok_or(Refused::Unknown)?;
        let key = HeartbeatKey::of_digest(&digest);
        if !key.verifies(Kind::Beats, number, entry) {
            return Err(Refused::Forged);
        }
        let heard = entry.counter;
        let page = self.pages.entry(Page::number_of(session)).or_default();
        page.insert(session, Line { key, heard });
        self.len += 1;
        self.sweep.push_back((session, self.seconds(now + LOOK_EVERY)));
        Ok(key)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn strike_off(&mut self, session: SessionId) {
        let number = Page::number_of(session);
        let Some(page) = self.pages.get_mut(&number) else {
            return;
        };
        self.len -= usize::from(page.remove(session).is_some());
        if page.is_empty() {
            self.pages.remove(&number);
        }
    }

    fn seconds(&self, at: Instant) -> u32 {
        u32::try_from(at.saturating_duration_since(self.started_at).as_secs()).unwrap_or(u32::MAX)
    }

    /// Looks at the lines that are due: which sessions are gone? They are asked about in one go, so that a lock is taken
    /// once. Those that were struck off.
    pub(super) fn sweep(
        &mut self,
        now: Instant,
        gone: impl FnOnce(&[SessionId]) -> Vec<SessionId>,
    ) -> Vec<SessionId> {
        let (now, again) = (self.seconds(now), self.seconds(now + LOOK_EVERY));
        let due = self.sweep.iter().take(SWEEP_MAX).take_while(|(_, at)| *at <= now);
        let due = due.count();
        if due == 0 {
            return Vec::new();
        }
        let looked_at: Vec<_> = self.sweep.drain(..due).map(|(session, _)| session).collect();
        let gone = gone(&looked_at);
        for session in &gone {
            self.strike_off(*session);
        }
        let pages = &self.pages;
        let has_line = |session: &SessionId| {
            let page = pages.get(&Page::number_of(*session));
            page.is_some_and(|page| page.get(*session).is_some())
        };
        let left = looked_at.into_iter().filter(has_line);
        self.sweep.extend(left.map(|session| (session, again)));
        if self.sweep.capacity() > 1_024 && self.sweep.capacity() / 8 > self.len {
            self.pages.shrink_to(self.pages.len() * 2);
            self.sweep.shrink_to(self.len * 2);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    const NUMBER: u64 = 77;

    fn digest(secret: u8) -> [u8; 32] {
        Sha256::digest([secret; 16]).into()
    }

    fn beat(secret: u8, session: u64, counter: u64) -> Entry {
        HeartbeatKey::of_secret(&[secret; 16]).entry(Kind::Beats, NUMBER, session, counter)
    }

    fn hear(ledger: &mut Ledger, entry: &Entry) -> Result<(), Refused> {
        // Session n has the secret n, up to 9.
        let known = |session: SessionId| (session.0 < 10).then(|| digest(session.0 as u8));
        let now = ledger.started_at;
        ledger.hear(NUMBER, entry, now, known).map(|_| ())
    }

    #[test]
    fn each_heartbeat_counts_once_and_in_order() {
        let mut ledger = Ledger::new(Instant::now());
        assert_eq!(hear(&mut ledger, &beat(1, 1, 5)), Ok(()));
        assert_eq!(hear(&mut ledger, &beat(1, 1, 5)), Err(Refused::Replayed));
        assert_eq!(hear(&mut ledger, &beat(1, 1, 4)), Err(Refused::Replayed));
        assert_eq!(hear(&mut ledger, &beat(1, 1, 6)), Ok(()));
        assert_eq!(
            hear(&mut ledger, &beat(2, 2, 1)),
            Ok(()),
            "others count by themselves"
        );
    }

    #[test]
    fn who_does_not_have_the_key_leaves_no_trace() {
        let mut ledger = Ledger::new(Instant::now());
        assert_eq!(hear(&mut ledger, &beat(2, 1, 5)), Err(Refused::Forged));
        assert_eq!(hear(&mut ledger, &beat(1, 10, 5)), Err(Refused::Unknown));
        assert_eq!((ledger.len(), ledger.sweep.len()), (0, 0));
        assert_eq!(hear(&mut ledger, &beat(1, 1, 5)), Ok(()));
        assert_eq!(hear(&mut ledger, &beat(2, 1, u64::MAX)), Err(Refused::Forged));
        assert_eq!(
            hear(&mut ledger, &beat(1, 1, 6)),
            Ok(()),
            "a forged counter moved nothing"
        );
    }

    #[test]
    fn a_line_is_struck_off_with_its_session_and_not_before() {
        let mut ledger = Ledger::new(Instant::now());
        for session in 1..10 {
            hear(&mut ledger, &beat(session as u8, session, 1)).unwrap();
        }
        let (now, gone) = (ledger.started_at, [SessionId(3), SessionId(4)]);
        assert_eq!(ledger.sweep(now, |_| gone.to_vec()), [], "too early to look");
        let later = now + LOOK_EVERY;
        assert_eq!(ledger.sweep(later, |_| Vec::new()), []);
        assert_eq!(hear(&mut ledger, &beat(3, 3, 1)), Err(Refused::Replayed));
        assert_eq!(ledger.sweep(later + LOOK_EVERY, |_| gone.to_vec()), gone);
        assert_eq!((ledger.len(), ledger.sweep.len()), (7, 7));
    }

    #[test]
    fn everything_is_looked_at_in_pieces_and_room_is_given_back() {
        let now = Instant::now();
        let mut ledger = Ledger::new(now);
        let count = SWEEP_MAX as u64 * 2 + 1;
        for session in 0..count {
            ledger
                .hear(NUMBER, &beat(1, session, 1), now, |_| Some(digest(1)))
                .unwrap();
        }
        let later = now + LOOK_EVERY;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            ledger.sweep(later, |sessions| {
                assert!(sessions.len() <= SWEEP_MAX);
                seen.extend(sessions.iter().copied());
                Vec::new()
            });
        }
        assert_eq!(seen.len() as u64, count);
        let mut sweeps = 0;
        while ledger.len() > 0 {
            ledger.sweep(later + LOOK_EVERY, <[SessionId]>::to_vec);
            sweeps += 1;
        }
        assert_eq!(sweeps, 3);
        assert!(ledger.pages.is_empty() && ledger.pages.capacity() < 100);
        assert!(ledger.sweep.capacity() < 1_000, "{}", ledger.sweep.capacity());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// Whatever is captured and sent again, in whatever order: a heartbeat counts once at most, and only if nothing
        /// later counted before it; and lines are for sessions that are known alone.
        #[test]
        fn no_order_and_no_repetition_makes_a_heartbeat_count_twice(said in proptest::collection::vec((0..12_u64, 1..20_u64, 0..4_u8, any::<u8>()), 0..200)) {
            let mut ledger = Ledger::new(Instant::now());
            let mut last = std::collections::BTreeMap::new();
            for (session, counter, tampered, flip) in said {
                let mut entry = beat(session as u8, session, counter);
                match tampered {
                    1 => entry.mac[usize::from(flip) % 16] ^= 1 << (flip % 8),
                    2 => entry.counter ^= 1 << (flip % 64),
                    3 => entry.session ^= 1 << (flip % 64),
                    _ => {}
                }
                let heard = hear(&mut ledger, &entry);
                if tampered > 0 || session >= 10 {
                    prop_assert!(matches!(heard, Err(Refused::Forged | Refused::Unknown)), "{:?}", heard);
                } else {
                    let before = last.get(&session).copied().unwrap_or(0);
                    prop_assert_eq!(heard.is_ok(), counter > before);
                    if heard.is_ok() {
                        last.insert(session, counter);
                    }
                }
            }
            prop_assert_eq!(ledger.len(), last.len());
        }
    }
}
