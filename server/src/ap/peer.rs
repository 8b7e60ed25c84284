//! The peer listener's service for records of AP groups. What it tells is on this server's disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rollcall_core::ap::{Bucket, Key, Record, Seq};
use rollcall_core::ids::ServerId;
use rollcall_proto::v1::ap_server::Ap;
use rollcall_proto::v1::{
    ApCompareRequest, ApCompareResponse, ApDigest, ApFetchRequest, ApFetchResponse, ApPullRequest,
    ApPullResponse, ApPushRequest, ApPushResponse, ApRetireRequest, ApRetireResponse, ApStandingRequest,
    ApStandingResponse,
};
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_128;

use super::desk::{Desk, Footing};
use super::exchange::{decode_all, hear};
use super::inner::Inner;
use super::mover;

/// About how many bytes of records one answer holds.
const ANSWER_BYTES: usize = 1 << 20;
/// How long it is waited for that the disk knows that this server retires.
const NOTE_MAX: Duration = Duration::from_secs(1);

/// Answers the other servers.
#[derive(Clone)]
pub struct ApDoor {
    inner: Arc<Inner>,
}

impl ApDoor {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    fn check(&self, cluster: &str, from: u64, to: u64) -> Result<(), Status> {
        self.inner.consensus.peers().check(cluster, from, to)
    }

    /// Whether these stay here. Those of a group that, as far as this server knows, does not live by records are forgotten.
    fn keeps(&self, records: &[Record]) -> bool {
        let view = self.inner.view.read();
        records.iter().all(|record| match &record.key {
            Key::Node(key) | Key::Override(key) => view.group(&key.service.group).is_some(),
            Key::Session(_) => true,
        })
    }
}

/// One digest of everything.
pub(super) fn digest_of_all(digests: &[(String, u128)]) -> u128 {
    let bytes = postcard::to_allocvec(digests).expect("plain values always encode");
    xxh3_128(&bytes)
}

pub(super) fn halves(digest: u128) -> (u64, u64) {
    ((digest >> 64) as u64, digest as u64)
}

