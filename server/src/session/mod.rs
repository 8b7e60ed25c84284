//! Sessions: the holder gathers heartbeats where the stream is, the authority judges them where the leader is.
//!
//! Its `office` keeps the deadlines, of the log's sessions as of those of AP groups; a `word` is what an office has to say: who
//! lapsed, what a guard has held long enough.
//!
//! A heartbeat is never a log entry. It is acknowledged only after the leader recorded it and then found a
//! quorum still behind it, so a deposed leader acknowledges nothing, and every leader to come starts its full
//! ttl later than any heartbeat that was ever acknowledged (design section 2, rules 4 to 7).

mod authority;
mod holder;
mod office;
mod word;

pub use authority::{Authority, AuthoritySettings};
pub use holder::{Haste, HeldSession, Holder, RenewError, RenewOutcome};
pub(crate) use office::{Office, REST_MAX, TICK};
pub(crate) use word::Word;
