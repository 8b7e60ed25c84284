//! The consumer's side: one watch stream for all subscriptions of a handle, resumed after loss at any server, and
//! the cache that it keeps current.

mod cache;
mod handle;
mod hub;
mod state;
mod stream;

pub use handle::{ServiceWatch, Watch};
pub(crate) use hub::Hub;
pub use state::{RemovalCause, RemovedNode, WatchEvent, WatchTarget};

pub(crate) use cache::{Cached, Merged};
