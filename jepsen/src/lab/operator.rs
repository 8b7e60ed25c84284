//! Whoever orders changes of a cluster: members come and go, leadership moves.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::{
    AddLearnerRequest, Member, MemberRole, MembersRequest, PromoteRequest, RemoveRequest, StatusResponse,
    TransferLeadershipRequest,
};
use tonic::transport::{Channel, Endpoint};

use super::server::{Endpoints, status_of};
use super::wait::{NotInTime, WAIT_MAX, eventually};

/// How long one membership call may take: a learner has to catch up first.
const MEMBERSHIP_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A server that may be asked.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) id: u64,
    pub(super) address: String,
}

/// Knows where the servers are, and orders changes from whichever leads. It outlives no change of addresses.
#[derive(Clone, Debug)]
pub struct Operator {
    probes: Vec<Probe>,
}

impl Operator {
    pub(super) fn new(probes: Vec<Probe>) -> Self {
        Self { probes }
    }

    /// Takes server `id` in as a learner.
    ///
    /// # Errors
    /// The cluster refuses for as long as `MEMBERSHIP_MAX`, or does not answer.
    pub async fn add_learner(&self, id: u64, endpoints: Endpoints) -> anyhow::Result<()> {
        let request = AddLearnerRequest {
            server: id,
            peer_address: endpoints.peer,
            client_address: endpoints.client,
            http_address: endpoints.http,
        };
        let done = |members: &[Member]| members.iter().any(|member| member.server == id);
        self.change(&format!("taking in server {id}"), done, |mut client| {
            let request = request.clone();
            async move { client.add_learner(request).await.map(drop) }
        })
        .await
    }

    /// Makes the learner `id` a voter.
    ///
    /// # Errors
    /// The cluster refuses for as long as `MEMBERSHIP_MAX`, or does not answer.
    pub async fn promote(&self, id: u64) -> anyhow::Result<()> {
        let done = |members: &[Member]| members.iter().any(|member| member.server == id && member.voter);
        self.change(&format!("promoting server {id}"), done, |mut client| async move {
            client.promote(PromoteRequest { server: id }).await.map(drop)
        })
        .await
    }

    /// Takes server `id` out of the cluster. Its process goes on; stop it then. `lost`: it does not answer any more.
    ///
    /// # Errors
    /// The cluster refuses for as long as `MEMBERSHIP_MAX`, or does not answer.
    pub async fn remove(&self, id: u64, lost: bool) -> anyhow::Result<()> {
        let done = |members: &[Member]| members.iter().all(|member| member.server != id);
        self.change(&format!("removing server {id}"), done, |mut client| async move {
            client.remove(RemoveRequest { server: id, lost }).await.map(drop)
        })
        .await
    }

    /// Asks the leader once to hand over to server `to`.
    ///
    /// # Errors
    /// There is no leader, or it refuses.
    pub async fn transfer_leadership(&self, to: u64) -> anyhow::Result<()> {
        let leader = leader_of(&self.probes, CONNECT_MAX).await?;
        let mut client = ClusterClient::new(connect(&leader.address).await?);
        client
            .transfer_leadership(TransferLeadershipRequest { server: to })
            .await?;
        Ok(())
    }

    /// Asks the leader, again and again while it refuses: an earlier change may be under way, a learner may
    /// still be catching up, leadership may move. An answer may get lost, so the members themselves are asked too.
    async fn change<D, F, Fut>(&self, what: &str, done: D, mut call: F) -> anyhow::Result<()>
    where
        D: Fn(&[Member]) -> bool,
        F: FnMut(ClusterClient<Channel>) -> Fut,
        Fut: Future<Output = Result<(), tonic::Status>>,
    {
        let started = Instant::now();
        loop {
            let leader = leader_of(&self.probes, WAIT_MAX).await?;
            let refused = match connect(&leader.address).await {
                Ok(channel) => {
                    let mut client = ClusterClient::new(channel);
                    match call(client.clone()).await {
                        Ok(()) => return Ok(()),
                        Err(status) => {
                            let members = client.members(MembersRequest {}).await;
                            if members.is_ok_and(|members| done(&members.get_ref().members)) {
                                return Ok(());
                            }
                            format!("{:?}: {}", status.code(), status.message())
                        }
                    }
                }
                Err(failed) => failed.to_string(),
            };
            if started.elapsed() > MEMBERSHIP_MAX {
                bail!("{what}: {refused}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .timeout(MEMBERSHIP_MAX)
        .connect_timeout(CONNECT_MAX);
    endpoint
        .connect()
        .await
        .with_context(|| format!("connecting to {address}"))
}

/// The one that leads in the highest term that any answering server claims to lead in.
pub(super) async fn leader_of(asked: &[Probe], bound: Duration) -> Result<Probe, NotInTime> {
    eventually("a leader", bound, || async {
        let statuses = statuses_of(asked).await;
        let leading = |(_, status): &&(u64, StatusResponse)| status.role() == MemberRole::Leader;
        let leader = statuses
            .iter()
            .filter(leading)
            .max_by_key(|(_, status)| status.term)
            .map(|(id, _)| *id)?;
        asked.iter().find(|probe| probe.id == leader).cloned()
    })
    .await
}

/// Asks all at once; those that do not answer are left out.
pub(super) async fn statuses_of(probes: &[Probe]) -> Vec<(u64, StatusResponse)> {
    let mut asked = tokio::task::JoinSet::new();
    for Probe { id, address } in probes {
        let (id, address) = (*id, address.clone());
        asked.spawn(async move { status_of(&address).await.ok().map(|status| (id, status)) });
    }
    let mut statuses: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    statuses.sort_by_key(|(id, _)| *id);
    statuses
}
