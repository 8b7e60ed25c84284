//! The heartbeat-storm switch: may this consumer have the full list now? how fast may changes leave us?
//!
//! It protects the servers' bandwidth and CPU when the network flaps and consumers stampede (design section 4).
//! It is told what the operator set ([`Mode`], by scope), how hard this server is pressed ([`Pressure`]) and what
//! time it is, and answers each consumer that asks for a full list: now, or keep what you have and ask again at
//! that moment. It never judges heartbeats, registrations or deregistrations.
//!
//! Invariants: while one setting stands, whoever asks again when told is served within `ceil(1 / share)` epochs;
//! without the cold-start bucket an epoch never belongs to more than the share of all client ids, but for the
//! luck of the hash; automatic engagement changes at most twice in any [`JudgeSettings::hold`].

mod budget;
mod cold_start;
mod judge;
mod mode;
mod rotation;
mod switch;

pub use budget::Budget;
pub use cold_start::ColdStart;
pub use judge::{Engagement, Flip, Judge, JudgeSettings, Pressure, Reading, Why};
pub use mode::{Mode, Modes, Record, Scope, Share, ShareError};
pub use rotation::Rotation;
pub use switch::{Admission, Consumer, Pace, StormSwitch, SwitchSettings};
