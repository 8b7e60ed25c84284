//! Of `rollcall-core`.

mod ap;
mod directory;
mod ground;
mod liveness;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    [directory::cases(), liveness::cases(), ap::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// Repeats an operation. The gate counts what happens in here, by this function's name, and nothing else.
#[inline(never)]
pub fn counted(operation: &mut dyn FnMut(), times: u64) {
    for _ in 0..times {
        operation();
    }
}
