//! Comparing with one other server at a time, and fetching what differs: brings what the logs did not, also by way of
//! a third server. And how a server that is new, or was away for too long, learns what counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rollcall_core::ap::{Bucket, FarFuture, Record};
use rollcall_core::ids::{GroupName, LogIndex, LogPosition, ServerId, Term};
use rollcall_proto::v1::{ApCompareRequest, ApCompareResponse, ApFetchRequest};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::committer::Job;
use super::desk::{Resolve, milliseconds};
use super::exchange::{CALL_MAX, decode_all, hear};
use super::inner::{Inner, MISSED_MAX, Missed};
use super::members::Other;
use super::peer::{decode_bucket, digest_of_all, encode_bucket, halves, whole};

/// A bucket that differs is fetched when it did so twice in a row and the other's did not move: what is on its way by a log
/// need not be.
const PATIENCE: u8 = 2;
/// One that is written to all the time differs in every round, and each time otherwise. So long it is left to the logs.
const PATIENCE_MOVING: u8 = 4;
/// Buckets that are kept in mind for that.
const DIFFERING_MAX: usize = 10_000;
/// About how often an unsure server asks, and one that has just been started or is back among the others.
const UNSURE_EVERY: Duration = Duration::from_millis(200);
/// So many comparisons come that fast, until one brings all that another server has.
const EARLY_MAX: u32 = 20;
/// How long the first answer of another server may take, which may wait for its disk. Whoever is cut off must not keep those
/// from being asked who are there.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(3);
/// After so many comparisons that did not bring all that another server has, the next one is asked.
const TAKE_ATTEMPTS_MAX: u32 = 50;
/// So long an unsure server waits for one that knows better, and is there, but does not say so again.
const BETTER_WAIT_MAX: Duration = Duration::from_secs(60);

/// What a comparison found.
struct Compared {
    /// No group differed.
    same: bool,
    /// All that the other server had when it was asked is here now.
    complete: bool,
    /// The other server knows what it should.
    sure: bool,
    /// It does not know whether any of its records count.
    unsure: bool,
    /// Groups whose moves it missed.
    missed: Vec<String>,
    /// It acknowledges nothing any more.
    retired: bool,
    /// How far it knows of moves, if it says so.
    followed: Option<u64>,
}

/// How a bucket differed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Differing {
    /// The other's digest.
    theirs: u128,
    /// How often in a row it was this one.
    same: u8,
    /// How often in a row it differed.
    rounds: u8,
}

impl Differing {
    /// It differs again.
    fn again(before: Option<Self>, theirs: u128) -> Self {
        let (same, rounds) = before.map_or((0, 0), |before| {
            (
                if before.theirs == theirs { before.same } else { 0 },
                before.rounds,
            )
        });
        Self {
            theirs,
            same: same.saturating_add(1),
            rounds: rounds.saturating_add(1),
        }
    }

    /// Whether what is missing is not likely to come by itself.
    fn is_lasting(self, patience: u8) -> bool {
        self.same >= patience || self.rounds >= PATIENCE_MOVING
    }
}

/// One server's side of the comparisons.
struct Repairer {
    inner: Arc<Inner>,
    /// Buckets that differed in this comparison, and are left to the logs.
    differing: BTreeMap<Bucket, Differing>,
    /// Those of the comparison before.
    differed: BTreeMap<Bucket, Differing>,
    /// While unsure, or while it misses records: servers that do not know better.
    clueless: BTreeSet<ServerId>,
    /// What they were asked about was missed then.
    missed: Option<Missed>,
    /// Comparisons yet to come that need not wait: what happened while this server was away is elsewhere.
    early: u32,
    /// While unsure: servers that know better, and when they last said so.
    betters: BTreeMap<ServerId, Instant>,
    /// While unsure: servers that miss a group's move, and since when they say so.
    missing: BTreeMap<ServerId, Instant>,
    /// While unsure: how far this server knew of moves when it first asked. Its records may be of groups of which whoever knows
    /// less has never heard.
    since: Option<u64>,
}

/// What another server is to one that is unsure.
enum Learned {
    /// It knew what counts. That is here now.
    All,
    /// It will know: ask again.
    NotYet,
    /// It does not know either.
    Nothing,
}

