//! The session clock.
