//! Changes of the membership, one step at a time, and handing leadership over.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, Fatal, RaftError};
use openraft::raft::ClientWriteResponse;
use rollcall_core::ids::{LogPosition, ServerId};
use rollcall_proto::v1::leader_question::Question;
use rollcall_proto::v1::{Error, ErrorCode, MembershipOrder, ProbeResponse};
use tokio::time::Instant;

use super::consensus::{Consensus, Inner};
use super::contract::{DeskError, Heir, MembershipError};
use super::types::{PeerAddresses, TypeConfig, position};
use super::upkeep;

/// A learner so many entries behind counts as caught up; the rest comes with its first appends as a voter.
const CAUGHT_UP_WITHIN: u64 = 64;
/// How often a learner is asked whether it may vote.
const VOTE_LOOK: Duration = Duration::from_millis(50);
/// How long a snapshot on demand may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

type Raftly = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

/// What an operator wants of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    AddLearner(u64, PeerAddresses),
    Promote(u64),
    Remove { server: u64, lost: bool },
    Transfer(Option<u64>),
}

impl Order {
    pub(super) fn to_wire(&self) -> MembershipOrder {
        let mut wire = MembershipOrder::default();
        match self {
            Self::AddLearner(server, addresses) => {
                wire.add_learner = *server;
                wire.peer_address.clone_from(&addresses.peer_address);
                wire.client_address.clone_from(&addresses.client_address);
                wire.http_address.clone_from(&addresses.http_address);
            }
            Self::Promote(server) => wire.promote = *server,
            Self::Remove { server, lost } => {
                wire.remove = *server;
                wire.lost = *lost;
            }
            Self::Transfer(to) => {
                wire.transfer = true;
                wire.transfer_to = to.unwrap_or_default();
            }
        }
        wire
    }

    pub(super) fn from_wire(wire: MembershipOrder) -> Option<Self> {
        if wire.transfer {
            return Some(Self::Transfer(
                (wire.transfer_to != 0).then_some(wire.transfer_to),
            ));
        }
        match (wire.add_learner, wire.promote, wire.remove) {
            (0, 0, 0) => None,
            (0, 0, server) => Some(Self::Remove {
                server,
                lost: wire.lost,
            }),
            (0, server, _) => Some(Self::Promote(server)),
            (server, _, _) => Some(Self::AddLearner(
                server,
                PeerAddresses {
                    peer_address: wire.peer_address,
                    client_address: wire.client_address,
                    http_address: wire.http_address,
                },
            )),
        }
    }
}

fn invalid(reason: impl Into<String>) -> MembershipError {
    MembershipError::Invalid {
        reason: reason.into(),
    }
}

fn unavailable(reason: impl Into<String>) -> MembershipError {
    MembershipError::Unavailable {
        reason: reason.into(),
    }
}

impl Consensus {
    /// Adds a server without a vote. It must be running, with an empty folder and `join` set.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(
        &self,
        server: ServerId,
        addresses: PeerAddresses,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        self.inner
            .order(Order::AddLearner(server.0, addresses), deadline)
            .await
    }

    /// Gives a learner a vote once it has caught up and may use it.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn promote(&self, server: ServerId, deadline: Instant) -> Result<(), MembershipError> {
        self.inner.order(Order::Promote(server.0), deadline).await
    }

    /// Removes a member, once the leader has what that acknowledged outside the log ([`Heir`]); the leader hands over first.
    /// `lost`: it is not waited for if it does not answer, and what only it had is given up.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove(
        &self,
        server: ServerId,
        lost: bool,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let server = server.0;
        self.inner.order(Order::Remove { server, lost }, deadline).await
    }

    /// Whether a server is a member and is not about to be removed, as far as this one knows.
    #[must_use]
    pub fn keeps_member(&self, server: ServerId) -> bool {
        self.inner.keeps_member(server.0)
    }

    /// Where in the log the members were decided on, if a server is none of them.
    pub(crate) fn removed_at(&self, server: ServerId) -> Option<LogPosition> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let decided = &metrics.committed_membership_config;
        let at = position(decided.log_id().as_ref()?);
        decided.get_node(&server.0).is_none().then_some(at)
    }

    /// Whether members that were decided on there, and that this server is none of, are newer than those it knows of. It knows
    /// that it is one: who has just come learns from the log.
    pub(crate) fn is_removed_by(&self, decided_at: Option<LogPosition>) -> bool {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let known = &metrics.membership_config;
        // One of an earlier term that nobody has committed is behind, whatever its index.
        known.get_node(&self.inner.options.server.0).is_some()
            && decided_at > known.log_id().as_ref().map(position)
    }

    /// Names who takes over what servers that are removed have outside the log, as long as the caller keeps it. To be called
    /// once, before the peers are served.
    pub fn set_heir(&self, heir: &Arc<dyn Heir>) {
        if self.inner.heir.set(Arc::downgrade(heir)).is_err() {
            tracing::warn!("an heir was set before; the first stays");
        }
    }

    /// Hands leadership to a voter that answers and may stand for election; `None`: of those heard from lately, the one
    /// with the longest log.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn transfer_leadership(
        &self,
        to: Option<ServerId>,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        self.inner
            .order(Order::Transfer(to.map(|to| to.0)), deadline)
            .await
    }

    /// Takes a snapshot on this server now, and waits for it.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn take_snapshot(&self) -> Result<(), MembershipError> {
        self.inner.take_snapshot().await
    }
}

