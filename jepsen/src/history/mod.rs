//! What a run did and saw, on one monotonic clock: kept for the checkers and written as JSON lines, one object a
//! line, so that other checkers can read it too.
//!
//! - [`Operation`]: reads, writes and conditional writes of single records.
//! - [`Heartbeats`]: sessions, their heartbeats, and nodes seen or missing.
//! - [`Fault`]: what was done to whom, and until when.
//! - [`History`]: the recorder, shared by everything that runs.

mod heartbeats;
mod operation;
mod recorder;

pub use heartbeats::Heartbeats;
pub use operation::{Function, Operation, Outcome, Phase, pair};
pub use recorder::{Fault, History, RECORDS_MAX, Record};
