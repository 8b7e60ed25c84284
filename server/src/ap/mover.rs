//! Moving a group from one mode to the other while it is in use.
//!
//! One server coordinates. It has the log freeze the group ([`Command::BeginMove`]); every server follows: to gossip, each
//! takes the frozen nodes over as records; to Raft, each stops writing, and the records spread until all have the same.
//! When every server that is there says that it has what the others have, by its sign, the log ends the move for
//! everybody at once. Until then a failure takes the move back, and nothing has changed. If the coordinator dies, the
//! leader takes it back (`strays`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rollcall_core::directory::{Command, Group, GroupMode, Move, Outcome, Request, Sign};
use rollcall_core::ids::{GroupName, NodeKey, RequestId, Revision, ServerId};
use rollcall_core::mutants::{Mutant, planted};
use rollcall_proto::v1::{ApStandingRequest, ApStandingResponse, GroupMode as WireMode};
use tokio::time::Instant;
use tonic::Status;

use super::definitions::shows_overrides;
use super::desk::{Footing, milliseconds};
use super::exchange::hear;
use super::handle::Ap;
use super::inner::Inner;
use super::members::Other;
use super::peer::{halves, whole};
use super::strays::AtWork;
use crate::raft::ProposeError;

/// How often the servers are asked whether they are ready.
const LOOK: Duration = Duration::from_millis(50);
/// How long one server may take to say.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long taking a move back may take, and one proposal.
const PROPOSAL_MAX: Duration = Duration::from_secs(5);
/// Nodes in one proposal.
const NODES_PER_PROPOSAL: usize = 100;
/// Proposals under way at once.
const PROPOSALS_AT_ONCE: usize = 8;

/// What a move did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveReport {
    /// Whether anything was to be done.
    pub changed: bool,
    /// Services of the group.
    pub services: u64,
    /// Nodes that went over.
    pub nodes: u64,
    /// The group's sign where it was, when it was frozen.
    pub sign_before: Sign,
    /// Its sign where it is, once it was there.
    pub sign_after: Sign,
    /// For how long it took no writes.
    pub frozen_for: Duration,
    /// What each server said before the move was ended.
    pub servers: Vec<ServerReport>,
}

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReport {
    /// Which.
    pub server: ServerId,
    /// It had everything. `false`: it was not there, and fetches what it lacks when it is back.
    pub ready: bool,
    /// Nodes it had.
    pub nodes: u64,
    /// The group's sign there.
    pub sign: Sign,
}

/// Why a group was not moved. It is in the mode it was in, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// As of any write.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The same; its group was not frozen.
    #[error("the move was not begun: {reason}")]
    NotBegun {
        /// Who is missing.
        reason: String,
    },
    /// Look at what it names, then try again.
    #[error("the move was taken back: {reason}")]
    TakenBack {
        /// What was missing, and where.
        reason: String,
    },
    /// Ask for the group's mode: whether the move was ended is not known.
    #[error("whether the move was ended is not known: {reason}")]
    Unknown {
        /// Why.
        reason: String,
    },
}

/// How a group stands at one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The move that the server knows of.
    since: Revision,
    /// The side from which it moves is frozen there, and the other has been prepared.
    prepared: bool,
    /// Nodes and sign as the view has them.
    nodes: u64,
    sign: Sign,
    /// Digest of the group's records.
    records: u128,
    /// The group's mode, as applied there.
    mode: GroupMode,
    /// Whether it coordinates a move of the group.
    pub(super) coordinates: bool,
}

impl Ap {
    /// Moves a group to another mode. While it moves, for well under a second where all servers are there, its nodes
    /// are read and watched as before, but writes are refused as unavailable, with a hint when to try again.
    ///
    /// To Raft every member must be there: what only an absent one has would be lost.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn move_group(
        &self,
        group: &GroupName,
        to: GroupMode,
        deadline: Instant,
    ) -> Result<MoveReport, MoveError> {
        // Nothing has begun: a caller that goes away meanwhile wants no move.
        all_there(&self.inner, group, to, deadline).await?;
        let mover = Mover {
            _at_work: AtWork::begin(&self.inner, group),
            inner: self.inner.clone(),
            group: group.clone(),
            to,
            deadline,
        };
        // A caller that goes away does not leave the group frozen.
        let moving = tokio::spawn(mover.run());
        moving.await.map_err(|error| MoveError::Unknown {
            reason: error.to_string(),
        })?
    }
}

