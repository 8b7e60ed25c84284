//! Watches: the change log, told to whoever subscribed.
//!
//! The hub pulls changes from its own position, encodes each change of a service once, and hands the same bytes
//! to every stream that follows the service. A stream's backlog is bounded; when it is full its frames are
//! forgotten, and the stream gets the current state of what they were about as soon as it reads again. So no
//! reader slows the hub, a writer or another reader.
//!
//! Exactly once, in order, without gaps: whoever needs state and changes together (a new subscription, a
//! laggard) takes the hub's lock, brings the hub to the directory's head, and reads the state at that very
//! revision. Everything up to it stands in the stream's queue already, everything behind it will come.
//!
//! There are two hubs: one tells of the CP groups, from the replicated directory, one of the AP groups, from this
//! server's view; [`Watches`] is both, and a client's stream is one over both.

mod backlog;
mod cache;
mod fanout;
mod frame;
mod hub;
mod line;
mod merged;
mod metrics;
mod pair;
mod registration;
mod shown;
mod stream;

pub use hub::{Convergence, Division, KnownSigns, SubscribeError, Subscription, TooManyStreams, WatchHub};
pub(crate) use line::Line;
pub use metrics::{ModesMetrics, WatchMetrics};
pub use pair::{PairedHandle, PairedStream, Parts, Watches};
pub use registration::Target;
pub(crate) use shown::{left_behind, shown_within};
pub use stream::{StreamEnd, StreamHandle, WatchStream};
