//! How far watchers have come: asked of every server of the cluster, each for its own streams, and added up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use rollcall_proto::v1;
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::watch_client::WatchClient;
use tokio::time::Instant;

use crate::error::Error;
use crate::key::ServiceKey;
use crate::registry::{Kind, Registry};
use crate::sign::Sign;

/// Pause before a server whose watchers are not current is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// The same for one that did not answer.
const PAUSE_UNREACHABLE: Duration = Duration::from_millis(250);
/// One question to one server; a server that hangs does not use up the whole wait.
const QUESTION_MAX: Duration = Duration::from_secs(2);

/// How far the watchers of some services have come, at all servers of the cluster.
///
/// A consumer that is between two servers at the moment is counted by none; it gets the state, or what it missed,
/// when it subscribes again.
#[derive(Clone, Debug)]
pub struct Convergence {
    /// What was asked about.
    pub revision: u64,
    /// One entry a member of the cluster, in the order of their ids.
    pub servers: Vec<ServerConvergence>,
}

/// One server's part.
#[derive(Clone, Debug)]
pub struct ServerConvergence {
    /// Its id.
    pub server: u64,
    /// Its client address.
    pub address: String,
    /// What it said; [`Err`]: it could not be asked, so nothing is known of its watchers.
    pub answer: Result<ServerWatchers, std::sync::Arc<Error>>,
}

/// The watchers of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerWatchers {
    /// The revision the server itself has applied. If all the services are of groups in mode AP: of its own count,
    /// which says nothing elsewhere.
    pub applied: u64,
    /// How the groups of the services are replicated; CP, if any is.
    pub mode: v1::GroupMode,
    /// Streams that follow any of the services.
    pub subscribers: u64,
    /// Those whose client acknowledged the revision asked about.
    pub current: u64,
    /// Some of the others: the client's name, and the revision it acknowledged last.
    pub behind: Vec<(String, u64)>,
    /// What the server shows of the services in mode AP. Those who are current have this.
    pub ap_signs: BTreeMap<ServiceKey, Sign>,
    /// The hashes of their own metadata, which are no part of the signs; none of services without any.
    pub ap_metadata: BTreeMap<ServiceKey, u64>,
}

impl ServerConvergence {
    fn unasked(member: &v1::Member) -> Self {
        Self {
            server: member.server,
            address: member.client_address.clone(),
            answer: Err(std::sync::Arc::new(Error::Unavailable {
                message: "the server was not asked".into(),
            })),
        }
    }

    /// Whether the server serves the revision and all of its watchers have it; of services in mode AP: have what it
    /// shows.
    #[must_use]
    pub fn is_complete(&self, revision: u64) -> bool {
        self.answer.as_ref().is_ok_and(|watchers| watchers.have(revision))
    }
}

impl ServerWatchers {
    /// Whether all of them, and the server, have the revision; in mode AP what the server shows.
    fn have(&self, revision: u64) -> bool {
        let applied = self.applied >= revision || self.mode == v1::GroupMode::Ap;
        applied && self.current >= self.subscribers
    }
}

impl Convergence {
    /// Watch streams that follow any of the services, at the servers that answered.
    #[must_use]
    pub fn subscribers(&self) -> u64 {
        self.answers().map(|watchers| watchers.subscribers).sum()
    }

    /// Those whose client acknowledged the revision.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.answers().map(|watchers| watchers.current).sum()
    }

    /// Servers that could not be asked: what their watchers have is unknown.
    pub fn unknown(&self) -> impl Iterator<Item = &ServerConvergence> {
        self.servers.iter().filter(|server| server.answer.is_err())
    }

    /// Whether every server answered, serves the revision, and all of its watchers have it; and all show the same of
    /// services in mode AP. Of no server at all, nothing is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let complete = |server: &ServerConvergence| server.is_complete(self.revision);
        !self.servers.is_empty() && self.servers.iter().all(complete) && self.agrees()
    }

    /// Whether the servers that answered show the same of the services in mode AP.
    #[must_use]
    pub fn agrees(&self) -> bool {
        let mut shown = self
            .answers()
            .map(|watchers| (&watchers.ap_signs, &watchers.ap_metadata));
        let first = shown.next();
        shown.all(|shown| Some(shown) == first)
    }

    fn answers(&self) -> impl Iterator<Item = &ServerWatchers> {
        self.servers
            .iter()
            .filter_map(|server| server.answer.as_ref().ok())
    }
}

