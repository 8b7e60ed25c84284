//! Read-index rounds, at the leader and from followers, and how old the local state is.

use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use parking_lot::Mutex;
use rollcall_core::ids::{LogIndex, Term};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inquiry::{Companion, Inquirer};
use super::rounds::{Round, RoundError, Rounds};
use crate::raft::Raft;
use crate::raft::contract::{Confirmed, Freshness, Leadership};
use crate::raft::network::Peers;
use crate::raft::vote_gate::VoteGate;

/// Probes go on for this long after someone asked.
pub(super) const PROBES_LAST: Duration = Duration::from_secs(10);

/// Rounds of a leader.
#[derive(Debug)]
pub(in crate::raft) struct LeaderRounds {
    pub(super) linearizable: Rounds<Confirmed>,
    leased: Rounds<Confirmed>,
}

impl LeaderRounds {
    pub(in crate::raft) fn start(
        raft: &Raft,
        peers: &Arc<Peers>,
        lease: Duration,
        stop: &CancellationToken,
    ) -> Self {
        let companion = Arc::new(Companion::new(raft.clone(), peers.clone()));
        let asking = raft.clone();
        let linearizable = Rounds::start(stop.clone(), move || {
            let (raft, companion) = (asking.clone(), companion.clone());
            async move {
                match companion.confirm().await {
                    Some(confirmed) => Ok(confirmed),
                    None => leader_round(raft, ReadPolicy::ReadIndex.into()).await,
                }
            }
        });
        let start = |option: LinearizerOption| {
            let raft = raft.clone();
            Rounds::start(stop.clone(), move || leader_round(raft.clone(), option.clone()))
        };
        Self {
            linearizable,
            // Half of the lease, so that a clock may run twice as fast as another and do no harm.
            leased: start(LinearizerOption::new(Some(lease / 2), false).with_wait_timeout(Duration::ZERO)),
        }
    }

    pub(super) async fn ask(&self, mode: Freshness) -> Round<Confirmed> {
        match mode {
            Freshness::Linearizable => self.linearizable.ask().await,
            Freshness::Leased => match self.leased.ask().await {
                Err(RoundError::Failed(_)) => self.linearizable.ask().await,
                decided => decided,
            },
        }
    }
}

async fn leader_round(raft: Raft, option: LinearizerOption) -> Round<Confirmed> {
    match raft.get_read_log_id(option).await {
        Ok((read, _applied)) => {
            let id = read.log_id();
            Ok(Confirmed {
                term: Term(id.leader_id.term),
                index: LogIndex(id.index),
            })
        }
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(RoundError::NotLeader),
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
            Err(RoundError::Failed(error.to_string()))
        }
        Err(RaftError::Fatal(fatal)) => Err(RoundError::Failed(fatal.to_string())),
    }
}

/// Rounds of a follower: one question to the leader for all who wait.
#[derive(Debug)]
pub(in crate::raft) struct RemoteRounds {
    linearizable: Rounds<Confirmed>,
    leased: Rounds<Confirmed>,
    #[cfg(test)]
    inquirer: Arc<Inquirer>,
}

impl RemoteRounds {
    pub(in crate::raft) fn start(
        raft: &Raft,
        gate: &Arc<VoteGate>,
        peers: &Arc<Peers>,
        leadership: &watch::Receiver<Leadership>,
        stop: &CancellationToken,
    ) -> Self {
        let inquirer = |leased: bool| {
            Arc::new(Inquirer::new(
                raft.clone(),
                gate.clone(),
                peers.clone(),
                leadership.clone(),
                leased,
            ))
        };
        let start = |inquirer: &Arc<Inquirer>| {
            let inquirer = inquirer.clone();
            Rounds::start(stop.clone(), move || {
                let inquirer = inquirer.clone();
                async move { inquirer.ask().await }
            })
        };
        let linearizable = inquirer(false);
        Self {
            linearizable: start(&linearizable),
            leased: start(&inquirer(true)),
            #[cfg(test)]
            inquirer: linearizable,
        }
    }

    pub(super) async fn ask(&self, mode: Freshness) -> Round<Confirmed> {
        match mode {
            Freshness::Linearizable => self.linearizable.ask().await,
            Freshness::Leased => self.leased.ask().await,
        }
    }

    #[cfg(test)]
    pub(super) fn inquirer(&self) -> &Inquirer {
        &self.inquirer
    }
}

/// How old the local state is at most.
#[derive(Debug, Default)]
pub(in crate::raft) struct AgeProbe {
    asked_at: Mutex<Option<Instant>>,
    confirmed_at: Mutex<Option<Instant>>,
    asked: Notify,
}

impl AgeProbe {
    pub(super) fn ask(&self) -> Option<Duration> {
        *self.asked_at.lock() = Some(Instant::now());
        self.asked.notify_one();
        self.confirmed_at.lock().map(|at| at.elapsed())
    }

    /// Everything the leader had when the probe was sent is applied here.
    pub(in crate::raft) fn confirmed(&self, sent_at: Instant) {
        let mut confirmed_at = self.confirmed_at.lock();
        *confirmed_at = (*confirmed_at).max(Some(sent_at));
    }

    /// Waits until someone has asked lately.
    pub(in crate::raft) async fn wanted(&self) {
        loop {
            let lately = self.asked_at.lock().is_some_and(|at| at.elapsed() < PROBES_LAST);
            if lately {
                return;
            }
            self.asked.notified().await;
        }
    }
}
