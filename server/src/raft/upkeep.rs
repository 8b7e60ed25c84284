//! What goes on in the background: who leads, earning the vote back, measuring space, comparing replicas.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use rollcall_proto::v1::{ProbeRequest, ProbeResponse};
use tokio::time::Instant;

use super::checkpoint::Checkpoint;
use super::consensus::Inner;
use super::contract::Freshness;
use super::network::Peers;
use super::vacancy;
use super::vote_gate::Standing;
use crate::pulse;
use crate::store::{Trouble, divergence};

/// How often free space is measured.
const SPACE_EVERY: Duration = Duration::from_secs(1);
/// A leader without room tries to hand over this often.
const HANDOVER_EVERY: Duration = Duration::from_secs(10);
/// How often a follower asks for its age while someone wants to know.
const AGE_EVERY: Duration = Duration::from_millis(200);
/// Replicas are compared at most this often.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// How often it is tried to note that this server's state differs.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long one question to another server may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a server that catches up looks whether it has.
const CATCH_UP_EVERY: Duration = Duration::from_millis(50);

/// Starts the tasks. They hold the server weakly where they wait long, and end with it.
pub(super) fn start(inner: &Arc<Inner>) {
    let tasks: [std::pin::Pin<Box<dyn Future<Output = ()> + Send>>; 7] = [
        Box::pin(follow_leadership(Arc::downgrade(inner))),
        Box::pin(note_loaded(Arc::downgrade(inner))),
        Box::pin(earn_vote(Arc::downgrade(inner))),
        Box::pin(watch_space(Arc::downgrade(inner))),
        Box::pin(compare(Arc::downgrade(inner))),
        Box::pin(measure_age(Arc::downgrade(inner))),
        Box::pin(vacancy::fill(Arc::downgrade(inner))),
    ];
    for task in tasks {
        tokio::spawn(inner.stop.clone().run_until_cancelled_owned(task));
    }
}

async fn follow_leadership(weak: Weak<Inner>) {
    let Some((mut servers, mut head)) = weak
        .upgrade()
        .map(|inner| (inner.raft.server_metrics(), inner.head.clone()))
    else {
        return;
    };
    loop {
        match weak.upgrade() {
            Some(inner) => {
                inner.refresh_leadership();
                inner.raft.runtime_config().tick(inner.needs_ticks());
                inner.solitude.note(inner.is_alone());
            }
            None => return,
        }
        let waits_for_first_entry = weak.upgrade().is_some_and(|inner| {
            let leadership = *inner.leadership.borrow();
            leadership.leader == Some(inner.options.server) && !leadership.leading
        });
        let ended = tokio::select! {
            changed = servers.changed() => changed.is_err(),
            changed = head.changed(), if waits_for_first_entry => changed.is_err(),
        };
        if ended {
            break;
        }
    }
    // Raft has ended: it shows no more what it shows now.
    if let Some(inner) = weak.upgrade() {
        inner.solitude.end();
        inner.leadership.send_modify(|leadership| {
            leadership.leader = None;
            leadership.leading = false;
        });
    }
}

async fn note_loaded(weak: Weak<Inner>) {
    let Some((raft, mut head)) = weak
        .upgrade()
        .map(|inner| (inner.raft.clone(), inner.head.clone()))
    else {
        return;
    };
    if raft.wait_for_recovery(None).await.is_err() {
        return;
    }
    if head.wait_for(|head| head.position.is_some()).await.is_err() {
        return;
    }
    if let Some(inner) = weak.upgrade() {
        inner.loaded.store(true, Ordering::Release);
        tracing::info!(
            revision = inner.head.borrow().revision.0,
            "caught up with the cluster"
        );
    }
}

/// Lets the server vote and seek election: after a restart when one lease has passed; when its folder is empty, once it
/// founds the cluster; when it does not know what it acknowledged, once it has that back from a leader.
async fn earn_vote(weak: Weak<Inner>) {
    let Some(lease) = weak.upgrade().map(|inner| inner.options.lease()) else {
        return;
    };
    if weak.upgrade().is_some_and(|inner| inner.gate.is_resting()) {
        tokio::time::sleep(lease).await;
    }
    let Some(mut standing) = weak.upgrade().map(|inner| {
        inner.gate.rested();
        inner.gate.watch_standing()
    }) else {
        return;
    };
    let decided = standing.wait_for(|standing| *standing != Standing::Undecided);
    let Ok(decided) = decided.await.map(|decided| *decided) else {
        return;
    };
    if decided == Standing::CatchingUp && catch_up(&weak).await.is_none() {
        return;
    }
    if let Some(inner) = weak.upgrade()
        && !inner.gate.is_diverged()
    {
        inner.raft.runtime_config().elect(true);
    }
}

async fn catch_up(weak: &Weak<Inner>) -> Option<()> {
    let mark = weak.upgrade()?.log.mark();
    let committed = loop {
        let inner = weak.upgrade()?;
        // What the cluster has committed by now covers whatever this server may have acknowledged once.
        if let Ok(confirmed) = inner.remote_round().await {
            break confirmed.index;
        }
        drop(inner);
        tokio::time::sleep(CATCH_UP_EVERY).await;
    };
    loop {
        let inner = weak.upgrade()?;
        let applied = inner.head.borrow().position;
        let is_here = applied.is_some_and(|applied| applied.index >= committed);
        if is_here && inner.log.flushed() >= mark.log {
            if let Err(error) = inner.log.set_caught_up(applied).await {
                tracing::warn!(%error, "mark not written, not voting yet");
            } else {
                inner.gate.caught_up();
                tracing::info!("caught up, voting again");
                return Some(());
            }
        }
        drop(inner);
        tokio::time::sleep(CATCH_UP_EVERY).await;
    }
}

