//! A whole run: a cluster, workloads, faults on a schedule, the end in peace, and the judges.
//!
//! - [`Options`]: what to run; everything that chance decides follows from the seed.
//! - [`run`]: runs it.
//! - [`Findings`]: what came of it.
//! - [`judge`]: what the judges say of a history, wherever it comes from. [`happened`]: whether there was enough to judge.

mod elections;
mod judge;
mod leaders;
mod load;
mod options;
mod run;
mod stall;

pub use judge::{Ran, happened, judge};
pub use options::{Options, Workload};
pub use run::{Findings, run};