impl Inner {
    /// Carries an order out, here or at the leader.
    pub(super) async fn order(&self, order: Order, deadline: Instant) -> Result<(), MembershipError> {
        check(&order)?;
        if self.leads() {
            return self.order_here(order, deadline).await;
        }
        let answer = self
            .ask_question(Question::Order(order.to_wire()), deadline)
            .await;
        match answer {
            Ok(answer) => answer.error.map_or(Ok(()), |error| Err(error_of(error))),
            Err(DeskError::NoLeader { reason }) => Err(unavailable(reason)),
            Err(DeskError::Unreachable { reason }) => Err(MembershipError::Unknown { reason }),
        }
    }

    /// Carries an order out at this server, which must lead.
    pub(super) async fn order_here(&self, order: Order, deadline: Instant) -> Result<(), MembershipError> {
        check(&order)?;
        if !self.leads() {
            return Err(unavailable("this server does not lead"));
        }
        match order {
            Order::AddLearner(server, addresses) => self.add_learner(server, addresses, deadline).await,
            Order::Promote(server) => self.promote(server, deadline).await,
            Order::Remove { server, lost } if server == self.options.server.0 && self.voters().len() > 1 => {
                Box::pin(self.leave(lost, deadline)).await
            }
            Order::Remove { server, lost } => self.remove(server, lost, deadline).await,
            Order::Transfer(to) => self.transfer(to, deadline).await,
        }
    }

    fn nodes(&self) -> BTreeMap<u64, PeerAddresses> {
        let membership = self
            .raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .clone();
        membership.nodes().map(|(id, node)| (*id, node.clone())).collect()
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.raft.voter_ids().collect()
    }

    /// Whether a change of voters is half done: both lists count.
    fn is_joint(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_joint_config().len() > 1
    }

    /// A change of voters has two steps, and Raft takes the second for whoever waits for the first: so somebody waits,
    /// also when the caller has hung up.
    fn change_to_its_end(
        &self,
        change: ChangeMembers<u64, PeerAddresses>,
        retain: bool,
    ) -> impl Future<Output = Raftly> {
        let raft = self.raft.clone();
        let done = tokio::spawn(async move { raft.change_membership(change, retain).await });
        async { done.await.unwrap_or(Err(RaftError::Fatal(Fatal::Stopped))) }
    }

    async fn add_learner(
        &self,
        server: u64,
        addresses: PeerAddresses,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let nodes = self.nodes();
        match nodes.get(&server) {
            Some(known) if *known == addresses => return Ok(()),
            Some(known) => {
                return Err(invalid(format!(
                    "server {server} is a member already, at {known}"
                )));
            }
            None => {}
        }
        // A server that takes its own address for a peer's would talk to itself for ever.
        if let Some((owner, _)) = nodes
            .iter()
            .find(|(_, node)| node.peer_address == addresses.peer_address)
        {
            let address = &addresses.peer_address;
            return Err(invalid(format!(
                "peer address {address} belongs to server {owner} already"
            )));
        }
        self.solitude.end();
        changed(deadline, self.raft.add_learner(server, addresses, false)).await
    }

    async fn promote(&self, server: u64, deadline: Instant) -> Result<(), MembershipError> {
        if self.voters().contains(&server) && !self.is_joint() {
            return Ok(());
        }
        if !self.nodes().contains_key(&server) {
            return Err(invalid(format!(
                "server {server} is not a member, add it as a learner first"
            )));
        }
        self.wait_caught_up(server, deadline).await?;
        self.wait_votes(server, deadline).await?;
        let change = ChangeMembers::AddVoterIds([server].into());
        changed(deadline, self.change_to_its_end(change, true)).await
    }

