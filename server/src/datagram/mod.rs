//! Heartbeats by datagram: signs of life without a connection, worth what they are worth on a stream.
//!
//! ```text
//!           receiver (a thread: reads many, looks, verifies, gathers)      carriers (tasks)
//! UDP ──> shape ──> number ──> rate ──> mac ──> counter ──> gathered ──> leader (holder) ──> answers, many at once
//!            garbage costs least ──────────────────> state only for those who have the key
//! ```
//! - A heartbeat has a mac of its session's key, which every server knows without having met the client, names the
//!   number that this server drew for this life, and counts up. So none counts twice, here or elsewhere.
//! - It is acknowledged as on a stream: after the leader recorded it and a quorum confirmed that leader; in AP groups
//!   after this server vouched for it. What is not decided gets no answer, and is said again.
//! - Everything is bounded, and what is full drops datagrams, which costs a client nothing but a repetition, or its
//!   stream. The page of the wire is docs/heartbeats.md, the reasons are in docs/decisions/0019.

mod carrier;
mod gathered;
mod ledger;
mod mail;
mod metrics;
mod rates;
mod receiver;
mod socket;

pub use metrics::DatagramMetrics;
pub use receiver::{Datagrams, DatagramsParts};
pub use socket::{bind, told};