pub(super) fn whole(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

fn wire_digest(name: Vec<u8>, digest: u128) -> ApDigest {
    let (high, low) = halves(digest);
    ApDigest {
        name: name.into(),
        high,
        low,
    }
}

pub(super) fn encode_bucket(bucket: &Bucket) -> Vec<u8> {
    postcard::to_allocvec(bucket).expect("plain keys always encode")
}

pub(super) fn decode_bucket(bytes: &[u8]) -> Result<Bucket, Status> {
    postcard::from_bytes(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn compare(desk: &Desk, asked: &ApCompareRequest) -> ApCompareResponse {
    let theirs = whole(asked.high, asked.low);
    let mut answer = ApCompareResponse {
        sure: desk.footing() == Footing::Sure,
        forgot_before: Some(desk.forgot_before_ms()),
        unsure: desk.footing() == Footing::Unsure,
        retired: desk.is_retired(),
        ..ApCompareResponse::default()
    };
    let Some(told) = desk.told() else {
        return answer;
    };
    if asked.buckets {
        answer.same = told.group_digest(&asked.group) == theirs;
        if !answer.same {
            let buckets = told.bucket_digests(&asked.group);
            let digests = buckets.iter();
            answer.digests = digests
                .map(|(bucket, digest)| wire_digest(encode_bucket(bucket), *digest))
                .collect();
        }
    } else {
        let groups = told.group_digests();
        answer.same = digest_of_all(&groups) == theirs;
        if !answer.same {
            let digests = groups.into_iter();
            answer.digests = digests
                .map(|(name, digest)| wire_digest(name.into_bytes(), digest))
                .collect();
        }
    }
    answer
}

/// The next records, up to about as many bytes as an answer holds, at least one.
fn piece(records: &[Arc<Record>], skip: usize) -> ApFetchResponse {
    let mut answer = ApFetchResponse::default();
    let mut bytes = 0;
    for record in records.iter().skip(skip) {
        if bytes >= ANSWER_BYTES {
            answer.more = true;
            break;
        }
        let encoded: Bytes = record.encode();
        bytes += encoded.len();
        answer.records.push(encoded);
    }
    answer
}

#[tonic::async_trait]
impl Ap for ApDoor {
    async fn pull(&self, request: Request<ApPullRequest>) -> Result<Response<ApPullResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        #[cfg(test)]
        self.inner.mute.check(&self.inner.mute.pull)?;
        if !self.inner.is_sure() {
            // Its numbers are there, and what they stand for is not: it would be held to be followed.
            return Err(Status::unavailable("this server does not know yet what counts"));
        }
        let (log, range, head) = self
            .inner
            .read_synced(|desk| {
                let after = if asked.log == desk.log() { asked.after } else { 0 };
                let range = desk.replica.range(Seq(after), ANSWER_BYTES);
                (desk.log(), range, desk.replica.head())
            })
            .await?;
        Ok(Response::new(ApPullResponse {
            log,
            records: range.encoded().collect(),
            through: range.through.0,
            head: head.0,
        }))
    }

    async fn compare(
        &self,
        request: Request<ApCompareRequest>,
    ) -> Result<Response<ApCompareResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        #[cfg(test)]
        self.inner.mute.check(&self.inner.mute.compare)?;
        let now_ms = self.inner.now().wall_ms;
        // Before it is said what was forgotten: who asks counts on that.
        self.inner.desk.lock().keep_ends_until(asked.keeps_until, now_ms);
        // And this before it is said what was missed, as far as that is known.
        let followed = self.inner.followed.load(Ordering::Acquire);
        let mut missed = self.inner.missed_groups();
        let mut answer = self.inner.read_synced(|desk| compare(desk, &asked)).await?;
        // What was missed when that was read is not in it, though it may be here by now.
        missed.extend(self.inner.missed_groups());
        answer.followed = Some(followed);
        answer.sure &= missed.is_empty();
        answer.missed = missed.iter().map(ToString::to_string).collect();
        answer.member = self.inner.consensus.keeps_member(ServerId(asked.from));
        if let Some(decided) = self.inner.consensus.removed_at(ServerId(asked.from)) {
            answer.removed_at_term = decided.term.0;
            answer.removed_at = Some(decided.index.0);
        }
        Ok(Response::new(answer))
    }

    async fn fetch(&self, request: Request<ApFetchRequest>) -> Result<Response<ApFetchResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        #[cfg(test)]
        self.inner.mute.check(&self.inner.mute.fetch)?;
        let bucket = decode_bucket(&asked.bucket)?;
        let told = |desk: &Desk| desk.told().map(|told| told.bucket(&bucket));
        let records = self.inner.read_synced(told).await?.unwrap_or_default();
        let skip = usize::try_from(asked.skip).unwrap_or(usize::MAX);
        Ok(Response::new(piece(&records, skip)))
    }

    async fn standing(
        &self,
        request: Request<ApStandingRequest>,
    ) -> Result<Response<ApStandingResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        Ok(Response::new(mover::answer(&self.inner, &asked).await?))
    }

    async fn retire(&self, request: Request<ApRetireRequest>) -> Result<Response<ApRetireResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        tracing::info!(
            by = asked.from,
            stays = asked.stays,
            "AP groups: this server is about to be removed and takes no writes, or stays after all"
        );
        {
            let mut desk = self.inner.desk.lock();
            match asked.stays {
                true => desk.stay(),
                false => desk.retire(Instant::now()),
            }
        }
        // A disk that takes nothing any more does not hold this up; what is fetched waits for it.
        let noted = tokio::time::timeout(NOTE_MAX, hear(&self.inner, Vec::new(), None, true)).await;
        let noted = noted.unwrap_or_else(|_| Err(Status::deadline_exceeded("the disk takes nothing")));
        if let Err(reason) = noted {
            tracing::warn!(
                reason = reason.message(),
                "AP groups: that this server is about to be removed, or stays, is not on disk: started anew it may not know"
            );
        }
        Ok(Response::new(ApRetireResponse {}))
    }

    async fn push(&self, request: Request<ApPushRequest>) -> Result<Response<ApPushResponse>, Status> {
        let asked = request.into_inner();
        self.check(&asked.cluster, asked.from, asked.to)?;
        let is_retired = self.inner.desk.lock().is_retired();
        if is_retired || !self.inner.is_sure() || self.inner.consensus.disk_is_full() {
            return Err(Status::unavailable("this server takes no records now"));
        }
        let records = decode_all(&asked.records)?;
        if !self.keeps(&records) {
            return Err(Status::unavailable(
                "this server does not know the group of a record",
            ));
        }
        let heard = hear(&self.inner, records, None, true).await?;
        if self.inner.desk.lock().is_retired() {
            // Whoever takes over what is here may have looked before.
            return Err(Status::unavailable(
                "this server is being removed from the cluster",
            ));
        }
        match heard.refused {
            None => Ok(Response::new(ApPushResponse {})),
            Some(far) => Err(Status::failed_precondition(format!("RC-301: {far}"))),
        }
    }
}