    async fn wait_caught_up(&self, server: u64, deadline: Instant) -> Result<(), MembershipError> {
        let mut metrics = self.metrics();
        loop {
            let behind = {
                let metrics = metrics.borrow_and_update();
                let Some(replication) = &metrics.replication else {
                    return Err(unavailable("this server no longer leads"));
                };
                let matched = replication.get(&server).and_then(|matched| *matched);
                let next = matched.map_or(0, |matched| matched.index + 1);
                metrics
                    .last_log_index
                    .map_or(0, |last| last + 1)
                    .saturating_sub(next)
            };
            if behind <= CAUGHT_UP_WITHIN {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(unavailable("this server is stopping")),
                Err(_) => {
                    return Err(unavailable(format!(
                        "server {server} is still {behind} entries behind"
                    )));
                }
            }
        }
    }

    /// Who becomes a voter before it may vote could be needed for an election that lets it catch up.
    async fn wait_votes(&self, server: u64, deadline: Instant) -> Result<(), MembershipError> {
        let address = self.address_of(server).unwrap_or_default();
        loop {
            let answer = upkeep::probe(&self.peers, server, &address).await;
            if answer.is_some_and(|answer| !answer.vote_withheld) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(unavailable(format!("server {server} cannot vote yet")));
            }
            tokio::time::sleep(VOTE_LOOK).await;
        }
    }

    /// A leader that is to go hands over first: removed while it leads, it would lead on for a while without a vote.
    async fn leave(&self, lost: bool, deadline: Instant) -> Result<(), MembershipError> {
        let server = self.options.server.0;
        // Here, where it is known: the next leader would say it again and again, and have the lead for nothing.
        self.check_remaining(&self.voters(), server)?;
        self.check_dropping(server)?;
        self.transfer(None, deadline).await?;
        loop {
            match self.order(Order::Remove { server, lost }, deadline).await {
                // A new leader knows of it a moment later, and changes nothing until it has committed an entry.
                Err(MembershipError::InProgress { .. } | MembershipError::Unavailable { .. })
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(VOTE_LOOK).await;
                }
                decided => return decided,
            }
        }
    }

    async fn remove(&self, server: u64, lost: bool, deadline: Instant) -> Result<(), MembershipError> {
        let voters = self.voters();
        if !self.nodes().contains_key(&server) {
            return Err(invalid(format!("server {server} is not a member")));
        }
        if voters == BTreeSet::from([server]) {
            return Err(invalid(format!(
                "server {server} is the only voter, promote another first"
            )));
        }
        if voters.contains(&server) {
            self.check_remaining(&voters, server)?;
        }
        let only = BTreeSet::from([server]);
        let change = match voters.contains(&server) {
            true => ChangeMembers::RemoveVoters(only),
            false => ChangeMembers::RemoveNodes(only),
        };
        // Another order for the same server would have it stay while this one removes it.
        let (Ok(_removing), false) = (self.removing.try_lock(), self.is_changing()) else {
            return Err(MembershipError::InProgress {
                reason: "its outcome is not known yet".into(),
            });
        };
        self.check_dropping(server)?;
        let heir = self.heir.get().and_then(Weak::upgrade);
        if let Some(heir) = heir.clone() {
            heir.clone().inherit(ServerId(server), lost, deadline).await?;
            if Instant::now() >= deadline {
                heir.let_stay(ServerId(server)).await;
                return Err(unavailable(format!(
                    "fetching what server {server} has of AP groups took all the time"
                )));
            }
        }
        let removed = changed(deadline, self.change_to_its_end(change, false)).await;
        // Where it is on its way out, or may be, it may be removed after all, a while later, and must not have gone on.
        let is_known = matches!(&removed, Err(error) if !matches!(error, MembershipError::Unknown { .. }));
        if let (true, true, Some(heir)) = (is_known, self.keeps_member(server), heir) {
            heir.let_stay(ServerId(server)).await;
        }
        removed.map_err(|error| match error {
            MembershipError::Unknown { reason } => MembershipError::Unknown {
                reason: format!(
                    "{reason}; until it is decided server {server} may take no writes of AP groups: look at the members, and if \
                     it is one of them still, remove it again"
                ),
            },
            other => other,
        })
    }

    fn keeps_member(&self, server: u64) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let config = &metrics.membership_config;
        let joint = config.get_joint_config();
        let votes = joint.iter().any(|voters| voters.contains(&server));
        let stays = joint.last().is_some_and(|voters| voters.contains(&server));
        config.get_node(&server).is_some() && votes == stays
    }

    /// From a list that is half done the next one would be made without those that this one drops.
    fn check_dropping(&self, server: u64) -> Result<(), MembershipError> {
        match self.is_dropping().into_iter().find(|other| *other != server) {
            Some(other) => Err(MembershipError::InProgress {
                reason: format!("the removal of server {other} is half done; repeat that first"),
            }),
            None => Ok(()),
        }
    }

    /// Voters that a change which is half done takes out.
    fn is_dropping(&self) -> Vec<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let joint = metrics.membership_config.get_joint_config();
        let [before, after] = &joint[..] else {
            return Vec::new();
        };
        before.difference(after).copied().collect()
    }

    /// Whether a change of the members is proposed and not decided.
    fn is_changing(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.committed_membership_config.log_id() != metrics.membership_config.log_id()
    }

    /// Whoever remains must be able to decide: a change that they cannot commit is never undone, and no other can be made.
    fn check_remaining(&self, voters: &BTreeSet<u64>, leaving: u64) -> Result<(), MembershipError> {
        let heard = self.voters_heard();
        let is_there = |server: &u64| *server == self.options.server.0 || heard.contains(server);
        let remaining = || voters.iter().filter(|server| **server != leaving);
        let there = remaining().filter(|server| is_there(server)).count();
        if there > remaining().count() / 2 {
            return Ok(());
        }
        let silent: Vec<String> = remaining()
            .filter(|server| !is_there(server))
            .map(u64::to_string)
            .collect();
        Err(unavailable(format!(
            "without server {leaving} nothing could be decided: of the voters that remain, {} not answer; remove those first",
            match &silent[..] {
                [one] => format!("server {one} does"),
                some => format!("servers {} do", some.join(", ")),
            }
        )))
    }

    /// Hands leadership over; this server must lead.
    pub(super) async fn transfer(&self, to: Option<u64>, deadline: Instant) -> Result<(), MembershipError> {
        let to = match to {
            Some(to) if to == self.options.server.0 => return Ok(()),
            Some(to) if self.voters().contains(&to) => {
                self.able_to_lead(vec![to], deadline, deadline, |_| true).await?
            }
            Some(to) => return Err(invalid(format!("server {to} is not a voter"))),
            None => {
                let each = Instant::now() + self.options.lease();
                self.able_to_lead(self.voters_heard(), each, deadline, |_| true)
                    .await?
            }
        };
        self.hand_to(to, deadline).await
    }

    /// The same, to a voter that has room on its disk; without one leadership stays.
    pub(super) async fn transfer_to_room(&self, deadline: Instant) -> Result<(), MembershipError> {
        let each = Instant::now() + self.options.lease();
        let has_room = |answer: &ProbeResponse| !answer.disk_full;
        let to = self.able_to_lead(self.voters_heard(), each, deadline, has_room);
        self.hand_to(to.await?, deadline).await
    }

    async fn hand_to(&self, to: u64, deadline: Instant) -> Result<(), MembershipError> {
        let own = self.options.server.0;
        self.raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        let mut leadership = self.leadership.subscribe();
        let handed = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != ServerId(own)));
        match tokio::time::timeout_at(deadline, handed).await {
            Ok(Ok(now)) if now.leader == Some(ServerId(to)) => Ok(()),
            Ok(Ok(_)) => Err(unavailable(format!("another server than {to} was elected"))),
            Ok(Err(_)) => Err(unavailable("this server is stopping")),
            Err(_) => Err(MembershipError::Unknown {
                reason: format!("server {to} did not take over in time"),
            }),
        }
    }

    /// The other voters that were heard from within a lease, the one with the longest log first.
    fn voters_heard(&self) -> Vec<u64> {
        let mut heard = self.members();
        heard.retain(|member| {
            let lately = |since: Duration| since < self.options.lease();
            member.voter && member.server != self.options.server && member.last_contact.is_some_and(lately)
        });
        heard.sort_by_key(|member| Reverse(member.matched));
        heard.iter().map(|member| member.server.0).collect()
    }

    /// The first of these that answers as it should, may stand, and has the log by `caught_up`. A leader that has once asked another to
    /// take over leads no more, and if that one cannot, nobody does: so it is asked before.
    async fn able_to_lead(
        &self,
        servers: Vec<u64>,
        caught_up: Instant,
        deadline: Instant,
        suits: impl Fn(&ProbeResponse) -> bool,
    ) -> Result<u64, MembershipError> {
        for server in servers {
            let address = self.address_of(server).unwrap_or_default();
            let asked =
                tokio::time::timeout(self.options.lease(), upkeep::probe(&self.peers, server, &address));
            let answer = tokio::time::timeout_at(deadline, asked).await;
            if let Ok(Ok(Some(answer))) = answer
                && !answer.vote_withheld
                && suits(&answer)
                && self.wait_caught_up(server, caught_up.min(deadline)).await.is_ok()
            {
                return Ok(server);
            }
        }
        Err(unavailable("no such voter answers, has the log and may lead"))
    }

    pub(super) async fn take_snapshot(&self) -> Result<(), MembershipError> {
        let wanted = self.head.borrow().position.map(|position| position.index.0);
        let trigger = async || {
            let triggered = self.raft.trigger().snapshot().await;
            triggered.map_err(|error| unavailable(error.to_string()))
        };
        let mut metrics = self.metrics();
        let deadline = Instant::now() + SNAPSHOT_TIMEOUT;
        let mut before = None;
        loop {
            let taken = metrics
                .borrow_and_update()
                .snapshot
                .as_ref()
                .map(|snapshot| snapshot.index);
            if taken >= wanted {
                return Ok(());
            }
            // Raft passes over the wish while it is taking one, of an earlier state.
            if before != Some(taken) {
                before = Some(taken);
                trigger().await?;
            }
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(unavailable("this server is stopping")),
                Err(_) => {
                    return Err(MembershipError::Unknown {
                        reason: "the snapshot is still being taken".into(),
                    });
                }
            }
        }
    }
}