/// Fetches what another server has that is told no more writes, until all of it is here and on disk.
///
/// # Errors
/// It was not `until` then, or the other was started anew, and takes writes.
pub(super) async fn take_all(
    inner: Arc<Inner>,
    other: &Other,
    until: tokio::time::Instant,
) -> Result<(), Status> {
    let mut repairer = Repairer::new(inner.clone());
    loop {
        let missing = match repairer.compare(other, 1).await {
            Ok(compared) if !compared.retired => return Err(Status::aborted("it takes writes again")),
            Ok(compared) if compared.complete && compared.sure => break,
            Ok(compared) if compared.complete => {
                Status::unavailable("it does not know yet which of its records count")
            }
            Ok(_) => Status::aborted("it has records that were not taken"),
            Err(status) => status,
        };
        if tokio::time::Instant::now() >= until {
            return Err(missing);
        }
        tokio::time::sleep(UNSURE_EVERY).await;
    }
    hear(&inner, Vec::new(), None, true).await.map(drop)
}

/// Compares now and then, until `stop`.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut repairer = Repairer::new(inner.clone());
    loop {
        let sure = inner.is_sure();
        let (pause, patience) = if sure && !inner.misses_records() && repairer.early == 0 {
            (jittered(inner.config.repair_interval), PATIENCE)
        } else {
            (jittered(UNSURE_EVERY), 1)
        };
        let patience = tokio::select! {
            () = stop.cancelled() => return,
            () = inner.returned.notified() => {
                repairer.early = EARLY_MAX;
                1
            }
            () = tokio::time::sleep(pause) => patience,
        };
        let round = async {
            match sure {
                true => repairer.repair(patience).await,
                false => repairer.ask_what_counts().await,
            }
        };
        if stop.run_until_cancelled(round).await.is_none() {
            return;
        }
    }
}

/// Servers that were started together do not stay in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.75..1.25))
}

