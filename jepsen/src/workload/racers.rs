//! Heartbeats that come when their session is just about to end, or has just ended: each gets one answer.

use std::time::Duration;

use rollcall_proto::v1::GroupMode;
use tokio::task::JoinSet;

use super::Stage;
use super::call::ms;
use super::door::put_group;
use super::heartbeats::{SERVICE, watch};
use super::provider::Provider;
use crate::history::{Heartbeats, Record};
use crate::seed::Seeded;

/// The group; its guard lets all of a service lapse away.
pub const GROUP: &str = "racers";
/// The shortest there is.
const TTL: Duration = Duration::from_secs(2);
/// Around the moment at which a full ttl is over since the last heartbeat, from before to after.
const BEFORE: Duration = Duration::from_millis(60);
const SPREAD_MS: u64 = 300;
/// Most heartbeats of a session.
const BEATS_MAX: u64 = 20;
/// What becomes of the last ones.
const AFTERMATH: Duration = Duration::from_secs(6);

/// Providers and watchers at work.
#[derive(Debug)]
pub struct Racers {
    racers: JoinSet<()>,
    watchers: JoinSet<()>,
}

impl Racers {
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
        let (mut racers, mut watchers) = (JoinSet::new(), JoinSet::new());
        for racer in 0..stage.clients * 3 {
            let random = Seeded::fork(stage.seed, 90_000 + racer);
            racers.spawn(race(stage.clone(), random));
        }
        for first in 0..stage.addresses.len() {
            let watching = watch(stage.addresses.clone(), stage.history.clone(), GROUP, first);
            watchers.spawn(watching);
        }
        Self { racers, watchers }
    }

    /// Waits until the racers have ended (they were told to stop), and for what becomes of their sessions.
    pub async fn finish(mut self) {
        while self.racers.join_next().await.is_some() {}
        tokio::time::sleep(AFTERMATH).await;
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }
}

async fn race(stage: Stage, mut random: Seeded) {
    while stage.goes_on() {
        tokio::time::sleep(ms(random.below(300))).await;
        live(&stage, &mut random).await;
    }
}

async fn live(stage: &Stage, random: &mut Seeded) {
    let history = &stage.history;
    let sent = history.now();
    let Some(mut racer) = Provider::open(&stage.addresses, TTL, GroupMode::Cp, random).await else {
        return;
    };
    let session = racer.session;
    racer.opened(stage, sent);
    let mut heard = history.now();
    if racer
        .register(GROUP, SERVICE, &format!("s{session}"))
        .await
        .is_none()
    {
        return;
    }
    for _ in 0..BEATS_MAX {
        let at = heard + racer.ttl + ms(random.below(SPREAD_MS));
        tokio::time::sleep(at.saturating_sub(BEFORE + history.now())).await;
        if !stage.goes_on() {
            break;
        }
        let beat = racer.beat(stage, random).await;
        match beat.acknowledged {
            Some(true) => heard = beat.sent,
            Some(false) => return,
            None => break,
        }
    }
    racer.hang_up();
    history.record(Record::Heartbeats(Heartbeats::Stop {
        session,
        time: history.now(),
    }));
}