fn check(order: &Order) -> Result<(), MembershipError> {
    match order {
        Order::AddLearner(0, _) | Order::Promote(0) | Order::Remove { server: 0, .. } => {
            Err(invalid("the server id is 0, it must be at least 1"))
        }
        Order::AddLearner(_, addresses) if addresses.peer_address.is_empty() => {
            Err(invalid("the peer address is empty"))
        }
        Order::AddLearner(..) | Order::Promote(_) | Order::Remove { .. } | Order::Transfer(_) => Ok(()),
    }
}

async fn changed(deadline: Instant, change: impl Future<Output = Raftly>) -> Result<(), MembershipError> {
    let unknown = |reason: String| MembershipError::Unknown { reason };
    match tokio::time::timeout_at(deadline, change).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::Fatal(fatal))) => Err(unknown(fatal.to_string())),
        Ok(Err(RaftError::APIError(error))) => Err(match error {
            ClientWriteError::ForwardToLeader(_) => unavailable("this server does not lead"),
            ClientWriteError::LogEntryDiscarded(_) => unknown("the leader changed meanwhile".into()),
            ClientWriteError::PreconditionFailed(_) => unavailable("the membership changed meanwhile"),
            ClientWriteError::ChangeMembershipError(error) => match error {
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                    MembershipError::InProgress {
                        reason: error.to_string(),
                    }
                }
                ChangeMembershipError::EmptyMembership(_)
                | ChangeMembershipError::LearnerNotFound(_)
                | ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_) => invalid(error.to_string()),
            },
        }),
        Err(_) => Err(unknown("not committed before the deadline".into())),
    }
}

