//! Unary calls on the servers and the sessions: for tools.

use rollcall_proto::v1;
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::sessions_client::SessionsClient;

use crate::config::{ReadOptions, WriteOptions};
use crate::directory::{Answer, Page};
use crate::endpoint::Channel;
use crate::error::Error;
use crate::key::RequestId;
use crate::registry::{Kind, Registry, Written};

macro_rules! membership_order {
    ($(#[$doc:meta])* $name:ident, $request:ident { $($field:ident: $type:ty),* }) => {
        $(#[$doc])*
        pub async fn $name(&self, $($field: $type,)* options: WriteOptions) -> Result<Vec<v1::Member>, Error> {
            let request = v1::$request { $($field: $field.into()),* };
            let kind = Kind::Order(options.request_id.unwrap_or_else(RequestId::random));
            let response = self
                .call(kind, options.timeout, |channel, _| {
                    let request = request.clone();
                    async move { ClusterClient::new(channel).$name(request).await }
                })
                .await?;
            Ok(response.members)
        }
    };
}

impl Registry {
    /// How one server does: the one that happened to be asked. For a certain server make a handle with its
    /// address alone.
    ///
    /// # Errors
    /// The transient ones.
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        self.call(Kind::Read, None, |channel, _| async move {
            ClusterClient::new(channel).status(v1::StatusRequest {}).await
        })
        .await
    }

    /// The servers of the cluster.
    ///
    /// # Errors
    /// The transient ones.
    pub async fn members(&self) -> Result<Answer<Vec<v1::Member>>, Error> {
        let response = self
            .call(Kind::Read, None, |channel, _| async move {
                ClusterClient::new(channel).members(v1::MembersRequest {}).await
            })
            .await?;
        Ok(Answer {
            value: response.members,
            header: response.header.unwrap_or_default(),
        })
    }

    /// The servers as the one that happened to be asked knows them by gossip: also those that do not belong to
    /// the cluster yet, or any more. Empty if gossip is off there.
    ///
    /// # Errors
    /// The transient ones.
    pub async fn gossip_members(&self) -> Result<Answer<Vec<v1::GossipMember>>, Error> {
        let response = self
            .call(Kind::Read, None, |channel, _| async move {
                ClusterClient::new(channel).members(v1::MembersRequest {}).await
            })
            .await?;
        Ok(Answer {
            value: response.gossip,
            header: response.header.unwrap_or_default(),
        })
    }

    /// What a loss, a restart or a new request for full lists would have a server send to its watchers now; nothing
    /// is sent. Said by the server that happened to be asked, of its own watchers. For a certain server make a handle
    /// with its address alone.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::ServiceNotFound`], and the transient ones.
    pub async fn rehearse_storm(
        &self,
        request: &v1::RehearseStormRequest,
    ) -> Result<v1::RehearseStormResponse, Error> {
        self.call(Kind::Read, None, |channel, _| async move {
            ClusterClient::new(channel).rehearse_storm(request.clone()).await
        })
        .await
    }

    membership_order!(
        /// Lets a new server join as a learner; it does not count for quorums yet.
        ///
        /// # Errors
        /// [`Error::Membership`], [`Error::OutcomeUnknown`] (look at the members before repeating), and the
        /// transient ones.
        add_learner,
        AddLearnerRequest { server: u64, peer_address: &str, client_address: &str, http_address: &str }
    );

    membership_order!(
        /// Makes a learner that has caught up a voter.
        ///
        /// # Errors
        /// Those of [`Self::add_learner`].
        promote,
        PromoteRequest { server: u64 }
    );

    membership_order!(
        /// Takes a server out of the cluster. What it has of AP groups is fetched before; `lost`: if it does not answer, what
        /// only it has acknowledged there is given up.
        ///
        /// # Errors
        /// Those of [`Self::add_learner`]; [`Error::Membership`], too, if something would be lost.
        remove,
        RemoveRequest { server: u64, lost: bool }
    );

    membership_order!(
        /// Hands the leadership to a server; 0: to the most advanced follower.
        ///
        /// # Errors
        /// Those of [`Self::add_learner`].
        transfer_leadership,
        TransferLeadershipRequest { server: u64 }
    );

    membership_order!(
        /// Takes a snapshot on the server that happens to be asked.
        ///
        /// # Errors
        /// Those of [`Self::add_learner`].
        take_snapshot,
        TakeSnapshotRequest {}
    );

    fn sessions_client(&self, channel: Channel) -> SessionsClient<Channel> {
        SessionsClient::new(channel).max_decoding_message_size(self.inner.config.message_bytes_max)
    }

    /// One page of the sessions, in the order of their ids; `after` 0: from the first.
    ///
    /// # Errors
    /// [`Error::TooStale`], and the transient ones.
    pub async fn list_sessions(
        &self,
        after: u64,
        limit: u32,
        options: ReadOptions,
    ) -> Result<Answer<Page<v1::SessionSummary>>, Error> {
        let request = v1::ListSessionsRequest {
            read: Some(options.to_wire()),
            limit,
            after,
        };
        let response = self
            .call(Kind::Read, options.timeout, |channel, _| async move {
                self.sessions_client(channel).list_sessions(request).await
            })
            .await?;
        let page = Page {
            items: response.sessions,
            more: response.more,
        };
        Ok(Answer {
            value: page,
            header: response.header.unwrap_or_default(),
        })
    }

    /// All sessions, page by page; each page as of its own revision.
    ///
    /// # Errors
    /// Those of [`Self::list_sessions`].
    pub async fn all_sessions(&self, options: ReadOptions) -> Result<Answer<Vec<v1::SessionSummary>>, Error> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let answer = self.list_sessions(after, 0, options).await?;
            let last = answer.value.items.last().map(|session| session.session);
            all.extend(answer.value.items);
            match last {
                Some(last) if answer.value.more && last > after => after = last,
                _ => {
                    return Ok(Answer {
                        value: all,
                        header: answer.header,
                    });
                }
            }
        }
    }

    /// Ends a session by an operator's word; its nodes leave in one revision. Its client, if it lives, opens a
    /// new one and registers again.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`], [`Error::OutcomeUnknown`], and the transient ones.
    pub async fn end_session(&self, session: u64, options: WriteOptions) -> Result<Written, Error> {
        self.write(options, |channel, options| {
            let request = v1::EndSessionRequest {
                options: Some(options),
                session,
            };
            async move { self.sessions_client(channel).end_session(request).await }
        })
        .await
        .map(Written::from)
    }
}
