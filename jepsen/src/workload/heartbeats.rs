//! Sessions that renew three times per ttl, move to another server when one does not answer, and now and then stop
//! without a word; a watcher at each server tells when their nodes are gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1::ErrorCode;
use tokio::task::JoinSet;

use super::Stop;
use super::door::is_put_off;
use super::follower::SILENCE_MAX;
use crate::history::{Answer, Following, Heartbeats, History, Record};
use crate::lab::attending::Attending;
use crate::lab::watching::{Mirror, Watching};
use crate::seed::Seeded;

/// The sessions' group; its guard lets all of a service lapse away.
pub const GROUP: &str = "heartbeats";
pub(super) const SERVICE: &str = "fleet";
/// How long a server may take to answer before the client goes elsewhere.
const ANSWER_MAX: Duration = Duration::from_millis(900);

#[derive(Debug)]
struct Shared {
    addresses: Vec<String>,
    history: History,
    stop: Stop,
    ttl: Duration,
}

/// Providers and watchers at work.
#[derive(Debug)]
pub struct Fleet {
    providers: JoinSet<()>,
    watchers: JoinSet<()>,
}

impl Fleet {
    /// Starts `providers` of them. The group [`GROUP`] must be there.
    #[must_use]
    pub fn start(
        addresses: &[String],
        history: &History,
        stop: &Stop,
        seed: u64,
        providers: u64,
        ttl: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            addresses: addresses.to_vec(),
            history: history.clone(),
            stop: stop.clone(),
            ttl,
        });
        let mut fleet = Self {
            providers: JoinSet::new(),
            watchers: JoinSet::new(),
        };
        for provider in 0..providers {
            fleet
                .providers
                .spawn(provide(Arc::clone(&shared), Seeded::fork(seed, 2_000 + provider)));
        }
        for first in 0..addresses.len() {
            fleet
                .watchers
                .spawn(watch(addresses.to_vec(), history.clone(), GROUP, first));
        }
        fleet
    }

    /// Waits until the providers have ended (they were told to stop); then all of them are silent, and watchers wait
    /// for `aftermath` for what becomes of them.
    pub async fn finish(mut self, aftermath: Duration) {
        while self.providers.join_next().await.is_some() {}
        tokio::time::sleep(aftermath).await;
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }
}

async fn provide(shared: Arc<Shared>, mut random: Seeded) {
    // Not all at once.
    tokio::time::sleep(Duration::from_millis(random.below(1_000))).await;
    while !shared.stop.is_stopped() && !shared.history.is_full() {
        live(&shared, &mut random).await;
    }
}

/// One session's life.
async fn live(shared: &Shared, random: &mut Seeded) {
    let history = &shared.history;
    let record = |line| history.record(Record::Heartbeats(line));
    let sent = history.now();
    let Some(mut attending) = open(shared, random).await else {
        tokio::time::sleep(Duration::from_millis(200)).await;
        return;
    };
    let session = attending.session;
    record(Heartbeats::Open {
        session,
        ttl: attending.ttl,
        sent,
        end: history.now(),
    });
    let node = format!("s{session}");
    let registered = tokio::time::timeout(ANSWER_MAX * 2, attending.register(GROUP, SERVICE, &node)).await;
    let Ok(Ok(revision)) = registered else {
        // Nobody knows whether there is a node; a session that is not watched says nothing about lateness.
        return;
    };
    history.record(Record::Answer(Answer::Wrote {
        service: format!("{GROUP}/{SERVICE}"),
        revision,
        time: history.now(),
    }));
    let dies_at = history.now() + Duration::from_millis(random.between(4_000, 40_000));
    let mut attending = Some(attending);
    let secret = attending.as_ref().map(|of| of.secret.clone()).unwrap_or_default();
    while !shared.stop.is_stopped() && history.now() < dies_at {
        tokio::time::sleep(shared.ttl / 3).await;
        let sent = history.now();
        let acknowledged = match attending.take() {
            Some(mut of) => match tokio::time::timeout(ANSWER_MAX, of.renew()).await {
                Ok(Ok(acknowledged)) => {
                    attending = Some(of);
                    Some(acknowledged)
                }
                _ => None,
            },
            None => None,
        };
        let end = acknowledged.map(|_| history.now());
        record(Heartbeats::Beat {
            session,
            sent,
            end,
            acknowledged,
        });
        if acknowledged.is_none()
            && reattach(shared, random, session, &secret, &mut attending).await == Some(false)
            || acknowledged == Some(false)
        {
            return;
        }
    }
    drop(attending);
    record(Heartbeats::Stop {
        session,
        time: history.now(),
    });
}

