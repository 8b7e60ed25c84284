//! The hot paths of the rooms, as operations that can be repeated: `cargo bench -p rollcall-benches` times them,
//! `scripts/gate.sh` counts their instructions. Whole servers are measured from outside, by `rollcall-compare`.

#[cfg(feature = "compare")]
mod client;
mod rooms;
#[cfg(feature = "compare")]
mod streams;

pub use rooms::counted;

/// One operation of a hot path.
pub struct Case {
    /// `room/operation`.
    pub name: &'static str,
    /// After so many operations what was made is used up.
    pub times: u64,
    /// Makes everything that is not measured, and the operation.
    pub make: fn() -> Box<dyn FnMut()>,
}

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    let cases = rooms::cases().into_iter();
    #[cfg(feature = "compare")]
    let cases = cases.chain(client::cases()).chain(streams::cases());
    cases.collect()
}