/// Waits until those answer that will be waited for, before a group is frozen that stands still in the other mode: of a member
/// that is away nobody knows for how long.
async fn all_there(
    inner: &Inner,
    group: &GroupName,
    to: GroupMode,
    deadline: Instant,
) -> Result<(), MoveError> {
    let is_elsewhere = || {
        let directory = inner.consensus.directory().read();
        let stands_there = |group: &Arc<Group>| group.moving.is_none() && group.settings.mode != to;
        directory.group(group).is_some_and(stands_there)
    };
    while is_elsewhere() {
        let others = inner.others();
        let answers =
            futures_util::future::join_all(others.iter().map(|other| ask(inner, other, group))).await;
        let now = std::time::Instant::now();
        let is_waited_for = |server: ServerId| to == GroupMode::Cp || inner.gone_since(server, now).is_none();
        let lacking: Vec<String> = others
            .iter()
            .zip(answers)
            .filter(|(other, _)| is_waited_for(other.server))
            .filter_map(|(other, answer)| Some((other.server, answer.err()?)))
            .map(|(server, status)| format!("server {server} does not answer: {}", status.message()))
            .collect();
        if lacking.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(MoveError::NotBegun {
                reason: lacking.join("; "),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

struct Mover {
    _at_work: AtWork,
    inner: Arc<Inner>,
    group: GroupName,
    to: GroupMode,
    deadline: Instant,
}

impl Mover {
    async fn run(self) -> Result<MoveReport, MoveError> {
        let stamp_ms = {
            let latest = self.inner.desk.lock().replica.latest();
            self.inner.now().wall_ms.max(latest.millis + 1)
        };
        let begun = self
            .propose(Command::BeginMove {
                group: self.group.clone(),
                to: self.to,
                stamp_ms,
            })
            .await?;
        let frozen_at = Instant::now();
        self.applied(begun.revision).await?;
        let Some(since) = self.since() else {
            return Ok(self.nothing_to_do());
        };
        tracing::info!(group = %self.group, to = %self.to, revision = since.0, "group frozen: it moves to another mode");
        match self.carry_over(since, frozen_at).await {
            Ok(report) => Ok(report),
            Err(unknown @ MoveError::Unknown { .. }) => Err(unknown),
            Err(failure) => {
                tracing::warn!(group = %self.group, reason = %failure, "the move is taken back");
                take_back(&self.inner, &self.group, since).await;
                Err(failure)
            }
        }
    }

    async fn carry_over(&self, since: Revision, frozen_at: Instant) -> Result<MoveReport, MoveError> {
        let servers = self.all_ready(since).await?;
        let own = standing(&self.inner, &self.group);
        if self.to == GroupMode::Cp {
            // As the others did before they said that they are ready, see `answer`.
            let noted = tokio::time::timeout(ANSWER_MAX, hear(&self.inner, Vec::new(), None, true)).await;
            let noted = noted.unwrap_or_else(|_| Err(Status::deadline_exceeded("its disk takes nothing")));
            noted.map_err(|reason| MoveError::TakenBack {
                reason: format!("this server cannot write: {}", reason.message()),
            })?;
            self.adopt_in_log(since).await?;
        }
        self.check_overrides()?;
        let (sign_before, sign_after, services) = self.signs();
        if sign_before != sign_after && !planted(Mutant::UnfrozenMove) {
            return Err(MoveError::TakenBack {
                reason: format!(
                    "the group's sign is {sign_before} where it was and {sign_after} where it went"
                ),
            });
        }
        let end = Command::EndMove {
            group: self.group.clone(),
            since,
            done: true,
        };
        let ended = self.propose(end).await.map_err(|failure| match failure {
            ProposeError::Unknown { reason } => MoveError::Unknown { reason },
            other => other.into(),
        })?;
        let frozen_for = frozen_at.elapsed();
        let is_there = || {
            let directory = self.inner.consensus.directory().read();
            let group = directory.group(&self.group);
            group.is_some_and(|group| group.moving.is_none() && group.settings.mode == self.to)
        };
        // Somebody else who was asked the same may have ended it first.
        if !ended.changed && !is_there() {
            return Err(MoveError::TakenBack {
                reason: "the leader took it for one without a coordinator".into(),
            });
        }
        tracing::info!(
            group = %self.group, mode = %self.to, nodes = own.nodes, frozen_ms = milliseconds(frozen_for),
            "group moved"
        );
        // The answer is true here when it is given; elsewhere it is as soon as the entry is applied.
        self.applied(ended.revision).await.ok();
        Ok(MoveReport {
            changed: true,
            services,
            nodes: own.nodes,
            sign_before,
            sign_after,
            frozen_for,
            servers,
        })
    }

    /// Waits until every member has what the others have: all of them, or, to gossip, all that are there and at least
    /// a majority.
    async fn all_ready(&self, since: Revision) -> Result<Vec<ServerReport>, MoveError> {
        loop {
            let own = standing(&self.inner, &self.group);
            let others = self.inner.others();
            let asked = others.iter().map(|other| ask(&self.inner, other, &self.group));
            let answers = futures_util::future::join_all(asked).await;
            let mut found = BTreeMap::from([(self.inner.server, Ok(own.clone()))]);
            found.extend(others.iter().map(|other| other.server).zip(answers));
            let lacking = self.lacking(since, &own, &found);
            if lacking.is_empty() {
                return Ok(found
                    .into_iter()
                    .map(|(server, answer)| report(server, answer))
                    .collect());
            }
            if Instant::now() >= self.deadline {
                return Err(MoveError::TakenBack {
                    reason: lacking.join("; "),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What keeps the move from being ended.
    fn lacking(
        &self,
        since: Revision,
        own: &Standing,
        found: &BTreeMap<ServerId, Result<Standing, Status>>,
    ) -> Vec<String> {
        let mut lacking = Vec::new();
        let mut ready = 0;
        let now = std::time::Instant::now();
        for (server, answer) in found {
            match answer {
                Ok(theirs) if theirs.since != since || !theirs.prepared => {
                    lacking.push(format!("server {server} is not prepared"));
                }
                Ok(_) if planted(Mutant::UnfrozenMove) => ready += 1,
                Ok(theirs) if theirs.sign != own.sign || theirs.nodes != own.nodes => lacking.push(format!(
                    "server {server} has {} nodes and sign {}, this one {} and {}",
                    theirs.nodes, theirs.sign, own.nodes, own.sign
                )),
                Ok(theirs) if self.to == GroupMode::Cp && theirs.records != own.records => {
                    lacking.push(format!("server {server} has other records"));
                }
                Ok(_) => ready += 1,
                Err(_) if self.to == GroupMode::Ap && self.inner.gone_since(*server, now).is_some() => {}
                Err(status) => lacking.push(format!("server {server} does not answer: {}", status.message())),
            }
        }
        if ready * 2 <= found.len() {
            lacking.push(format!(
                "{ready} of {} servers are ready, which is no majority",
                found.len()
            ));
        }
        lacking
    }

    /// The view's nodes go to the log.
    async fn adopt_in_log(&self, since: Revision) -> Result<(), MoveError> {
        let commands = {
            let view = self.inner.view.read();
            view.adoptions(&self.group, since, NODES_PER_PROPOSAL)
        };
        let proposals = commands.into_iter().map(|command| self.propose(command));
        let outcomes: Vec<Outcome> = futures_util::stream::iter(proposals)
            .buffer_unordered(PROPOSALS_AT_ONCE)
            .try_collect()
            .await?;
        let last = outcomes.iter().map(|outcome| outcome.revision).max();
        match last {
            Some(revision) => self.applied(revision).await,
            None => Ok(()),
        }
    }

    async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let request = Request {
            id: RequestId(rand::random()),
            command,
        };
        let deadline = self.deadline.max(Instant::now() + PROPOSAL_MAX);
        self.inner.consensus.propose(request, deadline).await
    }

    async fn applied(&self, revision: Revision) -> Result<(), MoveError> {
        let mut applied = self.inner.consensus.applied_head();
        let reached = applied.wait_for(|head| head.revision >= revision);
        match tokio::time::timeout(PROPOSAL_MAX, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(MoveError::TakenBack {
                reason: format!("this server did not apply revision {revision} in time"),
            }),
        }
    }

    /// When the move began, if there is one.
    fn since(&self) -> Option<Revision> {
        let directory = self.inner.consensus.directory().read();
        directory.group(&self.group)?.moving.map(|moving| moving.since)
    }

    fn nothing_to_do(&self) -> MoveReport {
        let here = standing(&self.inner, &self.group);
        MoveReport {
            changed: false,
            services: 0,
            nodes: here.nodes,
            sign_before: here.sign,
            sign_after: here.sign,
            frozen_for: Duration::ZERO,
            servers: Vec::new(),
        }
    }

    /// Whether what operators said went along: of words on nodes that are not there no sign tells.
    fn check_overrides(&self) -> Result<(), MoveError> {
        let view = self.inner.view.read().group(&self.group).cloned();
        let raft = self.inner.consensus.directory().read();
        let in_log = raft.group(&self.group);
        let (GroupMode::Cp, Some(view), Some(in_log)) = (self.to, view, in_log) else {
            return Ok(());
        };
        match shows_overrides(in_log, &view, |_| false) {
            true => Ok(()),
            false => Err(MoveError::TakenBack {
                reason:
                    "an override was not taken over by the log; look at the group's overrides, and try again"
                        .into(),
            }),
        }
    }

    /// The group's sign where it was and where it went, and how many services it has.
    fn signs(&self) -> (Sign, Sign, u64) {
        let in_log = self
            .inner
            .consensus
            .directory()
            .read()
            .group(&self.group)
            .cloned();
        let in_view = self.inner.view.read().group(&self.group).cloned();
        let services = in_view.as_ref().map_or(0, |group| group.services.len() as u64);
        let [in_log, in_view] =
            [in_log, in_view].map(|group| group.as_deref().map_or(Sign::default(), sign_of_listed));
        match self.to {
            GroupMode::Ap => (in_log, in_view, services),
            GroupMode::Cp => (in_view, in_log, services),
        }
    }
}

/// The sign of the services that list anything. One without nodes may be known on one side only.
fn sign_of_listed(group: &Group) -> Sign {
    let listed = group
        .services
        .values()
        .filter(|service| !service.nodes.is_empty());
    listed.fold(Sign::default(), |sum, service| {
        sum.plus(Sign::of_service(&service.key.service, service.sign))
    })
}

fn report(server: ServerId, answer: Result<Standing, Status>) -> ServerReport {
    let ready = answer.is_ok();
    let standing = answer.unwrap_or_default();
    ServerReport {
        server,
        ready,
        nodes: standing.nodes,
        sign: standing.sign,
    }
}

/// How a group stands here.
fn standing(inner: &Inner, group: &GroupName) -> Standing {
    let Some(defined) = inner.consensus.directory().read().group(group).cloned() else {
        return Standing::default();
    };
    let desk = inner.desk.lock();
    let seen = inner.view.read().group(group).cloned();
    let sign = seen.as_deref().map_or(Sign::default(), sign_of_listed);
    let nodes = seen.as_ref().map_or(0, |seen| seen.nodes);
    let begun = begun(&defined, seen.as_deref());
    Standing {
        since: defined.moving.map(|moving| moving.since).unwrap_or_default(),
        prepared: begun.is_some_and(|moving| match moving.to {
            // What it has may not count.
            _ if desk.footing() == Footing::Unsure => false,
            GroupMode::Ap if planted(Mutant::UnfrozenMove) => true,
            GroupMode::Ap => {
                let is_known = |node: &NodeKey| desk.replica.knows_override(node);
                let seen = seen.as_deref();
                let has_overrides = seen.is_some_and(|seen| {
                    shows_overrides(seen, &defined, is_known) && shows_overrides(&defined, seen, |_| true)
                });
                sign == sign_of_listed(&defined) && nodes == defined.nodes && has_overrides
            }
            GroupMode::Cp => true,
        }),
        nodes,
        sign,
        records: desk.replica.group_digest(group.as_str()),
        mode: defined.settings.mode,
        coordinates: inner.coordinated.contains(group),
    }
}

/// The move that is under way, if the view has begun the very same: frozen by an earlier one it thaws before it is frozen again.
fn begun(defined: &Group, seen: Option<&Group>) -> Option<Move> {
    let here = seen?.moving?;
    let is_here = |moving: &Move| here.to == moving.to && here.stamp_ms == moving.stamp_ms;
    defined.moving.filter(is_here)
}

/// What another server is told of how a group stands here; what it says is on disk.
pub(super) async fn answer(inner: &Inner, asked: &ApStandingRequest) -> Result<ApStandingResponse, Status> {
    let group: GroupName = asked
        .group
        .parse()
        .map_err(|error: rollcall_core::ids::NameError| Status::invalid_argument(error.to_string()))?;
    // What is seen after this is synced is at least what was there before.
    let standing = standing(inner, &group);
    if standing.prepared && standing.mode == GroupMode::Ap {
        // That it is frozen is in the log, and how far that is known to be committed is synced with any row: started anew
        // without a leader, this server must not take writes to it again.
        hear(inner, Vec::new(), None, true).await?;
    } else {
        inner.read_synced(|_| ()).await?;
    }
    let (sign_high, sign_low) = halves(standing.sign.0);
    let (records_high, records_low) = halves(standing.records);
    Ok(ApStandingResponse {
        since: standing.since.0,
        prepared: standing.prepared,
        nodes: standing.nodes,
        sign_high,
        sign_low,
        records_high,
        records_low,
        mode: match standing.mode {
            GroupMode::Cp => WireMode::Cp.into(),
            GroupMode::Ap => WireMode::Ap.into(),
        },
        coordinates: standing.coordinates,
    })
}

/// Asks another server how a group stands there.
pub(super) async fn ask(inner: &Inner, other: &Other, group: &GroupName) -> Result<Standing, Status> {
    let request = ApStandingRequest {
        cluster: inner.consensus.peers().cluster().to_owned(),
        from: inner.server.0,
        to: other.server.0,
        group: group.to_string(),
    };
    let mut client = inner.client(other)?;
    let answer = tokio::time::timeout(ANSWER_MAX, client.standing(request)).await;
    let answer = answer
        .map_err(|_| Status::deadline_exceeded("no answer in time"))??
        .into_inner();
    Ok(Standing {
        since: Revision(answer.since),
        prepared: answer.prepared,
        nodes: answer.nodes,
        sign: Sign(whole(answer.sign_high, answer.sign_low)),
        records: whole(answer.records_high, answer.records_low),
        mode: match answer.mode() {
            WireMode::Ap => GroupMode::Ap,
            WireMode::Cp | WireMode::Unspecified => GroupMode::Cp,
        },
        coordinates: answer.coordinates,
    })
}

/// Ends a move without effect.
pub(super) async fn take_back(inner: &Inner, group: &GroupName, since: Revision) {
    let request = Request {
        id: RequestId(rand::random()),
        command: Command::EndMove {
            group: group.clone(),
            since,
            done: false,
        },
    };
    let deadline = Instant::now() + PROPOSAL_MAX;
    if let Err(error) = inner.consensus.propose(request, deadline).await {
        tracing::warn!(%group, %error, "a move could not be taken back yet; the leader will do it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(stamp_ms: Option<u64>) -> Group {
        let moving = stamp_ms.map(|stamp_ms| Move {
            to: GroupMode::Cp,
            since: Revision(stamp_ms),
            stamp_ms,
        });
        Group {
            name: "edge".parse().expect("a name"),
            settings: Default::default(),
            services: Default::default(),
            sign: Sign::default(),
            nodes: 0,
            created: Revision(1),
            modified: Revision(1),
            settings_modified: Revision(1),
            moving,
        }
    }

    #[test]
    fn a_view_that_is_frozen_by_an_earlier_move_is_not_prepared_for_this_one() {
        let defined = group(Some(2));
        assert_eq!(begun(&defined, Some(&group(Some(2)))), defined.moving);
        for seen in [Some(group(Some(1))), Some(group(None)), None] {
            assert_eq!(begun(&defined, seen.as_ref()), None);
        }
        assert_eq!(begun(&group(None), Some(&group(Some(1)))), None);
    }
}
