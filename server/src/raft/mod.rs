//! Replication: one Raft group that carries the whole directory.
//!
//! [`Consensus`] is the handle; [`ReplicationOptions`] say how it is set up. The other files are one part of the
//! work each: `writes` brings requests into the log, `reads` confirms answers, `state_machine` applies; `network` and `peer` are the two
//! ends of the lines between servers, `leader_desk` what is asked over them about sessions; `starting` and `membership` say who takes part,
//! `vote_gate` and `upkeep` keep a server honest whose disk forgot something or whose folder is new, `checkpoint` compares states; `vacancy` sees
//! that a leader's process has ended, `heard` whether one is heard at all, `solitude` knows whether this server is the whole cluster.

mod checkpoint;
mod consensus;
mod contract;
mod heard;
mod leader_desk;
mod membership;
mod network;
mod options;
mod peer;
mod reads;
mod solitude;
mod starting;
mod state_machine;
mod status;
pub mod types;
mod upkeep;
mod vacancy;
mod vote_gate;
pub(crate) mod wire;
mod writes;

pub use consensus::Consensus;
pub use contract::*;
pub(crate) use network::MESSAGE_BYTES_MAX;
pub use options::{ReplicationOptions, StartError};
pub use peer::PeerDoor;
pub use starting::Initialized;
pub use writes::REQUEST_BYTES_MAX;

#[cfg(test)]
mod alone_test;
#[cfg(test)]
mod divergence_test;
#[cfg(test)]
mod membership_test;
#[cfg(test)]
mod servers_test;
#[cfg(test)]
mod snapshot_test;
#[cfg(test)]
mod vacancy_test;
#[cfg(test)]
mod vote_gate_test;

pub(crate) type Raft = openraft::Raft<types::TypeConfig, state_machine::StateMachine>;
