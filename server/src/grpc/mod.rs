//! The gRPC doors for clients: decode and check, call a handle, encode. No rule of the registry lives here.

mod admission;
pub(crate) mod convert;
mod listener;
mod metrics;

pub use listener::ListenError;
pub(crate) use listener::bind;
pub use metrics::DoorsMetrics;
