//! The Rollcall server: shells around the rooms of `rollcall-core`, each touching one part of the world.

pub mod raft;
pub mod store;
