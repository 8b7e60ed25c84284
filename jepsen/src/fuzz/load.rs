//! Providers that want nothing but to stay: heartbeats and writes while packets are thrown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{GroupSettings, PutGroupRequest};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::report::Latencies;
use super::witness;
use crate::lab::attending::Attending;

const GROUP: &str = "gossip-fuzz";
const TTL: Duration = Duration::from_secs(10);
const SESSIONS_EACH: usize = 4;
/// Nodes that a session registers over and over.
const NODES_EACH: u64 = 8;
const BEAT_EVERY: Duration = Duration::from_millis(250);

/// What the providers met.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    pub(super) beats: Vec<Duration>,
    pub(super) writes: Vec<Duration>,
    /// Heartbeats of a session that was gone.
    pub(super) lost: u64,
    /// Streams that broke; the session was taken up again.
    pub(super) broken: u64,
    /// The first of these, in words.
    pub(super) first: Option<String>,
}

/// Sessions on every server, each beating four times a second and writing after every beat.
pub(super) struct Load {
    stopping: Arc<AtomicBool>,
    met: Arc<Mutex<Met>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) async fn start(addresses: &[String]) -> anyhow::Result<Self> {
        let first = addresses.first().context("no server")?;
        let put = PutGroupRequest {
            group: GROUP.into(),
            settings: Some(GroupSettings {
                auto_create: true,
                ..GroupSettings::default()
            }),
            ..PutGroupRequest::default()
        };
        RegistryClient::new(witness::channel(first)?)
            .put_group(put)
            .await
            .context("making the group of the test")?;
        let mut load = Self {
            stopping: Arc::default(),
            met: Arc::default(),
            tasks: Vec::new(),
        };
        for number in 0..addresses.len() * SESSIONS_EACH {
            let address = addresses[number % addresses.len()].clone();
            let session = Attending::open(&address, TTL).await?;
            let (stopping, met) = (Arc::clone(&load.stopping), Arc::clone(&load.met));
            load.tasks
                .push(tokio::spawn(attend(address, number, session, stopping, met)));
        }
        Ok(load)
    }

    pub(super) async fn stop(self) -> (Met, Latencies, Latencies) {
        self.stopping.store(true, Ordering::Release);
        for task in self.tasks {
            // A task of ours that panicked has told so on standard error.
            let _ = task.await;
        }
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (beats, writes) = (
            Latencies::of(met.beats.clone()),
            Latencies::of(met.writes.clone()),
        );
        (met, beats, writes)
    }
}

async fn attend(
    address: String,
    number: usize,
    mut session: Attending,
    stopping: Arc<AtomicBool>,
    met: Arc<Mutex<Met>>,
) {
    let mut beats = tokio::time::interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0_u64.. {
        beats.tick().await;
        if stopping.load(Ordering::Acquire) {
            return;
        }
        let Err(problem) = beat(&mut session, number, turn, &met).await else {
            continue;
        };
        note(&met, |met| {
            met.broken += 1;
            met.first
                .get_or_insert_with(|| format!("session {number} at {address}: {problem:#}"));
        });
        let (id, secret) = (session.session, session.secret.clone());
        match Attending::attach(&address, id, &secret).await {
            Ok(Ok(again)) => session = again,
            Ok(Err(refused)) => {
                note(&met, |met| {
                    met.lost += 1;
                    met.first
                        .get_or_insert_with(|| format!("session {number}: {}", refused.message));
                });
                return;
            }
            Err(_) => {}
        }
    }
}

async fn beat(session: &mut Attending, number: usize, turn: u64, met: &Mutex<Met>) -> anyhow::Result<()> {
    let since = Instant::now();
    let kept = session.renew().await?;
    let took = since.elapsed();
    anyhow::ensure!(kept, "the session is gone");
    note(met, |met| met.beats.push(took));
    let since = Instant::now();
    let node = format!("s{number}-{}", turn % NODES_EACH);
    session.register(GROUP, "feed", &node).await?;
    note(met, |met| met.writes.push(since.elapsed()));
    Ok(())
}

fn note(met: &Mutex<Met>, take: impl FnOnce(&mut Met)) {
    take(&mut met.lock().unwrap_or_else(PoisonError::into_inner));
}
