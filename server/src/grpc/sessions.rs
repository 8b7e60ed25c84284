//! Sessions: their streams, and the unary calls about them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rollcall_core::directory::{Command, Refusal, Session};
use rollcall_core::ids::SessionId;
use rollcall_proto::v1::{self, sessions_server::Sessions};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::attend;
use super::convert;
use super::doors::Doors;
use super::read::Reader;
use super::registry::page;
use super::status::{self, DoorError, of_refusal};
use crate::raft::{Freshness, SessionDeadline};

/// How long to wait for the leader's word on deadlines; they are told for information only.
const DEADLINES_WAIT: Duration = Duration::from_millis(500);

/// What is stored of a secret.
pub(super) fn digest(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Takes the same time wherever the first difference is.
fn equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.iter()
        .zip(other)
        .fold(0, |difference, (a, b)| difference | (a ^ b))
        == 0
}

/// Judges a secret by what this server has applied, if that may be shown. `None`: ask the leader first.
pub(super) fn verify_here(
    reader: &Reader,
    session: SessionId,
    secret: &[u8; 16],
) -> Option<Result<Arc<Session>, v1::Error>> {
    reader.check_ready().ok()?;
    verify_local(reader, session, secret)
}

/// Judges a secret by what this server has applied. `None`: it does not know the session.
fn verify_local(
    reader: &Reader,
    session: SessionId,
    secret: &[u8; 16],
) -> Option<Result<Arc<Session>, v1::Error>> {
    let known = reader.consensus().directory().read().session(session).cloned()?;
    let own = equal(&known.secret_digest, &digest(secret));
    Some(if own {
        Ok(known)
    } else {
        Err(DoorError::WrongSecret { session }.into())
    })
}

/// Judges a secret. A session unknown here may have been opened elsewhere a moment ago: the leader is asked
/// before it is called dead.
pub(super) async fn verify(
    reader: &Reader,
    session: SessionId,
    secret: &[u8; 16],
    timeout: Duration,
) -> Result<Arc<Session>, v1::Error> {
    if let Some(verdict) = verify_here(reader, session, secret) {
        return verdict;
    }
    let deadline = Instant::now() + timeout;
    let confirmed = reader
        .consensus()
        .confirm(Freshness::Linearizable, deadline)
        .await;
    confirmed.map_err(|failure| status::of_read(&failure))?;
    verify_local(reader, session, secret)
        .unwrap_or_else(|| Err(of_refusal(&Refusal::SessionNotFound { session })))
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
        let (mut sessions, revision) = {
            let directory = self.reader.consensus().directory().read();
            let sessions: Vec<Arc<Session>> = directory
                .sessions()
                .filter(|session| session.id.0 > request.after)
                .take(limit + 1)
                .cloned()
                .collect();
            (sessions, directory.revision())
        };
        let more = sessions.len() > limit;
        sessions.truncate(limit);
        let deadlines = deadlines(&self.reader, sessions.iter().map(|session| session.id).collect()).await;
        let summary = |session: &Arc<Session>| {
            let deadline = deadlines.iter().find(|deadline| deadline.session == session.id);
            v1::SessionSummary {
                session: session.id.0,
                client: session.client.clone(),
                ttl_ms: session.ttl_ms.into(),
                nodes: convert::small(session.nodes.len()),
                opened_revision: session.opened.0,
                lapses_in_ms: deadline.map_or(0, |deadline| convert::milliseconds(deadline.lapses_in).max(1)),
                holder: deadline
                    .and_then(|deadline| deadline.holder)
                    .map_or(0, |holder| holder.0),
            }
        };
        Ok(v1::ListSessionsResponse {
            header: Some(self.reader.header(grounds, revision)),
            sessions: sessions.iter().map(summary).collect(),
            more,
        })
    }

    async fn end_session(&self, request: v1::EndSessionRequest) -> Result<v1::WriteResponse, v1::Error> {
        let session = convert::session_from(request.session).map_err(|e| of_refusal(&e))?;
        let command = Command::CloseSession { session };
        let outcome = self.writer.write(request.options.as_ref(), command).await?;
        Ok(self.writer.response(&outcome))
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
        let answer = Doors::list_sessions(self, request.into_inner()).await;
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
