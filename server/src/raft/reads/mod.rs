//! Reads that are sure to be fresh, and how old the others are.
//!
//! `confirm` is a read's whole way. Its `rounds` are shared by everybody who waits: with a quorum or, as `inquiry` asks it, with one
//! other server whose `allegiance` makes a quorum; `freshness` holds the kinds of rounds, and probes how old the local state is.

mod allegiance;
mod confirm;
mod freshness;
mod inquiry;
mod rounds;

pub(super) use allegiance::allegiance;
pub(super) use freshness::{AgeProbe, LeaderRounds, RemoteRounds};
pub(super) use rounds::RoundError;
