//! Following the others' logs: news by gossip, what they do not carry by pulls, one at a time from each server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::ap::{Key, Record, Seq, Value};
use rollcall_core::ids::ServerId;
use rollcall_proto::v1::{ApPullRequest, ApPullResponse, ApPushRequest};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::committer::Job;
use super::desk::Heard;
use super::inner::Inner;
use super::members::Other;
use super::news::ApNews;
use super::rows::Followed;
use crate::gossip::{Gossip, News, Topic};
use crate::pulse;

/// The head is told at most this often.
const SPACING: Duration = Duration::from_millis(20);
/// How often the members are looked at, for those to be followed.
const MEMBERS_EVERY: Duration = Duration::from_millis(500);
/// Without gossip the others are asked this often.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// How long one question may take.
pub(super) const CALL_MAX: Duration = Duration::from_secs(10);
/// Pauses after failures, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pause before a server whose clock is ahead is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Follows everybody, and tells everybody, until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut parts = JoinSet::new();
    let followers = Arc::new(Followers::default());
    if let Some(gossip) = inner.gossip.clone() {
        parts.spawn(tell(inner.clone(), gossip.clone()));
        parts.spawn(listen(inner.clone(), gossip, followers.clone()));
    }
    let mut tasks = BTreeMap::new();
    while !stop.is_cancelled() {
        let others = inner.others();
        let servers: Vec<ServerId> = others.iter().map(|other| other.server).collect();
        inner.origins.keep_only(&servers);
        tasks.retain(|server, task: &mut tokio::task::AbortHandle| {
            let stays = servers.contains(server);
            if !stays {
                task.abort();
            }
            stays
        });
        for other in others {
            let (inner, server) = (inner.clone(), other.server);
            tasks
                .entry(server)
                .or_insert_with(|| parts.spawn(follow(inner, server, followers.of(server))));
        }
        let pause = pulse::pause(MEMBERS_EVERY);
        stop.run_until_cancelled(pause).await;
    }
    parts.shutdown().await;
}

/// Wakes those who follow.
#[derive(Default)]
struct Followers(parking_lot::Mutex<BTreeMap<ServerId, Arc<Notify>>>);

impl Followers {
    fn of(&self, server: ServerId) -> Arc<Notify> {
        self.0.lock().entry(server).or_default().clone()
    }

    fn wake(&self, server: ServerId) {
        if let Some(follower) = self.0.lock().get(&server) {
            follower.notify_one();
        }
    }
}

