//! Sessions: their streams, and the unary calls about them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rollcall_core::ap::SessionSeed;
use rollcall_core::directory::{GroupMode, Refusal, Session};
use rollcall_core::ids::SessionId;
use rollcall_proto::v1::{self, sessions_server::Sessions};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::attend;
use super::convert;
use super::doors::Doors;
use super::lease;
use super::read::Reader;
use super::registry::page;
use super::speaker::lives_by_records_alone;
use super::status::{self, DoorError, of_refusal};
use crate::access::equal;
use crate::raft::{Freshness, SessionDeadline};

/// How long to wait for the leader's word on deadlines; they are told for information only.
const DEADLINES_WAIT: Duration = Duration::from_millis(500);

/// How long to wait for the record of a session that nobody here knows.
const RECORD_WAIT: Duration = Duration::from_millis(500);

/// What is stored of a secret.
pub(super) fn digest(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Judges a secret by what this server has, if that may be shown. `None`: it does not know the session.
pub(super) fn verify_here(
    reader: &Reader,
    session: SessionId,
    secret: &[u8; 16],
) -> Option<Result<SessionSeed, v1::Error>> {
    Some(judge(seed_of(reader, session)?, secret))
}

/// What this server has of a session, if that may be shown.
pub(super) fn seed_of(reader: &Reader, session: SessionId) -> Option<SessionSeed> {
    let ready = reader.check_ready().is_ok();
    let known = ready.then(|| in_log(reader, session)).flatten();
    known.or_else(|| by_records(reader, session))
}

fn judge(seed: SessionSeed, secret: &[u8; 16]) -> Result<SessionSeed, v1::Error> {
    if equal(&seed.secret_digest, &digest(secret)) {
        Ok(seed)
    } else {
        Err(DoorError::WrongSecret { session: seed.id }.into())
    }
}

fn in_log(reader: &Reader, session: SessionId) -> Option<SessionSeed> {
    let directory = reader.consensus().directory().read();
    let known = directory.session(session)?;
    Some(SessionSeed {
        id: session,
        secret_digest: known.secret_digest,
        ttl_ms: known.ttl_ms,
        client: known.client.clone(),
    })
}

fn by_records(reader: &Reader, session: SessionId) -> Option<SessionSeed> {
    reader.check_view_ready().ok()?;
    let known = reader.ap().session(session)?;
    Some(SessionSeed {
        id: session,
        secret_digest: known.secret_digest,
        ttl_ms: known.ttl_ms,
        client: known.client,
    })
}

/// Judges a secret. A session unknown here may have been opened elsewhere a moment ago: the leader is asked, or
/// its record is waited for, before it is called dead.
pub(super) async fn verify(
    reader: &Reader,
    session: SessionId,
    secret: &[u8; 16],
    timeout: Duration,
) -> Result<SessionSeed, v1::Error> {
    if let Some(verdict) = verify_here(reader, session, secret) {
        return verdict;
    }
    if lives_by_records_alone(reader, session) {
        reader.check_view_ready()?;
        await_record(reader, session).await;
    } else {
        let deadline = Instant::now() + timeout;
        let confirmed = reader
            .consensus()
            .confirm(Freshness::Linearizable, deadline)
            .await;
        confirmed.map_err(|failure| status::of_read(&failure))?;
    }
    // What was confirmed may be read, also if this server has yet to be called ready.
    match in_log(reader, session).or_else(|| by_records(reader, session)) {
        Some(seed) => judge(seed, secret),
        None => {
            // It may live on by records that this server has yet to fetch.
            if may_have_records(reader) {
                reader.check_view_ready()?;
            }
            Err(of_refusal(&Refusal::SessionNotFound { session }))
        }
    }
}

/// Whether any group keeps its nodes by records, or is about to.
fn may_have_records(reader: &Reader) -> bool {
    let directory = reader.consensus().directory().read();
    let mut groups = directory.groups();
    groups.any(|group| group.settings.mode == GroupMode::Ap || group.moving.is_some())
}

/// Waits a moment for a session's record to come from the server that has it.
async fn await_record(reader: &Reader, session: SessionId) {
    let mut head = reader.ap().applied_head();
    let arrived = async {
        while reader.ap().session(session).is_none() {
            if head.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(RECORD_WAIT, arrived).await;
}

/// When sessions lapse, as the leader judges it; empty if it cannot be asked.
pub(super) async fn deadlines(reader: &Reader, sessions: Vec<SessionId>) -> Vec<SessionDeadline> {
    let deadline = Instant::now() + DEADLINES_WAIT;
    match reader.consensus().session_deadlines(sessions, deadline).await {
        Ok(deadlines) => deadlines,
        Err(error) => {
            tracing::debug!(%error, "no deadlines");
            Vec::new()
        }
    }
}

impl Doors {
    async fn list_sessions(
        &self,
        request: v1::ListSessionsRequest,
    ) -> Result<v1::ListSessionsResponse, v1::Error> {
        let limit = page(request.limit);
        let grounds = self.reader.admit(request.read.as_ref()).await?;
        let (mut listed, revision) = {
            let directory = self.reader.consensus().directory().read();
            let listed = directory
                .sessions_after(SessionId(request.after))
                .take(limit + 1)
                .map(|session| (session.id, summary(session)));
            (listed.collect::<BTreeMap<_, _>>(), directory.revision())
        };
        let mut header = self.reader.header(grounds, revision);
        if self.reader.check_view_ready().is_ok() {
            let view = self.reader.ap().view().read();
            let behind = view.sessions_after(SessionId(request.after));
            for session in behind.take(limit + 1) {
                header.epoch = self.reader.ap().epoch();
                match listed.entry(session.id) {
                    Entry::Occupied(mut known) => {
                        known.get_mut().nodes += convert::small(session.nodes.len())
                    }
                    // Of its own revision in the view nobody else could make anything.
                    Entry::Vacant(place) => {
                        place.insert(v1::SessionSummary {
                            opened_revision: 0,
                            ..summary(session)
                        });
                    }
                }
            }
        }
        let more = listed.len() > limit;
        let mut listed: Vec<_> = listed.into_values().take(limit).collect();
        self.tell_deadlines(&mut listed).await;
        Ok(v1::ListSessionsResponse {
            header: Some(header),
            sessions: listed,
            more,
        })
    }

    /// When each lapses: as the leader judges it, and for those that live by records alone as this server does, if it
    /// is their holder.
    async fn tell_deadlines(&self, listed: &mut [v1::SessionSummary]) {
        let ids = listed.iter().map(|summary| SessionId(summary.session));
        let (ours, leaders): (Vec<_>, Vec<_>) =
            ids.partition(|session| lives_by_records_alone(&self.reader, *session));
        let mut judged = deadlines(&self.reader, leaders).await;
        judged.extend(self.reader.ap().deadlines(&ours));
        for summary in listed {
            let session = SessionId(summary.session);
            if let Some(deadline) = judged.iter().find(|deadline| deadline.session == session) {
                summary.lapses_in_ms = convert::milliseconds(deadline.lapses_in).max(1);
                summary.holder = deadline.holder.map_or(0, |holder| holder.0);
            }
            if let Some(record) = self.reader.ap().session(session) {
                summary.holder = record.holder.0;
            }
        }
    }

    async fn end_session(&self, request: v1::EndSessionRequest) -> Result<v1::WriteResponse, v1::Error> {
        let session = convert::session_from(request.session).map_err(|e| of_refusal(&e))?;
        let written = lease::close(self, session, request.options.as_ref()).await?;
        Ok(self.writer.response(&written))
    }
}

fn summary(session: &Arc<Session>) -> v1::SessionSummary {
    v1::SessionSummary {
        session: session.id.0,
        client: session.client.clone(),
        ttl_ms: session.ttl_ms.into(),
        nodes: convert::small(session.nodes.len()),
        opened_revision: session.opened.0,
        lapses_in_ms: 0,
        holder: 0,
    }
}

#[tonic::async_trait]
impl Sessions for Doors {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn attend(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let by = self.principal(&request);
        let by = self.answer("attend", by)?.into_inner();
        Ok(Response::new(Box::pin(attend::attend(
            self.clone(),
            by,
            request.into_inner(),
        ))))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let answer = match self.principal(&request) {
            Ok(_) => Doors::list_sessions(self, request.into_inner()).await,
            Err(error) => Err(error),
        };
        self.answer("list_sessions", answer)
    }

    async fn end_session(
        &self,
        request: Request<v1::EndSessionRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.check_operator("end_session", &request)?;
        let answer = Doors::end_session(self, request.into_inner()).await;
        self.answer("end_session", answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_differ_in_any_byte() {
        let one = digest(&[1; 16]);
        assert!(equal(&one, &digest(&[1; 16])));
        for at in 0..32 {
            let mut other = one;
            other[at] ^= 1;
            assert!(!equal(&one, &other));
        }
    }
}
