//! AP groups on this server: a view that any server reads and writes, alone if need be
//! (`docs/decisions/0012-ap-groups.md`).
//!
//! [`Ap`] is the handle. `contract` is what other shells meet of it.

mod contract;
mod handle;

pub use contract::{Acknowledged, ApStatus, OriginStatus, SessionSeed, SessionValue, Standing};
pub use handle::{Ap, ApOptions};
