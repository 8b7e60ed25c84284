//! Nodes that one session takes over from another, which falls silent before, during or after it.

use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1::{GroupMode, ReadMode};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, ms, reading, service};
use super::door::put_group;
use super::follower::Follower;
use super::provider::Provider;
use crate::history::{Ownership, Record};
use crate::seed::Seeded;

/// The group; its guard lets all of a service lapse away.
pub const GROUP: &str = "takeover";
const SERVICE: &str = "owned";
/// Short, so that much of it happens.
const TTL: Duration = Duration::from_secs(2);
/// Most owners of a node.
const OWNERS_MAX: u64 = 4;

/// Owners and watchers at work.
#[derive(Debug)]
pub struct Takeovers {
    owners: JoinSet<()>,
    watchers: JoinSet<()>,
}

impl Takeovers {
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
        let (mut owners, mut watchers) = (JoinSet::new(), JoinSet::new());
        for client in 0..stage.clients {
            let random = Seeded::fork(stage.seed, 30_000 + client);
            owners.spawn(own(stage.clone(), client, random));
        }
        for first in 0..2 {
            let follower = Follower {
                name: format!("takeover-{first}"),
                key: service(GROUP, SERVICE),
                first,
                stays: (8_000, 20_000),
                away_max: 30,
                position: Arc::default(),
            };
            let random = Seeded::fork(stage.seed, 31_000 + first as u64);
            watchers.spawn(follower.follow(stage.clone(), random));
        }
        Self { owners, watchers }
    }

    /// Waits until the owners have ended (they were told to stop); then watchers hear what becomes of their nodes.
    pub async fn finish(mut self) {
        while self.owners.join_next().await.is_some() {}
        tokio::time::sleep(TTL * 2).await;
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }
}

async fn own(stage: Stage, client: u64, mut random: Seeded) {
    for node in 0.. {
        if !stage.goes_on() {
            return;
        }
        tokio::time::sleep(ms(random.below(300))).await;
        chain(&stage, &format!("n{client}-{node}"), &mut random).await;
    }
}

/// One node and its owners.
async fn chain(stage: &Stage, node: &str, random: &mut Seeded) {
    let record = |line| stage.history.record(Record::Ownership(line));
    let mut owners = JoinSet::new();
    for _ in 0..random.between(2, OWNERS_MAX) {
        let opening = stage.history.now();
        let Some(mut owner) = Provider::open(&stage.addresses, TTL, GroupMode::Cp, random).await else {
            break;
        };
        owner.opened(stage, opening);
        let sent = stage.history.now();
        let registered = owner.register(GROUP, SERVICE, node).await;
        record(Ownership::Claimed {
            service: format!("{GROUP}/{SERVICE}"),
            node: node.into(),
            session: owner.session,
            ttl: owner.ttl,
            sent,
            end: registered.map(|_| stage.history.now()),
            revision: registered.unwrap_or(0),
        });
        if registered.is_none() {
            break;
        }
        // It may be silent when the next one comes, just about to lapse, or still be heard from for a while.
        let lives = ms(random.below(3_000));
        let next = ms(random.below(5_000)).min(lives + owner.ttl + ms(200));
        let ends_at = stage.history.now() + next;
        let own = Seeded::new(random.next());
        owners.spawn(keep(stage.clone(), owner, lives, own));
        while stage.goes_on() && stage.history.now() < ends_at {
            tokio::time::sleep(ms(50)).await;
        }
        look(stage, node, random).await;
        if !stage.goes_on() {
            break;
        }
    }
    while owners.join_next().await.is_some() {}
}

/// Heartbeats for so long, and then none.
async fn keep(stage: Stage, mut owner: Provider, lives: Duration, mut random: Seeded) {
    let record = |line| stage.history.record(Record::Ownership(line));
    let silent_at = stage.history.now() + lives;
    while stage.goes_on() && stage.history.now() < silent_at {
        tokio::time::sleep(if owner.is_attached() { TTL / 5 } else { ms(50) }).await;
        let beat = owner.beat(&stage, &mut random).await;
        record(Ownership::Beat {
            session: owner.session,
            sent: beat.sent,
            acknowledged: beat.acknowledged,
        });
        if beat.acknowledged == Some(false) {
            break;
        }
    }
    record(Ownership::Stop {
        session: owner.session,
        time: stage.history.now(),
    });
}

async fn look(stage: &Stage, node: &str, random: &mut Seeded) {
    let (_, address) = stage.any_server(random);
    let Some(mut caller) = Caller::to(&address).await else {
        return;
    };
    let sent = stage.history.now();
    let read = caller.view(service(GROUP, SERVICE), reading(ReadMode::Linearizable));
    let Ok((_, view)) = read.await else { return };
    let owner = view.and_then(|view| view.nodes.into_iter().find(|of| of.id == node));
    stage.history.record(Record::Ownership(Ownership::Owned {
        service: format!("{GROUP}/{SERVICE}"),
        node: node.into(),
        session: owner.map(|owner| owner.session),
        sent,
        end: stage.history.now(),
    }));
}
