//! The consumer's side: one watch stream for all subscriptions of a handle, resumed after loss at any server, and
//! the cache that it keeps current.

mod cache;
mod event;
mod handle;
mod hub;
mod state;
mod stream;
mod target;

pub use event::{RemovalCause, RemovedNode, WatchEvent};
pub use handle::{ServiceWatch, Watch};
pub(crate) use hub::Hub;
pub use target::WatchTarget;

pub(crate) use cache::{Cached, Merged};
