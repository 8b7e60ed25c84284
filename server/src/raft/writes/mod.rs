//! Writes on their way into the log.
//!
//! `attempt` is a write's whole way. It carries a `ticket`; at the leader the `proposer` gathers writes into entries, at a `pace`, and elsewhere
//! `forward` sends them to the leader, where `forwarded` is the other end of the line.

mod attempt;
mod forward;
mod forwarded;
mod pace;
mod proposer;
mod ticket;

pub use attempt::REQUEST_BYTES_MAX;
pub(super) use attempt::WAITING_BYTES_MAX;
pub(super) use forward::Forwarder;
pub(super) use forwarded::Forwarded;
pub(super) use proposer::Proposer;
