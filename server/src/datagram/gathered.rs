//! What was verified and waits to be passed on: bounded, and taken all at once.

use std::net::SocketAddr;
use std::time::Instant;

use parking_lot::Mutex;
use rollcall_core::ids::SessionId;
use rollcall_proto::heartbeat::HeartbeatKey;
use tokio::sync::Notify;

/// Room for so many is kept, and for some times what there was last: a wave of heartbeats, after a leader was elected, is
/// no measure of what comes behind it.
const SPARE_MIN: usize = 256;

/// A heartbeat that is its session's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) session: SessionId,
    pub(super) counter: u64,
    /// What the question named, and the answer will.
    pub(super) number: u64,
    pub(super) from: SocketAddr,
    pub(super) key: HeartbeatKey,
}

pub(super) struct Gathered {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    max: usize,
}

#[derive(Default)]
struct Waiting {
    beats: Vec<Beat>,
    since: Option<Instant>,
}

impl Gathered {
    pub(super) fn new(max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Notify::new(),
            max,
        }
    }

    /// Adds these, and empties the vector; how many had no room.
    pub(super) fn add(&self, beats: &mut Vec<Beat>, now: Instant) -> usize {
        if beats.is_empty() {
            return 0;
        }
        let (first, dropped) = {
            let mut waiting = self.waiting.lock();
            let first = waiting.beats.is_empty();
            let room = self.max.saturating_sub(waiting.beats.len()).min(beats.len());
            waiting.beats.extend_from_slice(&beats[..room]);
            waiting.since.get_or_insert(now);
            (first, beats.len() - room)
        };
        beats.clear();
        if first {
            self.arrived.notify_one();
        }
        dropped
    }

    /// Waits for heartbeats and takes them all, in exchange for an empty vector; since when the first of them waited.
    pub(super) async fn take(&self, emptied: &mut Vec<Beat>) -> Instant {
        empty(emptied);
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.waiting.lock();
                if let Some(since) = waiting.since.take() {
                    std::mem::swap(&mut waiting.beats, emptied);
                    return since;
                }
            }
            arrived.await;
        }
    }
}

/// Empties it, and gives back what is far more room than was needed.
fn empty(beats: &mut Vec<Beat>) {
    let room = SPARE_MIN.max(beats.len() * 2);
    beats.clear();
    if beats.capacity() / 2 > room {
        beats.shrink_to(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(sessions: std::ops::Range<u64>) -> Vec<Beat> {
        let beat = |session| Beat {
            session: SessionId(session),
            counter: 1,
            number: 1,
            from: "127.0.0.1:1".parse().unwrap(),
            key: HeartbeatKey::of_secret(b"x"),
        };
        sessions.map(beat).collect()
    }

    #[tokio::test]
    async fn what_has_no_room_is_told_and_the_rest_is_taken_at_once() {
        let gathered = Gathered::new(5);
        let now = Instant::now();
        assert_eq!(gathered.add(&mut beats(0..3), now), 0);
        assert_eq!(gathered.add(&mut beats(3..7), now), 2);
        let mut taken = Vec::new();
        assert_eq!(gathered.take(&mut taken).await, now);
        assert_eq!(
            taken.iter().map(|beat| beat.session.0).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
        assert_eq!(gathered.add(&mut beats(7..8), now), 0);
        gathered.take(&mut taken).await;
        assert_eq!(taken.len(), 1);
    }

    #[tokio::test]
    async fn the_room_that_a_wave_took_is_given_back() {
        let gathered = Gathered::new(10_000);
        let now = Instant::now();
        let mut taken = Vec::new();
        for wave in [10_000, 1, 1, 1] {
            gathered.add(&mut beats(0..wave), now);
            gathered.take(&mut taken).await;
        }
        assert!(taken.capacity() <= 4 * SPARE_MIN, "{}", taken.capacity());
        let waiting = gathered.waiting.lock().beats.capacity();
        assert!(waiting <= 4 * SPARE_MIN, "{waiting}");
        // What comes at a steady pace needs no new room.
        for _ in 0..3 {
            gathered.add(&mut beats(0..2_000), now);
            gathered.take(&mut taken).await;
        }
        let place = taken.as_ptr();
        for _ in 0..2 {
            gathered.add(&mut beats(0..2_000), now);
            gathered.take(&mut taken).await;
        }
        assert_eq!(taken.as_ptr(), place);
    }
}
