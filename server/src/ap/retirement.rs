//! Servers that are to be removed. What one acknowledged alone would go with it, so it first stops acknowledging, and
//! whoever leads then fetches what it has.

use std::sync::Arc;
use std::time::Duration;

use rollcall_core::directory::GroupMode;
use rollcall_core::ids::ServerId;
use rollcall_proto::v1::ApRetireRequest;
use tokio::time::Instant;
use tonic::Status;

use super::inner::Inner;
use super::members::Other;
use super::repair::{take_all, within};
use crate::raft::{Heir, MembershipError};

/// How long a server may take to say that it acknowledges nothing more.
const RETIRE_MAX: Duration = Duration::from_secs(3);
/// How long what it has may take to be here.
const INHERIT_MAX: Duration = Duration::from_secs(10);
/// After so long one that retired, and is a member all the same, goes on: whoever was to remove it has not said what became of
/// that. Longer than a change of the members may take.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

impl Inner {
    async fn say_retire(&self, other: &Other, stays: bool) -> Result<(), Status> {
        let request = ApRetireRequest {
            cluster: self.consensus.peers().cluster().to_owned(),
            from: self.server.0,
            to: other.server.0,
            stays,
        };
        let mut client = self.client(other)?;
        within(RETIRE_MAX, client.retire(request)).await.map(drop)
    }

    fn other(&self, server: ServerId) -> Option<Other> {
        self.others().into_iter().find(|other| other.server == server)
    }

    /// Whether there is anything that is not in the log.
    fn has_records(&self) -> bool {
        let directory = self.consensus.directory().read();
        let is_ap = |mode| mode == GroupMode::Ap;
        let comes = directory
            .groups()
            .any(|group| is_ap(group.settings.mode) || group.moving.is_some_and(|moving| is_ap(moving.to)));
        comes || self.records() > 0
    }
}

/// Has a server told that it stays, unless it is defused.
struct LetStay(Option<(Arc<Inner>, ServerId)>);

impl LetStay {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for LetStay {
    fn drop(&mut self) {
        if let Some((inner, server)) = self.0.take() {
            // A question with a bound; nobody waits for it.
            drop(tokio::spawn(inner.let_stay(server)));
        }
    }
}

#[tonic::async_trait]
impl Heir for Inner {
    async fn inherit(
        self: Arc<Self>,
        server: ServerId,
        lost: bool,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let Some(other) = self.other(server).filter(|_| self.has_records()) else {
            return Ok(());
        };
        if !self.is_sure() && !lost {
            return Err(MembershipError::Unavailable {
                reason: "the leader does not know yet which records of AP groups count".into(),
            });
        }
        let until = deadline.min(Instant::now() + INHERIT_MAX);
        // Also if whoever wants it removed hangs up.
        let stays = LetStay(Some((self.clone(), server)));
        let inherited = match self.say_retire(&other, false).await {
            Ok(()) => take_all(self.clone(), &other, until).await.map_err(|reason| {
                let reason = reason.message();
                format!("not all that server {server} has of AP groups could be fetched ({reason})")
            }),
            Err(reason) => {
                let reason = reason.message();
                Err(format!("server {server} does not answer ({reason})"))
            }
        };
        match inherited {
            Ok(()) => {
                stays.defuse();
                Ok(())
            }
            Err(reason) if lost => {
                tracing::warn!(
                    reason,
                    "AP groups: what the server that is removed acknowledged alone is given up"
                );
                stays.defuse();
                Ok(())
            }
            Err(reason) => {
                drop(stays);
                Err(MembershipError::Invalid {
                    reason: format!(
                        "{reason}: what only it has acknowledged in AP groups would be lost with it; try again when it \
                         answers, or give that up (--lost)"
                    ),
                })
            }
        }
    }

    async fn let_stay(self: Arc<Self>, server: ServerId) {
        let Some(other) = self.other(server) else {
            return;
        };
        if let Err(reason) = self.say_retire(&other, true).await {
            tracing::info!(
                server = server.0,
                reason = reason.message(),
                "AP groups: a server that is not removed after all was not told; it takes writes again in a minute"
            );
        }
    }
}