impl Repairer {
    fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            differing: BTreeMap::new(),
            differed: BTreeMap::new(),
            clueless: BTreeSet::new(),
            missed: None,
            early: EARLY_MAX,
            betters: BTreeMap::new(),
            missing: BTreeMap::new(),
            since: None,
        }
    }

    /// Compares with one of the others: the first that answers.
    async fn repair(&mut self, patience: u8) {
        self.early = self.early.saturating_sub(1);
        for other in self.inner.others_here() {
            let asked_at = Instant::now();
            match self.compare(&other, patience).await {
                Ok(compared) => {
                    // One that gave a part only may be the one that has the rest, and one that has not heard of the move may
                    // have missed it as well.
                    if compared.complete && self.inner.is_told_of(compared.followed) {
                        self.on_complete(other.server, &compared, asked_at).await;
                    }
                    return self.note(compared.same && compared.sure, asked_at);
                }
                Err(status) => {
                    tracing::debug!(server = other.server.0, reason = status.message(), "not compared");
                }
            }
        }
    }

    /// All that another server has is here. Of what this one missed that settles the groups that the other did not miss: two of
    /// which each has what the other misses end it for each other.
    async fn on_complete(&mut self, other: ServerId, compared: &Compared, asked_at: Instant) {
        // One that does not know yet whether its records count may have them all.
        let left = match compared.unsure {
            true => self.inner.missed(),
            false => self.inner.note_fetched(asked_at, &compared.missed),
        };
        let misses = |group: &GroupName| compared.missed.iter().any(|theirs| theirs == group.as_str());
        let groups = || left.iter().flat_map(|missed| &missed.groups);
        let has_all = !compared.unsure && groups().next().is_none();
        if has_all || (groups().all(misses) && self.is_known_to_nobody(left.as_ref(), other)) {
            self.early = 0;
            if left.is_some() {
                self.resolve(Resolve::Fetched).await;
                self.inner.end_missing(left.as_ref());
            }
        }
    }

    /// Whether nobody has what this server missed: all that are there, with this one a majority, were asked and miss it
    /// as well. A group that moved is on the disks of a majority, so there is nothing of it.
    fn is_known_to_nobody(&mut self, missed: Option<&Missed>, asked: ServerId) -> bool {
        if self.missed.as_ref() != missed {
            self.clueless.clear();
            self.missed = missed.cloned();
        }
        self.clueless.insert(asked);
        let members = self.inner.consensus.members();
        self.clueless
            .retain(|server| members.iter().any(|member| member.server == *server));
        let here = self.inner.others_here();
        (self.clueless.len() + 1) * 2 > members.len()
            && here.iter().all(|other| self.clueless.contains(&other.server))
    }

    /// What the other has written since it was asked is not here, however long its answer took.
    fn note(&mut self, agreed: bool, asked_at: Instant) {
        if agreed {
            self.differing.clear();
            let mut agreed_at = self.inner.agreed_at.lock();
            *agreed_at = (*agreed_at).max(Some(asked_at));
        }
    }

    /// A server that is new or was away for too long takes what a server has that is sure. If a majority is not, nor
    /// knows better, nobody does: what it has counts.
    async fn ask_what_counts(&mut self) {
        let members = self.inner.consensus.members();
        if !members.iter().any(|member| member.server == self.inner.server)
            || !self.inner.defined.load(Ordering::Acquire)
        {
            return;
        }
        self.since
            .get_or_insert_with(|| self.inner.followed.load(Ordering::Acquire));
        let mut waits = false;
        for other in self.inner.others() {
            match self.take_from(&other).await {
                Ok(Learned::All) => return,
                Ok(Learned::NotYet) => {
                    waits = true;
                    self.clueless.remove(&other.server);
                }
                Ok(Learned::Nothing) => {
                    self.betters.remove(&other.server);
                    self.clueless.insert(other.server);
                }
                Err(status) => {
                    waits |= self.is_waited_for(other.server);
                    tracing::debug!(
                        server = other.server.0,
                        reason = status.message(),
                        "not asked what counts"
                    );
                }
            }
        }
        self.clueless
            .retain(|server| members.iter().any(|member| member.server == *server));
        if !waits && (self.clueless.len() + 1) * 2 > members.len() {
            self.resolve(Resolve::Keep).await;
        }
    }

    /// Whether it knows better, and is there, though it did not answer now.
    fn is_waited_for(&self, server: ServerId) -> bool {
        let now = Instant::now();
        let said_at = self.betters.get(&server);
        said_at.is_some_and(|at| now - *at < BETTER_WAIT_MAX) && self.inner.gone_since(server, now).is_none()
    }

    /// Whether a server that is sure but for a group's move has said so for long enough. It may be this one that has what is in the
    /// group, and then both would wait for each other.
    fn has_missed_for_long(&mut self, server: ServerId, asked: &ApCompareResponse) -> bool {
        let own = self.inner.missed_groups();
        let is_there = |group: &String| !own.iter().any(|missed| missed.as_str() == group);
        if asked.unsure || !asked.missed.iter().any(is_there) {
            self.missing.remove(&server);
            return false;
        }
        let since = self.missing.entry(server).or_insert_with(Instant::now);
        since.elapsed() >= MISSED_MAX
    }

    /// Takes what the other has, if it is sure. What this one had is on its disk until all of it is here.
    ///
    /// # Errors
    /// It did not answer, or not all of it was taken, again and again.
    async fn take_from(&mut self, other: &Other) -> Result<Learned, Status> {
        let asks_to_keep = self.inner.desk.lock().keeps_ends(self.inner.now().wall_ms);
        let asked = self.ask(other, None, 0).await?;
        if asked.followed < self.since.filter(|_| asked.followed.is_some()) {
            return Ok(Learned::NotYet);
        }
        if !is_sure_for(&asked, &self.inner.missed_groups()) {
            // It was away as well, but went on when this one was gone already.
            let outlived = self.inner.desk.lock().is_outlived(asked.forgot_before);
            let misses = self.has_missed_for_long(other.server, &asked);
            if outlived && asked.forgot_before.is_some() && !misses {
                self.betters.insert(other.server, Instant::now());
                return Ok(Learned::NotYet);
            }
            return Ok(Learned::Nothing);
        }
        self.clueless.remove(&other.server);
        self.missing.remove(&other.server);
        if self.is_outlived_by(&asked) {
            self.betters.insert(other.server, Instant::now());
        } else if !asks_to_keep {
            // What it has not forgotten until now it could forget before it is fetched.
            self.inner.desk.lock().keep_ends(self.inner.now().wall_ms);
            return Ok(Learned::NotYet);
        }
        self.goes_on_fetching(&asked);
        for _ in 0..TAKE_ATTEMPTS_MAX {
            if self.compare(other, 1).await?.complete {
                // Asked behind it: what it has not forgotten by now is here. What it writes from now on comes by its log.
                let asked = self.ask(other, None, 0).await?;
                if !is_sure_for(&asked, &self.inner.missed_groups()) {
                    return Err(Status::aborted("it missed a group meanwhile"));
                }
                if self.goes_on_fetching(&asked) {
                    let forgot_before_ms = asked.forgot_before;
                    let resolve = match self.is_outlived_by(&asked) {
                        true => Resolve::Drop { forgot_before_ms },
                        false => Resolve::TakeUp,
                    };
                    self.resolve(resolve).await;
                    return Ok(Learned::All);
                }
            }
            tokio::time::sleep(UNSURE_EVERY).await;
        }
        // It may hold what is not credible: its own clock is wrong, and the others have not taken that either.
        self.betters.remove(&other.server);
        Err(Status::aborted("it has records that are not taken"))
    }

    /// Whether a sure server knows better than this one.
    fn is_outlived_by(&self, asked: &ApCompareResponse) -> bool {
        self.inner.desk.lock().is_outlived_by_sure(asked.forgot_before)
    }

    /// Whether what was fetched until now counts.
    fn goes_on_fetching(&self, asked: &ApCompareResponse) -> bool {
        let now_ms = self.inner.now().wall_ms;
        let mut desk = self.inner.desk.lock();
        desk.goes_on_fetching(asked.forgot_before, now_ms)
    }

    async fn resolve(&self, resolve: Resolve) {
        let resolved = self.inner.perform(|done| Job::Resolve { resolve, done }).await;
        if let Err(error) = resolved {
            tracing::debug!(%error, ?resolve, "not resolved");
        }
    }

    /// Compares everything with one other server and fetches what differs and is not likely to come by itself.
    async fn compare(&mut self, other: &Other, patience: u8) -> Result<Compared, Status> {
        self.inner.metrics.comparisons.inc();
        self.differed = std::mem::take(&mut self.differing);
        let ours = self.inner.desk.lock().gathered().group_digests();
        let answer = self.ask(other, None, digest_of_all(&ours)).await?;
        let ours: BTreeMap<String, u128> = ours.into_iter().collect();
        let mut complete = true;
        for digest in &answer.digests {
            let Ok(group) = std::str::from_utf8(&digest.name) else {
                return Err(Status::invalid_argument("the name of a group is no text"));
            };
            if ours.get(group) != Some(&whole(digest.high, digest.low)) {
                complete &= self.compare_group(other, group, patience).await?;
            }
        }
        Ok(Compared {
            same: answer.same,
            complete,
            sure: answer.sure,
            // Earlier programs do not say why they are not sure.
            unsure: answer.unsure || !answer.sure && answer.missed.is_empty(),
            missed: answer.missed,
            retired: answer.retired,
            followed: answer.followed,
        })
    }

    /// Whether all that the other has of it is here now.
    async fn compare_group(&mut self, other: &Other, group: &str, patience: u8) -> Result<bool, Status> {
        let (digest, ours) = {
            let desk = self.inner.desk.lock();
            let ours = desk.gathered();
            (ours.group_digest(group), ours.bucket_digests(group))
        };
        let ours: BTreeMap<Bucket, u128> = ours.into_iter().collect();
        let mut complete = true;
        for theirs in self.ask(other, Some(group), digest).await?.digests {
            let bucket = decode_bucket(&theirs.name)?;
            let digest = whole(theirs.high, theirs.low);
            if ours.get(&bucket) != Some(&digest) {
                complete &= self.is_lasting(&bucket, digest, patience) && self.fetch(other, &bucket).await?;
            }
        }
        Ok(complete)
    }

    /// Whether a bucket has differed long enough.
    fn is_lasting(&mut self, bucket: &Bucket, theirs: u128, patience: u8) -> bool {
        if patience <= 1 || self.differing.len() >= DIFFERING_MAX {
            return true;
        }
        let differing = Differing::again(self.differed.remove(bucket), theirs);
        let lasting = differing.is_lasting(patience);
        if !lasting {
            self.differing.insert(bucket.clone(), differing);
        }
        lasting
    }

    async fn ask(
        &self,
        other: &Other,
        group: Option<&str>,
        digest: u128,
    ) -> Result<ApCompareResponse, Status> {
        let (high, low) = halves(digest);
        let request = ApCompareRequest {
            cluster: self.inner.consensus.peers().cluster().to_owned(),
            from: self.inner.server.0,
            to: other.server.0,
            group: group.unwrap_or_default().to_owned(),
            buckets: group.is_some(),
            high,
            low,
            keeps_until: self.inner.desk.lock().keeps_until_ms(),
        };
        let mut client = self.inner.client(other)?;
        let bound = if group.is_some() {
            CALL_MAX
        } else {
            FIRST_ANSWER_MAX
        };
        let answer = within(bound, client.compare(request)).await?;
        let now = Instant::now();
        self.inner.origins.note_answer(other.server, now);
        let decided = answer.removed_at.map(|index| LogPosition {
            term: Term(answer.removed_at_term),
            index: LogIndex(index),
        });
        // Who asks may know better than a server that is behind.
        if answer.member && self.inner.consensus.keeps_member(self.inner.server) {
            self.inner.desk.lock().stay_if_forgotten(now);
        } else if self.inner.consensus.is_removed_by(decided) {
            let mut desk = self.inner.desk.lock();
            if !desk.is_retired() {
                tracing::warn!(
                    by = other.server.0,
                    "AP groups: this server was removed from the cluster and takes no writes any more; stop it"
                );
            }
            desk.retire(now);
        }
        Ok(answer)
    }

    /// Whether all of it was taken.
    async fn fetch(&self, other: &Other, bucket: &Bucket) -> Result<bool, Status> {
        let mut client = self.inner.client(other)?;
        let mut skip = 0;
        let mut complete = true;
        loop {
            let request = ApFetchRequest {
                cluster: self.inner.consensus.peers().cluster().to_owned(),
                from: self.inner.server.0,
                to: other.server.0,
                bucket: encode_bucket(bucket).into(),
                skip,
            };
            let piece = within(CALL_MAX, client.fetch(request)).await?;
            skip += piece.records.len() as u64;
            let records = self.credible(decode_all(&piece.records)?);
            complete &= records.len() == piece.records.len();
            let heard = hear(&self.inner, records, None, false).await?;
            complete &= heard.refused.is_none();
            self.inner.metrics.repaired.inc_by(heard.new as u64);
            if !piece.more || piece.records.is_empty() {
                return Ok(complete);
            }
        }
    }

    /// Leaves out what is too far ahead, so that the rest is taken.
    fn credible(&self, mut records: Vec<Record>) -> Vec<Record> {
        let now = self.inner.now();
        let ahead_max_ms = milliseconds(self.inner.config.clock_skew_max);
        records.retain(|record| {
            let checked = FarFuture::check(record.stamp, now.wall_ms, ahead_max_ms);
            if let Err(far) = &checked {
                self.inner.metrics.refused.inc();
                self.inner.origins.refuse(far, now.instant);
            }
            checked.is_ok()
        });
        records
    }
}

