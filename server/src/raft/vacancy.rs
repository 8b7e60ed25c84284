//! A leader whose process has ended, and who asks for its place.
//!
//! Raft waits for silence, because silence is all it knows, and must wait long, because a hiccup is silence too. A
//! process that has ended is told apart: its connections end, and its port refuses new ones. Then its followers ask for
//! votes as soon as the lease that they gave it is over, one after the other in the order of their ids, so that no two
//! split the votes. They ask by a pre-vote (Ongaro, Consensus: Bridging Theory and Practice, 9.6): whoever still hears
//! the leader refuses, no term changes, and a wrong guess costs a few messages. Whatever is not seen here is left to the
//! election timeout.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::consensus::Inner;
use super::contract::MemberRole;

/// How long a port may take to refuse.
const REFUSE_MAX: Duration = Duration::from_millis(200);
/// So often a server asks for one leader's place; then it leaves it to the election timeout.
const ATTEMPTS_MAX: u32 = 3;

/// Tells, when it is dropped, that a leader's stream to this server has ended.
pub(super) struct StreamEnd(Arc<Notify>);

impl StreamEnd {
    pub(super) fn new(ended: &Arc<Notify>) -> Self {
        Self(ended.clone())
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Looks, whenever a leader's stream ends, whether its place is vacant.
pub(super) async fn fill(weak: Weak<Inner>) {
    let Some(ended) = weak.upgrade().map(|inner| inner.stream_ended.clone()) else {
        return;
    };
    loop {
        ended.notified().await;
        let seen = Instant::now();
        let Some(vacancy) = weak.upgrade().and_then(|inner| Vacancy::suspected(&inner)) else {
            continue;
        };
        vacancy.fill(&weak, seen).await;
    }
}

/// A place that may be vacant.
struct Vacancy {
    leader: u64,
    address: String,
    /// How many servers are to ask before this one.
    rank: u32,
}

impl Vacancy {
    /// None unless this server follows a leader and votes.
    fn suspected(inner: &Inner) -> Option<Self> {
        let own = inner.options.server;
        let leader = inner.leadership.borrow().leader.filter(|leader| *leader != own)?;
        let members = inner.members();
        let votes = |role| matches!(role, MemberRole::Follower | MemberRole::Candidate);
        let mut others: Vec<_> = members
            .iter()
            .filter(|member| member.server != leader && votes(member.role))
            .map(|member| member.server)
            .collect();
        others.sort_unstable();
        Some(Self {
            leader: leader.0,
            address: inner.address_of(leader.0)?,
            rank: others.iter().position(|server| *server == own)?.try_into().ok()?,
        })
    }

    async fn fill(self, weak: &Weak<Inner>, seen: Instant) {
        let Some((mut leadership, lease, step)) = weak.upgrade().map(|inner| {
            let options = &inner.options;
            (
                inner.leadership.subscribe(),
                options.lease(),
                options.heartbeat_interval,
            )
        }) else {
            return;
        };
        let mut due = seen + lease + step * self.rank;
        for _ in 0..ATTEMPTS_MAX {
            if !self.is_refused().await {
                return;
            }
            tokio::select! {
                _ = leadership.wait_for(|now| now.leader.is_none_or(|leader| leader.0 != self.leader)) => return,
                () = tokio::time::sleep_until(due) => {}
            }
            let Some(inner) = weak.upgrade() else { return };
            if inner.gate.may_vote().is_err() || !self.is_refused().await {
                return;
            }
            tracing::info!(
                leader = self.leader,
                "the leader's process has ended, asking for its place"
            );
            if inner.raft.trigger().elect(true).await.is_err() {
                return;
            }
            due = Instant::now() + step * 2;
        }
    }

    /// Whether nobody listens where the leader did. Silence is no answer.
    async fn is_refused(&self) -> bool {
        let connecting = tokio::time::timeout(REFUSE_MAX, TcpStream::connect(&self.address));
        matches!(connecting.await, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}
