//! What a run did and saw, on one monotonic clock: kept for the checkers and written as JSON lines, one object a
//! line, so that other checkers can read it too.
//!
//! - [`Operation`]: reads, writes and conditional writes of single records.
//! - [`Heartbeats`]: sessions, their heartbeats, and nodes seen or missing.
//! - [`Ap`]: nodes of a group that any server may write to.
//! - [`Following`]: what watchers were told, stream by stream.
//! - [`Guarding`], [`Ownership`], [`Stampede`]: services that fall silent, nodes that change hands, consumers in a rush.
//! - [`Answer`]: batches, requests that are sent again, reads with an age.
//! - [`Fault`]: what was done to whom, and until when.
//! - [`export`]: the lines in Jepsen's own form.
//! - [`History`]: the recorder, shared by everything that runs.

mod answer;
mod ap;
mod edn;
mod following;
mod guarding;
mod heartbeats;
mod operation;
mod ownership;
mod recorder;
mod stampede;

pub use answer::Answer;
pub use ap::Ap;
pub use edn::{Exported, export};
pub use following::{Following, Shown};
pub use guarding::Guarding;
pub use heartbeats::Heartbeats;
pub use operation::{Function, Operation, Outcome, Phase, pair};
pub use ownership::Ownership;
pub use recorder::{Fault, History, RECORDS_MAX, Record};
pub use stampede::Stampede;
