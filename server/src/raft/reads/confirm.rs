//! A read's way: a round here or at the leader, and then until this server has applied what the round named.

use std::sync::Arc;
use std::time::Duration;

use rollcall_core::ids::{LogIndex, Term};
use rollcall_core::mutants::{Mutant, planted};
use tokio::time::Instant;

use super::allegiance::confirm_by_word;
use super::freshness::AgeProbe;
use super::rounds::{Round, RoundError};
use crate::raft::consensus::{Consensus, Inner, OVERLOAD_PAUSE, RETRY_PAUSE};
use crate::raft::contract::{Confirmed, Freshness, NotLeader, ReadError};

impl Consensus {
    /// Waits until the local directory reflects every write acknowledged before the call, on any server.
    /// Concurrent calls share rounds.
    ///
    /// # Errors
    /// No leader confirmed in time, too many wait, or this server must not serve.
    pub async fn confirm(&self, mode: Freshness, deadline: Instant) -> Result<Confirmed, ReadError> {
        self.inner.confirm(mode, deadline).await
    }

    /// For a leader: waits until a quorum has confirmed, after this call began, that it leads, and until its
    /// directory reflects everything acknowledged before.
    ///
    /// # Errors
    /// It does not lead, or could not find out before `deadline`.
    pub async fn confirm_leadership(&self, deadline: Instant) -> Result<Term, NotLeader> {
        let inner = &self.inner;
        let not_leader = || NotLeader {
            leader: inner.leadership.borrow().leader,
        };
        let round = tokio::time::timeout_at(deadline, inner.leader_rounds.linearizable.ask()).await;
        let confirmed = round.map_err(|_| not_leader())?.map_err(|_| not_leader())?;
        inner
            .wait_applied(confirmed.index, deadline)
            .await
            .map_err(|_| not_leader())?;
        Ok(confirmed.term)
    }

    /// An upper bound on how far the local state lags the leader's, measured from when this server sent its
    /// last answered probe. Probes run while someone asks; `None`: none was answered yet.
    #[must_use]
    pub fn local_age(&self) -> Option<Duration> {
        self.inner.age.ask()
    }
}

impl Inner {
    pub(in crate::raft) async fn confirm(
        &self,
        mode: Freshness,
        deadline: Instant,
    ) -> Result<Confirmed, ReadError> {
        let mut leadership = self.leadership.subscribe();
        loop {
            if self.gate.is_diverged() {
                return Err(ReadError::Diverged);
            }
            let round = tokio::time::timeout_at(deadline, self.round(mode)).await;
            let reason = match round {
                Ok(Ok(confirmed)) => {
                    self.wait_applied(confirmed.index, deadline).await?;
                    return Ok(confirmed);
                }
                Ok(Err(RoundError::Overloaded)) => {
                    return Err(ReadError::Overloaded {
                        retry_after: OVERLOAD_PAUSE,
                    });
                }
                Ok(Err(RoundError::NotLeader)) => "no leader is known".into(),
                Ok(Err(RoundError::Failed(reason))) => reason,
                Err(_) => "no answer before the deadline".into(),
            };
            let now = Instant::now();
            if now >= deadline || self.stop.is_cancelled() {
                return Err(ReadError::Unavailable { reason });
            }
            let _ = tokio::time::timeout_at(deadline.min(now + RETRY_PAUSE), leadership.changed()).await;
        }
    }

    async fn round(&self, mode: Freshness) -> Round<Confirmed> {
        let trusts_itself = planted(Mutant::EndlessLease) && mode == Freshness::Leased && self.leads();
        if planted(Mutant::StaleRead) || trusts_itself {
            return Ok(Confirmed {
                term: Term::default(),
                index: LogIndex::default(),
            });
        }
        match self.leads() {
            true => self.leader_rounds.ask(mode).await,
            false => self.remote_rounds.ask(mode).await,
        }
    }

    /// A round for another server, which follows this one in a term, if it said so: this one must lead.
    pub(in crate::raft) async fn leader_round(
        &self,
        leased: bool,
        follower: u64,
        following: Option<Term>,
    ) -> Round<Confirmed> {
        if let Some(term) = following
            && let Some(confirmed) = confirm_by_word(&self.raft, follower, term).await
        {
            return Ok(confirmed);
        }
        self.leader_rounds
            .ask(if leased {
                Freshness::Leased
            } else {
                Freshness::Linearizable
            })
            .await
    }

    /// A round asked of the leader over the network.
    pub(in crate::raft) async fn remote_round(&self) -> Round<Confirmed> {
        self.remote_rounds.ask(Freshness::Linearizable).await
    }

    async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), ReadError> {
        if self.head.borrow().covers(index) {
            return Ok(());
        }
        let mut head = self.head.clone();
        match tokio::time::timeout_at(deadline, head.wait_for(|head| head.covers(index))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Unavailable {
                reason: "replication has ended".into(),
            }),
            Err(_) => Err(ReadError::Unavailable {
                reason: format!("this server has not applied entry {index} yet"),
            }),
        }
    }

    pub(in crate::raft) fn age(&self) -> Arc<AgeProbe> {
        self.age.clone()
    }
}
