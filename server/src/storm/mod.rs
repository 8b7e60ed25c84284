//! The storm switch of this server: follows the replicated record, measures the pressure, and asks the room of
//! that name for each consumer that wants a full list.

mod desk;
mod metrics;

pub use desk::{StormDesk, StormStatus};
pub use metrics::StormMetrics;
