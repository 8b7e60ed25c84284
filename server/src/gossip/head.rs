//! How far each server is, as it says itself.

use std::time::{Duration, Instant};

use rollcall_core::ids::{LogIndex, Revision, ServerId, Term};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::agent::Gossip;
use super::board::Topic;
use crate::raft::Consensus;

const VERSION: u8 = 1;
/// Changes of the head are told at most this often.
const SPACING: Duration = Duration::from_millis(200);

/// How far a server is, and whom it takes for the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The revision of its directory.
    pub revision: Revision,
    /// The last entry it applied; 0 before the first.
    pub applied: LogIndex,
    /// The term it is in.
    pub term: Term,
    /// The leader of that term, if it knows one.
    pub leader: Option<ServerId>,
}

impl Head {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("a head has no part that postcard refuses");
        [&[VERSION][..], &body].concat()
    }

    /// `None`: no head, or of a version this server does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (head, rest) = postcard::take_from_bytes(body).ok()?;
        rest.is_empty().then_some(head)
    }
}

/// A head, and when it came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardHead {
    /// Whose.
    pub server: ServerId,
    /// What it said.
    pub head: Head,
    /// When it came here.
    pub heard_at: Instant,
}

impl Gossip {
    /// The heads that were heard last, this server's own included.
    #[must_use]
    pub fn heads(&self) -> Vec<HeardHead> {
        let heard = self.on_topic(Topic::Head).into_iter().filter_map(|news| {
            Some(HeardHead {
                server: news.from,
                head: Head::decode(&news.bytes)?,
                heard_at: news.heard_at,
            })
        });
        heard.collect()
    }
}

/// Tells the others how far this server is: when that changes, and now and then.
pub async fn publish_heads(gossip: Gossip, consensus: Consensus, stop: CancellationToken) {
    let (mut applied, mut leadership) = (consensus.applied_head(), consensus.leadership());
    let interval = gossip.head_interval();
    loop {
        let (at, leads) = (*applied.borrow_and_update(), *leadership.borrow_and_update());
        let head = Head {
            revision: at.revision,
            applied: at.position.map_or(LogIndex(0), |position| position.index),
            term: leads.term,
            leader: leads.leader,
        };
        if let Err(error) = gossip.publish(Topic::Head, &head.encode()) {
            tracing::debug!(%error, "head not told");
        }
        let changed = async {
            let closed = tokio::select! {
                changed = applied.changed() => changed.is_err(),
                changed = leadership.changed() => changed.is_err(),
            };
            if closed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tokio::time::timeout(interval, changed) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SPACING) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_as_it_was() {
        let head = Head {
            revision: Revision(7),
            applied: LogIndex(9),
            term: Term(3),
            leader: Some(ServerId(2)),
        };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        assert_eq!(bytes, [1, 7, 9, 3, 1, 2]);
        for end in 0..bytes.len() {
            assert_eq!(Head::decode(&bytes[..end]), None);
        }
        assert_eq!(Head::decode(&[2, 7, 9, 3, 1, 2]), None);
        assert_eq!(Head::decode(&[1, 7, 9, 3, 1, 2, 0]), None);
    }
}
