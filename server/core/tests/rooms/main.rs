//! The rooms from outside: transcripts, properties, refusals and golden files.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod admission;
mod clock;
mod golden;
mod guard;
mod guarded;
mod modes;
mod properties;
mod refusals;
mod rests;
mod scene;
mod script;
mod statics;
mod storm;
mod transcripts;
