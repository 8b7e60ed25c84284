//! The session clock: which sessions have lapsed?
//!
//! It is told the time and never asks for it; it decides nothing but that a deadline has passed. That a session
//! *expires* is a proposal of the leader, and a command that every server applies.

mod countdown;
mod judged_time;
mod page;

pub use countdown::{Countdown, NotFound, Spread};
pub use judged_time::{JudgedTime, Pace, Tick};
pub use page::SessionPage;

use crate::ids::SessionId;

/// Decides when sessions lapse.
pub type SessionClock = Countdown<SessionId>;