/// A refusal on its way to the server that asked.
pub(super) fn wire_error(error: MembershipError) -> Error {
    let (code, message) = match error {
        MembershipError::Invalid { reason } => (ErrorCode::InvalidArgument, reason),
        MembershipError::InProgress { reason } => (ErrorCode::Membership, reason),
        MembershipError::Unavailable { reason } => (ErrorCode::Unavailable, reason),
        MembershipError::Unknown { reason } => (ErrorCode::OutcomeUnknown, reason),
    };
    Error {
        code: code.into(),
        message,
        ..Error::default()
    }
}

fn error_of(error: Error) -> MembershipError {
    let code = error.code();
    let reason = error.message;
    match code {
        ErrorCode::InvalidArgument => MembershipError::Invalid { reason },
        ErrorCode::Membership => MembershipError::InProgress { reason },
        ErrorCode::Unavailable => MembershipError::Unavailable { reason },
        _ => MembershipError::Unknown { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_wire() {
        let addresses = PeerAddresses {
            peer_address: "a:1".into(),
            client_address: "a:2".into(),
            http_address: String::new(),
        };
        let orders = [
            Order::AddLearner(4, addresses),
            Order::Promote(4),
            Order::Remove {
                server: 4,
                lost: false,
            },
            Order::Remove {
                server: 4,
                lost: true,
            },
            Order::Transfer(None),
            Order::Transfer(Some(2)),
        ];
        for order in orders {
            assert_eq!(Order::from_wire(order.to_wire()), Some(order));
        }
        assert_eq!(Order::from_wire(MembershipOrder::default()), None);
    }
}
