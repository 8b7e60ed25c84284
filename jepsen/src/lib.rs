//! The outside judge of consistency.
//!
//! [`lab`] starts real `rollcalld` processes, does to them what production does (kill -9, SIGSTOP, SIGTERM, restart,
//! membership change) and asks them, over the wire, what became of the promises. [`net`] gives them hosts and a network
//! that the test cuts, slows and counts. [`fuzz`] throws bad packets at their gossip ports. It shares no code with the
//! servers beyond the wire contract, so it cannot be wrong in the same way.

pub mod campaign;
pub mod checker;
pub mod fuzz;
pub mod history;
pub mod lab;
pub mod mutants;
pub mod nemesis;
pub mod net;
pub mod report;
pub mod seed;
pub mod workload;
