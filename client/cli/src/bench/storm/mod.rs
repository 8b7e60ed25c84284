//! `rollcall bench storm`: every watcher subscribes again at once, and heartbeats and registrations go on.
//!
//! The watchers hold another list than the servers' and know its sign, as after a network failure in which
//! everything changed. They are counted in bytes, as they arrive; heartbeats and registrations run on a thread
//! of their own, so that what the watchers cost this process is not taken for what the servers do. The watchers share
//! one thread, so that they leave other processors of this machine to the servers, if those run here too.

mod egress;
mod herd;
mod pulse;
mod report;
mod run;
mod thread;

pub(crate) use run::{METHOD, StormBench, run};