impl Registry {
    /// How many watchers of `services` have acknowledged `revision`, as every member of the cluster says it now. The
    /// revision is of those in mode CP; of those in mode AP, watchers are to have what their server shows, and all
    /// servers are to show the same: ask behind the write.
    /// A member that cannot be asked is an entry with its error, never an error of the whole.
    ///
    /// # Errors
    /// Nobody told who the members are: [`Error::NotReady`], and the other transient ones.
    pub async fn convergence(&self, services: &[ServiceKey], revision: u64) -> Result<Convergence, Error> {
        self.wait_converged(services, revision, Duration::ZERO).await
    }

    /// As [`Self::convergence`], asking again until it is complete or `timeout` has passed; the last answer of
    /// each server counts. Look at [`Convergence::is_complete`].
    ///
    /// # Errors
    /// Those of [`Self::convergence`].
    pub async fn wait_converged(
        &self,
        services: &[ServiceKey],
        revision: u64,
        timeout: Duration,
    ) -> Result<Convergence, Error> {
        let until = Instant::now() + timeout;
        let mut members = self.members().await?.value;
        if members.is_empty() {
            return Err(Error::NotReady {
                message: "the server that was asked does not know the members of the cluster yet".into(),
            });
        }
        let request = v1::ConvergenceRequest {
            keys: services.iter().map(v1::ServiceKey::from).collect(),
            revision,
        };
        loop {
            let asked = members
                .iter()
                .map(|member| self.wait_converged_at(member, &request, until));
            let (mut servers, told): (Vec<_>, Vec<_>) = join_all(asked).await.into_iter().unzip();
            // Who told of the members may have been behind: those that serve the revision know of later ones.
            let unasked = unasked(&members, told.into_iter().flatten());
            let late = Instant::now() + PAUSE >= until;
            if late {
                servers.extend(unasked.iter().map(ServerConvergence::unasked));
            }
            servers.sort_by_key(|server| server.server);
            let convergence = Convergence { revision, servers };
            // Each may be complete for itself before it has heard what another one shows.
            if late || (unasked.is_empty() && convergence.agrees()) {
                return Ok(convergence);
            }
            if unasked.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
            members.extend(unasked);
        }
    }