/// Tells how far this server's log goes: when it moves, when somebody has come, and now and then.
async fn tell(inner: Arc<Inner>, gossip: Gossip) {
    let mut synced = inner.synced.subscribe();
    let mut told = None;
    loop {
        synced.borrow_and_update();
        let read = inner.read_synced(|desk| (desk.footing(), desk.head(), ApNews::of(desk)));
        if let Ok((footing, head, news)) = read.await {
            told = Some((footing, head));
            let published = news.map_or(Ok(()), |news| gossip.publish(Topic::ApHead, &news));
            if let Err(error) = published {
                tracing::debug!(%error, "news of AP groups not told");
            }
        }
        tokio::time::sleep(SPACING).await;
        let moved = async {
            let stands = || {
                let desk = inner.desk.lock();
                (desk.footing(), desk.head())
            };
            while told == Some(stands()) {
                if synced.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = moved => {}
            () = inner.untold.notified() => {}
            () = tokio::time::sleep(gossip.head_interval()) => {}
        }
    }
}

/// Takes news in as they come.
async fn listen(inner: Arc<Inner>, gossip: Gossip, followers: Arc<Followers>) {
    let mut deliveries = gossip.subscribe();
    loop {
        match deliveries.recv().await {
            Ok(news) => take_news(&inner, &news, &followers).await,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                for news in gossip.on_topic(Topic::ApHead) {
                    take_news(&inner, &news, &followers).await;
                }
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

async fn take_news(inner: &Inner, news: &News, followers: &Followers) {
    if !news.is_on(Topic::ApHead) || news.from == inner.server {
        return;
    }
    let Some(told) = ApNews::decode(&news.bytes) else {
        tracing::debug!(from = news.from.0, "news of AP groups that cannot be read");
        return;
    };
    inner.origins.note_head(news.from, told.log, told.head);
    let followed = inner.desk.lock().followed(news.from);
    if followed.log == told.log && followed.through == told.head {
        return;
    }
    let closes_gap = followed.log == told.log && (told.after..told.head).contains(&followed.through);
    if closes_gap
        && inner.is_sure()
        && let Some(records) = told.records()
    {
        let through = Followed {
            log: told.log,
            through: told.head,
        };
        let heard = hear(inner, records, Some((news.from, through)), false).await;
        if heard.is_ok_and(|heard| heard.refused.is_none()) {
            inner.origins.accept(news.from);
            return;
        }
    }
    followers.wake(news.from);
}

/// Hands records to the committing task, and counts.
pub(super) async fn hear(
    inner: &Inner,
    records: Vec<Record>,
    followed: Option<(ServerId, Followed)>,
    sync: bool,
) -> Result<Heard, Status> {
    let heard = inner.perform(|done| Job::Hear {
        records,
        followed,
        sync,
        done,
    });
    let heard = heard
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    inner.metrics.received.inc_by(heard.new as u64);
    if let Some(far) = &heard.refused {
        inner.metrics.refused.inc();
        inner.origins.refuse(far, Instant::now());
    }
    Ok(heard)
}

/// Follows one server's log.
async fn follow(inner: Arc<Inner>, server: ServerId, wake: Arc<Notify>) {
    let mut backoff = BACKOFF.0;
    loop {
        match &inner.gossip {
            Some(_) => wake.notified().await,
            None => tokio::time::sleep(POLL_EVERY).await,
        }
        while inner.is_sure() && is_behind(&inner, server) {
            match pull(&inner, server).await {
                Ok(Pulled::More) => backoff = BACKOFF.0,
                Ok(Pulled::Head) => {
                    backoff = BACKOFF.0;
                    break;
                }
                Ok(Pulled::Refused) => tokio::time::sleep(REFUSED_PAUSE).await,
                Err(status) => {
                    inner.metrics.pulls_failed.inc();
                    tracing::debug!(server = server.0, reason = status.message(), "log not pulled");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                    if inner.gone_since(server, Instant::now()).is_some() {
                        break;
                    }
                }
            }
        }
    }
}

/// Whether there may be more than is followed. Without gossip nobody can tell before asking.
fn is_behind(inner: &Inner, server: ServerId) -> bool {
    let followed = inner.desk.lock().followed(server);
    inner.gossip.is_none() || inner.origins.said(server).is_some_and(|said| said != followed)
}

enum Pulled {
    /// There is more.
    More,
    /// That is all for now.
    Head,
    /// Its clock is ahead.
    Refused,
}

async fn pull(inner: &Inner, server: ServerId) -> Result<Pulled, Status> {
    let others = inner.others();
    let other = others.iter().find(|other| other.server == server);
    let other = other.ok_or_else(|| Status::not_found("it is no member"))?;
    let followed = inner.desk.lock().followed(server);
    let mut client = inner.client(other)?;
    let request = ApPullRequest {
        cluster: inner.consensus.peers().cluster().to_owned(),
        from: inner.server.0,
        to: server.0,
        log: followed.log,
        after: followed.through.0,
    };
    let pulled = tokio::time::timeout(CALL_MAX, client.pull(request)).await;
    let pulled: ApPullResponse = pulled
        .map_err(|_| Status::deadline_exceeded("no answer in time"))??
        .into_inner();
    inner.metrics.pulls.inc();
    inner.origins.note_answer(server, Instant::now());
    inner.origins.note_head(server, pulled.log, Seq(pulled.head));
    let reached = Followed {
        log: pulled.log,
        // A log that is shorter than it was lost its end with the disk: what it writes now is new.
        through: Seq(pulled.through.min(pulled.head)),
    };
    let records = decode_all(&pulled.records)?;
    if records.is_empty() && reached == followed {
        return Ok(Pulled::Head);
    }
    let heard = hear(inner, records, Some((server, reached)), false).await?;
    if heard.refused.is_some() {
        return Ok(Pulled::Refused);
    }
    inner.origins.accept(server);
    match reached.through.0 < pulled.head {
        true => Ok(Pulled::More),
        false => Ok(Pulled::Head),
    }
}

/// Records from the network.
///
/// # Errors
/// One of them cannot be read.
pub(super) fn decode_all(records: &[bytes::Bytes]) -> Result<Vec<Record>, Status> {
    let records = records.iter().map(|bytes| Record::decode(bytes));
    let records = records.collect::<Result<_, _>>();
    records.map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Has records written by one more server; whether one did.
pub(super) async fn double(inner: &Inner, records: &[Arc<Record>]) -> bool {
    let records: Vec<bytes::Bytes> = {
        let desk = inner.desk.lock();
        let sessions = records.iter().filter_map(|record| match &record.value {
            Value::Node(Some(node)) => desk.replica.record(&Key::Session(node.session?)).cloned(),
            Value::Node(None) | Value::Override(_) | Value::Session(_) => None,
        });
        let sessions: BTreeMap<Key, Arc<Record>> =
            sessions.map(|record| (record.key.clone(), record)).collect();
        let all = sessions.values().chain(records);
        all.map(|record| record.encode()).collect()
    };
    for other in inner.others_here() {
        match push(inner, &other, records.clone()).await {
            Ok(()) => return true,
            Err(status) => {
                tracing::debug!(
                    server = other.server.0,
                    reason = status.message(),
                    "records not pushed"
                );
            }
        }
    }
    false
}

async fn push(inner: &Inner, other: &Other, records: Vec<bytes::Bytes>) -> Result<(), Status> {
    let request = ApPushRequest {
        cluster: inner.consensus.peers().cluster().to_owned(),
        from: inner.server.0,
        to: other.server.0,
        records,
    };
    inner.client(other)?.push(request).await.map(|_| ())
}
