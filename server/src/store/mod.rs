//! What a server keeps on its disk: who it is, its log and vote, rows of other shells beside them, its snapshots,
//! the mark that tells whether the disk has forgotten something, and the note that the state differs from the leader's.
//!
//! Invariant: what was answered as durable was synced before the answer; what cannot be read back whole is
//! refused with a remedy, never guessed.

mod direct;
pub(crate) mod divergence;
mod engine;
mod error;
mod identity;
mod log;
pub(crate) mod mark;
mod opening;
mod record;
mod rows;
mod shared;
mod snapshot;
mod space;
mod trouble;
mod writer;

pub use error::StoreError;
pub(crate) use error::is_full;
pub(crate) use identity::replace_file;
pub use identity::{DataFolder, Identity};
pub use log::LogStore;
pub(crate) use log::OpenedLog;
pub(crate) use rows::{RowBatch, RowsError};
pub use snapshot::SnapshotFile;
pub(crate) use snapshot::{IncomingSnapshot, SnapshotStore};
pub use space::SpaceWatch;
pub(crate) use trouble::Trouble;