async fn open(shared: &Shared, random: &mut Seeded) -> Option<Attending> {
    let address = random.pick(&shared.addresses)?;
    let opened = tokio::time::timeout(ANSWER_MAX * 2, Attending::open(address, shared.ttl)).await;
    opened.ok()?.ok()
}

/// Tries the servers in some order; an attachment counts as a heartbeat. `Some(false)`: the session is no more.
async fn reattach(
    shared: &Shared,
    random: &mut Seeded,
    session: u64,
    secret: &[u8],
    attending: &mut Option<Attending>,
) -> Option<bool> {
    let mut addresses = shared.addresses.clone();
    random.shuffle(&mut addresses);
    for address in addresses {
        let sent = shared.history.now();
        let attached = tokio::time::timeout(ANSWER_MAX, Attending::attach(&address, session, secret)).await;
        let acknowledged = match attached {
            Ok(Ok(Ok(again))) => {
                *attending = Some(again);
                Some(true)
            }
            Ok(Ok(Err(refused))) if refused.code() == ErrorCode::SessionNotFound => Some(false),
            _ => None,
        };
        shared.history.record(Record::Heartbeats(Heartbeats::Beat {
            session,
            sent,
            end: acknowledged.map(|_| shared.history.now()),
            acknowledged,
        }));
        if acknowledged.is_some() {
            return acknowledged;
        }
    }
    None
}

/// Follows sessions' nodes at one server after the other.
pub(super) async fn watch(addresses: Vec<String>, history: History, group: &str, first: usize) {
    let mut mirror = Mirror::default();
    let mut seen = BTreeSet::new();
    for turn in first.. {
        let address = &addresses[turn % addresses.len()];
        let opening = Watching::service(address, group, SERVICE, mirror.revision());
        if let Ok(Ok(mut watching)) = tokio::time::timeout(ANSWER_MAX * 2, opening).await {
            loop {
                let since = history.now();
                let frame = match tokio::time::timeout(SILENCE_MAX, watching.next()).await {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(_)) => break,
                    Err(_) => {
                        history.record(Record::Following(Following::Silent {
                            watch: format!("{group}-{}", first + 1),
                            server: (turn % addresses.len()) as u64 + 1,
                            since,
                            told: mirror.revision(),
                            time: history.now(),
                        }));
                        break;
                    }
                };
                if is_put_off(&frame) {
                    break;
                }
                match mirror.take(frame) {
                    Ok(Some(told)) => {
                        for node in told.put {
                            if let Some(session) =
                                session_of(&node.id).filter(|session| seen.insert(*session))
                            {
                                let (node, time) = (node.id, history.now());
                                history.record(Record::Heartbeats(Heartbeats::Seen { session, node, time }));
                            }
                        }
                        for (node, _) in told.removed {
                            if let Some(session) = session_of(&node) {
                                let time = history.now();
                                history.record(Record::Heartbeats(Heartbeats::Gone { session, node, time }));
                            }
                        }
                    }
                    Ok(None) => {}
                    Err(broken) => {
                        let what = format!("a watch of {address} broke a promise: {broken:#}");
                        history.record(Record::Broken(history.now(), what));
                        mirror = Mirror::default();
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nodes bear their sessions' ids.
fn session_of(node: &str) -> Option<u64> {
    node.strip_prefix('s')?.parse().ok()
}
