//! Read-index rounds, at the leader and from followers, and how old the local state is.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use parking_lot::Mutex;
use rollcall_core::ids::{LogIndex, Term};
use rollcall_proto::v1::ReadIndexRequest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Raft;
use super::contract::{Confirmed, Freshness, Leadership};
use super::network::Peers;
use super::read_index::{Round, RoundError, Rounds};

/// How long a follower waits for the leader's word in one round.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(1);
/// Probes go on for this long after someone asked.
pub(super) const PROBES_LAST: Duration = Duration::from_secs(10);

/// Rounds of a leader.
#[derive(Debug)]
pub(super) struct LeaderRounds {
    pub(super) linearizable: Rounds<Confirmed>,
    leased: Rounds<Confirmed>,
}

impl LeaderRounds {
    pub(super) fn start(raft: &Raft, lease: Duration, stop: &CancellationToken) -> Self {
        let start = |option: LinearizerOption| {
            let raft = raft.clone();
            Rounds::start(stop.clone(), move || leader_round(raft.clone(), option.clone()))
        };
        Self {
            linearizable: start(ReadPolicy::ReadIndex.into()),
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
pub(super) struct RemoteRounds {
    linearizable: Rounds<Confirmed>,
    leased: Rounds<Confirmed>,
}

impl RemoteRounds {
    pub(super) fn start(
        raft: &Raft,
        peers: &Arc<Peers>,
        leadership: watch::Receiver<Leadership>,
        stop: &CancellationToken,
    ) -> Self {
        let start = |leased: bool| {
            let (raft, peers, leadership) = (raft.clone(), peers.clone(), leadership.clone());
            Rounds::start(stop.clone(), move || {
                let leader = leadership.borrow().leader.map(|leader| leader.0);
                remote_round(raft.clone(), peers.clone(), leader, leased)
            })
        };
        Self {
            linearizable: start(false),
            leased: start(true),
        }
    }

    pub(super) async fn ask(&self, mode: Freshness) -> Round<Confirmed> {
        match mode {
            Freshness::Linearizable => self.linearizable.ask().await,
            Freshness::Leased => self.leased.ask().await,
        }
    }
}

async fn remote_round(raft: Raft, peers: Arc<Peers>, leader: Option<u64>, leased: bool) -> Round<Confirmed> {
    let leader = leader.ok_or(RoundError::NotLeader)?;
    let address = {
        let membership = raft.server_metrics().borrow_watched().membership_config.clone();
        membership.get_node(&leader).map(|node| node.peer_address.clone())
    };
    let address = address.ok_or(RoundError::NotLeader)?;
    let failed = |reason: String| RoundError::Failed(reason);
    let mut client = peers
        .client(leader, &address)
        .map_err(|error| failed(error.to_string()))?;
    let request = ReadIndexRequest {
        cluster: peers.cluster().to_owned(),
        from: peers.server(),
        to: leader,
        leased,
    };
    let answer = tokio::time::timeout(REMOTE_TIMEOUT, client.read_index(request)).await;
    let answer = answer.map_err(|_| failed("the leader did not answer in time".into()))?;
    let answer = answer
        .map_err(|status| failed(status.message().to_owned()))?
        .into_inner();
    match answer.error {
        Some(error) => Err(failed(error.message)),
        None => Ok(Confirmed {
            term: Term(answer.term),
            index: LogIndex(answer.index),
        }),
    }
}

/// How old the local state is at most.
#[derive(Debug, Default)]
pub(super) struct AgeProbe {
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
    pub(super) fn confirmed(&self, sent_at: Instant) {
        let mut confirmed_at = self.confirmed_at.lock();
        *confirmed_at = (*confirmed_at).max(Some(sent_at));
    }

    /// Waits until someone has asked lately.
    pub(super) async fn wanted(&self) {
        loop {
            let lately = self.asked_at.lock().is_some_and(|at| at.elapsed() < PROBES_LAST);
            if lately {
                return;
            }
            self.asked.notified().await;
        }
    }
}
