//! The consumer's side: one watch stream for all subscriptions of a handle, resumed after loss at any server, and
//! the cache that it keeps current.

use std::time::Duration;

mod cache;
mod event;
mod handle;
mod hub;
mod loads;
mod published;
mod state;
mod stream;
mod target;

pub use event::{RemovalCause, RemovedNode, WatchEvent};
pub use handle::{ServiceWatch, Watch};
pub(crate) use hub::Hub;
pub use target::WatchTarget;

/// Longest wait that a server may ask for while it rations full lists.
pub(crate) const KEEP_CACHE_MAX: Duration = Duration::from_secs(600);

pub(crate) use cache::{Cached, Merged};
pub(crate) use published::Published;
