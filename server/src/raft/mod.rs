//! Replication: one Raft group that carries the whole directory.
//!
//! [`Consensus`] is the handle; [`ReplicationOptions`] say how it is set up. The other files are one part of the
//! work each: `proposer`, at its `pace`, and `forward` with its other end `forwarded` bring writes into the log, `read_index`, `freshness`, `inquiry` and `allegiance`
//! confirm reads, `state_machine` applies, `network` and `peer` are the two ends of the lines between servers,
//! `vote_gate` and `upkeep` keep a server honest whose disk forgot something or whose folder is new, `vacancy` sees that a leader's process has
//! ended, `solitude` knows whether this server is the whole cluster.

mod allegiance;
mod checkpoint;
mod consensus;
mod contract;
mod forward;
mod forwarded;
mod freshness;
mod inquiry;
mod membership;
mod network;
mod options;
mod pace;
mod peer;
mod proposer;
mod read_index;
mod solitude;
mod state_machine;
mod ticket;
pub mod types;
mod upkeep;
mod vacancy;
mod vote_gate;
pub(crate) mod wire;

pub use consensus::{Consensus, Initialized, REQUEST_BYTES_MAX};
pub use contract::*;
pub(crate) use network::MESSAGE_BYTES_MAX;
pub use options::{ReplicationOptions, StartError};
pub use peer::PeerDoor;

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
