//! The rooms of Rollcall: who offers what ([`directory`]), which sessions have lapsed ([`session`]), whether their
//! nodes may be struck off ([`guard`]), who may have the full list while consumers stampede ([`storm`]), and who may
//! register at all ([`admission`]).
//!
//! A room keeps plain state and is handed all it needs, the time included. Nothing here is async, takes a
//! lock, logs, reads a clock or draws a random number; [`directory::Directory::apply`] gives the same result
//! for the same log on every server.

pub mod admission;
pub mod ap;
pub mod directory;
pub mod guard;
pub mod ids;
mod known;
pub mod mutants;
pub mod session;
pub mod storm;
