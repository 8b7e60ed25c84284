//! AP groups: who offers what, as far as this server has heard?
//!
//! Every server keeps a [`Replica`]: its *records*, which merge in any order to the same result, and the clock
//! that stamps them. What they say is shown by a directory of its own, the *view*, which is handed in: a local
//! write is applied to the view and what it changed is written down as records; records from elsewhere are
//! merged and imposed on the view. Decision 0012; hybrid logical clocks: Kulkarni et al., 2014.

mod moved;
mod record;
mod replica;
mod shown;
mod stamp;
mod table;
mod written;

pub use moved::THE_LOG;
pub use record::{Key, NodeValue, Record, Seq, SessionSeed, SessionValue, Standing, Stored, Value};
pub use replica::{FarFuture, Merged, Purged, Replica, VIEW_TERM, Written};
pub use stamp::{Clock, Stamp};
pub use table::{Bucket, Range};
