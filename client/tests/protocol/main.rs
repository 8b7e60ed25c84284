//! The client's side of the protocol, against servers in this process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fake;
mod leaving;
mod modes;
mod queries;
mod session;
mod watch;
