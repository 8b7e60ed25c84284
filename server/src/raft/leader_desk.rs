//! What the leader's desk is asked and told: renewals and deadlines of sessions, at this server or over the network.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rollcall_core::ids::{ServerId, SessionId};
use rollcall_proto::v1;
use tokio::time::Instant;

use super::consensus::{Consensus, Inner};
use super::contract::{DeskError, LeaderDesk, RenewalVerdict, SessionDeadline};
use super::wire;

impl Consensus {
    /// Names who answers renewals when this server leads, as long as the caller keeps it. To be called once, before the peers
    /// are served.
    pub fn set_desk(&self, desk: &Arc<dyn LeaderDesk>) {
        if self.inner.desk.set(Arc::downgrade(desk)).is_err() {
            tracing::warn!("a leader's desk was set before; the first stays");
        }
    }

    /// Tells the leader which sessions were heard from, in ascending order.
    ///
    /// # Errors
    /// Nothing is acknowledged; report again.
    pub async fn report_renewals(
        &self,
        sessions: Vec<SessionId>,
        deadline: Instant,
    ) -> Result<RenewalVerdict, DeskError> {
        let inner = &self.inner;
        if inner.leads() {
            return inner.record_renewals(inner.options.server, sessions).await;
        }
        let report = |leader| v1::RenewalReport {
            cluster: inner.options.cluster.clone(),
            from: inner.options.server.0,
            to: leader,
            held: sessions.len() as u64,
            sessions: wire::encode_sessions(&sessions),
        };
        let answer = inner
            .ask_leader(deadline, |mut client, leader| {
                let report = report(leader);
                async move { client.report_renewals(report).await }
            })
            .await?;
        match answer.error {
            Some(error) => Err(DeskError::NoLeader {
                reason: error.message,
            }),
            None => Ok(RenewalVerdict {
                not_found: answer.not_found.into_iter().map(SessionId).collect(),
                undecided: answer.undecided.into_iter().map(SessionId).collect(),
            }),
        }
    }

    /// The same at once, without a question to anybody: `None` unless this server leads and is the cluster.
    pub(crate) fn report_renewals_alone(&self, sessions: &[SessionId]) -> Option<RenewalVerdict> {
        let inner = &self.inner;
        if !inner.solitude.is_certain() {
            return None;
        }
        inner.desk().ok()?.record_alone(inner.options.server, sessions)
    }

    /// When these sessions lapse, by the leader's word.
    ///
    /// # Errors
    /// The leader did not answer.
    pub async fn session_deadlines(
        &self,
        sessions: Vec<SessionId>,
        deadline: Instant,
    ) -> Result<Vec<SessionDeadline>, DeskError> {
        let inner = &self.inner;
        if inner.leads() {
            return inner.deadlines(&sessions);
        }
        let sessions: Vec<u64> = sessions.into_iter().map(|session| session.0).collect();
        let question = v1::leader_question::Question::Deadlines(v1::SessionDeadlines { sessions });
        let answer = inner.ask_question(question, deadline).await?;
        match answer.error {
            Some(error) => Err(DeskError::NoLeader {
                reason: error.message,
            }),
            None => Ok(answer.deadlines.into_iter().map(deadline_of).collect()),
        }
    }
}

impl Inner {
    fn desk(&self) -> Result<Arc<dyn LeaderDesk>, DeskError> {
        let starting = || DeskError::NoLeader {
            reason: "the leader is starting".into(),
        };
        self.desk.get().and_then(Weak::upgrade).ok_or_else(starting)
    }

    pub(super) async fn record_renewals(
        &self,
        from: ServerId,
        sessions: Vec<SessionId>,
    ) -> Result<RenewalVerdict, DeskError> {
        let verdict = self.desk()?.record_renewals(from, sessions).await;
        verdict.map_err(|error| DeskError::NoLeader {
            reason: error.to_string(),
        })
    }

    pub(super) fn deadlines(&self, sessions: &[SessionId]) -> Result<Vec<SessionDeadline>, DeskError> {
        Ok(self.desk()?.deadlines(sessions))
    }

    /// One call to whoever leads.
    pub(super) async fn ask_leader<T, F, Fut>(&self, deadline: Instant, call: F) -> Result<T, DeskError>
    where
        F: FnOnce(v1::peer_client::PeerClient<rollcall_proto::upgrade::Channel>, u64) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let leader = self
            .leadership
            .borrow()
            .leader
            .filter(|leader| *leader != self.options.server);
        let leader = leader.ok_or_else(|| DeskError::NoLeader {
            reason: "no leader is known".into(),
        })?;
        let address = self.address_of(leader.0).ok_or_else(|| DeskError::NoLeader {
            reason: format!("the address of leader {leader} is not known"),
        })?;
        let unreachable = |reason: String| DeskError::Unreachable { reason };
        let client = self
            .peers
            .client(leader.0, &address)
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = tokio::time::timeout_at(deadline, call(client, leader.0)).await;
        let answer = answer.map_err(|_| unreachable("no answer before the deadline".into()))?;
        Ok(answer
            .map_err(|status| unreachable(status.message().to_owned()))?
            .into_inner())
    }

    pub(super) async fn ask_question(
        &self,
        question: v1::leader_question::Question,
        deadline: Instant,
    ) -> Result<v1::LeaderAnswer, DeskError> {
        self.ask_leader(deadline, |mut client, leader| {
            let question = v1::LeaderQuestion {
                cluster: self.options.cluster.clone(),
                from: self.options.server.0,
                to: leader,
                question: Some(question),
            };
            async move { client.ask_leader(question).await }
        })
        .await
    }
}

fn deadline_of(deadline: v1::SessionDeadline) -> SessionDeadline {
    SessionDeadline {
        session: SessionId(deadline.session),
        lapses_in: Duration::from_millis(deadline.lapses_in_ms),
        holder: (deadline.holder != 0).then_some(ServerId(deadline.holder)),
    }
}
