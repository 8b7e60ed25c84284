//! AP groups on this server: a view that any server reads and writes, alone if need be
//! (`docs/decisions/0012-ap-groups.md`).
//!
//! [`Ap`] is the handle. `desk` is the state: records, who judges which session, how far the others are followed.
//! `committer` is the one task that changes it, batch by batch, with a sync for each, for which writes wait in `company`;
//! `rows` is how it lies on disk.
//! `definitions` brings groups and services from the replicated directory. `exchange` follows the others' logs, by
//! `news` and by pulls, `repair` compares and fetches, `peer` is the other end of both. `judge` says who lapsed.
//! `members` and `origins` are what is known of the other servers; `upkeep` forgets what is old. `mover` takes groups
//! from one mode to the other, and `strays` takes back what lost its mover. `retirement` is for servers that are removed.

mod committer;
mod company;
mod contract;
mod definitions;
mod desk;
mod exchange;
mod handle;
mod inner;
mod judge;
mod members;
mod metrics;
mod mover;
mod news;
mod origins;
mod peer;
mod repair;
mod retirement;
mod rows;
mod strays;
mod upkeep;

pub(crate) use contract::Introduction;
pub use contract::{Acknowledged, ApStatus, OriginStatus};
pub(crate) use handle::Remembered;
pub use handle::{Ap, ApOptions};
pub use metrics::ApMetrics;
pub use mover::{MoveError, MoveReport, ServerReport};
pub use peer::ApDoor;
pub use rollcall_core::ap::{SessionSeed, SessionValue, Standing};

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod desk_test;
#[cfg(test)]
mod disk_test;
#[cfg(test)]
mod moves_test;
#[cfg(test)]
mod retirement_test;
