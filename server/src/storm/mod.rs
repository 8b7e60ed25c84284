//! The storm switch of this server: follows the replicated record, measures the pressure, and asks the room of
//! that name for each consumer that wants a full list.

mod desk;
mod gate;
mod metrics;
pub(crate) mod rehearsal;

pub use desk::{StormDesk, StormStatus};
pub(crate) use gate::Turn;
pub use metrics::StormMetrics;