/// Whether a server that is sure of all, but of groups which whoever asks misses as well, is sure for that one. Else they would
/// wait for each other, and for nothing: of those groups neither has anything.
fn is_sure_for(asked: &ApCompareResponse, missed: &BTreeSet<GroupName>) -> bool {
    let misses = |group: &String| missed.iter().any(|own| own.as_str() == group);
    let only_the_same = !asked.missed.is_empty() && asked.missed.iter().all(misses);
    asked.sure || (!asked.unsure && only_the_same)
}

pub(super) async fn within<T>(
    bound: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = tokio::time::timeout(bound, call).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))?;
    Ok(answer?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_misses_no_more_than_who_asks_is_sure_for_that_one() {
        let missed = |names: &[&str]| {
            names
                .iter()
                .map(|name| name.parse().expect("a good name"))
                .collect()
        };
        let answer = |missed: &[&str], unsure: bool| ApCompareResponse {
            missed: missed.iter().map(|name| (*name).to_owned()).collect(),
            sure: missed.is_empty() && !unsure,
            unsure,
            ..ApCompareResponse::default()
        };
        assert!(is_sure_for(&answer(&[], false), &missed(&[])));
        assert!(is_sure_for(&answer(&["a"], false), &missed(&["a", "b"])));
        assert!(!is_sure_for(&answer(&["a"], false), &missed(&["b"])));
        assert!(!is_sure_for(&answer(&["a", "c"], false), &missed(&["a", "b"])));
        assert!(!is_sure_for(&answer(&["a"], true), &missed(&["a"])));
        let earlier_program = ApCompareResponse::default();
        assert!(!is_sure_for(&earlier_program, &missed(&["a"])));
    }

    #[test]
    fn a_bucket_that_moves_is_left_to_the_logs_for_longer_but_not_for_ever() {
        let mut still = Differing::again(None, 7);
        assert!(!still.is_lasting(PATIENCE));
        still = Differing::again(Some(still), 7);
        assert!(still.is_lasting(PATIENCE));

        let mut moving = None;
        let rounds = (0..100).take_while(|theirs| {
            let differing = Differing::again(moving, *theirs);
            moving = Some(differing);
            !differing.is_lasting(PATIENCE)
        });
        assert_eq!(rounds.count() + 1, usize::from(PATIENCE_MOVING));
    }
}
