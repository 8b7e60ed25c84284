//! The outside judge of speed.
//!
//! `cargo bench -p rollcall-benches` measures the rooms, that is, the cost of a write once it is committed.
//! Whole clusters are measured from outside, with `rollcall bench`. Comparisons with other registries, each on
//! the same machine and settings, belong here too.
