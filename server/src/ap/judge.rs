//! The judge: which of the sessions that this server vouches for have lapsed, and who takes over those of a server that
//! is down.
//!
//! It is the same office as a leader's; its words are applied to the view instead of being proposed. Sessions of a
//! server that was declared down wait a moment for their clients, which come to other servers and are claimed there.
//! Then the successor, by highest rendezvous hash among the members that are there, claims the rest and gives each its
//! full ttl. If the holder is back, or was never away, it claims them again as it hears them, and is given a full ttl for
//! that. Sessions that came with a group from the log are nobody's until they are heard; those that are not wait as long,
//! and go to a successor in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ap::{SessionSeed, THE_LOG};
use rollcall_core::ids::{ServerId, SessionId};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::committer::Job;
use super::inner::Inner;
use crate::pulse;
use crate::session::{REST_MAX, TICK, Word};

/// A pause from here on is worth a line in the log.
const PAUSE_WORTH_TELLING: Duration = Duration::from_millis(250);
/// How long a server must be gone before its sessions are taken over.
const GONE_FOR: Duration = Duration::from_secs(2);
/// How often that is looked at.
const GONE_LOOK: Duration = Duration::from_millis(500);
/// How often the sessions of a server that stays gone are looked through again: what is learned of them late, or left
/// by a successor that went as well.
const GONE_AGAIN: Duration = Duration::from_secs(5);
/// Sessions claimed in one job.
const CLAIMS_MAX: usize = 500;

/// Judges until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = judge(inner.clone()) => {}
        () = take_over(inner) => {}
    }
}

async fn judge(inner: Arc<Inner>) {
    let mut ticks = pulse::ticks(TICK);
    loop {
        let rests = inner.desk.lock().office.is_resting();
        tokio::select! {
            _ = ticks.tick(), if !rests => {}
            () = inner.to_judge.notified(), if rests => {}
            () = pulse::pause(REST_MAX), if rests => {}
        }
        let (words, claims) = tick(&inner, Instant::now());
        if !words.is_empty() {
            tokio::spawn(say_all(inner.clone(), words));
        }
        if !claims.is_empty() {
            tokio::spawn(claim(inner.clone(), claims));
        }
    }
}

/// One look at the clock.
fn tick(inner: &Inner, now: Instant) -> (Vec<Word>, Vec<SessionSeed>) {
    let mut desk = inner.desk.lock();
    let view = inner.view.read();
    let shifted = desk.office.tick(now);
    if shifted >= PAUSE_WORTH_TELLING {
        tracing::warn!(
            late_ms = shifted.as_millis() as u64,
            "this server slept; the deadlines of AP sessions move by as much"
        );
    }
    desk.office.catch_up(&view, now);
    let (words, claims) = (desk.office.take_words(&view, now), desk.take_claims(CLAIMS_MAX));
    if claims.is_empty() {
        desk.office.rest_if_idle(&view);
    }
    (words, claims)
}

/// Says one tick's words, in their order: a guard that judges the first lapses is told how many follow.
async fn say_all(inner: Arc<Inner>, words: Vec<Word>) {
    for word in words {
        if !is_premature(&inner, &word) {
            let said = word.clone();
            let outcome = inner.perform(|done| Job::Say { word: said, done }).await;
            if let Err(error) = outcome {
                tracing::debug!(%error, "a judgement was not written");
            }
        }
        let now = Instant::now();
        let mut desk = inner.desk.lock();
        let view = inner.view.read();
        desk.office.catch_up(&view, now);
        desk.office.settle(&word, &view, now);
    }
}

/// Guards do not know of how many nodes while those of a group that moved come piece by piece: nothing is let go. It is
/// counted down again.
fn is_premature(inner: &Inner, word: &Word) -> bool {
    matches!(word, Word::Over(_) | Word::HeldEnough(_)) && inner.waits_for_missed()
}

async fn claim(inner: Arc<Inner>, seeds: Vec<SessionSeed>) {
    let claimed = inner.perform(|done| Job::Claim { seeds, done }).await;
    if let Err(error) = claimed {
        tracing::debug!(%error, "not all sessions heard here were claimed");
    }
}

