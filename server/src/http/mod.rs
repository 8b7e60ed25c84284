//! Health, metrics and version over plain HTTP. Answers without a quorum.

mod pages;
mod readiness;

pub use pages::{Pages, serve};
pub use readiness::Readiness;
