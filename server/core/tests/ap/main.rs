//! AP groups: records merge in any order, and every server's view ends up the same.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../rooms/scene.rs"]
#[allow(dead_code, reason = "shared with the other rooms' tests")]
mod scene;

mod convergence;
mod merging;
mod moving;
mod server;
mod stories;