/// Takes over what servers leave that are down, and what the log left to whoever hears it.
async fn take_over(inner: Arc<Inner>) {
    let mut looked_at = BTreeMap::new();
    loop {
        pulse::pause(GONE_LOOK).await;
        if !inner.is_sure() {
            continue;
        }
        let now = Instant::now();
        let gone = servers_gone(&inner, now);
        looked_at.retain(|server, _| {
            let is_back = !gone.contains(server);
            if is_back {
                welcome(&inner, *server, now);
            }
            !is_back
        });
        for server in gone {
            let looked = looked_at.get(&server);
            if looked.is_some_and(|looked| now - *looked < GONE_AGAIN) {
                continue;
            }
            looked_at.insert(server, now);
            let seeds = left_to_us(&inner, server);
            if !seeds.is_empty() {
                tracing::info!(
                    from = server.0,
                    sessions = seeds.len(),
                    "sessions of a server that is down"
                );
            }
            take(&inner, server, seeds).await;
        }
        if inner.desk.lock().has_unclaimed(GONE_FOR, now) {
            take(&inner, THE_LOG, left_to_us(&inner, THE_LOG)).await;
        }
    }
}

/// Claims sessions that nobody holds any more, or yet.
async fn take(inner: &Inner, from: ServerId, seeds: Vec<SessionSeed>) {
    for seeds in seeds.chunks(CLAIMS_MAX) {
        let seeds = seeds.to_vec();
        let taken = inner.perform(|done| Job::TakeOver { from, seeds, done }).await;
        let taken = taken.unwrap_or_default() as u64;
        inner.metrics.sessions_taken_over.inc_by(taken);
    }
}

/// A server is back that was gone.
fn welcome(inner: &Inner, server: ServerId, now: Instant) {
    let mut desk = inner.desk.lock();
    let view = inner.view.read();
    let sessions = desk.regrant(server, &view, now);
    if sessions > 0 {
        tracing::info!(
            from = server.0,
            sessions,
            "a server is back whose sessions were taken over"
        );
    }
}

/// Holders of sessions that have been gone for long enough, those that are no members any more included.
fn servers_gone(inner: &Inner, now: Instant) -> Vec<ServerId> {
    let holders: Vec<ServerId> = inner.desk.lock().holders().collect();
    let mut gone = holders;
    gone.retain(|server| {
        let since = inner.gone_since(*server, now);
        ![inner.server, THE_LOG].contains(server)
            && since.is_some_and(|since| now.saturating_duration_since(since) >= GONE_FOR)
    });
    gone
}

/// The sessions of a server that are this one's to take over.
fn left_to_us(inner: &Inner, server: ServerId) -> Vec<SessionSeed> {
    let mut here: Vec<ServerId> = inner.others_here().iter().map(|other| other.server).collect();
    here.push(inner.server);
    let desk = inner.desk.lock();
    desk.left_by(server, |session| successor(session, &here) == Some(inner.server))
}

/// Who takes over a session: the same for all who see the same members, and evenly spread.
fn successor(session: SessionId, members: &[ServerId]) -> Option<ServerId> {
    let weight = |member: &ServerId| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&session.0.to_le_bytes());
        bytes[8..].copy_from_slice(&member.0.to_le_bytes());
        (xxh3_64(&bytes), *member)
    };
    members.iter().copied().max_by_key(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors_are_spread_and_move_only_with_their_server() {
        let members = [1, 2, 3].map(ServerId);
        let mut counts = BTreeMap::<ServerId, u32>::new();
        for id in 0..3_000 {
            let session = SessionId(id);
            let with_all = successor(session, &members).expect("there are members");
            *counts.entry(with_all).or_default() += 1;
            let without_third = successor(session, &members[..2]).expect("there are members");
            assert!(with_all == without_third || with_all == ServerId(3));
        }
        assert!(
            counts.values().all(|count| (800..1_200).contains(count)),
            "{counts:?}"
        );
        assert_eq!(successor(SessionId(1), &[]), None);
    }
}
