//! Watchers that leave their server every few seconds and resume at another, while what they watch changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, node_key, options, persistent, service};
use super::door::put_group;
use super::follower::Follower;
use crate::history::{Answer, Record};
use crate::lab::eventually;
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "resumes";
const SERVICE: &str = "stream";
/// Nodes of each writer.
const NODES_EACH: u64 = 30;
const PAUSE_MAX_MS: u64 = 60;
/// A stream lasts so many milliseconds.
const STAYS: (u64, u64) = (1_000, 10_000);
/// Long enough to fall behind what servers retain, now and then.
const AWAY_MAX_MS: u64 = 2_500;
/// What servers retain, in revisions; they are started with it.
pub const RETAINED: u64 = 60;

/// Writers and watchers at work.
#[derive(Debug)]
pub struct Resumes {
    stage: Stage,
    writers: JoinSet<()>,
    watchers: JoinSet<()>,
    positions: Vec<Arc<AtomicU64>>,
    /// The last acknowledged revision.
    last: Arc<AtomicU64>,
}

impl Resumes {
    /// Makes the group.
    ///
    /// # Errors
    /// No server takes it in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group(&stage.addresses, GROUP, 10_000).await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        let mut resumes = Self {
            stage: stage.clone(),
            writers: JoinSet::new(),
            watchers: JoinSet::new(),
            positions: Vec::new(),
            last: Arc::default(),
        };
        for writer in 0..stage.clients.div_ceil(2) {
            let random = Seeded::fork(stage.seed, 60_000 + writer);
            let last = Arc::clone(&resumes.last);
            resumes.writers.spawn(write(stage.clone(), writer, last, random));
        }
        for watcher in 0..stage.clients * 2 {
            let position = Arc::new(AtomicU64::new(0));
            let follower = Follower {
                name: format!("resumes-{watcher}"),
                key: service(GROUP, SERVICE),
                first: usize::try_from(watcher).unwrap_or(0),
                stays: STAYS,
                away_max: AWAY_MAX_MS,
                position: Arc::clone(&position),
            };
            let random = Seeded::fork(stage.seed, 61_000 + watcher);
            resumes.watchers.spawn(follower.follow(stage.clone(), random));
            resumes.positions.push(position);
        }
        resumes
    }

    /// Waits until the writers have ended (they were told to stop) and every watcher has heard of their last write,
    /// at most for `bound`.
    pub async fn finish(mut self, bound: Duration) {
        while self.writers.join_next().await.is_some() {}
        let last = self.last.load(Ordering::Acquire);
        let heard = || self.positions.iter().all(|of| of.load(Ordering::Acquire) >= last);
        let all = eventually("the last write at every watcher", bound, || async {
            heard().then_some(())
        });
        if all.await.is_err() {
            let behind = self
                .positions
                .iter()
                .filter(|of| of.load(Ordering::Acquire) < last);
            self.stage.history.record(Record::Broken(
                self.stage.history.now(),
                format!(
                    "{} watchers have not heard of revision {last} {bound:?} after it was acknowledged",
                    behind.count()
                ),
            ));
        }
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }
}

async fn write(stage: Stage, writer: u64, last: Arc<AtomicU64>, mut random: Seeded) {
    let key = service(GROUP, SERVICE);
    let mut value = 0;
    while stage.goes_on() {
        let (_, address) = stage.any_server(&mut random);
        let Some(mut caller) = Caller::to(&address).await else {
            tokio::time::sleep(ms(100)).await;
            continue;
        };
        while stage.goes_on() {
            let node = format!("w{writer}-{}", random.below(NODES_EACH));
            let wrote = if random.chance(0.2) {
                caller.deregister(options(), vec![node_key(&key, &node)]).await
            } else {
                value += 1;
                caller
                    .register(options(), vec![persistent(&key, &node, value)])
                    .await
            };
            match wrote {
                Wrote::Ok(written) if written.changed => {
                    last.fetch_max(written.revision, Ordering::AcqRel);
                    stage.history.record(Record::Answer(Answer::Wrote {
                        service: format!("{GROUP}/{SERVICE}"),
                        revision: written.revision,
                        time: stage.history.now(),
                    }));
                }
                Wrote::Ok(_) => {}
                Wrote::Nothing(_) if random.chance(0.8) => {}
                Wrote::Nothing(_) | Wrote::Unknown => break,
            }
            tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
        }
    }
}
