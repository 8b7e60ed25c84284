//! Gossip: which servers are there, and small news of each, by SWIM over UDP.
//!
//! [`Gossip`] is the handle. `swim` is the core without sockets and clocks, around foca; `agent` is the task that
//! owns the socket. `packet`, `codec`, `key_file`, `cookie` and `replay` are what stands between the network and
//! the core; `epoch` numbers this server's lives on its disk; `board` carries news, of which `head` (how far each
//! server is) is one. Membership by gossip decides nothing about quorums: that is `raft`'s alone.

mod agent;
mod board;
mod codec;
mod cookie;
mod epoch;
mod head;
mod health;
mod identity;
mod key_file;
mod metrics;
mod packet;
mod replay;
mod seeds;
mod socket;
mod swim;
mod timing;

pub use agent::{Gossip, GossipOptions, GossipStartError, PublishError, SelfView};
pub use board::{NEWS_BYTES_MAX, News, TOPICS_MAX, Topic};
pub use head::{Head, HeardHead, publish_heads};
pub use identity::Identity;
pub use key_file::KeyFileError;
pub use metrics::GossipMetrics;
pub use seeds::Seeds;
pub use socket::{advertised, bind, seeds};
pub use swim::{MemberState, MemberView};

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod intrusion_test;
#[cfg(test)]
mod loss_test;
#[cfg(test)]
mod mutation_test;
#[cfg(test)]
mod partition_test;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod wan_test;
