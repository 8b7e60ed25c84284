//! Judges of histories. Each can fail, and its tests show on planted violations that it does.
//!
//! - [`ap`]: groups that any server may write to lose nothing, revive nothing, and agree in the end.
//! - [`ages`]: local reads are no older than they say.
//! - [`batches`]: batches are whole, and requests that are sent again are applied once.
//! - [`floors`]: what there was to judge happened.
//! - [`guard`]: no more than its share of a service lapses away.
//! - [`linear`]: every record behaves like one register, in real time.
//! - [`pauses`]: a server that slept blames nobody.
//! - [`resumes`]: watchers that leave and come back miss nothing and hear nothing twice.
//! - [`revisions`]: the registry's revisions are unique and follow real time over all records.
//! - [`sessions`]: nobody leaves early, nobody stays long after.
//! - [`silences`]: no server forgets a watcher.
//! - [`storm`]: a stampede of consumers takes no more than its budget, and all are served in time.
//! - [`takeover`]: a node that changes hands stays, and changes them once.
//! - [`watches`]: watchers agree with each other on every change, without gaps.

pub mod ages;
pub mod ap;
pub mod batches;
mod changes;
mod clocks;
pub mod floors;
pub mod guard;
pub mod linear;
pub mod pauses;
pub mod resumes;
pub mod revisions;
pub mod sessions;
pub mod silences;
pub mod storm;
pub mod takeover;
mod verdict;
pub mod watches;

pub use verdict::{Finding, Verdict};