async fn watch_space(weak: Weak<Inner>) {
    let mut handed_over: Option<Instant> = None;
    let mut full_since: Option<Instant> = None;
    loop {
        pulse::pause(SPACE_EVERY).await;
        let Some(inner) = weak.upgrade() else { return };
        let space = inner.space.clone();
        if crate::ground::spawn_blocking(move || space.check())
            .await
            .is_err()
        {
            return;
        }
        let now = Instant::now();
        full_since = match inner.space.is_full() {
            true => full_since.or(Some(now)),
            false => None,
        };
        let long_full = full_since.is_some_and(|since| now - since >= 2 * SPACE_EVERY);
        let may_hand_over = handed_over.is_none_or(|at| now - at >= HANDOVER_EVERY);
        if long_full && may_hand_over && inner.leads() {
            handed_over = Some(now);
            let handed = inner.transfer_to_room(now + PROBE_TIMEOUT).await;
            tracing::warn!(
                handed_over = handed.is_ok(),
                "this leader's disk is full, one with room should lead"
            );
        }
    }
}

/// Asks a server what it has.
pub(super) async fn probe(peers: &Peers, target: u64, address: &str) -> Option<ProbeResponse> {
    let mut client = peers.client(target, address).ok()?;
    let request = ProbeRequest {
        cluster: peers.cluster().to_owned(),
        from: peers.server(),
        to: target,
    };
    match tokio::time::timeout(PROBE_TIMEOUT, client.probe(request)).await {
        Ok(Ok(answer)) => Some(answer.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(target, reason = status.message(), "server not probed");
            None
        }
        Err(_) => None,
    }
}

/// A follower compares its state hashes with the leader's, until it differs.
async fn compare(weak: Weak<Inner>) {
    let Some(mut newest) = weak.upgrade().map(|inner| inner.checkpoints.newest()) else {
        return;
    };
    // What was replayed at the start was noted before anybody listened.
    if newest.borrow().is_some() {
        newest.mark_changed();
    }
    while newest.changed().await.is_ok() {
        loop {
            tokio::time::sleep(COMPARE_EVERY).await;
            newest.mark_unchanged();
            let Some(inner) = weak.upgrade() else { return };
            if inner.gate.is_diverged() {
                return;
            }
            let Some((leader, theirs)) = leaders_checkpoints(&inner).await else {
                continue;
            };
            if let Some(index) = inner.checkpoints.difference(&theirs) {
                inner.gate.set_diverged();
                inner.raft.runtime_config().elect(false);
                tracing::error!(
                    index,
                    leader,
                    "RC-110: this server's state differs from the leader's and is no longer served; keep a \
                     copy of its data folder, and replace it by a server with a new id (docs/operations.md, Replace a \
                     server)"
                );
                note_divergence(&inner, index).await;
                return;
            }
            break;
        }
    }
}

/// Who leads, if it is another, and its state hashes. `None`: to be asked again.
async fn leaders_checkpoints(inner: &Inner) -> Option<(u64, Vec<Checkpoint>)> {
    let own = inner.options.server;
    let leader = inner
        .leadership
        .borrow()
        .leader
        .filter(|leader| *leader != own)?
        .0;
    let answer = probe(&inner.peers, leader, &inner.address_of(leader)?).await?;
    Some((leader, answer.checkpoints.iter().map(checkpoint_of).collect()))
}

/// A restart would load what is wrong as if it were right.
async fn note_divergence(inner: &Inner, index: u64) {
    let trouble = Trouble::default();
    loop {
        let folder = inner.options.data.clone();
        let note = move || divergence::note(&folder, index);
        match crate::ground::spawn_blocking(note).await {
            Ok(Ok(())) | Err(_) => return,
            Ok(Err(error)) if trouble.begins() => {
                tracing::error!(%error, "RC-110: not noted on disk, trying again; do not restart this server");
            }
            Ok(Err(_)) => {}
        }
        tokio::time::sleep(NOTE_EVERY).await;
    }
}

fn checkpoint_of(wire: &rollcall_proto::v1::Checkpoint) -> Checkpoint {
    Checkpoint {
        index: wire.index,
        hash: u128::from(wire.high) << 64 | u128::from(wire.low),
    }
}

async fn measure_age(weak: Weak<Inner>) {
    let Some(age) = weak.upgrade().map(|inner| inner.age()) else {
        return;
    };
    loop {
        age.wanted().await;
        let Some(inner) = weak.upgrade() else { return };
        let sent_at = Instant::now();
        if inner
            .confirm(Freshness::Leased, sent_at + PROBE_TIMEOUT)
            .await
            .is_ok()
        {
            age.confirmed(sent_at);
        }
        drop(inner);
        tokio::time::sleep(AGE_EVERY).await;
    }
}