    /// What one server says of its watchers; if that is complete, also whom it counts among the members.
    async fn wait_converged_at(
        &self,
        member: &v1::Member,
        request: &v1::ConvergenceRequest,
        until: Instant,
    ) -> (ServerConvergence, Vec<v1::Member>) {
        let mut config = (*self.inner.config).clone();
        config.servers = vec![member.client_address.clone()];
        let mut convergence = ServerConvergence::unasked(member);
        let alone = match Self::connect(config) {
            Ok(alone) => alone,
            Err(error) => {
                convergence.answer = Err(std::sync::Arc::new(error));
                return (convergence, Vec::new());
            }
        };
        loop {
            let mut answer = alone.ask_convergence(request, until).await;
            if answer.as_ref().is_ok_and(|told| told.have(request.revision)) {
                match alone.ask_members(until).await {
                    Ok(members) => {
                        convergence.answer = answer.map_err(std::sync::Arc::new);
                        return (convergence, members);
                    }
                    Err(error) => answer = Err(error),
                }
            }
            let (pause, hopeless) = match &answer {
                Ok(_) => (PAUSE, false),
                Err(error) => (PAUSE_UNREACHABLE, !error.is_transient()),
            };
            convergence.answer = answer.map_err(std::sync::Arc::new);
            if hopeless || Instant::now() + pause >= until {
                return (convergence, Vec::new());
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The members, of a handle on one server.
    async fn ask_members(&self, until: Instant) -> Result<Vec<v1::Member>, Error> {
        let response = self
            .call(Kind::Read, Some(question_time(until)), |channel, _| async move {
                ClusterClient::new(channel).members(v1::MembersRequest {}).await
            })
            .await?;
        Ok(response.members)
    }

    /// One answer, of a handle on one server.
    async fn ask_convergence(
        &self,
        request: &v1::ConvergenceRequest,
        until: Instant,
    ) -> Result<ServerWatchers, Error> {
        let response = self
            .call(Kind::Read, Some(question_time(until)), |channel, _| async move {
                WatchClient::new(channel).convergence(request.clone()).await
            })
            .await?;
        let header = response.header.unwrap_or_default();
        let (mut ap_signs, mut ap_metadata) = (BTreeMap::new(), BTreeMap::new());
        for known in response.ap_signs {
            let key = ServiceKey::from(known.key.unwrap_or_default());
            if known.metadata_hash != 0 {
                ap_metadata.insert(key.clone(), known.metadata_hash);
            }
            ap_signs.insert(key, known.sign.unwrap_or_default().into());
        }
        Ok(ServerWatchers {
            applied: header.revision,
            mode: header.mode(),
            ap_signs,
            ap_metadata,
            subscribers: response.subscribers,
            current: response.current,
            behind: response
                .behind
                .into_iter()
                .map(|watcher| (watcher.client, watcher.acknowledged))
                .collect(),
        })
    }
}

/// How long one question may take.
fn question_time(until: Instant) -> Duration {
    until
        .saturating_duration_since(Instant::now())
        .clamp(PAUSE_UNREACHABLE, QUESTION_MAX)
}

/// Those among the told that are not among the asked, each once.
fn unasked(asked: &[v1::Member], told: impl Iterator<Item = v1::Member>) -> Vec<v1::Member> {
    let name = |member: &v1::Member| (member.server, member.client_address.clone());
    let asked: BTreeSet<_> = asked.iter().map(name).collect();
    let told: BTreeMap<_, _> = told.map(|member| (name(&member), member)).collect();
    let new = told.into_iter().filter(|(name, _)| !asked.contains(name));
    new.map(|(_, member)| member).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use rollcall_proto::v1::cluster_server::{Cluster, ClusterServer};
    use rollcall_proto::v1::watch_server::WatchServer;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status, Streaming};

    use super::*;

    fn server(server: u64, answer: Option<(u64, u64, u64)>) -> ServerConvergence {
        let watchers = |(applied, subscribers, current)| ServerWatchers {
            applied,
            subscribers,
            current,
            ..ServerWatchers::default()
        };
        let unknown = Error::Unavailable {
            message: "it is down".into(),
        };
        ServerConvergence {
            server,
            address: format!("s{server}:1"),
            answer: answer.map(watchers).ok_or(std::sync::Arc::new(unknown)),
        }
    }

    #[test]
    fn only_answers_of_all_servers_that_serve_the_revision_are_complete() {
        let judge = |servers: Vec<ServerConvergence>| Convergence { revision: 7, servers };
        let all = judge(vec![server(1, Some((9, 2, 2))), server(2, Some((7, 0, 0)))]);
        assert!(all.is_complete());
        assert_eq!((all.current(), all.subscribers()), (2, 2));
        let one_behind = judge(vec![server(1, Some((9, 2, 1)))]);
        assert!(!one_behind.is_complete());
        let server_behind = judge(vec![server(1, Some((6, 0, 0)))]);
        assert!(
            !server_behind.is_complete(),
            "a watcher that comes now would get the old state"
        );
        let shows = |id, applied, sign: u128| {
            let mut server = server(id, Some((applied, 1, 1)));
            if let Ok(watchers) = &mut server.answer {
                watchers.mode = v1::GroupMode::Ap;
                watchers.ap_signs.insert(ServiceKey::new("g", "s"), Sign(sign));
            }
            server
        };
        assert!(
            judge(vec![shows(1, 900, 5), shows(2, 3, 5)]).is_complete(),
            "servers that count for themselves agree by their signs"
        );
        assert!(!judge(vec![shows(1, 900, 5), shows(2, 3, 4)]).is_complete());
        let mut other = shows(2, 3, 5);
        if let Ok(watchers) = &mut other.answer {
            watchers.ap_metadata.insert(ServiceKey::new("g", "s"), 7);
        }
        assert!(!judge(vec![shows(1, 900, 5), other]).is_complete(), "metadata");
        assert!(!judge(Vec::new()).is_complete(), "nobody was asked");
        let unknown = judge(vec![server(1, Some((9, 1, 1))), server(2, None)]);
        assert!(!unknown.is_complete());
        assert_eq!(
            unknown.unknown().map(|server| server.server).collect::<Vec<_>>(),
            [2]
        );
    }

    /// A server that knows of more members each time it is asked, up to the last list.
    #[derive(Debug)]
    struct Fake {
        members: Mutex<VecDeque<Vec<v1::Member>>>,
        watchers: (u64, u64),
    }

    type Answered<T> = Result<Response<T>, Status>;

    macro_rules! cluster_that_tells_members_alone {
        ($($name:ident($request:ident) -> $response:ident;)*) => {
            #[tonic::async_trait]
            impl Cluster for Fake {
                async fn members(&self, _: Request<v1::MembersRequest>) -> Answered<v1::MembersResponse> {
                    let mut lists = self.members.lock();
                    let members = match lists.len() {
                        0 | 1 => lists.front().cloned(),
                        _ => lists.pop_front(),
                    };
                    Ok(Response::new(v1::MembersResponse {
                        members: members.unwrap_or_default(),
                        ..v1::MembersResponse::default()
                    }))
                }

                $(async fn $name(&self, _: Request<v1::$request>) -> Answered<v1::$response> {
                    Err(Status::unimplemented("not asked for here"))
                })*
            }
        };
    }

    cluster_that_tells_members_alone! {
        status(StatusRequest) -> StatusResponse;
        add_learner(AddLearnerRequest) -> MembershipResponse;
        promote(PromoteRequest) -> MembershipResponse;
        remove(RemoveRequest) -> MembershipResponse;
        transfer_leadership(TransferLeadershipRequest) -> MembershipResponse;
        take_snapshot(TakeSnapshotRequest) -> MembershipResponse;
        rehearse_storm(RehearseStormRequest) -> RehearseStormResponse;
    }

    #[tonic::async_trait]
    impl v1::watch_server::Watch for Fake {
        type WatchStream = tokio_stream::Empty<Result<v1::WatchResponse, Status>>;

        async fn watch(&self, _: Request<Streaming<v1::WatchRequest>>) -> Answered<Self::WatchStream> {
            Err(Status::unimplemented("not asked for here"))
        }

        async fn convergence(
            &self,
            request: Request<v1::ConvergenceRequest>,
        ) -> Answered<v1::ConvergenceResponse> {
            let header = Some(v1::ResponseHeader {
                revision: request.into_inner().revision,
                ..v1::ResponseHeader::default()
            });
            Ok(Response::new(v1::ConvergenceResponse {
                header,
                subscribers: self.watchers.0,
                current: self.watchers.1,
                ..v1::ConvergenceResponse::default()
            }))
        }
    }

    /// A cluster whose first server does not know of the second one at first.
    async fn asked_of(second: (u64, u64)) -> Result<Convergence, Error> {
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let member = |(server, listener): (u64, &tokio::net::TcpListener)| v1::Member {
            server,
            client_address: listener.local_addr().unwrap().to_string(),
            ..v1::Member::default()
        };
        let members: Vec<v1::Member> = (1..).zip(&listeners).map(member).collect();
        let lists = [
            vec![members[..1].to_vec(), members.clone()],
            vec![members.clone()],
        ];
        for ((listener, lists), watchers) in listeners.into_iter().zip(lists).zip([(1, 1), second]) {
            let fake = Arc::new(Fake {
                members: Mutex::new(lists.into()),
                watchers,
            });
            let serving = tonic::transport::Server::builder()
                .add_service(ClusterServer::from_arc(Arc::clone(&fake)))
                .add_service(WatchServer::from_arc(fake))
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::spawn(serving);
        }
        let registry = crate::connect([members[0].client_address.clone()])?;
        let wait = Duration::from_secs(1);
        registry
            .wait_converged(&[ServiceKey::new("g", "s")], 7, wait)
            .await
    }

    #[tokio::test]
    async fn a_server_that_was_not_heard_of_at_first_is_asked_too() {
        let all = asked_of((3, 3)).await.unwrap();
        assert!(all.is_complete(), "{all:?}");
        assert_eq!((all.servers.len(), all.current()), (2, 4));
        let behind = asked_of((3, 2)).await.unwrap();
        assert!(!behind.is_complete(), "{behind:?}");
    }
}
