//! The removal guard: may these lapsed nodes be struck off, or is this more than the service's share?
//!
//! One [`Ledger`] per service counts what is listed and what lapsed away; [`Ledger::judge`] answers for all
//! lapses of a tick at once: remove all of them, or hold all of them as suspects. It is told every event and
//! no time: that a window is over, or that nodes were held long enough, is the leader's word, fenced by the
//! revision at which the window or the hold began, so that a late or repeated word is void.
//!
//! Invariant: in one window no more than `max(1, floor(share x baseline))` nodes leave by lapse, be they newly
//! lapsed or held before, and with `keep_last` never the last one. (The idea is Eureka's self-preservation; that
//! it ends by return, by replacement and by an operator's word is what Eureka's issues 1073 and 1127 ask for.)

mod ledger;
mod settings;
mod status;

pub use ledger::{Ending, Engagement, Hold, HoldReason, Ledger, Standing, Verdict, Window};
pub use settings::{GuardSettings, GuardSettingsError, SHARE_WHOLE};
pub use status::{EngagedStatus, GuardStatus};
