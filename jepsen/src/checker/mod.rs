//! Judges of histories. Each can fail, and its tests show on planted violations that it does.
//!
//! - [`linear`]: every record behaves like one register, in real time.
//! - [`revisions`]: the registry's revisions are unique and follow real time over all records.
//! - [`sessions`]: nobody leaves early, nobody stays long after.
//! - [`watches`]: watchers agree with each other on every change, without gaps.

pub mod linear;
pub mod revisions;
pub mod sessions;
mod verdict;
pub mod watches;

pub use verdict::{Finding, Verdict};
