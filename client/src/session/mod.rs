//! The provider's side: one session, kept alive on one stream or by datagrams, moved between servers, reopened after loss.

mod attendance;
mod departures;
mod event;
mod handle;
mod heartbeats;
mod operation;
mod pulse;
mod roll;
mod shutdown;

pub use event::{SessionEvent, SessionEvents, SessionStatus};
pub use handle::{Session, SessionOptions};
pub use heartbeats::Heartbeats;
pub use shutdown::{Signal, close_on_signal};
